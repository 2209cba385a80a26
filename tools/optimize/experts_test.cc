// Models with experts: the matrices of every expert are rewritten, by their weights or by the tokens of the
// calibration text that go to the expert, and nothing of what chooses experts.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <numeric>
#include <set>

#include "base/json.h"
#include "base/mapped_file.h"
#include "gtest/gtest.h"
#include "tools/optimize/gptq.h"
#include "tools/optimize/prune.h"
#include "tools/optimize/synthesize.h"
#include "tools/optimize/synthetic_text.h"
#include "tools/optimize/testing_matrices.h"
#include "tools/optimize/testing_quantize.h"
#include "tools/optimize/testing_states.h"
#include "worker/formats/model_writer.h"
#include "worker/formats/weight_encoding.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFamilies[] = {"mixtral", "qwen3_moe"};
constexpr const char* kData = "tests/families/data/";  // of BF16, whose down has rows of 40

// Rows are whole blocks of every format. All experts are taken, so that no rounding changes which.
ModelConfig ConfigOf(const std::string& family) {
  ModelConfig config = RandomModel::SmallConfig(/*vocab_size=*/300);
  config.family = family;
  config.has_head_norms = family == "qwen3_moe";
  config.ffn_size = 512;
  config.experts = config.experts_per_token = 3;
  config.normalizes_experts = true;  // as GGUF has it
  config.tied_embeddings = false;
  return config;
}

// A smaller one, of whose experts tokens take some, so that these see different ones.
ModelConfig MixtureOf(const std::string& family) {
  ModelConfig config = ConfigOf(family);
  config.hidden_size = 64;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 32;
  config.ffn_size = 128;
  config.experts = 4;
  config.experts_per_token = 2;
  return config;
}

class ExpertsTest : public testing::Test {
 protected:
  ExpertsTest() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  // Writes a model with random matrices of F32.
  std::string Source(const ModelConfig& config, const std::string& name) const {
    ModelToSynthesize request;
    request.path = folder_ / name;
    request.format = name.ends_with(".gguf") ? ModelFormat::kGguf : ModelFormat::kSafetensors;
    request.config = config;
    request.dtype = DType::kF32;
    request.seed = 5;
    request.text = ByteLevelText();
    request.threads = 2;
    const auto written = Synthesize(request);
    CHECK(written.ok(), Message(written.status()));
    return request.path;
  }
  QuantizeRequest To(std::string_view target, const std::string& model, const std::string& out) const {
    QuantizeRequest request;
    request.model = model;
    request.out = folder_ / out;
    request.target = Named(kQuantizeTargets, target);
    request.method = Named(kQuantizeMethods, "rtn");
    request.threads = 2;
    return request;
  }
  PruneRequest Zeros(const SparsityPattern& pattern, const std::string& model, const std::string& out) const {
    PruneRequest request;
    request.model = model;
    request.out = folder_ / out;
    request.method = Named(kPruneMethods, "magnitude");
    request.pattern = pattern;
    request.threads = 2;
    return request;
  }
  // Twelve rows of text, of 1,700 tokens.
  QuantizeRequest WithText(QuantizeRequest request, std::string_view method) const {
    request.method = Named(kQuantizeMethods, method);
    request.calibration.path = TextRows();
    return request;
  }
  std::string TextRows() const {
    const fs::path path = folder_ / "rows.jsonl";
    std::ofstream file(path);
    for (int row = 0; row < 12; ++row) {
      file << R"({"text": ")";
      for (int word = 0; word < 20; ++word) file << "word " << (row * row + 7 * word) % 97 << ' ';
      file << "\"}\n";
    }
    return path;
  }
  const fs::path folder_ = fs::path(testing::TempDir()) / "experts";
};

// The rows of queries and keys as folders have them, whatever the file.
FloatMatrix MatrixIn(const ModelFiles& files, const TensorRequirement& tensor) {
  ThreadPool pool(2);
  const auto matrix = LoadMatrix(files.config, *files.weights, {tensor.kind, tensor.expert}, tensor.layer,
                                 RopePairing::kHalves, pool);
  CHECK(matrix.ok(), Message(matrix.status()));
  return *matrix;
}

std::string NameIn(const ModelFiles& files, const TensorRequirement& tensor) {
  return TensorName(files.config, tensor.kind, tensor.layer, tensor.expert);
}

bool IsLinear(TensorKind kind) { return IsPerLayer(kind) && !IsVector(kind) && kind != TensorKind::kRouter; }

// Of the tensors of layers that are no linears: norms and what chooses experts.
void ExpectTheRestIsUntouched(const ModelFiles& before, const ModelFiles& after) {
  const bool is_gguf = after.config.names == NameScheme::kGguf;
  size_t routers = 0;
  for (const TensorRequirement& tensor : RequiredTensors(before.config)) {
    if (!IsPerLayer(tensor.kind)) continue;
    if (IsVector(tensor.kind)) {
      EXPECT_EQ(LoadVector(after.config, *after.weights, tensor.kind, tensor.layer).value(),
                LoadVector(before.config, *before.weights, tensor.kind, tensor.layer).value());
    } else if (tensor.kind == TensorKind::kRouter) {
      ++routers;
      EXPECT_EQ(MatrixIn(after, tensor).values, MatrixIn(before, tensor).values) << tensor.name;
      const DType was = before.weights->Find(tensor.name).value().dtype;
      EXPECT_EQ(after.weights->Find(NameIn(after, tensor)).value().dtype,
                is_gguf || IsQuantized(was) ? DType::kF32 : was);
    }
  }
  EXPECT_EQ(routers, before.config.layers);
}

