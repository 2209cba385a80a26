#include "tools/optimize/synthetic_text.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(ByteLevelText, ATokenIsAByte) {
  const TextAssets text = ByteLevelText();
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  const auto tokens = text.tokenizer->Encode(all);
  EXPECT_EQ(tokens.size(), 256u);
  EXPECT_EQ(text.tokenizer->Decode(tokens), all);
  EXPECT_EQ(text.EncodePrompt("hello").size(), 1u + 5);
}

TEST(ByteLevelText, AChatIsItsBytesAndItsControlTokens) {
  const TextAssets text = ByteLevelText();
  const auto tokens = text.EncodeChat({{"user", "hi"}, {"assistant", "yes"}, {"user", "<|end|>"}});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  // bos, three roles, the end of the answer and the role to answer; what users write stays bytes.
  EXPECT_EQ(tokens->size(), 1u + 3 + 1 + 1 + 2 + 3 + 7);
}

TEST(PadVocabulary, AddsTokensThatNoTextHas) {
  const TextAssets text = ByteLevelText();
  const auto padded = PadVocabulary(text, 1000);
  ASSERT_TRUE(padded.ok()) << padded.status();
  EXPECT_EQ(padded->tokenizer->vocab_size(), 1000u);
  EXPECT_EQ(padded->tokenizer->TokenBytes(999), "<|unused_999|>");
  EXPECT_EQ(padded->tokenizer->Encode("<|unused_999|> a"), text.tokenizer->Encode("<|unused_999|> a"));
  EXPECT_EQ(padded->EncodeChat({{"user", "x"}}).value(), text.EncodeChat({{"user", "x"}}).value());
  EXPECT_EQ(Digest(*PadVocabulary(text, text.tokenizer->vocab_size())), Digest(text));
}

TEST(PadVocabulary, RefusesAVocabularyThatIsTooSmall) {
  const Status status = PadVocabulary(ByteLevelText(), 100).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(Message(status).find("262 tokens, the vocabulary 100"), std::string::npos) << status;
}

}  // namespace
}  // namespace terrace
