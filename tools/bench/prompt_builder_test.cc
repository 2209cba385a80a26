#include "tools/bench/prompt_builder.h"

#include <cmath>
#include <map>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using Tokens = std::vector<TokenId>;

Tokens Vocabulary(TokenId size) {
  Tokens ids;
  for (TokenId i = 0; i < size; ++i) ids.push_back(5 + 3 * i);
  return ids;
}

Tokens Head(const Tokens& tokens, size_t count) { return Tokens(tokens.begin(), tokens.begin() + count); }
Tokens Tail(const Tokens& tokens, size_t from) { return Tokens(tokens.begin() + from, tokens.end()); }

TEST(PromptBuilder, PromptsHaveTheirLengthAndIdsOfTheVocabularyOnly) {
  const Tokens vocabulary = Vocabulary(100);
  const std::set<TokenId> allowed(vocabulary.begin(), vocabulary.end());
  const PromptBuilder builder({.shared_prefix_tokens = 3, .prefix_groups = 4, .seed = 1}, vocabulary);
  std::set<TokenId> seen;
  for (uint32_t length : {4, 5, 17, 4000}) {
    for (uint64_t request = 0; request < 20; ++request) {
      const Tokens prompt = builder.Build(request, 0, length);
      EXPECT_EQ(prompt.size(), length);
      for (const TokenId id : prompt) ASSERT_TRUE(allowed.contains(id)) << id;
      seen.insert(prompt.begin(), prompt.end());
    }
  }
  EXPECT_EQ(seen, allowed);
}

TEST(PromptBuilder, APrefixIsSharedByItsGroupAndByNobodyElse) {
  constexpr uint32_t kPrefix = 20, kGroups = 5;
  const PromptBuilder builder({.shared_prefix_tokens = kPrefix, .prefix_groups = kGroups, .seed = 9},
                              Vocabulary(500));
  std::map<uint32_t, std::set<Tokens>> prefixes;
  std::set<Tokens> all;
  for (uint64_t request = 0; request < 300; ++request) {
    const Tokens prefix = Head(builder.Build(request, /*generation=*/2, 64), kPrefix);
    prefixes[builder.GroupOf(request)].insert(prefix);
    all.insert(prefix);
  }
  EXPECT_EQ(prefixes.size(), kGroups);
  EXPECT_EQ(all.size(), kGroups);
  for (const auto& [group, found] : prefixes) EXPECT_EQ(found.size(), 1u) << group;
  EXPECT_FALSE(all.contains(Head(builder.Build(0, /*generation=*/3, 64), kPrefix)));
}

TEST(PromptBuilder, NoTwoPromptsGoOnAlikeAfterThePrefix) {
  for (const TokenId size : {2, 7, 1000}) {
    SCOPED_TRACE(size);
    const PromptBuilder builder({.shared_prefix_tokens = 4, .prefix_groups = 1, .seed = 2}, Vocabulary(size));
    const uint32_t unique = builder.unique_tokens();
    EXPECT_GE(std::pow(size, unique) * 1.001, static_cast<double>(PromptBuilder::kMaxRequests));
    std::set<Tokens> suffixes;
    size_t count = 0;
    for (uint64_t base : {uint64_t{0}, uint64_t{1} << 32, uint64_t{5} << 33}) {
      for (uint64_t i = 0; i < 2000; ++i, ++count)
        suffixes.insert(Tail(builder.Build(base + i, 0, 4 + unique), 4));
    }
    EXPECT_EQ(suffixes.size(), count);
  }
}

TEST(PromptBuilder, PromptsAreDeterministicBySeed) {
  const auto build = [](uint64_t seed) {
    return PromptBuilder({.shared_prefix_tokens = 10, .prefix_groups = 3, .seed = seed}, Vocabulary(300))
        .Build(17, 1, 200);
  };
  EXPECT_EQ(build(1), build(1));
  EXPECT_NE(build(1), build(2));
}

TEST(PromptBuilder, GroupsAreDrawnAlikeOrByZipf) {
  constexpr int kRequests = 60'000, kGroups = 8;
  for (const double exponent : {0.0, 1.0, 2.0}) {
    SCOPED_TRACE(exponent);
    const PromptBuilder builder(
        {.shared_prefix_tokens = 1, .prefix_groups = kGroups, .prefix_zipf = exponent, .seed = 4},
        Vocabulary(50));
    std::vector<int> counts(kGroups);
    for (int request = 0; request < kRequests; ++request) ++counts[builder.GroupOf(request)];
    double sum = 0;
    for (int k = 1; k <= kGroups; ++k) sum += std::pow(k, -exponent);
    for (int k = 1; k <= kGroups; ++k) {
      const double share = std::pow(k, -exponent) / sum;
      EXPECT_NEAR(counts[k - 1], kRequests * share, 5 * std::sqrt(kRequests * share * (1 - share))) << k;
    }
  }
}

}  // namespace
}  // namespace terrace
