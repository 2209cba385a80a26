#include "tools/optimize/prune.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>

#include "base/json.h"
#include "base/mapped_file.h"
#include "gtest/gtest.h"
#include "kernels/quant/weight_values.h"
#include "tools/optimize/model_shapes.h"
#include "tools/optimize/quantize.h"
#include "tools/optimize/synthesize.h"
#include "tools/optimize/synthetic_text.h"
#include "tools/optimize/testing_rewrite.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr SparsityPattern kHalf = {.share = 0.5}, kTwoOfFour = {.kept = 2, .of = 4};
constexpr PruneMethod kSparseGpt = kPruneMethods[0], kMagnitude = kPruneMethods[1];

class PruneTest : public testing::Test {
 protected:
  PruneTest() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  PruneRequest Request(const std::string& out) const {
    PruneRequest request;
    request.model = DemoFolder(kNano);
    request.out = folder_ / out;
    request.calibration = {.path = kRows, .samples = 10, .seed = 1};
    request.threads = 2;
    return request;
  }
  PruneRequest Zeros(const SparsityPattern& pattern, const PruneMethod& method,
                     const std::string& out) const {
    PruneRequest request = Request(out);
    request.pattern = pattern;
    request.method = method;
    return request;
  }
  PruneRequest Less(const Cut& cut, const std::string& out) const {
    PruneRequest request = Request(out);
    request.cut = cut;
    return request;
  }
  std::vector<std::string> Entries() const { return EntriesOf(folder_); }
  const fs::path folder_ = fs::path(testing::TempDir()) / "prune";
};

constexpr Cut kEverything = {.ffn_share = 0.3, .kv_heads = 1, .layers = 1, .hidden = 32, .multiple = 32};

PruneReport Pruned(const PruneRequest& request) {
  const auto report = Prune(request);
  CHECK(report.ok(), Message(report.status()));
  return *report;
}

Json ReportOf(const std::string& out) { return ParseJson(ReadFile(out + ".prune.json").value()).value(); }

std::map<std::string, std::string> BytesOf(const std::string& out) { return terrace::BytesOf(out, "prune"); }

std::vector<float> ValuesOf(const TensorView& tensor) {
  const WeightMatrix matrix = MatrixOf(tensor);
  std::vector<float> values(matrix.rows * matrix.columns);
  for (size_t row = 0; row < matrix.rows; ++row) DecodeRow(matrix, row, &values[row * matrix.columns]);
  return values;
}

// Some rows of the golden file as tokens.
std::vector<std::vector<int32_t>> Texts() { return GoldenTexts(4); }

// From the demo model, in nats a token.
double Divergence(const std::string& path) { return terrace::Divergence(path, Texts()); }

// On the tokens that both were calibrated with, each behind its own pruned layers.
TEST_F(PruneTest, SparseGptLosesLessThanMagnitudeInEachLinear) {
  for (const SparsityPattern& pattern : {kHalf, kTwoOfFour}) {
    const std::string name = pattern.has_groups() ? "2of4" : "half";
    std::vector<std::vector<LinearReport>> linears;
    for (const PruneMethod& method : {kSparseGpt, kMagnitude}) {
      PruneRequest request = Zeros(pattern, method, Concat(name, method.name));
      request.calibration.samples = 48;
      std::vector<LinearReport>& all = linears.emplace_back();
      for (const LayerReport& layer : Pruned(request).layers)
        all.insert(all.end(), layer.linears.begin(), layer.linears.end());
    }
    ASSERT_EQ(linears[0].size(), 3u * 7) << "layers of nano, and linears of each";
    for (size_t i = 0; i < linears[0].size(); ++i) {
      ASSERT_EQ(linears[0][i].name, linears[1][i].name);
      EXPECT_LT(linears[0][i].relative_error, 0.95 * linears[1][i].relative_error)
          << name << " " << linears[0][i].name;
    }
  }
}

