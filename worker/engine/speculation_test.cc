// Drafts of the engine's own, through Scheduler, Speculation and the fake executor: whatever is guessed, the
// answer is that of one token a step; and what guessing costs decides whether anything is guessed.
#include "worker/engine/speculation.h"

#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/engine.h"
#include "worker/engine/scheduler_testing.h"
#include "worker/speculative/fake_drafter.h"

namespace terrace {
namespace {

using ::testing::UnorderedElementsAre;

// What FakeExecutor says.
int32_t RightToken(const DraftRequest& request, uint32_t index) {
  return FakeExecutor::AnswerToken(request.sampling->seed, index, kVocab);
}

FakeDrafter::Options RightBy(double share) {
  return {
      .answer = RightToken, .right = [share](const DraftRequest&) { return share; }, .vocab_size = kVocab};
}

StepTimeModel Memory() { return {.seconds_per_step = 1e-2, .seconds_per_token = 1e-4}; }

// A Harness whose steps take simulated time and have drafts.
struct Drafting {
  explicit Drafting(SchedulerOptions options, std::unique_ptr<Drafter> drafter, StepTimeModel time = Memory(),
                    FakeExecutor::Options fake = {}, uint32_t max_branch_tokens = 0)
      : scheduler(options),
        executor([&] {
          fake.block_tokens = options.block_tokens;
          fake.time = time;
          fake.on_step_time = [this](double seconds) { Advance(seconds); };
          return fake;
        }()),
        speculation(
            {.max_tokens = 8, .max_branch_tokens = max_branch_tokens}, std::move(drafter),
            [this](const Status& status) { failed = status; }, clock) {}

  void Advance(double seconds) {
    clock.Advance(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds)));
  }

  std::shared_ptr<WatchedSink> Add(SequenceSpec spec) {
    EXPECT_EQ(Scheduler::Validate(spec, scheduler.options()), Status());
    auto sink = std::make_shared<WatchedSink>(spec.resume.size());
    scheduler.Add(std::move(spec), sink, clock.Now());
    return sink;
  }

  bool Step() {
    clock.Advance(std::chrono::microseconds(1));
    StepPlan plan = scheduler.Schedule(clock.Now());
    speculation.Draft(scheduler, plan);
    if (plan.empty()) return false;
    const MonoTime begin = clock.Now();
    proposed = 0;
    size_t tokens = 0;
    for (const PlannedSequence& part : plan.sequences) {
      proposed += part.proposed;
      tokens += part.tokens.size();
    }
    EXPECT_LE(tokens, scheduler.options().max_step_tokens);
    StepResult result = executor.Run(plan);
    scheduler.Commit(plan, std::move(result), clock.Now());
    speculation.Learn(scheduler, Seconds(clock.Now() - begin));
    ++steps;
    return true;
  }

  void RunAll() {
    while (Step()) ASSERT_LT(steps, 100000);
    EXPECT_TRUE(scheduler.idle());
    const SchedulerStats stats = scheduler.Stats();
    EXPECT_EQ(stats.free_blocks + stats.cached_blocks, stats.total_blocks);
  }

  FakeClock clock;
  Scheduler scheduler;
  FakeExecutor executor;
  Status failed;
  Speculation speculation;
  uint32_t proposed = 0;  // in the last step
  int steps = 0;
};

SchedulerOptions LargeSteps() {
  SchedulerOptions options = SmallOptions();
  options.max_step_tokens = 256;
  return options;
}

