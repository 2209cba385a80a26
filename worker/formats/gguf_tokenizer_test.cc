#include "worker/formats/gguf_tokenizer.h"

#include <algorithm>
#include <functional>
#include <memory>

#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "text/sentencepiece.h"
#include "text/testing_text.h"
#include "text/text_files.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Metadata, and the bytes that it borrows from.
class Keys {
 public:
  explicit Keys(std::vector<GgufKey> keys) : keys_(std::move(keys)) {}

  void Set(std::string_view name, GgufField value) {
    Remove(name);
    keys_.push_back({std::string(name), std::move(value)});
  }
  void Remove(std::string_view name) {
    std::erase_if(keys_, [&](const GgufKey& key) { return key.name == name; });
  }
  bool Has(std::string_view name) const {
    return std::ranges::find(keys_, name, &GgufKey::name) != keys_.end();
  }
  StatusOr<TextAssets> Load() const {
    const std::string head = GgufHead(keys_, {});
    const auto contents = ParseGguf(std::as_bytes(std::span(head)));
    CHECK(contents.ok(), Message(contents.status()));
    return LoadGgufText(contents->metadata, "file");
  }

 private:
  std::vector<GgufKey> keys_;
};

Keys KeysOf(const TextAssets& assets, size_t used_tokens = SIZE_MAX) {
  auto keys = GgufTextKeys(assets, used_tokens);
  CHECK(keys.ok(), Message(keys.status()));
  return Keys(*std::move(keys));
}

// As llama.cpp's converter writes text/testdata/scores.json.
Keys ScoredKeys() {
  const Json file = ReadTestJson("text/testdata/scores.json");
  return Keys({{"tokenizer.ggml.model", GgufString("llama")},
               {"tokenizer.ggml.pre", GgufString("default")},
               {"tokenizer.ggml.tokens", GgufStrings(file["tokens"])},
               {"tokenizer.ggml.scores", GgufFloats(file["scores"])},
               {"tokenizer.ggml.token_type", GgufInts(file["types"])},
               {"tokenizer.ggml.bos_token_id", GgufU32(1)},
               {"tokenizer.ggml.eos_token_id", GgufU32(2)},
               {"tokenizer.ggml.unknown_token_id", GgufU32(0)}});
}

TextAssets Loaded(const Keys& keys) {
  auto assets = keys.Load();
  CHECK(assets.ok(), Message(assets.status()));
  return *std::move(assets);
}

TextAssets OfFolder(const Json& file) {
  const ModelFolder folder;
  folder.Write("tokenizer.json", file.dump());
  folder.Remove("tokenizer_config.json");
  folder.Remove("generation_config.json");
  auto assets = LoadTextAssets(folder.path());
  CHECK(assets.ok(), Message(assets.status()));
  return *std::move(assets);
}

TEST(GgufTokenizer, ScoresGiveTheTokensOfSentencePiece) {
  const TextAssets assets = Loaded(ScoredKeys());
  const Json file = ReadTestJson("text/testdata/scores.json");
  for (const Json& c : file["cases"])
    EXPECT_EQ(assets.tokenizer->Encode(c["text"].get<std::string>()), c["ids"].get<std::vector<TokenId>>())
        << c["text"];
  const SpecialTokens& special = assets.tokenizer->special();
  EXPECT_EQ(special.bos, 1);
  EXPECT_THAT(special.end, ElementsAre(2));
  EXPECT_TRUE(special.add_bos) << "llama.cpp's default";
  EXPECT_EQ(assets.bos_text, "<s>");
  for (const TokenId control : {0, 1, 2}) EXPECT_TRUE(assets.tokenizer->IsControl(control));
}

TEST(GgufTokenizer, AFileSaysWhetherASpaceIsPutInFront) {
  Keys keys = ScoredKeys();
  const TextAssets with = Loaded(keys);
  keys.Set("tokenizer.ggml.add_space_prefix", GgufBool(false));
  keys.Set("tokenizer.ggml.add_bos_token", GgufBool(false));
  const TextAssets without = Loaded(keys);
  EXPECT_EQ(with.tokenizer->Encode("the"), without.tokenizer->Encode(" the"));
  EXPECT_NE(with.tokenizer->Encode("the"), without.tokenizer->Encode("the"));
  EXPECT_FALSE(without.tokenizer->special().add_bos);
}

