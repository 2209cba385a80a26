#include "tools/cli/plan_command_line.h"

#include <bit>
#include <memory>
#include <string>
#include <utility>

#include "base/json.h"
#include "tools/bench/bench_settings.h"
#include "tools/cli/option_values.h"
#include "tools/cli/report_command_line.h"

namespace terrace {
namespace {

constexpr uint32_t kMostMachines = 512, kMostSequences = 256, kMostRepeats = 100;
constexpr uint32_t kMostRanks = 16;  // of one machine
constexpr uint64_t kMostRequests = 100'000;

// With its unit: who thinks of milliseconds would ask for seconds.
StatusOr<double> ParseTime(const std::string& text) {
  ASSIGN_OR_RETURN(const double seconds, ParseSeconds(text));
  if (text.find_first_not_of("0123456789.", text.size() - 1) == std::string::npos)
    return InvalidArgument("\"", text, "\" has no unit: ", text, "ms or ", text, "s");
  return seconds;
}

void AddTime(CLI::App& plan, const std::string& flag, std::optional<double>& seconds,
             const std::string& what) {
  plan.add_option_function<std::string>(
          flag, [flag, &seconds](const std::string& text) { seconds = ValueOrThrow(flag, ParseTime(text)); },
          what)
      ->type_name("TIME");
}

void AddNumber(CLI::App& plan, const std::string& flag, std::optional<double>& value, CLI::Validator check,
               const std::string& what) {
  plan.add_option_function<double>(
          flag, [&value](double number) { value = number; }, what)
      ->type_name(kRealNumber)
      ->check(std::move(check));
}

void AddConstraints(CLI::App& plan, PlanConstraints& constraints) {
  plan.add_option_function<std::string>(
          "--memory",
          [&constraints](const std::string& text) {
            constraints.memory_bytes = ValueOrThrow("--memory", ParseBytes(text));
          },
          "of a worker, or of each of its ranks, at most: 8GiB, 512MiB; weights and KV pool")
      ->type_name("SIZE");
  AddTime(plan, "--ttft-p99", constraints.first_token_p99_seconds,
          "99th percentile of the time to the first token, at most: 300ms");
  AddTime(plan, "--itl", constraints.inter_token_p99_seconds,
          "99th percentile of the time between two tokens of an answer, at most: 50ms");
  AddNumber(plan, "--throughput", constraints.output_tokens_per_second, AboveZero(),
            "tokens of answers a second, of all machines together, at least");
  AddNumber(plan, "--min-quality", constraints.min_accuracy, Within(0, 1),
            "share of right answers, at least, as the --report has measured it");
  AddNumber(plan, "--price", constraints.max_usd_per_million_tokens, AboveZero(),
            "US dollars of a million tokens of prompts and answers, at most");
}

// The load as the flags have it.
struct LoadFlags {
  std::optional<uint32_t> concurrency = {};
  std::optional<double> rate = {};
};

void AddTraffic(CLI::App& plan, LoadFlags& load, Traffic& traffic, std::string& trace) {
  AddLengthOption(plan, "--prompt-tokens", traffic.prompt_tokens,
                  "a number, uniform:LOW-HIGH or lognormal:MEDIAN,SIGMA");
  AddLengthOption(plan, "--output-tokens", traffic.output_tokens, "likewise");
  plan.add_option("--shared-prefix-tokens", traffic.shared_prefix_tokens,
                  "at the start of each prompt, the same for all: what a prefix cache keeps")
      ->type_name(kWholeNumber)
      ->check(Quiet(CLI::Range(0u, LengthDistribution::kMaxLength - 1)))
      ->capture_default_str();
  auto* const concurrency =
      plan.add_option("--concurrency", load.concurrency, "so many requests at a time (default: 1)")
          ->type_name(kWholeNumber)
          ->check(Quiet(CLI::Range(1u, 65'536u)));
  plan.add_option("--rate", load.rate, "so many requests a second, at random times")
      ->type_name(kRealNumber)
      ->check(AboveZero())
      ->excludes(concurrency);
  plan.add_option("--requests", traffic.requests, "that are played through, of each worker")
      ->type_name(kWholeNumber)
      ->check(Quiet(CLI::Range(uint64_t{1}, kMostRequests)))
      ->capture_default_str();
  CLI::Option* const recorded =
      plan.add_option("--trace", trace,
                      "recorded requests instead, a JSON object a line: arrival in seconds, prompt_tokens, "
                      "output_tokens and, where it shares one, prefix and prefix_tokens")
          ->type_name("FILE");
  for (const char* drawn : {"--prompt-tokens", "--output-tokens", "--shared-prefix-tokens", "--concurrency",
                            "--rate", "--requests"})
    recorded->excludes(plan.get_option(drawn));
  plan.add_option("--seed", traffic.seed, "of lengths and arrivals")
      ->type_name(kWholeNumber)
      ->capture_default_str();
}

Status Finish(const VariantFlags& variants, const LoadFlags& load, PlanOptions& options) {
  if (load.rate.has_value()) {
    options.traffic.load = OpenLoop{.rate = *load.rate};
  } else {
    options.traffic.load = ClosedLoop{load.concurrency.value_or(1)};
  }
  for (const uint32_t ranks : options.ranks) {
    if (!std::has_single_bit(ranks) || ranks > kMostRanks)
      return InvalidArgument("--ranks: ", ranks, " is not a power of two up to ", kMostRanks);
  }
  if (options.verify && !options.trace.empty())
    return InvalidArgument("--verify runs a traffic that is drawn, not a --trace");
  if (options.traffic.prompt_tokens.max() <= options.traffic.shared_prefix_tokens)
    return InvalidArgument("--shared-prefix-tokens ", options.traffic.shared_prefix_tokens,
                           " leaves nothing of its own to a prompt (--prompt-tokens counts the prefix too)");
  return ReadVariants(variants, options.techniques, options.variants, options.cascades);
}

}  // namespace

void AddPlan(CLI::App& app, PlanOptions& options) {
  CLI::App* const plan = app.add_subcommand(
      "plan", "Which way to serve a model keeps to what you ask, and costs least: predicted from its steps.");
  const auto variants = std::make_shared<VariantFlags>();
  const auto load = std::make_shared<LoadFlags>();
  plan->add_option("--model", options.target.model, "the baseline: a model folder or .gguf")
      ->type_name("MODEL")
      ->required();
  plan->add_option("--price-per-hour", options.usd_per_hour, "of a machine like this one, US dollars")
      ->type_name(kRealNumber)
      ->check(AboveZero())
      ->required();
  AddConstraints(*plan, options.constraints);
  AddTraffic(*plan, *load, options.traffic, options.trace);
  AddVariantOptions(*plan, *variants, {options.calibration, options.mixed_bytes, options.work});
  plan->add_flag("--combine", options.combine,
                 "consider also every combination of the weights, types of keys and values and drafters that "
                 "these have");
  plan->add_option(
          "--report", options.report,
          "report.json of terrace report: what the answers of each way are worth, and how often drafts "
          "are accepted")
      ->type_name("FILE");
  AddNumber(*plan, "--acceptance", options.acceptance, Within(0, 1),
            "how often a drafted token is accepted, if those before it were (default: as the report has it)");
  plan->add_option("--max-sequences", options.max_sequences, "in a batch of a worker")
      ->type_name(kWholeNumber)
      ->check(Quiet(CLI::Range(1u, kMostSequences)))
      ->capture_default_str();
  plan->add_option("--max-machines", options.max_machines, "at most, each with one worker")
      ->type_name(kWholeNumber)
      ->check(Quiet(CLI::Range(1u, kMostMachines)))
      ->capture_default_str();
  plan->add_option("--ranks", options.ranks,
                   "processes of this machine that a worker is split over, each number considered: 1,2,4")
      ->type_name("N,N,...")
      ->delimiter(',')
      ->capture_default_str();
  plan->add_option("--repeats", options.probe_repeats, "how often each kind of step is measured")
      ->type_name(kWholeNumber)
      ->check(Quiet(CLI::Range(1u, kMostRepeats)))
      ->capture_default_str();
  plan->add_option("--threads", options.target.threads, "of a worker (default: all cores)")
      ->type_name(kWholeNumber);
  AddEngineOptions(*plan, options.target.device, options.target.compute, options.target.kv_dtype);
  plan->add_option("--out", options.out,
                   "cluster file (YAML) to write of the best, in place of what is there")
      ->type_name("FILE");
  plan->add_flag(
      "--verify", options.verify,
      "run one worker of the best under its share of the traffic, and compare with what was predicted");
  plan->callback([variants, load, &options] {
    if (const Status status = Finish(*variants, *load, options); !status.ok())
      throw CLI::ValidationError(Message(status));
  });
  plan->footer(
      "Exit code 1: nothing keeps every constraint, or --verify has measured that the best does not. 69: "
      "--verify could not run the best, a cascade or a group of ranks. "
      "docs/how-to/plan.md says what is predicted, and how "
      "well.\n"
      "Example: terrace plan --model models/terrace-demo-base --price-per-hour 0.1 --techniques "
      "q8_0,q4_0,kv-int8 \\\n"
      "             --prompt-tokens 128 --output-tokens 64 --concurrency 8 --itl 20ms --out plan.yaml "
      "--verify");
}

}  // namespace terrace
