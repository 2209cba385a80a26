#include "tools/calibrate/choices.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

#include "base/status.h"

namespace terrace {
namespace {

constexpr double kNothing = 1;  // no probability is above it
constexpr size_t kMaxGrid = 4096, kMaxPoints = 64;

void Count(const Choice& choice, size_t tier, Tally& tally) {
  const bool is_right = choice.is_right[tier], is_last_right = choice.is_right.back();
  ++tally.rows;
  tally.right += is_right;
  tally.last_tier_right += is_last_right;
  tally.losses += is_last_right && !is_right;
  if (tier < choice.scores.size()) tally.expected_losses += 1 - choice.scores[tier];
  tally.cost += choice.costs[tier];
  tally.last_tier_cost += choice.last_tier_cost;
  ++tally.answered_by[tier];
}

Tally NoneOf(std::span<const Choice> choices) {
  CHECK(!choices.empty());
  Tally tally;
  tally.answered_by.resize(choices.front().is_right.size());
  return tally;
}

size_t TierThatAnswers(const Choice& choice, const Thresholds& thresholds) {
  size_t tier = 0;
  while (tier < thresholds.size() && !(choice.scores[tier] > thresholds[tier])) ++tier;
  return tier;
}

// Evenly spaced quantiles of the scores of one gate, each once, and the threshold that nothing passes.
std::vector<double> PointsOf(std::span<const Choice> choices, size_t gate, size_t count) {
  std::vector<double> scores;
  for (const Choice& choice : choices) scores.push_back(choice.scores[gate]);
  std::sort(scores.begin(), scores.end());
  std::vector<double> points = {kNothing};
  for (size_t i = 0; i + 1 < count; ++i) points.push_back(scores[i * scores.size() / (count - 1)]);
  std::sort(points.begin(), points.end());
  points.erase(std::unique(points.begin(), points.end()), points.end());
  return points;
}

// Every combination of one point a gate.
std::vector<Thresholds> GridOver(std::span<const Choice> choices) {
  const size_t gates = choices.front().scores.size();
  const auto points_a_gate =
      static_cast<size_t>(std::pow(static_cast<double>(kMaxGrid), 1 / static_cast<double>(gates)) + 1e-9);
  std::vector<Thresholds> grid(1);  // of no gates yet
  for (size_t gate = 0; gate < gates; ++gate) {
    const auto points = PointsOf(choices, gate, std::clamp<size_t>(points_a_gate, 2, kMaxPoints));
    std::vector<Thresholds> longer;
    for (const Thresholds& thresholds : grid) {
      for (const double point : points) {
        longer.push_back(thresholds);
        longer.back().push_back(point);
      }
    }
    grid = std::move(longer);
  }
  return grid;
}

}  // namespace

Tally Decide(std::span<const Choice> choices, const Thresholds& thresholds) {
  Tally tally = NoneOf(choices);
  for (const Choice& choice : choices) Count(choice, TierThatAnswers(choice, thresholds), tally);
  return tally;
}

Tally DecideByOracle(std::span<const Choice> choices) {
  Tally tally = NoneOf(choices);
  for (const Choice& choice : choices) {
    const size_t last = choice.is_right.size() - 1;
    size_t tier = 0;
    while (tier < last && !choice.is_right[tier]) ++tier;
    Count(choice, tier, tally);
  }
  return tally;
}

std::vector<Thresholds> SafestFirst(std::span<const Choice> choices) {
  CHECK(!choices.empty() && !choices.front().scores.empty());
  struct Point {
    double cost = 0, losses = 0;
    Thresholds thresholds = {};
  };
  std::vector<Point> points;
  for (Thresholds& thresholds : GridOver(choices)) {
    const Tally tally = Decide(choices, thresholds);
    points.push_back({tally.cost, tally.expected_losses, std::move(thresholds)});
  }
  // Of points alike in both the one with higher thresholds: it is safer on requests that are not here.
  std::sort(points.begin(), points.end(), [](const Point& a, const Point& b) {
    return std::tie(a.losses, a.cost, b.thresholds) < std::tie(b.losses, b.cost, a.thresholds);
  });
  std::vector<Thresholds> front;
  double least_cost = std::numeric_limits<double>::infinity();
  for (Point& point : points) {
    if (point.cost >= least_cost) continue;
    least_cost = point.cost;
    front.push_back(std::move(point.thresholds));
  }
  if (front.size() <= kMaxCandidates) return front;
  std::vector<Thresholds> spaced;
  for (size_t i = 0; i < kMaxCandidates; ++i)
    spaced.push_back(front[i * (front.size() - 1) / (kMaxCandidates - 1)]);
  return spaced;
}

}  // namespace terrace
