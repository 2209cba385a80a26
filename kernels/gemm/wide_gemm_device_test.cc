#include "kernels/gemm/wide_gemm_device.h"

#include <cmath>
#include <cstring>
#include <set>
#include <type_traits>

#include "gtest/gtest.h"
#include "kernels/gemm/tile_gemm_testing.h"

namespace terrace {
namespace {

// Device memory that a launch leaves as it found it, but for the partials.
struct Scratch {
  Scratch(const WideGemmShape& shape, uint32_t rows, uint32_t tokens)
      : partials((WideGemmPartialFloats(shape, rows, tokens) + 3) / 4, {NAN, NAN, NAN, NAN}),
        arrived(WideGemmCounters(rows, tokens)) {}
  TileGemmScratch Get() { return {reinterpret_cast<float*>(partials.data()), arrived.data()}; }
  std::vector<float4> partials;
  std::vector<uint32_t> arrived;
};

// use.operator()<Pieces>() of the format's.
template <typename Use>
void WithPieces(const GpuMatrix& weights, const Use& use) {
  if (weights.format == GpuFormat::kE4M3) return use.template operator()<E4M3Pieces>();
  if (weights.format == GpuFormat::kW4) {
    return weights.group == 32 ? use.template operator()<W4Pieces<2>>()
                               : use.template operator()<W4Pieces<1>>();
  }
  weights.group == 16 ? use.template operator()<W8Pieces<2>>() : use.template operator()<W8Pieces<1>>();
}

template <typename Pieces, uint32_t kTokens, bool kScalesSums = false>
void Launch(const GpuGemmArgs& args, const TileGemmScratch& scratch, const WideGemmShape& shape,
            uint64_t seed) {
  const simt::Dim3 grid{WideGemmTokenBlocks(args.tokens), shape.splits,
                        WideGemmRowBlocks(args.weights.rows, shape.row_groups)};
  simt::RunSeeded(seed, grid, simt::kWarpgroup * shape.row_groups,
                  WideGemmSharedBytes<Pieces, kTokens>(shape), WideGemmKernel<Pieces, kTokens, kScalesSums>,
                  args, scratch, shape);
}
void WideGemm(const GpuGemmArgs& args, const WideGemmShape& shape, uint64_t seed = 0) {
  Scratch scratch(shape, args.weights.rows, args.tokens);
  WithPieces(args.weights, [&]<typename Pieces>() {
    if constexpr (std::is_same_v<Pieces, W4Pieces<1>>) {
      if (shape.scales_sums) {
        return WideGemmTokens(args.tokens) == 16 ? Launch<Pieces, 16, true>(args, scratch.Get(), shape, seed)
                                                 : Launch<Pieces, 32, true>(args, scratch.Get(), shape, seed);
      }
    }
    switch (WideGemmTokens(args.tokens)) {
      case 16:
        return Launch<Pieces, 16>(args, scratch.Get(), shape, seed);
      case 32:
        return Launch<Pieces, 32>(args, scratch.Get(), shape, seed);
      case 64:
        return Launch<Pieces, 64>(args, scratch.Get(), shape, seed);
      case 96:
        return Launch<Pieces, 96>(args, scratch.Get(), shape, seed);
      default:
        return Launch<Pieces, 128>(args, scratch.Get(), shape, seed);
    }
  });
  for (const uint32_t count : scratch.arrived) ASSERT_EQ(count, 0u);
}

std::vector<float> WideGemmF32(const GpuMatrix& matrix, const std::vector<uint16_t>& x,
                               const WideGemmShape& shape, uint64_t seed = 0) {
  const auto tokens = static_cast<uint32_t>(x.size() / matrix.columns);
  std::vector<float> out(tokens * matrix.rows, NAN);
  WideGemm({.x = x.data(), .tokens = tokens, .weights = matrix, .out = out.data(), .kind = GpuGemmOut::kF32},
           shape, seed);
  return out;
}

TEST(WideGemm, EveryFormatIsItsRoundedValuesTimesX) {
  for (const DType dtype : kTileGemmDTypes) {
    const struct {
      uint32_t rows, columns, tokens;
      WideGemmShape shape;
    } cases[] = {{64, 256, 9, {1, 1}},     // fewer stages than the rings have
                 {80, 2304, 19, {1, 1}},   // three warps are left over; each slot many times
                 {144, 768, 33, {3, 2}},   // warps are left over, the turns of tokens uneven; splits
                 {64, 2048, 65, {1, 3}},   // uneven splits
                 {16, 512, 100, {2, 1}},   // a row tile
                 {192, 512, 130, {2, 2}},  // two blocks of tokens, half a block of rows
                 {272, 256, 16, {4, 1}}};  // as many warps as there may be
    for (const auto& c : cases) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " [" << c.rows << ", " << c.columns << "] "
                                      << c.tokens << " tokens");
      const TestGpuMatrix weights(dtype, c.rows, c.columns, /*seed=*/c.rows + c.tokens);
      const RoundedGpuMatrix rounded(weights.matrix(), WideValue);
      const std::vector<uint16_t> x = RandomBF16(c.tokens * c.columns, /*seed=*/c.tokens);
      const std::vector<float> out = WideGemmF32(weights.matrix(), x, c.shape, /*seed=*/c.tokens);
      for (uint32_t token = 0; token < c.tokens; token += 6) {
        ExpectGemmRow(rounded.matrix, &x[token * c.columns], GpuGemmOut::kF32, &out[token * c.rows], 0);
      }
    }
  }
}

