#include "tools/report/step_comparison.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/clock.h"
#include "base/median.h"
#include "tools/report/round_meter.h"

namespace terrace {
namespace {

// An engine that is asked in rounds.
class MeteredEngine {
 public:
  Status Open(OpenEngineOptions engine, const StepComparisonOptions& options) {
    engine.prefix_cache = false;
    engine.max_sequences = *std::ranges::max_element(options.batches);
    engine.inbox = std::max(engine.inbox, engine.max_sequences + 1);
    engine.on_step = [this](const StepObservation&) { meter_.OnStep(); };
    ASSIGN_OR_RETURN(opened_, OpenEngine(engine));
    return {};
  }

  // Seconds of a step that decodes `batch` sequences.
  StatusOr<double> Step(uint32_t batch, const StepComparisonOptions& options) {
    const auto vocabulary = static_cast<TokenId>(opened_.files->config.vocab_size);
    std::vector<std::vector<TokenId>> prompts(batch);
    for (std::vector<TokenId>& prompt : prompts) {
      for (uint32_t i = 0; i < options.prompt_tokens; ++i) prompt.push_back(next_++ % vocabulary);
    }
    ASSIGN_OR_RETURN(const RoundTimes times, meter_.Run(*opened_.engine, std::move(prompts),
                                                        options.answer_tokens, options.before.is_cancelled));
    if (times.decode_tokens == 0)
      return FailedPrecondition("answers of ", options.answer_tokens, " tokens end before the last of ",
                                batch, " prompts is read");
    return times.decode_seconds * batch / static_cast<double>(times.decode_tokens);
  }

 private:
  RoundMeter meter_;  // outlives the engine
  OpenedEngine opened_;
  TokenId next_ = 0;
};

StatusOr<ComparedSteps> OfBatch(uint32_t batch, MeteredEngine& before, MeteredEngine& after,
                                const StepComparisonOptions& options) {
  RETURN_IF_ERROR(before.Step(batch, options).status());  // warms up
  RETURN_IF_ERROR(after.Step(batch, options).status());
  std::vector<double> befores, afters, ratios;
  const MonoTime start = RealClock().Now();
  double seconds = 0;
  do {
    ASSIGN_OR_RETURN(befores.emplace_back(), before.Step(batch, options));
    ASSIGN_OR_RETURN(afters.emplace_back(), after.Step(batch, options));
    ratios.push_back(afters.back() / befores.back());
    seconds = Seconds(RealClock().Now() - start);
  } while (seconds < options.least_seconds ||
           (ratios.size() < options.least_rounds && seconds < options.most_seconds));
  return ComparedSteps{.batch = batch,
                       .before_seconds = Median(std::move(befores)),
                       .after_seconds = Median(std::move(afters)),
                       .ratio = Median(std::move(ratios))};
}

}  // namespace

StatusOr<std::vector<ComparedSteps>> CompareSteps(const StepComparisonOptions& options) {
  CHECK(!options.batches.empty());
  MeteredEngine before, after;
  RETURN_IF_ERROR(before.Open(options.before, options));
  RETURN_IF_ERROR(after.Open(options.after, options));
  std::vector<ComparedSteps> out;
  for (const uint32_t batch : options.batches) {
    ASSIGN_OR_RETURN(out.emplace_back(), OfBatch(batch, before, after, options));
  }
  return out;
}

}  // namespace terrace