// Of all logits of a text: the root of the squares of the difference over those of the logits.
double LogitsMoved(const ModelFiles& before, const ModelFiles& after) {
  const auto tokens = RandomTokens(40, before.config.vocab_size, /*seed=*/3);
  const auto logits = [&](const ModelFiles& files) {
    TestModel model(files.config, *files.weights, CpuOps(), /*threads=*/2);
    return SequenceLogits(model, tokens);
  };
  const std::vector<float> a = logits(before), b = logits(after);
  CHECK(a.size() == b.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    size += double{a[i]} * a[i];
  }
  return std::sqrt(error / size);
}

// `step` is that of the format's levels, as a part of the largest weight of a row.
void ExpectWithinStep(const ModelFiles& before, const ModelFiles& after, double step) {
  for (const TensorRequirement& tensor : RequiredTensors(before.config)) {
    if (!IsLinear(tensor.kind)) continue;
    const FloatMatrix was = MatrixIn(before, tensor), is = MatrixIn(after, tensor);
    for (size_t row = 0; row < was.rows; ++row) {
      float largest = 0, moved = 0;
      for (size_t i = 0; i < was.columns; ++i) {
        largest = std::max(largest, std::abs(was.Row(row)[i]));
        moved = std::max(moved, std::abs(is.Row(row)[i] - was.Row(row)[i]));
      }
      ASSERT_LE(moved, 1.01 * step * largest) << tensor.name << " row " << row;  // scales are of F16
      ASSERT_GT(moved, 0) << tensor.name << " row " << row;
    }
  }
}

// `model` but for what chooses experts, which is 0 of all: of equals the first are taken.
std::string WithoutChoice(const std::string& model, const std::string& out) {
  const ModelFiles files = OpenTestModel(model);
  ModelToWrite plan = {.config = files.config, .text = *files.text};
  plan.used_tokens = files.text->tokenizer->vocab_size();
  const auto tensors = RequiredTensors(files.config);
  for (const TensorRequirement& tensor : tensors)
    plan.tensors.push_back({tensor.name, DType::kF32, tensor.shape});
  const auto writer = ModelWriter::Create(out, plan).value();
  for (const TensorRequirement& tensor : tensors) {
    const TensorView view = files.weights->Find(tensor.name).value();
    std::vector<std::byte> bytes(view.data, view.data + view.bytes);
    if (tensor.kind == TensorKind::kRouter) std::ranges::fill(bytes, std::byte{0});
    CHECK(writer->Append(bytes).ok());
  }
  CHECK(writer->Finish().ok());
  return out;
}

TEST_F(ExpertsTest, EveryFormatRoundsEveryExpertFromEitherFileAlike) {
  const struct {
    std::string_view target;
    // The second part of Q6_K's: a block of 256 has the scale of each 16 in 8 bits.
    double step, moved;  // of logits: some 1.6 times what was measured
  } cases[] = {{"int8", 1.0 / 127, 0.05},
               {"fp8", 1.0 / 8, 0.2},
               {"int4-g32", 2.0 / 15, 0.5},
               {"int4-g64", 2.0 / 15, 0.5},
               {"int4-g128", 2.0 / 15, 0.5},
               {"q8_0", 1.0 / 127, 0.05},
               {"q6_k", 1.0 / 32 + 1.0 / 127, 0.15},
               {"q4_k", 2.0 / 15, 0.5},
               {"q4_0", 1.0 / 8, 0.5}};
  static_assert(std::size(cases) == std::size(kQuantizeTargets));
  for (const std::string family : kFamilies) {
    const ModelConfig config = ConfigOf(family);
    const std::string folder = Source(config, family), gguf = Source(config, family + ".gguf");
    const ModelFiles before = OpenTestModel(folder);
    for (const auto& c : cases) {
      SCOPED_TRACE(Concat(family, " to ", c.target));
      const bool is_gguf = Named(kQuantizeTargets, c.target).is_gguf();
      const std::string end = is_gguf ? ".gguf" : "", name = Concat(family, "-", c.target);
      const QuantizeRequest from_folder = To(c.target, folder, name + end),
                            from_gguf = To(c.target, gguf, name + "-of-gguf" + end);
      const QuantizeReport report = Quantized(from_folder);
      Quantized(from_gguf);
      const ModelFiles after = OpenTestModel(from_folder.out), other = OpenTestModel(from_gguf.out);
      EXPECT_EQ(after.format, is_gguf ? "gguf" : "safetensors");
      EXPECT_EQ(after.config.experts, config.experts);
      ExpectWithinStep(before, after, c.step);
      ExpectTheRestIsUntouched(before, after);
      EXPECT_LT(LogitsMoved(before, after), c.moved);
      EXPECT_GT(LogitsMoved(before, after), 0);
      for (const TensorRequirement& tensor : RequiredTensors(before.config)) {
        if (IsVector(tensor.kind)) continue;
        EXPECT_EQ(MatrixIn(after, tensor).values, MatrixIn(other, tensor).values) << tensor.name;
      }
      EXPECT_EQ(report.bytes_after, QuantizedBytes(folder, from_folder.target).value());
      EXPECT_EQ(report.parameters, report.parameters_after);
      for (const std::string& out : {from_folder.out, from_gguf.out}) fs::remove_all(out);
    }
  }
}

