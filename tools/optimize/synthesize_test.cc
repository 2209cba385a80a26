#include "tools/optimize/synthesize.h"

#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "base/mapped_file.h"
#include "gtest/gtest.h"
#include "tools/optimize/model_shapes.h"
#include "tools/optimize/synthetic_text.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr size_t kVocab = 300;

class SynthesizeTest : public testing::Test {
 protected:
  SynthesizeTest() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  size_t Entries() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }
  // A small model of grouped heads whose size is not the width over the heads.
  ModelToSynthesize Request(const std::string& name, ModelFormat format, DType dtype) const {
    ModelToSynthesize request;
    request.path = folder_ / name;
    request.format = format;
    request.config = ChangeShape(FindModelShape("135m").value(), {.layers = 3,
                                                                  .hidden = 64,
                                                                  .heads = 4,
                                                                  .kv_heads = 2,
                                                                  .head_dim = 32,
                                                                  .ffn = 96,
                                                                  .vocab = kVocab,
                                                                  .context = 64,
                                                                  .tied = dtype != DType::kF32})
                         .value();
    request.dtype = dtype;
    request.seed = 11;
    request.text = ByteLevelText();
    request.threads = 2;
    return request;
  }
  const fs::path folder_ = fs::path(testing::TempDir()) / "synthesize";
};

SynthesizedModel Written(const ModelToSynthesize& request) {
  const auto model = Synthesize(request);
  CHECK(model.ok(), Message(model.status()));
  return *model;
}

std::string WeightBytes(const ModelToSynthesize& request) {
  return ReadFile(request.path + (fs::is_directory(request.path) ? "/model.safetensors" : "")).value();
}

std::vector<float> LogitsOf(const std::string& path) {
  const ModelFiles files = OpenTestModel(path);
  TestModel model(files.config, *files.weights, ReferenceOps(), /*threads=*/1);
  return SequenceLogits(model, files.text->EncodePrompt("The same prompt"));
}

TEST_F(SynthesizeTest, WhatIsWrittenOpensWithTheShapeThatWasAsked) {
  for (const ModelFormat format : {ModelFormat::kGguf, ModelFormat::kSafetensors}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0}) {
      if (format == ModelFormat::kSafetensors && dtype == DType::kQ8_0) continue;
      const bool is_gguf = format == ModelFormat::kGguf;
      SCOPED_TRACE(Concat(Info(dtype).name, is_gguf ? " gguf" : " safetensors"));
      const ModelToSynthesize request = Request(Concat(Info(dtype).name, is_gguf), format, dtype);
      const SynthesizedModel written = Written(request);
      const ModelFiles files = OpenTestModel(request.path);
      EXPECT_EQ(files.format, is_gguf ? "gguf" : "safetensors");
      EXPECT_EQ(ConfigJsonText(files.config), ConfigJsonText(request.config));
      EXPECT_EQ(files.digest, written.digest);
      EXPECT_EQ(files.text->tokenizer->vocab_size(), kVocab);
      EXPECT_NE(files.text->chat_template, nullptr);
      uint64_t parameters = 0, bytes = 0;
      for (const auto& entry : files.weights->entries()) {
        parameters += ElementCount(entry.tensor.shape).value();
        bytes += entry.tensor.bytes;
      }
      EXPECT_EQ(parameters, written.parameters);
      EXPECT_EQ(bytes, written.weight_bytes);
    }
  }
}

TEST_F(SynthesizeTest, TheBytesFollowFromTheSeedAlone) {
  ModelToSynthesize a = Request("a.gguf", ModelFormat::kGguf, DType::kF16);
  ModelToSynthesize b = Request("b.gguf", ModelFormat::kGguf, DType::kF16);
  b.threads = 5;
  EXPECT_EQ(Written(a).digest, Written(b).digest);
  EXPECT_EQ(WeightBytes(a), WeightBytes(b));
  ModelToSynthesize other = Request("c.gguf", ModelFormat::kGguf, DType::kF16);
  other.seed = 12;
  Written(other);
  EXPECT_NE(WeightBytes(a), WeightBytes(other));
}

TEST_F(SynthesizeTest, BothFormatsAnswerAlike) {
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    SCOPED_TRACE(Info(dtype).name);
    const std::string name(Info(dtype).name);
    const ModelToSynthesize gguf = Request(name + ".gguf", ModelFormat::kGguf, dtype);
    const ModelToSynthesize folder = Request(name, ModelFormat::kSafetensors, dtype);
    Written(gguf);
    Written(folder);
    const auto a = LogitsOf(gguf.path), b = LogitsOf(folder.path);
    ASSERT_EQ(a.size(), b.size());
    // The same products in another order of the elements of Q and K: some last bits.
    for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-4) << i;
  }
}

