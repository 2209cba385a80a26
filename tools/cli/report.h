// `terrace report`: what each way to serve a model family costs and how good its answers are, measured on
// this machine; or what reports that were saved say of prices through time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/evaluate.h"
#include "tools/cli/report_variants.h"
#include "tools/optimize/calibration.h"

namespace terrace {

struct ReportOptions {
  // The baseline as its target's model, how models are run, tasks, limit, concurrency, max_tokens, level and
  // divergence; the rest is not used.
  EvaluateOptions evaluate = {};
  double usd_per_hour = 0;                   // of this machine, above 0
  std::vector<std::string> techniques = {};  // names of kReportTechniques, or "all"
  std::vector<ReportVariant> variants = {};
  std::vector<ReportCascade> cascades = {};
  CalibrationOptions calibration = {};      // of techniques that need it
  uint64_t mixed_bytes = 0;                 // as of MakeOptions
  std::vector<uint32_t> batches = {1, 16};  // sequences at once whose speed is measured
  uint32_t speed_tokens = 64;               // that each of them generates
  double speed_seconds = 1;                 // for which each batch is measured in a pass, at least
  uint32_t speed_passes = 3;                // over all rows; medians of passes are told
  std::string work = "report";              // folder for the report, and all that it was made from
  // Instead of all that: report.json files, and the levels of accuracy to look at.
  std::vector<std::string> history = {};
  std::vector<double> levels = {};
};

// Writes report.json, report.md and report.svg into the work folder, and shows the Markdown. What an earlier
// run has measured there of the same models, tasks and settings is kept; one that was ended goes on where it
// was. INVALID_ARGUMENT, before anything is measured, for names that are there twice or mean nothing; errors
// of what is measured, with the row's name in front; CANCELLED on a signal.
Status RunReport(const ReportOptions& options, const CommandContext& context);

}  // namespace terrace
