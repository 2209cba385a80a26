#include "kernels/gemm/gpu_matrix.h"

#include <algorithm>
#include <limits>

#include "gtest/gtest.h"
#include "kernels/gemm/gpu_matrix_testing.h"
#include "kernels/quant/weight_codes.h"
#include "kernels/quant/weight_values.h"

namespace terrace {
namespace {

class GpuMatrixTest : public testing::Test {
 protected:
  // Of value - what the file says, by the header's list: 2^-11 (1 + 2^-11) of what is added up.
  static double Bound(const WeightMatrix& file, size_t row, size_t column) {
    const double value = WeightAt(file, row, column);
    if (file.dtype == DType::kQ6_K || file.dtype == DType::kInt8) return 0x1.01p-11 * std::abs(value);
    if (file.dtype == DType::kF32 || file.dtype == DType::kF16) return 0x1p-8 * std::abs(value);
    if (file.dtype != DType::kQ4_K) return 0;
    const std::byte* block = file.Row(row) + column / 256 * 144;
    const double minimum = Q4_KBlocks::Minimum(block, column % 256 / 32);
    const double scale = Q4_KBlocks::Scale(block, column % 256 / 32);
    return 0x1.01p-11 * (std::abs(value + minimum) + std::abs(minimum)) + 0x1p-25 * std::abs(scale);
  }
  void ExpectValues(const GpuMatrix& matrix, const std::vector<const WeightMatrix*>& parts, bool gated) {
    for (uint32_t row = 0; row < matrix.rows; ++row) {
      size_t from = row, part = 0;
      if (gated) {
        part = row / 8 % 2;
        from = row / 16 * 8 + row % 8;
      } else {
        while (from >= parts[part]->rows) from -= parts[part++]->rows;
      }
      for (uint32_t column = 0; column < matrix.columns; ++column) {
        const float value = GpuElementAt(matrix, row, column).value();
        ASSERT_NEAR(value, WeightAt(*parts[part], from, column), Bound(*parts[part], from, column))
            << "row " << row << " column " << column;
      }
    }
  }
  ThreadPool pool_{2};
};

TEST_F(GpuMatrixTest, EveryDTypeBecomesWhatHoldsIt) {
  const struct {
    DType dtype;
    GpuFormat format;
    uint32_t group;
  } cases[] = {{DType::kF32, GpuFormat::kBF16, 0},    {DType::kF16, GpuFormat::kBF16, 0},
               {DType::kBF16, GpuFormat::kBF16, 0},   {DType::kQ8_0, GpuFormat::kW8, 32},
               {DType::kQ4_0, GpuFormat::kW4, 32},    {DType::kQ5_0, GpuFormat::kW8, 32},
               {DType::kQ4_K, GpuFormat::kW4, 32},    {DType::kQ6_K, GpuFormat::kW8, 16},
               {DType::kInt4G32, GpuFormat::kW4, 32}, {DType::kInt4G128, GpuFormat::kW4, 128},
               {DType::kInt8, GpuFormat::kW8, 128}};
  for (const auto& c : cases) {
    SCOPED_TRACE(Info(c.dtype).name);
    const FileWeights weights(c.dtype, 37, 512, /*seed=*/1);
    const GpuMatrixParts parts{.parts = {&weights.matrix, 1}};
    const GpuMatrix format = GpuMatrixOf(parts, pool_);
    EXPECT_EQ(format.format, c.format);
    EXPECT_EQ(format.group, c.group);
    EXPECT_EQ(format.has_row_scales, c.dtype == DType::kInt8);
    EXPECT_EQ(format.rows, 37u);
    const PackedGpuMatrix packed(parts, format);
    ExpectValues(packed.matrix, {&weights.matrix}, false);
  }
}

TEST_F(GpuMatrixTest, StackedPartsShareTheNarrowestFormatThatHoldsAll) {
  const DType all[] = {DType::kQ8_0, DType::kQ4_0,    DType::kQ5_0,     DType::kQ4_K,
                       DType::kQ6_K, DType::kInt4G32, DType::kInt4G128, DType::kInt8};
  for (const DType a : all) {
    for (const DType b : all) {
      SCOPED_TRACE(std::string(Info(a).name) + " and " + std::string(Info(b).name));
      const FileWeights first(a, 16, 256, /*seed=*/2), second(b, 16, 256, /*seed=*/3);
      const WeightMatrix both[] = {first.matrix, second.matrix};
      for (const bool gated : {false, true}) {
        const GpuMatrixParts parts{.parts = both, .gated = gated};
        const GpuMatrix format = GpuMatrixOf(parts, pool_);
        EXPECT_NE(format.format, GpuFormat::kBF16);
        EXPECT_EQ(format.has_row_scales, a == DType::kInt8 && b == DType::kInt8);
        const PackedGpuMatrix packed(parts, format);
        ExpectValues(packed.matrix, {&both[0], &both[1]}, gated);
      }
    }
  }
}

TEST_F(GpuMatrixTest, PartsOfDifferentRowsFollowEachOther) {
  const FileWeights q(DType::kQ4_K, 40, 256, /*seed=*/4), k(DType::kQ4_K, 8, 256, /*seed=*/5),
      v(DType::kQ6_K, 8, 256, /*seed=*/6);
  const WeightMatrix all[] = {q.matrix, k.matrix, v.matrix};
  const GpuMatrix format = GpuMatrixOf({.parts = all}, pool_);
  EXPECT_EQ(format.format, GpuFormat::kW8);
  EXPECT_EQ(format.group, 16u);
  const PackedGpuMatrix packed({.parts = all}, format);
  ExpectValues(packed.matrix, {&all[0], &all[1], &all[2]}, false);
}

// An output matrix, whose products are as wide as it has rows: what is behind the vocabulary is 0.
TEST_F(GpuMatrixTest, RowsBehindThePartsAreZeros) {
  for (const DTypeInfo& info : kDTypes) {
    FileWeights weights(info.dtype, 37, 256, /*seed=*/21);
    const bool is_16_bits = info.dtype == DType::kF16 || info.dtype == DType::kBF16;
    const GpuMatrixParts parts{.parts = {&weights.matrix, 1}};
    for (const GpuFormat format : {GpuMatrixByFormat(parts).format, GpuFormat::kBF16, GpuFormat::kE4M3,
                                   is_16_bits ? GpuFormat::kSparse : GpuFormat::kBF16}) {
      SCOPED_TRACE(testing::Message() << info.name << ", format " << static_cast<int>(format));
      if (format == GpuFormat::kSparse) KeepTwoOfFour(weights, /*seed=*/22);
      GpuMatrix matrix = GpuMatrixByFormat(parts);
      matrix.format = format;
      const PackedGpuMatrix as_it_is(parts, matrix);
      matrix.rows = RowsOfWholeTiles(matrix.rows);
      EXPECT_EQ(matrix.rows, 48u);
      const PackedGpuMatrix packed(parts, matrix);
      for (uint32_t row = 0; row < matrix.rows; ++row) {
        for (uint32_t column = 0; column < matrix.columns; ++column) {
          ASSERT_EQ(GpuElementAt(packed.matrix, row, column).value(),
                    row < 37 ? GpuElementAt(as_it_is.matrix, row, column).value() : 0.0f)
              << "row " << row << " column " << column;
        }
      }
    }
  }
}

TEST_F(GpuMatrixTest, WhatIsTwoOfFourInAllItsRowsIsSparse) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    SCOPED_TRACE(Info(dtype).name);
    FileWeights q(dtype, 40, 192, /*seed=*/12), k(dtype, 9, 192, /*seed=*/13);
    KeepTwoOfFour(q, /*seed=*/14);
    const WeightMatrix both[] = {q.matrix, k.matrix};
    EXPECT_FALSE(MayBeSparse({.parts = both}, pool_));
    EXPECT_EQ(GpuMatrixOf({.parts = both}, pool_).format, GpuFormat::kBF16);
    KeepTwoOfFour(k, /*seed=*/15);
    EXPECT_TRUE(MayBeSparse({.parts = both}, pool_));
    const GpuMatrix format = GpuMatrixOf({.parts = both}, pool_);
    EXPECT_EQ(format.format, GpuFormat::kSparse);
    EXPECT_EQ(GpuCodeBytes(format), 4u * 16 * 192 * 2 * 9 / 16);
    const PackedGpuMatrix packed({.parts = both}, format);
    ExpectValues(packed.matrix, {&both[0], &both[1]}, false);
    const uint16_t ones[] = {0x3c00, 0x3c00, 0x3c00};
    std::memcpy(&q.bytes[1 + 39 * 192 * 2], ones, sizeof(ones));  // its last row
    EXPECT_TRUE(MayBeSparse({.parts = both}, pool_));
    EXPECT_EQ(GpuMatrixOf({.parts = both}, pool_).format, GpuFormat::kBF16);
  }
  FileWeights narrow(DType::kBF16, 16, 32, /*seed=*/16);
  KeepTwoOfFour(narrow, /*seed=*/17);
  EXPECT_FALSE(MayBeSparse({.parts = {&narrow.matrix, 1}}, pool_));  // no whole pieces
}