TEST_F(PruneTest, SparseGptLosesLessThanMagnitudeAndBothWriteThePattern) {
  for (const SparsityPattern& pattern : {kHalf, kTwoOfFour}) {
    const std::string name = pattern.has_groups() ? "2of4" : "half";
    SCOPED_TRACE(name);
    std::map<std::string, double> errors, divergences;
    for (const PruneMethod& method : {kSparseGpt, kMagnitude}) {
      PruneRequest request = Zeros(pattern, method, Concat(name, method.name));
      request.calibration.samples = 48;
      const PruneReport report = Pruned(request);
      errors[std::string(method.name)] = MeanError(report);
      divergences[std::string(method.name)] = Divergence(request.out);
      const ModelFiles files = OpenTestModel(request.out);
      EXPECT_EQ(files.digest, report.digest);
      EXPECT_EQ(files.format, "safetensors");
      EXPECT_EQ(report.parameters_after, report.parameters);
      for (const TensorRequirement& tensor : RequiredTensors(files.config)) {
        if (!IsPerLayer(tensor.kind) || IsNorm(tensor.kind)) continue;
        const std::vector<float> values = ValuesOf(files.weights->Find(tensor.name).value());
        EXPECT_EQ(static_cast<size_t>(std::ranges::count(values, 0.0f)), values.size() / 2) << tensor.name;
        for (size_t i = 0; i < values.size() && pattern.has_groups(); i += 4)
          ASSERT_EQ(std::count(&values[i], &values[i] + 4, 0.0f), 2) << tensor.name << " " << i;
      }
      // What a step reads: of nano all matrices but the output have rows of whole blocks of 32.
      if (pattern.has_groups()) {
        EXPECT_LT(report.step_bytes_after, report.step_bytes_before);
      } else {
        EXPECT_EQ(report.step_bytes_after, report.step_bytes_before);
      }
    }
    EXPECT_LT(errors["sparsegpt"], errors["magnitude"]);
    EXPECT_LT(divergences["sparsegpt"], divergences["magnitude"]);
  }
}

TEST_F(PruneTest, GgufStaysGgufAndQuantizedMatricesBecomeF16) {
  PruneRequest request = Zeros(kTwoOfFour, kMagnitude, "gguf");
  request.model = DemoGguf(kNano);
  Pruned(request);
  EXPECT_EQ(OpenTestModel(request.out).format, "gguf");

  QuantizeRequest quantize;
  quantize.model = DemoFolder(kNano);
  quantize.out = folder_ / "int8";
  quantize.target = kQuantizeTargets[3];
  quantize.method = kQuantizeMethods[0];
  ASSERT_TRUE(Quantize(quantize).ok());
  request.model = quantize.out;
  request.out = folder_ / "of_int8";
  Pruned(request);
  const ModelFiles files = OpenTestModel(request.out);
  EXPECT_FALSE(files.config.quantization.has_value());
  EXPECT_EQ(files.weights->Find("model.layers.0.mlp.down_proj.weight")->dtype, DType::kF16);
}

