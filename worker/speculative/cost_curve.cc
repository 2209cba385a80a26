#include "worker/speculative/cost_curve.h"

#include <algorithm>
#include <cmath>

namespace terrace {
namespace {

// Weights of a measurement: in a figure that is fresh, and in those further away.
constexpr double kNear = 0.25, kFar = 0.1;
constexpr uint64_t kStaleSteps = 64;
// A figure that is not fresh becomes what is measured, at most so many times what it was.
constexpr double kMostStaleGrowth = 1.5;
// A step that took so many times what it should says only that it took long.
constexpr double kMostSurprise = 2;

}  // namespace

void CostCurve::Learn(double tokens, double seconds) {
  if (!(seconds > 0)) return;
  const double at = std::clamp(tokens, kTokens.front(), kTokens.back());
  const auto upper = static_cast<size_t>(std::ranges::lower_bound(kTokens, at) - kTokens.begin());
  const size_t lower = kTokens[upper] == at ? upper : upper - 1;
  const double share = lower == upper ? 1 : (at - kTokens[lower]) / (kTokens[upper] - kTokens[lower]);
  const auto weight = [&](size_t i) {
    if (i == upper) return share;
    return i == lower ? 1 - share : 0;
  };
  const double expected = Seconds(at);
  ++steps_;
  const auto is_stale = [&](const Figure& figure) { return steps_ - figure.step > kStaleSteps; };
  // Only where the step's own figure is fresh does its error say something of all steps.
  const Figure& nearest = figures_[share >= 0.5 ? upper : lower];
  const double far = nearest.seconds == 0 || is_stale(nearest) ? 0 : kFar;
  const double ratio = expected > 0 ? std::clamp(seconds / expected, 1 / kMostSurprise, kMostSurprise) : 1;
  for (size_t i = 0; i < kTokens.size(); ++i) {
    Figure& figure = figures_[i];
    if (figure.seconds == 0) {
      if (weight(i) >= 0.5) figure = {.seconds = seconds, .step = steps_};
    } else if (weight(i) > 0 && is_stale(figure)) {
      // The belief, which was wrong by so much, and not the figure, which nobody believed any more.
      const double told = expected > 0 ? seconds * curve_[i] / expected : seconds;
      figure = {.seconds = std::min(told, kMostStaleGrowth * figure.seconds), .step = steps_};
    } else if (weight(i) > 0) {
      figure.seconds *= 1 + kNear * weight(i) * (ratio - 1);
      figure.step = steps_;
    } else {
      figure.seconds *= 1 + far * (ratio - 1);
    }
  }
  Draw();
}

void CostCurve::Draw() {
  double before = 0, most = 0;
  for (size_t i = 0; i < kTokens.size(); ++i) {
    const Figure& figure = figures_[i];
    if (figure.seconds == 0) continue;
    const double more = std::max(figure.seconds - before, 0.0);
    const double belief =
        before == 0 ? 1 : std::exp2(-static_cast<double>(steps_ - figure.step) / half_life_);
    before += more * belief;
    curve_[i] = before;
    measured_[i] = most = std::max(most, figure.seconds);
  }
}

double CostCurve::At(const Curve& curve, double tokens) const {
  double below = 0, below_tokens = 0;  // the last known figure before
  for (size_t i = 0; i < kTokens.size(); ++i) {
    if (figures_[i].seconds == 0) continue;
    if (kTokens[i] >= tokens) {
      if (below == 0) return curve[i];
      const double share = (tokens - below_tokens) / (kTokens[i] - below_tokens);
      return below + share * (curve[i] - below);
    }
    below = curve[i];
    below_tokens = kTokens[i];
  }
  return below;
}

}  // namespace terrace
