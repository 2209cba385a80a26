#include "kernels/gemm/stream_gemm_device.h"

#include <algorithm>
#include <bit>

#include "gtest/gtest.h"
#include "kernels/gemm/gpu_gemm_testing.h"

namespace terrace {
namespace {

struct Shape {
  uint32_t warps = 8, row_tiles = 1, token_tiles = 1;
  uint32_t blocks = 0;  // that share the row tiles; 0: one for each
};

template <typename Pieces, uint32_t kTokenTiles, uint32_t kRowTiles>
void Launch(const GpuGemmArgs& args, const Shape& shape, uint64_t seed) {
  const uint32_t groups = args.weights.rows / (16 * kRowTiles);
  const auto log2_warps = static_cast<uint32_t>(std::countr_zero(shape.warps));
  simt::Dim3 grid{(args.tokens + 8 * kTokenTiles - 1) / (8 * kTokenTiles), groups, 1};
  if constexpr (kTokenTiles == 1) {
    if (shape.blocks > 0) {
      grid.y = std::min(shape.blocks, groups);
      return simt::RunSeeded(seed, grid, 32 * shape.warps,
                             shape.warps * kStreamWarpBytes<Pieces, 1, kRowTiles, true>,
                             StreamGemmKernel<Pieces, 1, kRowTiles, true>, args, log2_warps);
    }
  }
  simt::RunSeeded(seed, grid, 32 * shape.warps, shape.warps * kStreamRingBytes<Pieces>,
                  StreamGemmKernel<Pieces, kTokenTiles, kRowTiles, false>, args, log2_warps);
}
template <typename Pieces, uint32_t kTokenTiles>
void LaunchTokens(const GpuGemmArgs& args, const Shape& shape, uint64_t seed) {
  if constexpr (kStreamHasTwoRowTiles<Pieces, kTokenTiles>) {
    if (shape.row_tiles == 2) return Launch<Pieces, kTokenTiles, 2>(args, shape, seed);
  }
  Launch<Pieces, kTokenTiles, 1>(args, shape, seed);
}
template <typename Pieces>
void LaunchPieces(const GpuGemmArgs& args, const Shape& shape, uint64_t seed) {
  if (shape.token_tiles == 1) return LaunchTokens<Pieces, 1>(args, shape, seed);
  if (shape.token_tiles == 2) return LaunchTokens<Pieces, 2>(args, shape, seed);
  LaunchTokens<Pieces, 4>(args, shape, seed);
}
void StreamGemm(const GpuGemmArgs& args, const Shape& shape, uint64_t seed = 0) {
  const GpuMatrix& weights = args.weights;
  if (weights.format == GpuFormat::kBF16) return LaunchPieces<BF16Pieces>(args, shape, seed);
  if (weights.format == GpuFormat::kE4M3) return LaunchPieces<E4M3Pieces>(args, shape, seed);
  if (weights.format == GpuFormat::kSparse) return LaunchPieces<SparsePieces>(args, shape, seed);
  if (weights.format == GpuFormat::kW4) {
    return weights.group == 32 ? LaunchPieces<W4Pieces<2>>(args, shape, seed)
                               : LaunchPieces<W4Pieces<1>>(args, shape, seed);
  }
  weights.group == 16 ? LaunchPieces<W8Pieces<2>>(args, shape, seed)
                      : LaunchPieces<W8Pieces<1>>(args, shape, seed);
}

std::vector<float> StreamGemmF32(const GpuMatrix& matrix, const std::vector<uint16_t>& x, const Shape& shape,
                                 uint64_t seed = 0) {
  const auto tokens = static_cast<uint32_t>(x.size() / matrix.columns);
  std::vector<float> out(tokens * matrix.rows, std::nanf(""));
  StreamGemm(
      {.x = x.data(), .tokens = tokens, .weights = matrix, .out = out.data(), .kind = GpuGemmOut::kF32},
      shape, seed);
  return out;
}

TEST(StreamGemm, EveryFormatIsWithinItsBound) {
  for (const DType dtype : kGpuMatrixDTypes) {
    const struct {
      uint32_t rows, columns, tokens;
      Shape shape;
    } cases[] = {{16, 256, 1, {4, 1, 1}},  {48, 512, 3, {8, 1, 1}},    {32, 768, 8, {4, 2, 1}},
                 {64, 1280, 9, {8, 2, 2}}, {16, 2304, 16, {16, 1, 2}}, {32, 512, 21, {4, 2, 4}},
                 {16, 768, 37, {8, 1, 4}}};
    for (const auto& c : cases) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " [" << c.rows << ", " << c.columns << "] "
                                      << c.tokens << " tokens, " << c.shape.warps << " warps");
      const TestGpuMatrix weights(dtype, c.rows, c.columns, /*seed=*/c.rows + c.tokens);
      const std::vector<uint16_t> x = RandomBF16(c.tokens * c.columns, /*seed=*/c.tokens);
      const std::vector<float> out = StreamGemmF32(weights.matrix(), x, c.shape, /*seed=*/c.tokens);
      for (uint32_t token = 0; token < c.tokens; ++token) {
        ExpectGemmRow(weights.matrix(), &x[token * c.columns], GpuGemmOut::kF32, &out[token * c.rows], 0);
      }
    }
  }
}

