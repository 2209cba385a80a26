// The controller against simulated models: what steps and drafts cost and how often drafts are right is
// known, and so is the best that any fixed length of drafts reaches.
#include "worker/speculative/draft_controller.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include "base/status.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using Cost = std::function<double(double tokens)>;  // seconds

constexpr uint32_t kMost = 8, kRoom = 128, kMaxPass = 256;

struct World {
  Cost step, pass;  // `pass` of the drafter's model; absent: it is cheap
  uint32_t sequences = 1;
  uint32_t others = 0;                         // tokens of prompts in every step
  std::function<double(uint32_t step)> right;  // the chance of a drafted token
  uint32_t prompt = 50;                        // tokens that the drafter's model has to read
  uint32_t answer_tokens = 0;                  // then another sequence takes the place; 0: never
  double weighing = 0;                         // seconds that a step takes which is weighed for drafts
  double hidden = 0;                           // the same, which are neither asking's nor the step's
};

struct Simulated {
  std::vector<uint32_t> verified;  // tokens of each step
  double tokens = 0, seconds = 0;
  double rate() const { return tokens / seconds; }
};

// A drafter that costs nothing, or whose model has to read what the answers have got since it was asked last.
Simulated Simulate(const World& world, uint32_t steps, uint32_t seed = 1) {
  std::mt19937 random(seed);
  const auto noisy = [&](double seconds) {
    return seconds * std::uniform_real_distribution<double>(0.97, 1.03)(random);
  };
  DraftController controller(
      {.max_tokens = kMost, .is_drafting_cheap = !world.pass, .max_pass_tokens = kMaxPass});
  const StepLoad load{.decodes = world.sequences, .others = world.others};
  std::vector<Acceptance> acceptance(world.sequences);
  std::vector<uint32_t> missing(world.sequences, world.prompt), given(world.sequences, 0);
  std::vector<uint64_t> ids(world.sequences);
  std::iota(ids.begin(), ids.end(), 0u);
  uint64_t next_id = world.sequences;
  Simulated run;
  for (uint32_t step = 0; step < steps; ++step) {
    std::vector<DraftCandidate> candidates;
    for (uint32_t i = 0; i < world.sequences; ++i) {
      candidates.push_back({.id = ids[i],
                            .most = kMost,
                            .missing = world.pass ? missing[i] : 0,
                            .left = 1000,
                            .acceptance = &acceptance[i]});
    }
    const bool is_weighed = controller.WantsDrafts(load);
    std::vector<uint32_t> asked(world.sequences, 0);
    if (is_weighed) asked = controller.Ask(load, candidates, kRoom);
    double seconds = is_weighed ? world.weighing : 0;
    if (is_weighed && world.pass) {
      std::vector<uint32_t> passes;
      for (uint32_t index = 0; index < kMost; ++index) {
        uint32_t tokens = 0;
        for (size_t i = 0; i < asked.size(); ++i) {
          if (asked[i] <= index) continue;
          const uint32_t chunk = index > 0 ? 1 : std::min(missing[i], kMaxPass);
          tokens += chunk;
          if (index > 0) continue;
          missing[i] -= chunk;
          if (missing[i] > 0) asked[i] = 0;  // it reads on in the next call
        }
        if (tokens == 0) break;
        passes.push_back(tokens);
        seconds += noisy(world.pass(tokens));
      }
      controller.LearnDrafting(passes, seconds - world.weighing);
    }
    for (size_t i = 0; i < candidates.size(); ++i) candidates[i].most = asked[i];
    const std::vector<uint32_t> verified = controller.Verify(load, candidates, kRoom).chains;
    const uint32_t drafted = std::accumulate(verified.begin(), verified.end(), 0u);
    EXPECT_LE(drafted, kRoom);
    const double step_seconds = noisy(world.step(world.sequences + world.others + drafted));
    controller.LearnStep(load, drafted, step_seconds);
    uint32_t gained = 0;
    for (size_t i = 0; i < candidates.size(); ++i) {
      EXPECT_LE(verified[i], asked[i]);
      const uint32_t compared = verified[i] > 0 ? verified[i] : std::min(asked[i], 1u);
      uint32_t right = 0;
      while (right < compared && std::bernoulli_distribution(world.right(step))(random)) ++right;
      acceptance[i].Age();
      acceptance[i].Add(compared, right);
      if (compared > 0) controller.LearnOutcome(compared, right);
      const uint32_t accepted = verified[i] > 0 ? right : 0;
      gained += accepted;
      run.tokens += 1 + accepted;
      missing[i] += 1 + accepted - std::min(accepted, std::max(asked[i], 1u) - 1);  // all but the last
      given[i] += 1 + accepted;
      if (world.answer_tokens == 0 || given[i] < world.answer_tokens) continue;
      controller.LearnAnswer(given[i]);
      ids[i] = next_id++;
      acceptance[i] = Acceptance();
      missing[i] = world.prompt;
      given[i] = 0;
    }
    const double saved =
        gained * controller.StepSeconds(load.decodes) / load.decodes - controller.ExtraSeconds(load, drafted);
    const double turn = seconds + step_seconds + (is_weighed ? world.hidden : 0);
    controller.LearnTurn(
        load,
        {.was_weighed = is_weighed, .asking = seconds, .saved = saved, .gained = gained, .seconds = turn});
    run.seconds += turn;
    run.verified.push_back(drafted);
  }
  return run;
}

