// What commands that rewrite a model have in common (quantize, prune): their options, and what they tell.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/optimize/model_rewriter.h"
#include "tools/report/step_comparison.h"

namespace terrace {

struct RewriteOptions {
  std::string model, out;
  CalibrationOptions calibration;
  double damping = kDefaultDamping;
  uint32_t threads = 0;  // 0: all cores this process may use
  // Where a step of a worker reads less than before: do not measure what it takes on this machine.
  bool no_step_times = false;
};

// --model and --out.
void AddRewritePaths(CLI::App& command, RewriteOptions& options);
// --calibration, --samples, --seed, --damping and --threads; `data` and `damping` are added to their help.
void AddRewriteSettings(CLI::App& command, RewriteOptions& options, const std::string& data,
                        const std::string& damping);

// --no-step-times.
void AddStepTimes(CLI::App& command, RewriteOptions& options);

template <typename Entries>
std::vector<std::string> Names(const Entries& entries) {
  std::vector<std::string> names;
  for (const auto& entry : entries) names.emplace_back(entry.name);
  return names;
}

template <typename Entry, size_t kCount>
StatusOr<Entry> Named(const Entry (&entries)[kCount], const char* flag, const std::string& name) {
  for (const Entry& entry : entries) {
    if (entry.name == name) return entry;
  }
  return InvalidArgument(flag, ": \"", name, "\" is not known");
}

// Takes the options over. `request` then tells each layer as it is done, with `text` of it, and ends when the
// process is told to. The context outlives the request.
void FillRequest(const RewriteOptions& options, const CommandContext& context,
                 std::function<std::string(const LayerReport&)> text, RewriteRequest& request);

// The status of a run that was ended says how to go on.
Status Explained(const Status& status);

// "query 0.0312, key 0.0290, ...": what linears are called follows from their order.
std::string ErrorsText(const LayerReport& layer);

// Lines where the calibration text, or what of it goes to some expert, has fewer tokens than a linear has
// inputs; else "".
std::string CalibrationText(const RewriteReport& report);

// The linears with the largest errors.
std::string WorstText(const RewriteReport& report);

// Steps of decoding on CPUs of what was read and of what was written. Errors of CompareSteps.
StatusOr<std::vector<ComparedSteps>> MeasureSteps(const RewriteOptions& options,
                                                  const CommandContext& context);
// What was measured, and for how many answers at once it pays: whether steps take less by more than what two
// measurements of the same differ in. An error is told: the model is written.
std::string StepTimesText(const StatusOr<std::vector<ComparedSteps>>& steps);

}  // namespace terrace
