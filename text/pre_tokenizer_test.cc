#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pre_tokenizer.h"

#include <pcre2.h>

#include <memory>

#include "base/json.h"
#include "gtest/gtest.h"
#include "text/testing_text.h"

namespace terrace {
namespace {

std::vector<std::string> Pieces(std::string_view kind, std::string_view text) {
  std::vector<std::string> pieces;
  ForEachPiece(*FindPreTokenizer(kind), text, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

std::string Joined(const std::vector<std::string>& pieces) {
  std::string text;
  for (const auto& piece : pieces) text += piece;
  return text;
}

// The regular expressions themselves; \s is written out because PCRE2's has U+180E too.
#define SPACE R"(\t-\r\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})"
#define SPACE_TAIL "[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"
#define GPT2 R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^)" SPACE R"(\p{L}\p{N}]+|)" SPACE_TAIL
#define LLAMA(digits)                                                                   \
  R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})" digits "| ?[^" SPACE \
  R"(\p{L}\p{N}]+[\r\n]*|[)" SPACE R"(]*[\r\n]+|)" SPACE_TAIL

std::vector<std::string> Matches(const char* pattern, const std::string& text) {
  int error = 0;
  PCRE2_SIZE where = 0;
  const std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED, PCRE2_UTF, &error, &where,
                    nullptr),
      &pcre2_code_free);
  CHECK(code != nullptr, "pattern error ", error, " at ", where);
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code.get(), nullptr), &pcre2_match_data_free);
  std::vector<std::string> matches;
  for (size_t at = 0; at < text.size();) {
    const int count = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                  PCRE2_ANCHORED, match.get(), nullptr);
    CHECK(count > 0, "match error ", count);
    const size_t end = pcre2_get_ovector_pointer(match.get())[1];
    matches.push_back(text.substr(at, end - at));
    at = end;
  }
  return matches;
}

TEST(PreTokenizer, AgreesWithHuggingFaceOnTrickyText) {
  for (const Json& c : ReadTestJson("text/testdata/pre_tokenizers.json")) {
    const std::string pre = c["pre"], text = c["text"];
    EXPECT_EQ(Pieces(pre, text), c["pieces"].get<std::vector<std::string>>()) << pre << ": " << c["text"];
  }
}

TEST(PreTokenizer, AgreesWithItsRegularExpression) {
  const struct {
    const char *kind, *pattern;
  } kinds[] = {{"gpt2", GPT2}, {"llama-bpe", LLAMA("{1,3}")}, {"dbrx", LLAMA("{1,3}")}, {"qwen2", LLAMA("")}};
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const std::string text = RandomText(random, random() % 20, /*broken=*/false);
    for (const auto& kind : kinds)
      ASSERT_EQ(Pieces(kind.kind, text), Matches(kind.pattern, text)) << kind.kind << text;
  }
}

TEST(PreTokenizer, LosesNoByteOfAnyText) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const std::string text = RandomText(random, random() % 30, /*broken=*/true);
    for (const char* kind : {"gpt2", "smollm", "llama-bpe", "qwen2"})
      ASSERT_EQ(Joined(Pieces(kind, text)), text);
  }
}

TEST(PreTokenizer, ThePartsOfATextThatIsCutHaveItsPieces) {
  size_t cuts = 0;
  for (uint64_t seed = 0; seed < 800; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const std::string text = RandomText(random, random() % 30, /*broken=*/seed % 2 == 0);
    const std::string_view all = text;
    for (size_t from = 0; from <= all.size(); ++from) {
      const size_t cut = FindCut(all, from);
      ASSERT_TRUE(cut > from || cut == all.size());
      if (cut == all.size()) continue;
      ++cuts;
      for (const char* kind : {"gpt2", "smollm", "llama-bpe", "dbrx", "qwen2"}) {
        std::vector<std::string> pieces = Pieces(kind, all.substr(0, cut));
        for (const std::string& piece : Pieces(kind, all.substr(cut))) pieces.push_back(piece);
        ASSERT_EQ(pieces, Pieces(kind, all)) << kind << " cut at " << cut << ": " << text;
      }
    }
  }
  EXPECT_GT(cuts, 3000u);
  EXPECT_EQ(FindCut("ab cd", 0), 2u);
  EXPECT_EQ(FindCut("ab cd", 2), 5u) << "a letter in front is not looked at";
  EXPECT_EQ(FindCut("中。b", 1), 7u) << "from within a character";
  EXPECT_EQ(FindCut("", 0), 0u);
  EXPECT_EQ(FindCut("ab", 9), 2u);
}

// A matcher that backtracks or rescans would need hours for these.
TEST(PreTokenizer, IsLinearOnTextThatInvitesBacktracking) {
  constexpr size_t kBytes = size_t{1} << 20;
  for (const std::string_view unit :
       {" ", "\n ", " \n", "a", "1", "!", "'", " '", "\t", "\xC3", "é", "a1 ", "\xE3\x80\x80"}) {
    std::string text;
    while (text.size() < kBytes) text += unit;
    for (const char* kind : {"gpt2", "smollm", "llama-bpe", "qwen2"}) {
      size_t bytes = 0;
      ForEachPiece(*FindPreTokenizer(kind), text + "x",
                   [&](std::string_view piece) { bytes += piece.size(); });
      EXPECT_EQ(bytes, text.size() + 1);
    }
  }
}

TEST(PreTokenizer, IsFoundByTheNamesOfGguf) {
  EXPECT_EQ(FindPreTokenizer("gpt-2")->name, "gpt2");
  EXPECT_EQ(FindPreTokenizer("llama3")->name, "llama-bpe");
  EXPECT_FALSE(FindPreTokenizer("").has_value());
  EXPECT_FALSE(FindPreTokenizer("deepseek-llm").has_value());
}

}  // namespace
}  // namespace terrace
