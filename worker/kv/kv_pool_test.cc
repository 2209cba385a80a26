#include "worker/kv/kv_pool.h"

#include <algorithm>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(KvPool, LayersKeysAndValuesDoNotOverlap) {
  const KvShape shape{.layers = 3, .kv_heads = 2, .head_dim = 4, .block_tokens = 5, .blocks = 7};
  auto pool = KvPool::Create(shape);
  ASSERT_TRUE(pool.ok());
  const size_t floats = size_t{7} * 2 * 5 * 4;
  EXPECT_EQ(shape.BlockBytes() * 7, 2 * 3 * floats * sizeof(float));
  for (uint32_t layer = 0; layer < 3; ++layer) {
    std::fill_n((*pool)->keys(layer), floats, static_cast<float>(2 * layer));
    std::fill_n((*pool)->values(layer), floats, static_cast<float>(2 * layer + 1));
  }
  for (uint32_t layer = 0; layer < 3; ++layer) {
    const float* keys = (*pool)->keys(layer);
    const float* values = (*pool)->values(layer);
    EXPECT_TRUE(
        std::all_of(keys, keys + floats, [&](float x) { return x == static_cast<float>(2 * layer); }));
    EXPECT_TRUE(std::all_of(values, values + floats,
                            [&](float x) { return x == static_cast<float>(2 * layer + 1); }));
  }
}

TEST(KvPool, MoreThanAnAddressCanReachIsAnError) {
  const auto pool = KvPool::Create({.layers = 1u << 30,
                                    .kv_heads = 1u << 30,
                                    .head_dim = 1u << 10,
                                    .block_tokens = 16,
                                    .blocks = 1u << 20});
  EXPECT_EQ(pool.status().code(), StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace terrace
