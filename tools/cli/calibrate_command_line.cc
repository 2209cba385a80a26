#include "tools/cli/calibrate_command_line.h"

#include <map>
#include <string>

#include "base/json.h"
#include "base/status.h"
#include "tools/cli/option_values.h"
#include "tools/cli/router_client.h"

namespace terrace {
namespace {

constexpr size_t kMaxStarts = 64;

void AddCalibration(CLI::App& command, const char* features, CalibrationFlags& flags) {
  command.add_option("--policy", flags.policy, "name of the policy that the file is for")
      ->type_name("NAME")
      ->capture_default_str();
  command
      .add_option("--epsilon", flags.limit.epsilon,
                  "share of requests that may be wrong where the last tier would be right")
      ->type_name(kRealNumber)
      ->check(Within(0, 1))
      ->capture_default_str();
  command.add_option("--delta", flags.limit.delta, "how likely it may be that more are")
      ->type_name(kRealNumber)
      ->check(Within(0, 1))
      ->capture_default_str();
  command
      .add_option("--starts", flags.limit.starts, "places where testing begins, each with delta over this")
      ->type_name(kWholeNumber)
      ->check(CLI::Range(size_t{1}, kMaxStarts).description(""))
      ->capture_default_str();
  command
      .add_option("--features", flags.features,
                  Concat("what scorers look at, by name (docs/how-to/calibrate.md) or group: ", features))
      ->type_name("NAME,NAME,...")
      ->delimiter(',');
  static const std::map<std::string, ScoreTarget> kTargets = {{"right", ScoreTarget::kRight},
                                                              {"no_worse", ScoreTarget::kNoWorse}};
  command
      .add_option_function<std::string>(
          "--target", [&flags](const std::string& name) { flags.target = kTargets.at(name); },
          "what scorers predict: that the answer is right, or no_worse: right, or the last tier's is wrong "
          "too "
          "(default: right)")
      ->type_name("TARGET")
      ->check(CLI::IsMember(kTargets).description(""));
  command
      .add_option("--fit-share", flags.fit_share, "of the rows, for the scorers; the rest tests thresholds")
      ->type_name(kRealNumber)
      ->check(Within(0, 1))
      ->capture_default_str();
  command.add_option("--seed", flags.seed, "of the split of the rows")
      ->type_name(kWholeNumber)
      ->capture_default_str();
  command.add_option("--report", flags.report, "records to report on, which nothing is chosen by")
      ->type_name("FILE");
  command.add_option("--out", flags.out, "calibration file to write (default: only the tables are shown)")
      ->type_name("FILE");
}

void AddAsking(CLI::App& command, CLI::Option* tiers, CalibrateOptions& options) {
  ModelTarget& target = options.ask.target;
  auto* const router =
      command
          .add_option("--router", target.router,
                      Concat("router of the served tiers, host:port (default: ", kDefaultRouter, ")"))
          ->type_name(kAddress);
  auto* const router_ops =
      command.add_option("--router-ops", options.ask.router_ops, "its ops address, host:port")
          ->type_name(kAddress)
          ->capture_default_str();
  AddAccessOptions(command, target.access);
  auto* const threads =
      command.add_option("--threads", target.threads, "of a model in this process (default: all cores)")
          ->type_name(kWholeNumber);
  const auto [device, compute, kv_dtype] =
      AddEngineOptions(command, target.device, target.compute, target.kv_dtype);
  const auto [drafter, draft_model] = AddDraftOptions(command, target.drafter, target.draft_model);
  const auto [tasks, limit, concurrency, max_tokens] =
      AddRowOptions(command, {options.tasks, options.limit, options.ask.concurrency, options.ask.max_tokens,
                              "models/eval/validation.jsonl"});
  auto* const save =
      command
          .add_option("--save-records", options.save_records,
                      "file for what was asked, to be used again; until it is whole FILE.journal has the "
                      "answers, and the same command goes on with them")
          ->type_name("FILE");
  command.add_flag("--records-only", options.records_only, "save the records, and end")->needs(save);
  for (CLI::Option* const option : {router, router_ops, threads, device, compute, kv_dtype, drafter,
                                    draft_model, tasks, limit, concurrency, max_tokens, save})
    option->needs(tiers);
}

}  // namespace

void AddCalibrate(CLI::App& app, CalibrateOptions& options) {
  CLI::App* const calibrate = app.add_subcommand(
      "calibrate", "Find when a cascade may keep a smaller tier's answer, with a bound on the loss.");
  auto* const source = calibrate->add_option_group("records")->require_option(1);
  source
      ->add_option(
          "--records", options.records,
          "labelled records of an earlier --save-records, or of routers' shadow.records_file; several "
          "files of the same tiers are taken together")
      ->type_name("FILE");
  auto* const tiers = source
                          ->add_option("--tiers", options.ask.tiers,
                                       "tiers to ask, cheapest first: served ones, or NAME=MODEL for a model "
                                       "folder or .gguf that is run in this process")
                          ->type_name("NAME,NAME,...")
                          ->delimiter(',');
  AddAsking(*calibrate, tiers, options);
  AddCalibration(*calibrate,
                 "signals (of the answer), prompt, first_token; for tables without --out also derived and "
                 "agreement, which the router does not take (default: signals,prompt)",
                 options.calibration);
  calibrate->footer(
      "docs/how-to/calibrate.md says what the bound means.\n"
      "Examples: terrace calibrate --tiers nano,small,base --save-records r.jsonl --out auto.json\n"
      "          terrace calibrate --records r.jsonl --report test.jsonl");
}

void AddTrainRouter(CLI::App& app, TrainRouterOptions& options) {
  CLI::App* const train =
      app.add_subcommand("train-router", "Learn from labelled records which tier is enough for a prompt.");
  train->add_option("--records", options.records, "records, as terrace calibrate --records reads them")
      ->type_name("FILE")
      ->required();
  AddCalibration(*train,
                 "prompt, or prompt,first_token: then the router asks the first tier for one token before it "
                 "chooses (default: prompt)",
                 options.calibration);
  train->footer(
      "docs/how-to/calibrate.md has the format of the records.\n"
      "Examples: terrace train-router --records r.jsonl --out by-prompt.json\n"
      "          terrace train-router --records r.jsonl --features prompt,first_token --out begun.json");
}

}  // namespace terrace
