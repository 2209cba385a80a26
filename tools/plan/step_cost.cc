#include "tools/plan/step_cost.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "base/median.h"

namespace terrace {
namespace {

constexpr int kRounds = 50;  // of the fit: curve and contexts in turn, each round nearer

// The slope through the origin of (x, y) by least squares; 0 without an x.
class Slope {
 public:
  void Add(double x, double y) {
    xy_ += x * y;
    xx_ += x * x;
  }
  double Value() const { return xx_ > 0 ? std::max(0.0, xy_ / xx_) : 0; }

 private:
  double xy_ = 0, xx_ = 0;
};

// Positions before each token of a decode that is called short.
constexpr double kShortContext = 64;

// What the curve is made of: no token looks at much more than the tokens of the step itself.
bool IsShort(const StepWork& work) {
  const double tokens = work.tokens();
  return work.prefill_context + work.decode_context <= tokens * std::max(kShortContext, tokens / 2 + 1);
}

}  // namespace

StatusOr<StepCost> StepCost::Fit(std::span<const StepSample> samples) {
  if (samples.empty()) return InvalidArgument("no step was measured");
  for (const StepSample& sample : samples) {
    if (sample.work.tokens() == 0 || !(sample.seconds > 0))
      return InvalidArgument("a step of ", sample.work.tokens(), " tokens in ", sample.seconds, " s");
  }
  if (std::ranges::none_of(samples, IsShort, &StepSample::work))
    return InvalidArgument("no step with a short context was measured");
  StepCost cost;
  for (int round = 0; round < kRounds; ++round) {
    std::map<uint32_t, std::vector<double>> seconds;  // without what contexts cost, by tokens
    for (const StepSample& sample : samples) {
      if (IsShort(sample.work))
        seconds[sample.work.tokens()].push_back(std::max(0.0, sample.seconds - cost.OfContexts(sample.work)));
    }
    double last = 0;
    for (auto& [tokens, values] : seconds) last = cost.curve_[tokens] = std::max(last, Median(values));
    Slope decode, prefill;
    for (const StepSample& sample : samples) {
      const StepWork& work = sample.work;
      const double rest = sample.seconds - cost.Curve(work.tokens());
      if (work.prefill_tokens == 0) decode.Add(work.decode_context, rest);
      if (work.decode_tokens == 0) prefill.Add(work.prefill_context, rest);
    }
    cost.decode_context_ = decode.Value();
    cost.prefill_context_ = prefill.Value();
  }
  return cost;
}

double StepCost::Seconds(const StepWork& work) const {
  return work.tokens() == 0 ? 0 : Curve(work.tokens()) + OfContexts(work);
}

StepCost StepCost::Changed(double factor, const std::function<double(uint32_t tokens)>& more) const {
  StepCost changed = *this;
  double last = 0;
  for (auto& [tokens, seconds] : changed.curve_)
    last = seconds = std::max(last, seconds * factor + more(tokens));
  return changed;
}

double StepCost::Curve(uint32_t tokens) const {
  const auto above = curve_.lower_bound(tokens);
  if (above != curve_.end() && above->first == tokens) return above->second;
  if (above == curve_.begin()) return above->second;  // fewer tokens take no less than the weights do
  const auto below = std::prev(above);
  const auto line = [tokens](const auto& from, const auto& to) {
    const double share = (static_cast<double>(tokens) - from->first) / (to->first - from->first);
    return from->second + share * (to->second - from->second);
  };
  if (above != curve_.end()) return line(below, above);
  return below == curve_.begin() ? below->second * tokens / below->first : line(std::prev(below), below);
}

}  // namespace terrace
