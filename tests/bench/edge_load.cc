// Load on whatever serves Inference.Generate: a router, a stub worker (tests/bench/stub_worker.cc), or a
// proxy in front of one. Prompts are text, so that a router has all its work to do. Prints JSON.
//
// Without --phases: levels of a closed or open loop, and the report of `terrace bench`. With it: an open loop
// whose rate changes, and for every second of arrivals how many answers began within --bound, came later,
// were refused or failed. Exit code 69 when nothing was answered.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/exit_code.h"
#include "base/json.h"
#include "base/rng.h"
#include "grpcpp/grpcpp.h"
#include "proto/terrace/v1/inference.grpc.pb.h"
#include "tools/bench/bench_report.h"
#include "tools/bench/load_run.h"
#include "tools/cli/bench_stream.h"

namespace terrace {
namespace {

constexpr uint32_t kPhraseBytes = 50, kPhrases = 4096;
constexpr const char* kWords[] = {
    "the",    "order",    "please", "ticket",  "of",     "refund",  "a",     "my",     "printer", "and",
    "back",   "account",  "to",     "invoice", "green",  "lamp",    "is",    "not",    "arrived", "yet",
    "when",   "will",     "you",    "send",    "it",     "address", "in",    "London", "card",    "paid",
    "with",   "question", "about",  "the",     "kettle", "that",    "was",   "placed", "on",      "Monday",
    "cancel", "I",        "want",   "another", "colour", "of",      "bench", "thanks", "for",     "help"};

struct Flags {
  std::string target, model = "stub";
  uint32_t connections = 4, prompt_bytes = 2048, shared_bytes = 0, prefix_groups = 1, output_tokens = 16;
  std::vector<uint32_t> concurrency;
  std::vector<double> rates;
  std::vector<std::string> phases;
  double duration = 5, bound = 1, patience = 60;
  uint64_t warmup = 100, seed = 1;
};

// Text of exactly kPhraseBytes, of words.
std::string MakePhrase(uint32_t index) {
  std::string text;
  for (uint64_t i = 0; text.size() < kPhraseBytes; ++i)
    text += Concat(kWords[RandomBits(/*seed=*/7, i, index) % std::size(kWords)], " ");
  text.resize(kPhraseBytes - 1);
  return text + ' ';
}

class EdgeStream : public BenchStream<v1::GenerateResponse> {
 public:
  using BenchStream::BenchStream;

 private:
  bool OnResponse(const v1::GenerateResponse& response) override {
    tokens_ += response.tokens_size();
    if (response.has_finished()) usage_ = response.finished().usage();
    return response.tokens_size() == 0 || observer().OnTokens(response.tokens_size());
  }
  BenchEnd End(const Status& status) override {
    BenchEnd end;
    end.status = status;
    if (status.ok() && usage_.completion_tokens() != tokens_)
      end.status =
          WithReason(Internal(usage_.completion_tokens(), " tokens, ", tokens_, " came"), "tokens_lost");
    end.prompt_tokens = usage_.prompt_tokens();
    end.cached_tokens = usage_.cached_tokens();
    return end;
  }

  uint32_t tokens_ = 0;
  v1::Usage usage_;
};

// The "tokens" of its prompts are phrases.
class EdgeTarget : public BenchTarget {
 public:
  explicit EdgeTarget(const Flags& flags) : model_(flags.model) {
    description_ = {.kind = "edge", .name = flags.target, .model = flags.model};
    for (uint32_t i = 0; i < kPhrases; ++i) {
      phrases_.push_back(MakePhrase(i));
      vocabulary_.push_back(static_cast<TokenId>(i));
    }
    for (uint32_t i = 0; i < flags.connections; ++i) stubs_.push_back(Connect(flags.target));
  }

  const TargetDescription& description() const override { return description_; }
  const std::vector<TokenId>& vocabulary() const override { return vocabulary_; }

  std::unique_ptr<BenchCall> Start(const BenchRequest& request,
                                   std::shared_ptr<BenchObserver> observer) override {
    v1::GenerateRequest message;
    message.set_model(model_);
    std::string& prompt = *message.mutable_prompt();
    prompt.reserve(request.prompt.size() * kPhraseBytes);
    for (const TokenId phrase : request.prompt) prompt += phrases_[phrase];
    message.set_max_tokens(request.output_tokens);
    message.set_ignore_eos(true);
    message.mutable_sampling()->set_temperature(0);
    message.set_cache_salt(request.cache_salt);
    const auto stream = std::make_shared<EdgeStream>(request, std::move(observer));
    stubs_[next_++ % stubs_.size()]->async()->Generate(&stream->context(), &message, stream.get());
    return stream->Begin();
  }

