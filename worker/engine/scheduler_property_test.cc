// Random workloads against the oracle of checked_scheduler.h. A violation prints the seed of its workload;
// what the Scheduler CHECKs itself prints it too, before the process ends.
#include <unistd.h>
#include <csignal>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/checked_scheduler.h"

namespace terrace {
namespace {

using ::testing::IsEmpty;

constexpr uint32_t kVocab = 50;  // end tokens and equal beginnings come often
constexpr uint32_t kContext = 300;

// What a workload may hold. All of it is drawn from one seed.
struct Profile {
  bool meddles = true;  // closed sinks, deadlines, CancelAll
  bool fills = true;    // full sinks
  bool fails = true;    // numeric errors
  bool shares = true;   // prompts begin alike
  bool prioritizes = true;
  bool goes_on = true;      // answers that are resumed, and drafts
  bool speculates = false;  // drafts are offered to plans too
  bool is_tight = true;     // few blocks
  bool is_patient = false;  // max_prefill_wait never ends
  uint32_t steps = 150;
};

char g_workload[64];  // for the handler of SIGABRT

class Workload {
 public:
  Workload(const Profile& profile, uint32_t seed)
      : profile_(profile), random_(seed), checked_(DrawOptions()), arrivals_(Draw(1, 12)) {
    for (auto& document : documents_) document = DrawTokens(kContext);
  }

  void Run() {
    for (uint32_t step = 0; step < profile_.steps && checked_.violations().empty(); ++step) {
      while (Draw(0, 19) < arrivals_) Arrive();
      if (profile_.meddles && checked_.size() > 0 && Draw(0, 9) == 0) checked_.Close(DrawSequence());
      if (profile_.fills && checked_.size() > 0) {
        for (int i = 0; i < 3; ++i) checked_.SetFull(DrawSequence(), Draw(0, 2) == 0);
      }
      if (Draw(0, 9) == 0) checked_.SetCosts({.swap_seconds_per_block = Draw(0, 1) * 1.0});
      if (profile_.meddles && Draw(0, 999) == 0) checked_.CancelAll();
      if (Draw(0, 19) == 0) checked_.Advance(std::chrono::milliseconds(Draw(0, 50)));
      checked_.Step();
    }
    checked_.Finish();
  }

  const CheckedScheduler& checked() const { return checked_; }
  uint32_t Draw(uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random_);
  }

 private:
  size_t DrawSequence() { return Draw(0, static_cast<uint32_t>(checked_.size()) - 1); }

  std::vector<int32_t> DrawTokens(uint32_t count) {
    std::vector<int32_t> tokens;
    for (uint32_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(Draw(0, kVocab - 1)));
    return tokens;
  }

  CheckedScheduler::Options DrawOptions() {
    SchedulerOptions options{.context_length = kContext, .vocab_size = kVocab, .end_tokens = {7}};
    options.max_sequences = Draw(1, 8);
    options.max_step_tokens = options.max_sequences + Draw(0, 1) * Draw(0, 200);
    options.block_tokens = Draw(1, 32);
    const uint32_t context = kContext / options.block_tokens + 1;
    options.blocks = profile_.is_tight ? Draw(1, 2 * context) : 40 * context;
    options.host_blocks = Draw(0, 1) * Draw(1, 2 * context);
    options.prefix_cache = !profile_.is_tight || Draw(0, 3) > 0;
    options.max_prefill_wait_seconds = profile_.is_patient ? 1e3 : Draw(0, 2) * 0.02;
    return {.scheduler = options,
            .time = {.seconds_per_step = 1e-3,
                     .seconds_per_token = 1e-5,
                     .seconds_per_position = 1e-7,
                     .seconds_per_transfer = 1e-4},
            .failing_seeds = profile_.fails ? 13u : 0u,
            .draft_seed = profile_.speculates ? Draw(1, 1000) : 0u};
  }

