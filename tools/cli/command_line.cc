#include "tools/cli/command_line.h"

#include <algorithm>
#include <initializer_list>
#include <map>

#include "CLI/CLI.hpp"
#include "base/version.h"
#include "tools/cli/bench_command_line.h"
#include "tools/cli/calibrate_command_line.h"
#include "tools/cli/certify_command_line.h"
#include "tools/cli/distill_command_line.h"
#include "tools/cli/option_values.h"
#include "tools/cli/plan_command_line.h"
#include "tools/cli/prune_command_line.h"
#include "tools/cli/quantize_command_line.h"
#include "tools/cli/report_command_line.h"
#include "worker/formats/model_config.h"

namespace terrace {
namespace {

constexpr uint32_t kMaxThreads = 1024, kMaxAnswers = 16;
constexpr uint32_t kMaxFitBatch = 65'536, kMaxFitTokens = 1u << 24;

const char* const kAbout =
    "Serves language models, each request from the cheapest one that can do the job.\n"
    "Start with `terrace demo`, or serve your own model with `terrace up --model PATH`.";

void AddUp(CLI::App& app, UpOptions& options) {
  CLI::App* const up =
      app.add_subcommand("up", "Start a local cluster: a router and its workers, until Ctrl-C.");
  auto* const source = up->add_option_group("what to start")->require_option(1);
  source
      ->add_option("-f,--file", options.launch.file,
                   "cluster file (YAML); model paths in it are relative to its folder")
      ->type_name("PATH");
  source
      ->add_option("--model", options.launch.model,
                   "one model (folder or .gguf) as the only tier, named after it")
      ->type_name("MODEL");
  up->add_option("--bin-dir", options.launch.bin_dir,
                 "folder of terrace-router and terrace-worker (default: beside this program)")
      ->type_name("PATH");
  up->add_option("--ready-timeout", options.launch.ready_timeout_seconds,
                 "seconds until everything must be ready")
      ->type_name("SECONDS")
      ->check(AboveZero())
      ->capture_default_str();
  up->footer("Example: terrace up -f deploy/demo/cluster.yaml");
}

void AddDemo(CLI::App& app, DemoOptions& options) {
  CLI::App* const demo = app.add_subcommand("demo", "Start the demo cluster and ask it six prompts.");
  demo->add_option("-f,--file", options.file, "cluster file (default: deploy/demo/cluster.yaml)")
      ->type_name("PATH");
  demo->add_option("--bin-dir", options.bin_dir,
                   "folder of terrace-router and terrace-worker (default: beside this program)")
      ->type_name("PATH");
  demo->add_flag("--once", options.once, "stop after the prompts instead of serving until Ctrl-C");
  demo->footer("Example: terrace demo --once");
}

void AddRequestOptions(CLI::App& command, RequestOptions& options) {
  command.add_option("--max-tokens", options.max_tokens, "longest answer; 0: as the context allows")
      ->type_name("N")
      ->capture_default_str();
  command.add_option("--temperature", options.temperature, "0 is greedy; up to 2")
      ->type_name("X")
      ->check(Within(0, 2))
      ->capture_default_str();
  command.add_option("--top-k", options.top_k, "keep the k likeliest tokens; 0: off")->type_name("N");
  command.add_option("--top-p", options.top_p, "keep the likeliest tokens of this total probability; 1: off")
      ->type_name("X")
      ->check(Within(0, 1));
  command
      .add_option("--min-p", options.min_p,
                  "keep tokens at least this likely relative to the likeliest; 0: off")
      ->type_name("X")
      ->check(Within(0, 1));
  command.add_option("--seed", options.seed, "makes sampling repeatable (default: random)")->type_name("N");
  command.add_option("--stop", options.stop, "end before this text; may be repeated")
      ->allow_extra_args(false);
  command.add_flag("--ignore-eos", options.ignore_eos, "go on past the model's end token");
}

void AddTarget(CLI::App& command, ModelTarget& target) {
  auto* const router =
      command
          .add_option("--router", target.router,
                      Concat("ask the router at host:port (default without --model: ", kDefaultRouter, ")"))
          ->type_name(kAddress);
  auto* const worker =
      command.add_option("--worker", target.worker, "ask one worker at host:port, without a router")
          ->type_name(kAddress)
          ->excludes(router);
  AddAccessOptions(command, target.access);
  auto* const model =
      command
          .add_option(
              "--model", target.model,
              "with --router: a served tier, policy or alias; without: a model folder or .gguf to run "
              "in this process")
          ->type_name("MODEL")
          ->excludes(worker);
  auto* const threads =
      command.add_option("--threads", target.threads, "of a model in this process (default: all cores)")
          ->type_name("N");
  const auto [device, compute, kv_dtype] =
      AddEngineOptions(command, target.device, target.compute, target.kv_dtype);
  const auto [drafter, draft_model] = AddDraftOptions(command, target.drafter, target.draft_model);
  for (CLI::Option* const option : {threads, device, compute, kv_dtype, drafter, draft_model})
    option->excludes(router)->excludes(worker)->needs(model);
}

void AddChat(CLI::App& app, ChatOptions& options) {
  CLI::App* const chat = app.add_subcommand("chat", "Talk to a served model; reads stdin line by line.");
  chat->add_option("--router", options.router, "host:port")->type_name(kAddress)->capture_default_str();
  AddAccessOptions(*chat, options.access);
  chat->add_option("--model", options.model, "tier, policy or alias (default: the router's)")
      ->type_name("MODEL");
  chat->add_option("--system", options.system, "system message");
  AddRequestOptions(*chat, options.request);
  chat->footer("Example: terrace chat --model auto");
}

void AddGenerate(CLI::App& app, GenerateOptions& options) {
  CLI::App* const generate = app.add_subcommand(
      "generate", "One answer, streamed, or several, from a router, a worker or a model in this process.");
  AddTarget(*generate, options.target);
  auto* const input = generate->add_option_group("input")->require_option(1);
  input->add_option("--prompt", options.prompt, "plain text to continue");
  input
      ->add_option("--messages", options.messages_file,
                   "file with a JSON list of {\"role\", \"content\"}; - is stdin")
      ->type_name("FILE");
  input->add_option("--prompt-tokens", options.prompt_tokens, "token ids: 0,2,16")
      ->type_name("IDS")
      ->delimiter(',');
  AddRequestOptions(*generate, options.request);
  generate
      ->add_option("--logprobs", options.logprobs,
                   "log-probability of each token and of 0 to 20 alternatives")
      ->type_name("N")
      ->check(Quiet(CLI::Range(0, 20)));
  generate->add_flag("--prompt-logprobs", options.prompt_logprobs,
                     "the same of the prompt's tokens (the first has none)");
  generate->add_flag("--echo", options.echo, "begin each answer with the prompt");
  generate
      ->add_option("--n", options.answers,
                   "answers to the same prompt, up to 16; several are shown when all are over")
      ->type_name("N")
      ->check(Quiet(CLI::Range(1u, kMaxAnswers)))
      ->capture_default_str();
  generate->add_option("--best-of", options.best_of, "draw this many answers, show the likeliest, best first")
      ->type_name("N")
      ->check(Quiet(CLI::Range(1u, kMaxAnswers)));
  generate->add_flag(
      "--json", options.json,
      "one JSON object: tokens, text, usage, tier, attempts, price, timing; of several answers "
      "{\"answers\": [...], usage, price}");
  generate->footer("Example: terrace generate --model models/terrace-demo-nano --prompt 'Once upon a time'");
}

void AddStatus(CLI::App& app, StatusOptions& options) {
  CLI::App* const status = app.add_subcommand("status", "Tiers and replicas as the router sees them.");
  status->add_option("--router-ops", options.router_ops, "ops address of the router, host:port")
      ->type_name(kAddress)
      ->capture_default_str();
  using Refresh = StatusOptions::Refresh;
  auto* const watch = status->add_flag_callback(
      "--watch", [&options] { options.refresh = Refresh::kAlways; },
      "refresh every second (the default on a terminal)");
  status
      ->add_flag_callback(
          "--once", [&options] { options.refresh = Refresh::kNever; }, "show once and end")
      ->excludes(watch);
  status->add_flag("--json", options.json, "the router's own JSON");
  status->footer("Example: terrace status --once");
}

void AddKey(CLI::App& app, KeyOptions& options) {
  CLI::App* const key = app.add_subcommand(
      "key", "Make an API key for a tenant, and the key_sha256 that the router's keys file has of it.");
  auto* const of =
      key->add_option("--of", options.file, "only the key_sha256 of the key in a file")->type_name("FILE");
  key->add_option("--out", options.out, "a new file for the key, which is then not shown")
      ->type_name("FILE")
      ->excludes(of);
  key->footer("Example: terrace key");
}

void AddValidate(CLI::App& app, ValidateOptions& options) {
  CLI::App* const validate = app.add_subcommand(
      "validate", "Whether a router, a worker or a cluster would start with a configuration.");
  validate->add_option("file", options.file, "YAML file")->type_name("FILE")->required();
  validate
      ->add_option(
          "--running", options.running,
          "file that a router or a cluster runs with: whether its router can change to the other, too")
      ->type_name("FILE");
  validate
      ->add_option("--kind", options.kind, "router, worker or cluster (default: what the file looks like)")
      ->check(Quiet(CLI::IsMember({"router", "worker", "cluster"})));
  validate->add_option("--bin-dir", options.bin_dir, "folder of the binaries (default: this one's)")
      ->type_name("FOLDER");
  validate->footer(
      "Exit code 1: all would start, and a tier's manifests keep models out.\n"
      "Example: terrace validate deploy/demo/cluster.yaml");
}

void AddDigest(CLI::App& app, DigestOptions& options) {
  CLI::App* const digest = app.add_subcommand(
      "digest",
      "Write the hashes of a model's weights beside it, so that each rank of a group reads its part alone.");
  digest->add_option("--model", options.model, "model folder or .gguf")->type_name("MODEL")->required();
  digest->add_flag("--check", options.check,
                   "instead: whether the weights are those of the list that is there");
  digest->footer(
      "Exit code 1 with --check: they are not. docs/how-to/tensor-parallel.md says who reads the list.\n"
      "Example: terrace digest --model models/terrace-demo-base");
}

// --fit, which is returned, and what goes with it.
CLI::Option* AddFit(CLI::App& inspect, InspectFitOptions& options) {
  auto* const fit =
      inspect
          .add_option("--fit", options.devices,
                      "instead: which splits over these devices fit, and what they would do: 8x80GB, "
                      "2x24GB, 8xH100")
          ->type_name("DEVICES");
  inspect
      .add_option("--batch", options.fit.batch,
                  "sequences at once, of all devices together (default: 16 for each device)")
      ->type_name(kWholeNumber)
      ->check(Quiet(CLI::Range(1u, kMaxFitBatch)))
      ->needs(fit);
  inspect
      .add_option("--context", options.fit.context,
                  "tokens of each sequence (default: 4096, or the model's context where that is shorter)")
      ->type_name(kWholeNumber)
      ->check(Quiet(CLI::Range(1u, kMaxFitTokens)))
      ->needs(fit);
  inspect.add_option("--prompt-tokens", options.fit.prefill_tokens, "of the prompt that is read")
      ->type_name(kWholeNumber)
      ->check(Quiet(CLI::Range(1u, kMaxFitTokens)))
      ->capture_default_str()
      ->needs(fit);
  inspect.add_option("--kv-dtype", options.fit.kv_dtype, "of keys and values: f16, bf16, int8 or fp8")
      ->type_name("TYPE")
      ->check(Quiet(CLI::IsMember({"f16", "bf16", "int8", "fp8"})))
      ->capture_default_str()
      ->needs(fit);
  inspect
      .add_option("--weights", options.weights,
                  "of a model without: the format that its matrices are to have, such as q4_k or int4-g64 "
                  "(default: bf16)")
      ->type_name("TYPE")
      ->needs(fit);
  return fit;
}

void AddInspect(CLI::App& app, InspectOptions& options) {
  CLI::App* const inspect =
      app.add_subcommand("inspect", "What a model on disk is, and the memory it needs.");
  inspect
      ->add_option("model", options.model,
                   "model folder or .gguf; with --fit a folder without weights or a config.json, too")
      ->type_name("MODEL")
      ->required();
  auto* const tensors =
      inspect->add_flag("--tensors", options.all_tensors, "every tensor, not one line for all layers");
  inspect->add_flag("--json", options.json, "one JSON object");
  AddFit(*inspect, options.fit)->excludes(tensors);
  inspect->footer(
      "Examples: terrace inspect models/terrace-demo-base.f16.gguf\n"
      "          terrace inspect llama-70b/config.json --fit 8xH100 --batch 64\n"
      "Exit code 1 with --fit: nothing fits. docs/how-to/tensor-parallel.md says what is predicted.");
}

// `others` are of tasks.
void AddPerplexity(CLI::App& evaluate, EvaluateOptions& options, std::initializer_list<CLI::Option*> others) {
  auto* const perplexity =
      evaluate
          .add_option(
              "--perplexity", options.perplexity,
              "instead of tasks: how likely a model in this process finds the text of files, on CPUs; a "
              ".jsonl has a chat or text a line, --limit of them")
          ->type_name("FILE");
  for (CLI::Option* const option : others) perplexity->excludes(option);
  evaluate
      .add_option("--window", options.window,
                  "of --perplexity: tokens that are read together (default: 2048, or the context)")
      ->type_name(kWholeNumber)
      ->check(Quiet(CLI::Range(2u, kMaxContext)))
      ->needs(perplexity);
  evaluate
      .add_option(
          "--stride", options.stride,
          "of --perplexity: tokens from the beginning of a window to the next (default: half a window)")
      ->type_name(kWholeNumber)
      ->check(AboveZero())
      ->needs(perplexity);
}

void AddEvaluate(CLI::App& app, EvaluateOptions& options) {
  CLI::App* const evaluate =
      app.add_subcommand("evaluate", "Accuracy, tokens, price and cost on task files.");
  AddTarget(*evaluate, options.target);
  auto* const compare =
      evaluate
          ->add_option(
              "--compare", options.compare,
              "a second model of the same kind (with --worker: another worker), shown beside the first")
          ->type_name("MODEL");
  evaluate
      ->add_option("--baseline", options.baseline,
                   "a second model of the same kind (with --worker: another worker): is the first one worse, "
                   "row by row")
      ->type_name("MODEL")
      ->excludes(compare);
  AddComparisonOptions(*evaluate, options);
  evaluate
      ->add_option(
          "--router-ops", options.router_ops,
          "ops address of the router, host:port: tells which model a tier has, so that --save-records "
          "has no answers of another one")
      ->type_name(kAddress)
      ->capture_default_str();
  const auto [tasks, limit, concurrency, max_tokens] =
      AddRowOptions(*evaluate, {options.tasks, options.limit, options.concurrency, options.max_tokens,
                                "the six test files of models/eval"});
  AddPerplexity(*evaluate, options, {compare, tasks, concurrency, max_tokens});
  evaluate->add_flag("--json", options.json, "one JSON object");
  evaluate->footer(
      "docs/how-to/evaluate.md has the format of task files.\n"
      "Examples: terrace evaluate --router 127.0.0.1:8081 --model auto --compare base\n"
      "          terrace evaluate --model models/terrace-demo-nano\n"
      "          terrace evaluate --worker 127.0.0.1:8101 --baseline 127.0.0.1:8103\n"
      "          terrace evaluate --model small-q8.gguf --baseline models/terrace-demo-small\n"
      "          terrace evaluate --model small-q8.gguf --perplexity text.txt");
}

void AddShapeChanges(CLI::App& command, ShapeChanges& changes) {
  const struct {
    const char *flag, *text;
    std::optional<uint32_t>& value;
  } sizes[] = {{"--layers", "number of layers", changes.layers},
               {"--hidden", "width", changes.hidden},
               {"--heads", "attention heads", changes.heads},
               {"--kv-heads", "key and value heads; a divisor of the heads", changes.kv_heads},
               {"--head-dim", "size of a head, even (default: width over heads, where one of them is given)",
                changes.head_dim},
               {"--ffn", "width of the feed-forward part", changes.ffn},
               {"--vocab", "vocabulary; what the tokenizer lacks becomes unused tokens", changes.vocab},
               {"--context", "longest sequence, in tokens", changes.context}};
  for (const auto& size : sizes) command.add_option(size.flag, size.value, size.text)->type_name("N");
  auto* const tied = command.add_flag_callback(
      "--tied", [&changes] { changes.tied = true; }, "the output matrix is the embedding");
  command
      .add_flag_callback(
          "--untied", [&changes] { changes.tied = false; }, "the output matrix is one of its own")
      ->excludes(tied);
}

void AddSynthesize(CLI::App& app, SynthesizeOptions& options) {
  CLI::App* const synthesize =
      app.add_subcommand("synthesize", "Write a model of any shape with random weights, for measurements.");
  synthesize->add_option("--out", options.out, "what to write: a .gguf file or a folder, not there yet")
      ->type_name("PATH")
      ->required();
  auto* const source = synthesize->add_option_group("shape")->require_option(1);
  source
      ->add_option("--shape", options.shape,
                   "135m, 0.5b, 1b or 8b: SmolLM2 135M, Qwen2.5 0.5B, Llama 3.2 1B, Llama 3.1 8B")
      ->type_name("NAME")
      ->check(
          Quiet(CLI::IsMember(std::vector<std::string>(std::begin(kModelShapes), std::end(kModelShapes)))));
  source->add_option("--config", options.config, "a config.json of the Llama family")->type_name("FILE");
  AddShapeChanges(*synthesize, options.changes);
  const std::map<std::string, DType> dtypes = {
      {"f32", DType::kF32},   {"f16", DType::kF16},   {"bf16", DType::kBF16},
      {"q8_0", DType::kQ8_0}, {"q4_0", DType::kQ4_0}, {"q5_0", DType::kQ5_0},
      {"q4_k", DType::kQ4_K}, {"q6_k", DType::kQ6_K}, {"q4_k_m", DType::kQ4_K}};
  synthesize
      ->add_option_function<std::string>(
          "--dtype",
          [&options, dtypes](const std::string& name) {
            options.dtype = dtypes.at(name);
            options.more_bits = name.ends_with("_m");
          },
          "of the matrices: f32, f16 (default), bf16, or for GGUF q8_0, q4_0, q5_0, q4_k, q6_k, q4_k_m "
          "(llama.cpp's "
          "mixture of q4_k and q6_k); norms are f32")
      ->type_name("TYPE")
      ->check(Quiet(CLI::IsMember(dtypes)));
  synthesize->add_option("--seed", options.seed, "the same seed and shape give the same bytes")
      ->type_name("N")
      ->capture_default_str();
  synthesize->add_option("--format", options.format, "gguf or safetensors (default: gguf for *.gguf)")
      ->type_name("FORMAT")
      ->check(Quiet(CLI::IsMember({"gguf", "safetensors"})));
  synthesize
      ->add_option("--tokenizer", options.tokenizer,
                   "model whose tokenizer and chat template are taken (default: a token for each byte)")
      ->type_name("MODEL");
  synthesize->add_option("--threads", options.threads, "that make weights (default: all cores)")
      ->type_name("N")
      ->check(Quiet(CLI::Range(1u, kMaxThreads)));
  synthesize->footer(
      "Examples: terrace synthesize --out 1b.gguf --shape 1b --dtype q8_0\n"
      "          terrace synthesize --out wide --shape 135m --hidden 2048 --heads 16 --kv-heads 4");
}

// What CLI11 cannot say.
Status Validate(const EvaluateOptions& options) {
  if (!options.perplexity.empty() &&
      (options.has_baseline() || !options.records.empty() || options.probe > 0))
    return InvalidArgument(
        "--perplexity excludes --baseline, --baseline-records, --save-records and --probe");
  if (options.baseline_records.empty() || options.compare.empty()) return {};
  return InvalidArgument("--baseline-records excludes --compare");
}

Status Validate(const RequestOptions& request) {
  for (const std::string& stop : request.stop) {
    if (stop.empty()) return InvalidArgument("--stop: the text is empty");
  }
  return Status();
}

Status Validate(const GenerateOptions& options) {
  if (options.best_of > 0 && options.best_of < options.answers) {
    return InvalidArgument("--best-of: ", options.best_of, " is less than --n ", options.answers);
  }
  return Validate(options.request);
}

}  // namespace

CommandLine ParseCommandLine(const std::vector<std::string>& arguments) {
  UpOptions up;
  DemoOptions demo;
  ChatOptions chat;
  GenerateOptions generate;
  StatusOptions status;
  InspectOptions inspect;
  EvaluateOptions evaluate;
  CalibrateOptions calibrate;
  TrainRouterOptions train_router;
  SynthesizeOptions synthesize;
  BenchOptions bench;
  KeyOptions key;
  ValidateOptions validate;
  QuantizeOptions quantize;
  PruneOptions prune;
  DistillOptions distill;
  CertifyOptions certify;
  VerifyManifestOptions verify_manifest;
  ReportOptions report;
  PlanOptions plan;
  DigestOptions digest;
  CLI::App app(kAbout, "terrace");
  app.set_version_flag("--version", Concat("terrace ", kVersion));
  app.require_subcommand(0, 1);
  AddUp(app, up);
  AddDemo(app, demo);
  AddChat(app, chat);
  AddGenerate(app, generate);
  AddStatus(app, status);
  AddInspect(app, inspect);
  AddDigest(app, digest);
  AddEvaluate(app, evaluate);
  AddCalibrate(app, calibrate);
  AddTrainRouter(app, train_router);
  AddQuantize(app, quantize);
  AddPrune(app, prune);
  AddDistill(app, distill);
  AddSynthesize(app, synthesize);
  AddBench(app, bench);
  AddKey(app, key);
  AddValidate(app, validate);
  AddCertify(app, certify);
  AddVerifyManifest(app, verify_manifest);
  AddReport(app, report);
  AddPlan(app, plan);
  const CLI::App* const version = app.add_subcommand("version", "Print the version.");
  CheckOptionValues(app);

  const auto command = [&app] {
    const std::vector<CLI::App*> parsed = app.get_subcommands();
    return parsed.empty() ? std::string() : parsed[0]->get_name();
  };
  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // as CLI11 wants them
    app.parse(std::move(reversed));
  } catch (const CLI::CallForHelp&) {
    const std::string name = command();
    return {name, ShowText{name.empty() ? app.help() : app.get_subcommand(name)->help("terrace") + "\n"}};
  } catch (const CLI::CallForVersion& call) {
    return {"", ShowText{Concat(call.what(), "\n")}};
  } catch (const CLI::ParseError& error) {
    std::string message = error.what();
    std::replace(message.begin(), message.end(), '\n', ' ');
    const std::string name = command();
    return {name, InvalidArgument(message, " (terrace ", name.empty() ? "" : name + " ", "--help)")};
  }

