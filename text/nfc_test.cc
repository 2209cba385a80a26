#include "text/nfc.h"

#include "base/json.h"
#include "gtest/gtest.h"
#include "text/testing_text.h"

namespace terrace {
namespace {

TEST(Nfc, IsThatOfHuggingFace) {
  size_t changed = 0;
  for (const Json& c : ReadTestJson("text/testdata/normalized.json")) {
    const std::string text = c["text"], want = c["nfc"];
    EXPECT_EQ(ToNfc(text), want) << c["text"];
    changed += text != want;
    EXPECT_FALSE(text != want && IsPlainlyNfc(text)) << c["text"];
  }
  EXPECT_GT(changed, 200u);
}

TEST(Nfc, WhatIsPlainlyNormalizedStaysAsItIs) {
  EXPECT_TRUE(IsPlainlyNfc(""));
  EXPECT_TRUE(IsPlainlyNfc("caf\u00e9 \u4e2d\uac00\U0001F642"));
  EXPECT_FALSE(IsPlainlyNfc("e\u0301"));
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const std::string text = RandomText(random, 20, /*broken=*/seed % 2 == 0);
    ASSERT_TRUE(!IsPlainlyNfc(text) || ToNfc(text) == text);
    ASSERT_EQ(ToNfc(ToNfc(text)), ToNfc(text));
  }
}

TEST(Nfc, BytesThatAreNoCharactersPartWhatStandsAroundThem) {
  EXPECT_EQ(ToNfc("e\u0301\xFF"
                  "e\u0301\xCC"),
            "\u00e9\xFF\u00e9\xCC");
  EXPECT_EQ(ToNfc("e\xFF\u0301"), "e\xFF\u0301");
}

// A sort of all marks for each one would need hours.
TEST(Nfc, AMegabyteOfMarksIsNoTrouble) {
  std::string text = "a";
  while (text.size() < size_t{1} << 20) text += "\u0301\u0323";
  const std::string out = ToNfc(text);
  EXPECT_EQ(out.substr(0, 3), "\u1ea1");
  EXPECT_EQ(ToNfc(out), out);
}

}  // namespace
}  // namespace terrace
