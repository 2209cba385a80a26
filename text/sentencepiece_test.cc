#include "text/sentencepiece.h"

#include <algorithm>
#include <memory>

#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "text/detokenizer.h"
#include "text/testing_text.h"
#include "text/text_assets.h"
#include "text/text_files.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Json& Shapes() {
  static const auto* const shapes = new Json(ReadTestJson("text/testdata/tokenizers.json"));
  return *shapes;
}

const Json& ShapeOf(std::string_view name) {
  for (const Json& shape : Shapes()) {
    if (shape["name"] == name) return shape;
  }
  CHECK(false, "no tokenizer is called ", name);
}

// A folder with nothing but this tokenizer.json.
std::unique_ptr<ModelFolder> FolderOf(const Json& file) {
  auto folder = std::make_unique<ModelFolder>();
  folder->Write("tokenizer.json", file.dump());
  folder->Remove("tokenizer_config.json");
  folder->Remove("generation_config.json");
  return folder;
}

std::unique_ptr<Tokenizer> Load(const Json& file) {
  auto tokenizer = LoadTokenizerJson(FolderOf(file)->path());
  CHECK(tokenizer.ok(), Message(tokenizer.status()));
  return *std::move(tokenizer);
}

// The whole text may speak control tokens, as in Hugging Face's.
MarkedText Marked(const std::string& text) { return {text, {{0, text.size()}}}; }

// The 256 tokens of bytes, then `pieces`.
BpeData SpmData(const std::vector<std::string>& pieces, std::string_view pre = "spm") {
  BpeData data;
  data.pre = pre;
  for (int byte = 0; byte < 256; ++byte) data.tokens.push_back(ByteToken(static_cast<uint8_t>(byte)));
  data.tokens.insert(data.tokens.end(), pieces.begin(), pieces.end());
  return data;
}

class EveryShape : public testing::TestWithParam<const char*> {
 protected:
  const Json& shape() const { return ShapeOf(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Shapes, EveryShape,
                         testing::Values("llama2", "mistral", "metaspace-always-whole",
                                         "metaspace-always-words", "metaspace-first-whole",
                                         "metaspace-first-words", "metaspace-never-whole",
                                         "metaspace-never-words", "gemma", "gemma-bytes", "crossing",
                                         "llama3", "qwen2"));

TEST_P(EveryShape, TokensAndTextAreThoseOfHuggingFace) {
  const auto tokenizer = Load(shape()["file"]);
  for (const Json& c : shape()["cases"]) {
    const std::string text = c["text"];
    const auto ids = c["ids"].get<std::vector<TokenId>>();
    EXPECT_EQ(tokenizer->Encode(Marked(text)), ids) << c["text"];
    EXPECT_EQ(PromptText(*tokenizer, ids), c["decoded"].get<std::string>()) << c["text"];
  }
  EXPECT_GT(shape()["cases"].size(), 100u);
}

TEST_P(EveryShape, MergesMayBeStrings) {
  Json file = shape()["file"];
  for (Json& merge : file["model"]["merges"])
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  EXPECT_EQ(Load(file)->Serialize(), Load(shape()["file"])->Serialize());
}

TEST_P(EveryShape, SerializedWrittenAndReadItIsTheSame) {
  TextAssets assets;
  assets.tokenizer = Load(shape()["file"]);
  const std::string serialized = assets.tokenizer->Serialize();
  const auto parsed = ParseTokenizer(serialized);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ((*parsed)->Serialize(), serialized);
  const auto made = MakeBpeTokenizer(DataOf(*assets.tokenizer));
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ((*made)->Serialize(), serialized);
  const ModelFolder folder;
  for (const auto& [name, text] : TextFiles(assets)) folder.Write(name, text);
  const auto read = LoadTextAssets(folder.path());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->tokenizer->Serialize(), serialized);
  for (const Json& c : shape()["cases"])
    EXPECT_EQ((*parsed)->Encode(Marked(c["text"])), c["ids"].get<std::vector<TokenId>>()) << c["text"];
}

TEST_P(EveryShape, ACacheGivesTheSameTokens) {
  const auto tokenizer = Load(shape()["file"]);
  TokenCache cache(size_t{1} << 20);
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    std::string text;
    for (size_t i = 0; i < 60; ++i)
      text += shape()["cases"][random() % shape()["cases"].size()]["text"].get<std::string>() + " ";
    const std::vector<ByteRange> control = {{0, text.size() / 2}};
    for (int round = 0; round < 2; ++round)
      ASSERT_EQ(tokenizer->EncodeCached(text, control, {cache}),
                tokenizer->Encode(MarkedText{text, control}));
  }
}

