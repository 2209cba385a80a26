// The transformer of the CUDA device against the CPU's, on the demo models and on random ones of every
// format.
#include "worker/cuda/cuda_transformer.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/gemm/stream_gemm_cuda.h"
#include "kernels/quant/e4m3_row.h"
#include "kernels/quant/weight_values.h"
#include "kernels/scalar_convert.h"
#include "tools/optimize/prune.h"
#include "tools/optimize/quantize.h"
#include "tools/optimize/synthesize.h"
#include "tools/optimize/synthetic_text.h"
#include "worker/model/found_tensors.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

constexpr uint32_t kBlocks = 64, kBlockTokens = 16;

// What 16-bit weights become that are 2:4.
GpuFormat TwoOfFourFormat() { return StreamGemmHasSparse() ? GpuFormat::kSparse : GpuFormat::kBF16; }

struct DeviceTransformer {
  DeviceTransformer(const ModelConfig& config, const WeightSource& source, bool is_invariant,
                    KvDType kv_dtype = KvDType::kBF16, const std::string& compute = "auto") {
    ThreadPool pool(2);
    auto loaded = LoadCudaWeights({.config = &config,
                                   .weights = &source,
                                   .pool = &pool,
                                   .compute = compute,
                                   .is_invariant = is_invariant});
    CHECK(loaded.ok(), Message(loaded.status()));
    weights = *std::move(loaded);
    const KvShape shape{.layers = config.layers,
                        .kv_heads = config.kv_heads,
                        .head_dim = config.head_dim,
                        .block_tokens = kBlockTokens,
                        .blocks = kBlocks,
                        .dtype = kv_dtype,
                        .host_blocks = 4};
    auto made = CudaTransformer::Create(
        config, weights, shape,
        {.max_sequences = 32, .max_step_tokens = 1024, .context_length = config.context_length},
        is_invariant);
    CHECK(made.ok(), Message(made.status()));
    transformer = *std::move(made);
  }

  std::vector<float> Logits(const Batch& batch) {
    size_t rows = 0;
    for (const BatchSequence& sequence : batch.sequences) rows += sequence.logits;
    const Status queued = transformer->Forward(batch);
    CHECK(queued.ok(), Message(queued));
    auto logits = transformer->Logits(rows);
    CHECK(logits.ok(), Message(logits.status()));
    return *std::move(logits);
  }

  std::vector<GpuSampleResult> Greedy(const Batch& batch) { return Choose(batch, {}); }

  // All rows alike.
  std::vector<GpuSampleResult> Choose(const Batch& batch, const GpuSampleRow& params) {
    size_t rows = 0;
    for (const BatchSequence& sequence : batch.sequences) rows += sequence.logits;
    const std::vector<GpuSampleRow> choices(rows, params);
    const CudaTransformer::Choice choice{.rows = choices, .adjustments = {}};
    const Status queued = transformer->Forward(batch, &choice);
    CHECK(queued.ok(), Message(queued));
    auto results = transformer->Results();
    CHECK(results.ok(), Message(results.status()));
    return {results->begin(), results->end()};
  }

  CudaWeights weights;
  std::unique_ptr<CudaTransformer> transformer;  // borrows the weights
};

std::vector<BlockId> BlocksFrom(BlockId first, size_t count) {
  std::vector<BlockId> blocks(count);
  std::iota(blocks.begin(), blocks.end(), first);
  return blocks;
}

struct Distance {
  double worst_logprob = 0;  // of the CPU's best token
  size_t positions = 0, same_best = 0;
};

void Add(Distance& distance, std::span<const float> want, std::span<const float> got, size_t vocab) {
  for (size_t i = 0; i < want.size(); i += vocab) {
    const auto want_row = Logprobs(want.subspan(i, vocab)), got_row = Logprobs(got.subspan(i, vocab));
    const auto best = std::max_element(want_row.begin(), want_row.end()) - want_row.begin();
    const auto got_best = std::max_element(got_row.begin(), got_row.end()) - got_row.begin();
    distance.worst_logprob = std::max(distance.worst_logprob, std::abs(got_row[static_cast<size_t>(best)] -
                                                                       want_row[static_cast<size_t>(best)]));
    distance.same_best += got_best == best ? 1 : 0;
    ++distance.positions;
  }
}

class DemoModels : public testing::TestWithParam<const char*> {};

// Golden rows of `golden` by the model `files`, on the CPU and on the device in both modes. golden_test.cc:
// one source of bf16 rounding moves a log-probability by up to 40 * 2^-8. Here are three: products and what
// goes between them, keys and values, weights.
constexpr double kBF16Sources = 3;
void ExpectLogitsFollowTheCpu(const std::string& name, const ModelFiles& files, const char* golden,
                              double sources, double least_same) {
  TestModel cpu(files.config, *files.weights, CpuOps(), 2, kBlocks, KvDType::kF32, ComputeType::kF32);
  const std::vector<BlockId> blocks = BlocksFrom(3, 40);
  for (const bool is_invariant : {false, true}) {
    DeviceTransformer device(files.config, *files.weights, is_invariant);
    Distance distance;
    for (const GoldenRow& row : GoldenRows(golden)) {
      std::vector<int32_t> tokens = row.prompt;
      tokens.insert(tokens.end(), row.answer.begin(), row.answer.end());
      const std::vector<float> want = SequenceLogits(cpu, tokens);
      const std::vector<float> got = device.Logits(
          {.sequences = {
               {.tokens = tokens, .blocks = blocks, .logits = static_cast<uint32_t>(tokens.size())}}});
      ASSERT_EQ(got.size(), want.size());
      Add(distance, want, got, files.config.vocab_size);
    }
    std::printf("%s%s: worst logprob %.4f, same best %zu of %zu\n", name.c_str(),
                is_invariant ? " invariant" : "", distance.worst_logprob, distance.same_best,
                distance.positions);
    EXPECT_LT(distance.worst_logprob, sources * 40 * 0x1p-8);
    EXPECT_GT(static_cast<double>(distance.same_best), least_same * static_cast<double>(distance.positions));
  }
}

