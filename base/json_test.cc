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
               {"\"surrogate", "invalid_json"},
               {"[-Infinity]", "invalid_json"},
               {"\xEF\xBB\xBF{}", "invalid_json"},
               {std::string("{}\0{", 4), "invalid_json"},
               {"[01]", "invalid_json"},
               {"\"\n\"", "invalid_json"},
               {"\"\\ud800\"", "invalid_unicode"},
               {"\"\\ud800\\u0041\"", "invalid_unicode"},
               {"\"\\udc00\"", "invalid_unicode"},
               {"\"\xff\"", "invalid_unicode"},
               {"\"\xc0\xaf\"", "invalid_unicode"},
               {"\"\xed\xa0\x80\"", "invalid_unicode"},
               {std::string("\"a\0\"", 4), "invalid_unicode"},
               {"1e400", "invalid_value"},
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

TEST(ParseJson, ErrorsInsideTheDocumentHaveTheirPath) {
  const std::string long_key(300, 'k');
  const struct {
    std::string text, reason, path;
  } cases[] = {
      {R"({"a":1,"a":2})", "duplicate_key", "a"},
      {R"({"a":[{"b":1},[{"c":0},{"d":{"e":1,"f":2,"e":3}}]]})", "duplicate_key", "a[1][1].d.e"},
      {R"([[],{},"x",{"a":1e400}])", "invalid_value", "[3].a"},
      {R"({"x":{"y":1},"z":[1,2,1e999]})", "invalid_value", "z[2]"},
      {Concat("{\"", long_key, "\":1,\"", long_key, "\":2}"), "duplicate_key", ""},
      {"{", "invalid_json", ""},
  };
  for (const auto& c : cases) {
    const Status error = ParseJson(c.text).status();
    EXPECT_EQ(Reason(error), c.reason) << c.text;
    EXPECT_EQ(JsonPath(error), c.path) << c.text;
    EXPECT_LT(Message(error).size(), 100u) << "no long key is echoed";
  }
}

TEST(ParseJson, AnEscapedNulIsText) { EXPECT_EQ(*ParseJson("\"\\u0000\""), std::string(1, '\0')); }

TEST(ParseJson, KeysAreLimited) {
  EXPECT_TRUE(ParseJson(R"({"abc":1})", {.key_bytes = 3}).ok());
  EXPECT_EQ(Reason(ParseJson(R"({"abcd":1})", {.key_bytes = 3}).status()), "json_limit");
}

TEST(ToJsonText, ReplacesInvalidUtf8) { EXPECT_EQ(ToJsonText("a\xff"), "\"a\xef\xbf\xbd\""); }

}  // namespace
}  // namespace terrace