double RateOfLength(const World& world, uint32_t length) {
  const double n = world.sequences, right = world.right(0);
  double tokens = 0;
  for (uint32_t i = 0; i <= length; ++i) tokens += n * std::pow(right, i);
  return tokens / (world.step(n * (1 + length)) + (world.pass ? length * world.pass(n) : 0));
}

Cost Line(double fixed, double per_token) {
  return [=](double tokens) { return fixed + per_token * tokens; };
}

TEST(DraftController, IsNeverMuchSlowerThanWithoutDraftsNorThanTheBestFixedLength) {
  const struct {
    const char* name;
    Cost step;
  } shapes[] = {{"bound by memory", Line(1, 0.005)},
                {"between", Line(1, 0.1)},
                {"a knee", [](double tokens) { return std::max(1.0, tokens / 12); }},
                {"bound by computing", Line(0.2, 1)}};
  for (const auto& shape : shapes) {
    for (const uint32_t sequences : {1u, 4u, 16u, 64u}) {
      for (const double right : {0.0, 0.3, 0.6, 0.9, 1.0}) {
        for (const bool is_cheap : {true, false}) {
          World world{.step = shape.step, .pass = nullptr, .sequences = sequences, .right = nullptr};
          if (!is_cheap) world.pass = [&](double tokens) { return 0.1 * shape.step(tokens); };
          world.right = [=](uint32_t) { return right; };
          double best = 0;
          for (uint32_t length = 0; length <= kMost && sequences * length <= kRoom; ++length)
            best = std::max(best, RateOfLength(world, length));
          const uint32_t steps = 1000;
          const double rate = Simulate(world, steps).rate(), off = RateOfLength(world, 0);
          SCOPED_TRACE(Concat(shape.name, ", ", sequences, " sequences, right ", right, is_cheap));
          EXPECT_GT(rate, (is_cheap ? 0.975 : 0.965) * off);  // with prompts that a model reads in vain
          EXPECT_GT(rate, (is_cheap ? 0.8 : 0.6) * best);
        }
      }
    }
  }
}

// Also where a model has to read first what the answer has got in all the time that it was off.
TEST(DraftController, GoesOffWithin16StepsAndOnAgain) {
  constexpr uint32_t kOff = 3000, kOn = 3800;
  for (const bool is_cheap : {true, false}) {
    World world{.step = Line(1, 0.1), .pass = nullptr, .right = nullptr};
    if (!is_cheap) world.pass = Line(0.1, 0.01);
    world.right = [](uint32_t step) { return step < kOff || step >= kOn ? 0.9 : 0.0; };
    const Simulated run = Simulate(world, kOn + 800);
    const auto drafted = [&](uint32_t first, uint32_t last) {
      return std::accumulate(run.verified.begin() + first, run.verified.begin() + last, 0u);
    };
    EXPECT_GT(drafted(kOff - 100, kOff), 200u);
    EXPECT_LE(drafted(kOff + 16, kOn), kMost) << "one draft, where a window without any lay between";
    EXPECT_GT(is_cheap ? drafted(kOn + 16, kOn + 300) : drafted(kOn + 500, kOn + 800), 300u);
  }
}

