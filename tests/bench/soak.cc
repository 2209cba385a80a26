// A soak of an engine with a real model: for minutes, clients send a mixed load that does not fit into the KV
// pool, with shared beginnings, several answers to one prompt, scores, priorities, cancels, deadlines and
// sinks that are not read. Meanwhile samples of what ended are computed again, alone, by an engine without
// prefix cache, preemption or company: every bit of tokens and log-probabilities has to agree. At the end all
// blocks have to be back, every sequence counted, and memory flat. Exit code 1 on any violation. After every
// call of the scheduler every block is counted again, and a wrong count ends the process. With a drafter all
// that may have drafts have them, whatever that costs, and second guesses beside them.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <bit>
#include <cstdio>
#include <fstream>
#include <future>
#include <random>
#include <thread>

#include "base/exit_code.h"
#include "base/hash.h"
#include "base/rng.h"
#include "tests/bench/soak_sink.h"
#include "worker/engine/open_engine.h"

namespace terrace {
namespace {

constexpr uint32_t kClients = 8;
constexpr size_t kMostViolations = 20;
// Growth of memory that is allowed after the first third: what allocators keep. In ten minutes of the
// smallest model, 40 bytes kept of each sequence would be more.
constexpr double kFlatBytes = 4 << 20;

struct Flags {
  std::string model = "models/terrace-demo-nano";
  double minutes = 1;
  uint32_t seed = 1;
  std::string kv_dtype = "f32";
  bool swap = true;
  std::string drafter = "none", draft_model = "";
  uint32_t max_branch_tokens = 3;
};

struct Counts {
  std::atomic<uint64_t> sequences = 0, whole = 0, cancels = 0, deadlines = 0, pauses = 0, scores = 0;
  std::atomic<uint64_t> choices = 0, checked = 0, cached_tokens = 0;
};

struct Sample {
  SequenceSpec spec;
  std::shared_ptr<SoakSink> sink;
};

class Soak {
 public:
  Soak(const Flags& flags, OpenedEngine crowd, OpenedEngine alone, uint32_t vocab_size)
      : flags_(flags), vocab_size_(vocab_size), crowd_(std::move(crowd)), alone_(std::move(alone)) {
    std::mt19937 random(flags.seed);
    for (auto& document : documents_) document = DrawTokens(random, crowd_.context_length / 2);
  }

