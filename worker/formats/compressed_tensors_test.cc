#include "worker/formats/compressed_tensors.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>

#include "base/parallel_for.h"
#include "gtest/gtest.h"
#include "kernels/scalar_convert.h"
#include "worker/formats/model_files.h"
#include "worker/formats/model_writer.h"
#include "worker/formats/tensor_names.h"
#include "worker/formats/testing_files.h"
#include "worker/formats/weight_encoding.h"
#include "worker/formats/weight_levels.h"
#include "worker/tensor/held_rows.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

const WeightQuantization kInt4 = {.bits = 4, .group = 64, .has_zero_points = true},
                         kSymmetric = {.bits = 4, .group = 32, .has_zero_points = false},
                         kInt8 = {.bits = 8, .group = 0, .has_zero_points = false},
                         kFp8 = {.bits = 8, .group = 0, .has_zero_points = false, .is_float = true},
                         kMixed = {.bits = 4,
                                   .group = 64,
                                   .has_zero_points = true,
                                   .has_int8_too = true,
                                   .int4_modules = {"model.layers.0.self_attn.q_proj"},
                                   .int8_modules = {"model.layers.0.mlp.down_proj", "re:.*up_proj"}};

HeldRows Held(const TensorView& tensor) {
  ThreadPool pool(2);
  auto held = HeldRows::Hold(tensor, pool);
  CHECK(held.ok(), Message(held.status()));
  return *std::move(held);
}

// A matrix as kernels take it, with any codes; blocks of a group have one head.
std::vector<std::byte> RandomBlocks(const WeightQuantization& quantization, DType dtype, const Shape& shape,
                                    unsigned seed) {
  std::mt19937 random(seed);
  const uint64_t rows = shape[0], columns = shape[1];
  std::vector<std::byte> out;
  if (quantization.is_float) {
    std::normal_distribution<float> normal;
    std::vector<float> row(columns);
    for (uint64_t i = 0; i < rows; ++i) {
      for (float& value : row) value = normal(random) * static_cast<float>(1 + i);
      out.resize(out.size() + 2 * columns);
      RoundToFp8(row, std::span(out).last(2 * columns));
    }
    return out;
  }
  if (dtype == DType::kInt8) {
    for (uint64_t i = 0; i < rows * columns; ++i) out.push_back(static_cast<std::byte>(random() % 256));
    for (uint64_t i = 0; i < rows; ++i) {
      const float scale = static_cast<float>(1 + random() % 100) / 1000;
      const auto bytes = std::as_bytes(std::span(&scale, 1));
      out.insert(out.end(), bytes.begin(), bytes.end());
    }
    return out;
  }
  const size_t elements = Info(dtype).block_elements, block_bytes = Info(dtype).block_bytes;
  for (uint64_t first = 0; first < rows * columns; first += quantization.group) {
    const BlockHead head = {
        .scale = F16FromFloat(static_cast<float>(1 + random() % 100) / 1000),
        .zero_point = quantization.has_zero_points ? static_cast<uint8_t>(random() % 16) : uint8_t{8}};
    for (uint64_t i = 0; i < quantization.group; i += elements) {
      std::vector<uint8_t> codes(elements);
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random() % 16);
      out.resize(out.size() + block_bytes);
      PutBlock(dtype, head, codes, out.data() + out.size() - block_bytes);
    }
  }
  return out;
}