// A model whose linears' columns that a report does not list are zero; layers that went add nothing. Nor do
// channels of the residual stream that went: nothing writes to them. Its norms still divide by the root of
// the mean square of all channels, of which those are zero: their gains are those of the smaller model for
// that.
class ZeroedModel : public WeightSource {
 public:
  ZeroedModel(const ModelFiles& files, const Json& report) : files_(files), path_("zeroed") {
    const ModelConfig& config = files.config;
    const size_t of_group = config.heads / config.kv_heads * config.head_dim;
    std::vector<bool> stream(config.hidden_size, !report.contains("hidden"));
    double left = config.hidden_size;  // of the stream's channels
    if (report.contains("hidden")) {
      const Json& kept = report["hidden"]["kept"];
      left = static_cast<double>(kept.size());
      for (const Json& channel : kept) stream[channel.get<size_t>()] = true;
      Change(TensorKind::kFinalNorm, 0, [&](size_t, float value) {
        return value * report["hidden"]["final_norm_factor"].get<double>() *
               std::sqrt(left / config.hidden_size);
      });
      Zero(TensorKind::kEmbedding, 0, stream);
    }
    for (uint32_t layer = 0; layer < config.layers; ++layer) {
      std::vector<bool> queries(size_t{config.heads} * config.head_dim), channels(config.ffn_size);
      for (const Json& each : report["layers"]) {
        if (each["of_layer"] != layer) continue;
        for (const Json& head : each["kept"]["kv_heads"])
          std::fill_n(queries.begin() + static_cast<ptrdiff_t>(head.get<size_t>() * of_group), of_group,
                      true);
        for (const Json& channel : each["kept"]["channels"]) channels[channel.get<size_t>()] = true;
        if (!each.contains("norm_factors")) continue;
        for (const auto& [kind, name] :
             {std::pair{TensorKind::kAttentionNorm, "attention"}, std::pair{TensorKind::kFfnNorm, "ffn"}}) {
          const double factor =
              each["norm_factors"][name].get<double>() * std::sqrt(left / config.hidden_size);
          Change(kind, layer, [&](size_t, float value) { return value * factor; });
        }
      }
      for (const auto& [kind, inputs] :
           {std::pair{TensorKind::kAttentionOutput, &queries}, std::pair{TensorKind::kDown, &channels}})
        Change(kind, layer, [&](size_t i, float value) {
          return (*inputs)[i % inputs->size()] && stream[i / inputs->size()] ? value : 0;
        });
    }
  }
  StatusOr<TensorView> Find(std::string_view name) const override {
    const auto found = zeroed_.find(std::string(name));
    if (found == zeroed_.end()) return files_.weights->Find(name);
    TensorView view = files_.weights->Find(name).value();
    view.dtype = DType::kF32;
    view.data = reinterpret_cast<const std::byte*>(found->second.data());
    view.bytes = found->second.size() * sizeof(float);
    return view;
  }
  const std::vector<Entry>& entries() const override { return files_.weights->entries(); }
  const std::string& path() const override { return path_; }

 private:
  // Columns that are not `kept`.
  void Zero(TensorKind kind, uint32_t layer, const std::vector<bool>& kept) {
    Change(kind, layer, [&](size_t i, float value) { return kept[i % kept.size()] ? value : 0; });
  }

  // Each value by its place.
  void Change(TensorKind kind, uint32_t layer, const std::function<double(size_t, float)>& change) {
    const std::string name = TensorName(files_.config, kind, layer);
    std::vector<float> values = ValuesOf(files_.weights->Find(name).value());
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(change(i, values[i]));
    zeroed_[name] = std::move(values);
  }

  const ModelFiles& files_;
  std::map<std::string, std::vector<float>> zeroed_;
  const std::string path_;
};

TEST_F(PruneTest, ASmallerModelIsTheOneWhosePartsAreZero) {
  const struct {
    const char* name;
    Cut cut;
  } cases[] = {{"ffn", {.ffn_share = 0.3, .multiple = 32}},
               {"odd_widths", {.ffn_share = 0.25, .multiple = 5}},
               {"heads", {.kv_heads = 1}},
               {"layers", {.layers = 1}},
               {"stream", {.hidden = 32}},
               {"everything", kEverything}};
  for (const std::string& model : {DemoFolder(kNano), DemoGguf("terrace-demo-small")}) {
    const ModelFiles before = OpenTestModel(model);
    for (const auto& c : cases) {
      SCOPED_TRACE(Concat(model, " ", c.name));
      PruneRequest request = Less(c.cut, Concat(c.name, before.format));
      request.model = model;
      request.repair = false;
      const PruneReport report = Pruned(request);
      EXPECT_LT(report.parameters_after, report.parameters);
      EXPECT_LT(report.bytes_after, report.bytes_before);
      EXPECT_LT(report.step_bytes_after, report.step_bytes_before);
      const ModelFiles after = OpenTestModel(request.out);
      EXPECT_EQ(after.config.hidden_size, before.config.hidden_size - c.cut.hidden);
      EXPECT_EQ(after.config.layers, before.config.layers - c.cut.layers);
      EXPECT_EQ(after.config.kv_heads, before.config.kv_heads - c.cut.kv_heads);
      EXPECT_EQ(after.config.heads / after.config.kv_heads, before.config.heads / before.config.kv_heads);

      const ZeroedModel zeroed(before, ReportOf(request.out));
      ModelConfig config = before.config;  // its epsilon is added to means over more channels
      config.norm_epsilon *=
          static_cast<float>(after.config.hidden_size) / static_cast<float>(before.config.hidden_size);
      TestModel reference(config, zeroed, CpuOps(), 2, 64, KvDType::kF32, ComputeType::kF32),
          pruned(after.config, *after.weights, CpuOps(), 2, 64, KvDType::kF32, ComputeType::kF32);
      for (const std::vector<int32_t>& tokens : Texts()) {
        const auto want = SequenceLogits(reference, tokens), got = SequenceLogits(pruned, tokens);
        ASSERT_EQ(got.size(), want.size());
        for (size_t i = 0; i < got.size(); ++i)
          ASSERT_NEAR(got[i], want[i], 1e-3 * (1 + std::abs(want[i]))) << i;
      }
    }
  }
}