TEST_F(GpuMatrixTest, Int8OfZerosIsNotSparse) {
  FileWeights codes(DType::kInt8, 16, 128, /*seed=*/18), floats(DType::kBF16, 16, 128, /*seed=*/19);
  std::ranges::fill(codes.bytes, std::byte{0});
  KeepTwoOfFour(floats, /*seed=*/20);
  const WeightMatrix both[] = {codes.matrix, floats.matrix};
  EXPECT_FALSE(MayBeSparse({.parts = both}, pool_));
  EXPECT_EQ(GpuMatrixOf({.parts = both}, pool_).format, GpuFormat::kBF16);
  EXPECT_EQ(GpuMatrixOf({.parts = {&codes.matrix, 1}}, pool_).format, GpuFormat::kW8);
}

// Each four of a piece has bits and bytes of its own, and all of it is used.
TEST_F(GpuMatrixTest, PlacesOfAPieceDoNotMeet) {
  std::vector<int> used(kSparsePieceBytes * 2);  // by four bits
  for (uint32_t row = 0; row < kTileRows; ++row) {
    for (uint32_t four = 0; four < kSparsePieceColumns / 4; ++four) {
      const SparsePlace place = SparsePlaceOf(row, four);
      for (uint32_t i = 0; i < 8; ++i) ++used[place.kept * 2 + i];
      ++used[place.places * 2 + place.bit / 4];
    }
  }
  for (const int times : used) EXPECT_EQ(times, 1);
}

