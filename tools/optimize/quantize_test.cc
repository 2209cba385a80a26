#include "tools/optimize/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "base/build_id.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "gtest/gtest.h"
#include "kernels/gemm/weight_strips.h"
#include "tools/optimize/journal.h"
#include "tools/optimize/model_shapes.h"
#include "tools/optimize/prune.h"
#include "tools/optimize/synthesize.h"
#include "tools/optimize/synthetic_text.h"
#include "tools/optimize/testing_quantize.h"
#include "worker/formats/testing_limits.h"
#include "worker/model/model_testing.h"
#include "worker/tensor/held_rows.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

TEST_F(QuantizeTest, WhatIsWrittenLoadsAndAnswersNearly) {
  const struct {
    const char *target, *method;
    double bound;  // nats a token: several times what 4 and 8 bits lose of such a small model
  } cases[] = {{"int4-g32", "gptq", 0.5},     {"int4-g64", "awq", 0.5}, {"int8", "rtn", 0.02},
               {"int8", "smoothquant", 0.02}, {"q8_0", "gptq", 0.02},   {"q4_0", "awq-gptq", 0.5},
               {"q4_k", "gptq", 0.5},         {"q6_k", "awq", 0.02},    {"fp8", "rtn", 0.1}};
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << c.target << " " << c.method);
    const QuantizeRequest request = Request(c.target, c.method, Concat(c.target, "-", c.method));
    const QuantizeReport report = Quantized(request);
    const ModelFiles files = OpenTestModel(request.out);
    EXPECT_EQ(files.digest, report.digest);
    EXPECT_EQ(files.format, request.target.is_gguf() ? "gguf" : "safetensors");
    EXPECT_EQ(Digest(*files.text), Digest(*OpenTestModel(DemoFolder(kNano)).text));
    EXPECT_EQ(report.parameters, 262'592u);
    EXPECT_LT(report.bytes_after, report.bytes_before * 3 / 4);
    const double divergence = Divergence(request.out);
    EXPECT_GT(divergence, 0);
    EXPECT_LT(divergence, c.bound);
  }
}

TEST_F(QuantizeTest, CalibratedMethodsLoseLessThanRounding) {
  std::map<std::string, QuantizeReport> reports;
  std::map<std::string, double> divergences;
  for (const char* method : {"rtn", "gptq", "awq", "awq-gptq"}) {
    QuantizeRequest request = Request("int4-g64", method, method);
    request.calibration.samples = 48;
    reports[method] = Quantized(request);
    divergences[method] = Divergence(request.out);
    EXPECT_LE(MeanError(reports[method]), MeanError(reports["rtn"])) << method;
  }
  // Nothing of the first layer's first linears but the method differs.
  for (size_t i = 0; i < 3; ++i) {
    const double rounded = reports["rtn"].layers[0].linears[i].relative_error;
    EXPECT_LT(reports["gptq"].layers[0].linears[i].relative_error, rounded);
    EXPECT_LT(reports["awq"].layers[0].linears[i].relative_error, rounded);
  }
  EXPECT_LT(divergences["gptq"], divergences["rtn"]);
  EXPECT_LT(divergences["awq"], divergences["rtn"]);
}

TEST_F(QuantizeTest, ZerosOfTwoOfFourStayInInt8) {
  PruneRequest prune;
  prune.model = DemoFolder(kNano);
  prune.out = folder_ / "2of4";
  prune.pattern = {.kept = 2, .of = 4};
  prune.method = kPruneMethods[1];
  ASSERT_TRUE(Prune(prune).ok());
  for (const QuantizeMethod& method : kQuantizeMethods) {
    QuantizeRequest request = Request("int8", method.name, Concat("sparse-", method.name));
    request.model = prune.out;
    Quantized(request);
    const ModelFiles files = OpenTestModel(request.out);
    ThreadPool pool(2);
    for (const TensorRequirement& tensor : RequiredTensors(files.config)) {
      if (!IsPerLayer(tensor.kind) || IsNorm(tensor.kind)) continue;
      const WeightMatrix matrix = MatrixOf(files.weights->Find(tensor.name).value());
      EXPECT_EQ(matrix.dtype, DType::kInt8);
      EXPECT_TRUE(IsTwoOfFour(matrix, pool)) << method.name << ": " << tensor.name;
    }
    EXPECT_GT(Divergence(request.out), 0);  // it runs
  }
}

