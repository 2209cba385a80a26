#include "text/detokenizer.h"

#include "gtest/gtest.h"
#include "text/testing_text.h"
#include "text/unicode.h"

namespace terrace {
namespace {

// `bytes` with each ill-formed sequence replaced, looked at as a whole.
std::string Repaired(std::string_view bytes) {
  std::string out;
  while (!bytes.empty()) {
    const Utf8Step step = DecodeUtf8(bytes);
    out += step.valid ? bytes.substr(0, step.length) : kReplacementCharacter;
    bytes.remove_prefix(step.length);
  }
  return out;
}

std::unique_ptr<Tokenizer> MakeTokenizer() {
  BpeData data = RandomData(/*seed=*/3, 40);
  data.added.push_back({static_cast<TokenId>(data.tokens.size()), "<end>"});
  data.tokens.push_back("<end>");
  return *MakeBpeTokenizer(std::move(data));
}

TEST(Detokenizer, PushesAddUpToTheRepairedText) {
  const auto tokenizer = MakeTokenizer();
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    std::vector<TokenId> tokens;
    if (seed % 2 == 0) tokens = tokenizer->Encode(RandomText(random, 15, /*broken=*/true));
    for (int i = 0; i < 15; ++i) tokens.push_back(static_cast<TokenId>(random() % tokenizer->vocab_size()));
    Detokenizer detokenizer(*tokenizer);
    std::string text;
    for (const TokenId token : tokens) {
      const std::string piece = detokenizer.Push(token);
      ASSERT_TRUE(IsValidUtf8(piece)) << "a character was split";
      text += piece;
    }
    text += detokenizer.Finish();
    ASSERT_EQ(text, Repaired(tokenizer->Decode(tokens)));
    ASSERT_EQ(detokenizer.Finish(), "");
  }
}

TEST(PromptText, WritesControlTokensOutAndRepairsTheRest) {
  const auto tokenizer = MakeTokenizer();
  const auto end = static_cast<TokenId>(tokenizer->vocab_size() - 1);
  std::vector<TokenId> tokens = tokenizer->Encode("a\xC3\xA4");
  tokens.push_back(end);
  EXPECT_EQ(PromptText(*tokenizer, tokens), "a\xC3\xA4<end>");
  const std::vector<TokenId> cut = tokenizer->Encode("b\xC3");
  EXPECT_EQ(PromptText(*tokenizer, cut), Repaired("b\xC3"));
}

TEST(Detokenizer, ShowsACharacterWithItsLastByte) {
  const auto tokenizer = MakeTokenizer();
  Detokenizer detokenizer(*tokenizer);
  EXPECT_EQ(detokenizer.Push(0xF0), "");
  EXPECT_EQ(detokenizer.Push(0x9F), "");
  EXPECT_EQ(detokenizer.Push(static_cast<TokenId>(tokenizer->vocab_size()) - 1), "") << "a control token";
  EXPECT_EQ(detokenizer.Push(0x99), "");
  EXPECT_EQ(detokenizer.Push(0x82), "🙂");
  EXPECT_EQ(detokenizer.Push(0xC3), "");
  EXPECT_EQ(detokenizer.Push('x'), "\uFFFDx") << "the character can no longer be";
  EXPECT_EQ(detokenizer.Push(0xE4), "");
  EXPECT_EQ(detokenizer.Finish(), "\uFFFD");
}

}  // namespace
}  // namespace terrace
