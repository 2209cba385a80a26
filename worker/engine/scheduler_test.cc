#include "worker/engine/scheduler.h"

#include <algorithm>
#include <random>

#include "base/fake_clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/fake_executor.h"

namespace terrace {
namespace {

using std::chrono::milliseconds;

constexpr uint32_t kVocab = 1000;
constexpr int32_t kEnd = 7;

SchedulerOptions SmallOptions() {
  return {.max_sequences = 4,
          .max_step_tokens = 16,
          .context_length = 256,
          .vocab_size = kVocab,
          .block_tokens = 16,
          .blocks = 40,
          .end_tokens = {kEnd}};
}

// A sink whose end can be seen without waiting.
class WatchedSink : public CollectingSink {
 public:
  void OnFinish(const SequenceResult& result) override {
    has_ended = true;
    CollectingSink::OnFinish(result);
  }
  bool has_ended = false;
};

SequenceSpec Spec(uint32_t prompt, uint32_t max_tokens, uint64_t seed = 1) {
  SequenceSpec spec;
  for (uint32_t i = 0; i < prompt; ++i) spec.prompt.push_back(static_cast<int32_t>((seed * 31 + i) % kVocab));
  spec.max_tokens = max_tokens;
  spec.sampling.seed = seed;
  spec.ignore_eos = true;
  return spec;
}

std::vector<int32_t> WantedTokens(uint64_t seed, uint32_t count) {
  std::vector<int32_t> tokens;
  for (uint32_t i = 0; i < count; ++i) tokens.push_back(FakeExecutor::AnswerToken(seed, i, kVocab));
  return tokens;
}

// A seed whose answer has its first `token` at index `at`: how the fake is made to say an end token.
uint64_t SeedThatSays(int32_t token, uint32_t at) {
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
    auto sink = std::make_shared<WatchedSink>();
    scheduler.Add(std::move(spec), sink, clock.Now());
    CheckBlocks();
    return sink;
  }

  // False when there was nothing to do.
  bool Step() {
    clock.Advance(milliseconds(1));
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
    EXPECT_EQ(stats.free_blocks + stats.held_blocks, stats.total_blocks);
    EXPECT_EQ(stats.held_blocks > 0, stats.running > 0);
  }