TEST_P(EveryShape, AnyBytesComeBackButForMarksAndSpacesInFront) {
  const auto tokenizer = Load(shape()["file"]);
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const std::string text = "x" + RandomText(random, 30, /*broken=*/true);
    std::string decoded = tokenizer->Decode(tokenizer->Encode(text));
    if (tokenizer->adds_space()) {
      ASSERT_EQ(decoded.at(0), ' ');
      decoded.erase(0, 1);
    }
    ASSERT_EQ(decoded, std::string_view(GetParam()) == "qwen2" ? decoded : text);
  }
}

TEST(SentencePiece, WhatScoresMakeIsWhatSentencePieceMakes) {
  const Json file = ReadTestJson("text/testdata/scores.json");
  BpeData data;
  data.pre = "spm";
  data.tokens = file["tokens"].get<std::vector<std::string>>();
  for (size_t id = 0; id < data.tokens.size(); ++id) {
    const int type = file["types"][id];
    if (type == 2 || type == 3) data.added.push_back({static_cast<TokenId>(id), data.tokens[id], true});
  }
  ASSERT_TRUE(SetMergesOfScores(file["scores"].get<std::vector<float>>(), "tokens", data).ok());
  EXPECT_GT(*std::ranges::max_element(data.ties), 20u) << "the runs of spaces";
  const auto tokenizer = MakeBpeTokenizer(data);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const Json& c : file["cases"])
    EXPECT_EQ((*tokenizer)->Encode(c["text"].get<std::string>()), c["ids"].get<std::vector<TokenId>>())
        << c["text"];
}

TEST(SentencePiece, MergesOfOneRankAreDoneFromTheLeft) {
  BpeData data = SpmData({"a", "b", "ab", "ba"}, "spm-none");
  data.merges = {{"b", "a"}, {"a", "b"}};
  const auto encode = [](const BpeData& of) { return (*MakeBpeTokenizer(of))->Encode("abab"); };
  EXPECT_THAT(encode(data), ElementsAre(256, 259, 257)) << "a ba b";
  data.ties = {2};
  EXPECT_THAT(encode(data), ElementsAre(258, 258)) << "ab ab";
  data.ties = {1, 1};
  EXPECT_EQ((*MakeBpeTokenizer(data))->Serialize().find("ties"), std::string::npos);
}

TEST(SentencePiece, AnAnswerKeepsTheSpaceInFrontAndWaitsForWholeCharacters) {
  const auto tokenizer = MakeBpeTokenizer(SpmData({"\u2581Hello", "\u2581", "\u2581\u2581"}));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  Detokenizer detokenizer(**tokenizer);
  EXPECT_EQ(detokenizer.Push(256), " Hello");
  EXPECT_EQ(detokenizer.Push(0xF0), "");
  EXPECT_EQ(detokenizer.Push(0x9F), "");
  EXPECT_EQ(detokenizer.Push(0x99), "");
  EXPECT_EQ(detokenizer.Push(0x82), "🙂");
  EXPECT_EQ(detokenizer.Push(0xE4), "");
  EXPECT_EQ(detokenizer.Push(257), "\uFFFD ");
  EXPECT_EQ(detokenizer.Push(0xE4), "");
  EXPECT_EQ(detokenizer.Finish(), "\uFFFD");
  EXPECT_EQ((*tokenizer)->TokenBytes(258), "  ");
  EXPECT_EQ((*tokenizer)->TokenBytes('\n'), "\n");
  EXPECT_EQ(PromptText(**tokenizer, std::vector<TokenId>{256, 256}), "Hello Hello");
}

TEST(SentencePiece, AMessageCannotSpeakControlTokens) {
  const auto tokenizer = Load(ShapeOf("mistral")["file"]);
  for (const TokenId token : tokenizer->Encode("<s>[INST] the </s>"))
    EXPECT_FALSE(tokenizer->IsControl(token));
}