// To a folder and to a file and back, of models whose logits others have computed.
TEST_F(ExpertsTest, WhatChoosesExpertsStaysAsItIs) {
  for (const std::string family : kFamilies) {
    const std::string source = kData + family;
    const ModelFiles before = OpenTestModel(source);
    for (const char* target : {"int8", "fp8"}) {
      SCOPED_TRACE(Concat(family, " to ", target));
      const QuantizeRequest request = To(target, source, Concat(family, "-", target));
      Quantized(request);
      const ModelFiles after = OpenTestModel(request.out);
      ExpectTheRestIsUntouched(before, after);
      // Other loaders go by the names of modules.
      std::vector<std::string> ignored = {"lm_head"};
      for (uint32_t layer = 0; layer < before.config.layers; ++layer) {
        ignored.push_back(
            Concat("model.layers.", layer, family == "mixtral" ? ".block_sparse_moe.gate" : ".mlp.gate"));
      }
      const Json config = ParseJson(ReadFile(request.out + "/config.json").value()).value();
      EXPECT_EQ(config["quantization_config"]["ignore"], Json(ignored));

      const PruneRequest as_floats = Zeros({.share = 0.1}, request.out, Concat(family, "-floats-", target));
      const auto pruned = Prune(as_floats);
      ASSERT_TRUE(pruned.ok()) << pruned.status();
      ExpectTheRestIsUntouched(before, OpenTestModel(as_floats.out));
    }
  }
}

// Files of others may have quantized it: F32 holds all that these hold.
TEST_F(ExpertsTest, WhatChoosesExpertsBecomesF32WhereItWasQuantized) {
  const ModelFiles plain = OpenTestModel(Source(ConfigOf("qwen3_moe"), "plain.gguf"));
  ModelToWrite plan = {.config = plain.config, .text = *plain.text};
  plan.used_tokens = plain.text->tokenizer->vocab_size();
  const auto tensors = RequiredTensors(plain.config);
  for (const TensorRequirement& tensor : tensors)
    plan.tensors.push_back(
        {tensor.name, tensor.kind == TensorKind::kRouter ? DType::kQ8_0 : DType::kF32, tensor.shape});
  const std::string source = folder_ / "source.gguf";
  const auto writer = ModelWriter::Create(source, plan).value();
  for (const TensorRequirement& tensor : tensors) {
    const TensorView view = plain.weights->Find(tensor.name).value();
    std::vector<std::byte> bytes(view.data, view.data + view.bytes);
    if (tensor.kind == TensorKind::kRouter) {
      bytes.resize(ByteCount(DType::kQ8_0, tensor.shape).value());
      EncodeWeights(DType::kQ8_0, MatrixIn(plain, tensor).values, bytes);
    }
    ASSERT_EQ(writer->Append(bytes), Status());
  }
  ASSERT_TRUE(writer->Finish().ok());
  const ModelFiles before = OpenTestModel(source);
  for (const char* target : {"int8", "q8_0"}) {
    const QuantizeRequest request = To(target, source, Concat("out-", target));
    Quantized(request);
    ExpectTheRestIsUntouched(before, OpenTestModel(request.out));
  }
}

TEST_F(ExpertsTest, ZerosAreExactlyWhatWasAskedInEveryExpert) {
  for (const std::string family : kFamilies) {
    for (const std::string& end : {std::string(), std::string(".gguf")}) {
      const std::string source = Source(ConfigOf(family), family + end);
      const ModelFiles before = OpenTestModel(source);
      for (const SparsityPattern& pattern :
           {SparsityPattern{.share = 0.3}, SparsityPattern{.kept = 2, .of = 4}}) {
        const std::string name = Concat(family, pattern.has_groups() ? "-2of4" : "-share", end);
        SCOPED_TRACE(name);
        const PruneRequest request = Zeros(pattern, source, name);
        const auto report = Prune(request);
        ASSERT_TRUE(report.ok()) << report.status();
        const ModelFiles after = OpenTestModel(request.out);
        ExpectTheRestIsUntouched(before, after);
        for (const TensorRequirement& tensor : RequiredTensors(before.config)) {
          if (!IsLinear(tensor.kind)) continue;
          const FloatMatrix was = MatrixIn(before, tensor), is = MatrixIn(after, tensor);
          const auto zeros = static_cast<size_t>(std::ranges::count(is.values, 0.0f));
          const double share = pattern.has_groups() ? 0.5 : pattern.share;
          EXPECT_EQ(zeros, std::llround(share * static_cast<double>(is.values.size()))) << tensor.name;
          EXPECT_TRUE(!pattern.has_groups() || HasPattern(is, pattern)) << tensor.name;
          for (size_t i = 0; i < is.values.size(); ++i)
            ASSERT_TRUE(is.values[i] == 0 || is.values[i] == was.values[i]) << tensor.name;
        }
      }
    }
  }
}