 private:
  // One connection, kept until the process ends: gRPC 1.51 cannot have the last one dropped by its own
  // threads.
  static std::unique_ptr<v1::Inference::Stub> Connect(const std::string& address) {
    static auto& kept = *new std::vector<std::shared_ptr<grpc::Channel>>();
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    kept.push_back(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
    return v1::Inference::NewStub(kept.back());
  }

  const std::string model_;
  TargetDescription description_;
  std::vector<std::string> phrases_;
  std::vector<TokenId> vocabulary_;
  std::vector<std::unique_ptr<v1::Inference::Stub>> stubs_;
  size_t next_ = 0;
};

BenchSettings SettingsOf(const Flags& flags) {
  BenchSettings settings;
  settings.levels.clear();
  for (const double rate : flags.rates)
    settings.levels.push_back(OpenLoop{.rate = rate, .max_in_flight = 4096});
  for (const uint32_t concurrency : flags.concurrency) settings.levels.push_back(ClosedLoop{concurrency});
  settings.duration_seconds = flags.duration;
  settings.warmup_requests = flags.warmup;
  settings.workload.prompt_tokens =
      LengthDistribution::Fixed(std::max(2u, (flags.prompt_bytes + kPhraseBytes - 1) / kPhraseBytes));
  settings.workload.output_tokens = LengthDistribution::Fixed(flags.output_tokens);
  settings.workload.shared_prefix_tokens = flags.shared_bytes / kPhraseBytes;
  settings.workload.prefix_groups = flags.prefix_groups;
  settings.workload.seed = flags.seed;
  return settings;
}

// ---- Levels.

Status RunLevels(EdgeTarget& target, const Workload& workload, const BenchSettings& settings) {
  const auto time = std::make_shared<RealBenchTime>();
  std::vector<LevelResult> levels;
  uint64_t answered = 0;
  for (uint32_t level = 0; level < settings.levels.size(); ++level) {
    if (settings.warmup_requests > 0)
      RunLoad(target, workload, settings, {.level = level, .is_warmup = true}, time);
    levels.push_back(RunLoad(target, workload, settings, {.level = level}, time));
    answered += levels.back().ok;
  }
  std::printf("%s\n", ToJsonText(BenchReportToJson(settings, target.description(), levels)).c_str());
  return answered > 0 ? Status() : Unavailable("no request was answered");
}

// ---- Phases.

struct Phase {
  double rate = 0, seconds = 0;
};

StatusOr<std::vector<Phase>> ParsePhases(const std::vector<std::string>& texts) {
  std::vector<Phase> phases;
  for (const std::string& text : texts) {
    Phase& phase = phases.emplace_back();
    if (std::sscanf(text.c_str(), "%lf:%lf", &phase.rate, &phase.seconds) != 2 || !(phase.rate > 0) ||
        !(phase.seconds > 0))
      return InvalidArgument("--phases: RATE:SECONDS, got ", text);
  }
  return phases;
}

enum class Fate : uint8_t { kGood, kLate, kRefused, kFailed };

// What became of the requests, by the second of their arrival. Thread-safe.
class PhaseCounts {
 public:
  explicit PhaseCounts(size_t seconds) : bins_(seconds) {}

  void OnSent(size_t second) {
    std::lock_guard lock(mutex_);
    ++bins_[second].asked;
    ++under_way_;
  }
  void OnEnd(size_t second, Fate fate, const std::string& reason, Duration first_token, Duration total) {
    std::lock_guard lock(mutex_);
    ++bins_[second].fates[static_cast<size_t>(fate)];
    --under_way_;
    if (!reason.empty()) ++reasons_[reason];
    if (fate == Fate::kGood || fate == Fate::kLate) first_token_.Record(first_token);
    if (fate == Fate::kRefused) refusal_.Record(total);
  }
  bool IsIdle() const {
    std::lock_guard lock(mutex_);
    return under_way_ == 0;
  }

  Json ToJson() const {
    std::lock_guard lock(mutex_);
    const auto percentiles = [](const LatencyHistogram& of) -> Json {
      return {{"count", of.count()}, {"p50", of.Percentile(50)}, {"p99", of.Percentile(99)}};
    };
    Json bins = Json::array();
    for (const Bin& bin : bins_) {
      bins.push_back({{"asked", bin.asked},
                      {"good", bin.fates[0]},
                      {"late", bin.fates[1]},
                      {"refused", bin.fates[2]},
                      {"failed", bin.fates[3]}});
    }
    return {{"seconds", std::move(bins)},
            {"reasons", reasons_},
            {"first_token_seconds", percentiles(first_token_)},
            {"refusal_seconds", percentiles(refusal_)}};
  }

 private:
  struct Bin {
    uint64_t asked = 0;
    std::array<uint64_t, 4> fates = {};
  };
  mutable std::mutex mutex_;
  std::vector<Bin> bins_;                    // GUARDED_BY(mutex_), and so is all below
  std::map<std::string, uint64_t> reasons_;  // of refusals and failures
  LatencyHistogram first_token_, refusal_;
  uint64_t under_way_ = 0;
};

class PhaseObserver : public BenchObserver {
 public:
  PhaseObserver(PhaseCounts& counts, size_t second, MonoTime intended, double bound)
      : counts_(counts), second_(second), intended_(intended), bound_(bound) {}

