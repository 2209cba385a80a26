#include "text/unicode.h"

#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(Utf8, EveryScalarValueSurvivesWritingAndReading) {
  for (uint32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    AppendUtf8(c, text);
    const Utf8Step step = DecodeUtf8(text + "x");
    ASSERT_TRUE(step.valid) << c;
    ASSERT_EQ(uint32_t{step.code_point}, c);
    ASSERT_EQ(step.length, text.size());
    ASSERT_EQ(LastCharacterLength("x" + text), text.size());
    for (size_t cut = 1; cut < text.size(); ++cut) {
      ASSERT_TRUE(DecodeUtf8(std::string_view(text).substr(0, cut)).truncated) << c;
    }
  }
}

// The Unicode standard, tables 3-8 to 3-11: how ill-formed text is divided into maximal subparts.
TEST(Utf8, DividesIllFormedTextIntoMaximalSubparts) {
  const struct {
    std::string_view text;
    std::vector<size_t> lengths;
  } cases[] = {
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", {1, 1, 1, 1, 1, 1, 1, 1, 1}},  // overlong forms
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", {1, 1, 1, 1, 1, 1, 1, 1, 1}},  // surrogates
      {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", {1, 1, 1, 1, 1, 1, 1, 1, 1}},  // past U+10FFFF
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", {2, 1, 3, 2, 1}},              // cut off
  };
  for (const auto& c : cases) {
    std::vector<size_t> lengths;
    for (std::string_view rest = c.text; !rest.empty(); rest.remove_prefix(lengths.back())) {
      lengths.push_back(DecodeUtf8(rest).length);
    }
    EXPECT_EQ(lengths, c.lengths);
    EXPECT_FALSE(IsValidUtf8(c.text));
  }
}

TEST(UnicodeProperties, ACodePointHasAtMostOneOfThem) {
  int letters = 0, numbers = 0;
  for (uint32_t c = 0; c <= 0x10FFFF; ++c) {
    ASSERT_LE(IsLetter(c) + IsNumber(c) + IsWhiteSpace(c), 1) << c;
    letters += IsLetter(c);
    numbers += IsNumber(c);
  }
  EXPECT_EQ(letters, 141'028);  // of Unicode 16
  EXPECT_EQ(numbers, 1'911);
}

}  // namespace
}  // namespace terrace
