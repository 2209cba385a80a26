#include "text/token_cache.h"

#include <string>
#include <thread>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "text/testing_text.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr TokenCache::Space kSpace = {.tokenizer = 1};

// What a cache gives for `text`; nothing when it is not known.
std::vector<TokenId> Get(TokenCache& cache, std::string_view text, const TokenCache::Space& space = kSpace) {
  std::vector<TokenId> out;
  const bool is_known = cache.Append(space, text, out);
  EXPECT_EQ(is_known, !out.empty());
  return out;
}

TEST(TokenCache, GivesTokensForTheSameTextInTheSameSpaceAlone) {
  TokenCache cache(1 << 20);
  const TokenCache::Space other_tokenizer = {.tokenizer = 2};
  const TokenCache::Space other_scope = {.tokenizer = 1, .scope = HashBytes("acme")};
  cache.Put(kSpace, "a text", std::vector<TokenId>{1, 2});
  cache.Put(other_tokenizer, "a text", std::vector<TokenId>{3});
  EXPECT_THAT(Get(cache, "a text"), ElementsAre(1, 2));
  EXPECT_THAT(Get(cache, "a text", other_tokenizer), ElementsAre(3));
  EXPECT_THAT(Get(cache, "a text", other_scope), IsEmpty());
  EXPECT_THAT(Get(cache, "a tex"), IsEmpty());
  EXPECT_THAT(Get(cache, "a textt"), IsEmpty());
  cache.Put(kSpace, "a text", std::vector<TokenId>{1, 2});
  std::vector<TokenId> out = {9};
  EXPECT_TRUE(cache.Append(kSpace, "a text", out));
  EXPECT_THAT(out, ElementsAre(9, 1, 2)) << "behind what is there";
  EXPECT_EQ(cache.counts().hit, 18u);
  EXPECT_EQ(cache.counts().missed, 18u);
}

TEST(TokenCache, StaysWithinItsBytesAndKeepsWhatIsUsed) {
  constexpr size_t kMaxBytes = 128 << 10;
  TokenCache cache(kMaxBytes);
  const std::vector<TokenId> tokens(50, 7);
  const auto text = [](int i) { return Concat(std::string(200, 'x'), i); };
  cache.Put(kSpace, "in use", tokens);
  for (int i = 0; i < 2000; ++i) {
    cache.Put(kSpace, text(i), tokens);
    ASSERT_LE(cache.bytes(), kMaxBytes);
    ASSERT_EQ(Get(cache, "in use"), tokens) << i;
  }
  EXPECT_GT(cache.bytes(), kMaxBytes / 2) << "it is full";
  EXPECT_EQ(Get(cache, text(1999)), tokens);
  EXPECT_THAT(Get(cache, text(0)), IsEmpty());
  const size_t before = cache.bytes();
  cache.Put(kSpace, std::string(kMaxBytes, 'y'), tokens);
  EXPECT_EQ(cache.bytes(), before) << "what is too large pushes nothing out";
}

TEST(TokenCache, ThreadsNeverSeeAnotherTextsTokens) {
  TokenCache cache(64 << 10);
  std::vector<std::jthread> threads;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&cache, seed] {
      std::mt19937_64 random(seed);
      for (int i = 0; i < 3000; ++i) {
        const auto number = static_cast<TokenId>(random() % 300);
        const std::string text = Concat("text ", number);
        std::vector<TokenId> out;
        if (cache.Append(kSpace, text, out)) {
          ASSERT_EQ(out, std::vector<TokenId>(100, number)) << "seed " << seed;
        } else {
          cache.Put(kSpace, text, std::vector<TokenId>(100, number));
        }
      }
    });
  }
}

// ---- A tokenizer with a cache.