TEST(SentencePiece, MergesThatConvertersMakeOfControlTokensAreLeftOut) {
  Json file = ShapeOf("llama2")["file"];
  const TokenId the = file["model"]["vocab"]["\u2581the"];
  EXPECT_THAT(Load(file)->Encode("the"), ElementsAre(the));
  file["added_tokens"].push_back({{"id", the}, {"content", "\u2581the"}, {"special", true}});
  const auto tokenizer = Load(file);
  const std::vector<TokenId> tokens = tokenizer->Encode("the");
  EXPECT_GT(tokens.size(), 1u);
  for (const TokenId token : tokens) EXPECT_FALSE(tokenizer->IsControl(token));
  EXPECT_EQ(PromptText(*tokenizer, tokens), "the");
}

// A quadratic loop over merges, words or places for a cut would need many minutes.
TEST(SentencePiece, ALongTextIsNoTrouble) {
  for (const char* name : {"mistral", "metaspace-first-words", "gemma", "crossing"}) {
    const auto tokenizer = Load(ShapeOf(name)["file"]);
    for (const std::string_view unit : {"a", " ", "the ", "shells", "\xFF", "中", "\u2581", "\n", "e d"}) {
      std::string text;
      while (text.size() < size_t{1} << 18) text += unit;
      TokenCache cache(size_t{1} << 20);
      EXPECT_EQ(tokenizer->EncodeCached(text, {}, {cache}), tokenizer->Encode(text)) << name << unit;
    }
  }
}

TEST(Words, EndBeforeMarks) {
  const struct {
    std::string_view text;
    size_t length, at_each_mark;
  } cases[] = {{"ab", 2, 2}, {"ab▁c", 2, 2}, {"▁ab▁c", 5, 5}, {"▁▁ab▁", 8, 3},
               {"▁", 3, 3},  {"▁▁▁", 9, 3},  {"a▁▁b", 1, 1}};
  for (const auto& c : cases) {
    EXPECT_EQ(FirstWordLength(c.text, false), c.length) << c.text;
    EXPECT_EQ(FirstWordLength(c.text, true), c.at_each_mark) << c.text;
  }
  EXPECT_EQ(FindWord("ab▁▁c▁d", 0), 2u);
  EXPECT_EQ(FindWord("ab▁▁c▁d", 2), 9u) << "not between two marks";
  EXPECT_EQ(FindWord("ab▁", 9), 5u);
  EXPECT_EQ(FindWord("", 0), 0u);
}

TEST(ByteTokens, AreWrittenInHexadecimal) {
  for (int byte = 0; byte < 256; ++byte) EXPECT_EQ(ByteOfToken(ByteToken(static_cast<uint8_t>(byte))), byte);
  EXPECT_EQ(ByteToken(0xAB), "<0xAB>");
  EXPECT_EQ(ByteOfToken("<0xab>"), 0xAB) << "read, as Hugging Face's decoder does";
  for (const std::string_view other : {"", "<0x>", "<0xG0>", "<0x100>", "0x41", "<0X41>", "<0x41"})
    EXPECT_EQ(ByteOfToken(other), std::nullopt) << other;
  EXPECT_EQ(NameInMerges("<0x09>"), "\t");
  EXPECT_EQ(NameInMerges("<0x80>"), "<0x80>");
  EXPECT_EQ(NameInMerges("the"), "the");
}