TEST_F(PruneTest, LayersEndWithDifferentWidthsAndTheReportSaysWhich) {
  const PruneRequest request = Less({.ffn_share = 0.4, .multiple = 32}, "out");
  const PruneReport report = Pruned(request);
  const ModelFiles files = OpenTestModel(request.out);
  const Json json = ReportOf(request.out);
  EXPECT_EQ(json["removed"]["ffn"], 0.4);
  EXPECT_EQ(json["repair"], true);
  EXPECT_EQ(json["output"]["digest"], report.digest.Hex());
  uint32_t all = 0;
  for (uint32_t layer = 0; layer < 3; ++layer) {
    const uint32_t width = files.config.FfnSize(layer);
    EXPECT_EQ(width % 32, 0u);
    EXPECT_EQ(json["layers"][layer]["kept"]["channels"].size(), width);
    EXPECT_EQ(report.layers[layer].linears[4].shape, (Shape{width, 64}));
    all += width;
  }
  EXPECT_NEAR(all, 0.6 * 3 * 256, 16);
}

TEST_F(PruneTest, RepairOfANarrowerStreamLosesLessOfEachLinear) {
  PruneRequest repaired = Less({.hidden = 32}, "repaired"), plain = Less({.hidden = 32}, "plain");
  plain.repair = false;
  const PruneReport after = Pruned(repaired), before = Pruned(plain);
  for (size_t layer = 0; layer < after.layers.size(); ++layer) {
    for (size_t i = 0; i < std::size(kLinears); ++i) {
      const double error = after.layers[layer].linears[i].relative_error;
      const bool reads_stream =
          kLinears[i] != TensorKind::kAttentionOutput && kLinears[i] != TensorKind::kDown;
      SCOPED_TRACE(after.layers[layer].linears[i].name);
      if (reads_stream) {
        EXPECT_LT(error, before.layers[layer].linears[i].relative_error);
      } else {
        EXPECT_EQ(error, 0);
      }
    }
  }
}

TEST_F(PruneTest, RepairLosesLess) {
  const Cut cut = {.ffn_share = 0.3, .multiple = 16};
  PruneRequest repaired = Less(cut, "repaired"), plain = Less(cut, "plain");
  repaired.calibration.samples = plain.calibration.samples = 64;
  plain.repair = false;
  EXPECT_LT(MeanError(Pruned(repaired)), MeanError(Pruned(plain)));
  EXPECT_LT(Divergence(repaired.out), Divergence(plain.out));
}

