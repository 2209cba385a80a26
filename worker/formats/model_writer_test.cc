#include "worker/formats/model_writer.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <tuple>

#include "base/mapped_file.h"
#include "gtest/gtest.h"
#include "text/text_files.h"
#include "worker/formats/model_files.h"
#include "worker/formats/tensor_names.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

ModelFiles Opened(const std::string& path) {
  auto model = OpenModel(path);
  CHECK(model.ok(), Message(model.status()));
  return *std::move(model);
}

auto Fields(const ModelConfig& c) {
  return std::tuple(c.family, c.names, c.rope_pairing, c.vocab_size, c.context_length, c.hidden_size,
                    c.layers, c.heads, c.kv_heads, c.head_dim, c.ffn_size, c.ffn_sizes, c.experts,
                    c.experts_per_token, c.normalizes_experts, c.has_head_norms, c.norm_epsilon, c.rope_base,
                    c.tied_embeddings, c.warnings);
}

// What `model` is, to be written again.
ModelToWrite PlanOf(const ModelFiles& model) {
  ModelToWrite plan = {.config = model.config, .text = *model.text};
  plan.used_tokens = model.text->tokenizer->vocab_size();
  for (const auto& entry : model.weights->entries())
    plan.tensors.push_back({entry.name, entry.tensor.dtype, entry.tensor.shape});
  return plan;
}

class EveryFormat : public testing::TestWithParam<const char*> {
 protected:
  EveryFormat() : model_(Opened(GetParam())) {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  size_t Entries() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }
  const ModelFiles model_;
  const fs::path folder_ = fs::path(testing::TempDir()) / "model_writer";
  const std::string path_ = folder_ / "out";
};
INSTANTIATE_TEST_SUITE_P(Formats, EveryFormat,
                         testing::Values("models/terrace-demo-nano", "models/terrace-demo-nano.f16.gguf",
                                         "tests/families/data/mixtral",
                                         "tests/families/data/mixtral/model.gguf",
                                         "tests/families/data/qwen3_moe",
                                         "tests/families/data/qwen3_moe/model.gguf"));

TEST_P(EveryFormat, AModelThatIsWrittenAgainIsTheSame) {
  auto writer = ModelWriter::Create(path_, PlanOf(model_));
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const auto& entry : model_.weights->entries()) {
    const std::span<const std::byte> data(entry.tensor.data, entry.tensor.bytes);
    ASSERT_EQ((*writer)->Append(data.first(data.size() / 3)), Status());
    ASSERT_EQ((*writer)->Append(data.subspan(data.size() / 3)), Status());
  }
  EXPECT_FALSE(fs::exists(path_));
  const auto digest = (*writer)->Finish();
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(Entries(), 1u);

  const ModelFiles again = Opened(path_);
  EXPECT_EQ(again.digest, *digest);
  EXPECT_EQ(again.format, model_.format);
  EXPECT_EQ(Fields(again.config), Fields(model_.config));
  EXPECT_EQ(Digest(*again.text), Digest(*model_.text));
  ASSERT_EQ(again.weights->entries().size(), model_.weights->entries().size());
  for (const auto& entry : model_.weights->entries()) {
    const TensorView copy = again.weights->Find(entry.name).value();
    EXPECT_EQ(copy.dtype, entry.tensor.dtype) << entry.name;
    EXPECT_EQ(copy.shape, entry.tensor.shape) << entry.name;
    EXPECT_EQ(std::memcmp(copy.data, entry.tensor.data, entry.tensor.bytes), 0) << entry.name;
  }
}

// Of a model that was at the path before: ranks would refuse the new one by it.
TEST_P(EveryFormat, ADigestListThatIsLeftGoes) {
  const std::string list = DigestListPath(path_);
  std::ofstream(list) << "{}";
  auto writer = ModelWriter::Create(path_, PlanOf(model_));
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const auto& entry : model_.weights->entries())
    ASSERT_EQ((*writer)->Append({entry.tensor.data, entry.tensor.bytes}), Status());
  ASSERT_TRUE((*writer)->Finish().ok());
  const bool is_gguf = model_.format == "gguf";
  EXPECT_EQ(fs::exists(list), !is_gguf) << "of a folder it would be in it: this is of some file";
}

TEST_P(EveryFormat, LayersOfUnequalFeedForwardSizesAreWrittenAndRead) {
  if (model_.config.experts > 0) return;  // which have one size
  ModelToWrite plan = PlanOf(model_);
  SetFfnSizes({64, 32, 96}, plan.config);
  plan.tensors.clear();
  for (const TensorRequirement& tensor : RequiredTensors(plan.config))
    plan.tensors.push_back({tensor.name, DType::kF32, tensor.shape});
  auto writer = ModelWriter::Create(path_, plan);
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const auto& tensor : plan.tensors) {
    const std::vector<std::byte> zeros(ByteCount(DType::kF32, tensor.shape).value());
    ASSERT_EQ((*writer)->Append(zeros), Status());
  }
  ASSERT_TRUE((*writer)->Finish().ok());
  const ModelFiles again = Opened(path_);
  EXPECT_EQ(again.config.ffn_sizes, (std::vector<uint32_t>{64, 32, 96}));
  EXPECT_EQ(again.config.ffn_size, 96u);
}