// A model whose linears are quantized, written as a folder; what its linears are. Mixed: by turns.
struct WrittenModel {
  explicit WrittenModel(const WeightQuantization& quantization, const std::string& name)
      : path(testing::TempDir() + "compressed_" + name) {
    const std::string tiny = testing::TempDir() + "compressed_text";
    TinyFolder().Write(tiny);
    ModelToWrite plan = {.config = {}, .text = OpenText(tiny).value()};
    plan.config.family = "llama";
    plan.config.vocab_size = 300;
    plan.config.context_length = 64;
    plan.config.hidden_size = 128;
    plan.config.layers = 1;
    plan.config.heads = 5;
    plan.config.kv_heads = 1;
    plan.config.head_dim = 128;
    plan.config.ffn_size = 256;
    plan.config.tied_embeddings = true;
    plan.config.quantization = quantization;
    unsigned seed = 0;
    std::vector<std::vector<std::byte>> data;
    for (const TensorRequirement& tensor : RequiredTensors(plan.config)) {
      const bool is_linear = !IsNorm(tensor.kind) && tensor.kind != TensorKind::kEmbedding;
      DType dtype = is_linear ? KernelDType(quantization) : DType::kF32;
      if (is_linear && quantization.has_int8_too && linears.size() % 2 == 1) dtype = DType::kInt8;
      plan.tensors.push_back({tensor.name, dtype, tensor.shape});
      data.push_back(is_linear ? RandomBlocks(quantization, dtype, tensor.shape, ++seed)
                               : std::vector<std::byte>(4 * ElementCount(tensor.shape).value()));
      if (is_linear) linears.push_back({tensor.name, dtype, data.back()});
    }
    const auto sizes = StoredSizes(plan);
    CHECK(sizes.ok(), Message(sizes.status()));
    for (const uint64_t size : *sizes) stored_bytes += size;
    fs::remove_all(path);
    auto writer = ModelWriter::Create(path, plan);
    CHECK(writer.ok(), Message(writer.status()));
    const uint64_t head = (*writer)->size();
    for (const auto& bytes : data) {
      CHECK((*writer)->Append(std::span(bytes).first(bytes.size() / 3)).ok());
      CHECK((*writer)->Append(std::span(bytes).subspan(bytes.size() / 3)).ok());
    }
    written_bytes = (*writer)->size() - head;
    const auto digest = (*writer)->Finish();
    CHECK(digest.ok(), Message(digest.status()));
  }
  struct Linear {
    std::string name;
    DType dtype;
    std::vector<std::byte> bytes;
  };
  const std::string path;
  std::vector<Linear> linears;
  uint64_t stored_bytes = 0, written_bytes = 0;
};

TEST(CompressedTensors, AModelThatIsWrittenOpensWithTheSameBlocks) {
  const struct {
    const char* name;
    WeightQuantization quantization;
  } cases[] = {{"g32", {.bits = 4, .group = 32, .has_zero_points = true}},
               {"g64", kInt4},
               {"g128", {.bits = 4, .group = 128, .has_zero_points = true}},
               {"symmetric", kSymmetric},
               {"int8", kInt8},
               {"fp8", kFp8},
               {"mixed", kMixed}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const WrittenModel written(c.quantization, c.name);
    const auto model = OpenModel(written.path);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->config.quantization, c.quantization);
    EXPECT_EQ(written.stored_bytes, written.written_bytes);
    for (const auto& [name, dtype, bytes] : written.linears) {
      const TensorView tensor = model->weights->Find(name).value();
      EXPECT_EQ(tensor.dtype, dtype);
      const HeldRows held = Held(tensor);
      ASSERT_EQ(std::memcmp(held.matrix().data, bytes.data(), tensor.bytes), 0) << name;
      if (dtype != DType::kInt8) {
        EXPECT_EQ(tensor.bytes, bytes.size());
        continue;
      }
      ASSERT_EQ(tensor.bytes + tensor.shape[0] * sizeof(float), bytes.size());
      EXPECT_EQ(std::memcmp(tensor.row_scales, bytes.data() + tensor.bytes, bytes.size() - tensor.bytes), 0);
    }
  }
}

