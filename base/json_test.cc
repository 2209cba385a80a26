#include "base/json.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <random>
#include <string>
#include <string_view>

#include "base/json_fast_path.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using namespace std::string_view_literals;

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

TEST(StringMember, IsThatStringOrAnErrorThatNamesIt) {
  const Json object = {{"a", "text"}, {"b", ""}, {"c", 1}, {"d", nullptr}};
  EXPECT_EQ(StringMember(object, "a").value(), "text");
  EXPECT_EQ(StringMember(object, "b").value(), "");
  for (const char* const key : {"c", "d", "e"}) {
    const Status error = StringMember(object, key).status();
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Message(error), Concat("\"", key, "\" is not a string"));
  }
}

TEST(OrNull, IsTheValueInItsOwnTypeOrNull) {
  EXPECT_EQ(ToJsonText(OrNull(std::optional(0.0))), "0.0") << "none is not zero";
  EXPECT_EQ(ToJsonText(OrNull(std::optional(uint64_t{3}))), "3");
  EXPECT_EQ(ToJsonText(OrNull(std::optional(std::string()))), "\"\"");
  EXPECT_EQ(ToJsonText(OrNull(std::optional<double>())), "null");
}

TEST(ToJsonText, ReplacesInvalidUtf8) { EXPECT_EQ(ToJsonText("a\xff"), "\"a\xef\xbf\xbd\""); }

// ---- What is read fast is what the library reads.

// `text`, or another spelling of the same: blanks, escapes.
std::string Respelled(std::string_view text, std::mt19937_64& random) {
  std::string out;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\') {
      const size_t length = text[i + 1] == 'u' ? 6 : 2;
      out += text.substr(i, length);
      i += length - 1;
      continue;
    }
    if (c == '"') in_string = !in_string;
    const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (in_string && is_letter && random() % 4 == 0) {
      char code[16];
      std::snprintf(code, sizeof(code), random() % 2 == 0 ? "\\u%04x" : "\\u%04X", static_cast<unsigned>(c));
      out += code;
    } else {
      out += c;
    }
    const bool is_between = c == ',' || c == ':' || c == '[' || c == '{';
    if (!in_string && is_between && random() % 2 == 0) out += " \n\r\t"[random() % 4];
  }
  return out;
}

std::string RandomString(std::mt19937_64& random) {
  constexpr std::string_view kParts[] = {"a",      "plain text", "\"",     "\\",       "/",    "\n",
                                         "\x01",   "\x7F",       "é",      "中文",     "🙂", "\u07FF",
                                         "\uFFFF", "{",          "[\"x\"", "\t\b\f\r", " ",    "\u0080"};
  std::string out;
  for (size_t count = random() % 12; count > 0; --count) out += kParts[random() % std::size(kParts)];
  return out;
}

Json RandomValue(std::mt19937_64& random, int depth) {
  switch (random() % (depth > 0 ? 9 : 7)) {
    case 0:
      return nullptr;
    case 1:
      return random() % 2 == 0;
    case 2:
      return random() >> random() % 64;
    case 3:
      return -static_cast<int64_t>((random() >> 1) >> random() % 63);
    case 4:
      return std::ldexp(static_cast<double>(random() % 1'000'000) - 500'000,
                        static_cast<int>(random() % 80) - 40);
    case 5:
    case 6:
      return RandomString(random);
    case 7: {
      Json out = Json::array();
      for (size_t count = random() % 5; count > 0; --count) out.push_back(RandomValue(random, depth - 1));
      return out;
    }
    default: {
      Json out = Json::object();
      for (size_t count = random() % 5; count > 0; --count)
        out[RandomString(random)] = RandomValue(random, depth - 1);
      return out;
    }
  }
}

// Equal, and of the same types, so that 1 is not 1.0.
void ExpectSame(const Json& a, const Json& b) {
  EXPECT_EQ(a.type(), b.type());
  EXPECT_EQ(a, b);
  EXPECT_EQ(a.dump(), b.dump());
}

TEST(ReadJsonFast, ReadsWhatTheLibraryReads) {
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const Json value = RandomValue(random, 4);
    const std::string text = Respelled(value.dump(random() % 2 == 0 ? -1 : 2), random);
    const auto read = ReadJsonFast(text, {});
    ASSERT_TRUE(read.has_value()) << text;
    ExpectSame(*read, Json::parse(text));
  }
  for (const char* number : {"0", "-0", "-0.0", "1e5", "1E+5", "0.1e-7", "18446744073709551615",
                             "-9223372036854775808", "1.7976931348623157e308", "123456789.123456789"}) {
    const auto read = ReadJsonFast(number, {});
    ASSERT_TRUE(read.has_value()) << number;
    ExpectSame(*read, Json::parse(number));
  }
}

