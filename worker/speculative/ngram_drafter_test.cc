#include "worker/speculative/ngram_drafter.h"

#include <optional>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Of one sequence.
struct Guesses {
  std::vector<int32_t> draft, branch;
};

Guesses ProposeBoth(NgramDrafter& drafter, const std::vector<int32_t>& tokens, uint32_t most,
                    uint32_t most_branch, uint64_t id = 0) {
  const DraftRequest request{.id = id, .tokens = tokens, .most = most, .most_branch = most_branch};
  const auto drafts = drafter.Propose({&request, 1});
  EXPECT_TRUE(drafts.ok());
  EXPECT_THAT(drafts->passes, IsEmpty());
  return {drafts->tokens.at(0), drafts->branches.at(0)};
}

std::vector<int32_t> Propose(NgramDrafter& drafter, const std::vector<int32_t>& tokens, uint32_t most,
                             uint64_t id = 0) {
  const Guesses guesses = ProposeBoth(drafter, tokens, most, /*most_branch=*/0, id);
  EXPECT_THAT(guesses.branch, IsEmpty());
  return guesses.draft;
}

// The rule, without an index; of places that another token than `without` follows.
std::vector<int32_t> Oracle(const NgramDrafter::Options& options, const std::vector<int32_t>& tokens,
                            uint32_t most, std::optional<int32_t> without = std::nullopt) {
  size_t best = 0, longest = 0;
  uint32_t tried = 0;
  for (size_t place = tokens.size(); place-- > options.min_match && tried < options.candidates;) {
    size_t common = 0;
    while (common < place && common < options.max_match &&
           tokens[place - 1 - common] == tokens[tokens.size() - 1 - common]) {
      ++common;
    }
    if (common < options.min_match) continue;
    ++tried;
    if (common <= longest || tokens[place] == without) continue;
    best = place;
    longest = common;
  }
  std::vector<int32_t> all = tokens;
  for (uint32_t i = 0; best > 0 && i < most; ++i) {
    const int32_t next = all[best + i];
    all.push_back(next);
  }
  return {all.begin() + static_cast<ptrdiff_t>(tokens.size()), all.end()};
}

TEST(NgramDrafter, DraftsWhatTheRuleSaysHoweverTheSequenceGrows) {
  size_t drafted = 0, branched = 0;
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(Concat("seed ", seed));
    std::mt19937 random(seed);
    const auto draw = [&](uint32_t low, uint32_t high) {
      return std::uniform_int_distribution<uint32_t>(low, high)(random);
    };
    const NgramDrafter::Options options{
        .min_match = draw(1, 4), .max_match = draw(4, 12), .candidates = draw(1, 5)};
    NgramDrafter drafter(options);
    const uint32_t vocab = draw(2, 12);
    std::vector<int32_t> tokens;
    while (tokens.size() < 200) {
      for (uint32_t more = draw(1, draw(1, 20)); more > 0; --more) {
        const bool repeats = tokens.size() > 20 && draw(0, 2) > 0;
        tokens.push_back(repeats ? tokens[tokens.size() - 17] : static_cast<int32_t>(draw(0, vocab - 1)));
      }
      const uint32_t most = draw(1, 12);
      const uint32_t most_branch = draw(0, 4);
      const auto [draft, branch] = ProposeBoth(drafter, tokens, most, most_branch);
      EXPECT_EQ(draft, Oracle(options, tokens, most));
      drafted += draft.size();
      branched += branch.size();
      if (draft.empty()) {
        EXPECT_THAT(branch, IsEmpty());
      } else {
        EXPECT_EQ(branch, Oracle(options, tokens, most_branch, draft[0]));
      }
    }
    EXPECT_EQ(drafter.indexed_tokens(), tokens.size());
    drafter.Forget(0);
    EXPECT_EQ(drafter.indexed_tokens(), 0u);
  }
  EXPECT_GT(drafted, 10'000u);
  EXPECT_GT(branched, 1'000u);
}

TEST(NgramDrafter, GoesOnAsBeforeAndInCircles) {
  NgramDrafter drafter({.min_match = 2});
  EXPECT_THAT(Propose(drafter, {1, 2, 3, 4, 5, 1, 2}, 3), ElementsAre(3, 4, 5));
  EXPECT_THAT(Propose(drafter, {8, 9, 8, 9}, 5, /*id=*/1), ElementsAre(8, 9, 8, 9, 8));
  EXPECT_THAT(Propose(drafter, {1, 2, 3, 4}, 3, /*id=*/2), IsEmpty());
  EXPECT_THAT(Propose(drafter, {1}, 3, /*id=*/3), IsEmpty());
}

TEST(NgramDrafter, PrefersTheLongestMatchAndOfEqualOnesTheNewest) {
  NgramDrafter drafter({.min_match = 2});
  EXPECT_THAT(Propose(drafter, {7, 1, 2, 50, 1, 2, 60, 7, 1, 2}, 1), ElementsAre(50));
  EXPECT_THAT(Propose(drafter, {1, 2, 50, 1, 2, 60, 7, 1, 2}, 1, /*id=*/1), ElementsAre(60));
}

TEST(NgramDrafter, ABranchGoesOnLikeTheBestPlaceThatGoesOnOtherwise) {
  NgramDrafter drafter({.min_match = 2});
  Guesses guesses = ProposeBoth(drafter, {7, 1, 2, 50, 9, 1, 2, 60, 9, 1, 2, 50, 7, 1, 2}, 2, 2);
  EXPECT_THAT(guesses.draft, ElementsAre(50, 9)) << "three tokens agree";
  EXPECT_THAT(guesses.branch, ElementsAre(60, 9)) << "the newest place but those before a 50";
  guesses = ProposeBoth(drafter, {1, 2, 3, 1, 2, 3, 1, 2}, 2, 2, /*id=*/1);
  EXPECT_THAT(guesses.draft, ElementsAre(3, 1));
  EXPECT_THAT(guesses.branch, IsEmpty()) << "it always went on so";
}

TEST(NgramDrafter, HoldsNoMoreThanItMay) {
  NgramDrafter drafter({.min_match = 1, .max_tokens = 10});
  const std::vector<int32_t> four = {1, 2, 3, 1}, eleven(11, 1);
  EXPECT_THAT(Propose(drafter, four, 1, 0), ElementsAre(2));
  EXPECT_THAT(Propose(drafter, four, 1, 1), ElementsAre(2));
  EXPECT_THAT(Propose(drafter, four, 1, 0), ElementsAre(2));
  EXPECT_THAT(Propose(drafter, four, 1, 2), ElementsAre(2));  // 1, not asked for the longest, gives way
  EXPECT_EQ(drafter.indexed_tokens(), 8u);
  EXPECT_THAT(Propose(drafter, four, 1, 1), ElementsAre(2)) << "it is indexed anew";
  EXPECT_EQ(drafter.indexed_tokens(), 8u);
  EXPECT_THAT(Propose(drafter, eleven, 1, 3), IsEmpty()) << "too long for it alone";
  EXPECT_EQ(drafter.indexed_tokens(), 0u);
}

TEST(NgramDrafter, SequencesAreKeptApart) {
  NgramDrafter drafter({.min_match = 1});
  const std::vector<int32_t> a = {1, 2, 1}, b = {1, 3, 1};
  const DraftRequest requests[] = {{.id = 0, .tokens = a, .most = 1}, {.id = 1, .tokens = b, .most = 1}};
  const auto drafts = drafter.Propose(requests);
  EXPECT_THAT(drafts->tokens, ElementsAre(ElementsAre(2), ElementsAre(3)));
}

}  // namespace
}  // namespace terrace