TEST(StreamGemm, BlocksThatTakeRowTilesInTurnsGiveTheSameBits) {
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kQ4_0, DType::kQ8_0, DType::kInt8}) {
    const TestGpuMatrix weights(dtype, 160, 1280, /*seed=*/3);
    for (const uint32_t tokens : {1, 7}) {
      const std::vector<uint16_t> x = RandomBF16(tokens * 1280, /*seed=*/tokens);
      for (const Shape shape : {Shape{4, 1}, {8, 2}, {16, 1}}) {
        const std::vector<float> expected = StreamGemmF32(weights.matrix(), x, shape);
        for (const uint32_t blocks : {1, 2, 3, 7}) {
          Shape shared = shape;
          shared.blocks = blocks;
          EXPECT_EQ(StreamGemmF32(weights.matrix(), x, shared, /*seed=*/blocks), expected)
              << Info(dtype).name << " " << shape.warps << " warps, " << tokens << " tokens, " << blocks
              << " blocks";
        }
      }
    }
  }
}

TEST(StreamGemm, NarrowMatricesLeaveWarpsIdle) {
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kQ4_0, DType::kQ8_0, DType::kInt8}) {
    for (const uint32_t columns : {64u, 128u, 192u, 384u}) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " " << columns);
      const TestGpuMatrix weights(dtype, 32, columns, /*seed=*/columns);
      const std::vector<uint16_t> x = RandomBF16(2 * columns, /*seed=*/1);
      for (const uint32_t warps : {4u, 16u}) {
        const std::vector<float> out = StreamGemmF32(weights.matrix(), x, {warps, 1, 1});
        for (uint32_t token = 0; token < 2; ++token) {
          ExpectGemmRow(weights.matrix(), &x[token * columns], GpuGemmOut::kF32, &out[token * 32], 0);
        }
      }
    }
  }
}

TEST(StreamGemm, EveryKindOfOutput) {
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kQ4_K}) {
    for (const TestGemmOut& output : kEveryGemmOut) {
      for (const Shape& shape : {Shape{4, 1, 1}, Shape{8, 2, 2}, Shape{4, 1, 4}}) {
        SCOPED_TRACE(testing::Message()
                     << Info(dtype).name << " " << output << " " << shape.token_tiles << " token tiles");
        constexpr uint32_t kRows = 64, kColumns = 512, kTokens = 11;
        const TestGpuMatrix weights(dtype, kRows, kColumns, /*seed=*/3, output.is_gated());
        const std::vector<uint16_t> x = RandomBF16(kTokens * kColumns, /*seed=*/4);
        const size_t row_bytes = RowBytes(kRows, output);
        std::vector<std::byte> out((kTokens + 1) * row_bytes, std::byte{0xff});
        constexpr float kBefore = 2.5f;
        if (output.kind == GpuGemmOut::kAddF32) {
          for (size_t i = 0; i < kTokens * kRows; ++i) std::memcpy(&out[4 * i], &kBefore, 4);
        }
        StreamGemm({.x = x.data(),
                    .tokens = kTokens,
                    .weights = weights.matrix(),
                    .out = out.data(),
                    .kind = output.kind,
                    .gate = output.gate},
                   shape);
        for (uint32_t token = 0; token < kTokens; ++token) {
          ExpectGemmRow(weights.matrix(), &x[token * kColumns], output, &out[token * row_bytes], kBefore);
        }
        for (size_t i = kTokens * row_bytes; i < out.size(); ++i) EXPECT_EQ(out[i], std::byte{0xff});
      }
    }
  }
}

