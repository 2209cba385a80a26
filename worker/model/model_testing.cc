#include "worker/model/model_testing.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/rng.h"
#include "worker/formats/tensor_names.h"
#include "worker/formats/weight_encoding.h"

namespace terrace {
namespace {

std::vector<BlockId> AllBlocks(const KvPool& kv) {
  std::vector<BlockId> blocks(kv.shape().blocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  return blocks;
}

}  // namespace

std::string DemoFolder(const std::string& model) { return "models/" + model; }
std::string DemoGguf(const std::string& model) { return "models/" + model + ".f16.gguf"; }

TestModel::TestModel(const ModelConfig& config, const WeightSource& weights, const OpTable& ops,
                     size_t threads, uint32_t blocks, KvDType kv_dtype, ComputeType compute)
    : TestModel(config, weights, ops, threads,
                KvShape{.layers = config.layers,
                        .kv_heads = config.kv_heads,
                        .head_dim = config.head_dim,
                        .block_tokens = 16,
                        .blocks = blocks,
                        .dtype = kv_dtype},
                compute) {}

TestModel::TestModel(const ModelConfig& config, const WeightSource& weights, const OpTable& ops,
                     size_t threads, const KvShape& kv_shape, ComputeType compute)
    : pool(std::make_unique<ThreadPool>(threads)) {
  auto loaded = Transformer::Load(config, weights, ops, *pool, {.compute = compute});
  CHECK(loaded.ok(), Message(loaded.status()));
  transformer = *std::move(loaded);
  auto created = KvPool::Create(kv_shape);
  CHECK(created.ok(), Message(created.status()));
  kv = *std::move(created);
  PoisonKv();
}

void TestModel::PoisonKv() {
  const KvShape& shape = kv->shape();
  const size_t rows = size_t{shape.blocks} * shape.kv_heads * shape.block_tokens;
  for (uint32_t i = 0; i < shape.layers; ++i) {
    const KvLayer layer = kv->layer(i);
    for (const KvRows& part : {layer.keys, layer.values}) {
      // All bits set is a NaN of every float dtype; an int8 row is NaN by its scale.
      std::memset(part.data, 0xff, rows * shape.head_dim * KvElementBytes(shape.dtype));
      if (part.scales != nullptr) std::memset(part.scales, 0xff, rows * sizeof(float));
    }
  }
}

StatusOr<TensorView> WeightsInMemory::Find(std::string_view name) const {
  for (const Entry& entry : entries_) {
    if (entry.name == name) return entry.tensor;
  }
  return NotFound(name);
}

void WeightsInMemory::SetFloats(TensorView& tensor, std::vector<float> values) {
  floats_.push_back(std::move(values));
  tensor = {.dtype = DType::kF32,
            .shape = tensor.shape,
            .data = reinterpret_cast<const std::byte*>(floats_.back().data()),
            .bytes = floats_.back().size() * sizeof(float)};
}

std::vector<ModelConfig> WithSwitches(const ModelConfig& config) {
  ModelConfig with_biases = config, with_norms = config;
  with_biases.family = "qwen2";
  with_biases.has_attention_bias = true;
  with_biases.rope_scaling.kind = RopeScaling::Kind::kLinear;
  with_biases.rope_scaling.factor = 4;
  with_norms.family = "gemma3_text";
  with_norms.has_head_norms = with_norms.has_post_norms = with_norms.norms_less_one = true;
  with_norms.gate = GateFunction::kGelu;
  with_norms.embedding_scale = 16;
  with_norms.attention_scale = 0.2f;
  with_norms.attention_softcap = 3;
  with_norms.logit_softcap = 2;
  for (uint32_t layer = 0; layer < config.layers; ++layer)
    with_norms.windows.push_back(layer % 2 == 0 ? 9 : 0);
  with_norms.window_rope_base = 1000;
  ModelConfig with_experts = config;
  with_experts.family = "qwen3_moe";
  with_experts.has_head_norms = true;
  with_experts.experts = 6;
  with_experts.experts_per_token = 3;
  return {with_biases, with_norms, with_experts};
}

ModelConfig RandomModel::SmallConfig(uint32_t vocab_size) {
  ModelConfig small;
  small.family = "llama";
  small.vocab_size = vocab_size;
  small.context_length = 512;
  small.hidden_size = 256;  // a whole block of every format
  small.layers = 2;
  small.heads = 4;
  small.kv_heads = 2;
  small.head_dim = 64;
  small.ffn_size = 256;
  small.tied_embeddings = true;
  return small;
}

RandomModel::RandomModel(DType dtype, uint64_t seed, const ModelConfig& model_config)
    : WeightsInMemory("random"), config(model_config) {
  for (const TensorRequirement& required : RequiredTensors(config)) {
    const bool is_vector = IsVector(required.kind);
    const size_t rows = is_vector ? 1 : required.shape[0], columns = required.shape[is_vector ? 0 : 1];
    std::vector<float> values(rows * columns);
    for (size_t i = 0; i < values.size(); ++i) {
      const double random = 2 * RandomUniform(seed + storage_.size(), i) - 1;
      values[i] = static_cast<float>(
          !is_vector ? random * std::sqrt(3.0 / static_cast<double>(columns))  // variance 1 / columns
          : IsBias(required.kind) ? random
                                  : (config.norms_less_one ? 0 : 1) + random / 4);
    }
    const DType of_tensor = is_vector ? DType::kF32 : dtype;
    std::vector<std::byte> bytes(values.size() / Info(of_tensor).block_elements *
                                 Info(of_tensor).block_bytes);
    std::vector<float> scales;
    if (of_tensor == DType::kInt8) {
      for (size_t row = 0; row < rows; ++row)
        scales.push_back(EncodeInt8Row(std::span(values).subspan(row * columns, columns),
                                       std::span(bytes).subspan(row * columns, columns)));
    } else {
      EncodeWeights(of_tensor, values, bytes);
    }
    storage_.push_back(std::move(bytes));
    scales_.push_back(std::move(scales));
    entries_.push_back({.name = required.name,
                        .tensor = {.dtype = of_tensor,
                                   .shape = required.shape,
                                   .data = storage_.back().data(),
                                   .bytes = storage_.back().size(),
                                   .row_scales = scales_.back().data()},
                        .offset = 0,
                        .file = ""});
  }
}

namespace {

class CopiedRows final : public RowMaker {
 public:
  explicit CopiedRows(const WeightMatrix& matrix) : matrix_(matrix) {}
  Status Make(uint64_t begin, uint64_t end, std::byte* to) const override {
    CHECK(begin <= end && end <= matrix_.rows);
    std::memcpy(to, matrix_.Row(begin), (end - begin) * matrix_.RowBytes());
    return Status();
  }

