#include "worker/cuda/cuda_runner.h"

#include <algorithm>
#include <map>

#include "base/clock.h"
#include "base/rng.h"

namespace terrace {
namespace {

// What Sampler::Adjust does to a row, token by token.
void AddAdjustments(const SamplingParams& params, const TokenCounts& counts,
                    std::vector<GpuLogitAdjustment>& out) {
  const bool has_penalties = HasPenalties(params);
  if (params.logit_bias.empty() && !has_penalties) return;
  std::map<int32_t, GpuLogitAdjustment> by_token;
  const auto at = [&](int32_t token) -> GpuLogitAdjustment& {
    GpuLogitAdjustment& one = by_token[token];
    one.token = token;
    return one;
  };
  for (const auto& [token, bias] : params.logit_bias)
    at(token).bias += bias;  // the API's maps name a token once
  if (has_penalties) {
    for (const auto& [token, generated] : counts.entries()) {
      GpuLogitAdjustment& one = at(token);
      one.repetition = params.repetition_penalty;
      if (generated > 0) {
        one.subtract = params.presence_penalty + double{params.frequency_penalty} * generated;
      }
    }
  }
  for (const auto& [token, one] : by_token) out.push_back(one);
}

SampledToken Described(const GpuSampleResult& result, const PlannedSequence& planned) {
  SampledToken out{.token = result.token, .logprob = result.logprob, .top = {}};
  if (planned.signals) {
    out.margin = result.margin;
    out.entropy = result.entropy;
  }
  for (uint32_t i = 0; i < std::min(planned.top_logprobs, kGpuMostTop); ++i) {
    if (result.top_tokens[i] < 0) break;
    out.top.push_back({.token = result.top_tokens[i], .logprob = result.top_logprobs[i]});
  }
  return out;
}

Status NumericError() {
  return WithReason(Internal("the model gave a logit that is NaN or infinite, or none that is finite"),
                    "numeric_error");
}

}  // namespace

StepResult CudaRunner::Run(const StepPlan& plan) {
  StepResult result;
  result.device_error = RunInto(plan, result);
  return result;
}

Status CudaRunner::RunInto(const StepPlan& plan, StepResult& result) {
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device_));  // of this thread; the one that loaded was another
  result.outputs.resize(plan.sequences.size());
  const MonoTime begin = RealClock().Now();
  RETURN_IF_ERROR(Transfer(plan.transfers));
  result.transfer_seconds = Seconds(RealClock().Now() - begin);
  Batch batch;
  bool scores = false;
  for (const PlannedSequence& planned : plan.sequences) {
    batch.sequences.push_back({.tokens = planned.tokens,
                               .first_position = planned.first_position,
                               .blocks = planned.blocks,
                               .logits = WantedLogits(planned)});
    scores = scores || !planned.score_targets.empty();
  }
  if (batch.sequences.empty()) return {};
  if (!transformer_->has_logits()) return transformer_->Forward(batch);  // rank 0 chooses
  return Step(plan, batch, scores, result);
}

// A transfer to or from the host is waited for: what it cost is what the scheduler weighs against computing
// anew.
Status CudaRunner::Transfer(const std::vector<BlockTransfer>& transfers) {
  bool waits = false;
  for (const BlockTransfer& transfer : transfers) {
    switch (transfer.kind) {
      case BlockTransfer::Kind::kCopyRows:
        RETURN_IF_ERROR(transformer_->CopyRows(transfer.from, transfer.to, transfer.rows));
        break;
      case BlockTransfer::Kind::kToHost:
        RETURN_IF_ERROR(transformer_->CopyToHost(transfer.from, static_cast<uint32_t>(transfer.to)));
        waits = true;
        break;
      case BlockTransfer::Kind::kFromHost:
        RETURN_IF_ERROR(transformer_->CopyFromHost(static_cast<uint32_t>(transfer.from), transfer.to));
        waits = true;
        break;
    }
  }
  return waits ? transformer_->WaitForCopies() : Status();
}