TEST(GgufTokenizer, TurnsEndWithoutAKeyForIt) {
  Keys keys = ScoredKeys();
  const Json file = ReadTestJson("text/testdata/scores.json");
  auto tokens = file["tokens"].get<std::vector<std::string>>();
  auto types = file["types"].get<std::vector<int32_t>>();
  const size_t last = tokens.size() - 1;
  tokens[last] = "<end_of_turn>";
  types[last] = 3;
  keys.Set("tokenizer.ggml.tokens", GgufStrings(tokens));
  keys.Set("tokenizer.ggml.token_type", GgufInts(types));
  EXPECT_THAT(Loaded(keys).tokenizer->special().end, ElementsAre(2, static_cast<TokenId>(last)));
  keys.Set("tokenizer.ggml.eot_token_id", GgufU32(7));
  EXPECT_THAT(Loaded(keys).tokenizer->special().end, ElementsAre(2, 7));
}

TEST(GgufTokenizer, OfScoresIsWrittenAgainAsScores) {
  const TextAssets assets = Loaded(ScoredKeys());
  const Keys keys = KeysOf(assets);
  EXPECT_FALSE(keys.Has("terrace.tokenizer"));
  EXPECT_EQ(Digest(Loaded(keys)), Digest(assets));
}

TEST(GgufTokenizer, OfScoresBecomesAFolderWithTheSameTokens) {
  const TextAssets assets = Loaded(ScoredKeys());
  const ModelFolder folder;
  for (const auto& [name, text] : TextFiles(assets)) folder.Write(name, text);
  const auto read = LoadTextAssets(folder.path());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(Digest(*read), Digest(assets));
}

TEST(GgufTokenizer, EveryFolderBecomesAFileWithTheSameTokens) {
  for (const Json& shape : ReadTestJson("text/testdata/tokenizers.json")) {
    SCOPED_TRACE(shape["name"].get<std::string>());
    const TextAssets assets = OfFolder(shape["file"]);
    const Keys keys = KeysOf(assets);
    EXPECT_EQ(Loaded(keys).tokenizer->Serialize(), assets.tokenizer->Serialize());
    const bool is_byte_level = shape["name"] == "llama3" || shape["name"] == "qwen2";
    EXPECT_EQ(keys.Has("tokenizer.ggml.scores"), !is_byte_level);
    EXPECT_EQ(keys.Has("tokenizer.ggml.merges"), is_byte_level);
    EXPECT_FALSE(is_byte_level && keys.Has("terrace.tokenizer"));
  }
}

// What other programs make of such a file: the same tokens, where no scores are tied.
TEST(GgufTokenizer, ScoresOfMergesGiveTheirTokens) {
  size_t same = 0, all = 0;
  for (const Json& shape : ReadTestJson("text/testdata/tokenizers.json")) {
    if (shape["name"] != "llama2" && shape["name"] != "mistral" && shape["name"] != "gemma") continue;
    Keys keys = KeysOf(OfFolder(shape["file"]));
    keys.Remove("terrace.tokenizer");
    const TextAssets others = Loaded(keys);
    for (const Json& c : shape["cases"]) {
      const std::string text = c["text"];
      const auto ids = others.tokenizer->Encode(MarkedText{text, {{0, text.size()}}});
      const bool is_same = ids == c["ids"].get<std::vector<TokenId>>();
      // Runs of spaces are joined by merges of which no two have one rank.
      const bool has_run =
          text.find("   ") != std::string::npos || text.find(kSpaceMark) != std::string::npos;
      EXPECT_TRUE(has_run || is_same) << shape["name"] << c["text"];
      same += is_same;
      ++all;
    }
  }
  EXPECT_GT(same, all * 9 / 10) << all;
}

TEST(GgufTokenizer, TheWholeOneGivesWayToSpecialTokensOfOtherKeys) {
  Keys keys = KeysOf(OfFolder(ReadTestJson("text/testdata/tokenizers.json")[1]["file"]));
  ASSERT_TRUE(keys.Has("terrace.tokenizer"));
  keys.Set("tokenizer.ggml.eos_token_id", GgufU32(5));
  EXPECT_THAT(Loaded(keys).tokenizer->special().end, ElementsAre(5));
}

TEST(GgufTokenizer, TextOfQwenIsNormalized) {
  BpeData data = ByteData("qwen2");
  data.is_normalized = true;
  TextAssets assets;
  assets.tokenizer = *MakeBpeTokenizer(data);
  EXPECT_FALSE(KeysOf(assets).Has("terrace.tokenizer"));
  EXPECT_THAT(Loaded(KeysOf(assets)).tokenizer->Encode("e\u0301"), ElementsAre(0xC3, 0xA9));
  data.is_normalized = false;
  assets.tokenizer = *MakeBpeTokenizer(data);
  const Keys keys = KeysOf(assets);
  EXPECT_TRUE(keys.Has("terrace.tokenizer"));
  EXPECT_THAT(Loaded(keys).tokenizer->Encode("e\u0301"), ElementsAre('e', 0xCC, 0x81));
}