  // Beginnings form trees: documents cut anywhere, and conversations going on.
  std::vector<int32_t> DrawPrompt() {
    std::vector<int32_t> prompt;
    const uint32_t kind = profile_.shares ? Draw(0, 3) : 0;
    if (kind == 1 && checked_.size() > 0) prompt = checked_.TokensOf(DrawSequence());
    if (kind >= 2) prompt = documents_[Draw(0, 3)];
    if (kind > 0) prompt.resize(std::min<size_t>(prompt.size(), Draw(0, kContext)));
    if (kind == 3) return prompt;
    const std::vector<int32_t> tail = DrawTokens(Draw(0, Draw(1, 200)));
    prompt.insert(prompt.end(), tail.begin(), tail.end());
    if (!profile_.shares && !prompt.empty()) prompt[0] = static_cast<int32_t>(checked_.size() % kVocab);
    return prompt;
  }

  // Another run of the answer was cut anywhere; now and then too late.
  std::vector<int32_t> DrawResume(const SequenceSpec& spec) {
    if (!profile_.goes_on || Draw(0, 3) > 0) return {};
    const uint32_t most = Draw(0, 9) > 0 && spec.max_tokens > 0 ? spec.max_tokens - 1 : 60u;
    return Answer(spec.sampling.seed, 0, Draw(0, most));
  }

  // Right up to some token, then a guess like any other.
  std::vector<int32_t> DrawDraft(const SequenceSpec& spec) {
    if (!profile_.goes_on || Draw(0, 2) > 0) return {};
    std::vector<int32_t> draft =
        Answer(spec.sampling.seed, static_cast<uint32_t>(spec.resume.size()), Draw(0, 80));
    const std::vector<int32_t> guess = DrawTokens(Draw(0, 1) * Draw(0, 200));
    draft.insert(draft.end(), guess.begin(), guess.end());
    return draft;
  }

  static std::vector<int32_t> Answer(uint64_t seed, uint32_t first, uint32_t count) {
    std::vector<int32_t> tokens;
    for (uint32_t i = first; i < first + count; ++i)
      tokens.push_back(FakeExecutor::AnswerToken(seed, i, kVocab));
    return tokens;
  }

  void Arrive() {
    SequenceSpec spec;
    spec.prompt = DrawPrompt();
    spec.max_tokens = Draw(0, 9) == 0 ? 0 : Draw(1, 60);
    spec.ignore_eos = Draw(0, 1) == 1;
    if (Draw(0, 5) == 0) spec.stop_tokens = {3, 4};
    spec.score_prompt = Draw(0, 7) == 0;
    if (profile_.prioritizes) spec.priority = static_cast<int32_t>(Draw(0, 2)) - 1;
    if (Draw(0, 3) == 0) spec.cache_salt = "other";
    if (profile_.meddles && Draw(0, 5) == 0)
      spec.deadline = checked_.now() + std::chrono::milliseconds(Draw(0, 80));
    const uint64_t seed = Draw(0, 1000);
    for (uint32_t choice = 0, choices = Draw(0, 7) == 0 ? 4 : 1; choice < choices; ++choice) {
      spec.sampling.seed = Draw(0, 1) == 0 ? seed : ChoiceSeed(seed, choice);
      spec.resume = DrawResume(spec);
      spec.draft = DrawDraft(spec);
      checked_.Add(spec);
    }
  }