TEST(Speculation, AnswersAreTheSameHoweverOftenDraftsAreRight) {
  uint64_t verified = 0;
  for (uint32_t seed = 1; seed <= 100; ++seed) {
    for (const double right : {0.0, 0.3, 0.6, 1.0}) {
      SCOPED_TRACE(Concat("seed ", seed, ", right ", right));
      std::mt19937 random(seed);
      const auto draw = [&](uint32_t low, uint32_t high) {
        return std::uniform_int_distribution<uint32_t>(low, high)(random);
      };
      SchedulerOptions options = LargeSteps();
      options.max_step_tokens = draw(4, 80);
      options.block_tokens = draw(1, 20);
      options.blocks = draw(0, 1) == 0 ? 512u : 90 / options.block_tokens + 2 + draw(0, 4);
      options.prefix_cache = draw(0, 3) > 0;
      Drafting drafting(options, std::make_unique<FakeDrafter>(RightBy(right)));
      std::vector<std::pair<SequenceSpec, std::shared_ptr<WatchedSink>>> all;
      for (uint32_t i = 0; i < 4; ++i) {
        SequenceSpec spec = Spec(draw(1, 30), draw(1, 60), 10 * seed + i);
        if (draw(0, 3) == 0) spec.draft = WantedTokens(spec.sampling.seed, draw(1, 30));
        if (draw(0, 3) == 0) spec.speculation = draw(0, 3);
        all.emplace_back(spec, drafting.Add(spec));
      }
      drafting.RunAll();
      for (const auto& [spec, sink] : all) {
        const auto answer = sink->Wait();
        EXPECT_EQ(answer.ids(), WantedTokens(spec.sampling.seed, spec.max_tokens));
        EXPECT_EQ(answer.result.reason, FinishReason::kLength);
        const SequenceStats& stats = answer.result.stats;
        EXPECT_LE(stats.accepted_speculated_tokens, stats.speculated_tokens);
        if (right == 1) {
          EXPECT_EQ(stats.accepted_speculated_tokens, stats.speculated_tokens);
        }
        if (right == 0) {
          EXPECT_EQ(stats.accepted_speculated_tokens, 0u);
        }
        verified += stats.speculated_tokens;
      }
    }
  }
  EXPECT_GT(verified, 3'000u);
}

TEST(Speculation, GivesSeveralTokensAStepWhereDraftsAreRight) {
  Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(RightBy(1)));
  const auto sink = drafting.Add(Spec(10, 200));
  drafting.RunAll();
  EXPECT_LT(drafting.steps, 40);
  EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 200));
  const SpeculationStats& stats = drafting.speculation.stats();
  EXPECT_EQ(stats.drafter, "fake");
  EXPECT_GT(stats.passes, 15u);
  EXPECT_EQ(stats.verified, stats.accepted);
  EXPECT_GT(stats.saved_seconds, 0.5);
  EXPECT_EQ(sink->Wait().result.stats.speculated_tokens,
            std::accumulate(stats.verified.begin(), stats.verified.end(), uint64_t{0}));
}

// Right by `share`, and by `branch_share` of the times that its first token is wrong its branch is right.
std::unique_ptr<Drafter> Trees(double share, double branch_share) {
  FakeDrafter::Options options = RightBy(share);
  options.branch_right = [branch_share](const DraftRequest&) { return branch_share; };
  return std::make_unique<FakeDrafter>(options);
}

