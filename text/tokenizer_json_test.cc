#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "text/testing_text.h"
#include "text/tokenizer.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string SerializedFrom(const ModelFolder& folder) {
  const auto tokenizer = LoadTokenizerJson(folder.path());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? (*tokenizer)->Serialize() : "";
}

TEST(TokenizerJson, DemoTokensAreThoseOfHuggingFace) {
  const auto tokenizer = LoadTokenizerJson("models/terrace-demo-nano");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const Json& c : ReadTestJson("text/testdata/demo_tokens.json")) {
    const std::string text = c["text"];
    EXPECT_EQ((*tokenizer)->Encode(MarkedText{text, {{0, text.size()}}}),
              c["tokens"].get<std::vector<TokenId>>())
        << c["text"];
  }
  const SpecialTokens& special = (*tokenizer)->special();
  EXPECT_EQ(special.bos, 0);
  EXPECT_THAT(special.end, ElementsAre(1));
  EXPECT_EQ(special.pad, 5);
  EXPECT_TRUE(special.add_bos);
  EXPECT_EQ((*tokenizer)->vocab_size(), 1024u);
}

TEST(TokenizerJson, MergesMayBePairsOrStrings) {
  const ModelFolder folder;
  const std::string as_strings = SerializedFrom(folder);
  folder.Edit("tokenizer.json", [](Json& json) {
    for (Json& merge : json["model"]["merges"]) {
      const std::string text = merge;
      merge = {text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1)};
    }
  });
  EXPECT_EQ(SerializedFrom(folder), as_strings);
}

TEST(TokenizerJson, AddedTokensMayLieOutsideTheVocabulary) {
  const ModelFolder folder;
  const std::string inside = SerializedFrom(folder);
  folder.Edit("tokenizer.json", [](Json& json) {
    for (const Json& added : json["added_tokens"])
      json["model"]["vocab"].erase(added["content"].get<std::string>());
  });
  EXPECT_EQ(SerializedFrom(folder), inside);
}