TEST_F(ExpertsTest, SparseGptMovesOutputsLessThanMagnitudeAndLeavesAsManyZeros) {
  for (const std::string family : kFamilies) {
    const std::string source = Source(MixtureOf(family), family);
    const ModelFiles before = OpenTestModel(source);
    for (const SparsityPattern& pattern :
         {SparsityPattern{.share = 0.5}, SparsityPattern{.kept = 2, .of = 4}}) {
      double errors[2] = {};
      for (const std::string method : {"sparsegpt", "magnitude"}) {
        PruneRequest request =
            Zeros(pattern, source, Concat(family, "-", method, pattern.has_groups() ? "-2of4" : ""));
        SCOPED_TRACE(request.out);
        request.method = Named(kPruneMethods, method);
        request.calibration.path = TextRows();
        const auto report = Prune(request);
        ASSERT_TRUE(report.ok()) << report.status();
        errors[method == "magnitude"] = MeanError(*report);
        EXPECT_EQ(report->experts, 4 * before.config.layers);
        const ModelFiles after = OpenTestModel(request.out);
        ExpectTheRestIsUntouched(before, after);
        for (const TensorRequirement& tensor : RequiredTensors(before.config)) {
          if (!IsLinear(tensor.kind)) continue;
          const FloatMatrix was = MatrixIn(before, tensor), is = MatrixIn(after, tensor);
          EXPECT_EQ(2 * static_cast<size_t>(std::ranges::count(is.values, 0.0f)), is.values.size())
              << tensor.name;
          EXPECT_TRUE(!pattern.has_groups() || HasPattern(is, pattern)) << tensor.name;
          if (method == "magnitude") {
            EXPECT_EQ(is.values, PruneByMagnitude(was, pattern).values) << tensor.name;
          }
        }
      }
      EXPECT_LT(errors[0], 0.95 * errors[1]);
    }
  }
}

// Of those that no token goes to the smallest weights go.
TEST_F(ExpertsTest, SparseGptGoesByTheTokensOfEachExpert) {
  const std::string source =
      WithoutChoice(Source(MixtureOf("mixtral"), "whole.gguf"), folder_ / "source.gguf");
  PruneRequest request = Zeros({.share = 0.5}, source, "out.gguf");
  request.method = Named(kPruneMethods, "sparsegpt");
  request.calibration.path = TextRows();
  const auto report = Prune(request);
  ASSERT_TRUE(report.ok()) << report.status();
  const ModelFiles before = OpenTestModel(source), after = OpenTestModel(request.out);
  for (const TensorRequirement& tensor : RequiredTensors(before.config)) {
    if (!IsPerLayer(tensor.kind) || !IsPerExpert(tensor.kind)) continue;
    EXPECT_EQ(
        MatrixIn(after, tensor).values == PruneByMagnitude(MatrixIn(before, tensor), request.pattern).values,
        tensor.expert >= 2)
        << tensor.name;
  }
  EXPECT_EQ(report->experts_without_tokens, 2 * before.config.layers);
}

// A step of one answer reads the experts of its token, not all.
TEST_F(ExpertsTest, StepsReadTheExpertsOfATokenAlone) {
  std::vector<uint64_t> bytes;
  for (uint32_t taken : {1, 2, 3}) {
    ModelConfig config = ConfigOf("mixtral");
    config.experts_per_token = taken;
    const PruneRequest request =
        Zeros({.share = 0.5}, Source(config, Concat("source-", taken)), Concat("out-", taken));
    const auto report = Prune(request);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->step_bytes_before, report->step_bytes_after);
    bytes.push_back(report->step_bytes_before);
  }
  const ModelConfig config = ConfigOf("mixtral");
  EXPECT_EQ(bytes[1] - bytes[0], bytes[2] - bytes[1]);
  EXPECT_EQ(bytes[1] - bytes[0],
            uint64_t{config.layers} * 3 * config.ffn_size * config.hidden_size * sizeof(float));
}

