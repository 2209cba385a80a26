#include <algorithm>
#include <numeric>

#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "text/pre_tokenizer.h"
#include "text/testing_text.h"
#include "text/tokenizer.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::unique_ptr<Tokenizer> Make(BpeData data) {
  auto tokenizer = MakeBpeTokenizer(std::move(data));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

// The definition: in each piece, again and again, join the pair of lowest rank, the leftmost of equals.
std::vector<TokenId> NaiveEncode(const BpeData& data, std::string_view text) {
  const auto id_of = [&](const std::string& token) {
    return static_cast<TokenId>(std::ranges::find(data.tokens, token) - data.tokens.begin());
  };
  std::vector<TokenId> out;
  ForEachPiece(*FindPreTokenizer(data.pre), text, [&](std::string_view piece) {
    std::vector<std::string> symbols;
    for (const char c : piece) symbols.push_back(data.tokens[static_cast<uint8_t>(c)]);
    for (size_t rank = 0; rank < data.merges.size();) {
      const auto& [left, right] = data.merges[rank++];
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        if (symbols[i] != left || symbols[i + 1] != right) continue;
        symbols[i] += right;
        symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(i) + 1);
        rank = 0;  // the new symbol may take part in an earlier merge
      }
    }
    for (const auto& symbol : symbols) out.push_back(id_of(symbol));
  });
  return out;
}

TEST(BpeTokenizer, MergesAsTheDefinitionSays) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    const BpeData data = RandomData(seed, 40);
    const auto tokenizer = Make(data);
    std::mt19937_64 random(seed);
    std::string text;
    const std::string_view letters = seed % 2 == 0 ? "aaabbbccc é" : "aaabbbccc";  // words, or one long one
    for (int i = 0; i < 60; ++i) text += letters[random() % letters.size()];
    ASSERT_EQ(tokenizer->Encode(text), NaiveEncode(data, text)) << text;
  }
}

TEST(BpeTokenizer, WhatAnotherTokenizerMadeOfAPieceIsNothingToThisOne) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    const BpeData one = RandomData(seed, 40), other = RandomData(seed + 1000, 40);
    const auto first = Make(one), second = Make(other);
    std::mt19937_64 random(seed);
    std::string text;
    for (int i = 0; i < 200; ++i) text += std::string_view("aab bcc é")[random() % 10];
    for (int round = 0; round < 3; ++round) {
      ASSERT_EQ(first->Encode(text), NaiveEncode(one, text)) << text;
      ASSERT_EQ(second->Encode(text), NaiveEncode(other, text)) << text;
    }
  }
}

TEST(BpeTokenizer, GivesAnyBytesBack) {
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    SCOPED_TRACE(seed);
    BpeData data = RandomData(seed % 10, 40);
    data.pre = std::string_view((const char*[]){"gpt2", "smollm", "llama-bpe", "qwen2"}[seed % 4]);
    const auto tokenizer = Make(std::move(data));
    std::mt19937_64 random(seed);
    std::string text = RandomText(random, 40, /*broken=*/true);
    for (int i = 0; i < 20; ++i) text.push_back(static_cast<char>(random()));
    ASSERT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
  }
}

// A quadratic merge loop would need hours for a piece of this length.
TEST(BpeTokenizer, AMegabyteWithoutSpacesIsNoTrouble) {
  BpeData data = ByteData();
  for (std::string token = "a"; token.size() < 1024; token += token) {
    data.merges.emplace_back(token, token);
    data.tokens.push_back(token + token);
  }
  const auto tokenizer = Make(std::move(data));
  for (const auto& [unit, count] : {std::pair("a", 1 << 10), std::pair("ab", 1 << 20)}) {
    std::string text;
    while (text.size() < size_t{1} << 20) text += unit;
    const std::vector<TokenId> tokens = tokenizer->Encode(text);
    EXPECT_EQ(tokens.size(), static_cast<size_t>(count));
    EXPECT_EQ(tokenizer->Decode(tokens), text);
  }
}

TEST(BpeTokenizer, LeavesOutBytesWithoutToken) {
  BpeData data;
  data.tokens = {"a", "b", "ab"};
  data.merges = {{"a", "b"}};
  EXPECT_THAT(Make(std::move(data))->Encode("abXa"), ElementsAre(2, 0));
}

