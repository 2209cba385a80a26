#include "text/tool_calls.h"

#include <array>
#include <random>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "text/testing_text.h"

namespace terrace {
namespace {

using enum ToolCallFormat;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

const std::vector<Tool> kTools = {{.name = "add"}, {.name = "now"}};

struct Parsed {
  std::string content;
  std::vector<std::string> calls;  // name, then arguments

  void Add(const ToolCallParser::Piece& piece) {
    content += piece.content;
    for (const ToolCall& call : piece.calls) calls.push_back(call.name + call.arguments);
  }
  friend bool operator==(const Parsed&, const Parsed&) = default;
};

// `cuts` of the text, sorted.
Parsed ParseInPieces(ToolCallFormat format, std::string_view text, const std::vector<size_t>& cuts,
                     size_t max_calls = SIZE_MAX) {
  ToolCallParser parser(format, kTools, max_calls);
  Parsed parsed;
  size_t begin = 0;
  for (const size_t cut : cuts) {
    parsed.Add(parser.Push(text.substr(begin, cut - begin)));
    begin = cut;
  }
  parsed.Add(parser.Push(text.substr(begin)));
  parsed.Add(parser.Finish());
  EXPECT_EQ(parser.calls(), parsed.calls.size());
  return parsed;
}

Parsed Parse(ToolCallFormat format, std::string_view text, size_t max_calls = SIZE_MAX) {
  return ParseInPieces(format, text, {}, max_calls);
}

constexpr char kAdd[] = R"({"name": "add", "arguments": {"b": 1, "a": [2.50, "}</tool_call>\""]}})";
constexpr char kAdded[] = R"(add{"b": 1, "a": [2.50, "}</tool_call>\""]})";
constexpr char kNow[] = R"({"name":"now"})";

TEST(ToolCalls, EachFormatsCallsAreTakenOutOfTheText) {
  const struct {
    ToolCallFormat format;
    std::string text, content;
    std::vector<std::string> calls;
  } cases[] = {
      {kHermes, Concat("<tool_call>\n", kAdd, "\n</tool_call>"), "", {kAdded}},
      {kHermes,
       Concat("Let me see.\n\n<tool_call>", kAdd, "</tool_call>\n<tool_call>\n", kNow, "\n</tool_call>\n"),
       "Let me see.",
       {kAdded, "now{}"}},
      {kHermes, Concat("<tool_call>", kNow, "<tool_call>", kNow), "", {"now{}", "now{}"}},
      {kHermes, Concat("<tool_call>", kNow, "</tool_call> done"), " done", {"now{}"}},
      {kMistral, Concat("[TOOL_CALLS] [", kAdd, ", ", kNow, "]"), "", {kAdded, "now{}"}},
      {kMistral, Concat("[TOOL_CALLS][", kNow, "]"), "", {"now{}"}},
      {kLlama, R"({"name": "add", "parameters": {"a": 1}})", "", {R"(add{"a": 1})"}},
      {kLlama, Concat(" <|python_tag|>", kNow, "; ", kAdd, " "), "", {"now{}", kAdded}},
      {kLlama, Concat("First\n<|python_tag|>", kNow), "First", {"now{}"}},
  };
  for (const auto& c : cases) {
    const Parsed parsed = Parse(c.format, c.text);
    EXPECT_EQ(parsed.content, c.content) << c.text;
    EXPECT_EQ(parsed.calls, c.calls) << c.text;
  }
}

TEST(ToolCalls, WhatIsNoCallIsContentToTheByte) {
  const std::pair<ToolCallFormat, std::string> texts[] = {
      {kHermes, "plain text "},
      {kHermes, "a < b <tool <tool_call"},
      {kHermes, "<tool_call>"},
      {kHermes, "<tool_call>\n  "},
      {kHermes, "<tool_call>no JSON</tool_call>"},
      {kHermes, "<tool_call>{\"name\": \"add\""},
      {kHermes, "<tool_call>{\"name\": \"add\", \"arguments\": 5}</tool_call>"},
      {kHermes, "<tool_call>{\"name\": \"rm\", \"arguments\": {}}</tool_call>"},
      {kHermes, "<tool_call>{\"name\": [\"add\"]}</tool_call>"},
      {kHermes, "<tool_call>{\"name\": \"add\", \"name\": \"add\"}</tool_call>"},
      {kHermes, "<tool_call>{\"name\": \"add\"]</tool_call>"},
      {kHermes, "<tool_call>{\"name\": \"add\n\"}</tool_call>"},
      {kHermes, "<tool_call>{}</tool_call>"},
      {kHermes, kNow},
      {kMistral, "[TOOL_CALLS][]"},
      {kMistral, Concat("[TOOL_CALLS] ", kNow)},
      {kMistral, Concat("[TOOL_CALLS][", kNow, ", 5]")},
      {kMistral, Concat("[", kNow, "]")},
      {kLlama, "  \n"},
      {kLlama, R"({"answer": 42, "name": "Bob"})"},
      {kLlama, "{ return 5; }"},
      {kLlama, Concat("Call ", kNow)},
      {kLlama, "; {"},
      {kLlama, Concat("[", kNow, "]")},
  };
  for (const auto& [format, text] : texts) {
    const Parsed parsed = Parse(format, text);
    EXPECT_EQ(parsed.content, text);
    EXPECT_THAT(parsed.calls, IsEmpty()) << text;
  }
}

TEST(ToolCalls, AMalformedCallDoesNotHideTheNext) {
  const Parsed parsed = Parse(kHermes, Concat("<tool_call><tool_call>{\"x<tool_call>\n<tool_call>", kNow));
  EXPECT_EQ(parsed.content, "<tool_call><tool_call>{\"x<tool_call>");
  EXPECT_THAT(parsed.calls, ElementsAre("now{}"));
}