TEST_F(ExpertsTest, ReportsHaveSevenLinearsOfALayerHoweverManyExperts) {
  for (const char* target : {"int8", "q8_0"}) {
    SCOPED_TRACE(target);
    const ModelConfig config = ConfigOf("qwen3_moe");
    const std::string source = Source(config, Concat("source-", target));
    const QuantizeRequest request = To(target, source, Concat("out-", target));
    const QuantizeReport report = Quantized(request);
    ASSERT_EQ(report.layers.size(), config.layers);
    const ModelFiles before = OpenTestModel(source), after = OpenTestModel(request.out);
    for (const LayerReport& layer : report.layers) {
      ASSERT_EQ(layer.linears.size(), std::size(kLinears));
      for (size_t i = 0; i < std::size(kLinears); ++i) {
        const LinearReport& linear = layer.linears[i];
        double squares = 0, largest = 0, count = 0;
        for (const TensorRequirement& tensor : RequiredTensors(before.config)) {
          if (tensor.layer != layer.layer || tensor.kind != kLinears[i]) continue;
          const double error = RelativeWeightError(MatrixIn(before, tensor), MatrixIn(after, tensor));
          squares += error * error;
          largest = std::max(largest, error);
          ++count;
        }
        EXPECT_DOUBLE_EQ(linear.relative_error, std::sqrt(squares / count)) << linear.name;
        EXPECT_DOUBLE_EQ(linear.largest_error, largest) << linear.name;
      }
    }
    const bool is_gguf = request.target.is_gguf();
    EXPECT_EQ(report.layers[1].linears[0].name,
              is_gguf ? "blk.1.attn_q.weight" : "model.layers.1.self_attn.q_proj.weight");
    EXPECT_EQ(report.layers[1].linears[5].name,
              is_gguf ? "blk.1.ffn_up_exps.weight" : "model.layers.1.mlp.experts.*.up_proj.weight");
    EXPECT_EQ(report.layers[1].linears[5].shape, (Shape{3, 512, 256}));
    const Json linears =
        ParseJson(ReadFile(request.out + ".quantize.json").value()).value()["layers"][1]["linears"];
    EXPECT_EQ(linears.size(), std::size(kLinears));
    EXPECT_FALSE(linears[0].contains("largest_error_of_an_expert"));
    EXPECT_EQ(linears[5]["largest_error_of_an_expert"], report.layers[1].linears[5].largest_error);
  }
}

// What is ended among the experts of the second layer comes to the bytes of `whole` when it is run again.
void ExpectToGoOn(QuantizeRequest request, const std::string& whole) {
  int asked = 0;
  request.is_cancelled = [&] { return ++asked == 20; };
  EXPECT_EQ(Quantize(request).status().code(), StatusCode::kCancelled);
  request.is_cancelled = nullptr;
  request.on_layer = [&](const LayerReport& layer) {
    EXPECT_EQ(layer.was_kept, layer.layer == 0);
    return Status();
  };
  Quantized(request);
  EXPECT_EQ(BytesOf(request.out), BytesOf(whole));
}

TEST_F(ExpertsTest, ARunThatWasEndedGoesOnToTheSameBytes) {
  const std::string source = Source(ConfigOf("mixtral"), "source.gguf");
  for (const char* target : {"int4-g64", "q4_k"}) {
    SCOPED_TRACE(target);
    const QuantizeRequest whole = To(target, source, Concat("whole-", target));
    Quantized(whole);
    ExpectToGoOn(To(target, source, Concat("out-", target)), whole.out);
  }
}

// One layer of a random mixture, of which the tokens of a text take two of four experts.
class OneLayerOfExperts : public testing::Test {
 protected:
  OneLayerOfExperts()
      : OneLayerOfExperts({RandomTokens(300, 100, /*seed=*/8), RandomTokens(200, 100, /*seed=*/9),
                           RandomTokens(300, 100, /*seed=*/10), RandomTokens(200, 100, /*seed=*/11)}) {}
  explicit OneLayerOfExperts(std::vector<std::vector<TokenId>> sequences)
      : model_(DType::kF32, /*seed=*/7, Config()),
        sequences_(std::move(sequences)),
        runner_(LayerRunner::Create(model_.config, sequences_, CpuOps(), pool_).value()),
        layer_(LoadLayer(model_.config, model_, 0, model_.config.rope_pairing, pool_).value()) {
    for (const TensorKind linear : kLinears)
      formats_.push_back(LinearFormat::Create(DType::kInt4G32, 32, layer_.matrix(linear).columns).value());
  }

  static ModelConfig Config() {
    ModelConfig config = MixtureOf("qwen3_moe");
    config.vocab_size = 100;
    return config;
  }
  HiddenStates Embedded() const {
    const TensorView view = model_.Find(TensorName(model_.config, TensorKind::kEmbedding)).value();
    const auto* const table = reinterpret_cast<const float*>(view.data);
    const size_t width = model_.config.hidden_size;
    std::vector<float> hidden;
    for (const auto& sequence : sequences_) {
      for (const TokenId token : sequence)
        hidden.insert(hidden.end(), table + static_cast<size_t>(token) * width,
                      table + (static_cast<size_t>(token) + 1) * width);
    }
    return StatesOf(hidden, width);
  }
  RewrittenLayer Quantized(std::string_view method, HiddenStates& hidden) {
    const LayerQuantizer quantizer(model_.config, formats_, {.method = Named(kQuantizeMethods, method)},
                                   *runner_, pool_);
    auto out = quantizer.Quantize(layer_, /*index=*/0, hidden);
    CHECK(out.ok(), Message(out.status()));
    return *std::move(out);
  }
  // With the matrices that were written, as far as `also` says.
  FloatLayer Written(const RewrittenLayer& written, const std::function<bool(LayerTensor)>& also) {
    FloatLayer out = layer_;
    for (const auto& [place, matrix] : written.matrices) {
      const auto& [kind, expert] = place;
      if (!also({kind, expert})) continue;
      const FloatMatrix& was = layer_.matrix(kind, expert);
      out.matrix(kind, expert) = ToFloats(
          {.dtype = DType::kInt4G32, .data = matrix.bytes.data(), .rows = was.rows, .columns = was.columns},
          pool_);
    }
    return out;
  }