TEST(BpeTokenizer, LlamaTakesAPieceThatIsATokenWhole) {
  BpeData data = ByteData("llama-bpe");
  data.tokens.push_back("Ġabc");  // 256, which no merge makes
  EXPECT_THAT(Make(data)->Encode("a abc abcd"), ElementsAre('a', 256, ' ', 'a', 'b', 'c', 'd'));
  data.pre = "dbrx";
  EXPECT_EQ(Make(data)->Encode("a abc").size(), 5u);
}

// ---- added tokens

BpeData DataWithAdded() {
  BpeData data = ByteData();
  for (const char* content : {"<|u|>", "<|u|>!", "<tool>", "<t"}) {
    const auto id = static_cast<TokenId>(data.tokens.size());
    data.added.push_back({id, content, /*is_control=*/id < 258});
    data.tokens.push_back(content);
  }
  return data;  // 256, 257 control; 258, 259 not
}

TEST(AddedTokens, ControlTokensAreReadOnlyInsideControlRanges) {
  const auto tokenizer = Make(DataWithAdded());
  const std::string text = "<|u|>x<|u|>";
  const auto encode = [&](std::vector<ByteRange> control) {
    std::vector<TokenId> tokens = tokenizer->Encode(MarkedText{text, std::move(control)});
    std::erase_if(tokens, [](TokenId token) { return token < 256; });
    return tokens.size();
  };
  EXPECT_EQ(encode({{0, 11}}), 2u);
  EXPECT_EQ(encode({{0, 5}}), 1u);
  EXPECT_EQ(encode({{6, 11}}), 1u);
  EXPECT_EQ(encode({{0, 3}, {3, 5}}), 1u) << "adjacent ranges are one";
  EXPECT_EQ(encode({{0, 4}, {6, 10}}), 0u) << "the last byte is not control";
  EXPECT_EQ(encode({{1, 5}, {7, 11}}), 0u);
  EXPECT_EQ(encode({{0, 2}, {3, 5}}), 0u) << "a byte between is not control";
  EXPECT_EQ(encode({}), 0u);
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text) << "without marks it is plain text";
}

TEST(AddedTokens, TheLeftmostThenTheLongestWins) {
  const auto tokenizer = Make(DataWithAdded());
  const auto encode = [&](const std::string& text, size_t control) {
    return tokenizer->Encode(MarkedText{text, {{0, control}}});
  };
  EXPECT_THAT(encode("<|u|>!", 6), ElementsAre(257));
  EXPECT_THAT(encode("<|u|>!", 5), ElementsAre(256, '!')) << "the longer one is not all control";
  EXPECT_THAT(encode("<tool>", 0), ElementsAre(258)) << "not control: matched anywhere";
  EXPECT_THAT(encode("<too", 4), ElementsAre(259, 'o', 'o'));
  EXPECT_THAT(encode("<<t", 3), ElementsAre('<', 259));
}

TEST(AddedTokens, MayBeginDifferently) {
  BpeData data = DataWithAdded();
  const auto encode = [](const BpeData& of, const std::string& text) { return Make(of)->Encode(text); };
  EXPECT_THAT(encode(data, "a[x]<tool>["), ElementsAre('a', '[', 'x', ']', 258, '['));
  data.added.push_back({260, "[x]", /*is_control=*/false});
  data.tokens.push_back("[x]");
  EXPECT_THAT(encode(data, "a[x]<tool>[x]["), ElementsAre('a', 260, 258, 260, '['));
  EXPECT_THAT(encode(ByteData(), "<t["), ElementsAre('<', 't', '[')) << "none at all";
}

TEST(AddedTokens, OnlyControlTokensHaveNoBytes) {
  const auto tokenizer = Make(DataWithAdded());
  EXPECT_EQ(tokenizer->TokenBytes(256), "");
  EXPECT_EQ(tokenizer->TokenBytes(256, /*with_control=*/true), "<|u|>");
  EXPECT_EQ(tokenizer->TokenBytes(258), "<tool>");
  EXPECT_TRUE(tokenizer->IsControl(257));
  EXPECT_FALSE(tokenizer->IsControl(258));
  for (const TokenId outside : {-1, 260, 1 << 30}) {
    EXPECT_EQ(tokenizer->TokenBytes(outside, true), "");
    EXPECT_FALSE(tokenizer->IsControl(outside));
  }
}

