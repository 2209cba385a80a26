#include "tools/calibrate/scorer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/shuffle.h"
#include "tools/calibrate/logistic.h"

namespace terrace {
namespace {

constexpr double kPenalties[] = {1e-4, 1e-3, 1e-2, 1e-1, 1};
constexpr double kLeastProbability = 1e-12;  // one miss by a sure scorer costs 28 nats, not infinitely many

double LogLoss(const ScoredLabel& scored) {
  const double of_what_was = scored.is_right ? scored.probability : 1 - scored.probability;
  return -std::log(std::max(of_what_was, kLeastProbability));
}

struct Scaling {
  std::vector<double> means = {}, scales = {};  // [features]
};

// To mean 0 and deviation 1; a feature that is always the same has scale 1.
Scaling ScalingOf(std::span<const LogisticExample> examples) {
  const size_t size = examples.front().values.size();
  Scaling scaling = {.means = std::vector<double>(size), .scales = std::vector<double>(size)};
  const double share = 1 / static_cast<double>(examples.size());
  for (size_t i = 0; i < size; ++i) {
    for (const LogisticExample& example : examples) scaling.means[i] += share * example.values[i];
    double variance = 0;
    for (const LogisticExample& example : examples) {
      const double difference = example.values[i] - scaling.means[i];
      variance += share * difference * difference;
    }
    const double rounding = 1e-12 * (1 + std::abs(scaling.means[i]));
    scaling.scales[i] = std::sqrt(variance) > rounding ? std::sqrt(variance) : 1;
  }
  return scaling;
}

std::vector<double> Scaled(const Scaling& scaling, const std::vector<double>& values) {
  std::vector<double> out;
  for (size_t i = 0; i < values.size(); ++i)
    out.push_back((values[i] - scaling.means[i]) / scaling.scales[i]);
  return out;
}

struct ScaledModel {
  Scaling scaling = {};
  LogisticModel model = {};

