#include "tools/cli/format.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(Format, WritesNumbersForPeople) {
  EXPECT_EQ(FormatCount(7), "7");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatCount(2722560), "2,722,560");
  EXPECT_EQ(FormatCount(0, "tensor"), "0 tensors");
  EXPECT_EQ(FormatCount(1, "tensor"), "1 tensor");
  EXPECT_EQ(FormatCount(1000, "tensor"), "1,000 tensors");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(5 << 20), "5.0 MiB");
  EXPECT_EQ(FormatSeconds(0.0000042), "4.2 µs");
  EXPECT_EQ(FormatSeconds(0.00084), "840 µs");
  EXPECT_EQ(FormatSeconds(0.0012), "1.2 ms");
  EXPECT_EQ(FormatSeconds(0.25), "250 ms");
  EXPECT_EQ(FormatSeconds(12.34), "12.3 s");
  EXPECT_EQ(FormatUsd(0.000000153), "0.153 µUSD");
  EXPECT_EQ(FormatUsd(0.00135), "$0.0014");
  EXPECT_EQ(FormatUsd(1.2), "$1.20");
}

TEST(FormatTable, AlignsByCharactersNotBytes) {
  EXPECT_EQ(FormatTable({{"tier", "µUSD"}, {"é", "1"}, {"small", "12345"}}, 1),
            "tier    µUSD\n"
            "é          1\n"
            "small  12345\n");
}

TEST(Shorten, KeepsWholeCharactersOnOneLine) {
  EXPECT_EQ(Shorten("a\nb", 10), "a b");
  EXPECT_EQ(Shorten("ééé", 3), "ééé");
  EXPECT_EQ(Shorten("éééé", 3), "ééé…");
}

}  // namespace
}  // namespace terrace
