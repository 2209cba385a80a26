#include <map>

#include "base/rng.h"
#include "gtest/gtest.h"
#include "worker/sample/sampler.h"

namespace terrace {
namespace {

TEST(TokenCounts, AreThoseOfAMapWhateverTheOrderOfCalls) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    TokenCounts counts;
    std::map<int32_t, uint32_t> want;
    for (uint64_t step = 0; step < 100; ++step) {
      const auto token = static_cast<int32_t>(RandomBits(seed, step) % 30);
      if (RandomBits(seed, step, 1) % 10 == 0) {
        const std::vector<int32_t> prompt = {token, token + 1, token};
        counts.AddPrompt(prompt);
        for (const int32_t each : prompt) want.try_emplace(each, 0);
      } else {
        counts.AddGenerated(token);
        ++want[token];
      }
    }
    ASSERT_EQ(counts.entries().size(), want.size());
    size_t i = 0;
    for (const auto& [token, generated] : want) {
      EXPECT_EQ(counts.entries()[i].token, token);
      EXPECT_EQ(counts.entries()[i].generated, generated);
      ++i;
    }
  }
}

}  // namespace
}  // namespace terrace