  ThreadPool pool_{2};
  const RandomModel model_;
  const std::vector<std::vector<TokenId>> sequences_;
  const std::unique_ptr<LayerRunner> runner_;
  FloatLayer layer_;
  std::vector<LinearFormat> formats_;
};

class OneLayerOfExpertsAndFewTokens : public OneLayerOfExperts {
 protected:
  OneLayerOfExpertsAndFewTokens() : OneLayerOfExperts({RandomTokens(30, 100, /*seed=*/8)}) {}
};

// Of fewer tokens than inputs nothing is learned: what fits them would not fit others.
TEST_F(OneLayerOfExpertsAndFewTokens, ExpertsAreRoundedByTheirWeightsAlone) {
  HiddenStates embedded = Embedded();
  const RewrittenLayer want = Quantized("rtn", embedded);
  for (const char* method : {"gptq", "awq", "awq-gptq", "smoothquant"}) {
    HiddenStates hidden = Embedded();
    const RewrittenLayer got = Quantized(method, hidden);
    for (uint32_t expert = 0; expert < 4; ++expert) {
      ASSERT_LT(got.expert_tokens[expert], layer_.matrix(TensorKind::kDown, expert).columns);
      for (const TensorKind linear : {TensorKind::kGate, TensorKind::kUp, TensorKind::kDown}) {
        const RewrittenMatrix& is = got.matrices.at({linear, expert});
        EXPECT_EQ(is.bytes, want.matrices.at({linear, expert}).bytes) << method;
        EXPECT_GT(is.error, 0) << "of the tokens, or of the weights without any";
      }
    }
  }
}

// Keeps what goes into the linears of each expert.
struct ExpertInputs : LayerObserver {
  explicit ExpertInputs(size_t experts) : ffn(experts), down(experts) {}
  Status OnInputs(LayerInput input, std::span<const float> x, size_t tokens) override {
    if (!IsPerExpert(input.kind)) return Status();
    FloatMatrix& rows = (input.kind == LinearInput::kFfn ? ffn : down)[input.expert];
    rows.rows += tokens;
    rows.columns = x.size() / tokens;
    rows.values.insert(rows.values.end(), x.begin(), x.end());
    return Status();
  }
  Status OnReady(LayerInput) override { return Status(); }
  std::vector<FloatMatrix> ffn, down;
};

// By GPTQ a matrix of an expert becomes what it would become alone, given the inputs that the matrices before
// it make once they are rounded; and what comes out of the layer is that of all rounded ones.
TEST_F(OneLayerOfExperts, EachIsRoundedByTheTokensThatGoToIt) {
  HiddenStates hidden = Embedded();
  const RewrittenLayer got = Quantized("gptq", hidden);
  const auto is_attention = [](LayerTensor tensor) { return !IsPerExpert(tensor.kind); };
  const auto is_not_down = [](LayerTensor tensor) { return tensor.kind != TensorKind::kDown; };
  ExpertInputs before(4), between(4);
  ASSERT_EQ(runner_->Show(Written(got, is_attention), Embedded(), before), Status());
  ASSERT_EQ(runner_->Show(Written(got, is_not_down), Embedded(), between), Status());
  std::vector<uint64_t> tokens;
  for (uint32_t expert = 0; expert < 4; ++expert) {
    tokens.push_back(before.ffn[expert].rows);
    for (const TensorKind linear : {TensorKind::kGate, TensorKind::kUp, TensorKind::kDown}) {
      const FloatMatrix& x = linear == TensorKind::kDown ? between.down[expert] : before.ffn[expert];
      const Hessian hessian = HessianOf(x);
      ASSERT_GE(hessian.tokens(), hessian.inputs());
      const FloatMatrix& matrix = layer_.matrix(linear, expert);
      const QuantizedMatrix want = Gptq(matrix, *formats_[PlaceOf(linear)].blocks,
                                        InvertHessian(hessian, kDefaultDamping, /*by_size=*/false).value(),
                                        {.searches_levels = true}, pool_);
      const RewrittenMatrix& is = got.matrices.at({linear, expert});
      EXPECT_EQ(is.bytes, want.Bytes()) << "expert " << expert;
      EXPECT_EQ(is.error, RelativeOutputError(matrix, want.ToFloat(pool_), hessian, pool_));
    }
  }
  EXPECT_EQ(got.expert_tokens, tokens);
  EXPECT_GT(std::set(tokens.begin(), tokens.end()).size(), 1u);
  HiddenStates want = Embedded();
  ASSERT_EQ(runner_->Run(Written(got, [](LayerTensor) { return true; }), want, want, nullptr), Status());
  EXPECT_EQ(ValuesOf(hidden), ValuesOf(want));
}

