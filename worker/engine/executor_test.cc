#include "worker/engine/executor.h"

#include <random>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr uint32_t kAnswer = 30;

// A token that depends on its index and on how often every token was said before.
int32_t TokenAfter(const TokenCounts& counts, uint64_t index) {
  uint64_t token = index * 5;
  for (const auto& [said, times] : counts.entries()) token += static_cast<uint64_t>(said + 1) * times;
  return static_cast<int32_t>(token % 7);
}

// One token a step.
std::vector<int32_t> Decoded() {
  TokenCounts counts;
  std::vector<int32_t> answer;
  while (answer.size() < kAnswer) {
    answer.push_back(TokenAfter(counts, answer.size()));
    counts.AddGenerated(answer.back());
  }
  return answer;
}

TEST(ChooseTokens, GivesWhatOneTokenAStepGivesUpToTheFirstDisagreement) {
  const std::vector<int32_t> answer = Decoded();
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const size_t known = random() % (kAnswer - 1), agreeing = random() % (kAnswer - known - 1);
    std::vector<int32_t> tokens = {100, 101};  // the last of them is the last known token
    tokens.insert(tokens.end(), answer.begin() + static_cast<ptrdiff_t>(known),
                  answer.begin() + static_cast<ptrdiff_t>(known + agreeing));
    if (random() % 2 == 0) {
      tokens.push_back((answer[known + agreeing] + 1) % 7);
      for (uint32_t rest = random() % 5; rest > 0; --rest)
        tokens.push_back(static_cast<int32_t>(random() % 7));
    }
    TokenCounts counts;
    for (size_t i = 0; i < known; ++i) counts.AddGenerated(answer[i]);
    const SamplingParams sampling{.presence_penalty = 1};
    PlannedSequence part;
    part.tokens = tokens;
    part.sample = true;
    part.sampling = &sampling;
    part.proposed = static_cast<uint32_t>(tokens.size()) - 2;
    part.counts = &counts;
    part.sample_index = known;
    uint32_t rows = 0;
    const SequenceOutput output =
        ChooseTokens(part, [&](uint32_t row, const TokenCounts& so_far, uint64_t index) {
          EXPECT_EQ(row, rows++);
          return SampledToken{.token = TokenAfter(so_far, index), .logprob = 0, .top = {}};
        });
    EXPECT_TRUE(output.error.ok());
    ASSERT_EQ(output.tokens.size(), agreeing + 1);
    EXPECT_EQ(rows, agreeing + 1) << "who disagreed is not asked again";
    for (size_t i = 0; i <= agreeing; ++i) EXPECT_EQ(output.tokens[i].token, answer[known + i]);
    EXPECT_EQ(counts.entries().empty(), known == 0) << "the sequence's own counts are its owner's";
  }
}

TEST(ChooseTokens, AnErrorKeepsWhatWasChosenBefore) {
  const std::vector<int32_t> tokens = {9, 1, 1, 1};
  const SamplingParams sampling;
  TokenCounts counts;
  PlannedSequence part;
  part.tokens = tokens;
  part.sample = true;
  part.sampling = &sampling;
  part.proposed = 3;
  part.counts = &counts;
  const SequenceOutput output =
      ChooseTokens(part, [](uint32_t row, const TokenCounts&, uint64_t) -> StatusOr<SampledToken> {
        if (row == 2) return Internal("NaN");
        return SampledToken{.token = 1, .logprob = 0, .top = {}};
      });
  EXPECT_EQ(output.error.code(), StatusCode::kInternal);
  EXPECT_EQ(output.tokens.size(), 2u);
}

// A copy of a long answer's counts would cost more than the step's other work.
TEST(ChooseTokens, WithoutPenaltiesTheCountsAreThoseOfTheSequence) {
  const std::vector<int32_t> tokens = {9, 1, 2, 3};
  const SamplingParams sampling;
  TokenCounts counts;
  PlannedSequence part;
  part.tokens = tokens;
  part.sample = true;
  part.sampling = &sampling;
  part.proposed = 3;
  part.counts = &counts;
  const SequenceOutput output = ChooseTokens(part, [&](uint32_t row, const TokenCounts& so_far, uint64_t) {
    EXPECT_EQ(&so_far, &counts);
    return SampledToken{.token = static_cast<int32_t>(row) + 1, .logprob = 0, .top = {}};
  });
  EXPECT_EQ(output.tokens.size(), 4u);
}

}  // namespace
}  // namespace terrace
