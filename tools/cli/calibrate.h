// `terrace calibrate`: thresholds for a cascade, with a bound on how often it answers worse than its last
// tier.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "router/tier/calibration.h"
#include "tools/calibrate/calibrator.h"
#include "tools/cli/calibrate_records.h"
#include "tools/cli/command_context.h"

namespace terrace {

// What `calibrate` and `train-router` have in common.
struct CalibrationFlags {
  std::string policy = "auto";
  RiskLimit limit = {};
  std::vector<std::string> features = {};  // names and groups; empty: what the router takes
  ScoreTarget target = ScoreTarget::kRight;
  double fit_share = 0.5;
  uint64_t seed = 0;
  std::string report = {};  // a file of records that are only reported on
  std::string out = {};     // the calibration file; "": none is written
};

struct CalibrateOptions {
  std::vector<std::string> records = {};  // files; or
  AskTiersOptions ask = {};               // the tiers that are asked
  std::vector<std::string> tasks;         // files; empty: models/eval/validation.jsonl
  uint32_t limit = 0;                     // rows of each file; 0: all
  bool records_only = false;              // what was asked is saved, and that is all
  std::string save_records = {};  // a file for what was asked, in FILE.journal until it is whole; "": none
  CalibrationFlags calibration = {};
};

Status RunCalibrate(const CalibrateOptions& options, const CommandContext& context);

// The text of records files of the same tiers, as that of one. INVALID_ARGUMENT when one is of other tiers
// than the first, or is there twice; errors of ReadFile and ParseRecords.
StatusOr<std::string> ReadRecords(const std::vector<std::string>& paths);

// INVALID_ARGUMENT for features that do not exist, that a classifier would have to wait for, or, where a file
// is to be written, that the router does not look at; and when that file is one of `records` or reported on.
Status CheckFlags(const CalibrationFlags& flags, CalibrationKind kind,
                  const std::vector<std::string>& records);

// Calibrates from the text of a records file, shows what came of it and writes the calibration. `flags` are
// as CheckFlags takes them.
Status RunCalibrator(const std::string& records_text, CalibrationKind kind, const CalibrationFlags& flags,
                     const CommandContext& context);

// `names`: features, or all of a group: signals, prompt, first_token, derived, agreement. None: signals and
// prompt for a cascade, prompt for a classifier. INVALID_ARGUMENT for an unknown or repeated one.
StatusOr<std::vector<const Feature*>> ChooseFeatures(const std::vector<std::string>& names,
                                                     CalibrationKind kind);

}  // namespace terrace