// By outputs that nobody has seen it would be none.
TEST_F(OneLayerOfExperts, TheErrorOfAnExpertThatNoTokenGoesToIsThatOfItsWeights) {
  std::ranges::fill(layer_.router.values, 0.0f);  // of equals the first two are taken
  for (const char* method : {"rtn", "gptq", "awq"}) {
    HiddenStates hidden = Embedded();
    const RewrittenLayer got = Quantized(method, hidden);
    const FloatLayer written = Written(got, [](LayerTensor) { return true; });
    EXPECT_EQ(got.expert_tokens, (std::vector<uint64_t>{1000, 1000, 0, 0}));
    for (const TensorKind linear : {TensorKind::kGate, TensorKind::kUp, TensorKind::kDown}) {
      for (const uint32_t expert : {2, 3}) {
        EXPECT_EQ(got.matrices.at({linear, expert}).error,
                  RelativeWeightError(layer_.matrix(linear, expert), written.matrix(linear, expert)));
      }
    }
  }
}

TEST_F(ExpertsTest, GptqMovesWhatComesOutLessThanRounding) {
  for (const std::string family : kFamilies) {
    SCOPED_TRACE(family);
    const std::string source = Source(MixtureOf(family), family);
    const ModelFiles before = OpenTestModel(source);
    double moved[2] = {};
    for (const std::string method : {"gptq", "rtn"}) {
      const QuantizeRequest request = WithText(To("int4-g64", source, Concat(family, "-", method)), method);
      const QuantizeReport report = Quantized(request);
      const ModelFiles after = OpenTestModel(request.out);
      ExpectTheRestIsUntouched(before, after);
      moved[method == "rtn"] = MeanError(report);
      EXPECT_EQ(report.experts, uint64_t{before.config.layers} * before.config.experts);
      for (const LayerReport& layer : report.layers) {
        uint64_t taken = 0;
        for (const uint64_t tokens : layer.expert_tokens) taken += tokens;
        EXPECT_EQ(taken, report.calibration_tokens * before.config.experts_per_token);
      }
      const Json json = ParseJson(ReadFile(report.path).value()).value();
      EXPECT_EQ(json["layers"][1]["expert_tokens"], Json(report.layers[1].expert_tokens));
    }
    EXPECT_LT(moved[0], 0.9 * moved[1]);
  }
}

// Norms take up the scales of attention's inputs, rows of up those of down; those of gate and up would be in
// what chooses experts, too, and are left out.
TEST_F(ExpertsTest, ScalesReachNothingThatChoosesExperts) {
  for (const std::string family : kFamilies) {
    const std::string source = Source(MixtureOf(family), family);
    const ModelFiles before = OpenTestModel(source);
    double rounding = 0;
    for (const std::string method : {"rtn", "awq", "awq-gptq", "smoothquant"}) {
      SCOPED_TRACE(Concat(family, " by ", method));
      const QuantizeRequest request = WithText(To("int4-g64", source, Concat(family, "-", method)), method);
      const QuantizeReport report = Quantized(request);
      const ModelFiles after = OpenTestModel(request.out);
      for (uint32_t layer = 0; layer < before.config.layers; ++layer) {
        const TensorRequirement router = {
            .kind = TensorKind::kRouter, .layer = layer, .name = {}, .shape = {}};
        EXPECT_EQ(MatrixIn(after, router).values, MatrixIn(before, router).values);
        const auto norm = [&](const ModelFiles& files, TensorKind kind) {
          return LoadVector(files.config, *files.weights, kind, layer).value();
        };
        EXPECT_EQ(norm(after, TensorKind::kFfnNorm), norm(before, TensorKind::kFfnNorm));
        EXPECT_EQ(norm(after, TensorKind::kAttentionNorm) == norm(before, TensorKind::kAttentionNorm),
                  method == "rtn");
      }
      if (method == "rtn") rounding = MeanError(report);
      if (method.starts_with("awq")) {
        EXPECT_LT(MeanError(report), 0.95 * rounding);
      }
    }
  }
}

TEST_F(ExpertsTest, ABudgetMixesFormatsOfAllExpertsOfALayerAlike) {
  const std::string source = Source(MixtureOf("mixtral"), "source");
  const ModelFiles before = OpenTestModel(source);
  QuantizeRequest smallest = To("int4-g64", source, "smallest");
  const uint64_t least = Quantized(smallest).bytes_after;
  QuantizeRequest request = WithText(To("int4-g64", source, "fit"), "gptq");
  request.budget = {.bytes = least + least / 2, .tokens = 300};
  const QuantizeReport report = Quantized(request);
  EXPECT_LE(report.bytes_after, request.budget.bytes);
  EXPECT_GT(report.bytes_after, least);
  const ModelFiles after = OpenTestModel(request.out);
  ExpectTheRestIsUntouched(before, after);
  EXPECT_LT(LogitsMoved(before, after), LogitsMoved(before, OpenTestModel(smallest.out)));
  std::set<std::string> formats;
  for (const LayerReport& layer : report.layers) {
    for (const LinearReport& linear : layer.linears) formats.insert(linear.dtype);
  }
  EXPECT_GT(formats.size(), 1u);
}

