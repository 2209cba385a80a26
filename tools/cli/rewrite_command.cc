#include "tools/cli/rewrite_command.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/clock.h"
#include "base/machine.h"
#include "tools/cli/format.h"
#include "tools/cli/option_values.h"

namespace terrace {
namespace {

constexpr size_t kShownWorst = 5;
constexpr uint32_t kMaxThreads = 1024;

std::string Listed(const std::vector<std::string>& words) {
  std::string out;
  for (size_t i = 0; i < words.size(); ++i)
    out += Concat(i == 0 ? "" : i + 1 == words.size() ? " and " : ", ", words[i]);
  return out;
}

}  // namespace

void AddRewritePaths(CLI::App& command, RewriteOptions& options) {
  command.add_option("--model", options.model, "model folder or .gguf")->type_name("MODEL")->required();
  command.add_option("--out", options.out, "what to write, not there yet")->type_name("PATH")->required();
}

void AddRewriteSettings(CLI::App& command, RewriteOptions& options, const std::string& data,
                        const std::string& damping) {
  auto* const calibration =
      command
          .add_option("--calibration", options.calibration.path,
                      Concat("JSON lines of chats or plain texts like those that will be served; ", data))
          ->type_name("FILE");
  command.add_option("--samples", options.calibration.samples, "rows of it to take, drawn by --seed; 0: all")
      ->type_name(kWholeNumber)
      ->needs(calibration)
      ->capture_default_str();
  command.add_option("--seed", options.calibration.seed, "of the rows that are drawn")
      ->type_name(kWholeNumber)
      ->needs(calibration)
      ->capture_default_str();
  command
      .add_option("--damping", options.damping,
                  Concat(damping, ": added to the diagonal of the Hessian, times its mean"))
      ->type_name(kRealNumber)
      ->check(Quiet(CLI::Range(0.0, 1.0)))
      ->capture_default_str();
  command.add_option("--threads", options.threads, "default: all cores")
      ->type_name(kWholeNumber)
      ->check(Quiet(CLI::Range(1u, kMaxThreads)));
}

void FillRequest(const RewriteOptions& options, const CommandContext& context,
                 std::function<std::string(const LayerReport&)> text, RewriteRequest& request) {
  request.model = options.model;
  request.out = options.out;
  request.calibration = options.calibration;
  request.damping = options.damping;
  request.threads = options.threads > 0 ? options.threads : UsableCores();
  request.is_cancelled = [&context] { return context.shutdown.IsPending(); };
  request.on_layer = [&context, text = std::move(text),
                      last = RealClock().Now()](const LayerReport& layer) mutable {
    const MonoTime now = RealClock().Now();
    context.out << "layer " << layer.layer + 1 << "/" << layer.layers << "  " << text(layer) << "  "
                << (layer.was_kept ? "kept" : FormatSeconds(Seconds(now - last))) << "\n"
                << std::flush;
    last = now;
    return context.shutdown.IsPending() ? Cancelled("interrupted") : Status();
  };
}

Status Explained(const Status& status) {
  if (status.code() != StatusCode::kCancelled) return status;
  return Cancelled("interrupted; the same command goes on where this one was");
}

std::string ErrorsText(const LayerReport& layer) {
  constexpr const char* kShort[] = {"query", "key", "value", "output", "gate", "up", "down"};
  std::string out;
  for (size_t i = 0; i < layer.linears.size() && i < std::size(kShort); ++i)
    out += Concat(i == 0 ? "" : ", ", kShort[i], " ", FormatFixed(layer.linears[i].relative_error, 4));
  return out;
}

std::string CalibrationText(const RewriteReport& report) {
  std::string out;
  if (report.calibration_tokens > 0 && report.calibration_tokens < report.most_inputs) {
    out = Concat("warning: ", FormatCount(report.calibration_tokens),
                 " tokens of calibration text, fewer than the ", FormatCount(report.most_inputs),
                 " inputs of the widest linear: take more rows (--samples)\n");
  }
  if (report.experts_with_few_tokens > 0) {
    out +=
        Concat("warning: to ", FormatCount(report.experts_with_few_tokens), " of ",
               FormatCount(report.experts), " experts of all layers fewer tokens go than they have inputs");
    if (report.experts_without_tokens > 0)
      out += Concat(", to ", FormatCount(report.experts_without_tokens), " of them none");
    out += "; a linear of theirs with fewer is rewritten by its weights alone: take more rows (--samples)\n";
  }
  return out;
}

std::string WorstText(const RewriteReport& report) {
  std::vector<const LinearReport*> linears;
  for (const LayerReport& layer : report.layers) {
    for (const LinearReport& linear : layer.linears) linears.push_back(&linear);
  }
  std::ranges::stable_sort(linears, std::ranges::greater(), &LinearReport::relative_error);
  linears.resize(std::min(linears.size(), kShownWorst));
  std::vector<std::vector<std::string>> rows = {{"largest errors", "dtype", "relative"}};
  for (const LinearReport* linear : linears)
    rows.push_back({linear->name, linear->dtype, FormatFixed(linear->relative_error, 4)});
  return FormatTable(rows, 2);
}

void AddStepTimes(CLI::App& command, RewriteOptions& options) {
  command.add_flag(
      "--no-step-times", options.no_step_times,
      "do not measure what a step of decoding takes before and after, with both models in memory");
}

StatusOr<std::vector<ComparedSteps>> MeasureSteps(const RewriteOptions& options,
                                                  const CommandContext& context) {
  StepComparisonOptions comparison;
  comparison.before = {
      .model = options.model, .threads = options.threads, .device = "cpu", .is_cancelled = [&context] {
        return context.shutdown.IsPending();
      }};
  comparison.after = comparison.before;
  comparison.after.model = options.out;
  return CompareSteps(comparison);
}

std::string StepTimesText(const StatusOr<std::vector<ComparedSteps>>& steps) {
  constexpr double kTelling = 0.03;  // of the ratio
  if (!steps.ok()) return Concat("what a step takes was not measured: ", Message(steps.status()), "\n");
  std::vector<std::vector<std::string>> rows = {
      {"a step of decoding here", "before", "after", "after / before"}};
  std::vector<std::string> pays, pays_not;
  for (const ComparedSteps& each : *steps) {
    rows.push_back({FormatCount(each.batch, "answer"), FormatSeconds(each.before_seconds),
                    FormatSeconds(each.after_seconds), FormatFixed(each.ratio, 2)});
    (each.ratio < 1 - kTelling ? pays : pays_not).push_back(std::to_string(each.batch));
  }
  std::string verdict = "on these CPUs ";
  if (pays.empty()) {
    verdict += "it does not pay: no step takes less";
  } else if (pays_not.empty()) {
    verdict += "it pays: each step takes less";
  } else {
    verdict += Concat("it pays at batch ", Listed(pays), ", and does not at batch ", Listed(pays_not));
  }
  return Concat(FormatTable(rows, 1), verdict, "\n");
}

}  // namespace terrace