TEST_P(DemoModels, LogitsFollowTheCpu) {
  ExpectLogitsFollowTheCpu(GetParam(), OpenTestModel(DemoFolder(GetParam())), GetParam(), kBF16Sources, 0.98);
}

// Prefill, then token by token as graphs: the golden answer, unless the CPU's two best were within the bound
// above.
TEST_P(DemoModels, GreedyAnswersAsGraphs) {
  const ModelFiles files = OpenTestModel(DemoFolder(GetParam()));
  DeviceTransformer device(files.config, *files.weights, false);
  size_t same = 0, all = 0;
  for (const GoldenRow& row : GoldenRows(GetParam())) {
    const std::vector<BlockId> blocks = BlocksFrom(0, 40);
    std::vector<int32_t> part = row.prompt;
    uint32_t position = 0;
    bool follows = true;
    for (size_t i = 0; i < row.answer.size() && follows; ++i) {
      const auto chosen = device.Greedy(
          {.sequences = {{.tokens = part, .first_position = position, .blocks = blocks, .logits = 1}}});
      position += static_cast<uint32_t>(part.size());
      part = {chosen[0].token};
      follows = chosen[0].token == row.answer[i];
    }
    same += follows ? 1 : 0;
    ++all;
  }
  std::printf("%s: %zu of %zu golden answers\n", GetParam(), same, all);
  EXPECT_GT(static_cast<double>(same), 0.9 * static_cast<double>(all));
}