Json ByteLevel(bool use_regex) {
  return {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}
Json Split(const std::string& regex) {
  const Json step = {
      {"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", {step, ByteLevel(false)}}};
}

TEST(TokenizerJson, RecognisesThePreTokenizersOfModels) {
  const std::string llama = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
                            R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  std::string qwen = llama;
  qwen.erase(qwen.find("{1,3}"), 5);
  const struct {
    Json json;
    bool ignore_merges;
    std::string_view pre;
  } cases[] = {
      {ByteLevel(true), false, "gpt2"},
      {Split(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"), false, "gpt2"},
      {Split(llama), true, "llama-bpe"},
      {Split(llama), false, "dbrx"},
      {Split(qwen), false, "qwen2"}};
  for (const auto& c : cases) {
    const ModelFolder folder;
    folder.Edit("tokenizer.json", [&](Json& json) {
      json["pre_tokenizer"] = c.json;
      json["model"]["ignore_merges"] = c.ignore_merges;
      json["normalizer"] = {{"type", "NFC"}};
    });
    EXPECT_EQ(ParseJson(SerializedFrom(folder)).value_or(Json())["pre"], c.pre);
  }
}

TEST(TokenizerJson, SpecialTokensComeFromAllThreeFiles) {
  const struct {
    const char* name;
    void (*config)(Json&);
    void (*generation)(Json&);
    SpecialTokens want;
  } cases[] = {
      {"list of ends",
       [](Json&) {},
       [](Json& j) {
         j["eos_token_id"] = {4, 3};
       },
       {.bos = 0, .end = {1, 3, 4}, .pad = 5, .add_bos = true}},
      {"tokens as objects",
       [](Json& j) {
         j["bos_token"] = {{"content", "<|user|>"}};
       },
       [](Json& j) { j = Json::object(); },
       {.bos = 2, .end = {1}, .pad = 5, .add_bos = true}},
      {"ids only",
       [](Json& j) { j = Json::object(); },
       [](Json&) {},
       {.bos = 0, .end = {1}, .pad = 5, .add_bos = true}},
      {"no bos wanted",
       [](Json& j) { j["add_bos_token"] = false; },
       [](Json&) {},
       {.bos = 0, .end = {1}, .pad = 5, .add_bos = false}},
      {"post-processor decides, and adds another token",
       [](Json& j) { j.erase("add_bos_token"), j["bos_token"] = "<|user|>"; },
       [](Json&) {},
       {.bos = 2, .end = {1}, .pad = 5, .add_bos = false}},
      {"none at all", [](Json& j) { j = Json::object(); }, [](Json& j) { j = Json::object(); }, {}},
  };
  for (const auto& c : cases) {
    const ModelFolder folder;
    folder.Edit("tokenizer_config.json", c.config);
    folder.Edit("generation_config.json", c.generation);
    const auto tokenizer = LoadTokenizerJson(folder.path());
    ASSERT_TRUE(tokenizer.ok()) << c.name << tokenizer.status();
    const SpecialTokens& special = (*tokenizer)->special();
    EXPECT_EQ(special.bos, c.want.bos) << c.name;
    EXPECT_EQ(special.end, c.want.end) << c.name;
    EXPECT_EQ(special.pad, c.want.pad) << c.name;
    EXPECT_EQ(special.add_bos, c.want.add_bos) << c.name;
  }
}

TEST(TokenizerJson, OnlyTokenizerJsonMustBeThere) {
  const ModelFolder folder;
  folder.Remove("tokenizer_config.json");
  folder.Remove("generation_config.json");
  EXPECT_TRUE(LoadTokenizerJson(folder.path()).ok());
  folder.Remove("tokenizer.json");
  EXPECT_EQ(LoadTokenizerJson(folder.path()).status().code(), StatusCode::kNotFound);
}

TEST(TokenizerJson, ABadFileIsNamedWithKeyAndReason) {
  const struct {
    const char* file;
    void (*spoil)(Json&);
    std::string_view reason, key;
  } cases[] = {
      {"tokenizer.json", [](Json& j) { j["model"]["type"] = "Unigram"; }, "unsupported_tokenizer",
       "model.type"},
      {"tokenizer.json", [](Json& j) { j["model"]["byte_fallback"] = true; }, "unsupported_tokenizer",
       "model.byte_fallback"},
      {"tokenizer.json", [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, "unsupported_tokenizer",
       "model.end_of_word_suffix"},
      {"tokenizer.json", [](Json& j) { j["model"]["dropout"] = 0.1; }, "unsupported_tokenizer",
       "model.dropout"},
      {"tokenizer.json", [](Json& j) { j["decoder"]["type"] = "WordPiece"; }, "unsupported_tokenizer",
       "decoder"},
      {"tokenizer.json", [](Json& j) { j["added_tokens"][2]["rstrip"] = true; }, "unsupported_tokenizer",
       "added_tokens[2].rstrip"},
      {"tokenizer.json",
       [](Json& j) {
         j["normalizer"] = {{"type", "Lowercase"}};
       },
       "unsupported_normalizer", "normalizer"},
      {"tokenizer.json", [](Json& j) { j["pre_tokenizer"] = nullptr; }, "unsupported_pre_tokenizer",
       "pre_tokenizer"},
      {"tokenizer.json", [](Json& j) { j["pre_tokenizer"] = Split("(a+)+$"); }, "unsupported_pre_tokenizer",
       "pre_tokenizer"},
      {"tokenizer.json",
       [](Json& j) { j["pre_tokenizer"] = ByteLevel(true), j["pre_tokenizer"]["add_prefix_space"] = true; },
       "unsupported_pre_tokenizer", "pre_tokenizer"},
      {"tokenizer.json", [](Json& j) { j["model"]["ignore_merges"] = true; }, "unsupported_pre_tokenizer",
       "model.ignore_merges"},
      {"tokenizer.json", [](Json& j) { j["model"].erase("vocab"); }, "type_mismatch", "model.vocab"},
      {"tokenizer.json", [](Json& j) { j["model"]["vocab"]["a"] = "7"; }, "type_mismatch", "model.vocab.a"},
      {"tokenizer.json", [](Json& j) { j["model"]["vocab"]["a"] = -1; }, "vocab_size", "model.vocab.a"},
      {"tokenizer.json", [](Json& j) { j["model"]["vocab"]["a"] = 1'000'000'000; }, "vocab_size",
       "model.vocab.a"},
      {"tokenizer.json", [](Json& j) { j["model"]["vocab"]["new"] = 7; }, "vocab_size", "model.vocab"},
      {"tokenizer.json", [](Json& j) { j["model"]["vocab"]["new"] = 1025; }, "vocab_size", "model.vocab"},
      {"tokenizer.json", [](Json& j) { j["model"]["merges"][17] = "t zzz"; }, "bad_merge",
       "model.merges[17]"},
      {"tokenizer.json", [](Json& j) { j["model"]["merges"][17] = "tzzz"; }, "bad_merge", "model.merges[17]"},
      {"tokenizer.json", [](Json& j) { j["model"]["merges"][17] = "a b c"; }, "bad_merge",
       "model.merges[17]"},
      {"tokenizer.json", [](Json& j) { j["model"]["merges"][17] = Json::array({"a"}); }, "bad_merge",
       "model.merges[17]"},
      {"tokenizer.json", [](Json& j) { j["model"]["merges"][17] = 5; }, "type_mismatch", "model.merges[17]"},
      {"tokenizer.json", [](Json& j) { j["added_tokens"][1]["content"] = ""; }, "bad_added_token",
       "added_tokens[1]"},
      {"tokenizer.json", [](Json& j) { j["added_tokens"][1]["id"] = 40; }, "bad_added_token",
       "added_tokens[1]"},
      {"tokenizer.json", [](Json& j) { j["added_tokens"][1] = j["added_tokens"][0]; }, "bad_added_token",
       "added_tokens[1]"},
      {"tokenizer_config.json", [](Json& j) { j["bos_token"] = "<none>"; }, "bad_special_id", "bos_token"},
      {"tokenizer_config.json", [](Json& j) { j["eos_token"] = 1; }, "type_mismatch", "eos_token"},
      {"tokenizer_config.json", [](Json& j) { j["add_bos_token"] = "yes"; }, "type_mismatch",
       "add_bos_token"},
      {"generation_config.json", [](Json& j) { j["eos_token_id"] = 5000; }, "bad_special_id", "eos_token_id"},
      {"generation_config.json",
       [](Json& j) {
         j["eos_token_id"] = {1, -1};
       },
       "bad_special_id", "eos_token_id[1]"},
      {"generation_config.json", [](Json& j) { j = Json::array(); }, "type_mismatch", "not an object"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(Concat(c.file, " ", c.key));
    const ModelFolder folder;
    folder.Edit(c.file, c.spoil);
    const auto tokenizer = LoadTokenizerJson(folder.path());
    ASSERT_EQ(tokenizer.status().code(), StatusCode::kDataLoss);
    EXPECT_EQ(Reason(tokenizer.status()), c.reason) << tokenizer.status();
    EXPECT_THAT(Message(tokenizer.status()), HasSubstr(Concat(folder.path(), "/", c.file, ": ", c.key)));
  }
}

TEST(TokenizerJson, FilesThatAreNotJsonAreRefused) {
  const struct {
    std::string text;
    std::string_view reason;
  } cases[] = {{"", "invalid_json"},
               {"{\"model\":", "invalid_json"},
               {std::string(100'000, '['), "json_limit"},
               {R"({"model":{"vocab":{"a":0,"a":1}}})", "duplicate_key"},
               {"{\"model\":\"\xFF\"}", "invalid_unicode"}};
  for (const auto& c : cases) {
    const ModelFolder folder;
    folder.Write("tokenizer.json", c.text);
    const auto tokenizer = LoadTokenizerJson(folder.path());
    EXPECT_EQ(tokenizer.status().code(), StatusCode::kDataLoss);
    EXPECT_EQ(Reason(tokenizer.status()), c.reason) << c.text.substr(0, 40);
  }
}

TEST(TokenizerJson, AnyFileGivesATokenizerOrAnError) {
  const std::string good = ReadTestJson("models/terrace-demo-nano/tokenizer.json").dump();
  const ModelFolder folder;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    folder.Write("tokenizer.json", Mutate(good, random));
    const auto tokenizer = LoadTokenizerJson(folder.path());
    if (tokenizer.ok()) {
      const std::string text = RandomText(random, 20, /*broken=*/true);
      (*tokenizer)->Decode((*tokenizer)->Encode(MarkedText{text, {{0, text.size()}}}));
    } else {
      ASSERT_EQ(tokenizer.status().code(), StatusCode::kDataLoss);
      ASSERT_NE(Reason(tokenizer.status()), "") << tokenizer.status();
    }
  }
}

}  // namespace
}  // namespace terrace
