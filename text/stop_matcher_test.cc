#include "text/stop_matcher.h"

#include <random>

#include "gtest/gtest.h"

namespace terrace {
namespace {

struct Result {
  std::string text, matched;
  friend bool operator==(const Result&, const Result&) = default;
  friend void PrintTo(const Result& result, std::ostream* out) {
    *out << result.text << " | " << result.matched;
  }
};

// The definition, on the whole text: the match that ends first, of those the one that begins first.
Result Reference(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    for (size_t begin = 0; begin < end; ++begin) {
      for (const auto& stop : stops) {
        if (text.substr(begin, end - begin) == stop) return {text.substr(0, begin), stop};
      }
    }
  }
  return {text, ""};
}

TEST(StopMatcher, TheCutOfTheTextMakesNoDifference) {
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto word = [&](size_t length) {
      std::string text;
      for (size_t i = 0; i < length; ++i) text.push_back("ab\n"[random() % 3]);
      return text;
    };
    std::vector<std::string> stops(random() % 4);
    for (auto& stop : stops) stop = word(1 + random() % 6);
    const std::string text = word(random() % 40);

    StopMatcher matcher(stops);
    Result result;
    for (size_t at = 0; at < text.size();) {
      const size_t length = std::min(text.size() - at, 1 + random() % 5);
      result.text += matcher.Push(text.substr(at, length));
      at += length;
      if (matcher.stopped()) continue;
      // Held back is the longest end of the text that begins a stop string, and no more.
      size_t held = 0;
      for (const auto& stop : stops) {
        for (size_t n = 1; n < stop.size() && n <= at; ++n) {
          if (text.substr(at - n, n) == stop.substr(0, n)) held = std::max(held, n);
        }
      }
      ASSERT_EQ(result.text, text.substr(0, at - held));
    }
    result.text += matcher.Finish();
    result.matched = matcher.matched();
    ASSERT_EQ(result, Reference(stops, text));
  }
}

TEST(StopMatcher, OfMatchesThatEndTogetherTheLongestWins) {
  StopMatcher matcher({"b", "ab", "xab"});
  EXPECT_EQ(matcher.Push("zxab!"), "z");
  EXPECT_EQ(matcher.matched(), "xab");
  EXPECT_EQ(matcher.Push("more"), "");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcher, ShowsHeldTextOnceItCannotBeAStop) {
  StopMatcher matcher({"\n\nUser:"});
  EXPECT_EQ(matcher.Push("a\n"), "a");
  EXPECT_EQ(matcher.Push("\nUs"), "");
  EXPECT_EQ(matcher.Push("age"), "\n\nUsage");
  EXPECT_EQ(matcher.Push("\n"), "");
  EXPECT_EQ(matcher.Finish(), "\n");
  EXPECT_FALSE(matcher.stopped());
}

// Comparing anew at every byte would take 2^33 comparisons.
TEST(StopMatcher, DoesNotCompareTextAgain) {
  StopMatcher matcher({std::string(size_t{1} << 16, 'a') + "b"});
  std::string shown;
  for (int i = 0; i < (1 << 11); ++i) shown += matcher.Push(std::string(64, 'a'));
  EXPECT_EQ(shown.size(), size_t{1} << 16);
  EXPECT_EQ(matcher.Push("b"), "");
  EXPECT_TRUE(matcher.stopped());
}

}  // namespace
}  // namespace terrace
