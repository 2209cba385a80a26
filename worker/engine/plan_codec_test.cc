#include "worker/engine/plan_codec.h"

#include <algorithm>
#include <map>
#include <random>

#include "gtest/gtest.h"

namespace terrace {
namespace {

using Random = std::mt19937;

constexpr uint32_t kBlockTokens = 16, kTransferred = 1u << 30;
constexpr PlanLimits kLimits{.blocks = kTransferred + 1,
                             .host_blocks = kTransferred + 1,
                             .block_tokens = kBlockTokens,
                             .context_length = UINT32_MAX,
                             .vocab_size = 200'001};

uint32_t Draw(Random& random, uint32_t low, uint32_t high) {
  return std::uniform_int_distribution<uint32_t>(low, high)(random);
}

// A sequence as a scheduler would have it: its tokens and blocks live here.
struct Source {
  std::vector<int32_t> tokens, targets;
  BlockTable blocks;
};

// Sequences that come, grow, lose blocks, leave for some steps and end.
class RandomPlans {
 public:
  explicit RandomPlans(uint32_t seed) : random_(seed) {}

  StepPlan Next() {
    StepPlan plan;
    for (uint32_t i = Draw(random_, 0, 3); i > 0; --i) {
      plan.transfers.push_back({.kind = static_cast<BlockTransfer::Kind>(Draw(random_, 0, 2)),
                                .from = static_cast<BlockId>(Draw(random_, 0, kTransferred)),
                                .to = static_cast<BlockId>(Draw(random_, 0, kTransferred)),
                                .rows = Draw(random_, 0, 16)});
    }
    if (Draw(random_, 0, 1) == 1) sequences_[uint64_t{random_()} << 32 | random_()];
    std::erase_if(sequences_, [this](const auto&) { return Draw(random_, 0, 9) == 0; });
    for (auto& [id, sequence] : sequences_) {
      if (Draw(random_, 0, 3) == 0) continue;
      plan.sequences.push_back(Part(id, sequence));
      if (Draw(random_, 0, 1) == 0) continue;
      plan.sequences.push_back(Part(id, branches_[id]));
      plan.sequences.back().is_branch = true;
    }
    std::ranges::shuffle(plan.sequences, random_);
    return plan;
  }

 private:
  PlannedSequence Part(uint64_t id, Source& sequence) {
    sequence.tokens.resize(Draw(random_, 1, 40));
    for (int32_t& token : sequence.tokens) token = static_cast<int32_t>(Draw(random_, 0, 200'000));
    if (Draw(random_, 0, 4) == 0) sequence.blocks.resize(Draw(random_, 0, sequence.blocks.size()));
    for (uint32_t i = Draw(random_, 0, 3); i > 0; --i)
      sequence.blocks.push_back(static_cast<BlockId>(Draw(random_, 0, 100)));
    const uint32_t first = FirstPosition(sequence);
    if (first >= kBlockTokens && Draw(random_, 0, 4) == 0)
      sequence.blocks[Draw(random_, 0, first / kBlockTokens - 1)] = -1;
    PlannedSequence part{.id = id, .tokens = sequence.tokens, .blocks = sequence.blocks};
    part.first_position = first;
    part.sample = Draw(random_, 0, 1) == 1;
    part.proposed = part.sample ? Draw(random_, 0, part.tokens.size() - 1) : 0;
    if (Draw(random_, 0, 4) == 0) {
      part.score = true;
      sequence.targets = sequence.tokens;
      part.score_targets = sequence.targets;
    }
    return part;
  }

  // Behind the blocks it has lost; there are blocks for its tokens from there on.
  uint32_t FirstPosition(Source& sequence) {
    BlockTable& blocks = sequence.blocks;
    const auto lost = blocks.rend() - std::find(blocks.rbegin(), blocks.rend(), -1);
    const size_t low = static_cast<size_t>(lost) * kBlockTokens;
    while (blocks.size() * kBlockTokens < low + sequence.tokens.size())
      blocks.push_back(static_cast<BlockId>(Draw(random_, 0, 100)));
    return Draw(random_, low, blocks.size() * kBlockTokens - sequence.tokens.size());
  }

  Random random_;
  std::map<uint64_t, Source> sequences_, branches_;
};

void ExpectSame(const StepPlan& got, const StepPlan& want) {
  ASSERT_EQ(got.transfers.size(), want.transfers.size());
  for (size_t i = 0; i < want.transfers.size(); ++i) {
    const BlockTransfer &a = got.transfers[i], &b = want.transfers[i];
    EXPECT_TRUE(a.kind == b.kind && a.from == b.from && a.to == b.to && a.rows == b.rows) << i;
  }
  ASSERT_EQ(got.sequences.size(), want.sequences.size());
  for (size_t i = 0; i < want.sequences.size(); ++i) {
    const PlannedSequence &a = got.sequences[i], &b = want.sequences[i];
    EXPECT_EQ(a.id, b.id);
    EXPECT_EQ(a.is_branch, b.is_branch);
    EXPECT_EQ(a.first_position, b.first_position);
    EXPECT_EQ(WantedLogits(a), WantedLogits(b));
    EXPECT_TRUE(std::ranges::equal(a.tokens, b.tokens)) << i;
    EXPECT_TRUE(std::ranges::equal(a.blocks, b.blocks)) << i;
  }
}

TEST(PlanCodec, AReaderHasThePlansOfTheWriterStepByStep) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(Concat("seed ", seed));
    RandomPlans plans(seed);
    PlanWriter writer;
    PlanReader reader(kLimits);
    for (int step = 0; step < 100; ++step) {
      const StepPlan plan = plans.Next();
      const auto read = reader.Read(writer.Write(plan));
      ASSERT_TRUE(read.ok()) << read.status();
      ExpectSame(*read, plan);
    }
  }
}

TEST(PlanCodec, OfASequenceThatGoesOnOnlyNewBlocksAreSent) {
  BlockTable blocks(10'000);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<BlockId>(i);
  const std::vector<int32_t> token = {7};
  StepPlan plan;
  plan.sequences.push_back({.id = 1, .tokens = token, .blocks = blocks, .sample = true});
  PlanWriter writer;
  EXPECT_GT(writer.Write(plan).size(), blocks.size());
  EXPECT_LT(writer.Write(plan).size(), 16u);
  blocks.push_back(3);
  plan.sequences[0].blocks = blocks;
  EXPECT_LT(writer.Write(plan).size(), 16u);
  EXPECT_LT(writer.Write({}).size(), 16u);
  EXPECT_GT(writer.Write(plan).size(), blocks.size()) << "it was not in the step before";
}

TEST(PlanCodec, WhatIsCutOffOrLongerIsNoPlan) {
  RandomPlans plans(/*seed=*/5);
  StepPlan plan;
  while (plan.sequences.empty() || plan.transfers.empty()) plan = plans.Next();
  PlanWriter writer;
  const auto written = writer.Write(plan);
  std::vector<int32_t> words(written.begin(), written.end());
  EXPECT_TRUE(PlanReader(kLimits).Read(words).ok());
  for (size_t size = 0; size < words.size(); ++size) {
    EXPECT_EQ(PlanReader(kLimits).Read(std::span(words).first(size)).status().code(), StatusCode::kDataLoss)
        << size;
  }
  words.push_back(0);
  EXPECT_EQ(PlanReader(kLimits).Read(words).status().code(), StatusCode::kDataLoss);
}

TEST(PlanCodec, WordsThatContradictEachOtherAreNoPlan) {
  // No transfers, one sequence: id (2 words), no branch, first position, logits, kept, tokens, fresh; its
  // tokens; blocks.
  const std::vector<int32_t> good = {0, 1, 9, 0, 0, 4, 1, 0, 2, 1, 50, 51, 6};
  EXPECT_TRUE(PlanReader(kLimits).Read(good).ok());
  const struct {
    size_t word;
    int32_t value;
    const char* why;
  } cases[] = {{0, 1, "a transfer that is none"},
               {1, 2, "another sequence"},
               {4, 2, "a branch of no kind"},
               {6, 3, "more logits than tokens"},
               {7, 1, "a block kept of none"},
               {8, -1, "four billion tokens"},
               {9, 1 << 30, "blocks"}};
  for (const auto& each : cases) {
    std::vector<int32_t> words = good;
    words[each.word] = each.value;
    EXPECT_EQ(PlanReader(kLimits).Read(words).status().code(), StatusCode::kDataLoss) << each.why;
  }
  std::vector<int32_t> twice = good;
  twice[1] = 2;
  twice.insert(twice.end(), good.begin() + 2, good.end());
  EXPECT_EQ(PlanReader(kLimits).Read(twice).status().code(), StatusCode::kDataLoss);
}

TEST(PlanCodec, WhatPassesTheLimitsIsNoPlan) {
  const PlanLimits limits{
      .blocks = 7, .host_blocks = 2, .block_tokens = 16, .context_length = 32, .vocab_size = 52};
  const auto code = [&](const std::vector<int32_t>& words) {
    return PlanReader(limits).Read(words).status().code();
  };
  // As above.
  const std::vector<int32_t> good = {0, 1, 9, 0, 0, 4, 1, 0, 2, 1, 50, 51, 6};
  EXPECT_EQ(code(good), StatusCode::kOk);
  const struct {
    size_t word;
    int32_t value;
    const char* why;
  } cases[] = {{5, 15, "two blocks are needed"},
               {5, 31, "33 positions"},
               {5, -1, "four billion positions"},
               {10, -1, "token -1"},
               {11, 52, "token 52"},
               {12, 7, "block 7"},
               {12, -2, "block -2"},
               {12, -1, "a dropped block that is written"}};
  for (const auto& each : cases) {
    std::vector<int32_t> words = good;
    words[each.word] = each.value;
    EXPECT_EQ(code(words), StatusCode::kDataLoss) << each.why;
  }
  EXPECT_EQ(code({0, 1, 9, 0, 0, 16, 1, 0, 2, 2, 50, 51, -1, 6}), StatusCode::kOk) << "dropped before";

  // One transfer: kind, from, to, rows; no sequences.
  for (const std::vector<int32_t>& words :
       std::vector<std::vector<int32_t>>{{1, 0, 0, 6, 16, 0}, {1, 1, 6, 1, 0, 0}, {1, 2, 1, 6, 0, 0}}) {
    EXPECT_EQ(code(words), StatusCode::kOk) << words[1];
  }
  for (const std::vector<int32_t>& words : std::vector<std::vector<int32_t>>{{1, 0, 7, 6, 1, 0},
                                                                             {1, 0, 0, -1, 1, 0},
                                                                             {1, 0, 5, 5, 1, 0},
                                                                             {1, 0, 0, 6, 17, 0},
                                                                             {1, 1, 0, 2, 0, 0},
                                                                             {1, 2, 2, 0, 0, 0}}) {
    EXPECT_EQ(code(words), StatusCode::kDataLoss) << words[1] << " from " << words[2] << " to " << words[3];
  }
}

}  // namespace
}  // namespace terrace