TEST_P(EveryFormat, AWriterThatDoesNotFinishLeavesNothing) {
  {
    auto writer = ModelWriter::Create(path_, PlanOf(model_));
    ASSERT_TRUE(writer.ok()) << writer.status();
    const auto& first = model_.weights->entries()[0].tensor;
    ASSERT_EQ((*writer)->Append(std::span(first.data, first.bytes)), Status());
    EXPECT_EQ(Entries(), 1u);
  }
  EXPECT_EQ(Entries(), 0u);
}

TEST_P(EveryFormat, RefusesWhatIsThereAlready) {
  fs::create_directory(path_);
  const Status status = ModelWriter::Create(path_, PlanOf(model_)).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(Entries(), 1u);
}

TEST_P(EveryFormat, OpenTextIsTheTextOfTheModel) {
  const auto text = OpenText(GetParam());
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(Digest(*text), Digest(*model_.text));
}

TEST(ModelWriter, QuantizedTensorsNeedGgufAndWholeBlocks) {
  const std::string path = testing::TempDir() + "model_writer_q8";
  ModelToWrite plan = PlanOf(Opened("models/terrace-demo-nano"));
  plan.tensors[0].dtype = DType::kQ8_0;
  const Status in_folder = ModelWriter::Create(path, plan).status();
  EXPECT_EQ(in_folder.code(), StatusCode::kInvalidArgument) << in_folder;
  EXPECT_NE(Message(in_folder).find("Q8_0"), std::string::npos) << in_folder;

  plan = PlanOf(Opened("models/terrace-demo-nano.f16.gguf"));
  plan.tensors[0].dtype = DType::kQ8_0;
  plan.tensors[0].shape = {1024, 48};
  const Status cut = ModelWriter::Create(path, plan).status();
  EXPECT_EQ(cut.code(), StatusCode::kInvalidArgument) << cut;
  EXPECT_NE(Message(cut).find("48"), std::string::npos) << cut;
  EXPECT_FALSE(fs::exists(path));
}

// Also where their bytes are no multiple of the alignment of tensors.
TEST(ModelWriter, ExpertsLieInAStackWithoutGaps) {
  const std::string path = testing::TempDir() + "model_writer_stack";
  fs::remove(path);
  ModelToWrite plan = PlanOf(Opened("tests/families/data/mixtral/model.gguf"));
  plan.tensors.clear();
  for (const TensorRequirement& tensor : RequiredTensors(plan.config)) {
    const bool is_up = tensor.kind == TensorKind::kUp || tensor.kind == TensorKind::kGate;
    plan.tensors.push_back({tensor.name, is_up ? DType::kQ8_0 : DType::kF32, tensor.shape});
  }
  const auto bytes_of = [&](size_t i) {
    const ModelToWrite::Tensor& tensor = plan.tensors[i];
    return std::vector<std::byte>(ByteCount(tensor.dtype, tensor.shape).value(),
                                  static_cast<std::byte>(i % 64));  // never an exponent of all ones
  };
  const std::vector<uint64_t> stored = StoredSizes(plan).value();
  auto writer = ModelWriter::Create(path, plan);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const uint64_t head = (*writer)->size();
  uint64_t end = head;
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    ASSERT_EQ((*writer)->Append(bytes_of(i)), Status());
    end += stored[i];
    EXPECT_EQ((*writer)->size(), end) << plan.tensors[i].name;
  }
  ASSERT_TRUE((*writer)->Finish().ok());
  const ModelFiles again = Opened(path);
  EXPECT_EQ(again.weights->entries().size(), plan.tensors.size());
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    const TensorView tensor = again.weights->Find(plan.tensors[i].name).value();
    EXPECT_EQ(tensor.dtype, plan.tensors[i].dtype);
    const auto want = bytes_of(i);
    ASSERT_EQ(tensor.bytes, want.size()) << plan.tensors[i].name;
    EXPECT_EQ(std::memcmp(tensor.data, want.data(), want.size()), 0) << plan.tensors[i].name;
  }
}

TEST(ModelWriter, ExpertsOfALayerHaveOneFormatInGguf) {
  ModelToWrite plan = PlanOf(Opened("tests/families/data/mixtral/model.gguf"));
  const auto last = std::ranges::find(plan.tensors, "blk.1.ffn_up.3.weight", &ModelToWrite::Tensor::name);
  ASSERT_NE(last, plan.tensors.end());
  last->dtype = DType::kQ8_0;
  const Status status = ModelWriter::Create(testing::TempDir() + "model_writer_mixed", plan).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_NE(Message(status).find("blk.1.ffn_up.3.weight"), std::string::npos) << status;
}

TEST(GgufTextKeys, RefusesMoreEndTokensThanThereAreKeys) {
  BpeData data = DataOf(*Opened("models/terrace-demo-nano").text->tokenizer);
  data.special.end = {0, 1, 2, 3};
  TextAssets assets;
  assets.tokenizer = MakeBpeTokenizer(data).value();
  ModelToWrite plan = PlanOf(Opened("models/terrace-demo-nano.f16.gguf"));
  plan.text = assets;
  const Status status = ModelWriter::Create(testing::TempDir() + "model_writer_ends", plan).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
}

}  // namespace
}  // namespace terrace