// A random tokenizer with control tokens, and others that hold what text may be cut at.
std::unique_ptr<Tokenizer> MakeTokenizer(uint64_t seed, std::string_view pre) {
  BpeData data = RandomData(seed, 40);
  data.pre = pre;
  for (const char* content : {"<|u|>", "<|a b|>", "abc abc", "c!"}) {
    data.added.push_back({static_cast<TokenId>(data.tokens.size()), content, content[0] == '<'});
    data.tokens.push_back(content);
  }
  auto tokenizer = MakeBpeTokenizer(std::move(data));
  CHECK(tokenizer.ok(), Message(tokenizer.status()));
  return *std::move(tokenizer);
}

// Text of parts that occur again and again, long and short ones, some of them marked as control.
MarkedText RandomParts(std::mt19937_64& random, const std::vector<std::string>& parts) {
  MarkedText out;
  for (size_t count = random() % 8; count > 0; --count) {
    std::string_view part = parts[random() % parts.size()];
    if (random() % 4 == 0) part = part.substr(0, random() % (part.size() + 1));
    const size_t begin = out.text.size();
    out.text += part;
    const std::string_view mark = random() % 2 == 0 ? "<|u|>" : "<|a b|>";
    if (random() % 2 == 0) {
      out.text += mark;
      out.control.push_back({begin + part.size(), out.text.size()});
    } else if (random() % 4 == 0) {
      out.control.push_back({begin, out.text.size()});
    }
  }
  return out;
}

TEST(EncodeCached, GivesTheTokensThatEncodeGives) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const char* const pre = (const char*[]){"gpt2", "smollm", "llama-bpe", "dbrx", "qwen2"}[seed % 5];
    const auto tokenizer = MakeTokenizer(seed, pre);
    std::vector<std::string> parts;
    for (const size_t pieces : {3, 30, 100, 900, 3000})
      parts.push_back(RandomText(random, pieces, /*broken=*/seed % 3 == 0));
    TokenCache cache(seed % 2 == 0 ? 1 << 20 : 256 << 10);
    const TokenCacheScope cached = {cache};
    for (int round = 0; round < 20; ++round) {
      const MarkedText text = RandomParts(random, parts);
      ASSERT_EQ(tokenizer->EncodeCached(text.text, text.control, cached), tokenizer->Encode(text)) << pre;
      ASSERT_EQ(tokenizer->EncodeCached(text.text, {}, cached), tokenizer->Encode(text.text)) << pre;
    }
    EXPECT_GT(cache.counts().hit, 0u);
  }
}

TEST(EncodeCached, WhatATextHasInCommonWithAnEarlierOneIsFoundButForItsEnd) {
  const auto tokenizer = MakeTokenizer(/*seed=*/1, "gpt2");
  std::string common;
  for (int i = 0; common.size() < 50'000; ++i) common += Concat("line ", i * i, " of it; ");
  TokenCache cache(4 << 20);
  const TokenCacheScope cached = {cache};
  tokenizer->EncodeCached(common + "one end", {}, cached);
  const auto before = cache.counts();
  EXPECT_EQ(before.hit, 0u);
  tokenizer->EncodeCached(common + "another", {}, cached);
  EXPECT_GT(cache.counts().hit, common.size() - 2048);
  const TokenCacheScope stranger = {cache, HashBytes("another tenant")};
  const uint64_t hit = cache.counts().hit;
  tokenizer->EncodeCached(common + "one end", {}, stranger);
  EXPECT_EQ(cache.counts().hit, hit);
}

TEST(EncodeCached, TextThatCannotBeCutIsEncodedAllTheSame) {
  const auto tokenizer = MakeTokenizer(/*seed=*/2, "llama-bpe");
  TokenCache cache(1 << 20);
  const TokenCacheScope cached = {cache};
  for (const std::string_view unit : {"a", "1", " ", "a1", "中"}) {
    std::string text;
    while (text.size() < 200'000) text += unit;
    ASSERT_EQ(tokenizer->EncodeCached(text, {}, cached), tokenizer->Encode(text)) << unit;
  }
  EXPECT_LE(cache.bytes(), size_t{1} << 20);
}

}  // namespace
}  // namespace terrace