// One row for each logit wanted. Of a proposed token's row the penalties count it as if it were accepted:
// where it is not, the rows behind it are not looked at. False when there are more adjustments than the
// device takes.
bool CudaRunner::MakeRows(const StepPlan& plan, const Batch& batch) {
  rows_.clear();
  adjustments_.clear();
  for (size_t s = 0; s < plan.sequences.size(); ++s) {
    const PlannedSequence& planned = plan.sequences[s];
    const uint32_t sampled = planned.sample ? 1 + planned.proposed : 0;
    rows_.resize(rows_.size() + batch.sequences[s].logits - sampled);  // of scores alone
    if (!planned.sample) continue;
    const SamplingParams& params = *planned.sampling;
    const bool counts_proposed = planned.proposed > 0 && HasPenalties(params);
    TokenCounts counts;
    if (counts_proposed) counts = *planned.counts;
    for (uint32_t i = 0; i < sampled; ++i) {
      if (i > 0 && counts_proposed) counts.AddGenerated(planned.tokens[planned.tokens.size() - sampled + i]);
      GpuSampleRow row{
          .temperature = params.temperature,
          .top_k = params.top_k,
          .top_p = params.top_p,
          .min_p = params.min_p,
          .uniform = params.temperature > 0 ? RandomUniform(params.seed, planned.sample_index + i) : 0,
          .top = std::min(planned.top_logprobs, kGpuMostTop)};
      row.adjustments_begin = static_cast<uint32_t>(adjustments_.size());
      AddAdjustments(params, counts_proposed ? counts : *planned.counts, adjustments_);
      if (adjustments_.size() > kMostLogitAdjustments) return false;
      row.adjustments_end = static_cast<uint32_t>(adjustments_.size());
      rows_.push_back(row);
    }
  }
  return true;
}

Status CudaRunner::Step(const StepPlan& plan, const Batch& batch, bool scores, StepResult& result) {
  const bool on_device = MakeRows(plan, batch);
  const bool wants_logits = scores || !on_device;
  const CudaTransformer::Choice choice{
      .rows = rows_, .adjustments = adjustments_, .wants_logits = wants_logits};
  RETURN_IF_ERROR(transformer_->Forward(batch, on_device ? &choice : nullptr));
  result.is_first_of_its_kind = transformer_->is_first_of_its_kind();
  std::span<const GpuSampleResult> chosen;
  if (on_device) {
    ASSIGN_OR_RETURN(chosen, transformer_->Results());
  }
  size_t wanted = 0;
  for (const BatchSequence& sequence : batch.sequences) wanted += sequence.logits;
  std::vector<float> logits;
  if (wants_logits) {
    ASSIGN_OR_RETURN(logits, transformer_->Logits(wanted));
  }
  size_t row = 0;
  for (size_t s = 0; s < plan.sequences.size(); ++s) {
    const uint32_t count = batch.sequences[s].logits;
    const std::span<const GpuSampleResult> chosen_rows = on_device ? chosen.subspan(row, count) : chosen;
    const std::span<const float> logit_rows =
        wants_logits
            ? std::span<const float>(logits).subspan(row * config_.vocab_size, count * config_.vocab_size)
            : std::span<const float>();
    result.outputs[s] = Output(plan.sequences[s], chosen_rows, logit_rows);
    row += count;
  }
  return {};
}

// `chosen`, unless it is empty, and `logits`, if there are scores or it is, are of the rows of this sequence.
SequenceOutput CudaRunner::Output(const PlannedSequence& planned, std::span<const GpuSampleResult> chosen,
                                  std::span<const float> logits) {
  const size_t vocab = config_.vocab_size;
  const TokenReport report{.top = planned.top_logprobs, .signals = planned.signals};
  std::vector<SampledToken> scores;
  for (size_t i = 0; i < planned.score_targets.size(); ++i) {
    auto score = sampler_.Score(logits.subspan(i * vocab, vocab), planned.score_targets[i], report);
    if (!score.ok()) return {.error = score.status()};
    scores.push_back(*std::move(score));
  }
  SequenceOutput output;
  if (planned.sample) {
    const size_t first = (chosen.empty() ? logits.size() / vocab : chosen.size()) - 1 - planned.proposed;
    output = ChooseTokens(
        planned, [&](uint32_t row, const TokenCounts& counts, uint64_t index) -> StatusOr<SampledToken> {
          if (chosen.empty()) {
            return sampler_.Sample(logits.subspan((first + row) * vocab, vocab), *planned.sampling, counts,
                                   index, report);
          }
          if (chosen[first + row].token < 0) return NumericError();
          return Described(chosen[first + row], planned);
        });
  }
  output.scores = std::move(scores);
  return output;
}

}  // namespace terrace