// With scales_sums of the values themselves: nothing is rounded before the sums.
TEST(WideGemm, ScaledSumsAreOfExactValues) {
  const struct {
    uint32_t rows, columns, tokens;
    WideGemmShape shape;
  } cases[] = {{64, 128, 9, {1, 1, true}},      // one stage
               {80, 2304, 19, {1, 1, true}},    // each slot many times
               {144, 768, 32, {3, 2, true}},    // warps are left over
               {272, 1664, 16, {4, 3, true}}};  // uneven splits
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << "[" << c.rows << ", " << c.columns << "] " << c.tokens << " tokens");
    const TestGpuMatrix weights(DType::kInt4G128, c.rows, c.columns, /*seed=*/c.rows + c.tokens);
    ASSERT_TRUE(WideGemmCanScaleSums(weights.matrix(), c.tokens));
    const std::vector<uint16_t> x = RandomBF16(c.tokens * c.columns, /*seed=*/c.tokens);
    const std::vector<float> out = WideGemmF32(weights.matrix(), x, c.shape, /*seed=*/c.tokens);
    for (uint32_t token = 0; token < c.tokens; token += 3) {
      ExpectGemmRow(weights.matrix(), &x[token * c.columns], GpuGemmOut::kF32, &out[token * c.rows], 0);
      std::vector<float> alone = WideGemmF32(
          weights.matrix(), {&x[token * c.columns], &x[(token + 1) * c.columns]}, c.shape, /*seed=*/token);
      ASSERT_EQ(std::memcmp(alone.data(), &out[token * c.rows], c.rows * sizeof(float)), 0) << token;
    }
  }
}

// Of the last stage there may be half; its other half meets zeros, not what is behind x.
TEST(WideGemm, OddNumbersOfPieces) {
  for (const DType dtype : {DType::kF32, DType::kQ4_0, DType::kQ8_0}) {
    for (const uint32_t columns : {64u, 192u, 832u}) {
      for (const uint32_t splits : {1u, 2u}) {
        if (splits * 128 > columns) continue;
        SCOPED_TRACE(testing::Message() << Info(dtype).name << " " << columns << " columns, " << splits);
        constexpr uint32_t kRows = 64, kTokens = 12;
        const TestGpuMatrix weights(dtype, kRows, columns, /*seed=*/columns);
        const RoundedGpuMatrix rounded(weights.matrix(), WideValue);
        const std::vector<uint16_t> x = RandomBF16(kTokens * columns, /*seed=*/1);
        const std::vector<float> out = WideGemmF32(weights.matrix(), x, {1, splits});
        for (uint32_t token = 0; token < kTokens; ++token) {
          ExpectGemmRow(rounded.matrix, &x[token * columns], GpuGemmOut::kF32, &out[token * kRows], 0);
        }
      }
    }
  }
}