// Each expert is another, in both formats the same; what chooses them is F32 whatever the others are.
TEST_F(SynthesizeTest, ModelsWithExpertsAreWrittenToo) {
  for (const std::string family : {"mixtral", "qwen3_moe"}) {
    SCOPED_TRACE(family);
    std::map<std::string, std::vector<float>> logits;
    for (const std::string& name : {family, family + ".gguf"}) {
      const bool is_gguf = name.ends_with(".gguf");
      ModelToSynthesize request =
          Request(name, is_gguf ? ModelFormat::kGguf : ModelFormat::kSafetensors, DType::kF16);
      request.config.family = family;
      request.config.has_head_norms = family == "qwen3_moe";
      request.config.experts = 4;
      request.config.experts_per_token = 2;
      request.config.normalizes_experts = true;
      Written(request);
      const ModelFiles files = OpenTestModel(request.path);
      EXPECT_EQ(files.config.experts, 4u);
      std::set<std::string> ups;
      for (const TensorRequirement& tensor : RequiredTensors(files.config)) {
        const TensorView view = files.weights->Find(tensor.name).value();
        EXPECT_EQ(view.dtype,
                  IsVector(tensor.kind) || tensor.kind == TensorKind::kRouter ? DType::kF32 : DType::kF16);
        if (tensor.kind == TensorKind::kUp) ups.emplace(reinterpret_cast<const char*>(view.data), view.bytes);
      }
      EXPECT_EQ(ups.size(), 3u * 4) << "layers, and experts of each";
      logits[name] = LogitsOf(request.path);
    }
    EXPECT_LT(LargestDifference(logits[family], logits[family + ".gguf"]), 1e-4);
  }
}

TEST_F(SynthesizeTest, LogitsAreFiniteAndFarFromConstant) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0}) {
    SCOPED_TRACE(Info(dtype).name);
    const ModelToSynthesize request = Request(std::string(Info(dtype).name), ModelFormat::kGguf, dtype);
    Written(request);
    const auto logits = LogitsOf(request.path);
    double sum = 0, squares = 0;
    for (const float logit : logits) {
      ASSERT_TRUE(std::isfinite(logit));
      sum += logit;
      squares += double{logit} * logit;
    }
    const double count = static_cast<double>(logits.size()), mean = sum / count;
    EXPECT_NEAR(std::sqrt(squares / count - mean * mean), 1, 0.5);
  }
}

TEST_F(SynthesizeTest, WhatCannotBeWrittenIsToldWithItsNumbersAndLeavesNothing) {
  ModelToSynthesize in_folder = Request("m", ModelFormat::kSafetensors, DType::kQ8_0);
  ModelToSynthesize cut = Request("m.gguf", ModelFormat::kGguf, DType::kQ8_0);
  cut.config.ffn_size = 100;
  ModelToSynthesize small = Request("m.gguf", ModelFormat::kGguf, DType::kF16);
  small.config.vocab_size = 100;
  ModelToSynthesize nowhere = Request("m.gguf", ModelFormat::kGguf, DType::kF16);
  nowhere.path = folder_ / "absent" / "m.gguf";
  const struct {
    const ModelToSynthesize& request;
    StatusCode code;
    std::string mention;
  } cases[] = {{in_folder, StatusCode::kInvalidArgument, "Q8_0"},
               {cut, StatusCode::kInvalidArgument, "100"},
               {small, StatusCode::kInvalidArgument, "262 tokens"},
               {nowhere, StatusCode::kNotFound, "absent"}};
  for (const auto& c : cases) {
    const Status status = Synthesize(c.request).status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_NE(Message(status).find(c.mention), std::string::npos) << status;
    EXPECT_EQ(Entries(), 0u);
  }
}

TEST_F(SynthesizeTest, AnErrorOfProgressEndsTheWorkAndLeavesNothing) {
  for (const ModelFormat format : {ModelFormat::kGguf, ModelFormat::kSafetensors}) {
    ModelToSynthesize request = Request("m", format, DType::kF16);
    uint64_t last = 0;
    request.on_progress = [&](uint64_t done, uint64_t total) {
      EXPECT_GT(done, last);
      EXPECT_LE(done, total);
      EXPECT_FALSE(fs::exists(request.path));
      last = done;
      return done > total / 2 ? Cancelled("interrupted") : Status();
    };
    EXPECT_EQ(Synthesize(request).status(), Cancelled("interrupted"));
    EXPECT_EQ(Entries(), 0u);
  }
}

}  // namespace
}  // namespace terrace
