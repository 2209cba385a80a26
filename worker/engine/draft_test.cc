// Drafts decide when tokens come, never which: whatever is proposed, the answer is that of one token a step.
#include <numeric>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/scheduler_testing.h"

namespace terrace {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

// Tokens [first, first + agreeing) of the answer, and others than the answer has.
std::vector<int32_t> Draft(uint64_t seed, uint32_t first, uint32_t agreeing, uint32_t wrong) {
  const auto answer = WantedTokens(seed, first + agreeing + wrong);
  std::vector<int32_t> draft(answer.begin() + first, answer.end());
  for (size_t i = agreeing; i < draft.size(); ++i) draft[i] = (draft[i] + 1) % static_cast<int32_t>(kVocab);
  return draft;
}

SequenceSpec Drafted(uint32_t prompt, uint32_t max_tokens, uint64_t seed, uint32_t agreeing, uint32_t wrong) {
  SequenceSpec spec = Spec(prompt, max_tokens, seed);
  spec.draft = Draft(seed, 0, agreeing, wrong);
  return spec;
}

SchedulerOptions LargeSteps(uint32_t step_tokens = 256) {
  SchedulerOptions options = SmallOptions();
  options.max_step_tokens = step_tokens;
  return options;
}

TEST(Draft, TheAnswerIsTheSameWhateverIsProposed) {
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(Concat("seed ", seed));
    std::mt19937 random(seed);
    const auto draw = [&](uint32_t low, uint32_t high) {
      return std::uniform_int_distribution<uint32_t>(low, high)(random);
    };
    SchedulerOptions options = LargeSteps(draw(4, 80));
    options.block_tokens = draw(1, 20);
    options.blocks = draw(0, 1) == 0 ? 256u : 90 / options.block_tokens + 2 + draw(0, 4);
    options.prefix_cache = draw(0, 3) > 0;
    Harness harness(options, {.block_tokens = options.block_tokens});
    const uint32_t max_tokens = draw(1, 60), resumed = draw(0, max_tokens - 1);
    const uint32_t agreeing = draw(0, 80), wrong = draw(0, 1) * draw(1, 80);
    SequenceSpec spec = Spec(draw(1, 30), max_tokens, seed);
    spec.resume = WantedTokens(seed, resumed);
    spec.draft = Draft(seed, resumed, agreeing, wrong);
    const auto sink = harness.Add(spec);
    harness.RunAll();
    const auto answer = sink->Wait();
    const auto whole = WantedTokens(seed, max_tokens);
    EXPECT_EQ(answer.ids(), std::vector<int32_t>(whole.begin() + resumed, whole.end()));
    EXPECT_EQ(answer.result.reason, FinishReason::kLength);
    const uint32_t left = max_tokens - resumed;
    EXPECT_EQ(answer.result.stats.accepted_draft_tokens, std::min(agreeing, left));
    const SchedulerStats stats = harness.scheduler.Stats();
    EXPECT_EQ(stats.accepted_draft_tokens, std::min(agreeing, left));
    EXPECT_EQ(stats.accepted_draft_tokens + stats.rejected_draft_tokens, std::min(agreeing + wrong, left));
    EXPECT_EQ(stats.generated_tokens, left);
  }
}

// What is computed in vain at the first disagreement is no more than a window.
TEST(Draft, IsVerifiedInWindowsThatGiveOneTokenMoreEach) {
  std::vector<uint32_t> proposed;
  Harness harness(LargeSteps(), {.before_step = [&](const StepPlan& plan) {
                    proposed.push_back(plan.sequences.at(0).proposed);
                  }});
  const auto sink = harness.Add(Drafted(20, 100, 1, 60, 0));
  ASSERT_TRUE(harness.Step());
  EXPECT_EQ(harness.plan.sequences[0].tokens.size(), 28u) << "the first window goes with the prompt";
  EXPECT_EQ(harness.scheduler.Stats().generated_tokens, 9u);
  EXPECT_EQ(harness.scheduler.Stats().prompt_tokens, 20u);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(harness.Step());
  EXPECT_THAT(proposed, ElementsAre(8u, 16u, 16u, 16u, 0u));
  EXPECT_EQ(harness.scheduler.Stats().generated_tokens, 61u);
  EXPECT_TRUE(harness.plan.sequences[0].is_decode);
  harness.RunAll();
  EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 100));
}