// What a warp makes of a matrix of one tile, as [rows, columns].
std::vector<float> FragmentsOf(const GpuMatrix& matrix) {
  std::vector<float> out(kTileRows * matrix.columns, NAN);
  WithPieces(matrix, [&]<typename Pieces>() {
    if constexpr (Pieces::kGroups > 0) {
      simt::RunBody({}, simt::kWarp, 0, [&] {
        const uint32_t lane = simt::Lane();
        for (uint32_t first = 0; first < matrix.columns; first += Pieces::kColumns) {
          const auto piece = Pieces(matrix, 0, first / Pieces::kColumns, lane).Load();
          for (uint32_t run = 0; run < Pieces::kRuns; ++run) {
            const auto scales = WideScalesOf<Pieces>(piece, run * Pieces::kGroups / Pieces::kRuns);
            for (uint32_t step = 0; step < Pieces::kRun / 4; ++step) {
              uint32_t a[4];
              WideFragment<Pieces, false>(piece, scales, run, step, a);
              for (uint32_t i = 0; i < 4; ++i) {
                float* to =
                    &out[(lane / 4 + i % 2 * 8) * matrix.columns + first + lane % 4 * Pieces::kLaneStride +
                         run * Pieces::kRunStride + 4 * step + i / 2 * 2];
                to[0] = simt::BF16Low(a[i]);
                to[1] = simt::BF16High(a[i]);
              }
            }
          }
        }
      });
    }
  });
  return out;
}

// By 2^-8 of the value for the last rounding, and before that by what WideFragment says.
TEST(WideGemm, FragmentsAreNearTheValues) {
  for (const DType dtype : kTileGemmDTypes) {
    if (dtype == DType::kF32) continue;
    SCOPED_TRACE(Info(dtype).name);
    const TestGpuMatrix weights(dtype, kTileRows, 2048, /*seed=*/8);
    const GpuMatrix& matrix = weights.matrix();
    const std::vector<float> values = FragmentsOf(matrix);
    const float kept = matrix.format == GpuFormat::kW4 ? 16 : 0;
    for (uint32_t row = 0; row < kTileRows; ++row) {
      for (uint32_t column = 0; column < matrix.columns; ++column) {
        const GpuElement element = GpuElementAt(matrix, row, column);
        const double value = double{element.scale} * (double{element.code} - element.zero);
        const float got = values[row * matrix.columns + column];
        const bool is_whole =
            element.zero == std::round(element.zero) && element.zero >= 0 && element.zero <= 128;
        if (is_whole && matrix.format == GpuFormat::kW4 && element.zero <= 15) {
          ASSERT_EQ(got, FloatFromBF16(BF16FromFloat(element.value())));
        }
        double before = is_whole ? 0x1p-16 * std::abs(value)
                                 : 0x1p-15 * std::abs(element.scale) * (std::abs(element.zero) + kept);
        if (!is_whole && (element.zero < 0 || element.zero > 240)) before += 0x1p-8 * std::abs(value);
        ASSERT_NEAR(got, value, 0x1.01p-8 * (std::abs(value) + before) + before)
            << row << " " << column << " scale " << element.scale << " zero " << element.zero;
        // What the other tests expect is these values, but for one rounding.
        const float expected = FloatFromBF16(WideValue(element, kept));
        ASSERT_NEAR(got, expected, 0x1p-7 * std::abs(expected));
      }
    }
  }
}

TEST(WideGemm, WordsOfAUnitHaveOnePlaceEach) {
  const auto check = [](auto place) {
    std::set<uint32_t> places;
    for (uint32_t word = 0; word < 32; ++word) places.insert(place(word));
    EXPECT_EQ(places.size(), 32u);
    EXPECT_EQ(*places.rbegin(), 31u);
  };
  check(WideWordPlace<E4M3Pieces>);
  check(WideWordPlace<W4Pieces<1>>);
  check(WideWordPlace<W8Pieces<1>>);
  check(WideWordPlace<W8Pieces<2>>);
}

