// A second guess beside a draft: whichever is right, the answer is that of one token a step, and of the
// blocks only those of the answer are left.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/scheduler_testing.h"

namespace terrace {
namespace {

using ::testing::SizeIs;

// The next `count` tokens of the answer of `seed` behind `said` ones.
std::vector<int32_t> Next(uint64_t seed, size_t said, uint32_t count) {
  std::vector<int32_t> tokens;
  for (uint32_t i = 0; i < count; ++i) tokens.push_back(FakeExecutor::AnswerToken(seed, said + i, kVocab));
  return tokens;
}

// Other tokens than those, by that much.
std::vector<int32_t> Wrong(std::vector<int32_t> tokens, int32_t by = 1) {
  for (int32_t& token : tokens) token = (token + by) % int32_t{kVocab};
  return tokens;
}

// A sequence of seed 1 that decodes, in a Harness whose steps are taken apart.
struct Branching : Harness {
  explicit Branching(SequenceSpec spec, SchedulerOptions options = SmallOptions(),
                     FakeExecutor::Options fake = {})
      : Harness(options,
                [&] {
                  fake.block_tokens = options.block_tokens;
                  return fake;
                }()),
        sink(Add(std::move(spec))) {
    while (sink->sent == 0 && Step()) {
    }
  }

  size_t said() const { return sink->sent; }
  void Begin() {
    clock.Advance(std::chrono::milliseconds(1));
    plan = scheduler.Schedule(clock.Now());
    EXPECT_THAT(scheduler.Wishes(plan), SizeIs(1));
  }
  void End() {
    scheduler.Commit(plan, executor.Run(plan), clock.Now());
    CheckBlocks();
  }
  // A step with a draft that is wrong and a branch that is right.
  void StepRightly(uint32_t tokens) {
    Begin();
    const size_t before = said();
    ASSERT_EQ(scheduler.Offer(plan, 0, Wrong(Next(1, before, tokens)), tokens), tokens);
    ASSERT_EQ(scheduler.OfferBranch(plan, 0, Next(1, before, tokens), tokens), tokens + 1);
    End();
    EXPECT_EQ(said(), before + tokens + 1);
  }