TEST(CompressedTensors, PacksAsTheLibraryDoes) {
  // Ten rows of one group: codes that count up, a zero point for each row.
  std::vector<std::byte> blocks(10 * Info(DType::kInt4G32).block_bytes);
  for (uint8_t row = 0; row < 10; ++row) {
    std::vector<uint8_t> codes(32);
    for (size_t i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>((i + row) % 16);
    PutBlock(DType::kInt4G32, {.scale = static_cast<uint16_t>(0x3c00 + row), .zero_point = row}, codes,
             blocks.data() + row * Info(DType::kInt4G32).block_bytes);
  }
  const WeightQuantization quantization = {.bits = 4, .group = 32, .has_zero_points = true};
  const Shape shape = {10, 32};
  const auto stored = StoredTensors(quantization, "a.weight", DType::kInt4G32, shape);
  ASSERT_EQ(stored.size(), 4u);
  const struct {
    const char *name, *dtype;
    std::vector<uint64_t> shape;
  } want[] = {{"a.weight_packed", "I32", {10, 4}},
              {"a.weight_zero_point", "I32", {2, 1}},
              {"a.weight_scale", "F16", {10, 1}},
              {"a.weight_shape", "I32", {2}}};
  const auto bytes = StoredBytes(quantization, DType::kInt4G32, shape, blocks);
  size_t total = 0;
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(stored[i].name, want[i].name);
    EXPECT_EQ(stored[i].dtype, want[i].dtype);
    EXPECT_EQ(stored[i].shape, want[i].shape);
    total += stored[i].bytes;
  }
  ASSERT_EQ(bytes.size(), total);
  const auto word = [&](size_t at) { return LoadUnaligned<uint32_t>(bytes.data() + at); };
  EXPECT_EQ(word(0), 0x76543210u);
  EXPECT_EQ(word(4), 0xfedcba98u);
  EXPECT_EQ(word(16), 0x87654321u);   // the second row
  EXPECT_EQ(word(160), 0x76543210u);  // zero points of rows 0 to 7
  EXPECT_EQ(word(164), 0x00000098u);  // and of 8 and 9
  EXPECT_EQ(LoadUnaligned<uint16_t>(bytes.data() + 168 + 2 * 9), 0x3c09);
  EXPECT_EQ(word(188), 10u);
  EXPECT_EQ(word(192), 32u);
}

Json Config(const WeightQuantization& quantization) { return QuantizationConfigJson(quantization); }

TEST(CompressedTensors, Int4IsCalledAfterTheGroupOfTheFile) {
  EXPECT_EQ(FormatName(DType::kInt4G32, 64), "INT4_G64");
  EXPECT_EQ(FormatName(DType::kInt4G128, 256), "INT4_G256");
  EXPECT_EQ(FormatName(DType::kInt4G32, 0), "INT4_G32");
  EXPECT_EQ(FormatName(DType::kF16, 64), "F16") << "the embedding beside it";
  ModelConfig config;
  EXPECT_EQ(FormatName(DType::kInt4G32, config), "INT4_G32");
  config.quantization = kInt4;
  EXPECT_EQ(FormatName(DType::kInt4G32, config), "INT4_G64");
  config.quantization = kInt8;
  EXPECT_EQ(FormatName(DType::kInt8, config), "INT8");
}

TEST(ParseQuantizationConfig, ReadsWhatIsWritten) {
  for (const WeightQuantization& quantization : {kInt4, kSymmetric, kInt8, kFp8, kMixed}) {
    const auto parsed = ParseQuantizationConfig(Config(quantization));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, quantization);
  }
}

TEST(ParseQuantizationConfig, ReadsWhatLlmCompressorWrites) {
  const auto parsed = ParseQuantizationConfig(*ParseJson(R"({
    "config_groups": {"group_0": {"input_activations": null, "output_activations": null, "targets": ["Linear"],
      "weights": {"actorder": "weight", "block_structure": null, "dynamic": false, "group_size": 128,
        "num_bits": 4, "observer": "minmax", "observer_kwargs": {}, "strategy": "group", "symmetric": true,
        "type": "int"}}},
    "format": "pack-quantized", "global_compression_ratio": 1.89, "ignore": ["lm_head"], "kv_cache_scheme": null,
    "quant_method": "compressed-tensors", "quantization_status": "compressed", "sparsity_config": {},
    "transform_config": {}})"));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed, (WeightQuantization{.bits = 4, .group = 128, .has_zero_points = false}));
}

// FP8 as a group of a mixture.
Json MixedInFp8() {
  Json group = Config(kFp8)["config_groups"]["group_0"];
  group["format"] = "float-quantized";
  return group;
}

TEST(ParseQuantizationConfig, TakesFp8WithAScaleForAllAndFloatActivations) {
  Json json = Config(kFp8);
  json["config_groups"]["group_0"]["weights"]["strategy"] = "tensor";
  json["config_groups"]["group_0"]["input_activations"] = nullptr;
  const auto parsed = ParseQuantizationConfig(json);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed, kFp8);
}

TEST(ParseQuantizationConfig, TakesAMixtureOfOneFormatForThatFormat) {
  Json json = Config(kMixed);
  json["config_groups"].erase("group_0");
  const auto parsed = ParseQuantizationConfig(json);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed, kInt8);
}