TEST(GgufTokenizer, UnusedTokensAreMarked) {
  const TextAssets assets = Loaded(ScoredKeys());
  BpeData data = DataOf(*assets.tokenizer);
  const size_t used = data.tokens.size();
  for (int i = 0; i < 5; ++i) data.tokens.push_back(Concat("<|unused_", i, "|>"));
  TextAssets padded = assets;
  padded.tokenizer = *MakeBpeTokenizer(data);
  EXPECT_EQ(Digest(Loaded(KeysOf(padded, used))), Digest(padded));
}

TEST(GgufTokenizer, ABadKeyIsNamedWithReason) {
  const Json file = ReadTestJson("text/testdata/scores.json");
  const auto types = file["types"].get<std::vector<int32_t>>();
  const auto scores = file["scores"].get<std::vector<float>>();
  const auto with = [&](size_t at, int32_t type) {
    auto changed = types;
    changed[at] = type;
    return GgufInts(changed);
  };
  const std::string other = [] {
    BpeData data = ByteData();
    return (*MakeBpeTokenizer(data))->Serialize();
  }();
  const struct {
    std::string_view key;
    GgufField value;
    std::string_view reason;
  } cases[] = {
      {"tokenizer.ggml.scores", GgufFloats({1, 2}), "vocab_size"},
      {"tokenizer.ggml.scores", GgufInts({1, 2}), "type_mismatch"},
      {"tokenizer.ggml.scores", GgufF32(1), "type_mismatch"},
      {"tokenizer.ggml.add_space_prefix", GgufU32(1), "type_mismatch"},
      {"tokenizer.ggml.token_type", with(3, 1), "bad_token_type"},
      {"tokenizer.ggml.token_type", with(3, 4), "bad_token_type"},
      {"tokenizer.ggml.token_type", with(300, 6), "bad_token_type"},
      {"tokenizer.ggml.token_type", with(300, 7), "bad_token_type"},
      {"tokenizer.ggml.token_type", GgufInts({1}), "vocab_size"},
      {"tokenizer.ggml.tokens", GgufStrings({"a", "b", "c"}), "vocab_size"},
      {"terrace.tokenizer", GgufString("{"), "invalid_json"},
      {"terrace.tokenizer", GgufString(other), "bad_value"},
      {"terrace.tokenizer", GgufU32(1), "type_mismatch"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(Concat(c.key, " ", &c - cases));
    Keys keys = ScoredKeys();
    keys.Set(c.key, c.value);
    const auto assets = keys.Load();
    ASSERT_EQ(assets.status().code(), StatusCode::kDataLoss) << assets.status();
    EXPECT_EQ(Reason(assets.status()), c.reason) << assets.status();
    EXPECT_THAT(Message(assets.status()), HasSubstr("value at byte"));
  }
  Keys keys = ScoredKeys();
  keys.Remove("tokenizer.ggml.scores");
  EXPECT_EQ(Reason(keys.Load().status()), "missing_key");
  keys = ScoredKeys();
  auto tokens = file["tokens"].get<std::vector<std::string>>();
  tokens.back() = "a\u0100";
  keys.Set("tokenizer.ggml.tokens", GgufStrings(tokens));
  EXPECT_EQ(Reason(keys.Load().status()), "vocab_size") << keys.Load().status();
  tokens[tokens.size() - 1] = "the same";
  tokens[3] = "no byte";
  auto no_byte = types;
  no_byte[3] = 1;
  keys = ScoredKeys();
  keys.Set("tokenizer.ggml.tokens", GgufStrings(tokens));
  keys.Set("tokenizer.ggml.token_type", GgufInts(no_byte));
  EXPECT_EQ(Reason(keys.Load().status()), "vocab_size") << keys.Load().status();
  keys = ScoredKeys();
  auto broken = scores;
  broken[400] = std::numeric_limits<float>::quiet_NaN();
  keys.Set("tokenizer.ggml.scores", GgufFloats(broken));
  EXPECT_EQ(Reason(keys.Load().status()), "bad_merge") << keys.Load().status();
}

TEST(GgufTokenizer, SentencePieceIsNoPreTokenizerOfByteLevelBpe) {
  TextAssets assets;
  assets.tokenizer = *MakeBpeTokenizer(ByteData());
  Keys keys = KeysOf(assets);
  keys.Set("tokenizer.ggml.pre", GgufString("spm"));
  EXPECT_EQ(Reason(keys.Load().status()), "unsupported_pre_tokenizer");
}

}  // namespace
}  // namespace terrace