TEST(Speculation, AnswersAreTheSameWhicheverGuessIsRight) {
  uint64_t accepted = 0, branch_accepted = 0;
  for (uint32_t seed = 1; seed <= 100; ++seed) {
    for (const double right : {0.0, 0.3, 0.6}) {
      SCOPED_TRACE(Concat("seed ", seed, ", right ", right));
      std::mt19937 random(seed);
      const auto draw = [&](uint32_t low, uint32_t high) {
        return std::uniform_int_distribution<uint32_t>(low, high)(random);
      };
      SchedulerOptions options = LargeSteps();
      options.max_sequences = draw(1, 8);
      options.max_step_tokens = draw(8, 80);
      options.block_tokens = draw(1, 20);
      options.blocks = draw(0, 1) == 0 ? 512u : 90 / options.block_tokens + 2 + draw(0, 8);
      options.prefix_cache = draw(0, 3) > 0;
      Drafting drafting(options, Trees(right, 0.7), Memory(), {}, /*max_branch_tokens=*/draw(1, 6));
      std::vector<std::pair<SequenceSpec, std::shared_ptr<WatchedSink>>> all;
      for (uint32_t i = 0; i < 3; ++i) {
        SequenceSpec spec = Spec(draw(1, 30), draw(1, 60), 10 * seed + i);
        if (draw(0, 3) == 0) spec.speculation = draw(0, 3);
        all.emplace_back(spec, drafting.Add(spec));
      }
      drafting.RunAll();
      for (const auto& [spec, sink] : all) {
        const auto answer = sink->Wait();
        EXPECT_EQ(answer.ids(), WantedTokens(spec.sampling.seed, spec.max_tokens));
        EXPECT_EQ(answer.result.reason, FinishReason::kLength);
        EXPECT_LE(answer.result.stats.accepted_speculated_tokens, answer.result.stats.speculated_tokens);
      }
      const SpeculationStats& stats = drafting.speculation.stats();
      EXPECT_LE(stats.branch_accepted, stats.branch_verified);
      accepted += SpeculationStats::Sum(stats.accepted);
      branch_accepted += stats.branch_accepted;
    }
  }
  EXPECT_GT(accepted, 1'000u);
  EXPECT_GT(branch_accepted, 1'000u);
}

TEST(Speculation, TreesAreVerifiedOnlyWhereTheyGiveMoreThanChains) {
  const StepTimeModel dear = {.seconds_per_step = 1e-3, .seconds_per_token = 0.6e-3};
  const struct {
    const char* name;
    double right, branch_right;
    StepTimeModel time;
    bool pays;
  } cases[] = {{"the second guess is often right", 0.5, 0.8, Memory(), true},
               {"it never is", 0.5, 0, Memory(), false},
               {"the first one always is", 1, 1, Memory(), false},
               {"a token costs what it is worth", 0.8, 0.5, dear, false}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    Drafting trees(LargeSteps(), Trees(c.right, c.branch_right), c.time, {}, /*max_branch_tokens=*/4);
    Drafting chains(LargeSteps(), Trees(c.right, c.branch_right), c.time);
    const auto sink = trees.Add(Spec(10, 240));
    chains.Add(Spec(10, 240));
    for (int step = 0; step < 30; ++step) trees.Step();
    const uint64_t learned = trees.speculation.stats().branch_verified;
    trees.RunAll();
    chains.RunAll();
    EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 240));
    const SpeculationStats& stats = trees.speculation.stats();
    EXPECT_EQ(chains.speculation.stats().branch_verified, 0u);
    if (c.pays) {
      EXPECT_GT(stats.branch_accepted, 20u);
      EXPECT_LT(trees.steps, 0.9 * chains.steps);
      EXPECT_GT(stats.saved_seconds, chains.speculation.stats().saved_seconds);
      EXPECT_GT(stats.tokens_per_pass(), chains.speculation.stats().tokens_per_pass());
    } else {
      EXPECT_LE(stats.branch_verified - learned, 8u);
    }
  }
}

TEST(Speculation, BothGuessesTogetherAreNoMoreThanARequestMayHave) {
  for (const uint32_t most : {1u, 2u, 5u}) {
    Drafting drafting(LargeSteps(), Trees(0.5, 0.8), Memory(), {}, /*max_branch_tokens=*/4);
    SequenceSpec spec = Spec(10, 100);
    spec.speculation = most;
    const auto sink = drafting.Add(spec);
    while (drafting.Step()) EXPECT_LE(drafting.proposed, most);
    EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 100));
  }
}

TEST(Speculation, EndsWhereDraftsAreWrongOrCostTooMuch) {
  const struct {
    const char* name;
    double right;
    StepTimeModel time;
  } cases[] = {{"wrong", 0, Memory()},
               {"a token costs a step", 0.8, {.seconds_per_step = 1e-6, .seconds_per_token = 1e-3}}};
  for (const auto& c : cases) {
    Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(RightBy(c.right)), c.time);
    drafting.Add(Spec(10, 200));
    for (int step = 0; step < 30; ++step) drafting.Step();
    uint32_t proposed = 0;
    for (int step = 0; step < 100 && drafting.Step(); ++step) proposed += drafting.proposed;
    EXPECT_LE(proposed, 8u) << c.name;
  }
}

