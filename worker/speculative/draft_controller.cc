#include "worker/speculative/draft_controller.h"

#include <algorithm>

namespace terrace {
namespace {

// A guess that is worth less is not made.
constexpr double kLeastWorth = 0.02;
// More tokens a second have to be expected: what is measured is not exact.
constexpr double kLeastGain = 1.04;
// More is missing than was drafted and accepted, or drafted for others meanwhile.
constexpr uint32_t kBehindTokens = 16;
// Over so many tokens of the answer what a model has to catch up on is written off.
constexpr double kWriteOffTokens = 64;
// Steps' worth of probing that may be saved up.
constexpr double kMostSavedSteps = 20;
// The weight of a new measurement of a prompt token.
constexpr double kPromptWeight = 0.1;
// Steps that a cheap drafter is asked in before it has to pay, and the weight of a new one then.
constexpr uint64_t kFreeSteps = 32;
constexpr double kAskingWeight = 0.05;
// Tokens of prompts that a step needs to tell what one costs, and those that it may have to tell what the
// others cost.
constexpr uint32_t kTellingTokens = 16, kFewTokens = 32;
// A pass of the drafter's model costs as much as so many of its tokens, before anything is known.
constexpr double kPassTokens = 32;
// A step that took so many times what it should says only that it took long; the same for asking.
constexpr double kMostSurprise = 2;

}  // namespace

struct DraftController::Guess {
  double worth = 0;  // tokens
  uint32_t candidate = 0;
  uint32_t index = 0;  // in the draft
};

// The most valuable ones, at most `most`. Of a draft an earlier token comes before a later one.
std::vector<DraftController::Guess> DraftController::Guesses(std::span<const DraftCandidate> candidates,
                                                             size_t most) const {
  std::vector<Guess> guesses;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const double rate = candidates[i].acceptance->Rate(prior());
    double worth = rate;
    const uint32_t length = std::min(candidates[i].most, options_.max_tokens);
    for (uint32_t index = 0; index < length && worth >= kLeastWorth; ++index, worth *= rate)
      guesses.push_back({.worth = worth, .candidate = static_cast<uint32_t>(i), .index = index});
  }
  const size_t kept = std::min(most, guesses.size());
  std::ranges::partial_sort(guesses, guesses.begin() + static_cast<ptrdiff_t>(kept),
                            [](const Guess& a, const Guess& b) {
                              if (a.worth != b.worth) return a.worth > b.worth;
                              return a.index != b.index ? a.index < b.index : a.candidate < b.candidate;
                            });
  guesses.resize(kept);
  return guesses;
}

std::vector<uint32_t> DraftController::Best(const StepLoad& load, std::span<const DraftCandidate> candidates,
                                            uint32_t room, Purpose purpose) const {
  std::vector<uint32_t> lengths(candidates.size(), 0);
  const double plain = StepSeconds(load.decodes);
  if (!(plain > 0)) return lengths;  // the first steps tell what one takes
  const std::vector<Guess> guesses = Guesses(candidates, room);
  if (guesses.empty()) return lengths;
  std::vector<double> passes(options_.max_tokens, 0.0);  // tokens that the drafter's model computes
  double worth = 0, drafting = 0, best = kLeastGain * load.decodes / plain;
  size_t taken = 0;
  for (size_t i = 0; i < guesses.size(); ++i) {
    const Guess& guess = guesses[i];
    worth += guess.worth;
    if (purpose != Purpose::kVerify) {
      const DraftCandidate& candidate = candidates[guess.candidate];
      double& pass = passes[guess.index];
      if (pass > 0) drafting -= draft_seconds_.Seconds(pass);
      pass += 1;
      drafting += draft_seconds_.Seconds(pass);
      if (guess.index == 0 && candidate.missing > 1)
        drafting += ReadSeconds(candidate.missing) / std::clamp<double>(candidate.left, 1, kWriteOffTokens);
    }
    double extra = ExtraSeconds(load, static_cast<uint32_t>(i) + 1);
    if (purpose == Purpose::kRead)
      extra = std::max(extra, step_seconds_.Measured(load.decodes + static_cast<double>(i) + 1) - plain);
    const double seconds = plain + extra + drafting;
    const double rate = (load.decodes + worth) / seconds;
    if (rate <= best) continue;
    best = rate;
    taken = i + 1;
  }
  for (const Guess& guess : std::span(guesses).first(taken)) ++lengths[guess.candidate];
  return lengths;
}

// Without those that are not worth what has to be read for them: they have no `most`.
std::vector<DraftCandidate> DraftController::WorthReading(const StepLoad& load,
                                                          std::span<const DraftCandidate> candidates,
                                                          uint32_t room) const {
  std::vector<DraftCandidate> worth(candidates.begin(), candidates.end());
  const auto is_behind = [](const DraftCandidate& candidate) { return candidate.missing > kBehindTokens; };
  if (std::ranges::none_of(worth, is_behind)) return worth;
  const std::vector<uint32_t> lengths = Best(load, candidates, room, Purpose::kRead);
  for (size_t i = 0; i < worth.size(); ++i)
    if (is_behind(worth[i]) && lengths[i] == 0) worth[i].most = 0;
  return worth;
}

bool DraftController::WantsDrafts() {
  if (!options_.is_drafting_cheap || asked_steps_ < kFreeSteps || saved_seconds_ >= asking_seconds_)
    return true;
  const double price = std::min(asking_seconds_, kMostSavedSteps * latest_seconds_);
  if (probe_seconds_ < price) return false;
  probe_seconds_ -= price;
  return true;
}