  // Whether all went well.
  bool Run() {
    const MonoTime begin = RealClock().Now();
    const MonoTime end = begin + std::chrono::milliseconds(static_cast<int64_t>(flags_.minutes * 60'000));
    {
      std::vector<std::jthread> threads;
      threads.emplace_back([this](std::stop_token stop) { Check(std::move(stop)); });
      std::vector<std::future<void>> clients;
      for (uint32_t i = 0; i < kClients; ++i)
        clients.push_back(std::async(std::launch::async, [this, i, end] { RunClient(i, end); }));
      WatchMemory(begin, end);
      for (auto& client : clients) client.get();
    }
    CheckAccounts();
    CheckMemory();
    Summarize();
    return violations_.empty();
  }

 private:
  using Random = std::mt19937;
  static uint32_t Draw(Random& random, uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random);
  }
  std::vector<int32_t> DrawTokens(Random& random, uint32_t count) const {
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(Draw(random, 0, vocab_size_ - 1));
    return tokens;
  }

  void Violate(std::string text) {
    std::lock_guard lock(mutex_);
    if (violations_.size() < kMostViolations) violations_.push_back(std::move(text));
  }

  SequenceSpec DrawSpec(Random& random, const std::vector<int32_t>& conversation) {
    SequenceSpec spec;
    const uint32_t kind = Draw(random, 0, 3);
    if (kind == 0) spec.prompt = conversation;
    if (kind == 1 || kind == 2) {
      spec.prompt = documents_[Draw(random, 0, 3)];
      spec.prompt.resize(Draw(random, 1, static_cast<uint32_t>(spec.prompt.size())));
    }
    const auto own = DrawTokens(random, Draw(random, 1, crowd_.context_length / 8));
    spec.prompt.insert(spec.prompt.end(), own.begin(), own.end());
    spec.prompt.resize(std::min<size_t>(spec.prompt.size(), crowd_.context_length * 3 / 4));
    spec.max_tokens = Draw(random, 1, crowd_.context_length / 4);
    spec.ignore_eos = Draw(random, 0, 1) == 1;
    spec.top_logprobs = Draw(random, 0, 3) == 0 ? 2 : 0;
    spec.score_prompt = Draw(random, 0, 9) == 0;
    spec.priority = static_cast<int32_t>(Draw(random, 0, 2)) - 1;
    if (Draw(random, 0, 9) == 0) spec.cache_salt = "other";
    spec.sampling.temperature = Draw(random, 0, 2) == 0 ? 0.0f : 0.9f;
    if (Draw(random, 0, 3) == 0) spec.sampling.repetition_penalty = 1.2f;
    return spec;
  }

  void RunClient(uint32_t number, MonoTime end) {
    Random random(flags_.seed * 1000 + number);
    std::vector<int32_t> conversation;
    while (RealClock().Now() < end) {
      SequenceSpec spec = DrawSpec(random, conversation);
      const uint32_t choices = Draw(random, 0, 4) == 0 ? Draw(random, 2, 4) : 1;
      const uint32_t fate = Draw(random, 0, 9);  // 0: cancelled, 1: overdue, 2: not read for a while
      const uint32_t early = Draw(random, 0, spec.max_tokens);
      if (fate == 1) spec.deadline = RealClock().Now() + std::chrono::milliseconds(Draw(random, 1, 300));
      std::vector<Sample> asked;
      const uint64_t seed = random();
      for (uint32_t choice = 0; choice < choices; ++choice) {
        spec.sampling.seed = ChoiceSeed(seed, choice);
        auto sink = std::make_shared<SoakSink>(fate == 0 ? early : SoakSink::kNever,
                                               fate == 2 ? early : SoakSink::kNever);
        if (const Status status = crowd_.engine->Submit(spec, sink); !status.ok()) {
          Violate(Concat("refused: ", Message(status)));
          return;
        }
        asked.push_back({spec, std::move(sink)});
      }
      counts_.choices += choices - 1;
      for (Sample& sample : asked) End(random, std::move(sample), &conversation);
    }
  }

  // Waits for it; reads it late when it is full.
  void End(Random& random, Sample sample, std::vector<int32_t>* conversation) {
    SoakSink& sink = *sample.sink;
    if (sink.AwaitFullOrEnd()) {
      ++counts_.pauses;
      std::this_thread::sleep_for(std::chrono::milliseconds(Draw(random, 1, 200)));
      sink.Read();
      crowd_.engine->Wake();
    }
    sink.AwaitEnd();
    const SequenceResult& result = sink.result();
    ++counts_.sequences;
    counts_.cached_tokens += result.stats.cached_tokens;
    counts_.scores += sample.spec.score_prompt;
    switch (result.reason) {
      case FinishReason::kStop:
      case FinishReason::kLength:
        ++counts_.whole;
        break;
      case FinishReason::kCancelled:
        ++(result.error.code() == StatusCode::kDeadlineExceeded ? counts_.deadlines : counts_.cancels);
        break;
      case FinishReason::kError:
        Violate(Concat("an error: ", Message(result.error)));
    }
    *conversation = sample.spec.prompt;
    for (const SampledToken& token : sink.tokens()) conversation->push_back(token.token);
    conversation->resize(std::min<size_t>(conversation->size(), crowd_.context_length / 2));
    std::lock_guard lock(mutex_);
    if (!sample_.has_value()) sample_ = std::move(sample);
  }

  // Computes one sample after the other again, as fast as it can.
  void Check(std::stop_token stop) {
    while (!stop.stop_requested()) {
      std::optional<Sample> sample;
      {
        std::lock_guard lock(mutex_);
        sample = std::exchange(sample_, std::nullopt);
      }
      if (!sample.has_value()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        continue;
      }
      CheckSample(*sample);
    }
  }

  void CheckSample(const Sample& sample) {
    const bool is_whole = sample.sink->result().reason != FinishReason::kCancelled;
    SequenceSpec spec = sample.spec;
    spec.deadline.reset();
    auto again = std::make_shared<SoakSink>(SoakSink::kNever, SoakSink::kNever);
    if (const Status status = alone_.engine->Submit(spec, again); !status.ok())
      return Violate(Concat("refused alone: ", Message(status)));
    again->AwaitEnd();
    const size_t tokens = sample.sink->tokens().size(), scores = sample.sink->scores().size();
    const bool is_long_enough =
        tokens <= again->tokens().size() && scores <= again->scores().size() &&
        (!is_whole || (tokens == again->tokens().size() && scores == again->scores().size() &&
                       sample.sink->result().reason == again->result().reason));
    if (!is_long_enough || Bits(sample.sink->tokens(), tokens) != Bits(again->tokens(), tokens) ||
        Bits(sample.sink->scores(), scores) != Bits(again->scores(), scores)) {
      Violate(Concat("another answer: ", tokens, " tokens, ", again->tokens().size(), " alone; prompt of ",
                     spec.prompt.size(), ", seed ", spec.sampling.seed, ", ",
                     sample.sink->result().stats.preemptions, " preemptions, ",
                     sample.sink->result().stats.cached_tokens, " tokens cached"));
    }
    ++counts_.checked;
  }

  static Hash128 Bits(const std::vector<SampledToken>& tokens, size_t count) {
    Hasher hasher;
    for (const SampledToken& token : std::span(tokens).first(count)) {
      hasher.Add(static_cast<uint64_t>(token.token)).Add(std::bit_cast<uint32_t>(token.logprob));
      for (const TokenLogprob& top : token.top)
        hasher.Add(static_cast<uint64_t>(top.token)).Add(std::bit_cast<uint32_t>(top.logprob));
    }
    return hasher.Finish();
  }

  static double ResidentBytes() {
    std::ifstream file("/proc/self/statm");
    double all = 0, resident = 0;
    file >> all >> resident;
    return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
  }

  void WatchMemory(MonoTime begin, MonoTime end) {
    const Duration every = std::min<Duration>(std::chrono::seconds(10), (end - begin) / 12);
    for (MonoTime next = begin + every; next <= end; next += every) {
      std::this_thread::sleep_until(next);
      memory_.emplace_back(Seconds(RealClock().Now() - begin), ResidentBytes());
      const EngineStats stats = crowd_.engine->Stats();
      std::printf(
          "%6.0f s: %6.1f MiB resident, %llu sequences, %llu checked, %u running, %u waiting, %u swapped "
          "blocks\n",
          memory_.back().first, memory_.back().second / (1 << 20),
          static_cast<unsigned long long>(counts_.sequences),
          static_cast<unsigned long long>(counts_.checked), stats.running, stats.waiting,
          stats.swapped_blocks);
      std::fflush(stdout);
    }
  }

  void CheckAccounts() {
    std::promise<void> drained;
    crowd_.engine->Drain([&] { drained.set_value(); });
    drained.get_future().wait();
    crowd_.engine->Stop();
    const EngineStats stats = stats_ = crowd_.engine->Stats();
    const auto expect = [&](bool holds, std::string_view what) {
      if (!holds) Violate(Concat("at the end: ", what));
    };
    expect(stats.running == 0 && stats.waiting == 0 && stats.paused == 0, "sequences are left");
    expect(stats.held_blocks == 0, "blocks are held");
    expect(stats.swapped_blocks == 0, "blocks are swapped");
    expect(stats.free_blocks + stats.cached_blocks == stats.total_blocks, "blocks are missing");
    expect(stats.waiting_prompt_tokens == 0, "tokens wait");
    expect(stats.finished + stats.cancelled + stats.failed == counts_.sequences, "sequences are miscounted");
    expect(stats.failed == 0, "sequences failed");
    expect(stats.speculation.failures == 0, "the drafter failed");
    const bool has_drafts = SpeculationStats::Sum(stats.speculation.verified) > 0;
    expect(has_drafts == (flags_.drafter != "none"), "drafts were verified, or none were");
    expect(counts_.checked > 0, "no sample was checked");
  }

  // The least-squares line through what was resident after the first third.
  void CheckMemory() {
    const std::span rest = std::span(memory_).subspan(memory_.size() / 3);
    double seconds = 0, bytes = 0, products = 0, squares = 0;
    for (const auto& [at, resident] : rest) seconds += at / rest.size(), bytes += resident / rest.size();
    for (const auto& [at, resident] : rest) {
      products += (at - seconds) * (resident - bytes);
      squares += (at - seconds) * (at - seconds);
    }
    slope_ = squares > 0 ? products / squares : 0;
    growth_ = rest.empty() ? 0 : slope_ * (rest.back().first - rest.front().first);
    if (growth_ > kFlatBytes) Violate(Concat("memory grew by ", growth_, " bytes, allowed are ", kFlatBytes));
  }

  void Summarize() const {
    const auto print = [](const char* name, uint64_t value) {
      std::printf("%-28s %llu\n", name, static_cast<unsigned long long>(value));
    };
    std::printf("\n");
    print("sequences", counts_.sequences);
    print("  whole", counts_.whole);
    print("  cancelled", counts_.cancels);
    print("  overdue", counts_.deadlines);
    print("  not read for a while", counts_.pauses);
    print("  with prompt scores", counts_.scores);
    print("  further answers (n > 1)", counts_.choices);
    print("prompt tokens computed", stats_.prompt_tokens);
    print("tokens sent", stats_.generated_tokens);
    print("tokens cached", counts_.cached_tokens);
    print("preemptions, recomputed", stats_.recompute_preemptions);
    print("preemptions, swapped", stats_.swap_preemptions);
    print("tokens of drafts verified", SpeculationStats::Sum(stats_.speculation.verified));
    print("  accepted", SpeculationStats::Sum(stats_.speculation.accepted));
    print("of second guesses verified", stats_.speculation.branch_verified);
    print("  accepted", stats_.speculation.branch_accepted);
    print("answers equal alone", counts_.checked);
    std::printf(
        "memory                       %+.1f KiB/s, %+.2f MiB after the first third (allowed %.0f MiB)\n",
        slope_ / 1024, growth_ / (1 << 20), kFlatBytes / (1 << 20));
    for (const std::string& violation : violations_) std::printf("VIOLATION: %s\n", violation.c_str());
    std::printf("%s\n", violations_.empty() ? "all held" : "FAILED");
  }

  const Flags flags_;
  const uint32_t vocab_size_;
  OpenedEngine crowd_, alone_;
  std::vector<int32_t> documents_[4];
  Counts counts_;
  std::vector<std::pair<double, double>> memory_;  // seconds since the beginning, bytes
  double slope_ = 0, growth_ = 0;
  EngineStats stats_;
  std::mutex mutex_;
  std::optional<Sample> sample_;         // GUARDED_BY(mutex_)
  std::vector<std::string> violations_;  // GUARDED_BY(mutex_)
};

StatusOr<bool> Run(const Flags& flags) {
  ASSIGN_OR_RETURN(OpenedEngine alone, OpenEngine({.model = flags.model,
                                                   .threads = 1,
                                                   .max_sequences = 1,
                                                   .kv_dtype = flags.kv_dtype,
                                                   .prefix_cache = false}));
  // A pool of two and a half contexts for up to 12 sequences.
  ASSIGN_OR_RETURN(OpenedEngine crowd,
                   OpenEngine({.model = flags.model,
                               .max_sequences = 12,
                               .max_step_tokens = 96,
                               .kv_pool_bytes = alone.kv_bytes * 5 / 2,
                               .kv_dtype = flags.kv_dtype,
                               .host_swap_bytes = flags.swap ? alone.kv_bytes * 2 : 0,
                               .max_prefill_wait_seconds = 1,
                               .audits = true,
                               .speculation = {.drafter = flags.drafter,
                                               .model = flags.draft_model,
                                               .max_branch_tokens = flags.max_branch_tokens,
                                               .min_match = 1,
                                               .adapts = false}}));
  const auto vocab_size = static_cast<uint32_t>(crowd.files->config.vocab_size);
  std::printf("%s: %s, %u blocks of %u, %u of swap memory, seed %u, %.1f minutes\n", flags.model.c_str(),
              crowd.kv_dtype.c_str(), crowd.blocks, crowd.block_tokens, crowd.host_blocks, flags.seed,
              flags.minutes);
  return Soak(flags, std::move(crowd), std::move(alone), vocab_size).Run();
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  terrace::Flags flags;
  CLI::App app("Soaks an engine with a mixed load and checks answers, accounts and memory.");
  app.add_option("--model", flags.model, "a model folder or .gguf file")->capture_default_str();
  app.add_option("--minutes", flags.minutes)->capture_default_str();
  app.add_option("--seed", flags.seed)->capture_default_str();
  app.add_option("--kv-dtype", flags.kv_dtype, "f32, f16, bf16, int8 or fp8")->capture_default_str();
  app.add_flag("--swap,!--no-swap", flags.swap, "swap memory for preempted sequences")->capture_default_str();
  app.add_option("--drafter", flags.drafter, "none, ngram or model")->capture_default_str();
  app.add_option("--draft-model", flags.draft_model, "of drafter model");
  app.add_option("--max-branch-tokens", flags.max_branch_tokens, "of second guesses")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const auto all_held = terrace::Run(flags);
  if (!all_held.ok()) {
    std::fprintf(stderr, "soak: %s\n", terrace::Message(all_held.status()).c_str());
    return terrace::ExitCodeFor(all_held.status());
  }
  return *all_held ? terrace::kExitOk : terrace::kExitFailure;
}