TEST(MakeBpeTokenizer, RefusesBadPartsInTheMannerOfSentencePiece) {
  const struct {
    const char* name;
    void (*spoil)(BpeData&);
    std::string_view reason, key;
  } cases[] = {
      {"a byte is missing", [](BpeData& d) { d.tokens[0x41] = "AA"; }, "vocab_size", "tokens"},
      {"a byte is control",
       [](BpeData& d) {
         d.added = {{0x41, "<0x41>", true}};
       },
       "vocab_size", "tokens"},
      {"merges a byte by its name",
       [](BpeData& d) {
         d.tokens.push_back("<0x41>a"), d.merges = {{"<0x41>", "a"}};
       },
       "bad_merge", "merges[0]"},
      {"merges to a byte",
       [](BpeData& d) {
         d.tokens.insert(d.tokens.end(), {"<0x4", "1>"}), d.merges = {{"<0x4", "1>"}};
       },
       "bad_merge", "merges[0]"},
      {"merges to control",
       [](BpeData& d) {
         d.added = {{258, "ab", true}}, d.merges = {{"a", "b"}};
       },
       "bad_merge", "merges[0]"},
      {"ties of too few",
       [](BpeData& d) {
         d.merges = {{"a", "b"}}, d.ties = {2};
       },
       "bad_merge", "ties"},
      {"a tie of none",
       [](BpeData& d) {
         d.merges = {{"a", "b"}}, d.ties = {0, 1};
       },
       "bad_merge", "ties[0]"},
      {"NFC", [](BpeData& d) { d.is_normalized = true; }, "unsupported_normalizer", "pre"},
  };
  for (const auto& c : cases) {
    BpeData data = SpmData({"a", "b", "ab"});
    c.spoil(data);
    const auto tokenizer = MakeBpeTokenizer(std::move(data));
    ASSERT_EQ(tokenizer.status().code(), StatusCode::kDataLoss) << c.name;
    EXPECT_EQ(Reason(tokenizer.status()), c.reason) << c.name;
    EXPECT_THAT(Message(tokenizer.status()), HasSubstr(std::string(c.key) + ":")) << c.name;
  }
  BpeData characters = SpmData({"A"});  // as newer files of Gemma: a character in the place of its byte
  characters.tokens[0x41] = "AA";
  EXPECT_TRUE(MakeBpeTokenizer(std::move(characters)).ok());
}

TEST(SetMergesOfScores, RefusesWhatCannotBeJoined) {
  const float kNan = std::numeric_limits<float>::quiet_NaN();
  const auto set = [](BpeData data, float score) {
    const std::vector<float> scores(data.tokens.size(), score);
    return SetMergesOfScores(scores, "tokens", data);
  };
  EXPECT_TRUE(set(SpmData({"a", "b", "ab"}), 0).ok());
  EXPECT_TRUE(set(SpmData({"\t\t"}), 0).ok()) << "characters of one byte are there as bytes";
  const struct {
    BpeData data;
    float score;
    std::string_view reason;
  } cases[] = {{SpmData({"a", "aé"}), 0, "vocab_size"},
               {SpmData({std::string(600, 'a')}), 0, "vocab_size"},
               {SpmData({"a", "b", "ab"}), kNan, "bad_merge"}};
  for (const auto& c : cases) EXPECT_EQ(Reason(set(c.data, c.score)), c.reason);
}