// Of a draft of the whole answer the last token is not computed: nothing follows it.
TEST(Draft, OfAnAnswerThatIsGuessedTheLastTokenIsNotComputed) {
  std::vector<uint32_t> proposed;
  Harness harness(LargeSteps(), {.before_step = [&](const StepPlan& plan) {
                    proposed.push_back(plan.sequences.at(0).proposed);
                  }});
  const auto sink = harness.Add(Drafted(20, 50, 1, 50, 0));
  harness.RunAll();
  EXPECT_THAT(proposed, ElementsAre(8u, 16u, 16u, 6u));
  EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 50));
  EXPECT_EQ(sink->Wait().result.stats.accepted_draft_tokens, 50u);
}

TEST(Draft, IsVerifiedInChunksAndNoFurtherThanTheFirstDisagreement) {
  SchedulerOptions options = LargeSteps(16);
  options.prefix_cache = false;
  std::vector<uint32_t> computed, proposed;
  Harness harness(options, {.before_step = [&](const StepPlan& plan) {
                    computed.push_back(static_cast<uint32_t>(plan.sequences.at(0).tokens.size()));
                    proposed.push_back(plan.sequences[0].proposed);
                  }});
  // Behind the prompt 8 fit, and the token after them is the draft's too: 9 of the answer. Then 13 behind the
  // last one, as the answer has 23, of which 11 are right: 12 more.
  const auto sink = harness.Add(Drafted(8, 23, 1, 20, 60));
  harness.RunAll();
  EXPECT_THAT(computed, ElementsAre(16u, 14u, 1u, 1u));
  EXPECT_THAT(proposed, ElementsAre(8u, 13u, 0u, 0u));
  EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 23));
}

TEST(Draft, EndsAndLimitsInsideItEndTheAnswer) {
  const uint64_t says_end = SeedThatSays(kEnd, 3), says_stop = SeedThatSays(500, 3);
  const struct {
    const char* name;
    uint64_t seed;
    std::vector<int32_t> stop_tokens;
    bool ignore_eos;
    uint32_t max_tokens, tokens, rejected;
    FinishReason reason;
  } cases[] = {
      {"end token", says_end, {}, false, 10, 4, 6, FinishReason::kStop},
      {"end token as the last one allowed", says_end, {}, false, 4, 4, 0, FinishReason::kStop},
      {"length", says_end, {}, false, 3, 3, 0, FinishReason::kLength},
      {"ignored end token", says_end, {}, true, 6, 6, 0, FinishReason::kLength},
      {"stop token", says_stop, {9, 500}, false, 10, 4, 6, FinishReason::kStop},
      {"one token", says_stop, {}, true, 1, 1, 0, FinishReason::kLength},
  };
  for (const auto& c : cases) {
    Harness harness(LargeSteps());
    SequenceSpec spec = Drafted(5, c.max_tokens, c.seed, 20, 0);
    spec.stop_tokens = c.stop_tokens;
    spec.ignore_eos = c.ignore_eos;
    const auto sink = harness.Add(spec);
    harness.RunAll();
    const auto answer = sink->Wait();
    EXPECT_EQ(answer.ids(), WantedTokens(c.seed, c.tokens)) << c.name;
    EXPECT_EQ(answer.result.reason, c.reason) << c.name;
    EXPECT_EQ(answer.result.stats.accepted_draft_tokens, c.tokens) << c.name;
    EXPECT_EQ(harness.scheduler.Stats().rejected_draft_tokens, c.rejected) << c.name;
    EXPECT_EQ(harness.scheduler.Stats().generated_tokens, c.tokens) << c.name;
  }
}

TEST(Draft, WhatWasNotAcceptedIsNeverFoundInThePrefixCache) {
  for (const uint32_t agreeing : {0u, 1u, 13u, 14u, 15u, 30u}) {
    Harness harness(LargeSteps());
    const SequenceSpec spec = Drafted(50, 130, 1, agreeing, 60);
    CachedTokens(harness, spec);
    SequenceSpec next = Spec(50, 1, 1);
    next.prompt.insert(next.prompt.end(), spec.draft.begin(), spec.draft.end());
    EXPECT_EQ(CachedTokens(harness, next), 50 + agreeing);
  }
}