TEST_F(PruneTest, WhatWasCutCanBeCutAndQuantizedAgain) {
  const PruneRequest first = Less({.ffn_share = 0.3, .multiple = 32}, "first");
  Pruned(first);
  PruneRequest second = Less({.ffn_share = 0.2, .layers = 1, .multiple = 32}, "second");
  second.model = first.out;
  Pruned(second);
  QuantizeRequest quantize;
  quantize.model = second.out;
  quantize.out = folder_ / "quantized.gguf";
  quantize.target = kQuantizeTargets[4];
  quantize.calibration = first.calibration;
  quantize.threads = 2;
  const auto quantized = Quantize(quantize);
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  const ModelFiles a = OpenTestModel(second.out), b = OpenTestModel(quantize.out);
  EXPECT_EQ(b.config.layers, 2u);
  for (uint32_t layer = 0; layer < 2; ++layer) EXPECT_EQ(a.config.FfnSize(layer), b.config.FfnSize(layer));
  EXPECT_LT(Divergence(quantize.out), 1.1 * Divergence(second.out));
}

std::vector<PruneRequest> EveryKind(const std::function<PruneRequest(const std::string& out)>& make) {
  std::vector<PruneRequest> kinds;
  for (const char* out : {"half", "2of4", "cut", "narrow"}) kinds.push_back(make(out));
  kinds[0].pattern = kHalf;
  kinds[1].pattern = kTwoOfFour;
  kinds[2].cut = {.ffn_share = 0.3, .kv_heads = 1, .multiple = 32};
  kinds[3].cut = {.ffn_share = 0.3, .kv_heads = 1, .hidden = 32, .multiple = 32};
  return kinds;
}

TEST_F(PruneTest, TheBytesAreTheSameWithAnyNumberOfThreads) {
  const auto one = EveryKind([&](const std::string& out) { return Request(out + "-1"); });
  auto three = EveryKind([&](const std::string& out) { return Request(out + "-3"); });
  for (size_t i = 0; i < one.size(); ++i) {
    Pruned(one[i]);
    three[i].threads = 3;
    Pruned(three[i]);
    EXPECT_EQ(BytesOf(one[i].out), BytesOf(three[i].out)) << one[i].out;
  }
}

TEST_F(PruneTest, ARunThatIsEndedGoesOnToTheSameBytes) {
  const auto whole = EveryKind([&](const std::string& out) { return Request(out + "-whole"); });
  auto ended = EveryKind([&](const std::string& out) { return Request(out + "-ended"); });
  for (size_t i = 0; i < whole.size(); ++i) {
    SCOPED_TRACE(whole[i].out);
    Pruned(whole[i]);
    for (uint32_t last = 0; last < 3; ++last) {
      PruneRequest& request = ended[i];
      request.out += Concat("-", last);
      request.on_layer = [&](const LayerReport& layer) {
        return layer.layer == last ? Cancelled("interrupted") : Status();
      };
      EXPECT_EQ(Prune(request).status(), Cancelled("interrupted"));
      EXPECT_FALSE(fs::exists(request.out));
      request.on_layer = [&](const LayerReport& layer) {
        EXPECT_EQ(layer.was_kept, layer.layer <= last);
        return Status();
      };
      Pruned(request);
      EXPECT_FALSE(fs::exists(request.out + ".work"));
      EXPECT_EQ(BytesOf(request.out), BytesOf(whole[i].out)) << "ended after layer " << last;
    }
  }
}