TEST_F(QuantizeTest, ImportanceLosesLessThanPlainLevels) {
  QuantizeRequest plain = Request("q4_0", "rtn", "plain.gguf"),
                  weighed = Request("q4_0", "rtn", "weighed.gguf");
  weighed.method.searches_levels = true;
  EXPECT_LT(MeanError(Quantized(weighed)), MeanError(Quantized(plain)));
}

TEST_F(QuantizeTest, Fp8StaysWhatItIsWhenItIsQuantizedAgain) {
  QuantizeRequest first = Request("fp8", "rtn", "first"), second = Request("fp8", "rtn", "second");
  second.model = first.out;
  const QuantizeReport before = Quantized(first), after = Quantized(second);
  EXPECT_EQ(before.layers[0].linears[0].dtype, "FP8_E4M3");
  EXPECT_EQ(before.bytes_after, after.bytes_after);
  EXPECT_EQ(MeanError(after), 0);
  const ModelFiles one = OpenTestModel(first.out), two = OpenTestModel(second.out);
  for (const TensorRequirement& tensor : RequiredTensors(one.config)) {
    const TensorView a = one.weights->Find(tensor.name).value(), b = two.weights->Find(tensor.name).value();
    ASSERT_EQ(a.bytes, b.bytes);
    ThreadPool pool(2);
    const auto held_a = HeldRows::Hold(a, pool), held_b = HeldRows::Hold(b, pool);
    ASSERT_TRUE(held_a.ok() && held_b.ok());
    EXPECT_EQ(std::memcmp(held_a->matrix().data, held_b->matrix().data, a.bytes), 0) << tensor.name;
  }
}

TEST_F(QuantizeTest, BothFormatsOfAModelBecomeTheSameWeights) {
  QuantizeRequest folder = Request("int4-g32", "rtn", "folder"), gguf = Request("int4-g32", "rtn", "gguf");
  gguf.model = DemoGguf(kNano);
  folder.calibration = gguf.calibration = {};
  EXPECT_EQ(Quantized(folder).digest, Quantized(gguf).digest);
}

TEST_F(QuantizeTest, TheBytesAreTheSameWithAnyNumberOfThreads) {
  for (const char* method : {"gptq", "awq"}) {
    QuantizeRequest one = Request("int4-g32", method, Concat(method, 1)),
                    three = Request("int4-g32", method, Concat(method, 3));
    one.threads = 1;
    three.threads = 3;
    Quantized(one);
    Quantized(three);
    EXPECT_EQ(BytesOf(one.out), BytesOf(three.out)) << method;
  }
}

TEST_F(QuantizeTest, ARunThatIsEndedGoesOnToTheSameBytes) {
  for (const char* target : {"int4-g64", "int8", "q4_k"}) {
    SCOPED_TRACE(target);
    const QuantizeRequest whole = Request(target, "awq-gptq", Concat(target, "-whole"));
    Quantized(whole);
    for (uint32_t last = 0; last < 3; ++last) {
      QuantizeRequest request = Request(target, "awq-gptq", Concat(target, "-", last));
      request.on_layer = [&](const LayerReport& layer) {
        EXPECT_FALSE(layer.was_kept);
        return layer.layer == last ? Cancelled("interrupted") : Status();
      };
      EXPECT_EQ(Quantize(request).status(), Cancelled("interrupted"));
      EXPECT_FALSE(fs::exists(request.out));
      EXPECT_TRUE(fs::exists(request.out + ".work"));
      request.on_layer = [&](const LayerReport& layer) {
        EXPECT_EQ(layer.was_kept, layer.layer <= last);
        return Status();
      };
      Quantized(request);
      EXPECT_FALSE(fs::exists(request.out + ".work"));
      EXPECT_EQ(BytesOf(request.out), BytesOf(whole.out)) << "ended after layer " << last;
    }
  }
}