TEST(QuantizationConfigJson, NamesTheMatricesThatAreFloats) {
  WeightQuantization quantization = kInt4;
  quantization.float_modules = {"model.layers.0.mlp.down_proj"};
  EXPECT_EQ(Config(quantization)["ignore"], Json::array({"lm_head", "model.layers.0.mlp.down_proj"}));
}

TEST(ParseQuantizationConfig, RefusesWhatWouldChangeTheResults) {
  const struct {
    const char *pointer, *mention;
    Json value;
    WeightQuantization of;
  } cases[] = {
      {"/quant_method", "quant_method", "gptq", kInt4},
      {"/format", "format", "marlin-24", kInt4},
      {"/quantization_status", "quantization_status", "frozen", kInt4},
      {"/kv_cache_scheme", "kv_cache_scheme", Json::object({{"num_bits", 8}}), kInt4},
      {"/sparsity_config", "sparsity_config", Json::object({{"format", "sparse-24"}}), kInt4},
      {"/transform_config", "transform_config", Json::object({{"config_groups", {{"R1", {}}}}}), kInt4},
      {"/transform_config", "transform_config", "hadamard", kInt8},
      {"/config_groups", "config_groups", Json::object(), kInt4},
      {"/config_groups/group_1", "config_groups", Json::object(), kInt4},
      {"/config_groups/group_0/targets", "targets", Json::array({"re:.*down_proj"}), kInt4},
      {"/config_groups/group_0/weights", "weights", nullptr, kInt4},
      {"/config_groups/group_0/weights/num_bits", "num_bits", 3, kInt4},
      {"/config_groups/group_0/weights/type", "type", "float", kInt4},
      {"/config_groups/group_0/weights/strategy", "strategy", "channel", kInt4},
      {"/config_groups/group_0/weights/group_size", "group_size", 48, kInt4},
      {"/config_groups/group_0/weights/group_size", "group_size", -1, kInt4},
      {"/config_groups/group_0/weights/group_size", "group_size", "128", kInt4},
      {"/config_groups/group_0/weights/symmetric", "symmetric", 1, kInt4},
      {"/config_groups/group_0/weights/actorder", "actorder", "group", kInt4},
      {"/config_groups/group_0/input_activations", "input_activations", Json::object(), kInt4},
      {"/config_groups/group_0/input_activations", "input_activations", nullptr, kInt8},
      {"/config_groups/group_0/input_activations/dynamic", "dynamic", false, kInt8},
      {"/config_groups/group_0/input_activations/strategy", "strategy", "tensor", kInt8},
      {"/config_groups/group_0/weights/symmetric", "symmetric", false, kInt8},
      {"/config_groups/group_0/targets", "config_groups.group_0", Json::array(), kMixed},
      {"/config_groups/group_1/targets", "config_groups.group_1", Json::array({1}), kMixed},
      {"/config_groups/group_1/format", "config_groups.group_1", "pack-quantized", kMixed},
      {"/config_groups/group_1/format", "marlin-24", "marlin-24", kMixed},
      {"/config_groups/group_1", "FP8 beside", MixedInFp8(), kMixed},
      {"/config_groups/group_0/weights/type", "type", "int", kFp8},
      {"/config_groups/group_0/weights/num_bits", "num_bits", 4, kFp8},
      {"/config_groups/group_0/weights/strategy", "strategy", "block", kFp8},
      {"/config_groups/group_0/weights/symmetric", "symmetric", false, kFp8},
      {"/config_groups/group_0/input_activations/dynamic", "dynamic", false, kFp8},
      {"/config_groups/group_0/input_activations/type", "type", "int", kFp8},
      {"/config_groups/group_2", "second group of 4 bits", Config(kMixed)["config_groups"]["group_0"],
       kMixed},
      {"/config_groups/group_0/weights/num_bits", "num_bits", 8, kMixed},
      {"/format", "config_groups", "pack-quantized", kMixed},
  };
  for (const auto& c : cases) {
    Json json = Config(c.of);
    json[Json::json_pointer(c.pointer)] = c.value;
    const auto parsed = ParseQuantizationConfig(json);
    SCOPED_TRACE(testing::Message() << c.pointer << " " << c.value);
    ASSERT_FALSE(parsed.ok());
    EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument);
    EXPECT_NE(Message(parsed.status()).find(c.mention), std::string::npos) << parsed.status();
  }
  for (const Json& json : {Json(), Json(1), Json("x"), Json::array(), Json::object()})
    EXPECT_FALSE(ParseQuantizationConfig(json).ok()) << json;
}

