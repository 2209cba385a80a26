// Learns how likely an answer is right from labelled examples. Pure: the same examples, features and seed
// give the same scorer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "router/tier/calibration_features.h"

namespace terrace {

struct ScorerExample {
  FeatureInputs inputs = {};
  bool is_right = false;
};

struct ScorerOptions {
  std::vector<const Feature*> features = {};
  size_t folds = 5;
  uint64_t seed = 0;  // of the folds
};

struct FittedScorer {
  FeatureScorer scorer = {};
  double l2 = 0;  // the penalty whose scorers had the least log loss on the folds they had not seen
  // [examples]: the probability by the scorer that had not seen this example's fold, so that it is as good as
  // on new ones.
  std::vector<double> held_out = {};
};

// INVALID_ARGUMENT for fewer than two examples a fold, or a feature that is not finite.
StatusOr<FittedScorer> FitScorer(std::span<const ScorerExample> examples, const ScorerOptions& options);

struct ScoredLabel {
  double probability = 0;
  bool is_right = false;
};

// How good probabilities are.
struct ScoreReport {
  double auc = 0.5;     // that a right one is above a wrong one; a half where there are not both
  double log_loss = 0;  // mean -ln of the probability of what was so, nats
  double brier = 0;     // mean squared error
  struct Bin {
    size_t rows = 0;
    double least = 0, most = 0, mean = 0;  // of the probabilities
    double right = 0;                      // share
  };
  std::vector<Bin> bins = {};  // as many rows each, least probable first
};

ScoreReport ReportOn(std::span<const ScoredLabel> scored, size_t bins = 10);

}  // namespace terrace