// A token reads as many experts as it takes.
TEST_F(ExpertsTest, FasterCountsTheExpertsOfATokenAlone) {
  const std::string source = Source(MixtureOf("mixtral"), "source");
  for (const std::string target : {"int4-g64", "q4_k"}) {
    QuantizeRequest request =
        WithText(To(target, source, Concat("out-", target, target == "q4_k" ? ".gguf" : "")), "rtn");
    request.budget = {.faster = 2, .tokens = 100};
    const QuantizeReport report = Quantized(request);
    const auto bytes_of_token = [](const std::string& path) {
      const ModelFiles files = OpenTestModel(path);
      double bytes = 0;
      for (const TensorRequirement& tensor : RequiredTensors(files.config)) {
        if (IsVector(tensor.kind) || tensor.kind == TensorKind::kEmbedding) continue;
        const TensorView view = files.weights->Find(tensor.name).value();
        const double all = static_cast<double>(view.bytes) +
                           (view.row_scales != nullptr ? 4.0 * static_cast<double>(view.shape[0]) : 0);
        const bool is_expert = IsPerLayer(tensor.kind) && IsPerExpert(tensor.kind);
        bytes += is_expert ? all * files.config.experts_per_token / files.config.experts : all;
      }
      return bytes;
    };
    EXPECT_NEAR(report.mixture.faster, bytes_of_token(source) / bytes_of_token(request.out) - 1, 1e-9);
    EXPECT_GE(report.mixture.faster, 2);
  }
}

TEST_F(ExpertsTest, ThoseThatNoTokenGoesToAreRoundedByTheirWeightsAndTold) {
  const std::string source =
      WithoutChoice(Source(MixtureOf("qwen3_moe"), "whole.gguf"), folder_ / "source.gguf");
  const QuantizeRequest rounded = To("q4_0", source, "rounded.gguf");
  const QuantizeRequest request = WithText(To("q4_0", source, "out.gguf"), "gptq");
  const QuantizeReport report = Quantized(request), of_rounded = Quantized(rounded);
  const ModelFiles before = OpenTestModel(source), after = OpenTestModel(request.out),
                   other = OpenTestModel(rounded.out);
  for (const TensorRequirement& tensor : RequiredTensors(before.config)) {
    if (!IsPerLayer(tensor.kind) || !IsPerExpert(tensor.kind)) continue;
    EXPECT_EQ(MatrixIn(after, tensor).values == MatrixIn(other, tensor).values, tensor.expert >= 2)
        << tensor.name;
  }
  const uint64_t tokens = report.calibration_tokens;
  for (const LayerReport& layer : report.layers)
    EXPECT_EQ(layer.expert_tokens, (std::vector<uint64_t>{tokens, tokens, 0, 0}));
  EXPECT_EQ(report.experts, 4 * before.config.layers);
  EXPECT_EQ(report.experts_without_tokens, 2 * before.config.layers);
  EXPECT_EQ(report.experts_with_few_tokens, 2 * before.config.layers);
  EXPECT_EQ(of_rounded.experts, 0u);
}

TEST_F(ExpertsTest, WithTextNeitherThreadsNorInterruptionsChangeABit) {
  const std::string source = Source(MixtureOf("mixtral"), "source");
  QuantizeRequest whole = WithText(To("int4-g64", source, "whole"), "gptq");
  whole.threads = 3;
  Quantized(whole);
  ExpectToGoOn(WithText(To("int4-g64", source, "out"), "gptq"), whole.out);
}

TEST_F(ExpertsTest, WhatModelsWithExpertsDoNotHaveIsRefusedBeforeTextIsRead) {
  const std::string source = Concat(kData, "mixtral"), absent = folder_ / "absent.jsonl";
  const PruneRequest zeros = Zeros({.share = 0.5}, source, "out");
  std::vector<PruneRequest> prunings;
  for (const Cut& cut : {Cut{.ffn_share = 0.2}, Cut{.kv_heads = 1}, Cut{.layers = 1}, Cut{.hidden = 16}}) {
    PruneRequest& request = prunings.emplace_back(zeros);
    request.calibration.path = absent;
    request.pattern = {};
    request.cut = cut;
  }
  for (const PruneRequest& request : prunings) {
    const Status status = Prune(request).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    EXPECT_EQ(Reason(status), "unsupported_model");
    EXPECT_NE(Message(status).find("what works is --sparsity or --pattern"), std::string::npos) << status;
    EXPECT_TRUE(EntriesOf(folder_).empty());
  }
}

TEST_F(ExpertsTest, RowsThatAreNotWholeBlocksAreRefusedByName) {
  const Status status = Quantize(To("q8_0", Concat(kData, "mixtral"), "out.gguf")).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_NE(Message(status).find("ffn_down"), std::string::npos) << status;
}

}  // namespace
}  // namespace terrace