// What is not verified costs the step nothing; what it costs to find out is bounded.
TEST(DraftController, ProbingCostsAtMostItsShare) {
  World world{.step = Line(1, 0), .pass = Line(0.3, 0), .right = [](uint32_t) { return 0.0; }};
  const Simulated run = Simulate(world, 4000);
  EXPECT_GT(run.rate(), 0.99 * RateOfLength(world, 0));
}

// Each answer is over before what was read for it has paid: at first it is believed to be long.
TEST(DraftController, AModelWhoseReadingCostsMoreThanItSavesIsOffWithin100Steps) {
  const World world{.step = Line(1, 0.05),
                    .pass = Line(0.1, 0.02),
                    .sequences = 4,
                    .right = [](uint32_t) { return 0.9; },
                    .prompt = 200,
                    .answer_tokens = 20};
  World longer = world;
  longer.answer_tokens = 400;
  const uint32_t steps = 6000;
  const Simulated run = Simulate(world, steps);
  EXPECT_LE(std::accumulate(run.verified.begin() + 100, run.verified.end(), 0u), 600u);
  EXPECT_GT(run.rate(), 0.975 * RateOfLength(world, 0));
  EXPECT_GT(Simulate(longer, steps).rate(), 1.3 * RateOfLength(world, 0)) << "what is read pays there";
}

// Steps and asking together seem to pay.
TEST(DraftController, WhatNeitherStepsNorAskingShowIsSeenBesideTurnsWithoutDrafts) {
  World world{.step = Line(1, 0.1),
              .pass = Line(0.1, 0.02),
              .sequences = 4,
              .right = [](uint32_t) { return 0.9; },
              .prompt = 5,
              .answer_tokens = 300};
  const uint32_t steps = 20'000;
  EXPECT_GT(Simulate(world, steps).rate(), 1.3 * RateOfLength(world, 0));
  world.hidden = 0.2;
  EXPECT_GT(Simulate(world, steps).rate(), 1.15 * RateOfLength(world, 0)) << "still it pays";
  for (const double hidden : {1.2, 8.0}) {  // no stalls: all are like that
    world.hidden = hidden;
    EXPECT_GT(Simulate(world, steps).rate(), 0.96 * RateOfLength(world, 0)) << hidden;
  }
}

// Of what weighing itself takes nothing is believed: it is measured.
TEST(DraftController, WhatIsBelievedNowhereIsLostOnceAndThenBoundedByAShare) {
  World world{.step = Line(1, 0.05), .pass = Line(0.1, 0.02), .right = [](uint32_t) { return 0.0; }};
  world.weighing = 0.1;
  EXPECT_GT(Simulate(world, 6000).rate(), 0.98 * RateOfLength(world, 0));
  world.right = [](uint32_t) { return 0.9; };
  EXPECT_GT(Simulate(world, 6000).rate(), 1.5 * RateOfLength(world, 0)) << "it pays all the same";
}

// The first step was slow, by chance: were it never measured again, drafts would be taken to cost nothing.
TEST(DraftController, WhatAStepWithoutDraftsTakesIsMeasuredAgain) {
  DraftController controller({.is_drafting_cheap = true});
  const StepLoad load{.decodes = 4};
  EXPECT_FALSE(controller.WantsDrafts(load)) << "it was never measured";
  controller.LearnStep(load, 0, 2);
  uint32_t plain = 0;
  for (int step = 0; step < 1000; ++step) {
    const bool is_plain = !controller.WantsDrafts(load);
    controller.LearnStep(load, is_plain ? 0 : 4, is_plain ? 1 : 2);
    if (!is_plain) controller.LearnTurn(load, {.was_weighed = true, .asking = 0, .saved = 1});
    plain += is_plain ? 1 : 0;
  }
  EXPECT_GE(plain, 10u);
  EXPECT_LE(plain, 1000 / 50u);
  EXPECT_LT(controller.StepSeconds(load.decodes), 1.2);
  EXPECT_TRUE(controller.WantsDrafts({.decodes = 7, .others = 100})) << "such a step would tell nothing";
}

