// Whether a tier's answer is good enough to be given. Values; pure.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/clock.h"
#include "router/tier/answer_signals.h"

namespace terrace {

// The probability that an answer is good, by its signals: a logistic function that was fitted to answers of
// which that is known.
struct GateScorer {
  static constexpr size_t kSignals = 9, kOfLogprobs = 4;
  // In the order of `weights`: mean, least and first log-probability and ln(1 + tokens), for which every
  // worker's tokens do; mean, least and first margin, mean and first entropy.
  static std::array<double, kSignals> ValuesOf(const AnswerSignals& signals);

  std::array<double, kSignals> weights = {};
  double bias = 0;

  double Probability(const AnswerSignals& signals) const;  // NaN when a signal is
};

// How much of an answer is held back before it may be judged, of its tokens or of the time since the first
// one: what is reached first; neither: it is held back to its end.
struct HoldBudget {
  std::optional<uint32_t> tokens = {};
  std::optional<Duration> time = {};
  // Bounds of the gate's measure, over the answer so far. Above the first the text goes out, and the answer
  // is this tier's; below the second the next tier is asked at once; between them both wait.
  std::optional<double> accept_above = {}, reject_below = {};
  // Instead of the bounds the gate's threshold decides, one way or the other.
  bool is_final = false;
};

enum class Verdict : uint8_t { kUndecided, kAccepted, kRejected };

class Gate {
 public:
  Gate() = default;  // open: accepts everything, as the last tier's
  // Accepts what is above a threshold: the mean log-probability, or the scorer's probability.
  explicit Gate(double min_mean_logprob, const HoldBudget& hold = {})
      : threshold_(min_mean_logprob), hold_(hold) {}
  Gate(const GateScorer& scorer, double min_probability, const HoldBudget& hold = {})
      : threshold_(min_probability), scorer_(scorer), hold_(hold) {}
  // Accepts nothing: of a tier that only drafts for the next one.
  static Gate Closed();

  bool is_open() const { return !is_closed_ && !threshold_.has_value(); }
  bool is_closed() const { return is_closed_; }
  // At an answer's end. One without tokens says nothing about confidence and is not accepted by a threshold.
  bool Accepts(const AnswerSignals& signals) const;
  // Before it; `held` is the time since its first token.
  Verdict JudgeEarly(const AnswerSignals& so_far, Duration held) const;
  // What is compared with the threshold: the scorer's probability, or the mean log-probability. Absent:
  // nothing is, as there is no threshold, or the answer has no tokens.
  std::optional<double> Score(const AnswerSignals& signals) const;
  // What the score had to pass: that of the answer's end, or the bound of the hold that decided `early`.
  const std::optional<double>& threshold(Verdict early = Verdict::kUndecided) const {
    if (early == Verdict::kUndecided || hold_.is_final) return threshold_;
    return early == Verdict::kAccepted ? hold_.accept_above : hold_.reject_below;
  }
  // From when on JudgeEarly may decide though no further token comes; absent: only with tokens, or never.
  const std::optional<Duration>& hold_time() const { return hold_.time; }
  // Looks at margins or entropies.
  bool needs_signals() const;

 private:
  double Measure(const AnswerSignals& signals) const {
    return scorer_.has_value() ? scorer_->Probability(signals) : signals.mean_logprob;
  }

  std::optional<double> threshold_;
  std::optional<GateScorer> scorer_;
  HoldBudget hold_;
  bool is_closed_ = false;
};

}  // namespace terrace
