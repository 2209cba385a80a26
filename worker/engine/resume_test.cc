// Answers that go on where another run left them: nobody can tell the difference.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/scheduler_testing.h"

namespace terrace {
namespace {

constexpr uint32_t kAnswer = 40;

// The spec of an answer of kAnswer tokens of which `resumed` are there.
SequenceSpec Resumed(uint32_t prompt, uint32_t resumed, uint64_t seed = 1) {
  SequenceSpec spec = Spec(prompt, kAnswer, seed);
  spec.resume = WantedTokens(seed, resumed);
  return spec;
}

std::vector<int32_t> Rest(uint32_t resumed, uint64_t seed = 1) {
  const auto answer = WantedTokens(seed, kAnswer);
  return {answer.begin() + resumed, answer.end()};
}

TEST(Resume, TheAnswerIsTheSameWhereverItWasCut) {
  for (const uint32_t step_tokens : {4u, 16u, 200u}) {
    for (const bool prefix_cache : {true, false}) {
      SchedulerOptions options = SmallOptions();
      options.max_step_tokens = step_tokens;
      options.prefix_cache = prefix_cache;
      Harness harness(options);
      for (uint32_t resumed = 0; resumed < kAnswer; ++resumed) {
        SCOPED_TRACE(
            Concat(step_tokens, " tokens a step, prefix cache ", prefix_cache, ", resumed ", resumed));
        const auto sink = harness.Add(Resumed(20, resumed));
        harness.RunAll();
        const auto answer = sink->Wait();
        EXPECT_EQ(answer.ids(), Rest(resumed));
        EXPECT_EQ(answer.result.reason, FinishReason::kLength);
        EXPECT_EQ(answer.result.stats.generated_tokens, kAnswer);
        EXPECT_EQ(answer.result.stats.prompt_tokens, 20u);
      }
    }
  }
}

TEST(Resume, WhatIsThereIsComputedLikeAPromptAndCountedLikeAnAnswer) {
  SchedulerOptions options = SmallOptions();
  options.prefix_cache = false;
  std::vector<size_t> sizes;
  std::vector<uint64_t> indices;
  std::vector<size_t> counted;
  Harness harness(options, {.before_step = [&](const StepPlan& plan) {
                    const PlannedSequence& part = plan.sequences.at(0);
                    sizes.push_back(part.tokens.size());
                    if (!part.sample) return;
                    indices.push_back(part.sample_index);
                    size_t generated = 0;
                    for (const auto& entry : part.counts->entries()) generated += entry.generated;
                    counted.push_back(generated);
                  }});
  harness.Add(Resumed(20, 38));
  harness.RunAll();
  EXPECT_EQ(sizes, (std::vector<size_t>{16, 16, 16, 10, 1}));
  EXPECT_EQ(indices, (std::vector<uint64_t>{38, 39}));
  EXPECT_EQ(counted, (std::vector<size_t>{38, 39}));
  EXPECT_EQ(harness.scheduler.Stats().prompt_tokens, 58u);
  EXPECT_EQ(harness.scheduler.Stats().generated_tokens, 2u);
}

TEST(Resume, PenaltiesSeeThePromptAndTheAnswerApart) {
  std::vector<TokenCounts::Entry> entries;
  Harness harness(SmallOptions(), {.before_step = [&](const StepPlan& plan) {
                    const auto seen = plan.sequences.at(0).counts->entries();
                    if (entries.empty()) entries.assign(seen.begin(), seen.end());
                  }});
  SequenceSpec spec = Spec(1, 10);
  spec.prompt = {5, 6};
  spec.resume = {6, 900, 6};
  spec.sampling.repetition_penalty = 1.5f;
  harness.Add(std::move(spec));
  harness.Step();
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[0].generated, 0u);  // of token 5
  EXPECT_EQ(entries[1].generated, 2u);  // of token 6
  EXPECT_EQ(entries[2].generated, 1u);  // of token 900
}

TEST(Resume, WhatIsCachedOfAnAnswerIsFoundAndCountsForThePromptOnly) {
  SchedulerOptions options = SmallOptions();
  options.blocks = 100;  // nothing has to go
  Harness harness(options);
  CachedTokens(harness, Spec(50, kAnswer, 1));
  const uint64_t computed = harness.scheduler.Stats().prompt_tokens;
  EXPECT_EQ(CachedTokens(harness, Resumed(50, 20, 1)), 50u);
  EXPECT_EQ(harness.scheduler.Stats().prompt_tokens, computed) << "all but the last token was there";
  EXPECT_EQ(harness.scheduler.Stats().prefix_query_tokens, 100u);
  EXPECT_EQ(harness.scheduler.Stats().prefix_hit_tokens, 50u);
  // And the other way round: what was resumed serves the next turn of the conversation.
  CachedTokens(harness, Resumed(50, 20, 2));
  SequenceSpec next = Spec(50, 3, 2);
  for (const int32_t token : WantedTokens(2, kAnswer)) next.prompt.push_back(token);
  EXPECT_EQ(CachedTokens(harness, next), 50u + kAnswer - 1);
}

TEST(Resume, AnAnswerThatHasEndedIsRefused) {
  const auto with = [](auto change) {
    SequenceSpec spec = Spec(20, 10);
    change(spec);
    return spec;
  };
  const struct {
    const char* name;
    SequenceSpec spec;
    std::string_view reason;
    const char* says;
  } cases[] = {
      {"at its length", with([](auto& s) { s.resume.assign(10, 1); }), "invalid_value",
       "resume has 10 tokens and the answer at most 10"},
      {"past its length", with([](auto& s) { s.resume.assign(11, 1); }), "invalid_value",
       "resume has 11 tokens"},
      {"at an end token", with([](auto& s) {
         s.resume = {1, kEnd};
         s.ignore_eos = false;
       }),
       "invalid_value", "resume[1] is 7, which ends the answer"},
      {"before its last token", with([](auto& s) {
         s.resume = {kEnd, 1};
         s.ignore_eos = false;
       }),
       "invalid_value", "resume[0] is 7"},
      {"at a stop token", with([](auto& s) {
         s.resume = {1, 500};
         s.stop_tokens = {500};
       }),
       "invalid_value", "resume[1] is 500"},
      {"no answer is wanted", with([](auto& s) {
         s.resume = {1};
         s.max_tokens = 0;
         s.score_prompt = true;
       }),
       "invalid_value", "the answer at most 0"},
      {"the context is full", with([](auto& s) {
         s.resume.assign(236, 1);
         s.max_tokens = 0;
       }),
       "context_length_exceeded", "an answer of at least 237 needs 257 tokens; the limit is 256"},
      {"no token", with([](auto& s) { s.resume = {-1}; }), "invalid_value", "resume[0] is -1"},
      {"no token of a draft", with([](auto& s) {
         s.draft = {1, kVocab};
       }),
       "invalid_value", "draft[1] is 1000"},
  };
  for (const auto& c : cases) {
    const Status status = Scheduler::Validate(c.spec, SmallOptions());
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.name;
    EXPECT_EQ(Reason(status), c.reason) << c.name;
    EXPECT_THAT(Message(status), ::testing::HasSubstr(c.says)) << c.name;
  }
  EXPECT_EQ(Scheduler::Validate(with([](auto& s) {
                                  s.resume = {1, kEnd};
                                }),
                                SmallOptions()),
            Status())
      << "an end token that is ignored is one like others";
}

TEST(Resume, AnOpenAnswerStillEndsWhereTheContextDoes) {
  SequenceSpec spec = Spec(20, 0, 3);
  spec.resume = WantedTokens(3, 230);
  Harness harness;
  const auto sink = harness.Add(spec);
  harness.RunAll();
  EXPECT_EQ(sink->Wait().tokens.size(), 6u);  // 20 + 230 + 6 are 256
  EXPECT_EQ(sink->Wait().result.stats.generated_tokens, 236u);
}

TEST(Resume, TheEndTokenEndsItWhereItWouldHave) {
  const uint64_t seed = SeedThatSays(kEnd, 5);
  for (uint32_t resumed = 0; resumed <= 5; ++resumed) {
    Harness harness;
    SequenceSpec spec = Spec(9, 30, seed);
    spec.ignore_eos = false;
    spec.resume = WantedTokens(seed, resumed);
    const auto sink = harness.Add(spec);
    harness.RunAll();
    EXPECT_EQ(sink->Wait().tokens.size(), 6u - resumed);
    EXPECT_EQ(sink->Wait().result.reason, FinishReason::kStop);
    EXPECT_EQ(sink->Wait().result.stats.generated_tokens, 6u);
  }
}

TEST(Resume, ScoresAreOfThePromptAlone) {
  for (const uint32_t prompt : {1u, 16u, 17u, 100u}) {
    for (const uint32_t resumed : {1u, 2u, 15u, 30u}) {
      SCOPED_TRACE(Concat("prompt ", prompt, ", resumed ", resumed));
      Harness harness;
      SequenceSpec spec = Resumed(prompt, resumed, prompt);
      spec.score_prompt = true;
      const std::vector<int32_t> want(spec.prompt.begin() + 1, spec.prompt.end());
      const auto sink = harness.Add(spec);
      harness.RunAll();
      const auto answer = sink->Wait();
      std::vector<int32_t> scored;
      for (const auto& score : answer.prompt_scores) scored.push_back(score.token);
      EXPECT_EQ(scored, want);
      EXPECT_EQ(answer.ids(), Rest(resumed, prompt));
    }
  }
}

TEST(Resume, ASequenceThatIsPreemptedSendsNothingTwice) {
  for (const uint32_t host_blocks : {0u, 100u}) {
    SchedulerOptions options = SmallOptions();
    options.blocks = 16;
    options.host_blocks = host_blocks;
    Harness harness(options);
    const auto older = harness.Add(Spec(60, 150, 1));
    SequenceSpec spec = Spec(60, 150, 2);
    spec.resume = WantedTokens(2, 30);
    const auto resumed = harness.Add(spec);
    harness.RunAll();
    EXPECT_GE(resumed->Wait().result.stats.preemptions, 1u);
    EXPECT_EQ(older->Wait().ids(), WantedTokens(1, 150));
    const auto whole = WantedTokens(2, 150);
    EXPECT_EQ(resumed->Wait().ids(), std::vector<int32_t>(whole.begin() + 30, whole.end()));
  }
}

// Prefill is what comes before the first token of its own.
TEST(Resume, TimesOfThePhasesAreThoseOfThisRun) {
  Harness harness;
  const auto sink = harness.Add(Resumed(20, 38));  // 58 tokens in 4 steps, and a last one
  harness.RunAll();
  const SequenceStats stats = sink->Wait().result.stats;
  EXPECT_DOUBLE_EQ(stats.queue_seconds, 0.001);
  EXPECT_DOUBLE_EQ(stats.prefill_seconds, 0.003);
  EXPECT_DOUBLE_EQ(stats.decode_seconds, 0.001);
  const LatencySamples latencies = harness.scheduler.TakeLatencies();
  ASSERT_EQ(latencies.first_token.size(), 1u);
  EXPECT_DOUBLE_EQ(latencies.first_token[0], 0.004);
  EXPECT_EQ(latencies.inter_token.size(), 1u);
}

}  // namespace
}  // namespace terrace