// All drafts are right and no pass tells what they take: that it is more than they save is only measured.
TEST(Speculation, ADrafterThatTakesMoreThanItSavesIsOffWithin16Steps) {
  uint32_t calls = 0;
  Drafting* steps = nullptr;
  FakeDrafter::Options options = RightBy(1);
  options.is_cheap = false;
  options.on_propose = [&](std::span<const DraftRequest>) {
    ++calls;
    steps->Advance(20 * Memory().seconds_per_step);
  };
  Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(options));
  steps = &drafting;
  for (int answer = 0; answer < 8; ++answer) {
    const uint64_t seed = 1 + answer % 4;
    const auto sink = drafting.Add(Spec(10, 100, seed));
    drafting.RunAll();
    EXPECT_EQ(sink->Wait().ids(), WantedTokens(seed, 100));
  }
  EXPECT_GT(drafting.steps, 500);
  EXPECT_GT(calls, 0u);
  EXPECT_LE(calls, 16u);
}

// The engine waits for each request, whose prompt takes long: neither is the drafter's doing.
TEST(Speculation, WhatIsWaitedForBetweenShortAnswersDoesNotEndDrafts) {
  FakeDrafter::Options options = RightBy(1);
  options.is_cheap = false;
  Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(options));
  uint64_t before = 0, after = 0;
  constexpr int kAnswers = 600;
  for (int answer = 0; answer < kAnswers; ++answer) {
    drafting.Advance(20);
    SequenceSpec spec = Spec(200, 7, 1 + answer % 4);
    spec.prompt[0] = 1 + answer % 500;
    const auto sink = drafting.Add(spec);
    drafting.RunAll();
    EXPECT_EQ(sink->Wait().ids(), WantedTokens(spec.sampling.seed, 7));
    (answer < kAnswers / 2 ? before : after) += sink->Wait().result.stats.accepted_speculated_tokens;
  }
  EXPECT_GT(before, 600u);
  EXPECT_GT(after, before * 8 / 10);
}

TEST(Speculation, StopTokensAndLimitsInsideADraftEndTheAnswer) {
  const uint64_t says_end = SeedThatSays(kEnd, 12), says_stop = SeedThatSays(500, 12);
  const struct {
    const char* name;
    uint64_t seed;
    std::vector<int32_t> stop_tokens;
    bool ignore_eos;
    uint32_t max_tokens, tokens;
    FinishReason reason;
  } cases[] = {{"end token", says_end, {}, false, 30, 13, FinishReason::kStop},
               {"stop token", says_stop, {500}, false, 30, 13, FinishReason::kStop},
               {"length", says_end, {}, false, 12, 12, FinishReason::kLength},
               {"ignored end token", says_end, {}, true, 17, 17, FinishReason::kLength}};
  for (const auto& c : cases) {
    Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(RightBy(1)));
    SequenceSpec spec = Spec(5, c.max_tokens, c.seed);
    spec.stop_tokens = c.stop_tokens;
    spec.ignore_eos = c.ignore_eos;
    const auto sink = drafting.Add(spec);
    drafting.RunAll();
    EXPECT_EQ(sink->Wait().ids(), WantedTokens(c.seed, c.tokens)) << c.name;
    EXPECT_EQ(sink->Wait().result.reason, c.reason) << c.name;
    const SequenceStats& stats = sink->Wait().result.stats;
    EXPECT_GT(stats.accepted_speculated_tokens, 0u) << c.name;
    EXPECT_EQ(stats.accepted_speculated_tokens, stats.speculated_tokens) << c.name << ": all were right";
    EXPECT_EQ(drafting.speculation.stats().verified, drafting.speculation.stats().accepted) << c.name;
  }
}

TEST(Speculation, WhatWasNotAcceptedIsNeverFoundInThePrefixCache) {
  Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(RightBy(0.7)));
  const SequenceSpec spec = Spec(20, 100);
  drafting.Add(spec);
  drafting.RunAll();
  EXPECT_GT(drafting.speculation.stats().passes, 3u);
  const auto answer = WantedTokens(1, 100);
  const auto cached = [&](size_t changed) {
    SequenceSpec next = spec;
    next.prompt.insert(next.prompt.end(), answer.begin(), answer.end());
    if (changed < next.prompt.size()) next.prompt[changed] = (next.prompt[changed] + 1) % int32_t{kVocab};
    next.max_tokens = 1;
    const auto sink = drafting.Add(next);
    drafting.RunAll();
    return sink->Wait().result.stats.cached_tokens;
  };
  EXPECT_EQ(cached(80), 80u);  // as a wrong draft has it
  EXPECT_EQ(cached(1000), 119u) << "all of the answer but its last token";
}