TEST(Draft, BlocksOfRejectedTokensAloneAreGivenBack) {
  std::vector<size_t> blocks;
  Harness harness(LargeSteps(), {.before_step = [&](const StepPlan& plan) {
                    blocks.push_back(plan.sequences.at(0).blocks.size());
                  }});
  harness.Add(Drafted(28, 200, 1, 13, 100));
  ASSERT_TRUE(harness.Step());
  ASSERT_TRUE(harness.Step());
  EXPECT_EQ(harness.plan.sequences[0].proposed, 16u);
  EXPECT_EQ(harness.scheduler.Stats().generated_tokens, 14u);
  EXPECT_THAT(blocks, ElementsAre(3u, 4u));              // 28 + 8 positions, then 37 + 16
  EXPECT_EQ(harness.scheduler.Stats().held_blocks, 3u);  // of 41 positions
  harness.RunAll();
}

// Both fit, to the last block, as long as the older one runs.
TEST(Draft, NobodyIsPreemptedForOne) {
  for (const uint32_t wrong : {0u, 90u}) {
    SchedulerOptions options = LargeSteps();
    options.blocks = 12;
    options.prefix_cache = false;
    Harness harness(options);
    const auto older = harness.Add(Spec(60, 30, 1)), drafted = harness.Add(Drafted(60, 90, 2, 0, wrong));
    harness.RunAll();
    EXPECT_EQ(harness.scheduler.Stats().recompute_preemptions, 0u);
    EXPECT_EQ(harness.scheduler.Stats().rejected_draft_tokens, wrong);
    EXPECT_EQ(older->Wait().ids(), WantedTokens(1, 30));
    EXPECT_EQ(drafted->Wait().ids(), WantedTokens(2, 90));
  }
}

TEST(Draft, WithoutBlocksToSpareItIsVerifiedBitByBit) {
  SchedulerOptions options = LargeSteps();
  options.blocks = 5;
  options.prefix_cache = false;
  std::vector<uint32_t> proposed;
  Harness harness(options, {.before_step = [&](const StepPlan& plan) {
                    proposed.push_back(plan.sequences.at(0).proposed);
                  }});
  const auto sink = harness.Add(Drafted(20, 61, 1, 60, 0));
  harness.RunAll();
  // Of 5 blocks one is left for who decodes: behind 63 known tokens there is room for one.
  EXPECT_THAT(proposed, ElementsAre(8u, 16u, 16u, 1u, 15u));
  EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 61));
  EXPECT_EQ(sink->Wait().result.stats.accepted_draft_tokens, 60u);
}

TEST(Draft, NoDecodeWaitsForOne) {
  Harness harness(LargeSteps(16));
  const auto decoding = harness.Add(Spec(3, 40, 1));
  harness.Step();
  const auto drafted = harness.Add(Drafted(30, 150, 2, 150, 0));
  while (!decoding->has_ended) {
    ASSERT_TRUE(harness.Step());
    int decoded = 0;
    for (const PlannedSequence& part : harness.plan.sequences) decoded += part.id == 0;
    EXPECT_EQ(decoded, 1);
  }
  EXPECT_EQ(decoding->Wait().ids(), WantedTokens(1, 40));
  harness.RunAll();
  EXPECT_EQ(drafted->Wait().ids(), WantedTokens(2, 150));
}

TEST(Draft, AStepComputesABoundedNumberOfLogitsForDraftsAndScores) {
  Harness harness(LargeSteps(512));
  SequenceSpec scored = Spec(40, 3, 1);
  scored.score_prompt = true;
  harness.Add(scored);
  harness.Add(Drafted(20, 150, 2, 150, 0));
  harness.Add(Drafted(20, 150, 3, 150, 0));
  while (harness.Step()) {
    size_t extra = 0;
    for (const PlannedSequence& part : harness.plan.sequences)
      extra += part.proposed + (part.score ? part.tokens.size() : 0);
    EXPECT_LE(extra, 128u);
  }
}

TEST(Draft, ScoresComeFirstAndAlone) {
  for (const uint32_t prompt : {1u, 16u, 100u}) {
    Harness harness(LargeSteps());
    SequenceSpec spec = Drafted(prompt, 30, prompt, 20, 20);
    spec.score_prompt = true;
    const auto sink = harness.Add(spec);
    while (harness.Step()) {
      for (const PlannedSequence& part : harness.plan.sequences)
        EXPECT_TRUE(!part.score || part.proposed == 0);
    }
    const auto answer = sink->Wait();
    EXPECT_EQ(answer.prompt_scores.size(), prompt - 1);
    EXPECT_EQ(answer.ids(), WantedTokens(prompt, 30));
    EXPECT_EQ(answer.result.stats.accepted_draft_tokens, 20u);
  }
}

