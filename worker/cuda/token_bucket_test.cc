#include "worker/cuda/token_bucket.h"

#include <set>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr uint32_t kMost = 5000;

TEST(TokenBucket, HoldsTheTokensAndLessThanAQuarterMore) {
  for (uint32_t tokens = 1; tokens <= kMost; ++tokens) {
    const uint32_t bucket = TokenBucket(tokens);
    EXPECT_GE(bucket, tokens);
    EXPECT_LT(4 * (bucket - tokens), tokens) << tokens;
  }
}

TEST(TokenBucket, RisesAndIsItsOwn) {
  for (uint32_t tokens = 1; tokens <= kMost; ++tokens) {
    EXPECT_LE(TokenBucket(tokens), TokenBucket(tokens + 1));
    EXPECT_EQ(TokenBucket(TokenBucket(tokens)), TokenBucket(tokens)) << tokens;
  }
}

TEST(TokenBucket, ThereAreFew) {
  std::set<uint32_t> buckets;
  for (uint32_t tokens = 1; tokens <= 512; ++tokens) buckets.insert(TokenBucket(tokens));
  EXPECT_EQ(buckets.size(), 8u + 4 * 6);  // to 8, and four of each doubling to 512
}

}  // namespace
}  // namespace terrace
