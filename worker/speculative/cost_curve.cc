#include "worker/speculative/cost_curve.h"

#include <algorithm>
#include <cmath>
#include <span>

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

CostCurve::Place CostCurve::PlaceOf(double tokens) {
  const double at = std::clamp(tokens, kTokens.front(), kTokens.back());
  const auto upper = static_cast<size_t>(std::ranges::lower_bound(kTokens, at) - kTokens.begin());
  const size_t lower = kTokens[upper] == at ? upper : upper - 1;
  const double share = lower == upper ? 1 : (at - kTokens[lower]) / (kTokens[upper] - kTokens[lower]);
  return {.at = at, .lower = lower, .upper = upper, .share = share};
}

void CostCurve::Learn(double tokens, double seconds) {
  if (!(seconds > 0)) return;
  const Place place = PlaceOf(tokens);
  const auto weight = [&](size_t i) {
    if (i == place.upper) return place.share;
    return i == place.lower ? 1 - place.share : 0;
  };
  const double expected = Seconds(place.at);
  ++steps_;
  const auto is_stale = [&](const Figure& figure) { return steps_ - figure.step > kStaleSteps; };
  // Only where the step's own figure is fresh does its error say something of all steps.
  const Figure& nearest = figures_[place.nearest()];
  const double far = nearest.seconds == 0 || is_stale(nearest) ? 0 : kFar;
  const double ratio = expected > 0 ? std::clamp(seconds / expected, 1 / kMostSurprise, kMostSurprise) : 1;
  for (size_t i = 0; i < kTokens.size(); ++i) {
    Figure& figure = figures_[i];
    if (figure.seconds == 0) {
      if (weight(i) >= 0.5) figure = {.seconds = seconds, .step = steps_};
    } else if (weight(i) > 0 && is_stale(figure)) {
      // The belief, which was wrong by so much, and not the figure, which nobody believed any more.
      const double told = expected > 0 ? seconds * Seconds(kTokens[i]) / expected : seconds;
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

// As long as the next measurement finds a figure that is not stale, and so is one of several.
bool CostCurve::is_fresh(double tokens) const {
  const Figure& nearest = figures_[PlaceOf(tokens).nearest()];
  return nearest.seconds > 0 && steps_ + 1 - nearest.step < kStaleSteps;
}

void CostCurve::Draw() {
  known_ = 0;
  double before = 0, most = 0;
  for (size_t i = 0; i < kTokens.size(); ++i) {
    const Figure& figure = figures_[i];
    if (figure.seconds == 0) continue;
    const double more = std::max(figure.seconds - before, 0.0);
    const double belief =
        before == 0 ? 1 : std::exp2(-static_cast<double>(steps_ - figure.step) / half_life_);
    before += more * belief;
    most = std::max(most, figure.seconds);
    points_[known_++] = {.tokens = kTokens[i], .believed = before, .measured = most};
  }
}

double CostCurve::At(double Point::*curve, double tokens) const {
  const std::span<const Point> known(points_.data(), known_);
  if (known.empty()) return 0;
  const auto upper = std::ranges::lower_bound(known, tokens, {}, &Point::tokens);
  if (upper == known.begin()) return known.front().*curve;
  if (upper == known.end()) return known.back().*curve;
  const Point& lower = *(upper - 1);
  const double share = (tokens - lower.tokens) / (upper->tokens - lower.tokens);
  return lower.*curve + share * ((*upper).*curve - lower.*curve);
}

}  // namespace terrace
