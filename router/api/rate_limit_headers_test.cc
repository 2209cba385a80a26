#include "router/api/rate_limit_headers.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(RateLimitHeaders, DurationsAreWrittenAsOpenAiDoes) {
  const struct {
    double seconds;
    const char* text;
  } cases[] = {{0, "0s"},     {-1, "0s"},         {0.0001, "1ms"},  {0.02, "20ms"},      {0.9999, "1s"},
               {1, "1s"},     {1.5, "1.5s"},      {8.64, "8.64s"},  {12.005, "12.005s"}, {60, "1m0s"},
               {360, "6m0s"}, {61.25, "1m1.25s"}, {3600, "1h0m0s"}, {3661, "1h1m1s"},    {86400, "24h0m0s"}};
  for (const auto& c : cases) EXPECT_EQ(DurationText(c.seconds), c.text) << c.seconds;
}

TEST(RateLimitHeaders, OnlyLimitsThatThereAreHaveHeaders) {
  HttpHeaders none, all;
  AddRateLimits({}, none);
  EXPECT_THAT(none, IsEmpty());
  AddRateLimits({.tokens = RateLimit{.limit = 150'000, .remaining = 149'984, .reset_seconds = 0.006}}, all);
  EXPECT_THAT(all, ElementsAre(Pair("x-ratelimit-limit-tokens", "150000"),
                               Pair("x-ratelimit-remaining-tokens", "149984"),
                               Pair("x-ratelimit-reset-tokens", "6ms")));
  AddRateLimits({.requests = RateLimit{.limit = 60, .remaining = 59, .reset_seconds = 1}}, none);
  EXPECT_THAT(none, ElementsAre(Pair("x-ratelimit-limit-requests", "60"),
                                Pair("x-ratelimit-remaining-requests", "59"),
                                Pair("x-ratelimit-reset-requests", "1s")));
}

}  // namespace
}  // namespace terrace
