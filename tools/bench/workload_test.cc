#include "tools/bench/workload.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

std::vector<TokenId> Vocabulary() {
  std::vector<TokenId> ids;
  for (TokenId id = 3; id < 400; ++id) ids.push_back(id);
  return ids;
}

LengthDistribution Lengths(const char* text) { return LengthDistribution::Parse(text).value(); }

TEST(Workload, LevelsHaveTheSameLengthsAndTheirOwnPromptsAndPrefixes) {
  const WorkloadSettings settings{.prompt_tokens = Lengths("uniform:20-60"),
                                  .output_tokens = Lengths("lognormal:30,0.7"),
                                  .shared_prefix_tokens = 16,
                                  .cancel_fraction = 0.3};
  const auto workload = Workload::Make(settings, Vocabulary(), 4096);
  ASSERT_TRUE(workload.ok()) << workload.status();
  for (uint64_t i = 0; i < 50; ++i) {
    const PlannedRequest first = workload->Plan({.level = 0, .index = i});
    const PlannedRequest second = workload->Plan({.level = 1, .index = i});
    EXPECT_EQ(first.prompt.size(), second.prompt.size());
    EXPECT_EQ(first.output_tokens, second.output_tokens);
    EXPECT_EQ(first.cancel_after, second.cancel_after);
    EXPECT_NE(first.sampling_seed, second.sampling_seed);
    const auto prefix = [](const PlannedRequest& p) {
      return std::vector(p.prompt.begin(), p.prompt.begin() + 16);
    };
    EXPECT_NE(prefix(first), prefix(second));
    EXPECT_EQ(prefix(first), prefix(workload->Plan({.level = 0, .is_warmup = true, .index = i})));
  }
}

TEST(Workload, EveryPromptOfARunIsDifferent) {
  const auto workload = Workload::Make({.prompt_tokens = Lengths("12")}, Vocabulary(), 0);
  ASSERT_TRUE(workload.ok()) << workload.status();
  std::set<std::vector<TokenId>> prompts;
  for (uint32_t level = 0; level < 3; ++level)
    for (const bool is_warmup : {false, true})
      for (uint64_t i = 0; i < 500; ++i)
        prompts.insert(workload->Plan({.level = level, .is_warmup = is_warmup, .index = i}).prompt);
  EXPECT_EQ(prompts.size(), 3u * 2 * 500);
}

TEST(Workload, CancellationsFallInTheMiddleOfTheirShareOfAnswers) {
  constexpr int kRequests = 20'000;
  for (const double fraction : {0.0, 0.1, 1.0}) {
    const auto workload = Workload::Make(
        {.prompt_tokens = Lengths("2"), .output_tokens = Lengths("5"), .cancel_fraction = fraction},
        Vocabulary(), 0);
    int cancelled = 0;
    std::set<uint32_t> after;
    for (uint64_t i = 0; i < kRequests; ++i) {
      const PlannedRequest planned = workload->Plan({.index = i});
      if (!planned.cancel_after.has_value()) continue;
      ++cancelled;
      after.insert(*planned.cancel_after);
    }
    EXPECT_NEAR(cancelled, fraction * kRequests, 5 * std::sqrt(kRequests * fraction * (1 - fraction)));
    EXPECT_EQ(after, fraction > 0 ? std::set<uint32_t>({1, 2, 3, 4}) : std::set<uint32_t>());
  }
}

TEST(Workload, LogNormalLengthsAreCutToTheContextAndSaidToBe) {
  constexpr uint32_t kContext = 100;
  const auto workload = Workload::Make({.prompt_tokens = Lengths("lognormal:60,1"),
                                        .output_tokens = Lengths("lognormal:30,1"),
                                        .shared_prefix_tokens = 40},
                                       Vocabulary(), kContext);
  ASSERT_TRUE(workload.ok()) << workload.status();
  int cut = 0;
  for (uint64_t i = 0; i < 2000; ++i) {
    const PlannedRequest planned = workload->Plan({.index = i});
    ASSERT_GT(planned.prompt.size(), 40u);
    ASSERT_GE(planned.output_tokens, 1u);
    ASSERT_LE(planned.prompt.size() + planned.output_tokens, kContext);
    cut += planned.is_cut;
  }
  EXPECT_GT(cut, 0);
  EXPECT_LT(cut, 2000);
}

TEST(Workload, WhatCannotFitTheContextIsRefusedWithTheNumbers) {
  const WorkloadSettings settings{.prompt_tokens = Lengths("uniform:10-90"), .output_tokens = Lengths("20")};
  EXPECT_TRUE(Workload::Make(settings, Vocabulary(), 110).ok());
  const Status status = Workload::Make(settings, Vocabulary(), 109).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  for (const char* number : {"90", "20", "110", "109"})
    EXPECT_THAT(Message(status), testing::HasSubstr(number));
  EXPECT_FALSE(Workload::Make(settings, {7}, 200).ok());
}

}  // namespace
}  // namespace terrace