 private:
  const WeightMatrix matrix_;
};

}  // namespace

MadeModel::MadeModel(const WeightSource& original) : WeightsInMemory("made", original.entries()) {
  for (Entry& entry : entries_) {
    if (entry.tensor.shape.rank != 2) continue;
    makers_.push_back(std::make_unique<CopiedRows>(MatrixOf(entry.tensor)));
    entry.tensor.data = nullptr;
    entry.tensor.maker = makers_.back().get();
  }
}

ModelFiles OpenTestModel(const std::string& path) {
  auto files = OpenModel(path);
  CHECK(files.ok(), Message(files.status()));
  return *std::move(files);
}

std::vector<int32_t> RandomTokens(size_t count, uint32_t vocab_size, uint64_t seed) {
  std::vector<int32_t> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<int32_t>(RandomBits(seed, i) % vocab_size);
  return out;
}

std::span<const float> Forward(TestModel& model, const Batch& batch) {
  const auto logits = model.transformer->Forward(batch, *model.kv);
  CHECK(logits.ok(), Message(logits.status()));
  return *logits;
}

std::vector<float> SequenceLogits(TestModel& model, const std::vector<int32_t>& tokens) {
  const auto blocks = AllBlocks(*model.kv);
  const auto logits = Forward(
      model,
      {.sequences = {{.tokens = tokens, .blocks = blocks, .logits = static_cast<uint32_t>(tokens.size())}}});
  return {logits.begin(), logits.end()};
}

std::vector<int32_t> GreedyTokens(TestModel& model, const std::vector<int32_t>& prompt, size_t count,
                                  std::vector<float>& first_logits) {
  const auto blocks = AllBlocks(*model.kv);
  std::vector<int32_t> part = prompt, answer;
  uint32_t position = 0;
  while (answer.size() < count) {
    const auto logits = Forward(
        model, {.sequences = {{.tokens = part, .first_position = position, .blocks = blocks, .logits = 1}}});
    if (answer.empty()) first_logits.assign(logits.begin(), logits.end());
    position += static_cast<uint32_t>(part.size());
    part = {static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin())};
    answer.push_back(part[0]);
  }
  return answer;
}

double LargestDifference(std::span<const float> a, std::span<const float> b) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (a.size() != b.size()) return kInfinity;
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) return kInfinity;
    largest = std::max(largest, std::abs(double{a[i]} - b[i]));
  }
  return largest;
}

std::vector<double> Logprobs(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  std::vector<double> out;
  for (const float logit : logits) out.push_back(logit - largest - std::log(sum));
  return out;
}

std::vector<GoldenRow> GoldenRows(const std::string& model) {
  const auto text = ReadFile("models/eval/golden.jsonl");
  CHECK(text.ok(), Message(text.status()));
  std::vector<GoldenRow> rows;
  for (size_t begin = 0, end; begin < text->size(); begin = end + 1) {
    end = std::min(text->find('\n', begin), text->size());
    const auto json = ParseJson(std::string_view(*text).substr(begin, end - begin));
    CHECK(json.ok(), Message(json.status()));
    if ((*json)["model"] != model) continue;
    rows.push_back(
        {.prompt = (*json)["prompt_tokens"].get<std::vector<int32_t>>(),
         .answer = (*json)["greedy_tokens"].get<std::vector<int32_t>>(),
         .top_logprobs = (*json)["first_step_top5_logprobs"].get<std::vector<std::pair<int32_t, double>>>()});
  }
  CHECK(!rows.empty(), "no golden rows of ", model);
  return rows;
}

}  // namespace terrace
