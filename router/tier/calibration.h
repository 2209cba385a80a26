// What `terrace calibrate` and `terrace train-router` found: for each tier of a policy but the last a scorer
// and a threshold, and the evidence that both rest on. Values; pure.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "router/tier/calibration_features.h"

namespace terrace {

enum class CalibrationKind : uint8_t {
  kCascade,     // the tiers answer one after the other, until an answer's score is above its threshold
  kClassifier,  // scores of the prompt choose one tier, the first that is above its threshold
};
const char* CalibrationKindName(CalibrationKind kind);  // "cascade", "classifier"

struct CalibratedGate {
  FeatureScorer scorer = {};
  double threshold = 1;  // of the probability

  bool Accepts(const FeatureInputs& inputs) const { return scorer.Probability(inputs) > threshold; }
};

struct CalibratedStep {
  std::string tier = {};
  std::string model_digest = {}, text_digest = {};  // of the model that was asked
  std::optional<CalibratedGate> gate = {};          // of every step but the last
};

// A *loss* is a wrong answer where the last tier alone would have given a right one. With probability at
// least 1 - delta over the draw of the rows, at most epsilon of all requests like them are losses.
struct CalibrationEvidence {
  double epsilon = 0, delta = 0;
  uint64_t rows = 0, losses = 0;                // that the thresholds were tested on
  double loss_bound = 0;                        // of Clopper and Pearson, at delta
  uint64_t fit_rows = 0;                        // others, that the scorers were fitted on
  double accuracy = 0, last_tier_accuracy = 0;  // on `rows`
  double relative_cost = 0;                     // on `rows`: parameters x tokens, of the last tier's alone
  std::string data_digest = {};                 // of the records
  std::string date = {};                        // 2026-11-30
  std::string version = {};                     // of the tool
};

struct Calibration {
  CalibrationKind kind = CalibrationKind::kCascade;
  std::string policy = {};
  std::vector<CalibratedStep> steps = {};  // at least two
  CalibrationEvidence evidence = {};
};

// The text of a calibration file, and back. DATA_LOSS names what is wrong: another format, a member that is
// absent, unknown or out of range, a checksum that does not fit.
std::string CalibrationText(const Calibration& calibration);
StatusOr<Calibration> ParseCalibration(std::string_view text);

struct ServedTier {
  std::string name = {};
  std::string model_digest = {}, text_digest = {};  // "" while no replica has been ready yet
};
// Whether the tiers are the ones it was measured on. FAILED_PRECONDITION, reason stale_calibration, names the
// tier, the digest that was measured and the one that is served.
Status CheckCalibration(const Calibration& calibration, std::span<const ServedTier> tiers);

}  // namespace terrace