// The tensors of one matrix of [rows, 64], to be changed.
struct OneMatrix {
  explicit OneMatrix(const WeightQuantization& quantization, uint64_t rows = 8) : of(quantization) {
    const Shape shape = {rows, 64};
    const DType dtype = KernelDType(of);
    bytes = StoredBytes(of, dtype, shape, RandomBlocks(of, dtype, shape, /*seed=*/1));
    size_t at = 0;
    for (const StoredTensor& part : StoredTensors(of, "a.weight", dtype, shape)) {
      SafetensorsTensor tensor = {.name = part.name,
                                  .dtype = std::string(part.dtype),
                                  .shape = {},
                                  .data = std::span(bytes).subspan(at, part.bytes),
                                  .offset = at,
                                  .file = "f"};
      for (const uint64_t dim : part.shape) tensor.shape.dims[tensor.shape.rank++] = dim;
      tensors.push_back(std::move(tensor));
      at += part.bytes;
    }
  }
  SafetensorsTensor& operator[](const std::string& name) {
    for (SafetensorsTensor& tensor : tensors) {
      if (tensor.name == "a." + name) return tensor;
    }
    CHECK(false, "no ", name);
    return tensors[0];
  }
  std::byte* DataOf(const std::string& name) { return bytes.data() + (*this)[name].offset; }
  void Remove(const std::string& name) {
    std::erase_if(tensors, [&](const auto& tensor) { return tensor.name == "a." + name; });
  }
  const WeightQuantization of;
  std::vector<std::byte> bytes;
  std::vector<SafetensorsTensor> tensors;
};

