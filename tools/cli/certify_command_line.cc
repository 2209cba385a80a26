#include "tools/cli/certify_command_line.h"

#include <string>

#include "base/status.h"
#include "tools/cli/option_values.h"

namespace terrace {
namespace {

constexpr uint32_t kMaxProbe = 1000;
constexpr double kMaxDivergence = 1e6;
constexpr double kLeastMargin = 1e-6, kMostMargin = 0.999999, kLeastLevel = 1e-6, kMostLevel = 0.49;

}  // namespace

void AddAskingOptions(CLI::App& command, CLI::Option* model, EvaluateOptions& options) {
  ModelTarget& target = options.target;
  const auto [tasks, limit, concurrency, max_tokens] =
      AddRowOptions(command, {options.tasks, options.limit, options.concurrency, options.max_tokens,
                              "the six test files of models/eval"});
  auto* const threads = command.add_option("--threads", target.threads, "of each model (default: all cores)")
                            ->type_name(kWholeNumber);
  const auto [device, compute, kv_dtype] =
      AddEngineOptions(command, target.device, target.compute, target.kv_dtype);
  for (CLI::Option* const option :
       {tasks, limit, concurrency, max_tokens, threads, device, compute, kv_dtype})
    option->needs(model);
}

void AddComparisonOptions(CLI::App& command, EvaluateOptions& options) {
  command
      .add_option(
          "--baseline-records", options.baseline_records,
          "file of the baseline's answers: those it has are not asked for again, the others are added")
      ->type_name("FILE");
  command
      .add_option("--save-records", options.records,
                  "file for the model's answers: a run that was ended goes on where it was")
      ->type_name("FILE");
  command
      .add_option("--margin", options.comparison.margin,
                  "share of a task's rows by which a model may be worse and still be as good")
      ->type_name(kRealNumber)
      ->check(Within(kLeastMargin, kMostMargin))
      ->capture_default_str();
  command
      .add_option("--level", options.comparison.level,
                  "about how likely it may be that any task's verdict \"non-inferior\" is wrong")
      ->type_name(kRealNumber)
      ->check(Within(kLeastLevel, kMostLevel))
      ->capture_default_str();
  command.add_flag_callback(
      "--no-divergence", [&options] { options.divergence = false; },
      "do not compare the distributions of the next token");
  command
      .add_option(
          "--probe", options.probe,
          "look a fact up in long prompts too: so many of each of 4 lengths and 5 depths, as a task of "
          "its own; 0: none")
      ->type_name(kWholeNumber)
      ->check(CLI::Range(0u, kMaxProbe).description(""))
      ->capture_default_str();
  command
      .add_option("--probe-tokens", options.probe_tokens,
                  "of the longest of them, at most; what the context holds is the limit anyway")
      ->type_name(kWholeNumber)
      ->check(AboveZero())
      ->capture_default_str();
}

void AddCertify(CLI::App& app, CertifyOptions& options) {
  EvaluateOptions& evaluate = options.evaluate;
  CLI::App* const certify = app.add_subcommand(
      "certify", "Show on tasks that a model is as good as its baseline, and sign what was found.");
  auto* const what = certify->add_option_group("what to do")->require_option(1);
  auto* const model = what->add_option("--model", evaluate.target.model, "candidate: a model folder or .gguf")
                          ->type_name("MODEL");
  what->add_option(
          "--make-key", options.make_key,
          "make a pair of keys: NAME.private.pem, which signs, and NAME.public.pem, for manifest_keys")
      ->type_name("NAME");
  auto* const baseline =
      certify->add_option("--baseline", evaluate.baseline, "what it is compared with")->type_name("MODEL");
  auto* const key =
      certify->add_option("--key", options.key, "private key (Ed25519, PEM) that signs")->type_name("FILE");
  auto* const out = certify->add_option("--out", options.out, "manifest to write, in place of what is there")
                        ->type_name("FILE");
  AddAskingOptions(*certify, model, evaluate);
  AddComparisonOptions(*certify, evaluate);
  certify
      ->add_option("--max-mean-kl", options.thresholds.max_mean_kl,
                   "of the baseline's distributions from the model's, nats")
      ->type_name(kRealNumber)
      ->check(Within(0, kMaxDivergence))
      ->capture_default_str();
  certify
      ->add_option("--max-flip-rate", options.thresholds.max_flip_rate,
                   "share of places at which the likeliest token is another one")
      ->type_name(kRealNumber)
      ->check(Within(0, 1))
      ->capture_default_str();
  for (CLI::Option* const option : {baseline, key, out}) {
    model->needs(option);
    option->needs(model);
  }
  certify->footer(
      "Exit code 1: the manifest says \"failed\". docs/how-to/certify.md says what it means.\n"
      "Examples: terrace certify --make-key gate\n"
      "          terrace certify --model small-q8.gguf --baseline models/terrace-demo-small --key "
      "gate.private.pem --out small-q8.json");
}

void AddVerifyManifest(CLI::App& app, VerifyManifestOptions& options) {
  CLI::App* const verify =
      app.add_subcommand("verify-manifest", "Whether a manifest of terrace certify lets a model in.");
  verify->add_option("file", options.file, "manifest")->type_name("FILE")->required();
  auto* const what = verify->add_option_group("what to do")->require_option(1);
  auto* const keys =
      what->add_option("--keys", options.keys, "public keys (PEM), one of which has to have signed")
          ->type_name("FILE");
  what->add_flag("--payload", options.payload,
                 "write the bytes that are signed, for other tools, and check nothing");
  auto* const model =
      verify
          ->add_option("--model", options.model, "model folder or .gguf that it has to be of (default: any)")
          ->type_name("MODEL");
  auto* const baseline =
      verify->add_option("--baseline", options.baseline, "the same of what the model was compared with")
          ->type_name("MODEL");
  for (CLI::Option* const option : {model, baseline}) option->needs(keys);
  verify->footer(
      "Exit code 1: it does not, and the reason is said; a tier's own manifest_limits are not known here.\n"
      "Example: terrace verify-manifest small-q8.json --keys gate.public.pem --model small-q8.gguf");
}

}  // namespace terrace
