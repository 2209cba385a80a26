#include "worker/engine/model_runner.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"

namespace terrace {

StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Create(ThreadPool& pool,
                                                           std::unique_ptr<Transformer> transformer,
                                                           const OpTable& ops, const KvShape& kv_shape) {
  ASSIGN_OR_RETURN(std::unique_ptr<KvPool> kv, KvPool::Create(kv_shape));
  return std::unique_ptr<ModelRunner>(new ModelRunner(pool, std::move(transformer), std::move(kv), ops));
}

StepResult ModelRunner::Run(const StepPlan& plan) {
  StepResult result;
  result.transfer_seconds = Transfer(plan.transfers);
  Batch batch;
  for (const PlannedSequence& planned : plan.sequences) {
    batch.sequences.push_back({.tokens = planned.tokens,
                               .first_position = planned.first_position,
                               .blocks = planned.blocks,
                               .logits = WantedLogits(planned)});
  }
  const StatusOr<std::span<const float>> computed = transformer_->Forward(batch, *kv_);
  if (!computed.ok()) {
    result.device_error = computed.status();
    return result;
  }
  result.outputs.resize(plan.sequences.size());
  if (computed->empty()) return result;  // none are wanted, or this is a rank that has none
  std::span<const float> logits = *computed;
  std::vector<std::span<const float>> rows;  // of each sequence
  for (const BatchSequence& sequence : batch.sequences) {
    rows.push_back(logits.first(size_t{sequence.logits} * transformer_->config().vocab_size));
    logits = logits.subspan(rows.back().size());
  }
  const size_t samplers = std::min(samplers_.size(), rows.size());
  pool_.ParallelFor(samplers, 1, [&](size_t begin, size_t end) {
    for (size_t sampler = begin; sampler < end; ++sampler) {
      for (size_t i = sampler; i < rows.size(); i += samplers) {
        result.outputs[i] = Choose(plan.sequences[i], rows[i], samplers_[sampler]);
      }
    }
  });
  return result;
}

// In seconds: what it took.
double ModelRunner::Transfer(const std::vector<BlockTransfer>& transfers) {
  const MonoTime begin = RealClock().Now();
  for (const BlockTransfer& transfer : transfers) {
    switch (transfer.kind) {
      case BlockTransfer::Kind::kCopyRows:
        kv_->CopyRows(transfer.from, transfer.to, transfer.rows);
        break;
      case BlockTransfer::Kind::kToHost:
        kv_->CopyToHost(transfer.from, static_cast<uint32_t>(transfer.to));
        break;
      case BlockTransfer::Kind::kFromHost:
        kv_->CopyFromHost(static_cast<uint32_t>(transfer.from), transfer.to);
        break;
    }
  }
  return Seconds(RealClock().Now() - begin);
}

// `logits` is [WantedLogits(planned), vocab_size].
SequenceOutput ModelRunner::Choose(const PlannedSequence& planned, std::span<const float> logits,
                                   Sampler& sampler) const {
  const size_t vocab_size = transformer_->config().vocab_size;
  const TokenReport report{.top = planned.top_logprobs, .signals = planned.signals};
  std::vector<SampledToken> scores;
  for (size_t i = 0; i < planned.score_targets.size(); ++i) {
    auto score = sampler.Score(logits.subspan(i * vocab_size, vocab_size), planned.score_targets[i], report);
    if (!score.ok()) return {.error = score.status()};
    scores.push_back(*std::move(score));
  }
  SequenceOutput output;
  if (planned.sample) {
    const std::span<const float> rows = logits.last((1 + planned.proposed) * vocab_size);
    output = ChooseTokens(planned, [&](uint32_t row, const TokenCounts& counts, uint64_t index) {
      return sampler.Sample(rows.subspan(row * vocab_size, vocab_size), *planned.sampling, counts, index,
                            report);
    });
  }
  output.scores = std::move(scores);
  return output;
}

}  // namespace terrace