TEST(MakeKernelTensors, RefusesWhatDoesNotFitTogether) {
  const struct {
    const char *what, *reason, *mention;
    WeightQuantization of;
    void (*change)(OneMatrix&);
  } cases[] = {
      {"no scales", "missing_tensor", "a.weight_scale", kInt4,
       [](OneMatrix& m) { m.Remove("weight_scale"); }},
      {"no zero points", "missing_tensor", "a.weight_zero_point", kInt4,
       [](OneMatrix& m) { m.Remove("weight_zero_point"); }},
      {"scales of another shape", "bad_shape", "[1, 8]", kInt4,
       [](OneMatrix& m) {
         m["weight_scale"].shape = {1, 8};
       }},
      {"integers as scales", "bad_dtype", "a.weight_scale", kInt4,
       [](OneMatrix& m) { m["weight_scale"].dtype = "I8"; }},
      {"a scale that is no number", "nonfinite", "a.weight_scale", kInt4,
       [](OneMatrix& m) {
         const uint16_t nan = 0x7e00;
         std::memcpy(m.DataOf("weight_scale") + 2, &nan, 2);
       }},
      {"codes that are no words", "bad_dtype", "a.weight_packed", kInt4,
       [](OneMatrix& m) { m["weight_packed"].dtype = "I64"; }},
      {"rows that are no whole groups", "bad_shape", "groups of 64", kInt4,
       [](OneMatrix& m) {
         m["weight_packed"].shape = {16, 4};
       }},
      {"another shape", "bad_shape", "a.weight_shape", kInt4,
       [](OneMatrix& m) {
         const int32_t rows = 9;
         std::memcpy(m.DataOf("weight_shape"), &rows, 4);
       }},
      {"a shape of floats", "bad_dtype", "a.weight_shape", kInt4,
       [](OneMatrix& m) { m["weight_shape"].dtype = "F32"; }},
      {"groups by an index", "unsupported_tensor", "a.weight_g_idx", kInt4,
       [](OneMatrix& m) {
         m.tensors.push_back(m["weight_shape"]);
         m.tensors.back().name = "a.weight_g_idx";
       }},
      {"the matrix twice", "bad_name", "a.weight_packed", kInt4,
       [](OneMatrix& m) {
         m.tensors.push_back(m["weight_scale"]);
         m.tensors.back().name = "a.weight";
       }},
      {"zero points where there are none", "bad_dtype", "symmetric", kSymmetric,
       [](OneMatrix& m) {
         m.tensors.push_back(m["weight_shape"]);
         m.tensors.back().name = "a.weight_zero_point";
       }},
      {"int8 without scales", "missing_tensor", "a.weight_scale", kInt8,
       [](OneMatrix& m) { m.Remove("weight_scale"); }},
      {"int8 with zero points", "bad_dtype", "symmetric", kInt8,
       [](OneMatrix& m) {
         m.tensors.push_back(m["weight_scale"]);
         m.tensors.back().name = "a.weight_zero_point";
       }},
      {"int8 with integer scales", "bad_dtype", "a.weight_scale", kInt8,
       [](OneMatrix& m) { m["weight_scale"].dtype = "I32"; }},
      {"fp8 without scales", "missing_tensor", "a.weight_scale", kFp8,
       [](OneMatrix& m) { m.Remove("weight_scale"); }},
      {"fp8 with zero points", "bad_dtype", "symmetric", kFp8,
       [](OneMatrix& m) {
         m.tensors.push_back(m["weight_scale"]);
         m.tensors.back().name = "a.weight_zero_point";
       }},
      {"an fp8 scale that is no number", "nonfinite", "scale 1 ", kFp8,
       [](OneMatrix& m) {
         const float nan = NAN;
         std::memcpy(m.DataOf("weight_scale") + 4, &nan, 4);
       }},
      {"int8 for fp8", "bad_dtype", "I8", kFp8, [](OneMatrix& m) { m["weight"].dtype = "I8"; }},
      {"fp8 for int8", "bad_dtype", "F8_E4M3", kInt8, [](OneMatrix& m) { m["weight"].dtype = "F8_E4M3"; }},
      {"integers that nothing explains", "bad_dtype", "I32", kInt8,
       [](OneMatrix& m) { m["weight"].dtype = "I32"; }},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.what);
    OneMatrix matrix(c.of);
    ASSERT_TRUE(MakeKernelTensors(matrix.tensors, &c.of).ok());
    c.change(matrix);
    const Status status = MakeKernelTensors(matrix.tensors, &c.of).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
    EXPECT_EQ(Reason(status), c.reason) << status;
    EXPECT_NE(Message(status).find(c.mention), std::string::npos) << status;
  }
  const OneMatrix matrix(kInt4);
  EXPECT_EQ(Reason(MakeKernelTensors(matrix.tensors, nullptr).status()), "bad_dtype");
}

TEST(MakeKernelTensors, Fp8IsItsCodesTimesTheScaleOfTheirRowOrOfAll) {
  OneMatrix matrix(kFp8);
  for (const bool is_one : {false, true}) {
    SCOPED_TRACE(is_one);
    if (is_one) {
      matrix["weight_scale"].shape = {1};
      matrix["weight_scale"].data = matrix["weight_scale"].data.first(4);
    }
    const auto made = MakeKernelTensors(matrix.tensors, &kFp8);
    ASSERT_TRUE(made.ok()) << made.status();
    const HeldRows held = Held(made->entries.at(0).tensor);
    ASSERT_EQ(held.matrix().dtype, DType::kBF16);
    for (size_t i = 0; i < 8 * 64; ++i) {
      const auto scale = LoadUnaligned<float>(matrix.DataOf("weight_scale") + (is_one ? 0 : i / 64 * 4));
      const float want = scale * FloatFromE4M3(std::to_integer<uint8_t>(matrix.DataOf("weight")[i]));
      ASSERT_EQ(LoadUnaligned<uint16_t>(held.matrix().data + 2 * i), BF16FromFloat(want)) << i;
    }
  }
}

