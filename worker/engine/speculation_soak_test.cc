// Drafters of every kind under a load that does not fit: sequences come, are cancelled, are overdue, are not
// read and are preempted, and all that may have drafts have them, second guesses too. After every call of the
// scheduler every block is counted again; the fake executors play the KV caches of both models, so that a row
// that is lost, wrong or somebody else's is a CHECK. No model: answers are random tokens of few kinds.
#include <functional>
#include <memory>
#include <random>

#include "base/fake_clock.h"
#include "gtest/gtest.h"
#include "worker/engine/fake_executor.h"
#include "worker/engine/model_drafter.h"
#include "worker/engine/scheduler_testing.h"
#include "worker/engine/speculation.h"
#include "worker/speculative/ngram_drafter.h"

namespace terrace {
namespace {

constexpr uint32_t kFewTokens = 6;  // what came before comes again

struct Counts {
  uint64_t verified = 0, accepted = 0, branch_verified = 0, branch_accepted = 0;
  uint64_t preemptions = 0, cancelled = 0, finished = 0;
};

// Another model: of the same random bits it makes the same token as often as it does not.
std::unique_ptr<ModelDrafter> SmallModel(uint32_t block_tokens, uint32_t blocks) {
  FakeExecutor::Options fake{.vocab_size = kFewTokens / 2,
                             .block_tokens = block_tokens,
                             .checked_positions = 1000,
                             .top = [](int32_t token) {
                               const auto vocab = static_cast<int32_t>(kFewTokens);
                               return std::vector<TokenLogprob>{
                                   {.token = token, .logprob = -1},
                                   {.token = (token + vocab / 2) % vocab, .logprob = -1.5f}};
                             }};
  return std::make_unique<ModelDrafter>(
      ModelDrafter::Options{
          .context_length = 256, .block_tokens = block_tokens, .blocks = blocks, .max_pass_tokens = 64},
      std::make_unique<FakeExecutor>(std::move(fake)));
}

class Soak {
 public:
  Soak(uint32_t seed, bool has_model) : random_(seed) {
    SchedulerOptions options = SmallOptions();
    options.vocab_size = kFewTokens;
    options.max_sequences = Draw(1, 8);
    options.max_step_tokens = options.max_sequences + Draw(0, 100);
    options.block_tokens = Draw(1, 20);
    const uint32_t longest = 100 / options.block_tokens + 1;
    options.blocks = Draw(longest, 3 * longest);
    options.host_blocks = Draw(0, 1) * Draw(1, 2 * longest);
    options.prefix_cache = Draw(0, 3) > 0;
    scheduler_ = std::make_unique<Scheduler>(options);
    executor_ = std::make_unique<FakeExecutor>(FakeExecutor::Options{
        .vocab_size = kFewTokens, .block_tokens = options.block_tokens, .checked_positions = 1000});
    std::unique_ptr<Drafter> drafter;
    if (has_model) {
      auto model = SmallModel(options.block_tokens, Draw(longest, 3 * longest));
      model_ = model.get();
      drafter = std::move(model);
    } else {
      drafter = std::make_unique<NgramDrafter>(
          NgramDrafter::Options{.min_match = Draw(1, 2), .max_tokens = Draw(100, 1000)});
    }
    speculation_ = std::make_unique<Speculation>(
        Speculation::Options{.max_tokens = 5, .max_branch_tokens = 4, .adapts = false}, std::move(drafter),
        [](const Status& error) { ADD_FAILURE() << Message(error); }, clock_);
  }

  void Run(Counts& counts) {
    for (int step = 0; step < 200; ++step) {
      if (Draw(0, 3) == 0) Arrive();
      for (const Live& live : all_) {
        if (Draw(0, 99) == 0) live.sink->Cancel();
        if (Draw(0, 19) == 0) live.sink->is_stuck = Draw(0, 2) == 0;
      }
      scheduler_->SetCosts({.swap_seconds_per_block = Draw(0, 1) * 1.0});
      Step();
    }
    for (const Live& live : all_) live.sink->is_stuck = false;
    for (int steps = 0; Step(); ++steps) ASSERT_LT(steps, 10'000);
    CheckEnds(counts);
  }

 private:
  struct Live {
    SequenceSpec spec;
    std::shared_ptr<WatchedSink> sink;
  };

  uint32_t Draw(uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random_);
  }