  FakeClock clock;
  Scheduler scheduler;
  FakeExecutor executor;
  StepPlan plan;  // of the last step; its spans are stale
};

TEST(Scheduler, ValidateRefusesWhatCanNeverRunAndNamesTheNumbers) {
  const SchedulerOptions options = SmallOptions();
  const auto with = [](SequenceSpec spec, auto change) {
    change(spec);
    return spec;
  };
  const struct {
    const char* name;
    SequenceSpec spec;
    std::string_view reason;
    const char* names;
  } cases[] = {
      {"no prompt", Spec(0, 1), "invalid_value", "prompt"},
      {"context", Spec(250, 7), "context_length_exceeded", "257 tokens; the limit is 256"},
      {"no room for an answer", Spec(256, 0), "context_length_exceeded", "257 tokens; the limit is 256"},
      {"answer overflows 32 bits", Spec(2, 0xFFFFFFFF), "context_length_exceeded", "4294967297"},
      {"token below 0", with(Spec(4, 1), [](auto& s) { s.prompt[2] = -1; }), "invalid_value",
       "prompt[2] is -1"},
      {"token past vocab", with(Spec(4, 1), [](auto& s) { s.prompt[3] = kVocab; }), "invalid_value",
       "prompt[3]"},
      {"stop token",
       with(Spec(4, 1),
            [](auto& s) {
              s.stop_tokens = {1, 5000};
            }),
       "invalid_value", "stop_tokens[1]"},
      {"stop tokens", with(Spec(4, 1), [](auto& s) { s.stop_tokens.assign(65, 1); }), "invalid_value",
       "limit 64"},
      {"top_logprobs", with(Spec(4, 1), [](auto& s) { s.top_logprobs = 21; }), "invalid_value",
       "21, limit 20"},
      {"sampling", with(Spec(4, 1), [](auto& s) { s.sampling.top_p = 0; }), "invalid_value", "top_p"},
  };
  for (const auto& c : cases) {
    const Status status = Scheduler::Validate(c.spec, options);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.name;
    EXPECT_EQ(Reason(status), c.reason) << c.name;
    EXPECT_THAT(Message(status), ::testing::HasSubstr(c.names)) << c.name;
  }
  EXPECT_TRUE(Scheduler::Validate(Spec(250, 6), options).ok());
  EXPECT_TRUE(Scheduler::Validate(Spec(255, 0), options).ok());
}

TEST(Scheduler, WhatTheCacheCanHoldIsALimitLikeTheContext) {
  SchedulerOptions options = SmallOptions();
  options.blocks = 2;  // 32 positions; the last token of an answer needs none
  EXPECT_TRUE(Scheduler::Validate(Spec(20, 13), options).ok());
  EXPECT_EQ(Reason(Scheduler::Validate(Spec(20, 14), options)), "context_length_exceeded");
  SequenceSpec score = Spec(33, 0);
  score.score_prompt = true;
  EXPECT_EQ(Reason(Scheduler::Validate(score, options)), "context_length_exceeded");

  Harness harness(options);
  const auto open = harness.Add(Spec(20, 0, /*seed=*/3));
  harness.RunAll();
  EXPECT_EQ(open->Wait().tokens.size(), 13u);
}

TEST(Scheduler, DecodesNeverStarveBehindALongPrompt) {
  Harness harness;
  const auto first = harness.Add(Spec(3, 50, 1)), second = harness.Add(Spec(3, 50, 2));
  harness.Step();
  const auto prompt = harness.Add(Spec(200, 2, 3));
  while (!first->has_ended) {
    harness.Step();
    int decoded = 0;
    for (const PlannedSequence& part : harness.plan.sequences) decoded += part.sample_index > 0;
    EXPECT_GE(decoded, 2);
  }
  EXPECT_TRUE(second->has_ended);
  EXPECT_TRUE(prompt->has_ended);  // 200 tokens at 14 a step beside the decodes
}

TEST(Scheduler, PromptsAreComputedOldestFirstWithWhatIsLeftOfTheBudget) {
  Harness harness;
  harness.Add(Spec(20, 1, 1));
  harness.Add(Spec(20, 1, 2));
  ASSERT_TRUE(harness.Step());
  ASSERT_EQ(harness.plan.sequences.size(), 1u);
  EXPECT_EQ(harness.plan.sequences[0].tokens.size(), 16u);
  EXPECT_FALSE(harness.plan.sequences[0].sample);
  ASSERT_TRUE(harness.Step());
  ASSERT_EQ(harness.plan.sequences.size(), 2u);
  EXPECT_EQ(harness.plan.sequences[0].tokens.size(), 4u);
  EXPECT_TRUE(harness.plan.sequences[0].sample);
  EXPECT_EQ(harness.plan.sequences[1].tokens.size(), 12u);
}

TEST(Scheduler, AdmissionIsInOrderOfArrivalEvenWhenALaterOneWouldFit) {
  SchedulerOptions options = SmallOptions();
  options.blocks = 16;
  Harness harness(options);
  const auto large = harness.Add(Spec(100, 60, 1)), larger = harness.Add(Spec(100, 100, 2)),
             small = harness.Add(Spec(1, 1, 3));
  harness.Step();
  EXPECT_EQ(harness.scheduler.Stats().running, 1u);
  EXPECT_EQ(harness.scheduler.Stats().waiting, 2u);
  EXPECT_EQ(harness.scheduler.Stats().waiting_prompt_tokens, 101u);
  harness.RunAll();
  for (const auto& sink : {large, larger, small})
    EXPECT_EQ(sink->Wait().result.reason, FinishReason::kLength);
}

TEST(Scheduler, AnEndTokenIsSentAndEndsTheAnswer) {
  const uint64_t says_end = SeedThatSays(kEnd, 3), says_stop = SeedThatSays(500, 3);
  const struct {
    const char* name;
    uint64_t seed;
    std::vector<int32_t> stop_tokens;
    bool ignore_eos;
    uint32_t max_tokens, tokens;
    FinishReason reason;
  } cases[] = {
      {"end token", says_end, {}, false, 10, 4, FinishReason::kStop},
      {"end token as the last one allowed", says_end, {}, false, 4, 4, FinishReason::kStop},
      {"length", says_end, {}, false, 3, 3, FinishReason::kLength},
      {"ignored end token", says_end, {}, true, 6, 6, FinishReason::kLength},
      {"stop token", says_stop, {9, 500}, false, 10, 4, FinishReason::kStop},
      {"ignore_eos does not ignore stop tokens", says_stop, {500}, true, 10, 4, FinishReason::kStop},
      {"an end token given as stop token", says_end, {kEnd}, true, 10, 4, FinishReason::kStop},
  };
  for (const auto& c : cases) {
    Harness harness;
    SequenceSpec spec = Spec(5, c.max_tokens, c.seed);
    spec.stop_tokens = c.stop_tokens;
    spec.ignore_eos = c.ignore_eos;
    const auto sink = harness.Add(spec);
    harness.RunAll();
    const auto answer = sink->Wait();
    EXPECT_EQ(answer.ids(), WantedTokens(c.seed, c.tokens)) << c.name;
    EXPECT_EQ(answer.result.reason, c.reason) << c.name;
    EXPECT_EQ(answer.result.stats.generated_tokens, c.tokens) << c.name;
  }
}

TEST(Scheduler, ScoresOfAPromptComeChunkByChunkOnceEach) {
  for (const uint32_t max_tokens : {0u, 3u}) {
    for (const uint32_t prompt : {1u, 16u, 17u, 100u}) {
      Harness harness;
      SequenceSpec spec = Spec(prompt, max_tokens, prompt);
      spec.score_prompt = true;
      const std::vector<int32_t> want(spec.prompt.begin() + 1, spec.prompt.end());
      const auto sink = harness.Add(spec);
      harness.RunAll();
      const auto answer = sink->Wait();
      std::vector<int32_t> scored;
      for (const auto& score : answer.prompt_scores) scored.push_back(score.token);
      EXPECT_EQ(scored, want);
      EXPECT_EQ(answer.ids(), WantedTokens(prompt, max_tokens));
      EXPECT_EQ(answer.result.reason, FinishReason::kLength);
    }
  }
}

TEST(Scheduler, ADeadlineIsHonouredBetweenPrefillChunks) {
  Harness harness;
  SequenceSpec spec = Spec(200, 5);
  spec.deadline = harness.clock.Now() + milliseconds(4);
  const auto sink = harness.Add(spec);
  for (int step = 0; step < 3; ++step) ASSERT_TRUE(harness.Step());
  EXPECT_FALSE(sink->has_ended);
  EXPECT_FALSE(harness.Step());
  const auto answer = sink->Wait();
  EXPECT_EQ(answer.result.reason, FinishReason::kCancelled);
  EXPECT_EQ(answer.result.error.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(answer.result.error), ::testing::HasSubstr("48 of 200 prompt tokens"));
  EXPECT_EQ(harness.scheduler.Stats().cancelled, 1u);
}

TEST(Scheduler, AnErrorOfOneSequenceLeavesTheOthers) {
  const Status nan = WithReason(Internal("logit 3 is NaN"), "numeric_error");
  Harness harness(SmallOptions(), {.fail_sequence = [&](const PlannedSequence& part) {
                    return part.sampling->seed == 2 && part.sample_index == 5 ? nan : Status();
                  }});
  const auto first = harness.Add(Spec(20, 10, 1)), poisoned = harness.Add(Spec(20, 10, 2)),
             third = harness.Add(Spec(20, 10, 3));
  harness.RunAll();
  EXPECT_EQ(first->Wait().ids(), WantedTokens(1, 10));
  EXPECT_EQ(third->Wait().ids(), WantedTokens(3, 10));
  const auto answer = poisoned->Wait();
  EXPECT_EQ(answer.ids(), WantedTokens(2, 5));
  EXPECT_EQ(answer.result.reason, FinishReason::kError);
  EXPECT_EQ(Reason(answer.result.error), "numeric_error");
  const SchedulerStats stats = harness.scheduler.Stats();
  EXPECT_EQ(stats.failed, 1u);
  EXPECT_EQ(stats.finished, 2u);
  EXPECT_EQ(stats.prompt_tokens, 60u);
  EXPECT_EQ(stats.generated_tokens, 25u);
}

TEST(Scheduler, TimesOfTheThreePhasesAddUp) {
  SchedulerOptions options = SmallOptions();
  options.max_sequences = 1;
  Harness harness(options);
  harness.Add(Spec(1, 5, 1));  // steps 1 to 5
  const auto sink =
      harness.Add(Spec(40, 4, 2));  // admitted in step 6, prompt done in step 8, answer in step 11
  harness.RunAll();
  const SequenceStats stats = sink->Wait().result.stats;
  EXPECT_DOUBLE_EQ(stats.queue_seconds, 0.006);
  EXPECT_DOUBLE_EQ(stats.prefill_seconds, 0.002);
  EXPECT_DOUBLE_EQ(stats.decode_seconds, 0.003);
}

// Whatever arrives, closes, passes its deadline or fails: blocks add up after every call, budgets hold
// (Harness), tokens come without gap (CollectingSink), every sink ends exactly once, and those left alone get
// their whole answer.
TEST(Scheduler, EverySequenceEndsOnceUnderRandomSchedules) {
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(Concat("seed ", seed));
    std::mt19937 random(seed);
    const auto draw = [&](uint32_t low, uint32_t high) {
      return std::uniform_int_distribution<uint32_t>(low, high)(random);
    };
    SchedulerOptions options = SmallOptions();
    options.max_sequences = draw(1, 6);
    options.max_step_tokens = options.max_sequences + draw(0, 30);
    options.block_tokens = draw(1, 20);
    options.blocks = (256 + options.block_tokens - 1) / options.block_tokens + draw(0, 20);
    Harness harness(options,
                    {.block_tokens = options.block_tokens, .fail_sequence = [](const PlannedSequence& part) {
                       return part.sampling->seed % 11 == 0 && part.sample_index == 4
                                  ? WithReason(Internal("NaN"), "numeric_error")
                                  : Status();
                     }});
    struct Live {
      uint64_t seed;
      uint32_t max_tokens;
      bool left_alone = true;
      std::shared_ptr<WatchedSink> sink;
    };
    std::vector<Live> all;
    for (int step = 0; step < 300; ++step) {
      if (draw(0, 3) == 0) {
        Live live{.seed = draw(1, 1000), .max_tokens = draw(1, 30), .sink = {}};
        SequenceSpec spec = Spec(draw(1, 150), live.max_tokens, live.seed);
        if (draw(0, 4) == 0) {
          spec.deadline = harness.clock.Now() + milliseconds(draw(0, 40));
          live.left_alone = false;
        }
        live.sink = harness.Add(std::move(spec));
        all.push_back(std::move(live));
      }
      if (!all.empty() && draw(0, 9) == 0) {
        Live& victim = all[draw(0, all.size() - 1)];
        victim.left_alone = victim.left_alone && victim.sink->has_ended;
        victim.sink->Cancel();
      }
      harness.Step();
    }
    if (seed % 2 == 0) {
      harness.scheduler.CancelAll(Unavailable("stopping"), harness.clock.Now());
      harness.CheckBlocks();
    } else {
      harness.RunAll();
    }
    EXPECT_TRUE(harness.scheduler.idle());
    for (const Live& live : all) {
      ASSERT_TRUE(live.sink->has_ended);
      const auto answer = live.sink->Wait();
      EXPECT_EQ(answer.ids(), WantedTokens(live.seed, answer.tokens.size()));
      EXPECT_EQ(answer.result.reason == FinishReason::kLength, answer.tokens.size() == live.max_tokens);
      if (live.left_alone && seed % 2 == 1 && answer.result.reason != FinishReason::kError) {
        EXPECT_EQ(answer.result.reason, FinishReason::kLength);
      }
    }
    const SchedulerStats stats = harness.scheduler.Stats();
    EXPECT_EQ(stats.finished + stats.failed + stats.cancelled, all.size());
    EXPECT_EQ(stats.free_blocks, stats.total_blocks);
  }
}

}  // namespace
}  // namespace terrace
