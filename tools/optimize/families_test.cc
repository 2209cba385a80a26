// What the tools do with models of every family (tests/families): the layers that they calibrate with are the
// transformer's, and what is written is the same model but for the rounding of its matrices.
#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"
#include "kernels/quant/weight_values.h"
#include "tools/optimize/layer_runner.h"
#include "tools/optimize/testing_quantize.h"
#include "tools/optimize/testing_states.h"
#include "worker/formats/gguf_config.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

constexpr const char* kFamilies[] = {"llama3", "mistral",       "qwen2",   "qwen3",    "gemma2",
                                     "gemma3", "gemma3_linear", "mixtral", "qwen3_moe"};

std::string FolderOf(const std::string& family) { return "tests/families/data/" + family; }

std::vector<float> LogitsOf(const ModelConfig& config, const WeightSource& weights,
                            const std::vector<int32_t>& tokens) {
  TestModel model(config, weights, CpuOps(), /*threads=*/2, /*blocks=*/64, KvDType::kF32, ComputeType::kF32);
  return SequenceLogits(model, tokens);
}

// What comes out of the last layer, by `runner`'s layers, through the model's norm, output matrix and cap.
std::vector<float> LogitsByLayers(const ModelFiles& files, const std::vector<TokenId>& tokens) {
  ThreadPool pool(2);
  const ModelConfig& config = files.config;
  const std::vector<std::vector<TokenId>> sequences = {tokens};
  const auto runner = LayerRunner::Create(config, sequences, CpuOps(), pool).value();
  const WeightMatrix table =
      MatrixOf(files.weights->Find(TensorName(config, TensorKind::kEmbedding)).value());
  std::vector<float> hidden(tokens.size() * table.columns);
  for (size_t i = 0; i < tokens.size(); ++i)
    DecodeRow(table, static_cast<size_t>(tokens[i]), &hidden[i * table.columns]);
  for (float& value : hidden) value *= config.embedding_scale;
  HiddenStates states = StatesOf(hidden, table.columns);
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    const auto loaded = LoadLayer(config, *files.weights, layer, config.rope_pairing, pool);
    CHECK(loaded.ok(), Message(loaded.status()));
    const Status status = runner->Run(*loaded, states, states, nullptr);
    CHECK(status.ok(), Message(status));
  }
  hidden = ValuesOf(states);
  const auto norm = LoadVector(config, *files.weights, TensorKind::kFinalNorm).value();
  const TensorKind kind = config.tied_embeddings ? TensorKind::kEmbedding : TensorKind::kOutput;
  const WeightMatrix output = MatrixOf(files.weights->Find(TensorName(config, kind)).value());
  std::vector<float> logits(tokens.size() * output.rows);
  const GemmPart part = {ReferenceOps().layout(output, ComputeType::kF32, pool), logits.data()};
  ReferenceOps().gemm({.x = hidden.data(),
                       .norm = norm.data(),
                       .norm_epsilon = config.norm_epsilon,
                       .tokens = tokens.size(),
                       .parts = {&part, 1}},
                      pool);
  if (config.logit_softcap > 0) {
    ReferenceOps().cap_logits({.logits = logits.data(), .count = logits.size(), .cap = config.logit_softcap},
                              pool);
  }
  return logits;
}

TEST(FamiliesOfTools, LayersAreThoseOfTheTransformer) {
  for (const std::string family : kFamilies) {
    for (const std::string& path : {FolderOf(family), FolderOf(family) + "/model.gguf"}) {
      SCOPED_TRACE(path);
      const ModelFiles files = OpenTestModel(path);
      const auto tokens = RandomTokens(60, files.config.vocab_size, /*seed=*/1);
      EXPECT_LT(
          LargestDifference(LogitsByLayers(files, tokens), LogitsOf(files.config, *files.weights, tokens)),
          2e-4);
    }
  }
}

// `before` with the matrices of `after`, which are those of `before`, rounded.
class Rounded : public WeightsInMemory {
 public:
  Rounded(const ModelFiles& before, const ModelFiles& after) : WeightsInMemory("rounded") {
    ThreadPool pool(2);
    for (const TensorRequirement& required : RequiredTensors(before.config)) {
      Entry& entry = entries_.emplace_back();
      entry.name = required.name;
      entry.tensor = before.weights->Find(required.name).value();
      if (IsVector(required.kind)) continue;
      SetFloats(entry.tensor, LoadMatrix(after.config, *after.weights, {required.kind, required.expert},
                                         required.layer, before.config.rope_pairing, pool)
                                  .value()
                                  .values);
    }
  }
};

