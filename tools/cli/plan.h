// `terrace plan`: which way to serve a model keeps to what is asked, and which of those costs least.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/model_target.h"
#include "tools/cli/report_variants.h"
#include "tools/optimize/calibration.h"
#include "tools/plan/constraints.h"
#include "tools/plan/serving_simulation.h"

namespace terrace {

struct PlanOptions {
  ModelTarget target = {};  // the baseline, in this process
  PlanConstraints constraints = {};
  Traffic traffic = {};
  std::string trace = {};   // file of requests (tools/plan/trace_file.h), instead of what `traffic` draws
  double usd_per_hour = 0;  // of a machine like this one, above 0
  uint32_t max_sequences = 16, max_machines = 16;
  std::vector<uint32_t> ranks = {1};         // that a worker is run on, each considered: powers of two
  std::vector<std::string> techniques = {};  // names of kReportTechniques, or "all"
  std::vector<ReportVariant> variants = {};
  bool combine = false;                      // consider CombinationsOf those, too
  std::vector<ReportCascade> cascades = {};  // of those and the baseline; the report has to have them
  CalibrationOptions calibration = {};       // of techniques that need it
  uint64_t mixed_bytes = 0;                  // as of MakeOptions
  std::string work = "report";               // folder for models that are made
  std::string report = {};                // of terrace report: what answers are worth, and drafts; "": none
  std::optional<double> acceptance = {};  // of drafts; absent: as the report has it
  uint32_t probe_repeats = 3;             // how often each step is measured
  std::string out = {};                   // cluster file of the best; "": none
  bool verify = false;                    // run the best under the traffic, and compare
};

// Measures, predicts, ranks and tells; writes `out`. AnswerIsNo where nothing keeps every constraint: then no
// file is written; and, with `verify`, where what was measured breaks one. NotVerified where the best is not
// run here, after the best of those that are was. INVALID_ARGUMENT for names that are there twice or mean
// nothing; errors of MakeVariant, ProbeSteps, MeasureSumsHere, ParseReport and ParseTrace; UNAVAILABLE when
// `out` cannot be written; CANCELLED on a signal.
Status RunPlan(const PlanOptions& options, const CommandContext& context);

}  // namespace terrace