// Of a document with an error it may say nothing, and never that it is in order.
TEST(ReadJsonFast, TakesNothingThatTheLibraryRefuses) {
  int taken = 0;
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    std::string text = RandomValue(random, 3).dump();
    for (size_t edits = 1 + random() % 3; edits > 0 && !text.empty(); --edits) {
      const size_t at = random() % text.size();
      constexpr std::string_view kBytes = "\"\\{}[]:,0-.eE+u\x00\x1F\x80\xC3\xE4\xED\xF4\xFF tfn"sv;
      if (random() % 3 == 0) {
        text.erase(at, 1);
      } else {
        text[at] = kBytes[random() % kBytes.size()];
      }
    }
    const auto read = ReadJsonFast(text, {});
    if (!read.has_value()) continue;
    ++taken;
    ASSERT_TRUE(Json::accept(text)) << text;
    ExpectSame(*read, Json::parse(text));
  }
  EXPECT_GT(taken, 100);
}

TEST(ReadJsonFast, LeavesWhatIsPastALimitOrTwice) {
  EXPECT_FALSE(ReadJsonFast(R"({"a":1,"a":2})", {}).has_value());
  EXPECT_FALSE(ReadJsonFast("[[[1]]]", {.depth = 2}).has_value());
  EXPECT_TRUE(ReadJsonFast("[[[1]]]", {.depth = 3}).has_value());
  EXPECT_FALSE(ReadJsonFast(R"({"a":[1]})", {.nodes = 3}).has_value());
  EXPECT_TRUE(ReadJsonFast(R"({"a":[1]})", {.nodes = 4}).has_value());
  EXPECT_FALSE(ReadJsonFast(R"({"abcd":1})", {.key_bytes = 3}).has_value());
  EXPECT_FALSE(ReadJsonFast(std::string(100'000, '['), {.depth = 1'000'000}).has_value());
  for (const char* text :
       {"", " ", "18446744073709551616", "1e400", "\xEF\xBB\xBF{}", "1 2", "[1,]", "01", "+1", ".5", "1.",
        "nul", "\"\\ud800\"", "\"\\udc00\\ud800\"", "\"\\u12g4\"", "\"\\x\""})
    EXPECT_FALSE(ReadJsonFast(text, {}).has_value()) << text;
}

// Each byte that ends a run of plain ones, at every place of the eight that are looked at together.
TEST(ReadJsonFast, FindsTheEndOfARunAtAnyPlace) {
  for (size_t before = 0; before < 20; ++before) {
    for (const std::string_view special : {"\\n", "é", "\\\\", "\\\"", "中"}) {
      const std::string text =
          Concat("[\"", std::string(before, '!'), special, std::string(20, '~'), "\",\"", special, "\"]");
      const auto read = ReadJsonFast(text, {});
      ASSERT_TRUE(read.has_value()) << text;
      EXPECT_EQ(*read, Json::parse(text));
    }
    for (int c = 0; c < 0x20; ++c) {
      const std::string text = Concat("\"", std::string(before, '!'), static_cast<char>(c), "~~~~~~~~\"");
      EXPECT_FALSE(ReadJsonFast(text, {}).has_value()) << c;
    }
  }
}

TEST(FindJsonMember, GivesTheTextOfAMemberOfTheOutermostObject) {
  const std::string object =
      R"({"x":{"tools":1}, "y":["tools"], "z":"tools", "tools" : [{"a":"},]\""}, 2] ,"end":"\\"})";
  EXPECT_EQ(FindJsonMember(object, "tools"), R"( [{"a":"},]\""}, 2] )");
  EXPECT_EQ(FindJsonMember(object, "end"), R"("\\")");
  EXPECT_EQ(FindJsonMember(object, "a"), "");
  EXPECT_EQ(FindJsonMember("{}", "a"), "");
  EXPECT_EQ(FindJsonMember(R"(["a"])", "a"), "");
  EXPECT_EQ(FindJsonMember(R"({"\u0061":1})", "a"), "") << "escaped";
  for (uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    Json value = Json::object();
    for (int i = 0; i < 4; ++i) value[RandomString(random)] = RandomValue(random, 3);
    value["tools"] = RandomValue(random, 3);
    EXPECT_EQ(Json::parse(FindJsonMember(value.dump(random() % 2 == 0 ? -1 : 2), "tools")), value["tools"]);
  }
}

TEST(AppendJsonString, WritesWhatTheLibraryWrites) {
  const auto library = [](const Json& value) {
    return value.dump(-1, ' ', false, Json::error_handler_t::replace);
  };
  for (int c = 0; c < 256; ++c) {
    for (const std::string& text :
         {std::string(1, static_cast<char>(c)), Concat("ab", static_cast<char>(c), "c")}) {
      std::string out = "x";
      AppendJsonString(text, out);
      EXPECT_EQ(out, "x" + library(text)) << c;
    }
  }
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const Json value = RandomValue(random, 2);
    ASSERT_EQ(ToJsonText(value), library(value));
    std::string text = RandomString(random);
    if (!text.empty()) text[random() % text.size()] = static_cast<char>(random());  // perhaps no UTF-8
    ASSERT_EQ(ToJsonText(text), library(text));
  }
}

}  // namespace
}  // namespace terrace