TEST(Speculation, ARequestMayHaveLessOrNone) {
  for (const uint32_t most : {0u, 1u, 2u}) {
    Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(RightBy(1)));
    SequenceSpec spec = Spec(10, 50);
    spec.speculation = most;
    const auto sink = drafting.Add(spec);
    while (drafting.Step()) EXPECT_LE(drafting.proposed, most);
    EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 50));
    EXPECT_EQ(sink->Wait().result.stats.speculated_tokens > 0, most > 0);
  }
}

TEST(Speculation, WhatComesWithTheRequestIsVerifiedFirst) {
  uint32_t asked = 0;
  FakeDrafter::Options options = RightBy(1);
  options.on_propose = [&](std::span<const DraftRequest> requests) {
    ++asked;
    EXPECT_GE(requests[0].generated(), 40u);
  };
  Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(options));
  SequenceSpec spec = Spec(10, 80);
  spec.draft = WantedTokens(1, 40);
  const auto sink = drafting.Add(spec);
  drafting.RunAll();
  EXPECT_EQ(sink->Wait().result.stats.accepted_draft_tokens, 40u);
  EXPECT_GT(asked, 0u);
}

TEST(Speculation, NobodyIsPreemptedForADraft) {
  SchedulerOptions options = LargeSteps();
  options.blocks = 12;
  options.prefix_cache = false;
  Drafting drafting(options, std::make_unique<FakeDrafter>(RightBy(0.5)));
  const auto a = drafting.Add(Spec(60, 30, 1)), b = drafting.Add(Spec(60, 30, 2));
  drafting.RunAll();
  EXPECT_EQ(drafting.scheduler.Stats().recompute_preemptions, 0u);
  EXPECT_EQ(a->Wait().ids(), WantedTokens(1, 30));
  EXPECT_EQ(b->Wait().ids(), WantedTokens(2, 30));
}

TEST(Speculation, WhatWasLearnedOfASequenceOutlivesAPreemption) {
  SchedulerOptions options = LargeSteps();
  options.max_sequences = 1;
  FakeDrafter::Options fake = RightBy(0);
  fake.right = [](const DraftRequest& request) { return request.sampling->seed == 1 ? 0.0 : 1.0; };
  Drafting drafting(options, std::make_unique<FakeDrafter>(fake));
  const auto sink = drafting.Add(Spec(10, 150, 1));
  for (int step = 0; step < 60; ++step) drafting.Step();
  SequenceSpec urgent = Spec(5, 60, 2);
  urgent.priority = 1;
  const auto other = drafting.Add(urgent);  // its drafts are right: they are believed in again
  while (!other->has_ended) ASSERT_TRUE(drafting.Step());
  uint32_t proposed = 0;
  while (drafting.Step()) proposed += drafting.proposed;
  EXPECT_LE(proposed, 8u);
  EXPECT_EQ(sink->Wait().result.stats.preemptions, 1u);
  EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 150));
}

TEST(Speculation, WhatTheDrafterGaveIsCountedWhetherItIsVerifiedOrNot) {
  for (const double right : {0.0, 0.5, 1.0}) {
    SCOPED_TRACE(Concat("right ", right));
    FakeDrafter::Options fake = RightBy(right);
    fake.branch_right = [](const DraftRequest&) { return 0.7; };
    uint64_t asked = 0, asked_branches = 0;
    fake.on_propose = [&](std::span<const DraftRequest> requests) {
      for (const DraftRequest& request : requests) {
        asked += request.most;
        asked_branches += request.most_branch;
      }
    };
    Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(fake), Memory(), {}, 4);
    drafting.Add(Spec(10, 100, 1));
    drafting.Add(Spec(10, 100, 2));
    drafting.RunAll();
    const SpeculationStats& stats = drafting.speculation.stats();
    EXPECT_GT(asked, 0u);
    EXPECT_EQ(SpeculationStats::Sum(stats.proposed), asked) << "this drafter gives what it is asked for";
    // Without a draft that begins otherwise there is no branch: it may have been asked for and not be there.
    EXPECT_LE(stats.branch_proposed, asked_branches);
    EXPECT_GE(stats.branch_proposed, stats.branch_verified);
    for (size_t i = 0; i < SpeculationStats::kPositions; ++i) {
      EXPECT_GE(stats.proposed[i], stats.verified[i]) << i;
      EXPECT_GE(stats.verified[i], stats.accepted[i]) << i;
    }
  }
}