std::vector<uint32_t> DraftController::Ask(const StepLoad& load, std::span<const DraftCandidate> candidates,
                                           uint32_t room) {
  if (!options_.is_drafting_cheap) {
    std::vector<uint32_t> lengths = Best(load, WorthReading(load, candidates, room), room, Purpose::kDraft);
    Probe(candidates, lengths);
    return lengths;
  }
  std::vector<uint32_t> lengths;
  for (const DraftCandidate& candidate : candidates)
    lengths.push_back(std::min(candidate.most, options_.max_tokens));
  return lengths;
}

std::vector<uint32_t> DraftController::Verify(const StepLoad& load,
                                              std::span<const DraftCandidate> candidates,
                                              uint32_t room) const {
  return Best(load, candidates, room, Purpose::kVerify);
}

// Of all that the drafter's model has to read until there is a draft, over several calls if need be.
double DraftController::ReadSeconds(uint32_t missing) const {
  const uint32_t pass = std::min(missing, options_.max_pass_tokens);
  return draft_seconds_.Seconds(pass) * missing / pass;
}

// The candidate that is still being read, or none: their number.
size_t DraftController::PaidProbe(std::span<const DraftCandidate> candidates) {
  if (paid_calls_ == 0) return candidates.size();
  const auto found = std::ranges::find(candidates, probed_, &DraftCandidate::id);
  return found != candidates.end() && found->most > 0 ? static_cast<size_t>(found - candidates.begin())
                                                      : candidates.size();
}

// The one that it costs least for, paid for; or none, where so much was not saved up.
size_t DraftController::NewProbe(std::span<const DraftCandidate> candidates,
                                 std::span<const uint32_t> lengths) {
  size_t cheapest = candidates.size();
  for (size_t i = 0; i < candidates.size(); ++i) {
    const DraftCandidate& candidate = candidates[i];
    if (lengths[i] > 0 || candidate.most == 0 || !candidate.acceptance->is_due()) continue;
    if (cheapest == candidates.size() || candidate.missing < candidates[cheapest].missing) cheapest = i;
  }
  if (cheapest == candidates.size() || !draft_seconds_.is_known()) return candidates.size();
  const DraftCandidate& candidate = candidates[cheapest];
  const double seconds = ReadSeconds(std::max(candidate.missing, 1u));
  if (seconds > probe_seconds_) return candidates.size();
  probe_seconds_ -= seconds;
  probed_ = candidate.id;
  paid_calls_ = candidate.missing / options_.max_pass_tokens + 2;  // the answer goes on meanwhile
  return cheapest;
}

// One token of a candidate that would get none.
void DraftController::Probe(std::span<const DraftCandidate> candidates, std::vector<uint32_t>& lengths) {
  size_t probed = PaidProbe(candidates);
  if (probed == candidates.size()) probed = NewProbe(candidates, lengths);
  if (probed == candidates.size()) return;
  lengths[probed] = std::max(lengths[probed], 1u);
  const bool is_read = candidates[probed].missing <= options_.max_pass_tokens;  // with this call
  paid_calls_ = is_read ? 0 : paid_calls_ - 1;
}

double DraftController::ExtraSeconds(const StepLoad& load, uint32_t drafted) const {
  const double more = step_seconds_.Seconds(load.decodes + drafted) - step_seconds_.Seconds(load.decodes);
  return load.others == 0 ? more : std::max(more, drafted * prompt_seconds_);
}

void DraftController::LearnStep(const StepLoad& load, uint32_t drafted, double seconds) {
  const double most = kMostSavedSteps * seconds;
  probe_seconds_ = std::min(probe_seconds_ + options_.probe_share * seconds, std::max(most, probe_seconds_));
  latest_seconds_ = seconds;
  // Of steps that always have some tokens of prompts the rest is known too.
  const uint32_t own = load.decodes + drafted;
  if (own > 0 && load.others <= kFewTokens) {
    const double even = seconds * own / (own + load.others);
    step_seconds_.Learn(own, std::max(seconds - load.others * prompt_seconds_, even));
  }
  if (load.others >= kTellingTokens) LearnPrompts(load, drafted, seconds);
}

void DraftController::LearnPrompts(const StepLoad& load, uint32_t drafted, double seconds) {
  const double own = step_seconds_.Seconds(load.decodes + drafted);
  const double most = kMostSurprise * (own + load.others * prompt_seconds_);
  const double told = knows_prompts_ ? std::min(seconds, most) : seconds;
  const double measured = std::max(told - own, 0.0) / load.others;
  prompt_seconds_ += (knows_prompts_ ? kPromptWeight : 1) * (measured - prompt_seconds_);
  knows_prompts_ = true;
}

// One stall is not what asking takes.
void DraftController::LearnAsking(double asking, double saved) {
  const bool is_new = asked_steps_ < kFreeSteps;
  const double most = is_new ? latest_seconds_ : kMostSurprise * asking_seconds_ + 1e-6;
  const double weight = std::max(kAskingWeight, 1 / static_cast<double>(++asked_steps_));
  asking_seconds_ += weight * (std::min(asking, most) - asking_seconds_);
  saved_seconds_ += weight * (saved - saved_seconds_);
}

// A call is measured whole: its passes have shares as they were expected to have. Before anything is known a
// pass is taken to cost as much as some of its tokens.
void DraftController::LearnDrafting(std::span<const uint32_t> passes, double seconds) {
  double all = 0;
  std::vector<double> shares;
  for (const uint32_t tokens : passes) {
    shares.push_back(draft_seconds_.is_known() ? draft_seconds_.Seconds(tokens) : kPassTokens + tokens);
    all += shares.back();
  }
  for (size_t i = 0; i < passes.size(); ++i) draft_seconds_.Learn(passes[i], seconds * shares[i] / all);
}

}  // namespace terrace
