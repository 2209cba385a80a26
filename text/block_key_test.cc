#include "text/block_key.h"

#include <numeric>
#include <set>

#include "gtest/gtest.h"

namespace terrace {
namespace {

std::vector<int32_t> Rising(size_t count) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

std::vector<Hash128> KeysOf(const Hash128& root, const std::vector<int32_t>& tokens, uint32_t block_tokens) {
  std::vector<Hash128> keys;
  ExtendBlockKeys(root, tokens, block_tokens, keys);
  return keys;
}

TEST(BlockKey, OnlyWholeBlocksHaveKeys) {
  const Hash128 root = RootBlockKey({});
  for (const size_t count : {0, 1, 15, 16, 17, 31, 32, 100})
    EXPECT_EQ(KeysOf(root, Rising(count), 16).size(), count / 16);
}

TEST(BlockKey, GrownTokenByTokenTheKeysAreTheSame) {
  const Hash128 root = RootBlockKey({.model = "m"});
  const auto tokens = Rising(100);
  std::vector<Hash128> keys;
  for (size_t count = 0; count <= tokens.size(); ++count)
    ExtendBlockKeys(root, std::span(tokens).first(count), 7, keys);
  EXPECT_EQ(keys, KeysOf(root, tokens, 7));
}

TEST(BlockKey, AChangedTokenChangesItsBlockAndAllAfter) {
  const Hash128 root = RootBlockKey({});
  auto tokens = Rising(64);
  const auto before = KeysOf(root, tokens, 16);
  tokens[20] = 1000;
  const auto after = KeysOf(root, tokens, 16);
  EXPECT_EQ(before[0], after[0]);
  for (size_t i = 1; i < 4; ++i) EXPECT_NE(before[i], after[i]);
}

TEST(BlockKey, EqualTokensAtAnotherPlaceHaveAnotherKey) {
  const auto keys = KeysOf(RootBlockKey({}), std::vector<int32_t>(64, 5), 16);
  EXPECT_EQ(std::set<Hash128>(keys.begin(), keys.end()).size(), keys.size());
}

TEST(BlockKey, EveryPartOfTheScopeSeparates) {
  const std::set<Hash128> roots = {
      RootBlockKey({}),
      RootBlockKey({.secret = 1}),
      RootBlockKey({.model = "a"}),
      RootBlockKey({.layout = "a"}),
      RootBlockKey({.salt = "a"}),
      RootBlockKey({.adapter = "a"}),
      RootBlockKey({.salt = "ab", .adapter = "c"}),
      RootBlockKey({.salt = "a", .adapter = "bc"}),
  };
  EXPECT_EQ(roots.size(), 8u);
}

TEST(BlockKey, ARootIsTheHashOfItsParts) {
  for (const size_t size : {0, 1, 20, 60, 61, 200, 3000}) {  // the hash has a way for each of several sizes
    for (const uint64_t secret : {0, 7}) {
      const BlockKeyScope scope = {.secret = secret,
                                   .model = std::string(size, 'm'),
                                   .layout = "layout",
                                   .salt = std::string(size / 2, 's')};
      const Hash128 want =
          Hasher(secret).Add(scope.model).Add(scope.layout).Add(scope.salt).Add(scope.adapter).Finish();
      EXPECT_EQ(RootBlockKey(scope), want) << size;
    }
  }
}

// Stored blocks outlive a process and meet other builds: the values are part of the format.
TEST(BlockKey, ValuesAreFixed) {
  const auto keys =
      KeysOf(RootBlockKey({.secret = 7, .model = "m", .layout = "f32", .salt = "t"}), Rising(32), 16);
  ASSERT_EQ(keys.size(), 2u);
  EXPECT_EQ(keys[0].Hex(), "a7a2a798e90b6e654b716d2e0baacc85");
  EXPECT_EQ(keys[1].Hex(), "fa8c6d07d3a41466e90e94a07455bac6");
}

}  // namespace
}  // namespace terrace
