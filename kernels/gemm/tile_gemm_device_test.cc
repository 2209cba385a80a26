#include "kernels/gemm/tile_gemm_device.h"

#include <cmath>

#include "gtest/gtest.h"
#include "kernels/gemm/tile_gemm_testing.h"

namespace terrace {
namespace {

// Device memory that a launch leaves as it found it, but for the partials.
struct Scratch {
  Scratch(const TileGemmShape& shape, uint32_t rows, uint32_t tokens)
      : partials((TileGemmPartialFloats(shape, rows, tokens) + 3) / 4, {NAN, NAN, NAN, NAN}),
        arrived(TileGemmCounters(rows, tokens)) {}
  TileGemmScratch Get() { return {reinterpret_cast<float*>(partials.data()), arrived.data()}; }
  std::vector<float4> partials;
  std::vector<uint32_t> arrived;
};

template <typename Pieces, uint32_t kTokenTiles>
void Launch(const GpuGemmArgs& args, const TileGemmScratch& scratch, const TileGemmShape& shape,
            uint64_t seed) {
  const simt::Dim3 grid{TileGemmTokenBlocks(args.tokens), shape.splits,
                        TileGemmRowBlocks(args.weights.rows, shape.row_warps)};
  simt::RunSeeded(seed, grid, 32 * (shape.row_warps << shape.log2_parts),
                  TileGemmSharedBytes<Pieces>(shape, kTokenTiles), TileGemmKernel<Pieces, kTokenTiles>, args,
                  scratch, shape);
}
template <typename Pieces>
void LaunchPieces(const GpuGemmArgs& args, const TileGemmScratch& scratch, const TileGemmShape& shape,
                  uint64_t seed) {
  TileGemmTokens(args.tokens) == 32 ? Launch<Pieces, 4>(args, scratch, shape, seed)
                                    : Launch<Pieces, 8>(args, scratch, shape, seed);
}
void TileGemm(const GpuGemmArgs& args, const TileGemmShape& shape, uint64_t seed = 0) {
  Scratch scratch(shape, args.weights.rows, args.tokens);
  const GpuMatrix& weights = args.weights;
  if (weights.format == GpuFormat::kE4M3) {
    LaunchPieces<E4M3Pieces>(args, scratch.Get(), shape, seed);
  } else if (weights.format == GpuFormat::kW4) {
    weights.group == 32 ? LaunchPieces<W4Pieces<2>>(args, scratch.Get(), shape, seed)
                        : LaunchPieces<W4Pieces<1>>(args, scratch.Get(), shape, seed);
  } else {
    weights.group == 16 ? LaunchPieces<W8Pieces<2>>(args, scratch.Get(), shape, seed)
                        : LaunchPieces<W8Pieces<1>>(args, scratch.Get(), shape, seed);
  }
  for (const uint32_t count : scratch.arrived) ASSERT_EQ(count, 0u);
}

std::vector<float> TileGemmF32(const GpuMatrix& matrix, const std::vector<uint16_t>& x,
                               const TileGemmShape& shape, uint64_t seed = 0) {
  const auto tokens = static_cast<uint32_t>(x.size() / matrix.columns);
  std::vector<float> out(tokens * matrix.rows, NAN);
  TileGemm({.x = x.data(), .tokens = tokens, .weights = matrix, .out = out.data(), .kind = GpuGemmOut::kF32},
           shape, seed);
  return out;
}

TEST(TileGemm, EveryFormatIsItsRoundedValuesTimesX) {
  for (const DType dtype : kTileGemmDTypes) {
    const struct {
      uint32_t rows, columns, tokens;
      TileGemmShape shape;
    } cases[] = {{32, 256, 1, {1, 2, 1}},    // a stage
                 {48, 1280, 19, {2, 0, 1}},  // a row tile is left over; more stages than slots
                 {144, 768, 7, {3, 1, 2}},   // a warp is left over; splits
                 {64, 2048, 33, {1, 1, 5}},  // uneven splits, second kind of block
                 {32, 512, 70, {1, 2, 2}}};  // two blocks of tokens; parts without columns
    for (const auto& c : cases) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " [" << c.rows << ", " << c.columns << "] "
                                      << c.tokens << " tokens");
      const TestGpuMatrix weights(dtype, c.rows, c.columns, /*seed=*/c.rows + c.tokens);
      const RoundedGpuMatrix rounded(weights.matrix());
      const std::vector<uint16_t> x = RandomBF16(c.tokens * c.columns, /*seed=*/c.tokens);
      const std::vector<float> out = TileGemmF32(weights.matrix(), x, c.shape, /*seed=*/c.tokens);
      for (uint32_t token = 0; token < c.tokens; token += 6) {
        ExpectGemmRow(rounded.matrix, &x[token * c.columns], GpuGemmOut::kF32, &out[token * c.rows], 0);
      }
    }
  }
}