TEST(WideGemm, EveryKindOfOutput) {
  for (const DType dtype : {DType::kF32, DType::kQ4_K, DType::kInt8}) {
    for (const TestGemmOut& output : kEveryGemmOut) {
      for (const WideGemmShape& shape : {WideGemmShape{1, 1}, WideGemmShape{2, 2}}) {
        for (const uint32_t tokens : {11u, 67u}) {
          SCOPED_TRACE(testing::Message() << Info(dtype).name << " " << output << " " << shape.splits
                                          << " splits " << tokens << " tokens");
          constexpr uint32_t kRows = 80, kColumns = 512;
          const TestGpuMatrix weights(dtype, kRows, kColumns, /*seed=*/3, output.is_gated());
          const RoundedGpuMatrix rounded(weights.matrix(), WideValue);
          const std::vector<uint16_t> x = RandomBF16(tokens * kColumns, /*seed=*/4);
          const size_t row_bytes = RowBytes(kRows, output);
          std::vector<std::byte> out((tokens + 1) * row_bytes, std::byte{0xff});
          constexpr float kBefore = 2.5f;
          if (output.kind == GpuGemmOut::kAddF32) {
            for (size_t i = 0; i < tokens * kRows; ++i) std::memcpy(&out[4 * i], &kBefore, 4);
          }
          WideGemm({.x = x.data(),
                    .tokens = tokens,
                    .weights = weights.matrix(),
                    .out = out.data(),
                    .kind = output.kind,
                    .gate = output.gate},
                   shape);
          for (uint32_t token = 0; token < tokens; token += 3) {
            ExpectGemmRow(rounded.matrix, &x[token * kColumns], output, &out[token * row_bytes], kBefore);
          }
          for (size_t i = tokens * row_bytes; i < out.size(); ++i) EXPECT_EQ(out[i], std::byte{0xff});
        }
      }
    }
  }
}

// Alone, or anywhere in a batch, whatever the rows of a block.
TEST(WideGemm, ATokenHasTheSameBitsInAnyBatch) {
  constexpr uint32_t kRows = 128, kColumns = 512;
  for (const DType dtype : kTileGemmDTypes) {
    const TestGpuMatrix weights(dtype, kRows, kColumns, /*seed=*/5);
    const std::vector<uint16_t> token = RandomBF16(kColumns, /*seed=*/6);
    const std::vector<float> alone = WideGemmF32(weights.matrix(), token, {1, 2});
    for (const uint32_t tokens : {20u, 66u, 130u}) {
      std::vector<uint16_t> x = RandomBF16(tokens * kColumns, /*seed=*/7);
      for (const uint32_t place : {0u, 5u, tokens - 1}) std::ranges::copy(token, &x[place * kColumns]);
      const std::vector<float> out = WideGemmF32(weights.matrix(), x, {2, 2}, /*seed=*/tokens);
      for (const uint32_t place : {0u, 5u, tokens - 1}) {
        for (uint32_t i = 0; i < kRows; ++i) {
          ASSERT_EQ(out[place * kRows + i], alone[i])
              << Info(dtype).name << " " << tokens << " tokens, place " << place << " output " << i;
        }
      }
    }
  }
}

TEST(WideGemm, BlocksOfTokensAreFewAndFull) {
  for (uint32_t tokens = 1; tokens < 3000; ++tokens) {
    const uint32_t each = WideGemmTokens(tokens), blocks = WideGemmTokenBlocks(tokens);
    ASSERT_EQ(blocks, (tokens + 127) / 128) << tokens;
    ASSERT_LE(each, 128u) << tokens;
    ASSERT_GE(each * blocks, tokens);
    ASSERT_LT((each - std::min(each, 32u)) * blocks, tokens) << tokens;
  }
}

TEST(WideGemm, ShapesFillTheDevice) {
  for (const GpuFormat format : {GpuFormat::kE4M3, GpuFormat::kW4, GpuFormat::kW8}) {
    for (const uint32_t rows : {16u, 48u, 1024u, 4096u, 6144u, 28672u, 128256u}) {
      for (const uint32_t columns : {64u, 128u, 4096u, 14336u}) {
        for (const uint32_t tokens : {9u, 64u, 256u, 2048u}) {
          SCOPED_TRACE(testing::Message() << rows << " " << columns << " " << tokens);
          const GpuMatrix weights{.format = format, .rows = rows, .columns = columns, .group = 128};
          const std::vector<WideGemmShape> shapes = WideGemmShapes(weights, tokens);
          ASSERT_GE(shapes.size(), 1u);
          ASSERT_LE(shapes.size(), 5u);
          for (const WideGemmShape& shape : shapes) {
            EXPECT_LE(shape.splits, kMostWideSplits);
            EXPECT_LE(shape.splits, WideGemmStages(weights));
            EXPECT_TRUE(shape.splits == 1 || tokens <= kMostWideSplitTokens);
            EXPECT_TRUE(!shape.scales_sums || (format == GpuFormat::kW4 && tokens == 9));
          }
          const uint32_t blocks = WideGemmRowBlocks(rows, shapes[0].row_groups) * WideGemmTokenBlocks(tokens);
          if (columns >= 4096 && rows >= 4096) {
            EXPECT_GE(blocks * shapes[0].splits, 64u);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace terrace