// Alone, or anywhere in a batch, whatever the tiles.
TEST(StreamGemm, ATokenHasTheSameBitsInAnyBatch) {
  constexpr uint32_t kRows = 32, kColumns = 768;
  for (const DType dtype : kGpuMatrixDTypes) {
    const TestGpuMatrix weights(dtype, kRows, kColumns, /*seed=*/5);
    const std::vector<uint16_t> token = RandomBF16(kColumns, /*seed=*/6);
    for (const uint32_t warps : {4u, 8u}) {
      const std::vector<float> alone = StreamGemmF32(weights.matrix(), token, {warps, 1, 1});
      for (const uint32_t token_tiles : {1u, 2u, 4u}) {
        for (const uint32_t row_tiles : {1u, 2u}) {
          const uint32_t tokens = 8 * token_tiles + 5;
          std::vector<uint16_t> x = RandomBF16(tokens * kColumns, /*seed=*/7);
          const uint32_t places[] = {0, 3, 8 * token_tiles - 1, tokens - 1};
          for (const uint32_t place : places) std::ranges::copy(token, &x[place * kColumns]);
          const std::vector<float> out =
              StreamGemmF32(weights.matrix(), x, {warps, row_tiles, token_tiles}, /*seed=*/token_tiles);
          for (const uint32_t place : places) {
            for (uint32_t i = 0; i < kRows; ++i) {
              ASSERT_EQ(out[place * kRows + i], alone[i])
                  << Info(dtype).name << " " << warps << " warps, " << token_tiles << " and " << row_tiles
                  << " tiles, token " << place << " output " << i;
            }
          }
        }
      }
    }
  }
}

TEST(StreamGemm, ANormGoesAlongWithTheResidualStream) {
  constexpr uint32_t kHidden = 192, kRows = 32;
  for (const uint32_t tokens : {1u, 3u, 8u}) {
    const NormedProducts products(DType::kQ8_0, tokens, kHidden, /*columns=*/128, kRows);
    for (const Shape& shape : {Shape{4, 1, 1}, Shape{8, 2, 1}, Shape{16, 1, 1}}) {
      SCOPED_TRACE(testing::Message() << tokens << " tokens, " << shape.warps << " warps");
      std::vector<float> hidden = products.before, squares(tokens * kHidden / kTileRows, std::nanf("")),
                         out(tokens * kRows, std::nanf(""));
      std::vector<uint16_t> next_x(tokens * kHidden, 0x7fc0);
      StreamGemm({.x = products.x.data(),
                  .tokens = tokens,
                  .weights = products.first.matrix(),
                  .out = hidden.data(),
                  .kind = GpuGemmOut::kAddF32,
                  .next_norm = products.norm.data(),
                  .next_x = next_x.data(),
                  .next_squares = squares.data()},
                 shape, 5);
      StreamGemm({.x = next_x.data(),
                  .tokens = tokens,
                  .weights = products.second.matrix(),
                  .out = out.data(),
                  .kind = GpuGemmOut::kF32,
                  .x_squares = squares.data(),
                  .epsilon = NormedProducts::kEpsilon},
                 shape, 6);
      products.ExpectRight(hidden, next_x, StreamGemmF32(products.second.matrix(), next_x, shape), out);
    }
  }
}

}  // namespace
}  // namespace terrace
