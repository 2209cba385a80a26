#include "tools/plan/trace_file.h"

#include <string>

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::HasSubstr;

TEST(ParseTrace, ReadsRequestsAndCountsTimeFromTheFirst) {
  const auto trace = ParseTrace(R"({"arrival": 1000.5, "prompt_tokens": 10, "output_tokens": 3}
{"arrival": 1000.5, "prompt_tokens": 900, "output_tokens": 1, "prefix": "a", "prefix_tokens": 600}
{"arrival": 1002, "prompt_tokens": 700, "output_tokens": 64, "prefix": "a", "prefix_tokens": 600}
)",
                                "t.jsonl");
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->size(), 3u);
  EXPECT_EQ((*trace)[0].arrival_seconds, 0);
  EXPECT_EQ((*trace)[0].prompt_tokens, 10u);
  EXPECT_EQ((*trace)[0].output_tokens, 3u);
  EXPECT_EQ((*trace)[0].prefix_tokens, 0u);
  EXPECT_EQ((*trace)[1].arrival_seconds, 0);
  EXPECT_EQ((*trace)[2].arrival_seconds, 1.5);
  EXPECT_EQ((*trace)[2].prefix, "a");
  EXPECT_EQ((*trace)[2].prefix_tokens, 600u);
}

TEST(ParseTrace, TheLastLineNeedsNoEnd) {
  EXPECT_EQ(ParseTrace(R"({"arrival": -3, "prompt_tokens": 1, "output_tokens": 1})", "t").value().size(), 1u);
}

TEST(ParseTrace, SkipsEmptyLines) {
  const std::string line = R"({"arrival": 1, "prompt_tokens": 1, "output_tokens": 1})";
  EXPECT_EQ(ParseTrace(Concat("\n", line, "\n\r\n", line, "\n\n"), "t").value().size(), 2u);
}

TEST(ParseTrace, RefusesWhatIsNoRequestWithItsLine) {
  const std::string good = R"({"arrival": 1, "prompt_tokens": 9, "output_tokens": 3})";
  const std::string shared =
      R"({"arrival": 1, "prompt_tokens": 9, "output_tokens": 3, "prefix": "p", "prefix_tokens": 4})";
  const std::pair<std::string, const char*> cases[] = {
      {"", "t.jsonl: no request"},
      {"\n \r\n", "t.jsonl: no request"},
      {good + "\n\n[]", "t.jsonl:3: not a JSON object"},
      {good + "\n[]", "t.jsonl:2: not a JSON object"},
      {R"({"arrival": 1, "prompt_tokens": 9})", "t.jsonl:1: \"output_tokens\""},
      {R"({"arrival": 1, "prompt_tokens": 0, "output_tokens": 3})",
       "prompt_tokens is 0, not in [1, 1048576]"},
      {R"({"arrival": 1, "prompt_tokens": 9, "output_tokens": 1048577})", "output_tokens is 1048577"},
      {R"({"arrival": 1e11, "prompt_tokens": 9, "output_tokens": 3})", "arrival is"},
      {R"({"arrival": 1, "prompt_tokens": 9, "output_tokens": 3, "user": 7})", "unknown member \"user\""},
      {R"({"arrival": 1, "prompt_tokens": 9, "output_tokens": 3, "prefix_tokens": 4})",
       "unknown member \"prefix_tokens\""},
      {R"({"arrival": 1, "prompt_tokens": 9, "output_tokens": 3, "prefix": "p"})", "\"prefix_tokens\""},
      {R"({"arrival": 1, "prompt_tokens": 9, "output_tokens": 3, "prefix": "p", "prefix_tokens": 9})",
       "prefix_tokens is 9, not in [1, 8]"},
      {R"({"arrival": 1, "prompt_tokens": 9, "output_tokens": 3, "prefix": "p", "prefix_tokens": 0})",
       "prefix_tokens is 0"},
      {good + "\n" + R"({"arrival": 0.5, "prompt_tokens": 9, "output_tokens": 3})",
       "t.jsonl:2: arrives 0.5 s before the request above it"},
      {shared + "\n" +
           R"({"arrival": 1, "prompt_tokens": 9, "output_tokens": 3, "prefix": "p", "prefix_tokens": 5})",
       "t.jsonl:2: the prefix \"p\" has 5 tokens, and 4 above"},
  };
  for (const auto& [text, error] : cases) {
    const Status status = ParseTrace(text, "t.jsonl").status();
    EXPECT_EQ(ExitCodeFor(status), kExitData) << text;
    EXPECT_THAT(Message(status), HasSubstr(error));
  }
}

}  // namespace
}  // namespace terrace