TEST(TokenizerJson, ShapesThatWouldMeanAnotherTextAreRefusedByTheirKey) {
  const Json mark = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}};
  const struct {
    const char* shape;
    std::function<void(Json&)> spoil;
    std::string_view reason, key;
  } cases[] = {
      {"llama2", [](Json& j) { j["model"]["byte_fallback"] = false; }, "unsupported_normalizer",
       "normalizer"},
      {"llama2", [](Json& j) { j["model"]["ignore_merges"] = true; }, "unsupported_pre_tokenizer",
       "model.ignore_merges"},
      {"llama2",
       [](Json& j) {
         j["normalizer"]["normalizers"].push_back({{"type", "NFKC"}});
       },
       "unsupported_normalizer", "normalizer"},
      {"llama2", [](Json& j) { j["normalizer"]["normalizers"][0]["prepend"] = " "; },
       "unsupported_normalizer", "normalizer"},
      {"llama2", [](Json& j) { j["normalizer"]["normalizers"][1]["content"] = "_"; },
       "unsupported_normalizer", "normalizer"},
      {"llama2", [](Json& j) { j["normalizer"] = 5; }, "unsupported_normalizer", "normalizer"},
      {"llama2", [](Json& j) { j["normalizer"] = nullptr; }, "unsupported_pre_tokenizer", "pre_tokenizer"},
      {"llama2", [](Json& j) { j["decoder"]["decoders"].erase(3); }, "unsupported_tokenizer", "decoder"},
      {"llama2", [](Json& j) { j["decoder"]["decoders"][3]["start"] = 2; }, "unsupported_tokenizer",
       "decoder"},
      {"llama2", [](Json& j) { j["decoder"]["decoders"].erase(1); }, "unsupported_tokenizer", "decoder"},
      {"llama2", [](Json& j) { j["decoder"] = nullptr; }, "unsupported_tokenizer", "decoder"},
      {"llama2",
       [](Json& j) {
         j["decoder"] = {{"type", "Metaspace"}, {"replacement", "\u2581"}};
       },
       "unsupported_tokenizer", "decoder"},
      {"llama2", [](Json& j) { j["added_tokens"][1]["normalized"] = true; }, "unsupported_tokenizer",
       "added_tokens[1].normalized"},
      {"llama2", [](Json& j) { j["added_tokens"][1]["lstrip"] = true; }, "unsupported_tokenizer",
       "added_tokens[1].lstrip"},
      {"llama2",
       [](Json& j) {
         j["model"]["merge_ties"] = {1, 2};
       },
       "bad_merge", "model.merge_ties"},
      {"llama2", [](Json& j) { j["model"]["vocab"]["new"] = 7; }, "vocab_size", "model.vocab"},
      {"mistral",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "Whitespace"}};
       },
       "unsupported_pre_tokenizer", "pre_tokenizer"},
      {"metaspace-first-whole", [](Json& j) { j["pre_tokenizer"]["replacement"] = "_"; },
       "unsupported_pre_tokenizer", "pre_tokenizer"},
      {"metaspace-first-whole", [](Json& j) { j["pre_tokenizer"]["prepend_scheme"] = "last"; },
       "unsupported_pre_tokenizer", "pre_tokenizer"},
      {"metaspace-first-whole", [](Json& j) { j["pre_tokenizer"]["add_prefix_space"] = false; },
       "unsupported_pre_tokenizer", "pre_tokenizer"},
      {"metaspace-first-whole", [&](Json& j) { j["normalizer"] = mark; }, "unsupported_pre_tokenizer",
       "pre_tokenizer"},
      {"metaspace-never-whole", [](Json& j) { j["pre_tokenizer"]["prepend_scheme"] = "first"; },
       "unsupported_tokenizer", "decoder"},
      {"gemma", [](Json& j) { j["pre_tokenizer"]["behavior"] = "Removed"; }, "unsupported_pre_tokenizer",
       "pre_tokenizer"},
      {"gemma",
       [](Json& j) {
         j["added_tokens"].back()["content"] = "a b", j["added_tokens"].back()["normalized"] = true;
       },
       "unsupported_tokenizer", "added_tokens["},
      {"gemma", [](Json& j) { j["model"]["vocab"]["\n\n"] = j["model"]["vocab"]["<0x0A>"]; }, "vocab_size",
       "model.vocab"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(Concat(c.shape, " ", c.key, " ", &c - cases));
    Json file = ShapeOf(c.shape)["file"];
    c.spoil(file);
    const auto folder = FolderOf(file);
    const auto tokenizer = LoadTokenizerJson(folder->path());
    ASSERT_EQ(tokenizer.status().code(), StatusCode::kDataLoss);
    EXPECT_EQ(Reason(tokenizer.status()), c.reason) << tokenizer.status();
    EXPECT_THAT(Message(tokenizer.status()), HasSubstr(Concat("tokenizer.json: ", c.key)));
  }
}

TEST(TokenizerJson, OlderNamesOfASchemeMeanTheSame) {
  Json file = ShapeOf("metaspace-always-words")["file"];
  const std::string want = Load(file)->Serialize();
  file["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"add_prefix_space", true}};
  EXPECT_EQ(Load(file)->Serialize(), want);
  file = ShapeOf("metaspace-never-words")["file"];
  const std::string never = Load(file)->Serialize();
  file["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"add_prefix_space", false}};
  EXPECT_EQ(Load(file)->Serialize(), never);
}

TEST(SerializedTokenizer, AnyBytesOfASentencePieceOneGiveATokenizerOrAnError) {
  BpeData data = SpmData({"\u2581", "a", "b", "ab", "\u2581a", "\u2581ab", "<s>"});
  data.merges = {{"a", "b"}, {"\u2581", "a"}, {"\u2581", "ab"}};
  data.ties = {2, 1};
  data.added = {{262, "<s>", true}};
  ExpectATokenizerOrAnError((*MakeBpeTokenizer(data))->Serialize());
}

}  // namespace
}  // namespace terrace