TEST(Speculation, WhatWasLearnedOfAnAnswerGoesOnWithItElsewhere) {
  constexpr uint32_t kTokens = 120;
  for (const double right : {0.0, 0.5, 1.0}) {
    SCOPED_TRACE(Concat("right ", right));
    Drafting first(LargeSteps(), Trees(right, 0.7), Memory(), {}, /*max_branch_tokens=*/4);
    const auto sink = first.Add(Spec(10, kTokens));
    while (sink->sent < 50) ASSERT_TRUE(first.Step());
    ASSERT_TRUE(sink->draft_record.has_value());
    EXPECT_NE(sink->draft_record->drafts, AcceptanceState());

    Drafting second(LargeSteps(), nullptr);
    SequenceSpec spec = Spec(10, kTokens);
    spec.resume = WantedTokens(1, static_cast<uint32_t>(sink->sent));
    spec.draft_record = sink->draft_record;
    const auto rest = second.Add(spec);
    bool has_wished = false;
    while (!has_wished) {
      const StepPlan plan = second.scheduler.Schedule(second.clock.Now());
      ASSERT_FALSE(plan.empty());
      for (const DraftWish& wish : second.scheduler.Wishes(plan)) {
        has_wished = true;
        EXPECT_EQ(wish.acceptance->state(), sink->draft_record->drafts);
        EXPECT_EQ(wish.branch->state(), sink->draft_record->branches);
      }
      second.scheduler.Commit(plan, second.executor.Run(plan), second.clock.Now());
    }
    second.RunAll();
    const std::vector<int32_t> whole = WantedTokens(1, kTokens);
    EXPECT_EQ(rest->Wait().ids(), std::vector<int32_t>(whole.begin() + spec.resume.size(), whole.end()));
  }
}

TEST(Speculation, AnAnswerWhoseDraftsWereWrongElsewhereHasFewHere) {
  const auto drafted = [](const std::optional<DraftRecord>& record) {
    Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(RightBy(0)));
    SequenceSpec spec = Spec(10, 100);
    spec.resume = WantedTokens(1, 50);
    spec.draft_record = record;
    drafting.Add(spec);
    uint32_t proposed = 0;
    while (drafting.Step()) proposed += drafting.proposed;
    return proposed;
  };
  const DraftRecord wrong = {.drafts = {.right = 0, .trials = 8, .prior_trials = 0.01, .wait = 100}};
  EXPECT_LT(drafted(wrong), drafted(std::nullopt));
}

TEST(Speculation, NothingIsToldOfAnAnswerWithoutDrafts) {
  Drafting drafting(LargeSteps(), nullptr);
  const auto sink = drafting.Add(Spec(10, 20));
  drafting.RunAll();
  EXPECT_FALSE(sink->draft_record.has_value());
}

TEST(Speculation, WhatNoRecordOfDraftsCanBeIsSeen) {
  EXPECT_TRUE(AcceptanceState().is_possible());
  const struct {
    const char* name;
    AcceptanceState state;
  } cases[] = {{"more right than tried", {.right = 2, .trials = 1}},
               {"more trials than are kept", {.trials = 9}},
               {"less than nothing", {.right = -1, .trials = 1}},
               {"a prior that is too strong", {.prior_trials = 3}},
               {"nothing to divide by", {.prior_trials = 0}},
               {"no number", {.trials = std::numeric_limits<double>::quiet_NaN()}},
               {"a wait without end", {.wait = std::numeric_limits<double>::infinity()}}};
  for (const auto& c : cases) EXPECT_FALSE(c.state.is_possible()) << c.name;
}