  void Arrive() {
    SequenceSpec spec;
    for (uint32_t count = Draw(1, 40); count > 0; --count)
      spec.prompt.push_back(static_cast<int32_t>(Draw(0, kFewTokens - 1)));
    spec.max_tokens = Draw(1, 60);
    spec.sampling.seed = Draw(1, 1000);
    if (Draw(0, 2) == 0) spec.sampling.repetition_penalty = 1.5f;
    spec.ignore_eos = true;
    spec.priority = static_cast<int32_t>(Draw(0, 2));
    if (Draw(0, 3) == 0) spec.speculation = Draw(0, 4);
    if (Draw(0, 4) == 0) spec.deadline = clock_.Now() + std::chrono::milliseconds(Draw(1, 80));
    ASSERT_EQ(Scheduler::Validate(spec, scheduler_->options()), Status());
    all_.push_back({spec, std::make_shared<WatchedSink>()});
    scheduler_->Add(spec, all_.back().sink, clock_.Now());
  }

  void CheckBlocks() const {
    const SchedulerStats stats = scheduler_->Stats();
    ASSERT_EQ(stats.free_blocks + stats.held_blocks + stats.cached_blocks, stats.total_blocks);
  }

  bool Step() {
    clock_.Advance(std::chrono::milliseconds(1));
    StepPlan plan = scheduler_->Schedule(clock_.Now());
    CheckBlocks();
    speculation_->Draft(*scheduler_, plan);
    CheckBlocks();
    if (plan.empty()) return false;
    EXPECT_LE(plan.sequences.size(), scheduler_->options().max_sequences);
    scheduler_->Commit(plan, executor_->Run(plan), clock_.Now());
    CheckBlocks();
    speculation_->Learn(*scheduler_, 1e-3);
    return true;
  }

  void CheckEnds(Counts& counts) {
    EXPECT_TRUE(scheduler_->idle());
    uint64_t speculated = 0, accepted = 0;
    for (const Live& live : all_) {
      ASSERT_TRUE(live.sink->has_ended);
      const auto answer = live.sink->Wait();
      for (size_t i = 0; i < answer.tokens.size(); ++i)
        ASSERT_EQ(answer.tokens[i].token, FakeExecutor::AnswerToken(live.spec.sampling.seed, i, kFewTokens));
      const bool is_whole = answer.result.reason == FinishReason::kLength;
      EXPECT_EQ(is_whole, answer.tokens.size() == live.spec.max_tokens);
      speculated += answer.result.stats.speculated_tokens;
      accepted += answer.result.stats.accepted_speculated_tokens;
    }
    const SchedulerStats stats = scheduler_->Stats();
    EXPECT_EQ(stats.free_blocks + stats.cached_blocks, stats.total_blocks);
    EXPECT_EQ(stats.swapped_blocks, 0u);
    if (model_ != nullptr) {
      EXPECT_EQ(model_->free_blocks(), model_->total_blocks()) << "of sequences that have ended";
    }
    const SpeculationStats& drafted = speculation_->stats();
    EXPECT_EQ(speculated, SpeculationStats::Sum(drafted.verified) + drafted.branch_verified);
    EXPECT_EQ(accepted, SpeculationStats::Sum(drafted.accepted) + drafted.branch_accepted);
    counts.verified += SpeculationStats::Sum(drafted.verified);
    counts.accepted += SpeculationStats::Sum(drafted.accepted);
    counts.branch_verified += drafted.branch_verified;
    counts.branch_accepted += drafted.branch_accepted;
    counts.preemptions += stats.recompute_preemptions + stats.swap_preemptions;
    counts.cancelled += stats.cancelled;
    counts.finished += stats.finished;
  }

  std::mt19937 random_;
  FakeClock clock_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<FakeExecutor> executor_;
  std::unique_ptr<Speculation> speculation_;
  const ModelDrafter* model_ = nullptr;  // speculation_'s
  std::vector<Live> all_;
};

TEST(SpeculationSoak, NoBlockIsLostAndNoAnswerChangesWhoeverDrafts) {
  for (const bool has_model : {false, true}) {
    Counts counts;
    for (uint32_t seed = 1; seed <= 60 && !testing::Test::HasFailure(); ++seed) {
      SCOPED_TRACE(Concat(has_model ? "model" : "ngram", ", seed ", seed));
      Soak(seed, has_model).Run(counts);
    }
    EXPECT_GT(counts.finished, 1'000u);
    EXPECT_GT(counts.cancelled, 300u);
    EXPECT_GT(counts.preemptions, 200u);
    EXPECT_GT(counts.accepted, 1'000u);
    EXPECT_GT(counts.verified, counts.accepted);
    EXPECT_GT(counts.branch_accepted, 100u);
    EXPECT_GT(counts.branch_verified, counts.branch_accepted);
  }
}

}  // namespace
}  // namespace terrace