TEST(DraftController, DraftsNothingBeforeItKnowsWhatAStepTakes) {
  DraftController controller({.is_drafting_cheap = true});
  const Acceptance acceptance{};
  const DraftCandidate candidate{.most = 8, .left = 100, .acceptance = &acceptance};
  EXPECT_EQ(controller.Verify({.decodes = 1}, {&candidate, 1}, kRoom).chains, std::vector<uint32_t>{0});
  controller.LearnStep({.decodes = 1}, 0, 1);
  EXPECT_GT(controller.Verify({.decodes = 1}, {&candidate, 1}, kRoom).chains.at(0), 0u);
}

// Nothing is found: asking costs a fiftieth of a step, and may cost a two-hundredth of the time.
TEST(DraftController, ACheapDrafterThatFindsNothingIsAskedSeldom) {
  DraftController controller({.is_drafting_cheap = true});
  const auto asked = [&](int steps, double saved) {
    int count = 0;
    for (int step = 0; step < steps; ++step) {
      controller.LearnStep({.decodes = 1}, 0, 1);
      if (!controller.WantsDrafts({.decodes = 1})) continue;
      ++count;
      controller.LearnTurn({.decodes = 1}, {.was_weighed = true, .asking = 0.02, .saved = saved});
    }
    return count;
  };
  EXPECT_GE(asked(32, 0), 32);
  EXPECT_NEAR(asked(1000, 0), 250, 20);
  EXPECT_GE(asked(100, 1), 95) << "it pays again";
}

// Nor does a stall say what asking takes, be it the first time or later.
TEST(DraftController, OneSlowAskingDoesNotEndACheapDrafter) {
  for (const int stall : {1, 100}) {
    DraftController controller({.is_drafting_cheap = true});
    int asked = 0;
    for (int step = 0; step < 5000; ++step) {
      controller.LearnStep({.decodes = 1}, 0, 0.005);
      if (!controller.WantsDrafts({.decodes = 1})) continue;
      ++asked;
      controller.LearnTurn(
          {.decodes = 1},
          {.was_weighed = true, .asking = asked == stall ? 5 : 0.00005, .saved = asked < 40 ? 0 : 0.002});
    }
    EXPECT_GT(asked, 4000) << "call " << stall << " took long";
  }
}

// What was saved up pays for all that is to be read, though it takes several calls.
TEST(DraftController, ALongAnswerIsReadToItsEndOnceThatIsPaidFor) {
  DraftController controller({.is_drafting_cheap = false, .max_pass_tokens = 100});
  const uint32_t passes[] = {1, 100};
  controller.LearnStep({.decodes = 1}, 0, 1);
  for (int i = 0; i < 20; ++i) {
    controller.LearnDrafting({passes, 1}, 0.5);
    controller.LearnDrafting({passes + 1, 1}, 2);
    controller.LearnOutcome(1, 0);
  }
  Acceptance wrong;
  for (int i = 0; i < 20; ++i) wrong.Add(1, 0);
  for (int i = 0; i < 1000; ++i) wrong.Age();
  uint32_t calls = 0, reads = 0;
  for (int step = 0; step < 3000; ++step) {
    controller.LearnStep({.decodes = 1}, 0, 1);
    const uint32_t missing = calls < 3 ? 280 + calls - 100 * calls : 280;
    const DraftCandidate candidate{
        .id = 3, .most = 8, .missing = missing, .left = 1000, .acceptance = &wrong};
    if (controller.Ask({.decodes = 1}, {&candidate, 1}, kRoom).at(0) == 0) {
      EXPECT_EQ(calls, 0u) << "it was paid for";
      continue;
    }
    reads += ++calls == 3 ? 1 : 0;
    calls %= 3;
  }
  EXPECT_GE(reads, 2u);
  EXPECT_LE(reads * 280 * 0.02, 0.005 * 3000 + 20);
}