// However text is marked: control tokens never come out of bytes that are not control, and nothing is lost.
TEST(AddedTokens, RandomMarksNeverLetMessagesSpeakControl) {
  const auto tokenizer = Make(DataWithAdded());
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    MarkedText text;
    std::vector<bool> is_control;
    for (int i = 0; i < 12; ++i) {
      const std::string_view part =
          (const std::string_view[]){"<|u|>", "<|u", "|>", "!", "<t", "ool>", "a "}[random() % 7];
      const bool control = random() % 2 == 0;
      if (control) text.control.push_back({text.text.size(), text.text.size() + part.size()});
      text.text += part;
      is_control.resize(text.text.size(), control);
    }
    size_t at = 0;
    for (const TokenId token : tokenizer->Encode(text)) {
      const std::string_view bytes = tokenizer->TokenBytes(token, /*with_control=*/true);
      ASSERT_EQ(text.text.substr(at, bytes.size()), bytes);
      for (size_t i = at; i < at + bytes.size() && tokenizer->IsControl(token); ++i)
        ASSERT_TRUE(is_control[i]);
      at += bytes.size();
    }
    ASSERT_EQ(at, text.text.size());
  }
}

// ---- making and serializing

TEST(MakeBpeTokenizer, RefusesBadParts) {
  const struct {
    const char* name;
    void (*spoil)(BpeData&);
    std::string_view reason;
    std::string_view key;
  } cases[] = {
      {"no tokens", [](BpeData& d) { d.tokens.clear(); }, "vocab_size", "tokens"},
      {"too many", [](BpeData& d) { d.tokens.resize((1 << 20) + 1, "x"); }, "vocab_size", "tokens"},
      {"empty token", [](BpeData& d) { d.tokens[7] = ""; }, "vocab_size", "tokens[7]"},
      {"long token", [](BpeData& d) { d.tokens[7] = std::string((64 << 10) + 1, 'x'); }, "vocab_size",
       "tokens[7]"},
      {"not UTF-8", [](BpeData& d) { d.tokens[7] = "\xFF"; }, "vocab_size", "tokens[7]"},
      {"token twice", [](BpeData& d) { d.tokens[9] = d.tokens[8]; }, "vocab_size", "tokens[9]"},
      {"unknown pre", [](BpeData& d) { d.pre = "x"; }, "unsupported_pre_tokenizer", "pre"},
      {"absent left",
       [](BpeData& d) {
         d.merges = {{"a", "b"}}, d.merges[0].first = "zz";
       },
       "bad_merge", "merges[0]"},
      {"absent right",
       [](BpeData& d) {
         d.merges = {{"a", "zz"}};
       },
       "bad_merge", "merges[0]"},
      {"absent result",
       [](BpeData& d) {
         d.merges = {{"a", "b"}};
       },
       "bad_merge", "merges[0]"},
      {"makes control",
       [](BpeData& d) {
         d.tokens.push_back("ab"), d.added.push_back({260, "ab"}), d.merges = {{"a", "b"}};
       },
       "bad_merge", "merges[0]"},
      {"pair twice",
       [](BpeData& d) {
         d.tokens.push_back("ab"), d.merges = {{"a", "b"}, {"a", "b"}};
       },
       "bad_merge", "merges[1]"},
      {"added out of range", [](BpeData& d) { d.added[0].id = 9999; }, "bad_added_token", "added[0]"},
      {"added negative", [](BpeData& d) { d.added[1].id = -1; }, "bad_added_token", "added[1]"},
      {"added empty", [](BpeData& d) { d.added[0].content = ""; }, "bad_added_token", "added[0]"},
      {"added other text", [](BpeData& d) { d.added[0].content = "y"; }, "bad_added_token", "added[0]"},
      {"added twice", [](BpeData& d) { d.added.push_back(d.added[0]); }, "bad_added_token", "added[4]"},
      {"added too long", [](BpeData& d) { d.added[0].content = d.tokens[256] = std::string(2000, 'x'); },
       "bad_added_token", "added[0]"},
      {"bos", [](BpeData& d) { d.special.bos = 9999; }, "bad_special_id", "special.bos"},
      {"bos wanted, not there", [](BpeData& d) { d.special.add_bos = true; }, "bad_special_id",
       "special.bos"},
      {"pad", [](BpeData& d) { d.special.pad = -2; }, "bad_special_id", "special.pad"},
      {"end",
       [](BpeData& d) {
         d.special.end = {1, -1};
       },
       "bad_special_id", "special.end"},
  };
  for (const auto& c : cases) {
    BpeData data = DataWithAdded();
    c.spoil(data);
    const auto tokenizer = MakeBpeTokenizer(std::move(data));
    ASSERT_EQ(tokenizer.status().code(), StatusCode::kDataLoss) << c.name;
    EXPECT_EQ(Reason(tokenizer.status()), c.reason) << c.name;
    EXPECT_THAT(Message(tokenizer.status()), HasSubstr(std::string(c.key) + ":")) << c.name;
  }
}

