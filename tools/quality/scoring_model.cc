#include "tools/quality/scoring_model.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/machine.h"
#include "kernels/op_table.h"

namespace terrace {
namespace {

constexpr uint32_t kBlockTokens = 16;
constexpr size_t kChunk = 64;  // tokens whose logits are in memory at once

StatusOr<KvShape> ShapeOf(const ModelConfig& config, const std::string& kv_dtype, uint32_t max_tokens) {
  KvShape shape{.layers = config.layers,
                .kv_heads = config.kv_heads,
                .head_dim = config.head_dim,
                .block_tokens = kBlockTokens,
                .blocks = static_cast<uint32_t>(BlocksFor(max_tokens, kBlockTokens))};
  if (kv_dtype != "auto") {
    ASSIGN_OR_RETURN(shape.dtype, ParseKvDType(kv_dtype));
  }
  return shape;
}

}  // namespace

StatusOr<std::unique_ptr<ScoringModel>> ScoringModel::Open(const ScoringOptions& options) {
  ASSIGN_OR_RETURN(const OpTable* ops, FindOps("auto"));
  ASSIGN_OR_RETURN(const ComputeType compute, ParseComputeType(options.compute));
  std::unique_ptr<ScoringModel> out(new ScoringModel());
  ASSIGN_OR_RETURN(ModelFiles files, OpenModel(options.model));
  out->files_ = std::make_unique<ModelFiles>(std::move(files));
  const ModelConfig& config = out->files_->config;
  out->max_tokens_ =
      options.max_tokens == 0 ? config.context_length : std::min(options.max_tokens, config.context_length);
  out->pool_ = std::make_unique<ThreadPool>(options.threads > 0 ? options.threads : UsableCores());
  ASSIGN_OR_RETURN(const uint64_t free_bytes, FreeMemoryBytes());
  ASSIGN_OR_RETURN(out->transformer_,
                   Transformer::Load(
                       config, *out->files_->weights, *ops, *out->pool_,
                       {.compute = compute, .free_bytes = free_bytes, .is_cancelled = options.is_cancelled}));
  ASSIGN_OR_RETURN(const KvShape shape, ShapeOf(config, options.kv_dtype, out->max_tokens_));
  ASSIGN_OR_RETURN(out->kv_, KvPool::Create(shape));
  out->blocks_.resize(shape.blocks);
  std::iota(out->blocks_.begin(), out->blocks_.end(), BlockId{0});
  return out;
}

std::span<const float> ScoringModel::Score(std::span<const int32_t> tokens, size_t first, size_t count) {
  CHECK(first + count <= std::min<size_t>(tokens.size(), max_tokens_), first, " + ", count, " of ",
        tokens.size(), " tokens, limit ", max_tokens_);
  const Batch batch{.sequences = {{.tokens = tokens.subspan(first, count),
                                   .first_position = static_cast<uint32_t>(first),
                                   .blocks = blocks_,
                                   .logits = static_cast<uint32_t>(count)}}};
  return transformer_->Forward(batch, *kv_).value();  // of a whole model it cannot fail
}

Status AddDivergence(ScoringModel& candidate, ScoringModel& baseline, std::span<const int32_t> tokens,
                     DivergenceMeter& meter) {
  const size_t vocabulary = candidate.files().config.vocab_size;
  CHECK(vocabulary == baseline.files().config.vocab_size);
  const size_t most = std::min<size_t>(candidate.max_tokens(), baseline.max_tokens());
  const size_t positions = tokens.empty() ? 0 : std::min(tokens.size() - 1, most);
  for (size_t first = 0; first < positions; first += kChunk) {
    const size_t count = std::min(kChunk, positions - first);
    const std::span<const float> ours = candidate.Score(tokens, first, count),
                                 theirs = baseline.Score(tokens, first, count);
    for (size_t i = 0; i < count; ++i) {
      RETURN_IF_ERROR(meter.Add(ours.subspan(i * vocabulary, vocabulary),
                                theirs.subspan(i * vocabulary, vocabulary), tokens[first + i + 1]));
    }
  }
  return {};
}

}  // namespace terrace