  const Profile profile_;
  std::mt19937 random_;
  CheckedScheduler checked_;
  const uint32_t arrivals_;
  std::vector<int32_t> documents_[4];
};

struct Sums {
  uint64_t sequences = 0, verified = 0, accepted = 0, accepted_branch = 0;
  SchedulerStats stats;
};

Sums RunWorkloads(const Profile& profile, uint32_t workloads) {
  std::signal(SIGABRT, [](int) { (void)!write(STDERR_FILENO, g_workload, strlen(g_workload)); });
  Sums sums;
  for (uint32_t seed = 1; seed <= workloads && !testing::Test::HasFailure(); ++seed) {
    snprintf(g_workload, sizeof(g_workload), "in the workload of seed %u\n", seed);
    Workload workload(profile, seed);
    workload.Run();
    EXPECT_THAT(workload.checked().violations(), IsEmpty()) << "seed " << seed;
    if (profile.is_patient) {
      EXPECT_EQ(workload.checked().repeated_blocks(), 0u) << "seed " << seed;
    }
    const SchedulerStats stats = workload.checked().stats();
    sums.sequences += workload.checked().size();
    sums.verified += workload.checked().verified_tokens();
    sums.accepted += workload.checked().accepted_tokens();
    sums.accepted_branch += workload.checked().accepted_branch_tokens();
    sums.stats.finished += stats.finished;
    sums.stats.failed += stats.failed;
    sums.stats.cancelled += stats.cancelled;
    sums.stats.recompute_preemptions += stats.recompute_preemptions;
    sums.stats.swap_preemptions += stats.swap_preemptions;
    sums.stats.prefix_hit_tokens += stats.prefix_hit_tokens;
    sums.stats.accepted_draft_tokens += stats.accepted_draft_tokens;
    sums.stats.rejected_draft_tokens += stats.rejected_draft_tokens;
  }
  std::signal(SIGABRT, SIG_DFL);
  return sums;
}

TEST(SchedulerProperties, HoldWhateverHappens) {
  const Sums sums = RunWorkloads({}, 150);
  EXPECT_GT(sums.sequences, 5000u);
  EXPECT_GT(sums.stats.failed, 100u);
  EXPECT_GT(sums.stats.cancelled, 500u);
  EXPECT_GT(sums.stats.recompute_preemptions, 500u);
  EXPECT_GT(sums.stats.swap_preemptions, 200u);
  EXPECT_GT(sums.stats.prefix_hit_tokens, 10'000u);
  EXPECT_GT(sums.stats.accepted_draft_tokens, 1'000u);
  EXPECT_GT(sums.stats.rejected_draft_tokens, 1'000u);
}

TEST(SchedulerProperties, HoldWhateverIsOffered) {
  const Sums sums = RunWorkloads({.speculates = true}, 100);
  EXPECT_GT(sums.accepted, 5'000u);
  EXPECT_GT(sums.accepted_branch, 300u);
  EXPECT_GT(sums.verified, sums.accepted + 2'000);
  EXPECT_GT(sums.stats.recompute_preemptions, 100u);
  EXPECT_GT(sums.stats.swap_preemptions, 50u);
}

TEST(SchedulerProperties, HoldForAnswersFromTheirFirstTokenOn) {
  const Sums sums = RunWorkloads({.goes_on = false}, 50);
  EXPECT_GT(sums.stats.finished, 300u);
  EXPECT_EQ(sums.stats.accepted_draft_tokens + sums.stats.rejected_draft_tokens, 0u);
}

// Nothing waits for a prefix or for its sink: the order of admission is exact.
TEST(SchedulerProperties, AdmissionIsInOrderWhereNobodyWaitsForAnother) {
  const Sums sums = RunWorkloads({.fills = false, .shares = false, .steps = 100}, 80);
  EXPECT_GT(sums.stats.finished, 2000u);
}

// Room for everything, and nobody meddles: what is cached is exact.
TEST(SchedulerProperties, WhatWasComputedIsFoundWhileThereIsRoom) {
  const Sums sums = RunWorkloads({.meddles = false, .fails = false, .is_tight = false, .steps = 40}, 60);
  EXPECT_GT(sums.stats.prefix_hit_tokens, 10'000u);
}

// Nothing is lost, and nobody has a reason not to wait: who comes later finds the beginning, or awaits it.
TEST(SchedulerProperties, NoBlockOfAPromptIsComputedTwice) {
  const Sums sums = RunWorkloads({.meddles = false,
                                  .fills = false,
                                  .fails = false,
                                  .prioritizes = false,
                                  .is_tight = false,
                                  .is_patient = true,
                                  .steps = 40},
                                 50);
  EXPECT_GT(sums.stats.prefix_hit_tokens, 10'000u);
}

// What random workloads found, or would have.

SchedulerOptions SixteenBlocks() {
  return {.max_sequences = 4,
          .max_step_tokens = 64,
          .context_length = 256,
          .vocab_size = 1000,
          .block_tokens = 16,
          .blocks = 16};
}

SequenceSpec Spec(uint32_t prompt, uint32_t max_tokens, uint64_t seed, int32_t priority = 0) {
  SequenceSpec spec;
  for (uint32_t i = 0; i < prompt; ++i) spec.prompt.push_back(static_cast<int32_t>((seed * 31 + i) % 1000));
  spec.max_tokens = max_tokens;
  spec.sampling.seed = seed;
  spec.priority = priority;
  return spec;
}

// Of the sequences that run, each holds blocks that the other holds too, and only both together make room.
TEST(GivingWay, SequencesThatShareBlocksDoSoTogether) {
  for (const bool are_full : {true, false}) {
    CheckedScheduler checked({.scheduler = SixteenBlocks()});
    SequenceSpec answer = Spec(128, 50, 1), other_answer = answer;
    other_answer.sampling.seed = 2;
    const size_t first = *checked.Add(answer), second = *checked.Add(other_answer);
    while (checked.stats().running < 2) ASSERT_TRUE(checked.Step());
    const size_t large = *checked.Add(Spec(200, 5, 3, are_full ? 0 : 1));
    checked.SetFull(first, are_full);
    checked.SetFull(second, are_full);
    for (int step = 0; step < 10; ++step) checked.Step();
    EXPECT_TRUE(checked.has_ended(large));
    checked.Finish();
    EXPECT_THAT(checked.violations(), IsEmpty());
  }
}

// The room that a large sequence made for an urgent one is not for a lesser one before itself.
TEST(GivingWay, NobodyComesBackInTheSameStep) {
  SchedulerOptions options = SixteenBlocks();
  options.host_blocks = 16;
  options.prefix_cache = false;
  CheckedScheduler checked({.scheduler = options});
  const size_t large = *checked.Add(Spec(160, 30, 1, 0)), small = *checked.Add(Spec(10, 30, 2, -1));
  for (int step = 0; step < 4; ++step) ASSERT_TRUE(checked.Step());
  checked.Add(Spec(100, 5, 3, 1));
  ASSERT_TRUE(checked.Step());
  EXPECT_EQ(checked.stats().swap_preemptions, 2u);
  EXPECT_EQ(checked.stats().running, 1u);
  checked.Finish();
  EXPECT_THAT(checked.violations(), IsEmpty());
  EXPECT_EQ(checked.ResultOf(large).stats.preemptions + checked.ResultOf(small).stats.preemptions, 2u);
}

// Who decodes last gives its own blocks up, as the other is of a higher priority though paused: others go on.
TEST(GivingWay, APlanIsEmptyOnlyWhenNothingCanRun) {
  SchedulerOptions options = SixteenBlocks();
  options.prefix_cache = false;
  CheckedScheduler checked({.scheduler = options});
  const size_t high = *checked.Add(Spec(112, 50, 1, 1));
  checked.Step();
  checked.Step();
  checked.Add(Spec(112, 50, 2));
  checked.Step();
  checked.SetFull(high, true);
  const size_t small = *checked.Add(Spec(3, 5, 3));
  while (checked.Step()) {
  }
  EXPECT_TRUE(checked.has_ended(small));
  checked.Finish();
  EXPECT_THAT(checked.violations(), IsEmpty());
}

TEST(NumericErrors, ATailThatLedToOneIsForgotten) {
  CheckedScheduler checked({.scheduler = SixteenBlocks(), .failing_seeds = 100});
  const auto cached = [&](uint64_t seed) {
    SequenceSpec spec = Spec(10, 1, 1);  // less than a block
    spec.sampling.seed = seed;
    const size_t sequence = *checked.Add(spec);
    while (checked.Step()) {
    }
    return checked.ResultOf(sequence).stats.cached_tokens;
  };
  EXPECT_EQ(cached(1), 0u);
  EXPECT_EQ(cached(2), 9u);    // a copy of it
  EXPECT_EQ(cached(400), 9u);  // fails at its first token
  EXPECT_EQ(checked.stats().failed, 1u);
  EXPECT_EQ(cached(3), 0u);
  checked.Finish();
  EXPECT_THAT(checked.violations(), IsEmpty());
}

}  // namespace
}  // namespace terrace