// By 2^-8 of the value for the rounding, and where the zero is no whole number by what TileFragment says.
TEST(TileGemm, RoundedValuesAreNearTheValues) {
  for (const DType dtype : kTileGemmDTypes) {
    if (dtype == DType::kF32) continue;
    SCOPED_TRACE(Info(dtype).name);
    const TestGpuMatrix weights(dtype, 64, 512, /*seed=*/8);
    const RoundedGpuMatrix rounded(weights.matrix());
    for (uint32_t row = 0; row < 64; ++row) {
      for (uint32_t column = 0; column < 512; ++column) {
        const GpuElement element = GpuElementAt(weights.matrix(), row, column);
        const double value = double{element.scale} * (double{element.code} - element.zero);
        const float got = GpuElementAt(rounded.matrix, row, column).value();
        const bool is_whole = element.zero == std::round(element.zero);
        if (is_whole) {
          ASSERT_EQ(got, FloatFromBF16(BF16FromFloat(element.value())));
        }
        const double offset = std::abs(element.scale) * (16.0 + std::abs(element.zero));
        ASSERT_NEAR(got, value, 0x1.0001p-8 * std::abs(value) + (is_whole ? 0 : 0x1p-22 * offset));
      }
    }
  }
}

TEST(TileGemm, EveryKindOfOutput) {
  for (const DType dtype : {DType::kF32, DType::kQ4_K, DType::kInt8}) {
    for (const TestGemmOut& output : kEveryGemmOut) {
      for (const TileGemmShape& shape : {TileGemmShape{2, 1, 1}, TileGemmShape{1, 1, 2}}) {
        SCOPED_TRACE(testing::Message()
                     << Info(dtype).name << " " << output << " " << shape.splits << " splits");
        constexpr uint32_t kRows = 48, kColumns = 512, kTokens = 11;
        const TestGpuMatrix weights(dtype, kRows, kColumns, /*seed=*/3, output.is_gated());
        const RoundedGpuMatrix rounded(weights.matrix());
        const std::vector<uint16_t> x = RandomBF16(kTokens * kColumns, /*seed=*/4);
        const size_t row_bytes = RowBytes(kRows, output);
        std::vector<std::byte> out((kTokens + 1) * row_bytes, std::byte{0xff});
        constexpr float kBefore = 2.5f;
        if (output.kind == GpuGemmOut::kAddF32) {
          for (size_t i = 0; i < kTokens * kRows; ++i) std::memcpy(&out[4 * i], &kBefore, 4);
        }
        TileGemm({.x = x.data(),
                  .tokens = kTokens,
                  .weights = weights.matrix(),
                  .out = out.data(),
                  .kind = output.kind,
                  .gate = output.gate},
                 shape);
        for (uint32_t token = 0; token < kTokens; ++token) {
          ExpectGemmRow(rounded.matrix, &x[token * kColumns], output, &out[token * row_bytes], kBefore);
        }
        for (size_t i = kTokens * row_bytes; i < out.size(); ++i) EXPECT_EQ(out[i], std::byte{0xff});
      }
    }
  }
}

TEST(TileGemm, ATokenHasTheSameBitsInAnyBatch) {
  constexpr uint32_t kRows = 32, kColumns = 512;
  for (const DType dtype : kTileGemmDTypes) {
    const TestGpuMatrix weights(dtype, kRows, kColumns, /*seed=*/5);
    const std::vector<uint16_t> token = RandomBF16(kColumns, /*seed=*/6);
    const TileGemmShape shape{.row_warps = 1, .log2_parts = 1, .splits = 2};
    const std::vector<float> alone = TileGemmF32(weights.matrix(), token, shape);
    for (const uint32_t tokens : {9u, 40u, 66u}) {
      std::vector<uint16_t> x = RandomBF16(tokens * kColumns, /*seed=*/7);
      for (const uint32_t place : {0u, 5u, tokens - 1}) std::ranges::copy(token, &x[place * kColumns]);
      const std::vector<float> out = TileGemmF32(weights.matrix(), x, shape, /*seed=*/tokens);
      for (const uint32_t place : {0u, 5u, tokens - 1}) {
        for (uint32_t i = 0; i < kRows; ++i) {
          ASSERT_EQ(out[place * kRows + i], alone[i])
              << Info(dtype).name << " " << tokens << " tokens, place " << place << " output " << i;
        }
      }
    }
  }
}

// A wave of blocks on an H100, few splits for large matrices.
TEST(TileGemm, ShapesFillTheDevice) {
  const struct {
    uint32_t rows, columns, row_warps, splits;
  } cases[] = {{6144, 4096, 6, 4}, {4096, 4096, 4, 4}, {28672, 4096, 7, 1}, {4096, 14336, 6, 6}};
  for (const auto& c : cases) {
    const TileGemmShape shape = TileGemmShapeOf(c.rows, c.columns);
    EXPECT_EQ(shape.row_warps, c.row_warps) << c.rows << " " << c.columns;
    EXPECT_EQ(shape.splits, c.splits) << c.rows << " " << c.columns;
  }
  for (const uint32_t rows : {32u, 48u, 1024u, 128256u}) {
    for (const uint32_t columns : {64u, 128u, 4096u, 53248u}) {
      const TileGemmShape shape = TileGemmShapeOf(rows, columns);
      EXPECT_LE(shape.row_warps << shape.log2_parts, kMostTileWarps);
      EXPECT_LE(shape.splits, columns / kTileUnitColumns);
    }
  }
}

}  // namespace
}  // namespace terrace
