#include "tools/plan/step_probe.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/rng.h"
#include "tools/report/round_meter.h"
#include "tools/report/speed_meter.h"

namespace terrace {
namespace {

constexpr uint32_t kShortPrompt = 16, kAnswer = 24, kLeastChunk = 32, kLongPrompt = 2048, kLongSequences = 8;

class StepProbe {
 public:
  StatusOr<ProbedEngine> Measure(OpenEngineOptions engine, uint32_t repeats,
                                 const std::function<std::vector<TokenId>(const ModelFiles&)>& vocabulary) {
    CHECK(repeats > 0);
    engine.prefix_cache = false;
    engine.inbox = std::max(engine.inbox, engine.max_sequences + 1);
    engine.speculation = {};
    engine.on_step = [this](const StepObservation& step) { OnStep(step); };
    is_cancelled_ = engine.is_cancelled;
    ASSIGN_OR_RETURN(opened_, OpenEngine(engine));
    vocabulary_ = vocabulary(*opened_.files);
    if (vocabulary_.empty()) return FailedPrecondition(engine.model, ": no token of it stands for text");
    std::vector<StepSample> samples;
    const auto rounds = ProbeRounds(opened_.max_sequences, opened_.max_step_tokens, opened_.context_length);
    RETURN_IF_ERROR(Run(rounds.front()));  // warms up
    for (uint32_t repeat = 0; repeat < repeats; ++repeat) {
      for (const ProbeRound& round : rounds) {
        RETURN_IF_ERROR(Run(round));
        const std::vector<StepSample> more = SamplesOf(round, steps_);
        samples.insert(samples.end(), more.begin(), more.end());
      }
    }
    ASSIGN_OR_RETURN(StepCost cost, StepCost::Fit(samples));
    ASSIGN_OR_RETURN(TechniqueRow row, DescribeEngine(opened_, engine.model, ""));
    return ProbedEngine{.engine = std::move(row),
                        .cost = std::move(cost),
                        .context_length = opened_.context_length,
                        .max_step_tokens = opened_.max_step_tokens};
  }

 private:
  // Steps of a round follow one another at once: what is between two counts for the second.
  void OnStep(const StepObservation& step) {
    const MonoTime now = RealClock().Now();
    steps_.push_back(step);
    if (steps_.size() > 1) steps_.back().seconds = Seconds(now - last_step_);
    last_step_ = now;
    meter_.OnStep();  // its lock is what Await sees the step behind
  }

  Status Run(const ProbeRound& round) {
    steps_.clear();  // the engine is idle
    std::vector<std::vector<TokenId>> prompts(round.sequences);
    for (std::vector<TokenId>& prompt : prompts) {
      for (uint32_t token = 0; token < round.prompt_tokens; ++token)
        prompt.push_back(vocabulary_[RandomBits(/*seed=*/0, drawn_++) % vocabulary_.size()]);
    }
    return meter_.Run(*opened_.engine, std::move(prompts), round.answer_tokens, is_cancelled_).status();
  }

  RoundMeter meter_;
  std::vector<StepObservation> steps_;  // of the round; the engine's thread writes, as the next
  MonoTime last_step_;
  std::function<bool()> is_cancelled_;
  std::vector<TokenId> vocabulary_;
  uint64_t drawn_ = 0;
  OpenedEngine opened_;  // last: its thread uses the others
};

}  // namespace

std::vector<ProbeRound> ProbeRounds(uint32_t max_sequences, uint32_t max_step_tokens,
                                    uint32_t context_length) {
  const uint32_t answer = std::min(kAnswer, context_length / 2);
  const uint32_t longest = context_length - answer;  // prompt
  const uint32_t brief = std::min(kShortPrompt, longest);
  std::vector<ProbeRound> rounds;
  for (uint32_t sequences = 1; sequences < max_sequences; sequences *= 2)
    rounds.push_back({sequences, brief, answer});
  rounds.push_back({max_sequences, brief, answer});
  for (uint32_t chunk = kLeastChunk; chunk < std::min(max_step_tokens, longest); chunk *= 2)
    rounds.push_back({1, chunk, 2});
  rounds.push_back({1, std::min(max_step_tokens, longest), 2});
  const uint32_t long_prompt = std::min(kLongPrompt, longest);
  rounds.push_back({1, long_prompt, answer});
  // Few enough that the first of them has not ended when the last has been read.
  const uint64_t together = uint64_t{answer} * max_step_tokens / long_prompt / 2;
  const uint64_t most = std::min(kLongSequences, max_sequences);
  rounds.push_back({static_cast<uint32_t>(std::clamp<uint64_t>(together, 1, most)), long_prompt, answer});
  return rounds;
}

std::vector<StepSample> SamplesOf(const ProbeRound& round, std::span<const StepObservation> steps) {
  std::vector<StepSample> samples;
  double read = 0, written = 0;  // tokens of the prompt, and steps that decode all
  for (const StepObservation& step : steps) {
    StepWork work{.prefill_tokens = step.prefill_tokens, .decode_tokens = step.decode_tokens};
    if (step.prefill_tokens > 0 && step.decode_tokens == 0 && round.sequences == 1) {
      work.prefill_context = step.prefill_tokens * (read + step.prefill_tokens / 2.0);
      read += step.prefill_tokens;
      samples.push_back({.work = work, .seconds = step.seconds});
    } else if (step.prefill_tokens == 0 && step.decode_tokens == round.sequences) {
      written += 1;
      work.decode_context = step.decode_tokens * (round.prompt_tokens + written);
      samples.push_back({.work = work, .seconds = step.seconds});
    }
  }
  return samples;
}

StatusOr<ProbedEngine> ProbeSteps(
    OpenEngineOptions engine, uint32_t repeats,
    const std::function<std::vector<TokenId>(const ModelFiles& files)>& vocabulary) {
  return StepProbe().Measure(std::move(engine), repeats, vocabulary);
}

}  // namespace terrace