  bool OnTokens(uint32_t) override {
    if (!first_token_.has_value()) first_token_ = RealClock().Now();
    return true;
  }
  void OnEnd(const BenchEnd& end) override {
    const MonoTime now = RealClock().Now();
    const Duration first = first_token_.value_or(now) - intended_;
    Fate fate = Seconds(first) <= bound_ ? Fate::kGood : Fate::kLate;
    // What a router or worker has no room for; a deadline that passed or a lost answer is a failure.
    if (!end.status.ok()) {
      const bool is_refusal = end.status.code() == StatusCode::kResourceExhausted ||
                              (end.status.code() == StatusCode::kUnavailable && !first_token_.has_value());
      fate = is_refusal ? Fate::kRefused : Fate::kFailed;
    }
    counts_.OnEnd(second_, fate, end.status.ok() ? "" : FailureReason(end.status), first, now - intended_);
  }

 private:
  PhaseCounts& counts_;  // outlives all calls: the run waits for them
  const size_t second_;
  const MonoTime intended_;
  const double bound_;
  std::optional<MonoTime> first_token_;
};

Status RunPhases(const Flags& flags, EdgeTarget& target, const Workload& workload,
                 const std::vector<Phase>& phases) {
  double total_seconds = 0;
  for (const Phase& phase : phases) total_seconds += phase.seconds;
  PhaseCounts counts(static_cast<size_t>(total_seconds) + 1);
  const MonoTime start = RealClock().Now();
  const auto after = [&](double seconds) { return start + Duration(static_cast<int64_t>(seconds * 1e9)); };
  double phase_start = 0;
  uint64_t index = 0;
  for (size_t p = 0; p < phases.size(); phase_start += phases[p++].seconds) {
    Arrivals arrivals(ArrivalKind::kPoisson, phases[p].rate, flags.seed + p);
    for (double at = arrivals.Next(); at < phases[p].seconds; at = arrivals.Next()) {
      const MonoTime intended = after(phase_start + at);
      std::this_thread::sleep_until(intended);
      const auto second = static_cast<size_t>(phase_start + at);
      PlannedRequest planned = workload.Plan({.index = index++});
      BenchRequest request;
      request.prompt = std::move(planned.prompt);
      request.output_tokens = planned.output_tokens;
      request.deadline = intended + Duration(static_cast<int64_t>(flags.patience * 1e9));
      counts.OnSent(second);
      target.Start(request, std::make_shared<PhaseObserver>(counts, second, intended, flags.bound));
    }
  }
  while (!counts.IsIdle()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  Json report = counts.ToJson();
  report["bound_seconds"] = flags.bound;
  report["patience_seconds"] = flags.patience;
  std::printf("%s\n", ToJsonText(report).c_str());
  return report["first_token_seconds"]["count"] > 0 ? Status() : Unavailable("no request was answered");
}

// ---- Main.

Status Run(const Flags& flags) {
  EdgeTarget target(flags);
  const BenchSettings settings = SettingsOf(flags);
  ASSIGN_OR_RETURN(const Workload workload, Workload::Make(settings.workload, target.vocabulary(), 0));
  if (!flags.phases.empty()) {
    ASSIGN_OR_RETURN(const std::vector<Phase> phases, ParsePhases(flags.phases));
    return RunPhases(flags, target, workload, phases);
  }
  RETURN_IF_ERROR(Validate(settings));
  return RunLevels(target, workload, settings);
}

int Main(int argc, char** argv) {
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  CLI::App app("Load on whatever serves Inference.Generate; prints JSON.", "edge_load");
  Flags flags;
  app.add_option("--target", flags.target, "host:port")->required();
  app.add_option("--model", flags.model, "")->capture_default_str();
  app.add_option("--connections", flags.connections, "")->capture_default_str()->check(CLI::Range(1, 1024));
  app.add_option("--prompt-bytes", flags.prompt_bytes, "rounded up to 50")->capture_default_str();
  app.add_option("--shared-bytes", flags.shared_bytes, "of the prompts of one group, at their beginning")
      ->capture_default_str();
  app.add_option("--prefix-groups", flags.prefix_groups, "")->capture_default_str();
  app.add_option("--output-tokens", flags.output_tokens, "")->capture_default_str();
  app.add_option("--concurrency", flags.concurrency, "closed loop: a level for each number")->delimiter(',');
  app.add_option("--rate", flags.rates, "open loop: requests a second, a level for each")->delimiter(',');
  app.add_option("--duration", flags.duration, "seconds of a level")->capture_default_str();
  app.add_option("--warmup", flags.warmup, "requests before a level that do not count")
      ->capture_default_str();
  app.add_option("--seed", flags.seed, "")->capture_default_str();
  app.add_option("--phases", flags.phases, "RATE:SECONDS,...")->delimiter(',');
  app.add_option("--bound", flags.bound, "of phases: seconds in which a good answer's first token comes")
      ->capture_default_str();
  app.add_option("--patience", flags.patience, "of phases: seconds after which a client gives up")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const Status status = Run(flags);
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "edge_load: %s\n", Message(status).c_str());
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
