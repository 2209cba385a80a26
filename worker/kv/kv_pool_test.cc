#include "worker/kv/kv_pool.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

class EveryKvDType : public testing::TestWithParam<KvDType> {
 protected:
  static KvShape Shape() {
    return {.layers = 3,
            .kv_heads = 2,
            .head_dim = 6,
            .block_tokens = 5,
            .blocks = 7,
            .dtype = GetParam(),
            .host_blocks = 4};
  }
};
INSTANTIATE_TEST_SUITE_P(All, EveryKvDType, testing::ValuesIn(kEveryKvDType),
                         [](const auto& param_info) { return std::string(KvDTypeName(param_info.param)); });

// Every row of a pool as its bytes, in the order layer, keys or values, block, head, position.
struct Row {
  std::byte* data;
  float* scale;  // null without scales
};
std::vector<Row> AllRows(KvPool& pool) {
  const KvShape& shape = pool.shape();
  std::vector<Row> rows;
  for (uint32_t l = 0; l < shape.layers; ++l) {
    const KvLayer layer = pool.layer(l);
    for (const KvRows& part : {layer.keys, layer.values}) {
      for (size_t i = 0; i < size_t{shape.blocks} * shape.kv_heads * shape.block_tokens; ++i) {
        const size_t position = i % shape.block_tokens, head = i / shape.block_tokens % shape.kv_heads;
        const size_t block = i / shape.block_tokens / shape.kv_heads;
        const size_t row = (head * shape.blocks + block) * shape.block_tokens + position;
        rows.push_back({part.data + row * shape.head_dim * KvElementBytes(shape.dtype),
                        part.scales == nullptr ? nullptr : part.scales + row});
      }
    }
  }
  return rows;
}

std::string BytesOf(const KvShape& shape, const Row& row) {
  std::string bytes(reinterpret_cast<const char*>(row.data), shape.head_dim * KvElementBytes(shape.dtype));
  if (row.scale != nullptr) bytes.append(reinterpret_cast<const char*>(row.scale), sizeof(float));
  return bytes;
}

std::vector<std::string> Contents(KvPool& pool) {
  std::vector<std::string> contents;
  for (const Row& row : AllRows(pool)) contents.push_back(BytesOf(pool.shape(), row));
  return contents;
}

// Different bytes in every row.
void Fill(KvPool& pool, uint64_t seed) {
  const KvShape& shape = pool.shape();
  uint64_t index = 0;
  for (const Row& row : AllRows(pool)) {
    for (size_t i = 0; i < shape.head_dim * KvElementBytes(shape.dtype); ++i) {
      row.data[i] = static_cast<std::byte>(RandomBits(seed, ++index));
    }
    if (row.scale != nullptr) *row.scale = static_cast<float>(RandomUniform(seed, ++index, 1));
  }
}

size_t BlockOf(const KvShape& shape, size_t row) {
  return row / shape.block_tokens / shape.kv_heads % shape.blocks;
}

std::unique_ptr<KvPool> Create(const KvShape& shape) {
  auto pool = KvPool::Create(shape);
  CHECK(pool.ok(), Message(pool.status()));
  return *std::move(pool);
}

TEST_P(EveryKvDType, IsFoundByItsName) { EXPECT_EQ(*ParseKvDType(KvDTypeName(GetParam())), GetParam()); }

TEST_P(EveryKvDType, RowsDoNotOverlapAndFillTheBytesOfTheirBlocks) {
  const auto pool = Create(Shape());
  Fill(*pool, /*seed=*/1);
  size_t bytes = 0;
  for (const std::string& row : Contents(*pool)) bytes += row.size();
  EXPECT_EQ(bytes, Shape().BlockBytes() * Shape().blocks);
  std::set<const void*> touched;
  for (const Row& row : AllRows(*pool)) {
    for (size_t i = 0; i < Shape().head_dim * KvElementBytes(GetParam()); ++i) {
      EXPECT_TRUE(touched.insert(row.data + i).second);
    }
    for (size_t i = 0; row.scale != nullptr && i < sizeof(float); ++i) {
      EXPECT_TRUE(touched.insert(reinterpret_cast<std::byte*>(row.scale) + i).second);
    }
  }
}