TEST_F(GpuMatrixTest, AMinimumNeedsNoScale) {
  FileWeights weights(DType::kQ4_K, 16, 256, /*seed=*/7);
  const auto put = [&](size_t row, float scale, float minimum) {
    const uint16_t bits[] = {F16FromFloat(scale), F16FromFloat(minimum)};
    std::memcpy(&weights.bytes[1 + row * 144], bits, 4);
  };
  put(0, 0, 0.25f);
  put(1, 0x1p-24f, 4);  // zero points of up to 2^26 * 63
  put(2, 0, 0);
  put(3, 0.5f, 0);
  const GpuMatrixParts parts{.parts = {&weights.matrix, 1}};
  const GpuMatrix format = GpuMatrixOf(parts, pool_);
  EXPECT_EQ(format.format, GpuFormat::kW4);
  const PackedGpuMatrix packed(parts, format);
  ExpectValues(packed.matrix, {&weights.matrix}, false);
}

TEST_F(GpuMatrixTest, ScalesBeyondF16MakeItBF16) {
  FileWeights large(DType::kQ6_K, 16, 256, /*seed=*/8);
  const uint16_t bits = F16FromFloat(6e4f);
  std::memcpy(&large.bytes[1 + 208], &bits, 2);
  EXPECT_EQ(GpuMatrixOf({.parts = {&large.matrix, 1}}, pool_).format, GpuFormat::kBF16);
  FileWeights not_a_number(DType::kQ4_0, 16, 256, /*seed=*/9);
  const uint16_t nan = 0x7e00;
  std::memcpy(&not_a_number.bytes[1], &nan, 2);
  EXPECT_EQ(GpuMatrixOf({.parts = {&not_a_number.matrix, 1}}, pool_).format, GpuFormat::kBF16);
  FileWeights small(DType::kInt8, 16, 256, /*seed=*/10);
  small.row_scales[3] = 1e-7f;
  const GpuMatrixParts parts{.parts = {&small.matrix, 1}};
  const GpuMatrix format = GpuMatrixOf(parts, pool_);
  EXPECT_EQ(format.format, GpuFormat::kBF16);
  const PackedGpuMatrix packed(parts, format);
  for (uint32_t i = 0; i < 256; ++i) {
    const float value = WeightAt(small.matrix, 3, i);
    EXPECT_EQ(GpuElementAt(packed.matrix, 3, i).value(), FloatFromBF16(BF16FromFloat(value)));
  }
}

TEST_F(GpuMatrixTest, RowsOfE4M3ReachItsLargest) {
  FileWeights weights(DType::kF32, 19, 128, /*seed=*/11);
  std::memset(&weights.bytes[1 + 5 * 128 * 4], 0, 128 * 4);
  const GpuMatrixParts parts{.parts = {&weights.matrix, 1}};
  GpuMatrix format = GpuMatrixOf(parts, pool_);
  format.format = GpuFormat::kE4M3;
  const PackedGpuMatrix packed(parts, format);
  for (uint32_t row = 0; row < 19; ++row) {
    float largest = 0;
    for (uint32_t i = 0; i < 128; ++i)
      largest = std::max(largest, std::abs(WeightAt(weights.matrix, row, i)));
    for (uint32_t i = 0; i < 128; ++i) {
      const GpuElement element = GpuElementAt(packed.matrix, row, i);
      EXPECT_FLOAT_EQ(element.scale, largest / 448);
      // Half a step: 2^-4 of the value, or of the smallest normal code 2^-6.
      const float value = WeightAt(weights.matrix, row, i);
      EXPECT_NEAR(element.value(), value, 0x1.01p-4 * std::max(std::abs(value), element.scale * 0x1p-6f));
    }
  }
}

}  // namespace
}  // namespace terrace
