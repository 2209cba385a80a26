// What the tests of the GPU's gemm kernels expect of an output: the values of the packed matrix times x in
// double precision, and how far from that a kernel may be.
#pragma once

#include <cstring>
#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/activation/gate_mul_testing.h"
#include "kernels/gemm/gpu_gemm.h"
#include "kernels/gemm/gpu_matrix_testing.h"

namespace terrace {

inline std::vector<uint16_t> RandomBF16(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> out(count);
  for (uint16_t& bits : out) bits = BF16FromFloat(normal(random));
  return out;
}

// What an output is: its kind and, of kGated, the gate function.
struct TestGemmOut {
  constexpr TestGemmOut(GpuGemmOut k, GateFunction g = GateFunction::kSilu) : kind(k), gate(g) {}
  bool is_gated() const { return kind == GpuGemmOut::kGated; }
  bool is_f32() const { return kind == GpuGemmOut::kF32 || kind == GpuGemmOut::kAddF32; }
  friend std::ostream& operator<<(std::ostream& to, const TestGemmOut& output) {
    to << "kind " << static_cast<int>(output.kind);
    return output.is_gated() ? to << " of " << GateFunctionName(output.gate) : to;
  }

  GpuGemmOut kind;
  GateFunction gate;
};
inline constexpr TestGemmOut kEveryGemmOut[] = {GpuGemmOut::kBF16,
                                                GpuGemmOut::kF32,
                                                GpuGemmOut::kAddF32,
                                                {GpuGemmOut::kGated, GateFunction::kSilu},
                                                {GpuGemmOut::kGated, GateFunction::kGelu}};
// Of a token's outputs.
inline size_t RowBytes(uint32_t rows, const TestGemmOut& output) {
  return size_t{output.is_gated() ? rows / 2 : rows} * (output.is_f32() ? 4 : 2);
}

struct GemmSum {
  double value = 0, bound = 0;
};

// A tensor core adds 16 products to a sum with an error of at most 2^-22 of all their magnitudes (it may cut
// off what is below the last bits of the largest), and a sum of so many columns is columns / 16 of these and,
// for the groups and the warps, some of f32. Of tiled formats what is added up are codes with their offset,
// and zeros.
inline GemmSum GemmSumOf(const GpuMatrix& matrix, uint32_t row, const uint16_t* x) {
  GemmSum sum;
  double magnitude = 0;
  for (uint32_t i = 0; i < matrix.columns; ++i) {
    const GpuElement element = GpuElementAt(matrix, row, i);
    const double factor = double{FloatFromBF16(x[i])} * element.scale;
    const double offset = matrix.format == GpuFormat::kW4 ? 16 : 0;
    sum.value += factor * (double{element.code} - element.zero);
    magnitude += std::abs(factor) * (std::abs(element.code) + std::abs(element.zero) + 2 * offset);
  }
  sum.bound = (matrix.columns / 16.0 + 32) * 0x1p-22 * magnitude + 1e-30;
  return sum;
}

// `matrix` lies in memory of the host. `x` and `out` (of the type of `output`) are rows of one token;
// `before` is what was added to. Every `stride`th row is looked at.
inline void ExpectGemmRow(const GpuMatrix& matrix, const uint16_t* x, const TestGemmOut& output,
                          const void* out, float before, uint32_t stride = 1) {
  const bool is_gated = output.is_gated();
  const uint32_t outputs = is_gated ? matrix.rows / 2 : matrix.rows;
  for (uint32_t i = 0; i < outputs; i += stride) {
    const GemmSum sum = GemmSumOf(matrix, is_gated ? i / 8 * 16 + i % 8 : i, x);
    double value = sum.value, bound = sum.bound, got = 0;
    if (is_gated) {
      const GemmSum up = GemmSumOf(matrix, i / 8 * 16 + 8 + i % 8, x);
      const double gate = GateRef(output.gate, sum.value);
      value = gate * up.value;
      bound = GateSlope(output.gate) * sum.bound * (std::abs(up.value) + up.bound) +
              std::abs(gate) * up.bound + GateMulError(output.gate) * std::abs(value);
    }
    if (output.is_f32()) {
      value += output.kind == GpuGemmOut::kAddF32 ? before : 0;
      bound += 0x1p-23 * (std::abs(value) + std::abs(before));
      got = static_cast<const float*>(out)[i];
    } else {
      bound += 0x1.01p-8 * (std::abs(value) + bound);
      got = FloatFromBF16(static_cast<const uint16_t*>(out)[i]);
    }
    ASSERT_NEAR(got, value, bound) << "output " << i;
  }
}

// What `run` makes of args: its bytes, a row for each token. kAddF32 adds to `before`. What is behind them
// stays.
template <typename Run>
std::vector<std::byte> GemmOutput(GpuGemmArgs args, float before, const Run& run) {
  const size_t row_bytes = RowBytes(args.weights.rows, args.kind);
  std::vector<std::byte> out((args.tokens + 1) * row_bytes, std::byte{0xff});
  if (args.kind == GpuGemmOut::kAddF32) {
    for (size_t i = 0; i < size_t{args.tokens} * args.weights.rows; ++i)
      std::memcpy(&out[4 * i], &before, sizeof(before));
  }
  args.out = out.data();
  run(args);
  for (size_t i = args.tokens * row_bytes; i < out.size(); ++i) EXPECT_EQ(out[i], std::byte{0xff});
  out.resize(args.tokens * row_bytes);
  return out;
}

// A random matrix in the form a file's dtype takes; with kF32 as E4M3, with kF16 2:4.
struct TestGpuMatrix {
  TestGpuMatrix(DType dtype, uint32_t rows, uint32_t columns, uint64_t seed, bool gated = false)
      : gate(dtype, gated ? rows / 2 : rows, columns, seed),
        up(dtype, gated ? rows / 2 : 0, columns, seed + 1) {
    if (dtype == DType::kF16) {
      KeepTwoOfFour(gate, seed + 2);
      KeepTwoOfFour(up, seed + 3);
    }
    const WeightMatrix both[] = {gate.matrix, up.matrix};
    const GpuMatrixParts parts{.parts = {both, gated ? 2u : 1u}, .gated = gated};
    ThreadPool pool(2);
    GpuMatrix format = GpuMatrixOf(parts, pool);
    if (dtype == DType::kF32) format.format = GpuFormat::kE4M3;
    packed.emplace(parts, format);
  }
  const GpuMatrix& matrix() const { return packed->matrix; }

