#include "text/text_files.h"

#include "gtest/gtest.h"
#include "text/testing_text.h"

namespace terrace {
namespace {

class EveryPreTokenizer : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Kinds, EveryPreTokenizer,
                         testing::Values("gpt2", "smollm", "llama-bpe", "dbrx", "qwen2"));

TEST_P(EveryPreTokenizer, WrittenTextIsReadBackWithTheSameDigest) {
  BpeData data = RandomData(/*seed=*/7, /*count=*/50);
  data.pre = GetParam();
  for (const char* name : {"<|bos|>", "<|end|>", "<|turn|>", "<|pad|>"}) {
    data.added.push_back({static_cast<TokenId>(data.tokens.size()), name, /*is_control=*/true});
    data.tokens.push_back(name);
  }
  data.added[2].is_control = false;
  data.special = {.bos = data.added[0].id,
                  .end = {data.added[1].id, data.added[2].id},
                  .pad = data.added[3].id,
                  .add_bos = true};
  TextAssets assets;
  assets.tokenizer = MakeBpeTokenizer(data).value();
  assets.chat_template = ChatTemplate::Parse("{{ bos_token }}{{ messages[0]['content'] }}").value();
  assets.bos_text = "<|bos|>";
  assets.eos_text = "<|end|>";

  const ModelFolder folder;
  for (const auto& [name, text] : TextFiles(assets)) folder.Write(name, text);
  const auto read = LoadTextAssets(folder.path());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(Serialize(*read), Serialize(assets));
}

TEST(TextFiles, LeaveOutWhatTheModelHasNot) {
  TextAssets assets;
  assets.tokenizer = MakeBpeTokenizer(ByteData()).value();
  const ModelFolder folder;
  for (const auto& [name, text] : TextFiles(assets)) folder.Write(name, text);
  const auto read = LoadTextAssets(folder.path());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(Digest(*read), Digest(assets));
  EXPECT_EQ(read->chat_template, nullptr);
}

TEST(DataOf, MakesTheSameTokenizerAgain) {
  const ModelFolder folder;
  const auto assets = LoadTextAssets(folder.path());
  ASSERT_TRUE(assets.ok()) << assets.status();
  const auto again = MakeBpeTokenizer(DataOf(*assets->tokenizer));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->Serialize(), assets->tokenizer->Serialize());
}

}  // namespace
}  // namespace terrace
