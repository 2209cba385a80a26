#include "base/json.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(ParseJson, RefusesWhatIsNotStrictJson) {
  const struct {
    std::string text;
    std::string_view reason;
  } cases[] = {{"", "invalid_json"},
               {"{\"a\":1,}", "invalid_json"},
               {"{} {}", "invalid_json"},
               {"NaN", "invalid_json"},
               {"\"\\ud800\"", "invalid_json"},
               {"\"\xff\"", "invalid_json"},
               {"1e400", "invalid_json"},
               {"{\"a\":1,\"a\":2}", "duplicate_key"},
               {"{\"x\":{\"a\":1},\"y\":{\"a\":2},\"x\":0}", "duplicate_key"},
               {std::string(100'000, '['), "json_limit"}};
  for (const auto& c : cases) {
    const auto parsed = ParseJson(c.text);
    ASSERT_FALSE(parsed.ok()) << c.text.substr(0, 40);
    EXPECT_EQ(Reason(parsed.status()), c.reason) << c.text.substr(0, 40);
  }
}

TEST(ParseJson, CountsDepthOutsideStringsOnly) {
  EXPECT_TRUE(ParseJson("\"[[[[[[\\\"[[[[\"", {.depth = 1}).ok());
  EXPECT_TRUE(ParseJson("[[1],[2]]", {.depth = 2}).ok());
  EXPECT_FALSE(ParseJson("[[[1]]]", {.depth = 2}).ok());
}

TEST(ParseJson, StopsAtTheNodeLimit) {
  EXPECT_TRUE(ParseJson("[1,2,3]", {.nodes = 4}).ok());
  EXPECT_EQ(Reason(ParseJson("[1,2,3,4,5]", {.nodes = 4}).status()), "json_limit");
}

TEST(ToJsonText, ReplacesInvalidUtf8) { EXPECT_EQ(ToJsonText("a\xff"), "\"a\xef\xbf\xbd\""); }

}  // namespace
}  // namespace terrace