  FileWeights gate, up;
  std::optional<PackedGpuMatrix> packed;
};

// Two products with RMSNorm between them that is no kernel of its own (GpuGemmArgs::next_norm, x_squares):
// what goes in, on the host, and what a test has them leave.
struct NormedProducts {
  static constexpr float kEpsilon = 1e-3f;

  NormedProducts(DType second_dtype, uint32_t token_count, uint32_t hidden_size, uint32_t columns,
                 uint32_t rows)
      : tokens(token_count),
        first(DType::kBF16, hidden_size, columns, /*seed=*/1),
        second(second_dtype, rows, hidden_size, /*seed=*/2),
        x(RandomBF16(size_t{tokens} * columns, /*seed=*/3)),
        norm(hidden_size) {
    for (const uint16_t bits : RandomBF16(size_t{tokens} * hidden_size, /*seed=*/4))
      before.push_back(FloatFromBF16(bits));
    for (uint32_t i = 0; i < hidden_size; ++i) norm[i] = 0.5f + static_cast<float>(i % 7) / 8;
  }

  // The first leaves the second's x; the second divides its sums by their root mean square. `undivided` is
  // what it makes of next_x without x_squares.
  void ExpectRight(const std::vector<float>& hidden, const std::vector<uint16_t>& next_x,
                   const std::vector<float>& undivided, const std::vector<float>& out) const {
    const uint32_t width = first.matrix().rows, rows = second.matrix().rows;
    for (size_t t = 0; t < tokens; ++t) {
      ExpectGemmRow(first.matrix(), &x[t * first.matrix().columns], GpuGemmOut::kAddF32, &hidden[t * width],
                    before[t * width], /*stride=*/width);
      double sum = 0;
      for (size_t i = t * width; i < (t + 1) * width; ++i) {
        EXPECT_EQ(next_x[i], BF16FromFloat(hidden[i] * norm[i % width]));
        sum += double{hidden[i]} * hidden[i];
      }
      const double factor = 1 / std::sqrt(sum / width + double{kEpsilon});
      for (size_t i = t * rows; i < (t + 1) * rows; ++i) {  // some ten roundings of terms of one sign
        const double want = undivided[i] * factor;
        EXPECT_NEAR(out[i], want, std::abs(want) * 0x1p-19);
      }
    }
  }

  uint32_t tokens;
  TestGpuMatrix first, second;
  std::vector<uint16_t> x;          // [tokens, columns] of the first
  std::vector<float> before, norm;  // [tokens, hidden], which the first adds to; [hidden]
};

// One for each kind of GpuMatrix that kernels tell apart, and those that are the same kind with other zeros.
inline constexpr DType kGpuMatrixDTypes[] = {DType::kBF16,    DType::kF32,  DType::kF16,      DType::kQ4_0,
                                             DType::kInt4G32, DType::kQ4_K, DType::kInt4G128, DType::kQ8_0,
                                             DType::kQ5_0,    DType::kQ6_K, DType::kInt8};

}  // namespace terrace