TEST_P(EveryKvDType, CopyRowsCopiesTheFirstPositionsOfEveryLayerAndHeadAndNothingElse) {
  const KvShape shape = Shape();
  for (uint32_t rows = 0; rows <= shape.block_tokens; ++rows) {
    const auto pool = Create(shape);
    Fill(*pool, /*seed=*/2);
    const auto before = Contents(*pool);
    const size_t from = rows % 2 == 0 ? 6 : 1, to = 3,
                 block_rows = size_t{shape.kv_heads} * shape.block_tokens;
    pool->CopyRows(static_cast<BlockId>(from), static_cast<BlockId>(to), rows);
    const auto after = Contents(*pool);
    for (size_t row = 0; row < after.size(); ++row) {
      const bool is_copied = BlockOf(shape, row) == to && row % shape.block_tokens < rows;
      const size_t source = is_copied ? row + (from - to) * block_rows : row;  // wraps when `from` is below
      EXPECT_EQ(after[row], before[source]) << rows << " rows, row " << row;
    }
  }
}

TEST_P(EveryKvDType, SwappedBlocksComeBackWholeWhereverTheyGo) {
  const KvShape shape = Shape();
  const auto pool = Create(shape);
  Fill(*pool, /*seed=*/3);
  const auto before = Contents(*pool);
  pool->CopyToHost(6, 3);
  pool->CopyToHost(0, 0);
  pool->CopyToHost(2, 1);
  EXPECT_EQ(Contents(*pool), before);
  Fill(*pool, /*seed=*/4);
  const auto other = Contents(*pool);
  pool->CopyFromHost(3, 1);
  pool->CopyFromHost(0, 0);
  const auto after = Contents(*pool);
  const size_t block_rows = size_t{shape.kv_heads} * shape.block_tokens;
  for (size_t row = 0; row < after.size(); ++row) {
    const size_t block = BlockOf(shape, row);
    const std::string& want = block == 1   ? before[row + 5 * block_rows]
                              : block == 0 ? before[row]
                                           : other[row];
    EXPECT_EQ(after[row], want) << row;
  }
}

TEST_P(EveryKvDType, MoreThanAnAddressCanReachIsAnError) {
  const KvShape huge{.layers = 1u << 30,
                     .kv_heads = 1u << 30,
                     .head_dim = 1u << 10,
                     .block_tokens = 16,
                     .blocks = 1u << 20,
                     .dtype = GetParam()};
  EXPECT_EQ(KvPool::Create(huge).status().code(), StatusCode::kResourceExhausted);
  KvShape huge_host = Shape();
  huge_host.head_dim = huge_host.host_blocks = std::numeric_limits<uint32_t>::max();
  const Status refused = KvPool::Create(huge_host).status();
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(refused), testing::HasSubstr("swap memory"));
}

TEST(KvShape, CountsTheBytesOfItsDType) {
  KvShape shape{.layers = 30, .kv_heads = 3, .head_dim = 64, .block_tokens = 16};
  const uint64_t rows = 2 * 30 * 3 * 16;
  for (const auto& [dtype, row_bytes] :
       {std::pair(KvDType::kF32, 256), std::pair(KvDType::kF16, 128), std::pair(KvDType::kBF16, 128),
        std::pair(KvDType::kInt8, 68), std::pair(KvDType::kFp8, 64)}) {
    shape.dtype = dtype;
    EXPECT_EQ(shape.BlockBytes(), rows * static_cast<uint64_t>(row_bytes)) << KvDTypeName(dtype);
  }
}

TEST(ParseKvDType, AnUnknownNameIsAnErrorThatListsTheKnownOnes) {
  const Status refused = ParseKvDType("f8").status();
  EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Reason(refused), "invalid_value");
  EXPECT_THAT(Message(refused), testing::HasSubstr("\"f8\", not one of f32, f16, bf16, int8, fp8"));
}

}  // namespace
}  // namespace terrace
