#include "tools/quality/lookup_probe.h"

#include <algorithm>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

StatusOr<size_t> Words(const std::string& prompt) {
  return 1 + static_cast<size_t>(std::ranges::count(prompt, ' '));
}

TEST(LookupProbe, EachPromptHoldsItsAnswerOnceAtItsDepth) {
  const auto probe = MakeLookupProbe({.longest = 400, .repeats = 3, .seed = 7}, Words);
  ASSERT_TRUE(probe.ok()) << probe.status();
  ASSERT_EQ(probe->size(), size_t{kProbeLengths} * kProbeDepths * 3);
  for (const ProbePrompt& each : *probe) {
    const size_t question = each.prompt.find("\nAsked: In which city is order ");
    ASSERT_NE(question, std::string::npos);
    const std::string order = each.prompt.substr(each.prompt.size() - 7, 6);
    const std::string fact = Concat("order ", order, " in ", each.expected, ".");
    const size_t at = each.prompt.find(fact);
    ASSERT_NE(at, std::string::npos) << each.prompt;
    EXPECT_EQ(each.prompt.find(order), at + 6);
    EXPECT_EQ(each.prompt.find(order, at + 7), each.prompt.size() - 7) << "nowhere else";
    EXPECT_NEAR(static_cast<double>(at) / static_cast<double>(question), each.depth / (kProbeDepths - 1.0),
                0.3);
    EXPECT_TRUE(each.depth > 0 || at < 40) << each.prompt;
    EXPECT_TRUE(each.depth < kProbeDepths - 1 || at + 60 > question) << each.prompt;
  }
}

TEST(LookupProbe, PromptsAreAsLongAsTheyMayBe) {
  const auto probe = MakeLookupProbe({.longest = 400, .repeats = 1, .seed = 8}, Words);
  ASSERT_TRUE(probe.ok()) << probe.status();
  for (const ProbePrompt& each : *probe) {
    const size_t words = Words(each.prompt).value(), limit = 100 * each.quarters;
    EXPECT_LE(words, limit);
    EXPECT_GT(words + 6, limit) << "another fact has six words";
  }
}

TEST(LookupProbe, TheSeedDecidesAll) {
  const ProbeOptions options = {.longest = 200, .repeats = 2, .seed = 1};
  const auto first = MakeLookupProbe(options, Words).value(), again = MakeLookupProbe(options, Words).value();
  std::set<std::string> prompts;
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i].prompt, again[i].prompt);
    EXPECT_TRUE(prompts.insert(first[i].prompt).second) << "each is another";
  }
  EXPECT_NE(MakeLookupProbe({.longest = 200, .repeats = 2, .seed = 2}, Words).value()[0].prompt,
            first[0].prompt);
}

TEST(LookupProbe, AContextThatHoldsNoFactIsAnError) {
  const Status status = MakeLookupProbe({.longest = 40, .repeats = 1}, Words).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("10 tokens"));
  const CountTokens fails = [](const std::string&) -> StatusOr<size_t> {
    return Unavailable("no tokenizer");
  };
  EXPECT_EQ(MakeLookupProbe({.longest = 400, .repeats = 1}, fails).status(), Unavailable("no tokenizer"));
}

}  // namespace
}  // namespace terrace