  const std::string name = command();
  if (name.empty()) return {"", ShowText{app.help()}};
  if (version->parsed()) return {name, ShowText{Concat("terrace ", kVersion, "\n")}};
  for (const Status& valid : {Validate(chat.request), Validate(generate), Validate(evaluate)}) {
    if (!valid.ok()) return {name, valid};  // of the one that was parsed: the others are as they were made
  }
  if (name == "up") return {name, up};
  if (name == "key") return {name, key};
  if (name == "validate") return {name, validate};
  if (name == "demo") return {name, demo};
  if (name == "chat") return {name, chat};
  if (name == "generate") return {name, generate};
  if (name == "status") return {name, status};
  if (name == "inspect") return {name, inspect};
  if (name == "calibrate") return {name, calibrate};
  if (name == "train-router") return {name, train_router};
  if (name == "quantize") return {name, quantize};
  if (name == "prune") return {name, prune};
  if (name == "distill") {
    distill.arguments = arguments;
    return {name, distill};
  }
  if (name == "synthesize") return {name, synthesize};
  if (name == "bench") return {name, bench};
  if (name == "certify") return {name, certify};
  if (name == "verify-manifest") return {name, verify_manifest};
  if (name == "report") return {name, report};
  if (name == "plan") return {name, plan};
  if (name == "digest") return {name, digest};
  return {name, evaluate};
}

}  // namespace terrace