TEST(SerializedTokenizer, IsCanonicalAndGivesTheSameTokenizer) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE(seed);
    BpeData data = RandomData(seed, 40);
    for (const char* content : {"<s>", "</s>", "<x>"}) {
      data.added.push_back({static_cast<TokenId>(data.tokens.size()), content, content[1] != 'x'});
      data.tokens.push_back(content);
    }
    const TokenId bos = data.added[0].id;
    data.special = {.bos = bos, .end = {bos + 1, bos, bos + 1}, .pad = -1, .add_bos = true};
    BpeData shuffled = data;
    std::ranges::reverse(shuffled.added);
    shuffled.special.end = {bos, bos + 1};
    const auto tokenizer = Make(std::move(data));
    EXPECT_EQ(tokenizer->Serialize(), Make(std::move(shuffled))->Serialize());

    const auto copy = ParseTokenizer(tokenizer->Serialize());
    ASSERT_TRUE(copy.ok()) << copy.status();
    EXPECT_EQ((*copy)->Serialize(), tokenizer->Serialize());
    EXPECT_EQ((*copy)->vocab_size(), tokenizer->vocab_size());
    EXPECT_THAT((*copy)->special().end, ElementsAre(bos, bos + 1));
    std::mt19937_64 random(seed);
    const std::string text = RandomText(random, 50, /*broken=*/true) + "<s>x<x>";
    const MarkedText marked{text, {{0, text.size()}}};
    EXPECT_EQ((*copy)->Encode(marked), tokenizer->Encode(marked));
  }
}

TEST(SerializedTokenizer, RefusesBadFields) {
  const std::string good = Make(DataWithAdded())->Serialize();
  const struct {
    const char* name;
    void (*spoil)(Json&);
    std::string_view reason;
  } cases[] = {
      {"format", [](Json& j) { j["format"] = "other"; }, "unsupported_tokenizer"},
      {"no tokens", [](Json& j) { j.erase("tokens"); }, "type_mismatch"},
      {"token of another type", [](Json& j) { j["tokens"][3] = 3; }, "type_mismatch"},
      {"half a merge",
       [](Json& j) {
         j["merges"] = {1, 2, 3};
       },
       "bad_merge"},
      {"merge id",
       [](Json& j) {
         j["merges"] = {1, 1u << 30};
       },
       "bad_merge"},
      {"merge id negative",
       [](Json& j) {
         j["merges"] = {-1, 1};
       },
       "bad_merge"},
      {"merge id huge",
       [](Json& j) {
         j["merges"] = {1, UINT64_MAX};
       },
       "bad_merge"},
      {"merge float",
       [](Json& j) {
         j["merges"] = {1.5, 2};
       },
       "type_mismatch"},
      {"added id", [](Json& j) { j["added"][0][0] = 1000; }, "bad_added_token"},
      {"added short", [](Json& j) { j["added"][0] = Json::array({256}); }, "type_mismatch"},
      {"bos", [](Json& j) { j["special"]["bos"] = 1000; }, "bad_special_id"},
      {"end", [](Json& j) { j["special"]["end"] = {-1}; }, "bad_special_id"},
      {"add_bos", [](Json& j) { j["special"]["add_bos"] = 1; }, "type_mismatch"},
      {"not an object", [](Json& j) { j = Json::array(); }, "type_mismatch"},
  };
  for (const auto& c : cases) {
    Json json = *ParseJson(good);
    c.spoil(json);
    const auto tokenizer = ParseTokenizer(json.dump());
    EXPECT_EQ(tokenizer.status().code(), StatusCode::kDataLoss) << c.name;
    EXPECT_EQ(Reason(tokenizer.status()), c.reason) << c.name << ": " << tokenizer.status();
  }
}

// A small message must not make the receiver copy a large token for each of many merges.
TEST(SerializedTokenizer, AMergeBombIsRefusedAtOnce) {
  Json json = *ParseJson(Make(ByteData())->Serialize());
  json["tokens"].push_back(std::string(60 << 10, 'x'));
  json["merges"] = Json(std::vector<int>(2'000'000, 256));
  EXPECT_EQ(Reason(ParseTokenizer(json.dump()).status()), "bad_merge");
}

TEST(SerializedTokenizer, AnyBytesGiveATokenizerOrAnError) {
  ExpectATokenizerOrAnError(Make(RandomData(/*seed=*/5, 20))->Serialize());
}

}  // namespace
}  // namespace terrace