INSTANTIATE_TEST_SUITE_P(All, DemoModels, testing::ValuesIn(kDemoModels),
                         [](const testing::TestParamInfo<const char*>& p) {
                           std::string name = p.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// sqrt(sum (want - got)^2 / sum want^2)
double RelativeDistance(std::span<const float> want, std::span<const float> got) {
  CHECK(want.size() == got.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (want[i] - got[i]) * (want[i] - got[i]);
    size += want[i] * want[i];
  }
  return std::sqrt(difference / size);
}

constexpr const char *kNano = "terrace-demo-nano", *kBase = "terrace-demo-base";

// An empty folder, removed in the end.
struct Folder {
  explicit Folder(const std::string& name) : path(testing::TempDir() + name) {
    std::filesystem::remove_all(path);
    std::filesystem::create_directory(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  const std::string path;
};

ModelConfig SmallMixture(uint32_t vocab_size) {
  ModelConfig config = RandomModel::SmallConfig(vocab_size);
  config.family = "mixtral";
  config.experts = 8;
  config.experts_per_token = 2;
  config.normalizes_experts = true;
  return config;
}

// Token by token, as a router may take another expert than the reference's where two are as near as bf16
// rounds activations: of random models' tokens about one in a hundred in each layer. Such a token is off by
// some tenths, the others by what rounding does; what is multiplied by wrong experts is off everywhere.
void ExpectExpertsFollow(std::span<const float> want, std::span<const float> got, size_t vocab,
                         double bound) {
  ASSERT_EQ(want.size(), got.size());
  const size_t tokens = want.size() / vocab;
  std::vector<double> distances;
  for (size_t i = 0; i < tokens; ++i)
    distances.push_back(RelativeDistance(want.subspan(i * vocab, vocab), got.subspan(i * vocab, vocab)));
  std::ranges::sort(distances);
  EXPECT_LT(distances[tokens / 2], bound) << tokens << " tokens";
  const auto far = std::ranges::count_if(distances, [&](double each) { return each > 2 * bound; });
  EXPECT_LE(static_cast<size_t>(far), 1 + tokens / 20)
      << tokens << " tokens, the furthest " << distances.back();
}

// What files of `terrace quantize` say, read by both: weights are the same on either side but for scales that
// are rounded to f16 (2^-11), so the bound is that of the model that they were made of.
TEST(RewrittenModels, QuantizedOnesFollowTheCpu) {
  for (const QuantizeTarget& target : kQuantizeTargets) {
    SCOPED_TRACE(target.name);
    // Nano's rows are of 64: no group of 128, and Q5_0 and Q8_0 where blocks are of 256. Base's are of 256.
    const bool is_wide = target.group > 64 || target.dtype == DType::kQ4_K || target.dtype == DType::kQ6_K;
    const char* const model = is_wide ? kBase : kNano;
    const Folder folder("quantized_model");
    QuantizeRequest request;
    request.model = DemoFolder(model);
    request.out = folder.path + "/model";
    request.target = target;
    request.method = kQuantizeMethods[0];  // rtn: no calibration
    request.threads = 2;
    const auto report = Quantize(request);
    ASSERT_TRUE(report.ok()) << Message(report.status());
    // Long prompts multiply INT8 by int8 activations, off by up to 2^-8 of their row's largest, which is some
    // three times the others' size: six times as much as bf16 is.
    const bool is_int8 = target.dtype == DType::kInt8;
    ExpectLogitsFollowTheCpu(Concat(model, " ", target.name), OpenTestModel(request.out), model,
                             kBF16Sources + (is_int8 ? 6 : 0), is_int8 ? 0.9 : 0.95);
  }
}

// Writes what `terrace prune --pattern 2:4` makes of a model.
ModelFiles TwoOfFour(const std::string& model, const std::string& out) {
  PruneRequest request;
  request.model = model;
  request.out = out;
  request.method = kPruneMethods[1];  // magnitude: no calibration
  request.pattern = {.kept = kPrunePatterns[0].kept, .of = kPrunePatterns[0].of};
  request.threads = 2;
  const auto report = Prune(request);
  CHECK(report.ok(), Message(report.status()));
  return OpenTestModel(out);
}

// It stays 2:4 on the device.
TEST(RewrittenModels, TwoOfFourFollowsTheCpu) {
  const Folder folder("pruned_model");
  const ModelFiles files = TwoOfFour(DemoFolder(kNano), folder.path + "/model");
  const DeviceTransformer device(files.config, *files.weights, false);
  for (const CudaLayer& layer : device.weights.layers) {
    for (const GpuMatrix& matrix : {layer.qkv, layer.output, layer.gate_up, layer.down}) {
      EXPECT_EQ(matrix.format, TwoOfFourFormat());
    }
  }
  ExpectLogitsFollowTheCpu("nano 2:4", files, kNano, kBF16Sources,
                           0.9);  // it is less sure: more tokens are near the best
}

TEST(RewrittenModels, TwoOfFourExpertsFollowTheCpu) {
  const Folder folder("pruned_mixture");
  ModelToSynthesize mixture;
  mixture.path = folder.path + "/mixture";
  mixture.config = SmallMixture(/*vocab_size=*/300);
  mixture.dtype = DType::kBF16;
  mixture.text = ByteLevelText();
  mixture.threads = 2;
  const auto written = Synthesize(mixture);
  ASSERT_TRUE(written.ok()) << Message(written.status());
  const ModelFiles files = TwoOfFour(mixture.path, folder.path + "/pruned");
  DeviceTransformer device(files.config, *files.weights, false);
  for (const CudaLayer& layer : device.weights.layers) {
    for (const GpuMatrix& matrix : {layer.qkv, layer.output, layer.gate_up, layer.down}) {
      EXPECT_EQ(matrix.format, TwoOfFourFormat());
    }
  }
  TestModel cpu(files.config, *files.weights, CpuOps(), 2, kBlocks, KvDType::kF32, ComputeType::kF32);
  const std::vector<BlockId> blocks = BlocksFrom(1, 20);
  for (const uint32_t count : {5u, 90u, 300u}) {  // experts of one token, of some, of a wide chunk
    const std::vector<int32_t> tokens = RandomTokens(count, 300, count);
    ExpectExpertsFollow(SequenceLogits(cpu, tokens),
                        device.Logits({.sequences = {{.tokens = tokens, .blocks = blocks, .logits = count}}}),
                        300, 0.03);
  }
}

// A model whose matrices of layers are what FP8 E4M3 makes of them.
class E4M3Model : public WeightsInMemory {
 public:
  E4M3Model(const ModelConfig& config, const WeightSource& of) : WeightsInMemory("e4m3") {
    const auto found = FindTensors(config, of);
    CHECK(found.ok(), Message(found.status()));
    for (const auto& [required, tensor] : *found) {
      entries_.push_back({.name = required.name, .tensor = tensor, .offset = 0, .file = ""});
      if (IsPerLayer(required.kind) && !IsNorm(required.kind)) Round(entries_.back().tensor);
    }
  }

 private:
  void Round(TensorView& tensor) {
    const WeightMatrix matrix = MatrixOf(tensor);
    std::vector<float> values(matrix.rows * matrix.columns);
    std::vector<uint8_t> codes(matrix.columns);
    for (size_t row = 0; row < matrix.rows; ++row) {
      const std::span<float> out = std::span(values).subspan(row * matrix.columns, matrix.columns);
      DecodeRow(matrix, row, out.data());
      const float scale = QuantizeE4M3(out, codes.data());
      for (size_t i = 0; i < out.size(); ++i) out[i] = scale * FloatFromE4M3(codes[i]);
    }
    SetFloats(tensor, std::move(values));
  }
};

// Beside bf16, which moves logits by 0.03 of their size (below), activations of large batches are rounded to
// E4M3, each as its weight was: that moves logits about as far again as rounding the weights did.
TEST(RewrittenModels, Fp8FollowsTheCpuWithWeightsInFp8) {
  const ModelFiles files = OpenTestModel(DemoFolder(kNano));
  const E4M3Model rounded(files.config, *files.weights);
  TestModel exact(files.config, *files.weights, CpuOps(), 2, kBlocks, KvDType::kF32, ComputeType::kF32),
      cpu(files.config, rounded, CpuOps(), 2, kBlocks, KvDType::kF32, ComputeType::kF32);
  DeviceTransformer device(files.config, *files.weights, false, KvDType::kBF16, "fp8");
  const std::vector<BlockId> blocks = BlocksFrom(3, 40);
  double worst = 0, worst_bound = 0;
  for (const GoldenRow& row : GoldenRows(kNano)) {
    std::vector<int32_t> tokens = row.prompt;
    tokens.insert(tokens.end(), row.answer.begin(), row.answer.end());
    const std::vector<float> want = SequenceLogits(cpu, tokens);
    const double of_weights = RelativeDistance(SequenceLogits(exact, tokens), want);
    const std::vector<float> got = device.Logits(
        {.sequences = {
             {.tokens = tokens, .blocks = blocks, .logits = static_cast<uint32_t>(tokens.size())}}});
    const double distance = RelativeDistance(want, got), bound = 0.03 + 3 * of_weights;
    EXPECT_LT(distance, bound) << tokens.size() << " tokens";
    if (distance > worst) worst = distance, worst_bound = bound;
  }
  std::printf("nano fp8: at most %.4f of the logits' size, bound %.4f\n", worst, worst_bound);
}

// Random weights: logits of about 1. An activation is rounded to bf16 some ten times a layer, 2^-9 each;
// through two layers and the output that adds up to a few hundredths of a logit's size.
TEST(RandomModels, EveryFormatFollowsTheReference) {
  for (const DTypeInfo& info : kDTypes) {
    SCOPED_TRACE(info.name);
    const RandomModel model(info.dtype, 7, RandomModel::SmallConfig(/*vocab_size=*/112));
    TestModel cpu(model.config, model, ReferenceOps(), 2, kBlocks, KvDType::kF32, ComputeType::kF32);
    const std::vector<BlockId> blocks = BlocksFrom(1, 20);
    for (const size_t count : {size_t{1}, size_t{5}, size_t{300}}) {  // decode, decode, prefill
      const std::vector<int32_t> tokens = RandomTokens(count, 112, count);
      const std::vector<float> want = SequenceLogits(cpu, tokens);
      DeviceTransformer device(model.config, model, false);
      const std::vector<float> got = device.Logits(
          {.sequences = {{.tokens = tokens, .blocks = blocks, .logits = static_cast<uint32_t>(count)}}});
      // Of INT8 activations are int8 there: off by a third of 2^-7 of the largest, three times their size.
      const bool is_int8 = info.dtype == DType::kInt8 && count > 64;
      EXPECT_LT(RelativeDistance(want, got), is_int8 ? 0.06 : 0.03) << count << " tokens";
    }
  }
}

void ExpectFollows(const ModelConfig& config, std::span<const float> want, std::span<const float> got) {
  if (config.experts > 0) return ExpectExpertsFollow(want, got, 112, 0.03);
  EXPECT_LT(RelativeDistance(want, got), 0.03) << want.size() / 112 << " tokens";
}

TEST(RandomModels, ExpertsOfEveryFormatFollowTheReference) {
  const ModelConfig config = SmallMixture(112);
  for (const DTypeInfo& info : kDTypes) {
    SCOPED_TRACE(info.name);
    const RandomModel model(info.dtype, 7, config);
    TestModel cpu(model.config, model, ReferenceOps(), 2, kBlocks, KvDType::kF32, ComputeType::kF32);
    DeviceTransformer device(model.config, model, false);
    const std::vector<BlockId> blocks = BlocksFrom(1, 20);
    for (const uint32_t count : {5u, 16u, 90u, 300u}) {  // one to many tokens of an expert
      const std::vector<int32_t> tokens = RandomTokens(count, 112, count);
      // Products of INT8 with activations of 8 bits: see above.
      const double bound = info.dtype == DType::kInt8 && count > 64 ? 0.06 : 0.03;
      ExpectExpertsFollow(
          SequenceLogits(cpu, tokens),
          device.Logits({.sequences = {{.tokens = tokens, .blocks = blocks, .logits = count}}}), 112, bound);
    }
  }
}

// Small models of other families, and of Llama's and Gemma's with heads of 256.
std::vector<ModelConfig> OtherFamilies() {
  std::vector<ModelConfig> configs = WithSwitches(RandomModel::SmallConfig(112));
  ModelConfig llama = RandomModel::SmallConfig(112);
  ModelConfig gemma = *std::ranges::find(configs, "gemma3_text", &ModelConfig::family);
  llama.head_dim = gemma.head_dim = 256;
  gemma.attention_scale /= 2;  // products of four times the elements
  configs.insert(configs.end(), {llama, gemma});
  return configs;
}

// Biases, norms of heads and of sublayers, windows, caps, GELU, scales: each moves logits by far more than
// rounding does (tests/families/make_models.py). Prompts longer than a window and than a span of attention,
// then token by token behind one; every shape twice, as kernels are timed when it comes again.
TEST(RandomModels, WhatOtherFamiliesHaveFollowsTheReference) {
  for (const ModelConfig& config : OtherFamilies()) {
    SCOPED_TRACE(testing::Message() << config.family << ", heads of " << config.head_dim);
    const RandomModel model(DType::kBF16, 14, config);
    TestModel cpu(model.config, model, ReferenceOps(), 2, kBlocks, KvDType::kF32, ComputeType::kF32);
    DeviceTransformer device(model.config, model, false);
    const std::vector<BlockId> blocks = BlocksFrom(1, 20);
    for (const uint32_t count : {1u, 5u, 40u, 300u}) {
      const std::vector<int32_t> tokens = RandomTokens(count, 112, count);
      const std::vector<float> want = SequenceLogits(cpu, tokens);
      for (const bool again : {false, true}) {
        const std::vector<float> got =
            device.Logits({.sequences = {{.tokens = tokens, .blocks = blocks, .logits = count}}});
        SCOPED_TRACE(testing::Message() << count << " tokens" << (again ? ", again" : ""));
        ExpectFollows(config, want, got);
      }
    }
    const std::vector<int32_t> tokens = RandomTokens(60, 112, /*seed=*/15);
    const std::span<const int32_t> all = tokens;
    std::vector<float> got =
        device.Logits({.sequences = {{.tokens = all.first(40), .blocks = blocks, .logits = 40}}});
    for (uint32_t i = 40; i < all.size(); ++i) {
      const std::vector<float> next = device.Logits(
          {.sequences = {{.tokens = all.subspan(i, 1), .first_position = i, .blocks = blocks, .logits = 1}}});
      got.insert(got.end(), next.begin(), next.end());
    }
    ExpectFollows(config, SequenceLogits(cpu, tokens), got);
  }
}

// The output matrix, or the embedding that is one, has zeros up to a whole tile, which are no logits: of a
// prompt, of token by token, of more rows than are made at a time. Greedy tokens are the reference's wherever
// its best leads by more than rounding moves.
TEST(RandomModels, VocabulariesThatFillNoTileFollowTheReference) {
  constexpr uint32_t kVocab = 1003, kCount = 300, kSteps = 32;
  constexpr float kLead = 0.3f;
  for (const DTypeInfo& info : kDTypes) {
    for (const bool is_tied : {false, true}) {
      SCOPED_TRACE(testing::Message() << info.name << (is_tied ? ", tied" : ""));
      ModelConfig config = RandomModel::SmallConfig(kVocab);
      config.tied_embeddings = is_tied;
      const RandomModel model(info.dtype, 16, config);
      TestModel cpu(model.config, model, ReferenceOps(), 2, kBlocks, KvDType::kF32, ComputeType::kF32);
      DeviceTransformer device(model.config, model, false);
      EXPECT_EQ(device.weights.head.rows, 1008u);
      const std::vector<BlockId> blocks = BlocksFrom(1, 20), others = BlocksFrom(30, 20);
      const std::vector<int32_t> tokens = RandomTokens(kCount, kVocab, 17);
      const std::vector<float> want = SequenceLogits(cpu, tokens);
      const double bound = info.dtype == DType::kInt8 ? 0.06 : 0.03;  // see EveryFormatFollowsTheReference
      const BatchSequence prompt{.tokens = tokens, .blocks = blocks, .logits = kCount};
      BatchSequence beside = prompt;
      beside.blocks = others;
      EXPECT_LT(RelativeDistance(want, device.Logits({.sequences = {prompt}})), bound);
      const std::vector<float> twice = device.Logits({.sequences = {prompt, beside}});
      ASSERT_EQ(twice.size(), 2 * want.size());
      EXPECT_LT(RelativeDistance(want, std::span(twice).first(want.size())), bound);
      EXPECT_LT(RelativeDistance(want, std::span(twice).last(want.size())), bound);
      size_t sure = 0;
      for (uint32_t i = 0; i < kSteps; ++i) {
        const auto chosen = device.Greedy({.sequences = {{.tokens = std::span(tokens).subspan(i, 1),
                                                          .first_position = i,
                                                          .blocks = blocks,
                                                          .logits = 1}}});
        std::vector<float> row(want.begin() + i * kVocab, want.begin() + (i + 1) * kVocab);
        const auto best = std::ranges::max_element(row) - row.begin();
        const float largest = std::exchange(row[static_cast<size_t>(best)], row[best == 0 ? 1 : 0]);
        if (largest - std::ranges::max(row) < kLead) continue;
        EXPECT_EQ(chosen[0].token, best) << "position " << i;
        ++sure;
      }
      EXPECT_GT(sure, kSteps / 10);
    }
  }
}

// A model whose rows of the output matrix are near each other: about each second position has logits that are
// all below 0, which is what rows of zeros make.
class AlikeTokensModel : public WeightsInMemory {
 public:
  AlikeTokensModel(const ModelConfig& config, const WeightSource& of) : WeightsInMemory("alike tokens") {
    const auto found = FindTensors(config, of);
    CHECK(found.ok(), Message(found.status()));
    for (const auto& [required, tensor] : *found) {
      entries_.push_back({.name = required.name, .tensor = tensor, .offset = 0, .file = ""});
      if (required.kind == TensorKind::kOutput) MakeAlike(entries_.back().tensor);
    }
  }

 private:
  void MakeAlike(TensorView& tensor) {
    const WeightMatrix matrix = MatrixOf(tensor);
    std::vector<float> values(matrix.rows * matrix.columns);
    for (size_t row = 0; row < matrix.rows; ++row) DecodeRow(matrix, row, &values[row * matrix.columns]);
    for (size_t i = values.size(); i-- > matrix.columns;)
      values[i] = values[i % matrix.columns] + 0.05f * values[i];
    SetFloats(tensor, std::move(values));
  }
};

TEST(Graphs, NothingBehindTheVocabularyIsChosenNorCounted) {
  constexpr uint32_t kVocab = 113, kCount = 40;
  ModelConfig config = RandomModel::SmallConfig(kVocab);
  config.tied_embeddings = false;
  const RandomModel original(DType::kBF16, 18, config);
  const AlikeTokensModel model(config, original);
  DeviceTransformer device(config, model, /*is_invariant=*/true);
  const std::vector<BlockId> blocks = BlocksFrom(0, 3);
  const std::vector<int32_t> tokens = RandomTokens(kCount, kVocab, 19);
  size_t below_zero = 0;
  for (uint32_t i = 0; i < kCount; ++i) {
    SCOPED_TRACE(testing::Message() << "position " << i);
    const Batch step{
        .sequences = {
            {.tokens = std::span(tokens).subspan(i, 1), .first_position = i, .blocks = blocks, .logits = 1}}};
    const std::vector<float> logits = device.Logits(step);
    ASSERT_EQ(logits.size(), kVocab);
    const std::vector<double> logprobs = Logprobs(logits);
    const auto best = std::ranges::max_element(logits) - logits.begin();
    below_zero += logits[static_cast<size_t>(best)] < 0 ? 1 : 0;
    const GpuSampleResult greedy = device.Greedy(step)[0];
    EXPECT_EQ(greedy.token, best);
    EXPECT_NEAR(greedy.logprob, logprobs[static_cast<size_t>(best)], 1e-4);
    for (const double uniform : {0.0, 0.5, 1 - 0x1p-53}) {
      const GpuSampleResult drawn =
          device.Choose(step, {.temperature = 1, .uniform = uniform, .top = kGpuMostTop})[0];
      ASSERT_TRUE(drawn.token >= 0 && drawn.token < static_cast<int32_t>(kVocab)) << drawn.token;
      EXPECT_NEAR(drawn.logprob, logprobs[static_cast<size_t>(drawn.token)], 1e-4);
      for (uint32_t rank = 0; rank < kGpuMostTop; ++rank) {
        const int32_t token = drawn.top_tokens[rank];
        ASSERT_TRUE(token >= 0 && token < static_cast<int32_t>(kVocab)) << token;
        EXPECT_NEAR(drawn.top_logprobs[rank], logprobs[static_cast<size_t>(token)], 1e-4);
      }
    }
  }
  EXPECT_GT(below_zero, kCount / 5);
}

TEST(RandomModels, SmallerKvAndFp8FollowToo) {
  const RandomModel model(DType::kBF16, 8, RandomModel::SmallConfig(112));
  TestModel cpu(model.config, model, ReferenceOps(), 2, kBlocks, KvDType::kF32, ComputeType::kF32);
  const std::vector<BlockId> blocks = BlocksFrom(1, 20);
  struct Case {
    KvDType kv;
    const char* compute;
    double bound;  // E4M3 rounds a weight by up to 2^-4, at random: about 2^-5.5 of a product's size, seven a
                   // layer; a key and a value likewise, which moves logits by 0.056 on the CPU
  };
  for (const Case& each : {Case{KvDType::kF16, "auto", 0.03}, Case{KvDType::kInt8, "auto", 0.05},
                           Case{KvDType::kFp8, "auto", 0.12}, Case{KvDType::kBF16, "fp8", 0.2}}) {
    SCOPED_TRACE(testing::Message() << KvDTypeName(each.kv) << " " << each.compute);
    DeviceTransformer device(model.config, model, false, each.kv, each.compute);
    for (const size_t count : {size_t{7}, size_t{200}, size_t{256}}) {
      const std::vector<int32_t> tokens = RandomTokens(count, 112, count);
      const std::vector<float> want = SequenceLogits(cpu, tokens);
      // When a shape comes again its products are timed, and norms and gates write FP8 for them.
      for (int step = 0; step < 3; ++step) {
        const std::vector<float> got = device.Logits(
            {.sequences = {{.tokens = tokens, .blocks = blocks, .logits = static_cast<uint32_t>(count)}}});
        const double distance = RelativeDistance(want, got);
        std::printf("%s %s, %zu tokens, step %d: %.4f\n", std::string(KvDTypeName(each.kv)).c_str(),
                    each.compute, count, step, distance);
        EXPECT_LT(distance, each.bound);
      }
    }
  }
}

// Same bits: a position's logits, whatever the batch around it, the chunks, the blocks, graph or not.
void ExpectABatchChangesNoBit(const ModelConfig& config, const WeightSource& model,
                              const std::string& compute = "auto",
                              std::optional<GpuFormat> format = std::nullopt) {
  DeviceTransformer device(config, model, /*is_invariant=*/true, KvDType::kBF16, compute);
  if (format.has_value()) {
    EXPECT_EQ(device.weights.layers[0].gate_up.format, *format);
  }
  const std::vector<int32_t> tokens = RandomTokens(150, 112, 1), others = RandomTokens(90, 112, 2);
  const std::vector<BlockId> blocks = BlocksFrom(0, 10), other_blocks = BlocksFrom(20, 10);
  const std::vector<float> whole =
      device.Logits({.sequences = {{.tokens = tokens, .blocks = blocks, .logits = 150}}});
  // In chunks, with another sequence beside it, before or behind.
  const std::vector<BlockId> again = BlocksFrom(40, 10);
  std::vector<float> parts;
  uint32_t at = 0, other_at = 0;
  for (const uint32_t count : {1u, 16u, 3u, 60u, 69u, 1u}) {
    const BatchSequence mine{.tokens = std::span(tokens).subspan(at, count),
                             .first_position = at,
                             .blocks = again,
                             .logits = count};
    const uint32_t other = std::min<uint32_t>(15, 90 - other_at);
    const BatchSequence beside{.tokens = std::span(others).subspan(other_at, other),
                               .first_position = other_at,
                               .blocks = other_blocks,
                               .logits = 0};
    const Batch batch = at % 2 == 0 ? Batch{{mine, beside}} : Batch{{beside, mine}};
    const std::vector<float> part = device.Logits(batch);
    parts.insert(parts.end(), part.begin(), part.end());
    at += count;
    other_at += other;
  }
  ASSERT_EQ(parts.size(), whole.size());
  size_t differ = 0;
  for (size_t i = 0; i < whole.size(); ++i) differ += whole[i] != parts[i] ? 1 : 0;
  EXPECT_EQ(differ, 0u);
}

TEST(Invariant, ABatchChangesNoBit) {
  for (const DType dtype : {DType::kBF16, DType::kQ4_0, DType::kQ8_0, DType::kInt8}) {
    SCOPED_TRACE(Info(dtype).name);
    const RandomModel model(dtype, 9, RandomModel::SmallConfig(112));
    ExpectABatchChangesNoBit(model.config, model);
  }
  for (const ModelConfig& config : OtherFamilies()) {
    SCOPED_TRACE(testing::Message() << config.family << ", heads of " << config.head_dim);
    const RandomModel model(DType::kBF16, 9, config);
    ExpectABatchChangesNoBit(model.config, model);
  }
}

TEST(Invariant, ABatchChangesNoBitOfFp8) {
  const RandomModel model(DType::kBF16, 9, RandomModel::SmallConfig(112));
  ExpectABatchChangesNoBit(model.config, model, "fp8", GpuFormat::kE4M3);
}

TEST(Invariant, ABatchChangesNoBitOfTwoOfFour) {
  const Folder folder("pruned_invariant");
  const ModelFiles files = TwoOfFour(DemoFolder(kNano), folder.path + "/model");
  ExpectABatchChangesNoBit(files.config, *files.weights, "auto", TwoOfFourFormat());
}

// One token of each sequence, whose keys and values attention makes, or several, as drafts are: the same
// bits.
TEST(Invariant, OneTokenAStepOrManyAreTheSameBits) {
  for (const KvDType dtype : {KvDType::kBF16, KvDType::kF16, KvDType::kInt8, KvDType::kFp8}) {
    SCOPED_TRACE(KvDTypeName(dtype));
    const RandomModel model(DType::kBF16, 12, RandomModel::SmallConfig(112));
    DeviceTransformer device(model.config, model, /*is_invariant=*/true, dtype);
    const std::vector<int32_t> tokens = RandomTokens(270, 112, 1), others = RandomTokens(270, 112, 2);
    const std::vector<BlockId> blocks = BlocksFrom(0, 17), again = BlocksFrom(20, 17),
                               other_blocks = BlocksFrom(40, 17);
    const auto whole = device.Logits({.sequences = {{.tokens = tokens, .blocks = blocks, .logits = 270}}});
    // All but some; then one by one beside another sequence, and five at a time in turns.
    std::vector<float> parts;
    uint32_t at = 0;
    for (const uint32_t count : {250u, 1u, 1u, 5u, 1u, 5u, 5u, 1u, 1u}) {
      const auto part = [&](const std::vector<int32_t>& of, const std::vector<BlockId>& where) {
        return BatchSequence{.tokens = std::span(of).subspan(at, count),
                             .first_position = at,
                             .blocks = where,
                             .logits = count};
      };
      const std::vector<float> logits =
          device.Logits({.sequences = {part(others, other_blocks), part(tokens, again)}});
      parts.insert(parts.end(), logits.begin() + static_cast<ptrdiff_t>(logits.size() / 2), logits.end());
      at += count;
    }
    ASSERT_EQ(at, 270u);
    ASSERT_EQ(parts.size(), whole.size());
    size_t differ = 0;
    for (size_t i = 0; i < whole.size(); ++i) differ += whole[i] != parts[i] ? 1 : 0;
    EXPECT_EQ(differ, 0u);
  }
}

// A step that decodes sequences and reads a prompt: some tokens' keys are attention's to make, the others'
// those of RoPE's kernel.
TEST(RandomModels, APromptBesideDecodesChangesNeither) {
  const RandomModel model(DType::kBF16, 13, RandomModel::SmallConfig(112));
  DeviceTransformer device(model.config, model, false);
  const std::vector<int32_t> tokens = RandomTokens(41, 112, 1), prompt = RandomTokens(200, 112, 2);
  const std::vector<BlockId> blocks = BlocksFrom(0, 3), apart = BlocksFrom(10, 13),
                             beside = BlocksFrom(30, 13);
  const BatchSequence decode{
      .tokens = std::span(tokens).last(1), .first_position = 40, .blocks = blocks, .logits = 1};
  device.Logits({.sequences = {{.tokens = std::span(tokens).first(40), .blocks = blocks, .logits = 1}}});
  std::vector<float> want = device.Logits({.sequences = {decode}});
  const std::vector<float> of_prompt =
      device.Logits({.sequences = {{.tokens = prompt, .blocks = apart, .logits = 200}}});
  want.insert(want.end(), of_prompt.begin(), of_prompt.end());
  const std::vector<float> got =
      device.Logits({.sequences = {decode, {.tokens = prompt, .blocks = beside, .logits = 200}}});
  ASSERT_EQ(got.size(), want.size());
  EXPECT_LT(RelativeDistance(std::span(want).first(112), std::span(got).first(112)), 0.03);  // the decode's
  EXPECT_LT(RelativeDistance(want, got), 0.03);
}

// What a graph chooses is what the logits say.
void ExpectGraphsChooseTheLargestLogit(const ModelConfig& config) {
  SCOPED_TRACE(config.family);
  const RandomModel model(DType::kBF16, 10, config);
  DeviceTransformer device(model.config, model, true);
  for (const size_t sequences : {1u, 2u, 5u, 9u, 17u, 30u}) {
    std::vector<std::vector<int32_t>> tokens;
    std::vector<std::vector<BlockId>> blocks;
    Batch prompts, steps;
    for (size_t s = 0; s < sequences; ++s) {
      tokens.push_back(RandomTokens(3 + s, 112, s));  // up to 32: two blocks of 16
      blocks.push_back(BlocksFrom(static_cast<BlockId>(2 * s), 2));
    }
    for (size_t s = 0; s < sequences; ++s) {
      const std::span<const int32_t> all = tokens[s];
      prompts.sequences.push_back({.tokens = all.first(all.size() - 1), .blocks = blocks[s], .logits = 0});
      steps.sequences.push_back({.tokens = all.last(1),
                                 .first_position = static_cast<uint32_t>(all.size() - 1),
                                 .blocks = blocks[s],
                                 .logits = 1});
    }
    ASSERT_TRUE(device.transformer->Forward(prompts).ok());
    const std::vector<float> logits = device.Logits(steps);
    const std::vector<GpuSampleResult> first = device.Greedy(steps), replayed = device.Greedy(steps);
    for (size_t s = 0; s < sequences; ++s) {
      const std::span<const float> row = std::span(logits).subspan(s * 112, 112);
      const auto best = std::max_element(row.begin(), row.end()) - row.begin();
      EXPECT_EQ(first[s].token, best) << sequences << " sequences, " << s;
      EXPECT_EQ(replayed[s].token, best);
      EXPECT_NEAR(first[s].logprob, Logprobs(row)[static_cast<size_t>(best)], 1e-4);
    }
  }
}

TEST(Graphs, ChooseTheLargestLogit) {
  ExpectGraphsChooseTheLargestLogit(RandomModel::SmallConfig(112));
  for (const ModelConfig& config : WithSwitches(RandomModel::SmallConfig(112)))
    ExpectGraphsChooseTheLargestLogit(config);
}

TEST(KvBlocks, GoToTheHostAndBack) {
  for (const KvDType dtype : {KvDType::kBF16, KvDType::kInt8, KvDType::kFp8}) {
    const RandomModel model(DType::kBF16, 11, RandomModel::SmallConfig(112));
    DeviceTransformer device(model.config, model, true, dtype);
    const std::vector<int32_t> tokens = RandomTokens(33, 112, 1), others = RandomTokens(48, 112, 2);
    const std::vector<BlockId> blocks = BlocksFrom(0, 3), elsewhere = {10, 7, 12};
    const auto last = [&](const std::vector<BlockId>& where) {
      return device.Logits(
          {.sequences = {
               {.tokens = std::span(tokens).last(1), .first_position = 32, .blocks = where, .logits = 1}}});
    };
    ASSERT_TRUE(device.transformer->Forward({.sequences = {{.tokens = tokens, .blocks = blocks}}}).ok());
    const std::vector<float> want = last(blocks);
    ASSERT_TRUE(device.transformer->CopyToHost(0, 2).ok());
    ASSERT_TRUE(device.transformer->CopyRows(1, 7, 16).ok());
    ASSERT_TRUE(device.transformer->Forward({.sequences = {{.tokens = others, .blocks = blocks}}}).ok());
    EXPECT_NE(last(blocks), want);
    ASSERT_TRUE(device.transformer->CopyFromHost(2, 10).ok());
    EXPECT_EQ(last(elsewhere), want);
  }
}

}  // namespace
}  // namespace terrace
