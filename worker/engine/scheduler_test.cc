#include "worker/engine/scheduler.h"

#include <algorithm>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/scheduler_testing.h"

namespace terrace {
namespace {

using std::chrono::milliseconds;

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
      {"priority", with(Spec(4, 1), [](auto& s) { s.priority = 101; }), "invalid_value", "101, not in"},
      {"salt", with(Spec(4, 1), [](auto& s) { s.cache_salt.assign(257, 'x'); }), "invalid_value",
       "257 bytes, limit 256"},
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

TEST(Scheduler, TheShortestPromptGoesFirstAndOthersGetWhatIsLeftOfTheBudget) {
  Harness harness;
  harness.Add(Spec(40, 1, 1));
  harness.Add(Spec(20, 1, 2));
  ASSERT_TRUE(harness.Step());
  ASSERT_EQ(harness.plan.sequences.size(), 1u);
  EXPECT_EQ(harness.plan.sequences[0].sampling->seed, 2u);
  EXPECT_EQ(harness.plan.sequences[0].tokens.size(), 16u);
  EXPECT_FALSE(harness.plan.sequences[0].sample);
  ASSERT_TRUE(harness.Step());
  ASSERT_EQ(harness.plan.sequences.size(), 2u);
  EXPECT_EQ(harness.plan.sequences[0].tokens.size(), 4u);
  EXPECT_TRUE(harness.plan.sequences[0].sample);
  EXPECT_EQ(harness.plan.sequences[1].tokens.size(), 12u);
}

// A stream of short prompts that would fill every step: the long one still gets its turn in time.
TEST(Scheduler, ALongPromptIsOvertakenForTheBoundAtMost) {
  for (const double bound : {0.02, 0.1}) {
    SchedulerOptions options = SmallOptions();
    options.max_sequences = 3;
    options.max_prefill_wait_seconds = bound;
    Harness harness(options);
    const auto large = harness.Add(Spec(200, 1, 1000));
    int steps = 0;
    for (; !large->has_ended; ++steps) {
      ASSERT_LT(steps, 1000);
      harness.Add(Spec(16, 1, static_cast<uint64_t>(steps) + 1));  // a whole step's budget
      harness.Step();
    }
    EXPECT_GT(steps, 13) << "it was never overtaken";
    // After the bound nobody who came later than it precedes it; what came before is done first.
    EXPECT_LE(steps, 2 * bound / 0.001 + 14 + 3);
  }
}

TEST(Scheduler, AHigherPriorityGoesFirstAndTakesALowerOnesPlace) {
  SchedulerOptions options = SmallOptions();
  options.max_sequences = 2;
  Harness harness(options);
  const auto with_priority = [](SequenceSpec spec, int32_t priority) {
    spec.priority = priority;
    return spec;
  };
  const auto low = harness.Add(with_priority(Spec(10, 20, 1), -1)), usual = harness.Add(Spec(10, 20, 2));
  harness.Step();
  harness.Step();
  const auto later = harness.Add(Spec(1, 20, 3)), high = harness.Add(with_priority(Spec(10, 5, 4), 5));
  harness.Step();
  EXPECT_EQ(harness.scheduler.Stats().recompute_preemptions, 1u);
  for (int i = 0; i < 4; ++i) harness.Step();
  EXPECT_TRUE(high->has_ended);
  EXPECT_FALSE(later->has_ended);
  harness.RunAll();
  EXPECT_EQ(low->Wait().ids(), WantedTokens(1, 20));
  EXPECT_EQ(low->Wait().result.stats.preemptions, 1u);
  EXPECT_EQ(usual->Wait().result.stats.preemptions, 0u);
  EXPECT_EQ(later->Wait().ids(), WantedTokens(3, 20));
}

TEST(Scheduler, NobodyOvertakesASequenceThatWaitsForBlocks) {
  SchedulerOptions options = SmallOptions();
  options.blocks = 16;
  Harness harness(options);
  const auto running = harness.Add(Spec(150, 60, 1));
  harness.Step();
  const auto large = harness.Add(Spec(120, 4, 2)), larger = harness.Add(Spec(121, 4, 3));
  harness.Step();
  EXPECT_EQ(harness.scheduler.Stats().running, 1u);
  EXPECT_EQ(harness.scheduler.Stats().waiting, 2u);
  EXPECT_EQ(harness.scheduler.Stats().waiting_prompt_tokens, 241u);
  harness.RunAll();
  for (const auto& sink : {running, large, larger}) {
    EXPECT_EQ(sink->Wait().result.reason, FinishReason::kLength);
    EXPECT_EQ(sink->Wait().result.stats.preemptions, 0u);
  }
  EXPECT_LT(large->Wait().result.stats.queue_seconds, larger->Wait().result.stats.queue_seconds);
}

// Two answers that do not fit together.
SchedulerOptions TightOptions(uint32_t host_blocks) {
  SchedulerOptions options = SmallOptions();
  options.blocks = 16;
  options.host_blocks = host_blocks;
  return options;
}

TEST(PrefixCache, APromptSeenBeforeIsComputedFromItsFirstNewToken) {
  SchedulerOptions options = SmallOptions();
  options.blocks = 100;  // nothing has to go
  Harness harness(options);
  EXPECT_EQ(CachedTokens(harness, Spec(100, 3, 1)), 0u);
  EXPECT_EQ(CachedTokens(harness, Spec(100, 3, 1)), 99u);  // the last token's logits are wanted
  EXPECT_EQ(CachedTokens(harness, Spec(96, 3, 1)), 95u);
  for (const uint32_t common : {1u, 15u, 16u, 17u, 50u, 64u, 99u}) {
    SequenceSpec spec = Spec(120, 1, 1);
    for (size_t i = common; i < spec.prompt.size(); ++i) spec.prompt[i] = static_cast<int32_t>(500 + common);
    EXPECT_EQ(CachedTokens(harness, spec), common) << common;
  }
  const SchedulerStats stats = harness.scheduler.Stats();
  EXPECT_EQ(stats.held_blocks, 0u);
  EXPECT_GT(stats.cached_blocks, 0u);
  EXPECT_EQ(stats.prefix_query_tokens - stats.prefix_hit_tokens, stats.prompt_tokens);
}

TEST(PrefixCache, TheNextTurnOfAConversationFindsThePromptAndTheAnswer) {
  Harness harness;
  CachedTokens(harness, Spec(50, 30, 1));
  SequenceSpec next = Spec(50, 3, 1);
  for (const int32_t token : WantedTokens(1, 30)) next.prompt.push_back(token);
  for (int32_t i = 0; i < 10; ++i) next.prompt.push_back(i);
  EXPECT_EQ(CachedTokens(harness, next), 50u + 29u);  // the last token of an answer is never computed
}

TEST(PrefixCache, SaltsKeepTenantsApart) {
  Harness harness;
  SequenceSpec salted = Spec(100, 1, 1);
  salted.cache_salt = "tenant";
  CachedTokens(harness, Spec(100, 1, 1));
  EXPECT_EQ(CachedTokens(harness, salted), 0u);
  EXPECT_EQ(CachedTokens(harness, salted), 99u);
}

TEST(PrefixCache, ScoresNeedEveryPositionButServeLaterPrompts) {
  Harness harness;
  SequenceSpec score = Spec(100, 0, 1);
  score.score_prompt = true;
  CachedTokens(harness, Spec(100, 1, 1));
  EXPECT_EQ(CachedTokens(harness, score), 0u);
  EXPECT_EQ(CachedTokens(harness, Spec(100, 1, 1)), 99u);
}

TEST(PrefixCache, TheLeastRecentlyUsedPrefixGoesFirst) {
  SchedulerOptions options = SmallOptions();
  options.blocks = 17;
  Harness harness(options);
  CachedTokens(harness, Spec(80, 1, 1));
  CachedTokens(harness, Spec(80, 1, 2));
  CachedTokens(harness, Spec(80, 1, 3));
  EXPECT_EQ(CachedTokens(harness, Spec(80, 1, 1)), 79u);
  CachedTokens(harness, Spec(80, 1, 4));  // needs the room of one
  EXPECT_EQ(CachedTokens(harness, Spec(80, 1, 1)), 79u);
  EXPECT_LT(CachedTokens(harness, Spec(80, 1, 2)), 79u);
}

TEST(PrefixCache, APrefixThatIsBeingComputedIsAwaitedNotComputedTwice) {
  Harness harness;
  std::vector<std::shared_ptr<WatchedSink>> sinks;
  for (uint64_t choice = 0; choice < 4; ++choice) {
    SequenceSpec spec = Spec(100, 20, 1);
    spec.sampling.seed = 1 + choice;
    sinks.push_back(harness.Add(spec));
  }
  harness.Step();
  EXPECT_EQ(harness.scheduler.Stats().running, 1u);
  harness.RunAll();
  for (uint64_t choice = 0; choice < 4; ++choice)
    EXPECT_EQ(sinks[choice]->Wait().ids(), WantedTokens(1 + choice, 20));
  EXPECT_LE(harness.scheduler.Stats().prompt_tokens, 100u + 3 * 16);
  EXPECT_GE(sinks[3]->Wait().result.stats.cached_tokens, 96u);
}

TEST(PrefixCache, WhoAwaitsAPrefixGoesOnAloneWhenItIsGivenUp) {
  Harness harness;
  const auto leader = harness.Add(Spec(100, 20, 1)), follower = harness.Add(Spec(100, 20, 1));
  harness.Step();
  EXPECT_EQ(harness.scheduler.Stats().running, 1u);
  leader->Cancel();
  harness.RunAll();
  EXPECT_EQ(follower->Wait().ids(), WantedTokens(1, 20));
  EXPECT_EQ(follower->Wait().result.stats.cached_tokens, 16u);
}

TEST(PrefixCache, NobodyAwaitsAPrefixForLongerThanTheBound) {
  SchedulerOptions options = SmallOptions();
  options.max_prefill_wait_seconds = 0.010;
  Harness harness(options);
  const auto leader = harness.Add(Spec(200, 5, 1)), follower = harness.Add(Spec(200, 5, 1));
  for (int step = 1; step <= 10; ++step) ASSERT_TRUE(harness.Step());  // of 13 that the prompt takes
  EXPECT_EQ(harness.scheduler.Stats().running, 1u);
  ASSERT_TRUE(harness.Step());
  EXPECT_EQ(harness.scheduler.Stats().running, 2u);
  harness.RunAll();
  EXPECT_EQ(follower->Wait().result.stats.cached_tokens, 160u);
  EXPECT_EQ(follower->Wait().ids(), leader->Wait().ids());
}

TEST(PrefixCache, EqualAnswersShareTheirBlocks) {
  Harness harness;
  for (int i = 0; i < 4; ++i) harness.Add(Spec(64, 100, 1));
  uint32_t held = 0;
  while (harness.Step()) held = std::max(held, harness.scheduler.Stats().held_blocks);
  EXPECT_LE(held, 4u + 6u + 2 * 4u);  // prompt, answer, and for each one or two blocks it writes
}

TEST(PrefixCache, WhatLedToANumericErrorIsForgotten) {
  const Status nan = WithReason(Internal("logit 3 is NaN"), "numeric_error");
  bool fails = false;
  Harness harness(SmallOptions(), {.fail_sequence = [&](const PlannedSequence& part) {
                    return fails && part.sample ? nan : Status();
                  }});
  CachedTokens(harness, Spec(100, 1, 1));
  fails = true;
  const auto poisoned = harness.Add(Spec(100, 1, 1));
  harness.RunAll();
  EXPECT_EQ(Reason(poisoned->Wait().result.error), "numeric_error");
  fails = false;
  EXPECT_EQ(CachedTokens(harness, Spec(100, 1, 1)), 0u);
}

// A prompt shorter than a block: its rows were copied, and copied again.
TEST(PrefixCache, EveryCopyOfRowsThatLedToANumericErrorIsForgotten) {
  bool fails = false;
  Harness harness(SmallOptions(), {.fail_sequence = [&](const PlannedSequence& part) {
                    return fails && part.sample ? WithReason(Internal("NaN"), "numeric_error") : Status();
                  }});
  for (const uint32_t prompt : {10u, 40u}) {
    CachedTokens(harness, Spec(prompt, 1, prompt));
    EXPECT_EQ(CachedTokens(harness, Spec(prompt, 1, prompt)), prompt - 1);
    fails = true;
    harness.Add(Spec(prompt, 1, prompt));
    harness.RunAll();
    fails = false;
    EXPECT_EQ(CachedTokens(harness, Spec(prompt, 1, prompt)), 0u);
  }
}

// Out and back again, it left a copy behind.
TEST(PrefixCache, WhatASwapLeftOfRowsThatLedToANumericErrorIsForgotten) {
  for (const uint32_t prompt : {10u, 40u}) {
    SchedulerOptions options = SmallOptions();
    options.max_sequences = 1;
    options.host_blocks = 10;
    bool fails = false;
    Harness harness(options, {.fail_sequence = [&](const PlannedSequence& part) {
                      return fails && part.sampling->seed == 1 ? WithReason(Internal("NaN"), "numeric_error")
                                                               : Status();
                    }});
    const auto poisoned = harness.Add(Spec(prompt, 9, 1));
    while (harness.scheduler.Stats().generated_tokens < 2) ASSERT_TRUE(harness.Step());
    SequenceSpec urgent = Spec(5, 1, 2);
    urgent.priority = 1;
    harness.Add(urgent);
    ASSERT_TRUE(harness.Step());
    ASSERT_EQ(harness.scheduler.Stats().swap_preemptions, 1u);
    fails = true;
    harness.RunAll();
    ASSERT_EQ(Reason(poisoned->Wait().result.error), "numeric_error");
    fails = false;
    SequenceSpec again = Spec(prompt, 1, 1), next = again;
    next.prompt.push_back(WantedTokens(1, 1)[0]);
    EXPECT_EQ(CachedTokens(harness, again), 0u);
    EXPECT_EQ(CachedTokens(harness, next), prompt);  // what `again` computed, and no more
  }
}

TEST(PrefixCache, HoldsASequenceThatCameBackFromTheHost) {
  Harness harness(TightOptions(/*host_blocks=*/100));
  harness.Add(Spec(60, 150, 1));
  const auto swapped = harness.Add(Spec(60, 150, 2));
  harness.RunAll();
  ASSERT_EQ(harness.scheduler.Stats().swap_preemptions, 1u);
  SequenceSpec next = Spec(60, 1, 2);
  for (const int32_t token : swapped->Wait().ids()) next.prompt.push_back(token);
  EXPECT_EQ(CachedTokens(harness, next), 60u + 149u);
}

TEST(PrefixCache, OffMeansNothingIsKept) {
  SchedulerOptions options = SmallOptions();
  options.prefix_cache = false;
  Harness harness(options);
  EXPECT_EQ(CachedTokens(harness, Spec(100, 1, 1)), 0u);
  EXPECT_EQ(CachedTokens(harness, Spec(100, 1, 1)), 0u);
  EXPECT_EQ(harness.scheduler.Stats().cached_blocks, 0u);
  EXPECT_EQ(harness.scheduler.Stats().prefix_query_tokens, 0u);
}

// The whole pool is needed, and a block of it could be copied from: the copy is done without.
TEST(PrefixCache, ATailThatTakesTheLastBlockIsComputedInstead) {
  SchedulerOptions options = SmallOptions();
  options.blocks = 4;
  Harness harness(options);
  CachedTokens(harness, Spec(64, 1, 1));
  SequenceSpec other = Spec(64, 1, 1);
  other.prompt[40] = 999;
  EXPECT_EQ(CachedTokens(harness, other), 32u);
}

TEST(Preemption, TheNewestGivesWayAndBothAnswersAreWhole) {
  for (const uint32_t host_blocks : {0u, 3u, 100u}) {
    Harness harness(TightOptions(host_blocks));
    const auto older = harness.Add(Spec(60, 150, 1)), newer = harness.Add(Spec(60, 150, 2));
    harness.RunAll();
    EXPECT_EQ(older->Wait().ids(), WantedTokens(1, 150));
    EXPECT_EQ(newer->Wait().ids(), WantedTokens(2, 150));
    EXPECT_EQ(older->Wait().result.stats.preemptions, 0u);
    EXPECT_EQ(newer->Wait().result.stats.preemptions, 1u);
    const SchedulerStats stats = harness.scheduler.Stats();
    EXPECT_EQ(stats.swap_preemptions, host_blocks == 100 ? 1u : 0u);
    EXPECT_EQ(stats.recompute_preemptions, host_blocks == 100 ? 0u : 1u);
    EXPECT_EQ(stats.swapped_blocks, 0u);
  }
}

TEST(Preemption, TheCheaperWayIsTaken) {
  for (const bool swaps : {true, false}) {
    Harness harness(TightOptions(/*host_blocks=*/100));
    harness.scheduler.SetCosts(
        {.recompute_seconds_per_token = 1e-3, .swap_seconds_per_block = (swaps ? 0.4 : 0.6) * 16e-3});
    harness.Add(Spec(64, 150, 1));
    harness.Add(Spec(64, 150, 2));
    harness.RunAll();
    EXPECT_EQ(harness.scheduler.Stats().swap_preemptions, swaps ? 1u : 0u);
    EXPECT_EQ(harness.scheduler.Stats().recompute_preemptions, swaps ? 0u : 1u);
  }
}

TEST(Preemption, ASwappedSequenceThatIsCancelledGivesItsHostBlocksBack) {
  Harness harness(TightOptions(/*host_blocks=*/16));
  harness.Add(Spec(60, 150, 1));
  const auto newer = harness.Add(Spec(60, 150, 2));
  while (harness.scheduler.Stats().swapped_blocks == 0) ASSERT_TRUE(harness.Step());
  newer->Cancel();
  harness.Step();
  EXPECT_EQ(harness.scheduler.Stats().swapped_blocks, 0u);
  harness.RunAll();
}

TEST(Preemption, ScoresAreNotSentTwice) {
  SchedulerOptions options = TightOptions(0);
  options.prefix_cache = false;
  Harness harness(options);
  SequenceSpec first = Spec(60, 150, 1), scored = Spec(120, 20, 2), urgent = Spec(200, 2, 3);
  scored.score_prompt = true;
  urgent.priority = 1;
  const auto sink = harness.Add(scored);
  for (int i = 0; i < 3; ++i) harness.Step();
  harness.Add(urgent);
  harness.RunAll();
  EXPECT_EQ(sink->Wait().result.stats.preemptions, 1u);
  std::vector<int32_t> targets;
  for (const auto& score : sink->Wait().prompt_scores) targets.push_back(score.token);
  EXPECT_EQ(targets, std::vector<int32_t>(scored.prompt.begin() + 1, scored.prompt.end()));
}

TEST(FullSink, PausesItsSequenceAlone) {
  Harness harness;
  const auto stuck = harness.Add(Spec(10, 30, 1)), other = harness.Add(Spec(10, 30, 2));
  harness.Step();
  stuck->is_stuck = true;
  while (!other->has_ended) ASSERT_TRUE(harness.Step());
  EXPECT_FALSE(harness.Step());
  EXPECT_EQ(harness.scheduler.Stats().paused, 1u);
  EXPECT_FALSE(stuck->has_ended);
  stuck->is_stuck = false;
  harness.RunAll();
  EXPECT_EQ(stuck->Wait().ids(), WantedTokens(1, 30));
}

TEST(FullSink, ItsPlaceGoesToWhoWaits) {
  SchedulerOptions options = SmallOptions();
  options.max_sequences = 1;
  Harness harness(options);
  const auto stuck = harness.Add(Spec(10, 30, 1));
  harness.Step();
  harness.Step();
  stuck->is_stuck = true;
  const auto other = harness.Add(Spec(10, 30, 2));
  while (!other->has_ended) ASSERT_TRUE(harness.Step());
  EXPECT_FALSE(harness.Step());
  stuck->is_stuck = false;
  harness.RunAll();
  EXPECT_EQ(stuck->Wait().ids(), WantedTokens(1, 30));
}

TEST(Latencies, AreOfEachSequenceOnce) {
  Harness harness;
  harness.Add(Spec(20, 5, 1));
  harness.Add(Spec(3, 2, 2));
  harness.RunAll();
  const LatencySamples samples = harness.scheduler.TakeLatencies();
  EXPECT_EQ(samples.queue.size(), 2u);
  EXPECT_EQ(samples.first_token.size(), 2u);
  EXPECT_EQ(samples.inter_token.size(), 4u + 1u);
  EXPECT_TRUE(harness.scheduler.TakeLatencies().queue.empty());
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

// Sorting a long prompt would hold every decode up, and only one penalty looks at it.
TEST(Scheduler, ThePromptIsCountedForTheRepetitionPenaltyOnly) {
  for (const bool repeats : {false, true}) {
    size_t entries = 0;
    Harness harness(SmallOptions(), {.before_step = [&](const StepPlan& plan) {
                      entries = plan.sequences[0].counts->entries().size();
                    }});
    SequenceSpec spec = Spec(16, 2);
    spec.sampling.presence_penalty = 1;
    if (repeats) spec.sampling.repetition_penalty = 1.5f;
    harness.Add(std::move(spec));
    harness.Step();
    EXPECT_EQ(entries, repeats ? 16u : 0u);
    harness.Step();
    EXPECT_EQ(entries, repeats ? 17u : 1u);
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
  for (uint32_t seed = 1; seed <= 120; ++seed) {
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
    options.host_blocks = draw(0, 1) * draw(1, 40);
    options.prefix_cache = draw(0, 4) > 0;
    options.max_prefill_wait_seconds = 0.001 * draw(0, 100);
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
        // Prompts begin alike, or are alike, or not at all.
        for (size_t i = 0, common = draw(0, 2) * draw(0, 100); i < std::min(common, spec.prompt.size()); ++i)
          spec.prompt[i] = static_cast<int32_t>(i % kVocab);
        spec.priority = static_cast<int32_t>(draw(0, 2));
        spec.cache_salt = draw(0, 3) == 0 ? "other" : "";
        spec.score_prompt = draw(0, 5) == 0;
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
      for (Live& live : all) {
        if (draw(0, 19) == 0) live.sink->is_stuck = !live.sink->is_stuck;
      }
      if (draw(0, 9) == 0) {
        harness.scheduler.SetCosts({.swap_seconds_per_block = draw(0, 1) * 1.0});
      }
      harness.Step();
    }
    for (Live& live : all) live.sink->is_stuck = false;
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
    EXPECT_EQ(stats.free_blocks + stats.cached_blocks, stats.total_blocks);
    EXPECT_EQ(stats.swapped_blocks, 0u);
  }
}

}  // namespace
}  // namespace terrace
