// Formats that a budget mixes (quantize.h).
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/mapped_file.h"
#include "gtest/gtest.h"
#include "tools/optimize/testing_quantize.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

class MixedTest : public QuantizeTest {
 protected:
  // Of little text: what is chosen matters here, not how well.
  QuantizeRequest Small(std::string_view target, std::string_view method, const std::string& out) const {
    QuantizeRequest request = Request(target, method, out);
    request.calibration.samples = 4;
    return request;
  }
  // Half way between the target's format everywhere and the linears as they are.
  QuantizeRequest Mixed(std::string_view target, std::string_view method, const std::string& out) const {
    QuantizeRequest request = Small(target, method, out);
    request.budget = {.bytes = HalfWay(target), .tokens = 200};
    return request;
  }
  uint64_t HalfWay(std::string_view target) const {
    QuantizeRequest most = Small(target, "rtn", Concat(target, "-most"));
    most.budget = {.bytes = uint64_t{1} << 40, .tokens = 50};
    const QuantizeReport report = Quantized(most);
    uint64_t least = report.bytes_after;
    const Json told = Told(report);
    for (const Json& part : told["parts"]) {
      const Json& options = part["options"];
      EXPECT_EQ(part["chosen"], options.back()["dtype"]);
      least -= options.back()["bytes"].get<uint64_t>() - options[0]["bytes"].get<uint64_t>();
    }
    return (least + report.bytes_after) / 2;
  }
  static Json Told(const QuantizeReport& report) {
    return ParseJson(ReadFile(report.path).value()).value()["mixture"];
  }
};

TEST_F(MixedTest, WhatIsWrittenFitsAndLosesLessThanTheSmallestFormat) {
  const struct {
    const char *target, *method;
  } cases[] = {{"int4-g64", "gptq"}, {"q4_0", "awq-gptq"}, {"q4_k", "rtn"}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.target);
    const QuantizeRequest request = Mixed(c.target, c.method, Concat(c.target, "-mixed")),
                          smallest = Small(c.target, c.method, Concat(c.target, "-smallest"));
    const QuantizeReport report = Quantized(request);
    EXPECT_LE(report.bytes_after, request.budget.bytes);
    EXPECT_GT(report.bytes_after, Quantized(smallest).bytes_after);
    EXPECT_EQ(OpenTestModel(request.out).digest, report.digest);
    EXPECT_LT(Divergence(request.out), Divergence(smallest.out));

    std::set<std::string> dtypes;
    for (const LayerReport& layer : report.layers) {
      for (const LinearInput input : kLinearInputs) {
        const std::string& dtype = layer.linears[PlaceOf(LinearsOf(input)[0])].dtype;
        dtypes.insert(dtype);
        for (const TensorKind linear : LinearsOf(input))
          EXPECT_EQ(layer.linears[PlaceOf(linear)].dtype, dtype);
      }
    }
    EXPECT_GT(dtypes.size(), 1u);
    const Json told = Told(report);
    EXPECT_EQ(told["bytes"], report.bytes_after);
    EXPECT_EQ(told["limit_bytes"], request.budget.bytes);
    EXPECT_EQ(told["parts"].size(), 12u);
  }
}

TEST_F(MixedTest, TheSmallestSizeIsTheSmallestFormatsAndOneByteLessIsAnError) {
  const QuantizeReport plain = Quantized(Small("int4-g64", "gptq", "plain"));
  QuantizeRequest request = Small("int4-g64", "gptq", "mixed");
  request.budget.bytes = plain.bytes_after - 1;
  const Status status = Quantize(request).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_NE(Message(status).find(Concat("is ", plain.bytes_after)), std::string::npos) << status;
  EXPECT_FALSE(fs::exists(request.out + ".work"));
  request.budget.bytes = plain.bytes_after;
  EXPECT_EQ(Quantized(request).digest, plain.digest);
}

TEST_F(MixedTest, TheSizeOfAFormatEverywhereIsKnownBeforehand) {
  for (const char* target : {"int4-g32", "int4-g64", "int8", "fp8", "q8_0", "q4_k"}) {
    const QuantizeRequest request = Small(target, "rtn", target);
    const auto bytes = QuantizedBytes(request.model, request.target);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    EXPECT_EQ(*bytes, Quantized(request).bytes_after) << target;
  }
}

