#include "tools/cli/bench_command_line.h"

#include <map>
#include <memory>
#include <vector>

#include "tools/cli/option_values.h"

namespace terrace {
namespace {

constexpr uint64_t kDefaultRequests = 100;

// The load as the flags have it; one level for each number.
struct LoadFlags {
  std::vector<uint32_t> concurrency;
  std::vector<double> rates;
  OpenLoop open;
};

void AddTarget(CLI::App& bench, BenchOptions& options) {
  auto* const router =
      bench.add_option("--router", options.router, "measure the router at host:port")->type_name(kAddress);
  auto* const model =
      bench
          .add_option("--model", options.model,
                      "with --router: a served tier, policy or alias (default: the router's); without: a "
                      "model folder or .gguf to run in this process")
          ->type_name("MODEL");
  auto* const worker = bench.add_option("--worker", options.worker, "measure the worker at host:port")
                           ->type_name(kAddress)
                           ->excludes(router)
                           ->excludes(model);
  AddAccessOptions(bench, options.access);
  bench.add_option("--threads", options.threads, "of a model in this process (default: all cores)")
      ->type_name("N")
      ->excludes(router)
      ->excludes(worker);
  for (CLI::Option* const option :
       AddEngineOptions(bench, options.device, options.compute, options.kv_dtype)) {
    option->excludes(router)->excludes(worker);
  }
  for (CLI::Option* const option : AddDraftOptions(bench, options.drafter, options.draft_model))
    option->excludes(router)->excludes(worker);
  bench
      .add_option("--max-sequences", options.max_sequences,
                  "batched at once by a model in this process (default: 16, on a CUDA device 256)")
      ->type_name("N")
      ->excludes(router)
      ->excludes(worker);
}

void AddLoad(CLI::App& bench, LoadFlags& load, BenchSettings& settings) {
  auto* const concurrency =
      bench
          .add_option("--concurrency", load.concurrency,
                      "closed loop: so many requests at a time, one level after the other (default: 1)")
          ->type_name("N,N,...")
          ->delimiter(',');
  auto* const rate =
      bench
          .add_option("--rate", load.rates,
                      "open loop: so many requests a second, answered or not; several are levels")
          ->type_name("X,X,...")
          ->delimiter(',')
          ->excludes(concurrency);
  static const std::map<std::string, ArrivalKind> kKinds = {{"poisson", ArrivalKind::kPoisson},
                                                            {"constant", ArrivalKind::kConstant}};
  bench
      .add_option_function<std::string>(
          "--arrivals", [&load](const std::string& kind) { load.open.arrivals = kKinds.at(kind); },
          "of an open loop: poisson or constant (default: poisson)")
      ->type_name("KIND")
      ->check(CLI::IsMember(kKinds).description(""))
      ->needs(rate);
  bench
      .add_option("--max-in-flight", load.open.max_in_flight,
                  "of an open loop: a request beyond is not sent, and counted as dropped")
      ->type_name("N")
      ->needs(rate)
      ->capture_default_str();
  bench
      .add_option("--requests", settings.requests,
                  Concat("of each level (default without --duration: ", kDefaultRequests, ")"))
      ->type_name("N");
  bench
      .add_option_function<std::string>(
          "--duration",
          [&settings](const std::string& text) {
            settings.duration_seconds = ValueOrThrow("--duration", ParseSeconds(text));
          },
          "of each level: 30s, 5m; what is under way then may end")
      ->type_name("TIME");
  bench.add_option("--warmup", settings.warmup_requests, "requests before each level that do not count")
      ->type_name("N")
      ->capture_default_str();
}

void AddWorkload(CLI::App& bench, BenchSettings& settings) {
  WorkloadSettings& workload = settings.workload;
  AddLengthOption(bench, "--prompt-tokens", workload.prompt_tokens,
                  "a number, uniform:LOW-HIGH or lognormal:MEDIAN,SIGMA; random ids");
  AddLengthOption(bench, "--output-tokens", workload.output_tokens,
                  "likewise; end tokens do not end an answer");
  bench
      .add_option("--shared-prefix-tokens", workload.shared_prefix_tokens,
                  "at the start of each prompt, the same for its group")
      ->type_name("N")
      ->capture_default_str();
  bench.add_option("--prefix-groups", workload.prefix_groups, "distinct shared prefixes")
      ->type_name("N")
      ->capture_default_str();
  bench.add_option("--prefix-zipf", workload.prefix_zipf, "group k has weight 1/k^S; 0: all alike")
      ->type_name("S")
      ->capture_default_str();
  bench.add_option("--seed", workload.seed, "the same seed gives the same requests at the same times")
      ->type_name("N")
      ->capture_default_str();
  bench.add_option("--temperature", settings.temperature, "0 is greedy; up to 2")
      ->type_name("X")
      ->capture_default_str();
  bench.add_option("--priority", settings.priority, "-100 to 100, higher first")
      ->type_name(kSignedNumber)
      ->capture_default_str();
  bench
      .add_option("--cancel-fraction", workload.cancel_fraction, "of the requests, each after a random token")
      ->type_name("X")
      ->capture_default_str();
  bench
      .add_option_function<std::string>(
          "--deadline",
          [&settings](const std::string& text) {
            settings.deadline_seconds = ValueOrThrow("--deadline", ParseSeconds(text));
          },
          "of each request: 10, 500ms (default: none)")
      ->type_name("TIME");
}

// What the flags mean together.
Status Finish(const LoadFlags& load, BenchOptions& options) {
  if (options.router.empty() && options.worker.empty() && options.model.empty())
    return InvalidArgument("what is to be measured? --router, --worker or --model says it");
  BenchSettings& settings = options.settings;
  settings.levels.clear();
  for (const double rate : load.rates) {
    OpenLoop open = load.open;
    open.rate = rate;
    settings.levels.push_back(open);
  }
  for (const uint32_t concurrency : load.concurrency) settings.levels.push_back(ClosedLoop{concurrency});
  if (settings.levels.empty()) settings.levels.push_back(ClosedLoop{});
  if (!settings.requests.has_value() && !settings.duration_seconds.has_value())
    settings.requests = kDefaultRequests;
  return Validate(settings);
}

}  // namespace

void AddBench(CLI::App& app, BenchOptions& options) {
  CLI::App* const bench = app.add_subcommand(
      "bench", "Throughput and latency of a router, a worker or a model in this process, under load.");
  const auto load = std::make_shared<LoadFlags>();
  AddTarget(*bench, options);
  AddLoad(*bench, *load, options.settings);
  AddWorkload(*bench, options.settings);
  bench->add_option("--json", options.json, "also write the results as JSON; - writes them to stdout instead")
      ->type_name("FILE");
  bench->callback([load, &options] {
    if (const Status status = Finish(*load, options); !status.ok())
      throw CLI::ValidationError(Message(status));
  });
  bench->footer(
      "On one host this client and what it measures share the cores: for figures of a server alone, run it "
      "on\n"
      "another machine. docs/how-to/benchmark.md says what each figure means.\n"
      "Examples: terrace bench --model models/terrace-demo-base --concurrency 1,4,8,16\n"
      "          terrace bench --router 127.0.0.1:8081 --model auto --rate 20 --duration 1m --json "
      "out.json");
}

}  // namespace terrace