// Whatever the drafts were, what is told is taken.
TEST(Speculation, EveryRecordThatIsToldCanBeResumedWith) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(Concat("seed ", seed));
    std::mt19937 random(seed);
    Acceptance acceptance;
    for (int i = 0; i < 2000; ++i) {
      const auto compared = std::uniform_int_distribution<uint32_t>(0, 8)(random);
      const uint32_t right = seed % 3 == 0 ? 0 : std::uniform_int_distribution<uint32_t>(0, compared)(random);
      acceptance.Add(compared, right);
      if (i % 3 != 0) acceptance.Age();
      ASSERT_TRUE(acceptance.state().is_possible()) << i;
      ASSERT_EQ(Acceptance(acceptance.state()).state(), acceptance.state()) << i;
    }
  }
}

TEST(Speculation, TheDrafterIsToldOfEnds) {
  std::vector<uint64_t> forgotten;
  FakeDrafter::Options options = RightBy(1);
  options.on_forget = [&](uint64_t id) { forgotten.push_back(id); };
  Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(options));
  drafting.Add(Spec(3, 20, 1));
  const auto cancelled = drafting.Add(Spec(3, 100, 2));
  drafting.Add(Spec(3, 1, 3));  // never drafted for
  for (int step = 0; step < 5; ++step) drafting.Step();
  cancelled->Cancel();
  drafting.Add(Spec(3, 30, 4));
  drafting.RunAll();
  EXPECT_THAT(forgotten, UnorderedElementsAre(0u, 1u, 3u));
}

TEST(Speculation, TheDrafterIsToldOfEndsWhenNothingIsLeftToRun) {
  std::vector<uint64_t> forgotten;
  FakeDrafter::Options options = RightBy(1);
  options.on_forget = [&](uint64_t id) { forgotten.push_back(id); };
  Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(options));
  const auto sink = drafting.Add(Spec(3, 100));
  for (int step = 0; step < 5; ++step) drafting.Step();
  sink->Cancel();
  EXPECT_FALSE(drafting.Step());
  EXPECT_THAT(forgotten, UnorderedElementsAre(0u));
}

TEST(Speculation, WhatCannotBeDraftedForIsNotAskedFor) {
  FakeDrafter::Options options = RightBy(1);
  options.is_cheap = false;
  options.cannot_draft = [](const DraftRequest& request) { return request.id == 0; };
  options.on_propose = [](std::span<const DraftRequest> requests) {
    for (const DraftRequest& request : requests) EXPECT_EQ(request.id, 1u);
  };
  Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(options));
  const auto a = drafting.Add(Spec(3, 50, 1)), b = drafting.Add(Spec(3, 50, 2));
  drafting.RunAll();
  EXPECT_EQ(a->Wait().result.stats.speculated_tokens, 0u);
  EXPECT_GT(b->Wait().result.stats.speculated_tokens, 0u);
}

TEST(Speculation, ADrafterHearsWhosePrefixesASequenceShares) {
  std::string salt;
  FakeDrafter::Options options = RightBy(1);
  options.on_propose = [&](std::span<const DraftRequest> requests) { salt = requests[0].cache_salt; };
  Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(options));
  SequenceSpec spec = Spec(3, 50);
  spec.cache_salt = "tenant";
  drafting.Add(spec);
  drafting.RunAll();
  EXPECT_EQ(salt, "tenant");
}

TEST(Speculation, AnErrorInsideADraftComesWhereItWouldHaveCome) {
  Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(RightBy(1)), Memory(),
                    {.fail_sequence = [](const PlannedSequence& part) {
                      return part.sample && part.sample_index == 9
                                 ? WithReason(Internal("logit 3 is NaN"), "numeric_error")
                                 : Status();
                    }});
  const auto sink = drafting.Add(Spec(4, 30));
  drafting.RunAll();
  EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 9));
  EXPECT_EQ(sink->Wait().result.reason, FinishReason::kError);
}