  std::shared_ptr<WatchedSink> sink;
};

TEST(Branch, TheAnswerGoesOnWithTheGuessThatIsRight) {
  for (uint32_t prompt = 1; prompt <= 40; ++prompt) {  // around the edges of blocks
    SCOPED_TRACE(prompt);
    Branching branching(Spec(prompt, 60));
    while (branching.said() < 40 && !testing::Test::HasFailure())
      branching.StepRightly(1 + static_cast<uint32_t>(branching.said()) % 7);
    branching.RunAll();
    const auto answer = branching.sink->Wait();
    EXPECT_EQ(answer.ids(), WantedTokens(1, 60));
    const SequenceStats& stats = answer.result.stats;
    EXPECT_EQ(stats.speculated_tokens, 2 * stats.accepted_speculated_tokens);
    EXPECT_EQ(branching.scheduler.Stats().recompute_preemptions, 0u);
  }
}

TEST(Branch, OfAPlanIsAPartOfItsOwnInBlocksOfItsOwn) {
  Branching branching(Spec(37, 30));  // two whole blocks, and five rows
  branching.Begin();
  branching.scheduler.Offer(branching.plan, 0, Wrong(Next(1, 1, 3)), 3);
  const uint32_t room = branching.scheduler.draft_room();
  EXPECT_EQ(branching.scheduler.OfferBranch(branching.plan, 0, Next(1, 1, 4), 2), 3u);
  EXPECT_EQ(branching.scheduler.draft_room(), room - 3);
  ASSERT_THAT(branching.plan.sequences, SizeIs(2));
  const PlannedSequence &own = branching.plan.sequences[0], &branch = branching.plan.sequences[1];
  EXPECT_EQ(branch.id, own.id);
  EXPECT_TRUE(branch.is_branch);
  EXPECT_FALSE(own.is_branch);
  EXPECT_EQ(branch.first_position, own.first_position);
  EXPECT_EQ(branch.proposed, 2u);
  EXPECT_EQ(branch.tokens[0], own.tokens[0]);
  EXPECT_EQ(branch.tokens[1], Next(1, 1, 1)[0]);
  ASSERT_THAT(branch.blocks, SizeIs(3));
  EXPECT_EQ(branch.blocks[0], own.blocks[0]);
  EXPECT_EQ(branch.blocks[1], own.blocks[1]);
  EXPECT_NE(branch.blocks[2], own.blocks[2]);
  ASSERT_THAT(branching.plan.transfers, SizeIs(1));
  EXPECT_EQ(branching.plan.transfers[0].rows, 5u);
  branching.End();
  EXPECT_EQ(branching.said(), 4u);
  const std::vector<DraftOutcome> outcomes = branching.scheduler.TakeDraftOutcomes();
  ASSERT_THAT(outcomes, SizeIs(1));
  EXPECT_EQ(outcomes[0].verified, 3u);
  EXPECT_EQ(outcomes[0].compared, 1u);
  EXPECT_EQ(outcomes[0].accepted, 0u);
  EXPECT_EQ(outcomes[0].branch.verified, 2u);
  EXPECT_EQ(outcomes[0].branch.compared, 2u);
  EXPECT_EQ(outcomes[0].branch.accepted, 2u);
  EXPECT_EQ(outcomes[0].gained, 2u);
  branching.RunAll();
}

TEST(Branch, ThatIsNotVerifiedIsComparedInItsFirstToken) {
  for (const bool is_right : {false, true}) {
    Branching branching(Spec(10, 30));
    branching.Begin();
    const auto next = Next(1, 1, 3);
    branching.scheduler.Offer(branching.plan, 0, Wrong(next), 0);
    EXPECT_EQ(branching.scheduler.OfferBranch(branching.plan, 0, is_right ? next : Wrong(next, 2), 3), 0u)
        << "none is verified without a token of the draft";
    branching.End();
    const DraftOutcome outcome = branching.scheduler.TakeDraftOutcomes().at(0);
    EXPECT_EQ(outcome.branch.verified, 0u);
    EXPECT_EQ(outcome.branch.compared, 1u);
    EXPECT_EQ(outcome.branch.accepted, is_right ? 1u : 0u);
    EXPECT_EQ(outcome.gained, 0u);
    EXPECT_EQ(branching.said(), 2u);
  }
}

TEST(Branch, ThatBeginsLikeTheDraftOrWithNoTokenIsNone) {
  Branching branching(Spec(10, 30));
  const std::vector<int32_t> branches[] = {Wrong(Next(1, 1, 3)), {int32_t{kVocab}, 1}, {-1}, {}};
  for (const std::vector<int32_t>& branch : branches) {
    branching.Begin();
    branching.scheduler.Offer(branching.plan, 0, Wrong(Next(1, branching.said(), 3)), 3);
    EXPECT_EQ(branching.scheduler.OfferBranch(branching.plan, 0, branch, 3), 0u);
    branching.End();
    EXPECT_EQ(branching.scheduler.TakeDraftOutcomes().at(0).branch.compared, 0u);
  }
}

TEST(Branch, TakesNoPlaceNorRoomNorBlocksThatThereAreNot) {
  const struct {
    const char* name;
    uint32_t max_sequences, max_step_tokens, blocks;
    uint32_t tokens;  // of the step, for the branch
  } cases[] = {{"all places are taken", 1, 16, 40, 0},
               {"the step is full", 4, 5, 40, 0},
               {"one token has room", 4, 6, 40, 2},
               {"there is one block to spare", 4, 16, 6, 2},
               {"there is none", 4, 16, 5, 0}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    SchedulerOptions options = SmallOptions();
    options.max_sequences = c.max_sequences;
    options.max_step_tokens = c.max_step_tokens;
    options.block_tokens = 4;
    options.blocks = c.blocks;
    Branching branching(Spec(10, 7), options);  // 16 positions
    branching.Begin();
    // Behind 11 tokens, of which 10 are computed: with 4 a block, the third one has room for one more.
    ASSERT_EQ(branching.scheduler.Offer(branching.plan, 0, Wrong(Next(1, 1, 3)), 3), 3u);
    EXPECT_EQ(branching.scheduler.OfferBranch(branching.plan, 0, Next(1, 1, 3), 3), c.tokens);
    branching.End();
    branching.RunAll();
    EXPECT_EQ(branching.sink->Wait().ids(), WantedTokens(1, 7));
    EXPECT_EQ(branching.scheduler.Stats().recompute_preemptions, 0u);
  }
}

TEST(Branch, OfAnAnswerThatIsGuessedTheLastTokenIsNotComputed) {
  Branching branching(Spec(10, 5));
  branching.Begin();
  branching.scheduler.Offer(branching.plan, 0, Wrong(Next(1, 1, 9)), 9);
  EXPECT_EQ(branching.scheduler.OfferBranch(branching.plan, 0, Next(1, 1, 9), 9), 4u) << "of four left";
  branching.End();
  EXPECT_TRUE(branching.sink->has_ended);
  EXPECT_EQ(branching.sink->Wait().ids(), WantedTokens(1, 5));
}

TEST(Branch, BlocksComeBackFromAPlanThatNobodyComputed) {
  Branching branching(Spec(20, 60));
  branching.Begin();
  branching.scheduler.Offer(branching.plan, 0, Wrong(Next(1, 1, 3)), 3);
  EXPECT_EQ(branching.scheduler.OfferBranch(branching.plan, 0, Next(1, 1, 3), 3), 4u);
  branching.scheduler.CancelAll(Unavailable("the device is lost"), branching.clock.Now());
  branching.CheckBlocks();
  EXPECT_EQ(branching.scheduler.Stats().held_blocks, 0u);
}

// The last block that was left behind held its rows too.
TEST(Branch, ThePrefixCacheHasWhatWasAcceptedOnce) {
  Branching branching(Spec(20, 60));
  for (int i = 0; i < 4; ++i) branching.StepRightly(3);
  branching.RunAll();
  const SchedulerStats stats = branching.scheduler.Stats();
  EXPECT_EQ(stats.cached_blocks, 5u) << "of 79 positions";
  SequenceSpec next = Spec(20, 1);
  for (const int32_t token : WantedTokens(1, 60)) next.prompt.push_back(token);
  EXPECT_EQ(CachedTokens(branching, next), 79u);
  next = Spec(20, 1);
  for (const int32_t token : Wrong(WantedTokens(1, 60))) next.prompt.push_back(token);
  EXPECT_EQ(CachedTokens(branching, next), 20u) << "as the drafts had it";
}

TEST(Branch, AnErrorInsideItComesWhereItWouldHaveCome) {
  for (const uint64_t at : {1u, 2u, 3u}) {
    SCOPED_TRACE(at);
    Branching branching(Spec(10, 30), SmallOptions(), {.fail_sequence = [at](const PlannedSequence& part) {
                          return part.sample && part.sample_index == at
                                     ? WithReason(Internal("logit 3 is NaN"), "numeric_error")
                                     : Status();
                        }});
    branching.Begin();
    branching.scheduler.Offer(branching.plan, 0, Wrong(Next(1, 1, 3)), 3);
    branching.scheduler.OfferBranch(branching.plan, 0, Next(1, 1, 3), 3);
    branching.End();
    branching.RunAll();
    EXPECT_EQ(branching.sink->Wait().ids(), WantedTokens(1, static_cast<uint32_t>(at)));
    EXPECT_EQ(branching.sink->Wait().result.reason, FinishReason::kError);
  }
}

TEST(Branch, ThatWonOutlivesAPreemption) {
  for (const uint32_t host_blocks : {0u, 20u}) {
    SCOPED_TRACE(host_blocks);
    SchedulerOptions options = SmallOptions();
    options.max_sequences = 2;
    options.blocks = 8;
    options.host_blocks = host_blocks;
    options.prefix_cache = false;
    Branching branching(Spec(20, 60), options);
    branching.StepRightly(5);
    branching.scheduler.SetCosts({.swap_seconds_per_block = 1e-9});
    SequenceSpec urgent = Spec(100, 5, 2);
    urgent.priority = 1;
    const auto other = branching.Add(urgent);
    branching.RunAll();
    EXPECT_EQ(branching.sink->Wait().ids(), WantedTokens(1, 60));
    EXPECT_GT(branching.sink->Wait().result.stats.preemptions, 0u);
    EXPECT_EQ(other->Wait().ids(), WantedTokens(2, 5));
    EXPECT_EQ(branching.scheduler.Stats().free_blocks, 8u);
  }
}

}  // namespace
}  // namespace terrace