// What all rows have to be read for is told when they are.
TEST(MakeKernelTensors, ValuesOfFp8ThatAreNoNumbersAreErrorsOfWhoMakesThem) {
  for (const bool is_scale : {false, true}) {
    SCOPED_TRACE(is_scale);
    OneMatrix matrix(kFp8, /*rows=*/1000);
    for (const size_t row : {999, 700, 333, 400}) {
      const float large = 1e38f;
      if (is_scale) {
        std::memcpy(matrix.DataOf("weight_scale") + 4 * row, &large, 4);
      } else {
        matrix.DataOf("weight")[64 * row + 7] = std::byte{0xff};
      }
    }
    const auto made = MakeKernelTensors(matrix.tensors, &kFp8);
    ASSERT_TRUE(made.ok()) << made.status();
    const TensorView& tensor = made->entries[0].tensor;
    ThreadPool pool(4);
    for (int round = 0; round < 20; ++round) {
      const Status status = HeldRows::Hold(tensor, pool).status();
      ASSERT_EQ(Reason(status), "nonfinite");
      ASSERT_NE(Message(status).find("row 333 "), std::string::npos) << status;
    }
    EXPECT_TRUE(HeldRows::Hold(tensor, 0, 333, pool).ok());
    EXPECT_TRUE(HeldRows::Hold(tensor, 401, 700, pool).ok());
  }
}

// A part is made without the rest.
TEST(MakeKernelTensors, RowsOfAPartAreThoseOfTheWhole) {
  for (const WeightQuantization& quantization : {kInt4, kSymmetric, kFp8}) {
    OneMatrix matrix(quantization, /*rows=*/200);
    const auto made = MakeKernelTensors(matrix.tensors, &quantization);
    ASSERT_TRUE(made.ok()) << made.status();
    const TensorView& tensor = made->entries[0].tensor;
    EXPECT_EQ(tensor.data, nullptr);
    const HeldRows whole = Held(tensor);
    EXPECT_EQ(whole.matrix().rows * whole.matrix().RowBytes(), tensor.bytes);
    ThreadPool pool(2);
    for (const auto& [begin, end] : {std::pair(0u, 1u), std::pair(13u, 99u), std::pair(199u, 200u)}) {
      const auto part = HeldRows::Hold(tensor, begin, end, pool);
      ASSERT_TRUE(part.ok()) << part.status();
      ASSERT_EQ(part->matrix().rows, end - begin);
      EXPECT_EQ(std::memcmp(part->matrix().data, whole.matrix().Row(begin),
                            (end - begin) * whole.matrix().RowBytes()),
                0);
    }
  }
}

// Rows are read by several threads.
TEST(MakeKernelTensors, NamesTheFirstOfSeveralWrongScales) {
  OneMatrix matrix(kInt4, /*rows=*/1000);
  const uint16_t nan = 0x7e00;
  for (const size_t row : {999, 700, 333, 400}) {
    std::memcpy(matrix.DataOf("weight_scale") + 2 * row, &nan, 2);
  }
  for (int round = 0; round < 20; ++round) {
    const Status status = MakeKernelTensors(matrix.tensors, &kInt4).status();
    ASSERT_EQ(Reason(status), "nonfinite");
    ASSERT_NE(Message(status).find("scale 333 "), std::string::npos) << status;
  }
}

TEST(MakeKernelTensors, TakesScalesInBf16AndShapesInI64OrNone) {
  OneMatrix matrix(kInt4);
  std::vector<uint16_t> scales;
  for (size_t i = 0; i < 8; ++i) scales.push_back(BF16FromFloat(static_cast<float>(i) * 0x1p-10f));
  const int64_t sizes[] = {8, 64};
  matrix["weight_scale"].dtype = "BF16";
  matrix["weight_scale"].data = std::as_bytes(std::span(scales));
  matrix["weight_shape"].dtype = "I64";
  matrix["weight_shape"].data = std::as_bytes(std::span(sizes));
  for (int round = 0; round < 2; ++round) {
    const auto made = MakeKernelTensors(matrix.tensors, &kInt4);
    ASSERT_TRUE(made.ok()) << made.status();
    ASSERT_EQ(made->entries.size(), 1u);
    const HeldRows held = Held(made->entries[0].tensor);
    for (size_t row = 0; row < 8; ++row) {
      const std::byte* blocks = held.matrix().Row(row);
      EXPECT_EQ(FloatFromF16(LoadUnaligned<uint16_t>(blocks)), static_cast<float>(row) * 0x1p-10f);
    }
    matrix.Remove("weight_shape");
  }
}

}  // namespace
}  // namespace terrace