  double Probability(const std::vector<double>& values) const {
    return model.Probability(Scaled(scaling, values));
  }
};

ScaledModel Fit(std::vector<LogisticExample> examples, double l2) {
  ScaledModel out = {.scaling = ScalingOf(examples)};
  for (LogisticExample& example : examples) example.values = Scaled(out.scaling, example.values);
  out.model = FitLogistic(examples, l2);
  return out;
}

StatusOr<std::vector<LogisticExample>> ValuesOf(std::span<const ScorerExample> examples,
                                                const std::vector<const Feature*>& features) {
  std::vector<LogisticExample> out;
  for (size_t i = 0; i < examples.size(); ++i) {
    LogisticExample example{.is_positive = examples[i].is_right};
    for (const Feature* feature : features) {
      const double value = feature->value(examples[i].inputs);
      if (!std::isfinite(value)) return InvalidArgument("example ", i, ": ", feature->name, " is ", value);
      example.values.push_back(value);
    }
    out.push_back(std::move(example));
  }
  return out;
}

// Each example's probability by a model of the other folds; example order[i] is in fold i % folds.
std::vector<double> HeldOut(const std::vector<LogisticExample>& examples, const std::vector<size_t>& order,
                            size_t folds, double l2) {
  std::vector<double> probabilities(examples.size());
  for (size_t fold = 0; fold < folds; ++fold) {
    std::vector<LogisticExample> others;
    for (size_t i = 0; i < order.size(); ++i) {
      if (i % folds != fold) others.push_back(examples[order[i]]);
    }
    const ScaledModel model = Fit(std::move(others), l2);
    for (size_t i = fold; i < order.size(); i += folds)
      probabilities[order[i]] = model.Probability(examples[order[i]].values);
  }
  return probabilities;
}

std::vector<ScoredLabel> Labelled(const std::vector<double>& probabilities,
                                  const std::vector<LogisticExample>& examples) {
  std::vector<ScoredLabel> scored;
  for (size_t i = 0; i < examples.size(); ++i) scored.push_back({probabilities[i], examples[i].is_positive});
  return scored;
}

double MeanLogLoss(std::span<const ScoredLabel> scored) {
  double sum = 0;
  for (const ScoredLabel& each : scored) sum += LogLoss(each);
  return scored.empty() ? 0 : sum / static_cast<double>(scored.size());
}

// Mann and Whitney's: from the ranks of the right ones, ties sharing the mean of theirs.
double Auc(std::vector<ScoredLabel> scored) {
  std::sort(scored.begin(), scored.end(),
            [](const auto& a, const auto& b) { return a.probability < b.probability; });
  double rank_sum = 0, right = 0;
  for (size_t begin = 0; begin < scored.size();) {
    size_t end = begin;
    double right_here = 0;
    for (; end < scored.size() && scored[end].probability == scored[begin].probability; ++end)
      right_here += scored[end].is_right;
    rank_sum += right_here * static_cast<double>(begin + end + 1) / 2;  // ranks begin + 1 to end
    right += right_here;
    begin = end;
  }
  const double wrong = static_cast<double>(scored.size()) - right;
  return right == 0 || wrong == 0 ? 0.5 : (rank_sum - right * (right + 1) / 2) / (right * wrong);
}

std::vector<ScoreReport::Bin> BinsOf(std::vector<ScoredLabel> scored, size_t count) {
  std::sort(scored.begin(), scored.end(),
            [](const auto& a, const auto& b) { return a.probability < b.probability; });
  std::vector<ScoreReport::Bin> bins;
  for (size_t i = 0; i < count; ++i) {
    const size_t begin = i * scored.size() / count, end = (i + 1) * scored.size() / count;
    if (begin == end) continue;
    ScoreReport::Bin bin = {
        .rows = end - begin, .least = scored[begin].probability, .most = scored[end - 1].probability};
    for (size_t row = begin; row < end; ++row) {
      bin.mean += scored[row].probability / static_cast<double>(bin.rows);
      bin.right += (scored[row].is_right ? 1 : 0) / static_cast<double>(bin.rows);
    }
    bins.push_back(bin);
  }
  return bins;
}

}  // namespace

StatusOr<FittedScorer> FitScorer(std::span<const ScorerExample> examples, const ScorerOptions& options) {
  if (options.folds < 2 || examples.size() < 2 * options.folds) {
    return InvalidArgument(examples.size(), " examples are too few for a scorer: ", options.folds,
                           " folds (2 or more) need at least ", 2 * options.folds);
  }
  ASSIGN_OR_RETURN(const std::vector<LogisticExample> values, ValuesOf(examples, options.features));
  const std::vector<size_t> order = ShuffledIndices(examples.size(), options.seed);
  FittedScorer fitted;
  double least_loss = std::numeric_limits<double>::infinity();
  for (const double l2 : kPenalties) {
    std::vector<double> held_out = HeldOut(values, order, options.folds, l2);
    const double loss = MeanLogLoss(Labelled(held_out, values));
    if (loss > least_loss) continue;  // of equals the simpler one
    least_loss = loss;
    fitted.l2 = l2;
    fitted.held_out = std::move(held_out);
  }
  const ScaledModel all = Fit(values, fitted.l2);
  fitted.scorer.bias = all.model.bias;
  for (size_t i = 0; i < options.features.size(); ++i) {
    fitted.scorer.features.push_back({.feature = options.features[i],
                                      .weight = all.model.weights[i],
                                      .mean = all.scaling.means[i],
                                      .scale = all.scaling.scales[i]});
  }
  return fitted;
}

ScoreReport ReportOn(std::span<const ScoredLabel> scored, size_t bins) {
  ScoreReport report;
  report.auc = Auc({scored.begin(), scored.end()});
  report.log_loss = MeanLogLoss(scored);
  for (const ScoredLabel& each : scored) {
    const double error = each.probability - (each.is_right ? 1 : 0);
    report.brier += error * error / static_cast<double>(scored.size());
  }
  report.bins = BinsOf({scored.begin(), scored.end()}, bins);
  return report;
}

}  // namespace terrace
