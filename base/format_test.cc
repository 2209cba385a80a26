#include "base/format.h"

#include <cstdlib>
#include <ctime>
#include <limits>
#include <string>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(FormatFixed, HasSoManyDecimals) {
  EXPECT_EQ(FormatFixed(0.8571, 3), "0.857");
  EXPECT_EQ(FormatFixed(2.5, 0), "2");
  EXPECT_EQ(FormatFixed(-1, 2), "-1.00");
  EXPECT_EQ(FormatFixed(1e300, 1).size(), 63u) << "not all of it";
}

TEST(FormatSignificant, HasThreeDigitsThatCount) {
  EXPECT_EQ(FormatSignificant(0.000485008), "0.000485");
  EXPECT_EQ(FormatSignificant(0.0012), "0.00120");
  EXPECT_EQ(FormatSignificant(0.9996), "1.00");
  EXPECT_EQ(FormatSignificant(2.5), "2.50");
  EXPECT_EQ(FormatSignificant(12.34), "12.3");
  EXPECT_EQ(FormatSignificant(1234.5), "1234");
  EXPECT_EQ(FormatSignificant(-0.05), "-0.0500");
  EXPECT_EQ(FormatSignificant(1e-6), "0.00000100");
  EXPECT_EQ(FormatSignificant(0), "0.00");
  EXPECT_EQ(FormatSignificant(std::numeric_limits<double>::infinity()), "inf");
}

TEST(FormatMillis, IsOfSeconds) {
  EXPECT_EQ(FormatMillis(0.01234), "12.3 ms");
  EXPECT_EQ(FormatMillis(0), "0.00 ms");
}

// RFC 9110's example of a date, and the ends of leap years; wherever the machine is.
TEST(FormatUtc, IsTheTimeInUtcWhateverTheTimeZone) {
  const struct {
    std::time_t time;
    const char *format, *want;
  } cases[] = {{784111777, "%a, %d %b %Y %H:%M:%S GMT", "Sun, 06 Nov 1994 08:49:37 GMT"},
               {0, "%Y-%m-%dT%H:%M:%SZ", "1970-01-01T00:00:00Z"},
               {951782399, "%Y-%m-%dT%H:%M:%SZ", "2000-02-28T23:59:59Z"},
               {951782400, "%Y-%m-%d", "2000-02-29"},
               {4107542400, "%Y-%m-%d", "2100-03-01"}};
  for (const char* zone : {"UTC", "America/New_York", "Asia/Kolkata", "XYZ-13"}) {
    setenv("TZ", zone, /*overwrite=*/1);
    tzset();
    for (const auto& c : cases) EXPECT_EQ(FormatUtc(c.time, c.format), c.want) << zone;
  }
  unsetenv("TZ");
  tzset();
}

TEST(UtcNow, IsTheClocks) {
  constexpr char kSeconds[] = "%Y-%m-%dT%H:%M:%SZ";
  const std::string before = FormatUtc(std::time(nullptr), kSeconds), now = UtcNow(kSeconds);
  EXPECT_LE(before, now);
  EXPECT_LE(now, FormatUtc(std::time(nullptr), kSeconds));
}

}  // namespace
}  // namespace terrace