TEST_F(MixedTest, WhatFitsAsItIsStaysSo) {
  for (const char* target : {"int4-g64", "q8_0"}) {
    SCOPED_TRACE(target);
    QuantizeRequest request = Small(target, "gptq", target);
    request.budget = {.bytes = uint64_t{1} << 40, .tokens = 200};
    for (const LayerReport& layer : Quantized(request).layers) {
      for (const LinearReport& linear : layer.linears) {
        EXPECT_EQ(linear.dtype, "F16");
        EXPECT_EQ(linear.relative_error, 0);
      }
    }
    if (!request.target.is_gguf()) {  // there the embedding is rounded
      EXPECT_EQ(Divergence(request.out), 0);
    }
  }
}

TEST_F(MixedTest, ASpeedIsReachedByWhatTokensRead) {
  const ModelFiles before = OpenTestModel(DemoFolder(kNano));
  const auto read = [](const ModelFiles& files) {
    uint64_t bytes = 0;
    for (const TensorRequirement& tensor : RequiredTensors(files.config)) {
      if (IsNorm(tensor.kind)) continue;
      if (tensor.kind == TensorKind::kEmbedding && !files.config.tied_embeddings) continue;
      const TensorView view = files.weights->Find(tensor.name).value();
      bytes += view.bytes + (view.row_scales != nullptr ? 4 * view.shape[0] : 0);
    }
    return static_cast<double>(bytes);
  };
  for (const char* target : {"int4-g64", "q4_0"}) {
    QuantizeRequest request = Small(target, "rtn", target);
    request.budget = {.faster = 0.3, .tokens = 200};
    const QuantizeReport report = Quantized(request);
    const double after = read(OpenTestModel(request.out));
    EXPECT_LE(after, read(before) / 1.3);
    EXPECT_EQ(Told(report)["bytes"], after);
    EXPECT_EQ(report.mixture.bytes, after);
    EXPECT_NEAR(report.mixture.faster, read(before) / after - 1, 1e-9);
    EXPECT_FALSE(report.mixture.is_all_floats);
  }
}

TEST_F(MixedTest, ThePercentageThatAnErrorNamesIsReached) {
  QuantizeRequest request = Small("int4-g64", "rtn", "fastest");
  request.budget = {.faster = 9, .tokens = 50};
  const std::string message = Message(Quantize(request).status());
  const size_t at = message.find("at most ");
  ASSERT_NE(at, std::string::npos) << message;
  request.budget.faster = std::stod(message.substr(at + 8)) / 100;
  EXPECT_GE(Quantized(request).mixture.faster, request.budget.faster);
}

TEST_F(MixedTest, TheBytesAreTheSameWithAnyNumberOfThreads) {
  QuantizeRequest one = Mixed("int4-g64", "gptq", "one"), three = one;
  three.out = folder_ / "three";
  one.threads = 1;
  three.threads = 3;
  Quantized(one);
  Quantized(three);
  EXPECT_EQ(BytesOf(one.out), BytesOf(three.out));
}

TEST_F(MixedTest, ARunThatIsEndedWhileItMeasuresOrWritesGoesOnToTheSameBytes) {
  const QuantizeRequest whole = Mixed("q4_0", "gptq", "whole");
  Quantized(whole);
  for (const uint32_t last : {0u, 2u, 4u}) {  // three layers are measured, then three are written
    SCOPED_TRACE(last);
    QuantizeRequest request = whole;
    request.out = folder_ / Concat("ended-", last);
    const auto end_at = [last](uint32_t layer) {
      return layer == last ? Cancelled("interrupted") : Status();
    };
    request.on_measured = [&](uint32_t layer, uint32_t) { return end_at(layer); };
    request.on_layer = [&](const LayerReport& layer) { return end_at(3 + layer.layer); };
    EXPECT_EQ(Quantize(request).status(), Cancelled("interrupted"));
    std::vector<uint32_t> measured;
    request.on_measured = [&](uint32_t layer, uint32_t) {
      measured.push_back(layer);
      return Status();
    };
    request.on_layer = [](const LayerReport&) { return Status(); };
    Quantized(request);
    EXPECT_EQ(measured.size(), last < 3 ? 2 - last : 0);
    EXPECT_EQ(BytesOf(request.out), BytesOf(whole.out));
  }
}

}  // namespace
}  // namespace terrace
