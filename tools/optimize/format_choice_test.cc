#include "tools/optimize/format_choice.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "gtest/gtest.h"

namespace terrace {
namespace {

using Parts = std::vector<std::vector<FormatOption>>;

// The least loss of all choices of at most `limit` bytes.
double LeastLoss(const Parts& parts, uint64_t limit, size_t part = 0) {
  if (part == parts.size()) return 0;
  double least = INFINITY;
  for (const FormatOption& option : parts[part]) {
    if (option.bytes > limit) continue;
    least = std::min(least, option.loss + LeastLoss(parts, limit - option.bytes, part + 1));
  }
  return least;
}

Parts RandomParts(std::mt19937& random) {
  Parts parts(1 + random() % 6);
  for (auto& options : parts) {
    options.resize(1 + random() % 4);
    for (FormatOption& option : options)
      option = {.bytes = 1 + random() % 40, .loss = static_cast<double>(random() % 1000)};
  }
  return parts;
}

TEST(ChooseFormats, IsTheBestForItsBytesOrNearTheBestForTheLimit) {
  for (unsigned seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const Parts parts = RandomParts(random);
    const uint64_t limit = SmallestBytes(parts) + random() % 100;
    const auto choice = ChooseFormats(parts, limit);
    ASSERT_TRUE(choice.ok()) << choice.status();
    uint64_t bytes = 0;
    double loss = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      bytes += parts[i][choice->chosen[i]].bytes;
      loss += parts[i][choice->chosen[i]].loss;
    }
    EXPECT_EQ(choice->bytes, bytes);
    EXPECT_EQ(choice->loss, loss);
    EXPECT_LE(bytes, limit);
    const double best = LeastLoss(parts, limit);
    EXPECT_LE(loss - best, choice->passed_over);
    if (choice->is_optimal) {
      EXPECT_EQ(loss, LeastLoss(parts, bytes));
    }
  }
}

TEST(ChooseFormats, LosesNoMoreWithMoreBytesWhereAllStepsFit) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const Parts parts = RandomParts(random);
    uint64_t all = 0;
    double least = 0;
    for (const auto& options : parts) {
      all += std::ranges::max(options, {}, &FormatOption::bytes).bytes;
      least += std::ranges::min(options, {}, &FormatOption::loss).loss;
    }
    EXPECT_EQ(ChooseFormats(parts, all)->loss, least);
    EXPECT_GE(ChooseFormats(parts, SmallestBytes(parts))->loss, least);
  }
}

TEST(ChooseFormats, SpendsBytesWhereTheySaveMost) {
  // The second part loses ten times as much in the small format.
  const Parts parts = {{{10, 1}, {20, 0}}, {{10, 10}, {20, 0}}, {{10, 2}, {20, 0}}};
  EXPECT_EQ(ChooseFormats(parts, 40)->chosen, (std::vector<size_t>{0, 1, 0}));
  EXPECT_EQ(ChooseFormats(parts, 50)->chosen, (std::vector<size_t>{0, 1, 1}));
  EXPECT_EQ(ChooseFormats(parts, 30)->chosen, (std::vector<size_t>{0, 0, 0}));
}

TEST(ChooseFormats, AStepThatDoesNotFitLeavesRoomForASmallerOne) {
  const Parts parts = {{{10, 100}, {110, 0}}, {{10, 5}, {20, 0}}};
  const auto choice = ChooseFormats(parts, 50);
  EXPECT_EQ(choice->chosen, (std::vector<size_t>{0, 1}));
  EXPECT_EQ(choice->passed_over, 100);
}

TEST(ChooseFormats, ALimitThatNothingReachesIsAnErrorWithTheSmallest) {
  const auto choice = ChooseFormats({{{10, 1}, {20, 0}}, {{12, 1}}}, 21);
  EXPECT_EQ(choice.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(Message(choice.status()).find("22 bytes"), std::string::npos) << choice.status();
}

}  // namespace
}  // namespace terrace
