// What the scheduler itself costs: Schedule and Commit of a step with a batch of 256 out of 10,000 sequences,
// under steady churn (who ends is followed by a new arrival), and Add. No model; the real step is the
// executor's.
#include <cstdio>
#include <random>

#include "base/rng.h"
#include "tests/bench/timings.h"
#include "worker/engine/scheduler.h"

namespace terrace {
namespace {

constexpr uint32_t kSequences = 10'000, kBatch = 256, kVocab = 32'000, kSteps = 3000, kWarmUp = 500;

struct Load {
  const char* name;
  uint32_t blocks = 20'000, host_blocks = 0;
  bool prefix_cache = true;
  uint32_t documents = 50, sharing_percent = 50;  // so many prompts begin with one of so many documents
  uint32_t priorities = 1;                        // drawn from so many
};

class CountingSink : public TokenSink {
 public:
  explicit CountingSink(uint32_t& ended) : ended_(ended) {}
  void OnTokens(uint32_t, std::span<const SampledToken>) override {}
  void OnPromptScores(uint32_t, std::span<const SampledToken>) override {}
  void OnFinish(const SequenceResult&) override { ++ended_; }
  bool is_closed() const override { return false; }

 private:
  uint32_t& ended_;
};

class Bench {
 public:
  explicit Bench(const Load& load)
      : load_(load),
        random_(1),
        scheduler_({.max_sequences = kBatch,
                    .max_step_tokens = 2048,
                    .context_length = 4096,
                    .vocab_size = kVocab,
                    .block_tokens = 16,
                    .blocks = load.blocks,
                    .host_blocks = load.host_blocks,
                    .prefix_cache = load.prefix_cache}) {
    for (uint32_t i = 0; i < load.documents; ++i) documents_.push_back(Tokens(300));
  }

  void Run() {
    for (uint32_t i = 0; i < kSequences; ++i) Add();
    add_ = {};
    uint64_t parts = 0;
    for (uint32_t step = 0; step < kSteps; ++step) {
      ended_ = 0;
      now_ += std::chrono::milliseconds(20);
      Duration begin = ThreadTime();
      const StepPlan plan = scheduler_.Schedule(now_);
      const Duration schedule = ThreadTime() - begin;
      StepResult result = Answer(plan);
      begin = ThreadTime();
      scheduler_.Commit(plan, std::move(result), now_);
      const Duration commit = ThreadTime() - begin;
      if (step == 0) first_.Add(schedule + commit);
      if (step >= kWarmUp) {
        schedule_.Add(schedule), commit_.Add(commit), both_.Add(schedule + commit);
        parts += plan.sequences.size();
      }
      scheduler_.TakeLatencies();
      while (ended_-- > 0) Add();
    }
    const SchedulerStats stats = scheduler_.Stats();
    std::printf("\n%s: %.0f sequences a step, %llu ended, %llu preempted, %.0f%% of prompt tokens cached\n",
                load_.name, static_cast<double>(parts) / static_cast<double>(both_.size()),
                static_cast<unsigned long long>(stats.finished),
                static_cast<unsigned long long>(stats.recompute_preemptions + stats.swap_preemptions),
                100.0 * static_cast<double>(stats.prefix_hit_tokens) /
                    static_cast<double>(std::max<uint64_t>(1, stats.prefix_query_tokens)));
    Timings::PrintHeader();
    both_.Print("Schedule + Commit");
    schedule_.Print("  Schedule");
    commit_.Print("  Commit");
    first_.Print("the first step, with all 10,000 waiting");
    add_.Print("Add");
  }

 private:
  uint32_t Draw(uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random_);
  }
  std::vector<int32_t> Tokens(uint32_t count) {
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(Draw(0, kVocab - 1));
    return tokens;
  }

  void Add() {
    SequenceSpec spec;
    spec.prompt = Tokens(Draw(50, 500));
    if (Draw(1, 100) <= load_.sharing_percent) {
      const auto& document = documents_[Draw(0, load_.documents - 1)];
      std::copy_n(document.begin(), std::min(document.size(), spec.prompt.size() - 20), spec.prompt.begin());
    }
    spec.max_tokens = Draw(50, 400);
    spec.priority = static_cast<int32_t>(Draw(1, load_.priorities));
    spec.sampling.seed = ++seed_;
    auto sink = std::make_shared<CountingSink>(ended_);
    const Duration begin = ThreadTime();
    scheduler_.Add(std::move(spec), std::move(sink), now_);
    add_.Add(ThreadTime() - begin);
  }

  static StepResult Answer(const StepPlan& plan) {
    StepResult result;
    result.outputs.resize(plan.sequences.size());
    for (size_t i = 0; i < plan.sequences.size(); ++i) {
      const PlannedSequence& part = plan.sequences[i];
      if (!part.sample) continue;
      const auto token = static_cast<int32_t>(RandomBits(part.sampling->seed, part.sample_index) % kVocab);
      result.outputs[i].tokens.push_back({.token = token, .logprob = -1, .top = {}});
    }
    return result;
  }

  const Load load_;
  std::mt19937 random_;
  Scheduler scheduler_;
  std::vector<std::vector<int32_t>> documents_;
  MonoTime now_{};
  uint64_t seed_ = 0;
  uint32_t ended_ = 0;
  Timings add_, first_, schedule_, commit_, both_;
};

}  // namespace
}  // namespace terrace

int main() {
  std::printf(
      "%u sequences, batches of %u, prompts of 50 to 500 tokens, answers of 50 to 400, blocks of 16\n",
      terrace::kSequences, terrace::kBatch);
  const terrace::Load loads[] = {
      {.name = "half of the prompts share 50 beginnings"},
      {.name = "nothing shared", .sharing_percent = 0},
      {.name = "all prompts begin alike", .documents = 1, .sharing_percent = 100},
      {.name = "prefix cache off", .prefix_cache = false},
      {.name = "too few blocks, 20 priorities, recomputing", .blocks = 3000, .priorities = 20},
      {.name = "too few blocks, 20 priorities, swapping",
       .blocks = 3000,
       .host_blocks = 20'000,
       .priorities = 20},
  };
  for (const auto& load : loads) terrace::Bench(load).Run();
}