// Everything but matrices is as it was: then only the order of operations differs, by codes times scales
// instead of floats, on logits of up to some tens. A norm, bias, window, scale or cap that is lost on the way
// moves some logit by 0.25 or more, as tests/families/make_models.py has shown for each of them.
void ExpectOnlyMatricesRounded(const std::string& model, const std::string& out) {
  const ModelFiles before = OpenTestModel(model), after = OpenTestModel(out);
  const auto tokens = RandomTokens(40, before.config.vocab_size, /*seed=*/2);
  const Rounded rounded(before, after);
  EXPECT_LT(LargestDifference(LogitsOf(after.config, *after.weights, tokens),
                              LogitsOf(before.config, rounded, tokens)),
            2e-3);
}

// Of their logits.
double DistanceBetween(const std::string& one, const std::string& other) {
  const ModelFiles a = OpenTestModel(one), b = OpenTestModel(other);
  const auto tokens = RandomTokens(40, a.config.vocab_size, /*seed=*/3);
  return LargestDifference(LogitsOf(a.config, *a.weights, tokens), LogitsOf(b.config, *b.weights, tokens));
}

TEST_F(QuantizeTest, EveryFamilyStaysWhatItIs) {
  const std::string rows = folder_ / "rows.jsonl";  // the models have no chat template
  std::ofstream(rows)
      << R"({"text": "The service desk is open from nine to five; outside of these hours mail is read."})"
      << "\n"
      << R"({"text": "Sort these words, and say how many there are: pear, fig, apple, plum, quince."})"
      << "\n";
  for (const std::string family : kFamilies) {
    double rounding = 0;
    for (const auto& [target, method] : {std::pair("int8", "rtn"), std::pair("int8", "gptq"),
                                         std::pair("int8", "awq"), std::pair("q8_0", "rtn")}) {
      SCOPED_TRACE(testing::Message() << family << " to " << target << " by " << method);
      QuantizeRequest request = Request(target, method, Concat(family, "-", target, "-", method));
      request.model = FolderOf(family);
      request.calibration.path = method == std::string("rtn") ? "" : rows;
      const auto report = Quantize(request);
      const bool has_experts = OpenTestModel(request.model).config.experts > 0;
      // The rows of down of gemma3 and of experts are not whole blocks; and a file cannot say how
      // gemma3_linear scales scores.
      if ((family.starts_with("gemma3") || has_experts) && request.target.is_gguf()) {
        EXPECT_EQ(report.status().code(), StatusCode::kInvalidArgument);
        continue;
      }
      ASSERT_TRUE(report.ok()) << report.status();
      const double moved = DistanceBetween(request.model, request.out);
      if (method == std::string("awq")) {
        EXPECT_LT(moved, 3 * rounding);  // norms take up the scales of channels
      } else {
        rounding = moved;
        ExpectOnlyMatricesRounded(request.model, request.out);
      }
    }
  }
}

// What a family has unless its file says otherwise: a model without goes through GGUF and stays without.
TEST(FamiliesOfTools, GgufConfigsSayWhatIsNot) {
  ModelConfig config = OpenTestModel(FolderOf("gemma2")).config;
  config.attention_softcap = config.logit_softcap = 0;
  config.windows.clear();
  const std::string path = testing::TempDir() + "without.gguf";
  const auto written = AsGgufConfig(config);
  ASSERT_TRUE(written.ok()) << written.status();
  const auto value = [&](const std::string& name) {
    for (const GgufKey& key : GgufConfigKeys(*written)) {
      if (key.name == name) return key.value.bytes;
    }
    return std::string("absent");
  };
  for (const char* key :
       {"gemma2.attn_logit_softcapping", "gemma2.final_logit_softcapping", "gemma2.attention.sliding_window"})
    EXPECT_EQ(value(key), std::string(4, '\0')) << key;
}

// And back, to a folder: from a file whose windows, norms and RoPE are said in other words.
TEST_F(QuantizeTest, EveryFamilyComesBackFromGguf) {
  for (const std::string family : kFamilies) {
    SCOPED_TRACE(family);
    QuantizeRequest request = Request("int8", "rtn", family);
    request.model = FolderOf(family) + "/model.gguf";
    request.calibration.path = "";
    const auto report = Quantize(request);
    ASSERT_TRUE(report.ok()) << report.status();
    ExpectOnlyMatricesRounded(request.model, request.out);
  }
}

}  // namespace
}  // namespace terrace