TEST_F(PruneTest, WhatCannotBeDoneIsToldAndLeavesNothing) {
  std::ofstream(folder_ / "taken") << "mine";
  std::ofstream(folder_ / "told.prune.json") << "mine";
  const struct {
    const char* name;
    StatusCode code;
    const char* mention;
    void (*change)(PruneRequest&, const fs::path&);
  } cases[] = {
      {"nothing", StatusCode::kInvalidArgument, "nothing to remove", [](PruneRequest&, const fs::path&) {}},
      {"both", StatusCode::kInvalidArgument, "first the one",
       [](PruneRequest& r, const fs::path&) {
         r.pattern = kHalf;
         r.cut.layers = 1;
       }},
      {"all weights", StatusCode::kInvalidArgument, "--sparsity: 1",
       [](PruneRequest& r, const fs::path&) { r.pattern.share = 1; }},
      {"no number", StatusCode::kInvalidArgument, "--sparsity",
       [](PruneRequest& r, const fs::path&) { r.pattern.share = NAN; }},
      {"damping of nothing", StatusCode::kInvalidArgument, "--damping",
       [](PruneRequest& r, const fs::path&) {
         r.pattern = kHalf;
         r.method = kMagnitude;
         r.damping = 0.1;
       }},
      {"damping of no repair", StatusCode::kInvalidArgument, "--no-repair",
       [](PruneRequest& r, const fs::path&) {
         r.cut.layers = 1;
         r.repair = false;
         r.damping = 0.1;
       }},
      {"repair of zeros", StatusCode::kInvalidArgument, "--no-repair",
       [](PruneRequest& r, const fs::path&) {
         r.pattern = kHalf;
         r.repair = false;
       }},
      {"much damping", StatusCode::kInvalidArgument, "--damping: 2",
       [](PruneRequest& r, const fs::path&) {
         r.pattern = kHalf;
         r.damping = 2;
       }},
      {"no calibration", StatusCode::kInvalidArgument, "--calibration",
       [](PruneRequest& r, const fs::path&) {
         r.pattern = kHalf;
         r.calibration.path.clear();
       }},
      {"a cut without calibration", StatusCode::kInvalidArgument, "--calibration",
       [](PruneRequest& r, const fs::path&) {
         r.cut.layers = 1;
         r.calibration.path.clear();
       }},
      {"all heads", StatusCode::kInvalidArgument, "--remove-kv-heads: 2 of the 2",
       [](PruneRequest& r, const fs::path&) { r.cut.kv_heads = 2; }},
      {"a width that is no multiple", StatusCode::kInvalidArgument,
       "--remove-hidden: 10 of 64 leave 54, which is no multiple of 32",
       [](PruneRequest& r, const fs::path&) { r.cut.hidden = 10; }},
      {"an absent file", StatusCode::kNotFound, "absent",
       [](PruneRequest& r, const fs::path&) {
         r.pattern = kHalf;
         r.calibration.path = "absent";
       }},
      {"a taken path", StatusCode::kInvalidArgument, "is there already",
       [](PruneRequest& r, const fs::path& f) {
         r.pattern = kHalf;
         r.out = f / "taken";
       }},
      {"a taken path of the report", StatusCode::kInvalidArgument, "told.prune.json: is there already",
       [](PruneRequest& r, const fs::path& f) {
         r.pattern = kHalf;
         r.out = f / "told/";
       }},
  };
  const auto before = Entries();
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    PruneRequest request = Request("out");
    c.change(request, folder_);
    const Status status = Prune(request).status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_NE(Message(status).find(c.mention), std::string::npos) << status;
    EXPECT_EQ(Entries(), before);
  }
}