// A server where some prompt is read in every step: no step tells what decodes alone take.
TEST(DraftController, StepsThatAllHaveAFewPromptTokensTellWhatDecodesTake) {
  for (const uint32_t others : {5u, 20u}) {
    DraftController controller({.is_drafting_cheap = true});
    for (int step = 0; step < 100; ++step) controller.LearnStep({.decodes = 8, .others = others}, 0, 0.01);
    Acceptance good;
    for (int i = 0; i < 20; ++i) good.Add(8, 8);
    const DraftCandidate candidate{.most = 8, .left = 100, .acceptance = &good};
    EXPECT_GT(controller.Verify({.decodes = 8, .others = others}, {&candidate, 1}, kRoom).chains.at(0), 0u);
  }
}

TEST(DraftController, OneSlowPromptSaysLittle) {
  DraftController controller({.is_drafting_cheap = true});
  controller.LearnStep({.decodes = 1}, 0, 1);
  for (int step = 0; step < 20; ++step) controller.LearnStep({.decodes = 1, .others = 100}, 0, 2);
  const StepLoad load{.decodes = 1, .others = 100};
  EXPECT_NEAR(controller.ExtraSeconds(load, 1), 0.01, 1e-3);
  controller.LearnStep(load, 0, 1000);
  EXPECT_LT(controller.ExtraSeconds(load, 1), 0.02);
}

// Nothing is expected of it any more; it is looked at the more seldom the longer that lasts.
TEST(Acceptance, WhatWasKnownFadesAndIsLookedAtAgain) {
  Acceptance acceptance;
  int looks = 0;
  for (int step = 0; step < 1000; ++step) {
    acceptance.Age();
    if (!acceptance.is_due()) continue;
    ++looks;
    acceptance.Add(1, 0);
  }
  EXPECT_GT(looks, 15);
  EXPECT_LT(looks, 40);
  EXPECT_LT(acceptance.Rate(0.8), 0.1);
  for (int step = 0; step < 6000; ++step) acceptance.Age();
  EXPECT_NEAR(acceptance.Rate(0.8), Acceptance().Rate(0.8), 0.02);
  acceptance.Add(1, 1);
  EXPECT_TRUE(acceptance.is_due());
}

TEST(DraftController, TheRoomGoesToTheSequencesWhoseDraftsAreRight) {
  DraftController controller({.is_drafting_cheap = true});
  controller.LearnStep({.decodes = 2}, 0, 1);
  Acceptance good, bad;
  for (int i = 0; i < 20; ++i) good.Add(4, 4), bad.Add(4, 0);
  const DraftCandidate candidates[] = {{.most = 8, .left = 100, .acceptance = &bad},
                                       {.most = 3, .left = 100, .acceptance = &good}};
  EXPECT_EQ(controller.Verify({.decodes = 2}, candidates, 3).chains, (std::vector<uint32_t>{0, 3}));
}

// Before a step was measured, and when none pays: as long as they may be, within the room of the step.
TEST(DraftController, WithoutAdaptingDraftsAreWhole) {
  DraftController controller({.max_tokens = 4, .adapts = false});
  Acceptance wrong;
  for (int i = 0; i < 20; ++i) wrong.Add(4, 0);
  const DraftCandidate candidates[] = {{.id = 1, .most = 8, .left = 100, .acceptance = &wrong},
                                       {.id = 2, .most = 3, .left = 100, .acceptance = &wrong},
                                       {.id = 3, .most = 8, .left = 100, .acceptance = &wrong}};
  const uint32_t passes[] = {1};
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(controller.WantsDrafts({.decodes = 3}));
    EXPECT_EQ(controller.Ask({.decodes = 3}, candidates, 9), (std::vector<uint32_t>{4, 3, 2}));
    EXPECT_EQ(controller.Verify({.decodes = 3}, candidates, 5).chains, (std::vector<uint32_t>{4, 1, 0}));
    controller.LearnDrafting(passes, 100);
    controller.LearnStep({.decodes = 3}, 0, 1);
  }
}

