#include "tools/cli/report_command_line.h"

#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "tools/cli/certify_command_line.h"
#include "tools/cli/option_values.h"
#include "tools/plan/constraints.h"  // ParseBytes
#include "tools/report/speed_meter.h"

namespace terrace {
namespace {

constexpr double kMaxSpeedSeconds = 3600;
constexpr uint32_t kMaxSpeedPasses = 100;

std::vector<CLI::Option*> AddSpeed(CLI::App& report, ReportOptions& options) {
  auto* const batches =
      report
          .add_option("--batches", options.batches,
                      Concat("sequences at once whose speed is measured, each 1 to ", kMaxSpeedBatch))
          ->type_name("N,N,...")
          ->delimiter(',')
          ->check(Quiet(CLI::Range(1u, kMaxSpeedBatch)))
          ->capture_default_str();
  auto* const tokens = report
                           .add_option("--speed-tokens", options.speed_tokens,
                                       "that each of them generates, past the end of its answer too")
                           ->type_name(kWholeNumber)
                           ->check(Quiet(CLI::Range(kMinSpeedTokens, 1u << 20)))
                           ->capture_default_str();
  auto* const seconds = report
                            .add_option("--speed-seconds", options.speed_seconds,
                                        "for which each batch is measured in a pass, at least")
                            ->type_name(kRealNumber)
                            ->check(Within(0, kMaxSpeedSeconds))
                            ->capture_default_str();
  auto* const passes =
      report
          .add_option("--speed-passes", options.speed_passes,
                      "times that all rows' speeds are measured, one row after the other; medians are told")
          ->type_name(kWholeNumber)
          ->check(Quiet(CLI::Range(1u, kMaxSpeedPasses)))
          ->capture_default_str();
  return {batches, tokens, seconds, passes};
}

}  // namespace

std::vector<CLI::Option*> AddVariantOptions(CLI::App& command, VariantFlags& flags,
                                            const TechniqueSettings& settings) {
  std::vector<std::string> names = {kAllTechniques};
  for (const ReportTechnique& technique : kReportTechniques) names.emplace_back(technique.name);
  auto* const techniques =
      command
          .add_option("--techniques", flags.techniques,
                      Concat("the baseline in another format, which is made in the work folder, or run "
                             "another way: ",
                             TechniqueNames(), ", or all that the model can do"))
          ->type_name("NAME,NAME,...")
          ->delimiter(',')
          ->check(Quiet(CLI::IsMember(names)));
  auto* const variants =
      command
          .add_option(
              "--variant", flags.variants,
              "any other model: NAME=PATH[,kv=TYPE][,compute=TYPE][,draft=PATH], where draft=ngram is "
              "the n-gram drafter; may be repeated")
          ->type_name("VARIANT")
          ->allow_extra_args(false);
  auto* const text = command
                         .add_option("--calibration", settings.calibration.path,
                                     "text for int4-gptq, int4-awq and mixed, as of terrace quantize")
                         ->type_name("FILE");
  auto* const samples =
      command.add_option("--samples", settings.calibration.samples, "rows of it to take; 0: all")
          ->type_name(kWholeNumber)
          ->needs(text)
          ->capture_default_str();
  auto* const fit =
      command
          .add_option_function<std::string>(
              "--mixed-fit",
              [&bytes = settings.mixed_bytes](const std::string& size) {
                bytes = ValueOrThrow("--mixed-fit", ParseBytes(size));
              },
              Concat("of the technique mixed: all weights take at most this, as of terrace quantize --fit "
                     "(default: what ",
                     kUniformSize, " everywhere takes)"))
          ->type_name("SIZE");
  auto* const folder = command.add_option("--work", settings.work, "folder for all that is made")
                           ->type_name("FOLDER")
                           ->capture_default_str();
  auto* const cascades =
      command
          .add_option("--cascade", flags.cascades,
                      "of those and the baseline, one for each threshold of the mean log-probability: "
                      "SMALL+LARGE@T[,T...]; may be repeated")
          ->type_name("CASCADE")
          ->allow_extra_args(false);
  return {techniques, variants, text, samples, fit, folder, cascades};
}

Status ReadVariants(const VariantFlags& flags, std::vector<std::string>& techniques,
                    std::vector<ReportVariant>& variants, std::vector<ReportCascade>& cascades) {
  techniques = flags.techniques;
  for (const std::string& text : flags.variants) {
    auto variant = ParseVariant(text);
    if (!variant.ok()) return Annotate(variant.status(), "--variant");
    variants.push_back(*std::move(variant));
  }
  for (const std::string& text : flags.cascades) {
    auto cascade = ParseCascade(text);
    if (!cascade.ok()) return Annotate(cascade.status(), "--cascade");
    cascades.push_back(*std::move(cascade));
  }
  return {};
}

void AddReport(CLI::App& app, ReportOptions& options) {
  CLI::App* const report = app.add_subcommand(
      "report", "Speed, memory, price and quality of the ways to serve a model, measured on this machine.");
  const auto flags = std::make_shared<VariantFlags>();
  auto* const what = report->add_option_group("what to do")->require_option(1);
  auto* const model =
      what->add_option("--model", options.evaluate.target.model, "the baseline: a model folder or .gguf")
          ->type_name("MODEL");
  auto* const history =
      what->add_option("--history", options.history,
                       "report.json files of the same tasks: what each quality cost at their times")
          ->type_name("FILE");
  report->add_option("--accuracy", options.levels, "levels to look at (default: those of the first frontier)")
      ->type_name("X,X,...")
      ->delimiter(',')
      ->check(Within(0, 1))
      ->needs(history);
  auto* const price =
      report->add_option("--price-per-hour", options.usd_per_hour, "of this machine, US dollars")
          ->type_name(kRealNumber)
          ->check(AboveZero());
  model->needs(price);
  AddAskingOptions(*report, model, options.evaluate);
  auto* const divergence = report->add_flag_callback(
      "--no-divergence", [&options] { options.evaluate.divergence = false; },
      "do not compare the distributions of the next token");
  for (CLI::Option* const option : {price, divergence}) option->needs(model);
  for (CLI::Option* const option :
       AddVariantOptions(*report, *flags, {options.calibration, options.mixed_bytes, options.work}))
    option->needs(model);
  for (CLI::Option* const option : AddSpeed(*report, options)) option->needs(model);
  report->callback([flags, &options] {
    const Status status = ReadVariants(*flags, options.techniques, options.variants, options.cascades);
    if (!status.ok()) throw CLI::ValidationError(Message(status));
  });
  report->footer(
      "docs/how-to/report.md says what each figure means.\n"
      "Examples: terrace report --model models/terrace-demo-base --price-per-hour 0.1 --techniques int8,q8_0 "
      "\\\n"
      "              --variant nano=models/terrace-demo-nano --cascade nano+baseline@-0.05\n"
      "          terrace report --history old/report.json report/report.json");
}

}  // namespace terrace