TEST_F(QuantizeTest, ALayerThatWasNotWrittenWholeIsDoneAgain) {
  const QuantizeRequest whole = Request("int4-g32", "gptq", "whole");
  Quantized(whole);
  QuantizeRequest request = Request("int4-g32", "gptq", "out");
  int asked = 0;
  request.is_cancelled = [&] { return ++asked == 17; };  // in the third layer
  EXPECT_EQ(Quantize(request).status().code(), StatusCode::kCancelled);
  fs::resize_file(request.out + ".work/layer-1", 1000);
  request.is_cancelled = nullptr;
  std::vector<bool> kept;
  request.on_layer = [&](const LayerReport& layer) {
    kept.push_back(layer.was_kept);
    return Status();
  };
  Quantized(request);
  EXPECT_EQ(kept, (std::vector<bool>{true, false, false}));
  EXPECT_EQ(BytesOf(request.out), BytesOf(whole.out));
}

TEST_F(QuantizeTest, AFullDiskEndsTheRunWhichGoesOnWhenThereIsRoom) {
  QuantizeRequest request = Request("q8_0", "rtn", "out.gguf");
  request.calibration = {};
  {
    const FileSizeLimit limit(100'000);  // layers of about 66,000 bytes fit, the model does not
    const Status status = Quantize(request).status();
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
    EXPECT_EQ(Entries(), std::vector<std::string>{"out.gguf.work"});
  }
  Quantized(request);
  EXPECT_EQ(Entries(), (std::vector<std::string>{"out.gguf", "out.gguf.quantize.json"}));
}

TEST_F(QuantizeTest, ADiskWithoutRoomForHiddenStatesEndsTheRunBeforeTheFirstLayer) {
  QuantizeRequest request = Request("int4-g32", "awq", "out");
  request.on_layer = [](const LayerReport&) { return Internal("a layer was done"); };
  {
    const FileSizeLimit limit(10'000);  // a token has 256 bytes
    const Status status = Quantize(request).status();
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
    EXPECT_NE(Message(status).find(request.out + ".work: cannot take the space"), std::string::npos)
        << status;
  }
  request.on_layer = [](const LayerReport&) { return Status(); };
  Quantized(request);
  EXPECT_EQ(Entries(), (std::vector<std::string>{"out", "out.quantize.json"}));
}

TEST_F(QuantizeTest, TheReportSaysWhatWasDone) {
  QuantizeRequest request = Request("int4-g32", "gptq", "out");
  request.damping = 0.05;
  request.act_order = true;
  const QuantizeReport report = Quantized(request);
  EXPECT_EQ(report.path, request.out + ".quantize.json");
  const Json json = ParseJson(ReadFile(report.path).value()).value();
  EXPECT_EQ(json["method"], "gptq");
  EXPECT_EQ(json["target"], "int4-g32");
  EXPECT_EQ(json["damping"], 0.05);
  EXPECT_EQ(json["act_order"], true);
  EXPECT_EQ(json["error_of"], "outputs");
  EXPECT_EQ(json["model"]["digest"], OpenTestModel(request.model).digest.Hex());
  EXPECT_EQ(json["output"]["digest"], report.digest.Hex());
  EXPECT_EQ(json["calibration"]["digest"], HashBytes(ReadFile(kRows).value()).Hex());
  EXPECT_EQ(json["calibration"]["sequences"], 10);
  ASSERT_EQ(json["layers"].size(), 3u);
  for (const Json& layer : json["layers"]) {
    ASSERT_EQ(layer["linears"].size(), 7u);
    for (const Json& linear : layer["linears"]) {
      EXPECT_EQ(linear["dtype"], "INT4_G32");
      EXPECT_GT(linear["relative_error"].get<double>(), 0);
      EXPECT_LT(linear["relative_error"].get<double>(), 0.3);
    }
  }
}

TEST_F(QuantizeTest, WhatCannotBeDoneIsToldAndLeavesNothing) {
  std::ofstream(folder_ / "taken") << "mine";
  std::ofstream(folder_ / "told.quantize.json") << "mine";
  std::ofstream(folder_ / "empty.jsonl") << "";
  std::ofstream(folder_ / "short.jsonl") << "{\"text\": \"a\"}\n";
  const struct {
    const char* name;
    StatusCode code;
    const char* mention;
    void (*change)(QuantizeRequest&, const fs::path&);
  } cases[] = {
      {"groups", StatusCode::kInvalidArgument, "blocks of 128 of INT4_G128",
       [](QuantizeRequest& r, const fs::path&) { r.target = Named(kQuantizeTargets, "int4-g128"); }},
      {"no calibration", StatusCode::kInvalidArgument, "--calibration",
       [](QuantizeRequest& r, const fs::path&) { r.calibration.path.clear(); }},
      {"an absent file", StatusCode::kNotFound, "absent",
       [](QuantizeRequest& r, const fs::path&) { r.calibration.path = "absent"; }},
      {"an empty file", StatusCode::kDataLoss, "no rows",
       [](QuantizeRequest& r, const fs::path& f) { r.calibration.path = f / "empty.jsonl"; }},
      {"hardly any text", StatusCode::kDataLoss, " tokens to calibrate with, and each layer has 64 inputs",
       [](QuantizeRequest& r, const fs::path& f) { r.calibration = {.path = f / "short.jsonl"}; }},
      {"a taken path", StatusCode::kInvalidArgument, "is there already",
       [](QuantizeRequest& r, const fs::path& f) { r.out = f / "taken"; }},
      {"a taken path of the report", StatusCode::kInvalidArgument, "told.quantize.json: is there already",
       [](QuantizeRequest& r, const fs::path& f) { r.out = f / "told/"; }},
      {"no path", StatusCode::kInvalidArgument, "is empty",
       [](QuantizeRequest& r, const fs::path&) { r.out.clear(); }},
      {"no number", StatusCode::kInvalidArgument, "--damping",
       [](QuantizeRequest& r, const fs::path&) { r.damping = NAN; }},
      {"damping of nothing", StatusCode::kInvalidArgument, "--damping",
       [](QuantizeRequest& r, const fs::path&) {
         r.method = Named(kQuantizeMethods, "awq");
         r.damping = 0.02;
       }},
      {"order of nothing", StatusCode::kInvalidArgument, "--act-order",
       [](QuantizeRequest& r, const fs::path&) {
         r.method = Named(kQuantizeMethods, "rtn");
         r.act_order = true;
       }},
      {"a budget without calibration", StatusCode::kInvalidArgument, "--fit needs calibration text",
       [](QuantizeRequest& r, const fs::path&) {
         r.method = Named(kQuantizeMethods, "rtn");
         r.calibration.path.clear();
         r.budget.bytes = 1u << 30;
       }},
      {"two budgets", StatusCode::kInvalidArgument, "give one",
       [](QuantizeRequest& r, const fs::path&) { r.budget = {.bytes = 1u << 30, .faster = 0.1}; }},
      {"a budget that is no number", StatusCode::kInvalidArgument, "--faster",
       [](QuantizeRequest& r, const fs::path&) { r.budget.faster = NAN; }},
      {"tokens for no budget", StatusCode::kInvalidArgument, "--sensitivity-tokens",
       [](QuantizeRequest& r, const fs::path&) { r.budget.tokens = 5; }},
      {"a size that is not reached", StatusCode::kInvalidArgument, "the smallest that --to int4-g32 makes",
       [](QuantizeRequest& r, const fs::path&) { r.budget.bytes = 1000; }},
      {"a format that is no smaller", StatusCode::kInvalidArgument, "cannot be faster than the source",
       [](QuantizeRequest& r, const fs::path& f) {
         r.model = f / "int4";
         r.target = Named(kQuantizeTargets, "int8");
         r.budget.faster = 0.2;
       }},
      {"a speed that is not reached", StatusCode::kInvalidArgument, "% faster",
       [](QuantizeRequest& r, const fs::path&) { r.budget.faster = 9; }},
      {"fp8 by gptq", StatusCode::kInvalidArgument, "--method rtn",
       [](QuantizeRequest& r, const fs::path&) {
         r.target = Named(kQuantizeTargets, "fp8");
         r.calibration.path.clear();
       }},
      {"a budget with fp8", StatusCode::kInvalidArgument, "no mixture",
       [](QuantizeRequest& r, const fs::path&) {
         r.target = Named(kQuantizeTargets, "fp8");
         r.method = Named(kQuantizeMethods, "rtn");
         r.budget.bytes = 1u << 30;
       }},
      {"an absent model", StatusCode::kNotFound, "absent",
       [](QuantizeRequest& r, const fs::path&) { r.model = "absent"; }},
  };
  Quantized(Request("int4-g32", "rtn", "int4"));
  const auto before = Entries();
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    QuantizeRequest request = Request("int4-g32", "gptq", "out");
    c.change(request, folder_);
    const Status status = Quantize(request).status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_NE(Message(status).find(c.mention), std::string::npos) << status;
    EXPECT_EQ(Entries(), before);
  }
}

TEST_F(QuantizeTest, WorkOfAnotherJobIsNotContinued) {
  QuantizeRequest request = Request("int4-g32", "gptq", "out");
  request.on_layer = [](const LayerReport&) { return Cancelled("interrupted"); };
  EXPECT_EQ(Quantize(request).status().code(), StatusCode::kCancelled);
  request.damping = 0.02;
  const Status status = Quantize(request).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_NE(Message(status).find(request.out + ".work"), std::string::npos) << status;
}

// As after an upgrade: the journal says which build began, and the report does not.
TEST_F(QuantizeTest, WorkOfAnotherBuildIsNotContinued) {
  QuantizeRequest request = Request("int4-g32", "rtn", "out");
  request.on_layer = [](const LayerReport&) { return Cancelled("interrupted"); };
  EXPECT_EQ(Quantize(request).status().code(), StatusCode::kCancelled);
  std::string job;
  {
    const std::string kept = ReadFile(request.out + ".work/job").value();
    job = kept.substr(0, kept.find_last_of('}') + 1);  // a checksum is behind it
  }
  ASSERT_NE(job.find(OwnBuildId()), std::string::npos) << job;
  job.replace(job.find(OwnBuildId()), OwnBuildId().size(), "0123");
  fs::remove_all(request.out + ".work");
  ASSERT_TRUE(Journal::Open(request.out, job).ok());
  const Status status = Quantize(request).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_NE(Message(status).find("what differs: build (\"0123\" there, "), std::string::npos) << status;
  fs::remove_all(request.out + ".work");
  request.on_layer = [](const LayerReport&) { return Status(); };
  Quantized(request);
  for (const auto& [file, bytes] : BytesOf(request.out))
    EXPECT_EQ(bytes.find(OwnBuildId()), std::string::npos) << file;
}

// A small model in F32 whose bytes tests may break.
class BrokenModel : public QuantizeTest {
 protected:
  BrokenModel() {
    ModelToSynthesize model;
    model.path = folder_ / "model";
    model.format = ModelFormat::kSafetensors;
    model.config =
        ChangeShape(
            FindModelShape("135m").value(),
            {.layers = 2, .hidden = 64, .heads = 2, .kv_heads = 2, .ffn = 64, .vocab = 300, .context = 64})
            .value();
    model.dtype = DType::kF32;
    model.text = ByteLevelText();
    CHECK(Synthesize(model).ok());
    std::ofstream rows(folder_ / "rows.jsonl");  // of more tokens than a layer has inputs
    for (const char* text :
         {"some text", "and more of it", "0123456789", "The quick brown fox", "jumps over", "the lazy dog",
          "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "!?.,;:-_#+*~<>|", "once upon a time"})
      rows << "{\"text\": \"" << text << "\"}\n";
  }
  // Puts a value into a tensor of the file.
  void Break(const std::string& tensor, size_t element, float value) {
    const std::string path = folder_ / "model" / "model.safetensors";
    uint64_t offset = 0;
    {
      const ModelFiles files = OpenTestModel(folder_ / "model");
      for (const auto& entry : files.weights->entries()) {
        if (entry.name == tensor) offset = entry.offset + element * sizeof(float);
      }
    }
    CHECK(offset > 0, "no ", tensor);
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  QuantizeRequest OfBroken(std::string_view method) const {
    QuantizeRequest request = Request("int4-g32", method, "out");
    request.model = folder_ / "model";
    request.calibration = {.path = folder_ / "rows.jsonl"};
    return request;
  }
};

TEST_F(BrokenModel, IsFineBeforeItIsBroken) { EXPECT_TRUE(Quantize(OfBroken("gptq")).ok()); }

TEST_F(BrokenModel, AModelThatChangesWhileItIsReadIsNotQuantized) {
  for (const char* method : {"rtn", "gptq"}) {
    QuantizeRequest request = OfBroken(method);
    float value = 0.25f;
    request.on_layer = [&](const LayerReport& layer) {
      if (layer.layer == 0) Break("model.layers.1.mlp.down_proj.weight", 70, value);
      return Status();
    };
    const Status status = Quantize(request).status();
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status;
    EXPECT_EQ(Reason(status), "model_changed");
    EXPECT_FALSE(fs::exists(request.out));
    EXPECT_FALSE(fs::exists(request.out + ".work")) << "its layers may be of both";
    EXPECT_FALSE(fs::exists(request.out + ".quantize.json"));
    Break("model.layers.1.mlp.down_proj.weight", 70, 0.5f);
  }
}

TEST_F(BrokenModel, WeightsThatAreNotFiniteAreToldWithTheirTensor) {
  Break("model.layers.1.mlp.down_proj.weight", 70, NAN);
  for (const char* method : {"rtn", "gptq"}) {
    const Status status = Quantize(OfBroken(method)).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
    EXPECT_EQ(Reason(status), "nonfinite");
    EXPECT_NE(Message(status).find("\"model.layers.1.mlp.down_proj.weight\": row 1"), std::string::npos)
        << status;
    fs::remove_all(folder_ / "out.work");
  }
}

TEST_F(BrokenModel, EmbeddingsThatAreNotFiniteAreToldWithTheirRow) {
  Break("model.embed_tokens.weight", 299 * 64 + 5, INFINITY);  // a token that no text has
  const Status status = Quantize(OfBroken("gptq")).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
  EXPECT_NE(Message(status).find("row 299"), std::string::npos) << status;
  EXPECT_FALSE(fs::exists(folder_ / "out") || fs::exists(folder_ / "out.work"));  // before the layers
}

TEST_F(BrokenModel, ValuesThatTheTargetCannotHoldAreTold) {
  const struct {
    const char *tensor, *target, *mention;
  } cases[] = {{"model.embed_tokens.weight", "q8_0", "Q8_0 cannot hold"},
               {"model.layers.0.mlp.down_proj.weight", "int4-g32", "INT4_G32 cannot hold"}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.tensor);
    Break(c.tensor, 70, 1e30f);  // its block's scale passes F16
    QuantizeRequest request = OfBroken("rtn");
    request.target = Named(kQuantizeTargets, c.target);
    request.calibration = {};
    const Status status = Quantize(request).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
    EXPECT_EQ(Reason(status), "nonfinite");
    EXPECT_NE(Message(status).find(c.mention), std::string::npos) << status;
    EXPECT_NE(Message(status).find(c.tensor), std::string::npos) << status;
  }
}

TEST_F(BrokenModel, ActivationsThatAreNotFiniteAreToldWithTheirLayer) {
  Break("model.layers.1.post_attention_layernorm.weight", 3, 3e38f);
  Break("model.layers.0.mlp.down_proj.weight", 3 * 64, 1e4f);  // makes input 3 larger than 1
  const Status status = Quantize(OfBroken("gptq")).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
  EXPECT_EQ(Reason(status), "nonfinite");
  EXPECT_NE(Message(status).find("model.layers.1.mlp.gate_proj.weight"), std::string::npos) << status;
}

}  // namespace
}  // namespace terrace
