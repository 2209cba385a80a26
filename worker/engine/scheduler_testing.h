// What the tests of the Scheduler share: small settings, specs whose answers are known, and a harness that
// runs a Scheduler on the fake executor and checks the rules that hold always.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/fake_clock.h"
#include "gtest/gtest.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/fake_executor.h"
#include "worker/engine/scheduler.h"

namespace terrace {

inline constexpr uint32_t kVocab = 1000;
inline constexpr int32_t kEnd = 7;

inline SchedulerOptions SmallOptions() {
  return {.max_sequences = 4,
          .max_step_tokens = 16,
          .context_length = 256,
          .vocab_size = kVocab,
          .block_tokens = 16,
          .blocks = 40,
          .end_tokens = {kEnd},
          .audits = true};
}

// A sink whose tokens can be counted and whose end can be seen without waiting.
class WatchedSink : public CollectingSink {
 public:
  using CollectingSink::CollectingSink;
  void OnTokens(uint32_t first_index, std::span<const SampledToken> tokens) override {
    sent += tokens.size();
    CollectingSink::OnTokens(first_index, tokens);
  }
  void OnDraftRecord(const DraftRecord& record) override { draft_record = record; }
  void OnFinish(const SequenceResult& result) override {
    has_ended = true;
    CollectingSink::OnFinish(result);
  }
  bool is_full() const override { return is_stuck; }
  size_t sent = 0;  // tokens
  bool has_ended = false, is_stuck = false;
  std::optional<DraftRecord> draft_record;  // the last one
};

inline SequenceSpec Spec(uint32_t prompt, uint32_t max_tokens, uint64_t seed = 1) {
  SequenceSpec spec;
  for (uint32_t i = 0; i < prompt; ++i) spec.prompt.push_back(static_cast<int32_t>((seed * 31 + i) % kVocab));
  spec.max_tokens = max_tokens;
  spec.sampling.seed = seed;
  spec.ignore_eos = true;
  return spec;
}

inline std::vector<int32_t> WantedTokens(uint64_t seed, uint32_t count) {
  std::vector<int32_t> tokens;
  for (uint32_t i = 0; i < count; ++i) tokens.push_back(FakeExecutor::AnswerToken(seed, i, kVocab));
  return tokens;
}

// A seed whose answer has its first `token` at index `at`: how the fake is made to say an end token.
inline uint64_t SeedThatSays(int32_t token, uint32_t at) {
  for (uint64_t seed = 1;; ++seed) {
    const auto tokens = WantedTokens(seed, at + 1);
    if (tokens[at] == token && std::ranges::find(tokens, token) == tokens.end() - 1) return seed;
  }
}

// A Scheduler, the fake executor and a clock that moves 1 ms a step; checks the rules that hold always.
struct Harness {
  explicit Harness(SchedulerOptions options = SmallOptions(), FakeExecutor::Options fake = {})
      : scheduler(options), executor(std::move(fake)) {}

  std::shared_ptr<WatchedSink> Add(SequenceSpec spec) {
    EXPECT_EQ(Scheduler::Validate(spec, scheduler.options()), Status());
    auto sink = std::make_shared<WatchedSink>(spec.resume.size());
    scheduler.Add(std::move(spec), sink, clock.Now());
    CheckBlocks();
    return sink;
  }

  // False when there was nothing to do.
  bool Step() {
    clock.Advance(std::chrono::milliseconds(1));
    plan = scheduler.Schedule(clock.Now());
    CheckBlocks();
    size_t tokens = 0;
    for (const PlannedSequence& part : plan.sequences) tokens += part.tokens.size();
    EXPECT_LE(tokens, scheduler.options().max_step_tokens);
    EXPECT_LE(plan.sequences.size(), scheduler.options().max_sequences);
    if (plan.empty()) return false;
    scheduler.Commit(plan, executor.Run(plan), clock.Now());
    CheckBlocks();
    return true;
  }

  void RunAll() {
    for (int steps = 0; Step(); ++steps) ASSERT_LT(steps, 100000);
    EXPECT_TRUE(scheduler.idle());
  }

  void CheckBlocks() const {
    const SchedulerStats stats = scheduler.Stats();
    EXPECT_EQ(stats.free_blocks + stats.held_blocks + stats.cached_blocks, stats.total_blocks);
    EXPECT_EQ(stats.held_blocks > 0, stats.running > 0);
  }

  FakeClock clock;
  Scheduler scheduler;
  FakeExecutor executor;
  StepPlan plan;  // of the last step; its spans are stale
};

// The tokens of `spec` that came from the cache, run alone after what `harness` ran before.
inline uint32_t CachedTokens(Harness& harness, SequenceSpec spec) {
  const auto sink = harness.Add(std::move(spec));
  harness.RunAll();
  EXPECT_EQ(sink->Wait().result.reason, FinishReason::kLength);
  return sink->Wait().result.stats.cached_tokens;
}

}  // namespace terrace
