#include "base/http_head.h"

#include "base/status.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr HttpHeadCheck::Limits kLimits = {
    .max_bytes = 400, .max_target_bytes = 20, .max_fields = 3, .max_field_bytes = 380};

TEST(HttpHeadCheck, IsCompleteAtTheEmptyLineHoweverTheBytesCome) {
  const std::string head = "POST /path HTTP/1.1\r\nHost: x\r\nX-Empty:\r\nX-Tab: a\tb \xc3\xa9\r\n\r\n";
  for (size_t piece = 1; piece <= head.size(); ++piece) {
    HttpHeadCheck check(kLimits);
    for (size_t end = 0; end < head.size();) {
      EXPECT_FALSE(check.is_complete());
      end = std::min(end + piece, head.size());
      EXPECT_FALSE(check.Check(std::string_view(head).substr(0, end)).has_value()) << piece;
    }
    EXPECT_TRUE(check.is_complete()) << piece;
    EXPECT_FALSE(check.Check(head + "\n\0 what follows is not judged").has_value());
  }
}

TEST(HttpHeadCheck, RefusesWhatIsAmbiguousOrTooLargeAsSoonAsItIsThere) {
  const std::string line = "GET / HTTP/1.1\r\n";
  const struct {
    const char* name;
    std::string input;
    int status;
    const char* reason;
  } cases[] = {
      {"bare LF in the first line", "GET / HTTP/1.1\n", 400, "malformed"},
      {"bare LF in a field", line + "X: a\n", 400, "malformed"},
      {"bare CR", line + "X: a\rb", 400, "malformed"},
      {"CR CR LF", line + "X: a\r\r", 400, "malformed"},
      {"bare LF as the end", line + "X: a\r\n\n", 400, "malformed"},
      {"NUL", line + std::string("X: \0", 4), 400, "malformed"},
      {"escape", line + "X: \x1b", 400, "malformed"},
      {"delete", line + "X: \x7f", 400, "malformed"},
      {"folded with a space", line + "X: a\r\n b", 400, "malformed"},
      {"folded with a tab", line + "X: a\r\n\t", 400, "malformed"},
      {"folded first field", line + " X", 400, "malformed"},
      {"space before the colon", line + "X : a\r\n", 400, "malformed"},
      {"no name", line + ": a\r\n", 400, "malformed"},
      {"no colon", line + "X\r\n", 400, "malformed"},
      {"empty first line", "\r\n", 400, "malformed"},
      {"long URI", "GET /" + std::string(20, 'x'), 414, "uri_too_long"},
      {"many fields", line + "a: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\n", 431, "too_many_headers"},
      {"long field", line + "X: " + std::string(383 - 3, 'x'), 431, "header_too_large"},
      {"long fields", line + "X: " + std::string(189, 'x') + "\r\nY: " + std::string(188, 'x'), 431,
       "header_too_large"},
      {"long method", std::string(401, 'x'), 431, "header_too_large"},
  };
  for (const auto& c : cases) {
    HttpHeadCheck check(kLimits);
    const auto refusal = check.Check(c.input);
    ASSERT_TRUE(refusal.has_value()) << c.name;
    EXPECT_EQ(refusal->status, c.status) << c.name;
    EXPECT_EQ(refusal->reason, c.reason) << c.name;
    EXPECT_FALSE(HttpHeadCheck(kLimits).Check(c.input.substr(0, c.input.size() - 2)).has_value())
        << c.name << ": not before";
  }
}

TEST(HttpHeadCheck, AcceptsWhatIsJustWithinTheLimits) {
  std::string head = "GET /" + std::string(19, 'x') + " HTTP/1.1\r\na: 1\r\nb: 2\r\nc: ";
  head += std::string(400 - head.size() - 4, 'x') + "\r\n\r\n";
  ASSERT_EQ(head.size(), 400u);
  HttpHeadCheck check(kLimits);
  EXPECT_FALSE(check.Check(head).has_value());
  EXPECT_TRUE(check.is_complete());
}

TEST(HttpHeadCheck, AFieldMayHaveAsManyBytesAsItsLimitSays) {
  const auto head = [](size_t field_bytes) {
    return "GET / HTTP/1.1\r\nX: " + std::string(field_bytes - 3, 'x') + "\r\n\r\n";
  };
  EXPECT_FALSE(HttpHeadCheck(kLimits).Check(head(380)).has_value());
  const auto refusal = HttpHeadCheck(kLimits).Check(head(381));
  ASSERT_TRUE(refusal.has_value());
  EXPECT_EQ(refusal->message, "one header is larger than 380 bytes");
}

}  // namespace
}  // namespace terrace