TEST(ToolCalls, NothingFollowsTheLastCallThatIsWanted) {
  const Parsed one =
      Parse(kHermes, Concat("a<tool_call>", kNow, "</tool_call>b<tool_call>", kNow, "</tool_call>"), 1);
  EXPECT_EQ(one.content, "a");
  EXPECT_EQ(one.calls.size(), 1u);
  EXPECT_EQ(Parse(kMistral, Concat("[TOOL_CALLS][", kNow, ",", kNow, "]"), 1).calls.size(), 1u);
  EXPECT_EQ(Parse(kLlama, Concat(kNow, ";", kNow), 1).calls.size(), 1u);
}

TEST(ToolCalls, ACallIsGivenOnceItIsWholeAndTextAsSoonAsItIsNone) {
  ToolCallParser parser(kHermes, kTools);
  EXPECT_EQ(parser.Push("Hi <").content, "Hi") << "what may begin a call waits";
  EXPECT_EQ(parser.Push("b").content, " <b");
  EXPECT_EQ(parser.Push("<tool_call>{\"name\":\"now\"").content, "");
  EXPECT_EQ(parser.Push("}").calls.size(), 1u) << "before the mark of the end";
}

// Text that is full of what the parser looks for.
std::string RandomAnswer(std::mt19937_64& random) {
  const std::string pieces[] = {"<tool_call>",
                                "</tool_call>",
                                "[TOOL_CALLS]",
                                "<|python_tag|>",
                                kAdd,
                                kNow,
                                "[",
                                "]",
                                "{",
                                "}",
                                "\"",
                                "\\",
                                " ",
                                "\n",
                                ";",
                                ",",
                                "<",
                                "text",
                                "\xc3\xa9",
                                R"([{"name":"now"}])"};
  std::string text;
  const size_t count = random() % 12;
  for (size_t i = 0; i < count; ++i) text += pieces[random() % std::size(pieces)];
  return random() % 4 == 0 ? Mutate(text, random) : text;
}

TEST(ToolCalls, HoweverATextIsCutContentAndCallsAreTheSame) {
  int with_calls = 0;
  for (uint64_t seed = 0; seed < 6000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const ToolCallFormat format = std::array{kHermes, kMistral, kLlama}[seed % 3];
    const std::string text = RandomAnswer(random);
    const Parsed whole = Parse(format, text);
    std::vector<size_t> every, some;
    for (size_t i = 1; i < text.size(); ++i) {
      every.push_back(i);
      if (random() % 5 == 0) some.push_back(i);
    }
    ASSERT_EQ(ParseInPieces(format, text, every), whole) << text;
    ASSERT_EQ(ParseInPieces(format, text, some), whole) << text;
    with_calls += whole.calls.empty() ? 0 : 1;
    if (whole.calls.empty()) {
      ASSERT_EQ(whole.content, text);
    }
  }
  EXPECT_GT(with_calls, 150);
}

TEST(ToolCalls, TextBetweenCallsIsKept) {
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    std::string text, content;
    size_t calls = 0;
    for (size_t i = random() % 6; i > 0; --i) {
      if (random() % 2 == 0) {
        const std::string words = "x" + RandomText(random, random() % 5, /*broken=*/false) + "y";
        text += words;
        content += words;
      } else {
        text += Concat(random() % 2 == 0 ? "\n" : "", "<tool_call>", random() % 2 == 0 ? kAdd : kNow,
                       "\n</tool_call>");
        ++calls;
      }
    }
    const Parsed parsed = Parse(kHermes, text);
    EXPECT_EQ(parsed.content, content) << text;
    EXPECT_EQ(parsed.calls.size(), calls) << text;
  }
}

// A quadratic parser would need hours.
TEST(ToolCalls, HostileAnswersTakeLinearTime) {
  constexpr size_t kBytes = size_t{1} << 20;
  for (const ToolCallFormat format : {kHermes, kMistral, kLlama}) {
    for (const std::string part :
         {"{", "[", "{\"", "<tool_call>", "<tool_call>{", "<tool_call>{\"a\":\"", "[TOOL_CALLS][", "\\\"",
          "<|python_tag|>{\"", " ", ";", "<", "{}", "<tool_call>{}", "[TOOL_CALLS][{}"}) {
      std::string text;
      while (text.size() < kBytes) text += part;
      const Parsed parsed = Parse(format, text);
      EXPECT_EQ(parsed.content, text) << part;
      EXPECT_THAT(parsed.calls, IsEmpty());
    }
  }
}

TEST(ToolCalls, TheFormatIsReadOffTheTemplate) {
  EXPECT_EQ(DetectToolCallFormat("{{ '<tool_call>' }}"), kHermes);
  EXPECT_EQ(DetectToolCallFormat("{{ '[TOOL_CALLS] [' }}"), kMistral);
  EXPECT_EQ(DetectToolCallFormat("{{ '\"parameters\": ' }}"), kLlama);
  EXPECT_EQ(DetectToolCallFormat("{{ '<|python_tag|>' }}"), kLlama);
  EXPECT_EQ(DetectToolCallFormat("{{ '<tool_call><function=f>' }}"), kNone);
  EXPECT_EQ(DetectToolCallFormat("{{ messages }}"), kNone);
  EXPECT_TRUE(IsToolCallMark(kMistral, "[TOOL_CALLS]"));
  EXPECT_FALSE(IsToolCallMark(kMistral, "<tool_call>"));
  EXPECT_FALSE(IsToolCallMark(kNone, ""));
}

}  // namespace
}  // namespace terrace
