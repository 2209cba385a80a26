#include "kernels/gemm/pack_matrix_device.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "kernels/gemm/pack_matrix_testing.h"

namespace terrace {
namespace {

struct Packed {
  std::vector<std::byte> codes, scales;
  uint32_t unfit = 0;
};

// In pieces of at most `most_rows` rows; each byte is written or stays 0xcd.
Packed PackOnDevice(const PackCase& c, uint32_t most_rows, uint64_t seed) {
  Packed out{std::vector<std::byte>(GpuCodeBytes(c.format), std::byte{0xcd}),
             std::vector<std::byte>(GpuScaleBytes(c.format), std::byte{0xcd})};
  const GpuPackTarget to{c.format, out.codes.data(), out.scales.data(), &out.unfit};
  for (uint32_t row = 0; row < c.format.rows; row += most_rows) {
    GpuPackArgs args = GpuPackArgsOf(c.parts(), to, row, std::min(most_rows, c.format.rows - row));
    std::vector<uint4> staged((StagedBytes(args) + 15) / 16, {~0u, ~0u, ~0u, ~0u});
    for (const StagedPiece& piece : StagedPieces(c.parts(), args)) {
      std::memcpy(reinterpret_cast<std::byte*>(staged.data()) + piece.at, piece.from, piece.bytes);
    }
    args.staged = reinterpret_cast<const std::byte*>(staged.data());
    const auto run = [&](auto kernel, uint64_t threads, uint32_t of_block) {
      simt::RunSeeded(seed, {static_cast<uint32_t>((threads + of_block - 1) / of_block), 1, 1}, of_block, 0,
                      kernel, args);
    };
    const uint64_t tiles = (args.row_count + kTileRows - 1) / kTileRows, columns = c.format.columns;
    switch (c.format.format) {
      case GpuFormat::kBF16:
        run(PackRowsKernel, args.row_count * columns / kPackColumns, 64);
        break;
      case GpuFormat::kE4M3:
        run(PackE4M3Kernel, args.row_count * kPackThreads, kPackThreads);
        break;
      case GpuFormat::kW4:
        run(PackTilesKernel<true>, tiles * (columns / kW4PieceColumns) * simt::kWarp, 64);
        break;
      case GpuFormat::kW8:
        run(PackTilesKernel<false>, tiles * (columns / kW8PieceColumns) * simt::kWarp, 64);
        break;
      case GpuFormat::kSparse:
        run(PackSparseKernel, tiles * (columns / kSparsePieceColumns) * simt::kWarp, 64);
        break;
    }
  }
  return out;
}

TEST(PackMatrix, EveryBitIsThatOfTheHost) {
  for (const PackCase& c : AllPackCases()) {
    SCOPED_TRACE(c.name);
    const PackedGpuMatrix want(c.parts(), c.format);
    for (const uint32_t most_rows : {16u, 1024u}) {
      const Packed got = PackOnDevice(c, most_rows, /*seed=*/most_rows % 64);
      ASSERT_EQ(got.codes, want.codes);
      ASSERT_EQ(got.scales, want.scales);
      ASSERT_EQ(got.unfit, 0u);
    }
  }
}

// A rank of a group has columns of what lies in the file: of every dtype, alone and beside another one, whole
// blocks somewhere in wider rows.
TEST(PackMatrix, ColumnsOfAWiderMatrixArePackedAsTheMatrixThatTheyAre) {
  for (const DTypeInfo& info : kDTypes) {
    for (const size_t begin : {0u, 256u, 512u}) {
      SCOPED_TRACE(testing::Message() << info.name << ", columns from " << begin << " on");
      PackCase c = MakePackCase({info.dtype, info.dtype}, {21, 27}, 768, false);
      for (WeightMatrix& matrix : c.matrices) matrix = ColumnsOf(matrix, begin, 256);
      c.format = GpuMatrixByFormat(c.parts());
      ASSERT_EQ(c.format.columns, 256u);
      const PackedGpuMatrix want(c.parts(), c.format);
      for (const uint32_t most_rows : {16u, 1024u}) {
        const Packed got = PackOnDevice(c, most_rows, /*seed=*/begin + most_rows % 64);
        ASSERT_EQ(got.codes, want.codes);
        ASSERT_EQ(got.scales, want.scales);
      }
    }
  }
}

// Blocks of random bytes, scales with all their bits: what fits is packed to the same bits, what does not is
// found.
TEST(PackMatrix, FindsScalesThatDoNotFit) {
  std::mt19937_64 random(5);
  ThreadPool pool(1);
  uint32_t fit = 0, unfit = 0;
  for (const DTypeInfo& info : kDTypes) {
    if (GpuMatrixByFormat(MakePackCase({info.dtype}, {1}, 256, false).parts()).format == GpuFormat::kBF16) {
      continue;
    }
    for (int round = 0; round < 60; ++round) {
      SCOPED_TRACE(testing::Message() << info.name << " round " << round);
      PackCase c = MakePackCase({info.dtype}, {2}, 256, false);
      FileWeights& weights = *c.owned[0];
      for (std::byte& byte : weights.bytes) byte = static_cast<std::byte>(random());
      // Infinities and NaNs are one of 32 exponents, and a row has many scales.
      for (size_t at = 1; at + info.block_bytes <= weights.bytes.size(); at += info.block_bytes) {
        if (info.block_elements == 1) break;
        const size_t high = info.dtype == DType::kQ6_K ? 209 : 1;
        if (round % 2 == 0) weights.bytes[at + high] &= std::byte{0xb7};  // exponents below 22
        if (info.dtype == DType::kQ4_K && round % 2 == 0) weights.bytes[at + 3] &= std::byte{0xb7};
      }
      for (float& scale : weights.row_scales) {
        scale =
            std::ldexp(1 + static_cast<float>(random() % 4096) / 4096, static_cast<int>(random() % 40) - 26);
      }
      const bool fits = GpuMatrixOf(c.parts(), pool).format == c.format.format;
      const Packed got = PackOnDevice(c, 16, 0);
      ASSERT_EQ(got.unfit == 0, fits);
      (fits ? fit : unfit) += 1;
      if (!fits) continue;
      const PackedGpuMatrix want(c.parts(), c.format);
      ASSERT_EQ(got.codes, want.codes);
      ASSERT_EQ(got.scales, want.scales);
    }
  }
  EXPECT_GT(fit, 50u);
  EXPECT_GT(unfit, 50u);
}

TEST(PackMatrix, ARowThatNeedsNoScaleHasNoCodes) {
  PackCase c = MakePackCase({DType::kQ4_K}, {16}, 256, false);
  const auto put = [&](size_t row, float scale, float minimum) {
    const uint16_t bits[] = {F16FromFloat(scale), F16FromFloat(minimum)};
    std::memcpy(&c.owned[0]->bytes[1 + row * 144], bits, 4);
  };
  put(0, 0, 0.25f);
  put(1, 0x1p-24f, 4);
  put(2, 0, 0);
  put(3, 0.5f, 0);
  const PackedGpuMatrix want(c.parts(), c.format);
  const Packed got = PackOnDevice(c, 16, 1);
  EXPECT_EQ(got.codes, want.codes);
  EXPECT_EQ(got.scales, want.scales);
}

TEST(PackMatrix, FindsWhatIsNotTwoOfFour) {
  ThreadPool pool(1);
  const GpuFormat format = GpuFormat::kSparse;
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (const size_t at : {size_t{0}, size_t{2047}, size_t{37 * 128 - 1}}) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " element " << at);
      PackCase c = MakePackCase({dtype}, {37}, 128, false, &format);
      KeepTwoOfFour(*c.owned[0], /*seed=*/at);
      EXPECT_EQ(GpuMatrixOf(c.parts(), pool).format, GpuFormat::kSparse);
      EXPECT_EQ(PackOnDevice(c, 16, 0).unfit, 0u);
      std::byte* const four = &c.owned[0]->bytes[1 + at / 4 * 8];
      const uint16_t ones[] = {0x3c00, 0x3c00, 0x3c00};  // not zero in either
      std::memcpy(four + at % 2 * 2, ones, sizeof(ones));
      EXPECT_EQ(GpuMatrixOf(c.parts(), pool).format, GpuFormat::kBF16);
      EXPECT_EQ(PackOnDevice(c, 16, 0).unfit, 1u);
    }
  }
}

// What is staged is of so many bytes at most, wherever it begins, and no less than it must be.
TEST(PackMatrix, StagedRowsFit) {
  for (const PackCase& c : AllPackCases()) {
    SCOPED_TRACE(c.name);
    for (const uint64_t bytes : {uint64_t{20'000}, uint64_t{1} << 20}) {
      const uint32_t rows = RowsStagedIn(c.parts(), bytes);
      if (rows == 0) continue;
      ASSERT_EQ(rows % kTileRows, 0u);
      for (uint32_t row = 0; row < c.format.rows; row += rows) {
        const GpuPackArgs args =
            GpuPackArgsOf(c.parts(), {.matrix = c.format}, row, std::min(rows, c.format.rows - row));
        ASSERT_LE(StagedBytes(args), bytes);
        size_t staged = 0, of_parts = 0;
        for (const GpuPackPart& part : args.parts) staged += part.count;
        for (const WeightMatrix& matrix : c.matrices) of_parts += matrix.rows;
        ASSERT_EQ(staged, std::min<size_t>(args.row_count, of_parts - row));
      }
    }
  }
}

}  // namespace
}  // namespace terrace
