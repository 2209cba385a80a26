// From labelled records to a calibration: scorers are fitted on one part of the rows, thresholds are tested
// on the other. Pure: the same records and options give the same calibration.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "router/tier/calibration.h"
#include "router/tier/records.h"
#include "tools/calibrate/choices.h"
#include "tools/calibrate/risk.h"
#include "tools/calibrate/scorer.h"

namespace terrace {

// What scorers learn to predict.
enum class ScoreTarget : uint8_t {
  kRight,    // the tier's answer is right
  kNoWorse,  // it is right, or the last tier's is wrong too: then asking on would be for nothing
};

struct CalibratorOptions {
  CalibrationKind kind = CalibrationKind::kCascade;
  std::string policy = {};
  RiskLimit limit = {};
  std::vector<const Feature*> features = {};
  ScoreTarget target = ScoreTarget::kRight;
  double fit_share = 0.5;                                 // of the rows, for the scorers
  uint64_t seed = 0;                                      // of the split and the folds
  std::string data_digest = {}, date = {}, version = {};  // for the evidence
};

// Thresholds that were tested.
struct TestedThresholds {
  Thresholds thresholds = {};
  Tally tally = {};       // on the rows of the test
  double loss_bound = 1;  // UpperRateBound at delta
  bool is_safe = false;
};

struct CalibratorResult {
  Calibration calibration = {};
  std::vector<ScoreReport> scorers = {};  // [tiers - 1]: on the rows they were fitted on, each held out
  std::vector<double> penalties = {};     // [tiers - 1]
  std::vector<TestedThresholds> candidates = {};  // safest first
  size_t chosen = 0;                              // the cheapest safe one
};

// INVALID_ARGUMENT for too few rows or a feature that does not fit the kind; FAILED_PRECONDITION when no
// threshold is safe, with what the rows could show at best, or none that is saves anything.
StatusOr<CalibratorResult> Calibrate(const Records& records, const CalibratorOptions& options);

// What a calibration with these tiers does on other records. INVALID_ARGUMENT when the tiers differ.
StatusOr<Tally> ApplyCalibration(const Calibration& calibration, const Records& records);

// A cascade whose gates all ask for a mean log-probability above `min_mean_logprob`.
Tally ApplyLogprobThreshold(double min_mean_logprob, const Records& records);
Tally ApplyOracle(const Records& records);

}  // namespace terrace