// A small model in F32 with rows that are not whole groups, or with a value that is no number.
class OddModel : public PruneTest {
 protected:
  void Make(uint32_t ffn) {
    ModelToSynthesize model;
    model.path = folder_ / "model";
    model.format = ModelFormat::kSafetensors;
    model.config =
        ChangeShape(
            FindModelShape("135m").value(),
            {.layers = 2, .hidden = 64, .heads = 2, .kv_heads = 2, .ffn = ffn, .vocab = 300, .context = 64})
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
  PruneRequest Of(const SparsityPattern& pattern, const Cut& cut) const {
    PruneRequest request = Request("out");
    request.model = folder_ / "model";
    request.calibration = {.path = folder_ / "rows.jsonl"};
    request.pattern = pattern;
    request.cut = cut;
    return request;
  }
};

TEST_F(OddModel, PatternsNeedWholeGroups) {
  Make(/*ffn=*/66);
  const Status status = Prune(Of(kTwoOfFour, {})).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_NE(Message(status).find("rows of 66"), std::string::npos) << status;
}

// Every other channel of the residual stream is written by nothing.
TEST_F(OddModel, ChannelsOfTheStreamThatNothingUsesGoFirstAndNothingIsLost) {
  Make(/*ffn=*/64);
  constexpr uint32_t kHidden = 64;
  const fs::path path = folder_ / "model";
  std::map<std::string, uint64_t> offsets;
  std::map<std::string, Shape> shapes;
  {
    const ModelFiles files = OpenTestModel(path);
    for (const auto& entry : files.weights->entries()) {
      offsets[entry.name] = entry.offset;
      shapes[entry.name] = files.weights->Find(entry.name)->shape;
    }
  }
  {
    std::fstream file(path / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    const auto clear = [&](const std::string& name, uint64_t element, uint64_t count) {
      file.seekp(static_cast<std::streamoff>(offsets.at(name) + element * sizeof(float)));
      const std::vector<float> zeros(count);
      file.write(reinterpret_cast<const char*>(zeros.data()),
                 static_cast<std::streamsize>(count * sizeof(float)));
    };
    for (const auto& [name, shape] : shapes) {
      const bool is_embedding = name == "model.embed_tokens.weight";
      const bool writes_stream = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
      for (uint64_t row = 0; row < shape[0] && (is_embedding || writes_stream); ++row) {
        for (uint64_t column = 1; column < shape[1] && is_embedding; column += 2)
          clear(name, row * shape[1] + column, 1);
        if (writes_stream && row % 2 == 1) clear(name, row * shape[1], shape[1]);
      }
    }
    ASSERT_TRUE(file.good());
  }
  for (const bool repair : {true, false}) {
    PruneRequest request = Of({}, {.hidden = kHidden / 2});
    request.out += repair ? "-repaired" : "-plain";
    request.repair = repair;
    const PruneReport report = Pruned(request);
    EXPECT_EQ(MeanError(report), 0);
    const Json json = ReportOf(request.out);
    const Json& kept = json["hidden"]["kept"];
    ASSERT_EQ(kept.size(), kHidden / 2);
    for (uint32_t i = 0; i < kept.size(); ++i) EXPECT_EQ(kept[i], 2 * i);
    EXPECT_NEAR(json["hidden"]["final_norm_factor"].get<double>(), std::sqrt(2), 1e-9);

    const ModelFiles before = OpenTestModel(path), after = OpenTestModel(request.out);
    ModelConfig config = before.config;
    config.norm_epsilon /= 2;  // of means over twice the channels
    TestModel reference(config, *before.weights, CpuOps(), 2, 64, KvDType::kF32, ComputeType::kF32),
        pruned(after.config, *after.weights, CpuOps(), 2, 64, KvDType::kF32, ComputeType::kF32);
    const std::vector<int32_t> tokens = {1, 5, 9, 200, 31, 7};
    const auto want = SequenceLogits(reference, tokens), got = SequenceLogits(pruned, tokens);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-3 * (1 + std::abs(want[i]))) << i;
  }
}

TEST_F(OddModel, ValuesThatAreNotFiniteAreTold) {
  Make(/*ffn=*/64);
  uint64_t offset = 0;
  {
    const ModelFiles files = OpenTestModel(folder_ / "model");
    for (const auto& entry : files.weights->entries()) {
      if (entry.name == "model.layers.1.mlp.up_proj.weight") offset = entry.offset;
    }
  }
  std::fstream file(folder_ / "model" / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(offset));
  const float bad = NAN;
  file.write(reinterpret_cast<const char*>(&bad), sizeof(bad));
  file.close();
  for (const PruneRequest& request : {Of(kHalf, {}), Of({}, {.ffn_share = 0.5, .multiple = 8}),
                                      Of({}, {.kv_heads = 1}), Of({}, {.hidden = 32})}) {
    const Status status = Prune(request).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
    EXPECT_EQ(Reason(status), "nonfinite");
    EXPECT_NE(Message(status).find("\"model.layers.1.mlp.up_proj.weight\": row 0"), std::string::npos)
        << status;
    fs::remove_all(folder_ / "out.work");
  }
}

}  // namespace
}  // namespace terrace