TEST(Draft, OutlivesAPause) {
  Harness harness(LargeSteps(16));
  const auto sink = harness.Add(Drafted(8, 100, 1, 100, 0));
  harness.Step();
  sink->is_stuck = true;
  EXPECT_FALSE(harness.Step());
  sink->is_stuck = false;
  harness.RunAll();
  EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 100));
  EXPECT_EQ(sink->Wait().result.stats.accepted_draft_tokens, 100u);
}

TEST(Draft, OutlivesAPreemption) {
  for (const uint32_t host_blocks : {0u, 100u}) {
    SchedulerOptions options = LargeSteps(16);
    options.max_sequences = 1;
    options.host_blocks = host_blocks;
    Harness harness(options);
    const auto sink = harness.Add(Drafted(8, 100, 1, 100, 0));
    harness.Step();
    harness.Step();
    SequenceSpec urgent = Spec(5, 1, 2);
    urgent.priority = 1;
    harness.Add(urgent);
    harness.RunAll();
    EXPECT_EQ(sink->Wait().result.stats.preemptions, 1u);
    EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 100));
    EXPECT_EQ(sink->Wait().result.stats.accepted_draft_tokens, 100u);
  }
}

// As when one token comes a step: what was said before the error is sent, and what would not have been
// computed is no error.
TEST(Draft, AnErrorInsideItComesWhereItWouldHaveCome) {
  const uint64_t seed = SeedThatSays(kEnd, 3);
  for (const bool ignore_eos : {true, false}) {
    Harness harness(LargeSteps(), {.fail_sequence = [](const PlannedSequence& part) {
                      return part.sample && part.sample_index == 5
                                 ? WithReason(Internal("logit 3 is NaN"), "numeric_error")
                                 : Status();
                    }});
    SequenceSpec spec = Drafted(40, 20, seed, 20, 0);
    spec.ignore_eos = ignore_eos;
    const auto sink = harness.Add(spec);
    harness.RunAll();
    const auto answer = sink->Wait();
    EXPECT_EQ(answer.ids(), WantedTokens(seed, ignore_eos ? 5 : 4));
    EXPECT_EQ(answer.result.reason, ignore_eos ? FinishReason::kError : FinishReason::kStop);
    EXPECT_EQ(harness.scheduler.Stats().cached_blocks > 0, !ignore_eos) << "what led to it is forgotten";
  }
}

TEST(Draft, ADisagreementHidesTheErrorsBehindIt) {
  Harness harness(LargeSteps(), {.fail_sequence = [](const PlannedSequence& part) {
                    return part.proposed > 0 && part.sample_index == 5 ? Internal("NaN") : Status();
                  }});
  const auto sink = harness.Add(Drafted(40, 20, 1, 4, 10));
  harness.RunAll();
  EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 20));
  EXPECT_EQ(sink->Wait().result.reason, FinishReason::kLength);
}

// Tokens that come together share the time since the last one; those that come with the first have none.
TEST(Draft, TheTimesBetweenTokensAddUp) {
  Harness harness(LargeSteps(16));
  harness.Add(Drafted(8, 40, 1, 40, 0));  // 9 tokens, 16, and 15 that are left
  harness.RunAll();
  const LatencySamples latencies = harness.scheduler.TakeLatencies();
  ASSERT_EQ(latencies.first_token.size(), 1u);
  EXPECT_DOUBLE_EQ(latencies.first_token[0], 0.001);
  ASSERT_EQ(latencies.inter_token.size(), 39u);
  const auto begin = latencies.inter_token.begin();
  EXPECT_THAT(std::vector<double>(begin, begin + 8), Each(0.0));
  EXPECT_THAT(std::vector<double>(begin + 8, begin + 24), Each(::testing::DoubleEq(0.001 / 16)));
  EXPECT_NEAR(std::accumulate(begin, latencies.inter_token.end(), 0.0), 0.002, 1e-9);
}

TEST(Draft, SignalsComeWithEveryTokenOfIt) {
  Harness harness(LargeSteps());
  SequenceSpec spec = Drafted(8, 40, 1, 20, 0);
  spec.signals = true;
  const auto sink = harness.Add(spec);
  harness.RunAll();
  const auto answer = sink->Wait();
  ASSERT_EQ(answer.tokens.size(), 40u);
  for (const SampledToken& token : answer.tokens) {
    EXPECT_EQ(token.margin, FakeExecutor::kMargin);
    EXPECT_EQ(token.entropy, FakeExecutor::kEntropy);
  }
}

}  // namespace
}  // namespace terrace