// A token more costs at least what a token of a prompt does.
TEST(DraftController, BesidePromptsDraftsHaveToBeWorthMore) {
  const auto length = [](uint32_t others, double prompt_seconds) {
    DraftController controller({.is_drafting_cheap = true});
    controller.LearnStep({.decodes = 1}, 0, 1);
    controller.LearnStep({.decodes = 1, .others = 99}, 0, 100 * prompt_seconds);
    Acceptance acceptance;
    for (int i = 0; i < 20; ++i) acceptance.Add(2, 1);
    const DraftCandidate candidate{.most = 8, .left = 100, .acceptance = &acceptance};
    return controller.Verify({.decodes = 1, .others = others}, {&candidate, 1}, kRoom).chains.at(0);
  };
  EXPECT_GT(length(0, 0.9), 0u);
  EXPECT_EQ(length(99, 0.9), 0u);
  EXPECT_GT(length(99, 0.01), 0u);
}

TEST(DraftController, WithoutAdaptingBranchesHaveTheRoomThatDraftsLeave) {
  const DraftController controller({.max_tokens = 4, .max_branch_tokens = 3, .adapts = false});
  const Acceptance any;
  std::vector<DraftCandidate> candidates;
  for (uint64_t id = 0; id < 3; ++id) {
    candidates.push_back({.id = id,
                          .most = id == 1 ? 0u : 8u,
                          .left = 100,
                          .acceptance = &any,
                          .most_branch = 9,
                          .branch = &any});
  }
  const struct {
    uint32_t room;
    std::vector<uint32_t> chains, branches;
  } cases[] = {{20, {4, 0, 4}, {3, 0, 3}}, {14, {4, 0, 4}, {3, 0, 1}}, {13, {4, 0, 4}, {3, 0, 0}},
               {9, {4, 0, 4}, {0, 0, 0}},  {6, {4, 0, 2}, {0, 0, 0}},  {0, {0, 0, 0}, {0, 0, 0}}};
  for (const auto& c : cases) {
    const DraftLengths lengths = controller.Verify({.decodes = 3}, candidates, c.room);
    EXPECT_EQ(lengths.chains, c.chains) << c.room;
    EXPECT_EQ(lengths.branches, c.branches) << c.room;
    EXPECT_LE(lengths.tokens(), c.room);
  }
}

// What was seen of others counts for a sequence that is new.
TEST(DraftController, SecondGuessesAreVerifiedOnceTheyAreKnownToBeRight) {
  DraftController controller({.max_tokens = kMost, .max_branch_tokens = 4, .is_drafting_cheap = true});
  for (uint32_t drafted = 0; drafted <= 24; ++drafted)
    controller.LearnStep({.decodes = 1}, drafted, 1 + 0.005 * drafted);
  Acceptance half;
  for (int i = 0; i < 20; ++i) half.Add(2, 1);
  const auto branch = [&] {
    const Acceptance none;
    const DraftCandidate candidate{
        .most = kMost, .left = 100, .acceptance = &half, .most_branch = 4, .branch = &none};
    return controller.Verify({.decodes = 1}, {&candidate, 1}, kRoom).branches.at(0);
  };
  for (int i = 0; i < 200; ++i) controller.LearnBranch(false);
  EXPECT_EQ(branch(), 0u);
  for (int i = 0; i < 200; ++i) controller.LearnBranch(i % 2 == 0);
  EXPECT_GT(branch(), 0u);
}

// A model that has to read a long prompt first is asked only where the answer is long enough.
TEST(DraftController, WhatAModelHasToCatchUpOnIsWrittenOffOverTheAnswer) {
  DraftController controller({.is_drafting_cheap = false});
  controller.LearnStep({.decodes = 1}, 0, 1);
  const uint32_t passes[] = {1, 1024};
  for (int i = 0; i < 3; ++i) {
    controller.LearnDrafting({passes, 1}, 0.05);
    controller.LearnDrafting({passes + 1, 1}, 20);
  }
  Acceptance acceptance;
  for (int i = 0; i < 20; ++i) acceptance.Add(4, 4);
  const auto asked = [&](uint32_t missing, uint32_t left) {
    const DraftCandidate candidate{.most = 8, .missing = missing, .left = left, .acceptance = &acceptance};
    return controller.Ask({.decodes = 1}, {&candidate, 1}, kRoom).at(0);
  };
  EXPECT_GT(asked(1, 2), 0u);
  EXPECT_EQ(asked(1000, 2), 0u);
  EXPECT_GT(asked(1000, 500), 0u);
}

}  // namespace
}  // namespace terrace