TEST(Speculation, WithoutTheDrafterThatFailedTheStreamGoesOn) {
  FakeDrafter::Options options = RightBy(1);
  options.calls_before_error = 3;
  Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(options));
  const auto sink = drafting.Add(Spec(10, 100));
  drafting.RunAll();
  EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 100));
  EXPECT_EQ(drafting.failed.code(), StatusCode::kInternal);
  EXPECT_EQ(drafting.speculation.stats().failures, 1u);
  EXPECT_EQ(drafting.speculation.stats().drafter, "fake");
}

TEST(Speculation, DraftsOfOtherTokensThanThereAreEndBeforeThem) {
  FakeDrafter::Options options = RightBy(1);
  options.answer = [](const DraftRequest& request, uint32_t index) {
    return index % 5 == 4 ? int32_t{kVocab} + 3 : RightToken(request, index);
  };
  Drafting drafting(LargeSteps(), std::make_unique<FakeDrafter>(options));
  const auto sink = drafting.Add(Spec(10, 60));
  drafting.RunAll();
  EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, 60));
}

// On the engine's own thread and clock.
TEST(Speculation, RunsInTheEngine) {
  for (const uint32_t calls : {1u, 1'000'000u}) {
    Engine::Options options;
    options.scheduler = LargeSteps();
    uint32_t failures = 0, drafted = 0;  // the loop thread's, until it has ended
    options.on_drafter_failed = [&](const Status&) { ++failures; };
    options.on_step = [&](const StepObservation& step) {
      drafted += step.draft_tokens;
      EXPECT_LE(step.decode_tokens, step.sequences);
    };
    FakeDrafter::Options fake = RightBy(1);
    fake.calls_before_error = calls;
    Engine engine(options, std::make_unique<FakeExecutor>(FakeExecutor::Options{}), RealClock(),
                  std::make_unique<FakeDrafter>(fake));
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      sinks.push_back(std::make_shared<CollectingSink>());
      ASSERT_TRUE(engine.Submit(Spec(10, 100, seed), sinks.back()).ok());
    }
    for (uint64_t seed = 1; seed <= 4; ++seed)
      EXPECT_EQ(sinks[seed - 1]->Wait().ids(), WantedTokens(seed, 100));
    engine.Stop();
    EXPECT_EQ(failures, calls == 1 ? 1u : 0u);
    const SpeculationStats stats = engine.Stats().speculation;
    EXPECT_EQ(stats.failures, failures);
    EXPECT_EQ(drafted, std::accumulate(stats.verified.begin(), stats.verified.end(), uint64_t{0}));
  }
}

// As on a device that captures a graph for each number of tokens when it comes for the first time.
TEST(Speculation, WhatAStepOfANewSizeTakesOnceIsNotWhatDraftsAreTakenToCost) {
  FakeClock clock;
  const auto advance = [&](double seconds) {
    clock.Advance(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds)));
  };
  std::set<size_t> seen;  // the loop thread's, until it has ended, like the clock
  FakeExecutor::Options fake{.time = Memory(), .on_step_time = advance};
  fake.is_first_of_its_kind = [&](const StepPlan& plan) {
    size_t tokens = 0;
    for (const PlannedSequence& part : plan.sequences) tokens += part.tokens.size();
    const bool is_first = seen.insert(tokens).second;
    if (is_first) advance(100 * Memory().seconds_per_step);
    return is_first;
  };
  Engine::Options options;
  options.scheduler = LargeSteps();
  Engine engine(options, std::make_unique<FakeExecutor>(fake), clock,
                std::make_unique<FakeDrafter>(RightBy(1)));
  constexpr uint32_t kPlainTokens = 50, kTokens = 200;
  for (const bool is_drafted : {false, true}) {  // what a plain step takes is known before
    const auto sink = std::make_shared<CollectingSink>();
    SequenceSpec spec = Spec(10, is_drafted ? kTokens : kPlainTokens);
    if (!is_drafted) spec.speculation = 0;
    ASSERT_TRUE(engine.Submit(spec, sink).ok());
    EXPECT_EQ(sink->Wait().ids(), WantedTokens(1, spec.max_tokens));
  }
  engine.Stop();
  EXPECT_LT(engine.Stats().steps, kPlainTokens + 40) << "steps of several tokens were taken for dear";
  EXPECT_GT(seen.size(), 2u);
}

}  // namespace
}  // namespace terrace
