// Calibration text as token sequences: what a model sees while its layers are measured.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/status.h"
#include "text/text_assets.h"
#include "worker/formats/model_config.h"

namespace terrace {

struct CalibrationOptions {
  std::string path = {};  // JSON lines, below
  size_t samples = 0;     // rows to take, drawn by `seed` and in the order of the file; 0: all
  uint64_t seed = 0;
};

struct CalibrationSet {
  std::vector<std::vector<TokenId>> sequences = {};  // none empty
  uint64_t tokens = 0;                               // of all
  size_t rows = 0;                                   // of the file
  Hash128 digest = {};                               // of the file
};

// Each row is a TextRow: a chat, rendered by the model's chat template with its answer where it has one, or
// plain text, as of a completion. Rows longer than the model's context are cut. NOT_FOUND for an absent file,
// DATA_LOSS "file:line: ..." for a row that is not so, reason template_missing for messages to a model
// without a template, and for a file without rows.
StatusOr<CalibrationSet> LoadCalibration(const CalibrationOptions& options, const TextAssets& text,
                                         const ModelConfig& config);

}  // namespace terrace
