#include "tools/plan/model_shape.h"

#include <cctype>
#include <filesystem>
#include <fstream>

#include "base/exit_code.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class ReadShape : public testing::Test {
 protected:
  ReadShape() {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }

  // A folder with the configuration of a demo model, and nothing else.
  std::string ConfigOnly(std::optional<WeightQuantization> quantization = {}) const {
    ModelConfig config = OpenWeights("models/terrace-demo-base").value().config;
    config.quantization = quantization;
    std::ofstream(folder_ / "config.json") << ConfigJsonText(config);
    return folder_;
  }

  const fs::path folder_ = fs::path(testing::TempDir()) / "shape";
};

TEST_F(ReadShape, AFolderItsGgufAndItsConfigurationAloneAreOneShape) {
  const ModelShape folder = ReadModelShape("models/terrace-demo-base", {}).value();
  const ModelShape gguf = ReadModelShape("models/terrace-demo-base.f16.gguf", {}).value();
  const ModelShape alone = ReadModelShape(ConfigOnly(), DType::kF16).value();
  const ModelShape file = ReadModelShape(ConfigOnly() + "/config.json", DType::kF16).value();
  EXPECT_TRUE(folder.has_weights && gguf.has_weights);
  EXPECT_FALSE(alone.has_weights || file.has_weights);
  for (const ModelShape* other : {&gguf, &alone, &file}) {
    ASSERT_EQ(other->tensors.size(), folder.tensors.size());
    for (size_t i = 0; i < folder.tensors.size(); ++i) {
      const ShapedTensor &a = folder.tensors[i], &b = other->tensors[i];
      EXPECT_EQ(a.kind, b.kind) << i;
      EXPECT_EQ(a.layer, b.layer) << i;
      EXPECT_EQ(a.shape, b.shape) << i;
      if (!IsNorm(a.kind)) {
        EXPECT_EQ(Info(a.dtype).name, Info(b.dtype).name) << i;
      }
    }
  }
}

TEST_F(ReadShape, WithoutWeightsFormatsAreThoseAskedForButWhereTheConfigurationSaysThem) {
  const ModelShape alone = ReadModelShape(ConfigOnly(), {}).value();
  for (const ShapedTensor& tensor : alone.tensors)
    EXPECT_EQ(Info(tensor.dtype).name, IsNorm(tensor.kind) ? "F32" : "BF16");
  const std::string quantized = ConfigOnly(WeightQuantization{.bits = 8});
  const ModelShape of_quantized = ReadModelShape(quantized, DType::kF16).value();
  for (const ShapedTensor& tensor : of_quantized.tensors) {
    if (IsNorm(tensor.kind)) continue;
    EXPECT_EQ(Info(tensor.dtype).name, IsPerLayer(tensor.kind) ? "INT8" : "F16");
  }
}

TEST_F(ReadShape, WhatIsNoModelIsAnErrorThatNamesIt) {
  std::ofstream(folder_ / "broken.json") << "{";
  const struct {
    std::string path;
    std::optional<DType> dtype;
    const char* error;
    int exit_code;
  } cases[] = {
      {"/absent", {}, "/absent", kExitNoInput},
      {"/absent/config.json", {}, "/absent/config.json", kExitNoInput},
      {folder_ / "broken.json", {}, "broken.json", kExitData},
      {"models/terrace-demo-nano", DType::kQ8_0, "formats of their own, and are not Q8_0", kExitUsage},
  };
  for (const auto& each : cases) {
    const Status status = ReadModelShape(each.path, each.dtype).status();
    EXPECT_EQ(ExitCodeFor(status), each.exit_code) << status;
    EXPECT_THAT(Message(status), HasSubstr(each.error));
  }
  ModelConfig config = OpenWeights("models/terrace-demo-nano").value().config;  // 64 wide
  const Status status = ShapeOf(config, DType::kQ4_K).status();
  EXPECT_EQ(ExitCodeFor(status), kExitUsage) << status;
  EXPECT_THAT(Message(status), HasSubstr("model.embed_tokens.weight"));
}

TEST(ParseDType, ReadsEveryNameInAnyCase) {
  for (const DTypeInfo& info : kDTypes) {
    std::string lower(info.name);
    for (char& c : lower) c = static_cast<char>(std::tolower(c));
    EXPECT_EQ(ParseDType(info.name).value(), info.dtype);
    EXPECT_EQ(ParseDType(lower).value(), info.dtype);
  }
  EXPECT_EQ(ParseDType("int4-g128").value(), DType::kInt4G128);
  for (const char* name : {"int4-g64", "INT4_G64"}) EXPECT_EQ(ParseDType(name).value(), DType::kInt4G32);
  EXPECT_THAT(Message(ParseDType("fp8").status()), HasSubstr("INT8, INT4_G64"));
  EXPECT_THAT(Message(ParseDType("q3_k").status()), HasSubstr("\"q3_k\" is not one of F32"));
  EXPECT_FALSE(ParseDType("").ok());
}

}  // namespace
}  // namespace terrace
