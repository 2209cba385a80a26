#include "kernels/gemm/ordered_gemm_device.h"

#include <bit>
#include <random>

#include "gtest/gtest.h"
#include "kernels/gemm/gpu_gemm_testing.h"

namespace terrace {
namespace {

template <typename Pieces>
void Stream(const GpuGemmArgs& args, uint32_t parts) {
  simt::Run({(args.tokens + 31) / 32, args.weights.rows / 16, 1}, 32 * parts,
            parts * kStreamRingBytes<Pieces>, StreamGemmKernel<Pieces, 4, 1, false>, args,
            static_cast<uint32_t>(std::countr_zero(parts)));
}
template <typename Pieces, uint32_t kRowTiles, uint32_t kTokenTiles>
void OrderedTile(const GpuGemmArgs& args, uint32_t parts, uint64_t seed) {
  using Block = OrderedBlock<Pieces, kRowTiles, kTokenTiles>;
  const simt::Dim3 grid{(args.tokens + Block::kTokens - 1) / Block::kTokens,
                        (args.weights.rows + Block::kRows - 1) / Block::kRows, 1};
  simt::RunSeeded(seed, grid, kOrderedThreads, Block::kShared,
                  OrderedGemmKernel<Pieces, kRowTiles, kTokenTiles>, args,
                  static_cast<uint32_t>(std::countr_zero(parts)));
}

struct How {
  bool is_ordered = false, is_large = false;  // else stream_gemm
  uint32_t parts = 8;
  uint64_t seed = 0;
};

template <typename Pieces>
void MultiplyPieces(const GpuGemmArgs& args, const How& how) {
  if (!how.is_ordered) return Stream<Pieces>(args, how.parts);
  how.is_large ? OrderedTile<Pieces, 4, 8>(args, how.parts, how.seed)
               : OrderedTile<Pieces, 2, 4>(args, how.parts, how.seed);
}
void Multiply(const GpuGemmArgs& args, const How& how) {
  const GpuMatrix& weights = args.weights;
  if (weights.format == GpuFormat::kBF16) return MultiplyPieces<BF16Pieces>(args, how);
  if (weights.format == GpuFormat::kE4M3) return MultiplyPieces<E4M3Pieces>(args, how);
  if (weights.format == GpuFormat::kSparse) return MultiplyPieces<SparsePieces>(args, how);
  if (weights.format == GpuFormat::kW4) {
    return weights.group == 32 ? MultiplyPieces<W4Pieces<2>>(args, how)
                               : MultiplyPieces<W4Pieces<1>>(args, how);
  }
  weights.group == 16 ? MultiplyPieces<W8Pieces<2>>(args, how) : MultiplyPieces<W8Pieces<1>>(args, how);
}

struct Case {
  DType dtype;
  uint32_t rows, columns, tokens;
  TestGemmOut output;
};

size_t RowBytes(const Case& c) { return RowBytes(c.rows, c.output); }

// The output's bytes and a row behind it; what is added to is random.
std::vector<std::byte> Product(const Case& c, const TestGpuMatrix& weights, const std::vector<uint16_t>& x,
                               const How& how) {
  std::vector<std::byte> out((c.tokens + 1) * RowBytes(c), std::byte{0xff});
  if (c.output.kind == GpuGemmOut::kAddF32) {
    const std::vector<uint16_t> before = RandomBF16(size_t{c.tokens} * c.rows, 99);
    for (size_t i = 0; i < before.size(); ++i) {
      const float value = FloatFromBF16(before[i]);
      std::memcpy(&out[4 * i], &value, 4);
    }
  }
  Multiply({.x = x.data(),
            .tokens = c.tokens,
            .weights = weights.matrix(),
            .out = out.data(),
            .kind = c.output.kind,
            .gate = c.output.gate},
           how);
  return out;
}

void ExpectStreamGemmsBits(const Case& c, const How& how) {
  SCOPED_TRACE(testing::Message() << Info(c.dtype).name << " [" << c.rows << ", " << c.columns << "] "
                                  << c.tokens << " tokens, " << c.output << ", " << how.parts << " parts, "
                                  << (how.is_large ? "large" : "small") << ", seed " << how.seed);
  const TestGpuMatrix weights(c.dtype, c.rows, c.columns, how.seed, c.output.is_gated());
  std::vector<uint16_t> x = RandomBF16(size_t{c.tokens} * c.columns, how.seed + 1);
  // Zeros of both signs: their products' sums keep a sign.
  for (size_t i = 0; i < c.columns; ++i) x[i] = i % 2 == 0 ? 0 : 0x8000;
  const std::vector<std::byte> want = Product(c, weights, x, {.parts = how.parts});
  const std::vector<std::byte> got = Product(c, weights, x, how);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i], want[i]) << "token " << i / RowBytes(c) << ", byte " << i % RowBytes(c);
  }
}

// The rule: an output's bits are stream_gemm's, whatever the tile, the format and what becomes of it.
TEST(OrderedGemm, HasTheBitsOfStreamGemm) {
  for (const DType dtype : kGpuMatrixDTypes) {
    ExpectStreamGemmsBits({dtype, 128, 512, 257, GpuGemmOut::kF32},
                          {.is_ordered = true, .is_large = true, .parts = 4, .seed = 1});
    ExpectStreamGemmsBits({dtype, 80, 768, 130, GpuGemmOut::kAddF32},
                          {.is_ordered = true, .is_large = false, .parts = 8, .seed = 2});
  }
}

TEST(OrderedGemm, HasTheBitsOfStreamGemmWhereItGates) {
  for (const GateFunction gate : kGateFunctions) {
    ExpectStreamGemmsBits({DType::kQ4_0, 80, 512, 70, {GpuGemmOut::kGated, gate}},
                          {.is_ordered = true, .is_large = true, .parts = 4, .seed = 3});
  }
}

TEST(OrderedGemm, HasTheBitsOfStreamGemmAtRandomShapes) {
  std::mt19937_64 random(20260101);
  const auto below = [&](uint32_t count) { return static_cast<uint32_t>(random() % count); };
  for (int i = 0; i < 24; ++i) {
    const Case c{.dtype = kGpuMatrixDTypes[below(std::size(kGpuMatrixDTypes))],
                 .rows = 16 * (1 + below(10)),
                 .columns = 256 * (1 + below(4)),
                 .tokens = 1 + below(300),
                 .output = kEveryGemmOut[below(std::size(kEveryGemmOut))]};
    ExpectStreamGemmsBits(
        c, {.is_ordered = true, .is_large = below(2) == 0, .parts = 4u << below(3), .seed = random()});
    if (HasFatalFailure()) return;
  }
}

// Fewer pieces than stages, or than parts: some of these have none.
TEST(OrderedGemm, NarrowMatricesLeavePartsEmpty) {
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kQ4_0, DType::kQ8_0, DType::kInt8}) {
    for (const uint32_t columns : {64u, 128u, 192u}) {
      for (const bool is_large : {false, true}) {
        ExpectStreamGemmsBits({dtype, 32, columns, 20, GpuGemmOut::kBF16},
                              {.is_ordered = true, .is_large = is_large, .parts = 16, .seed = columns});
      }
    }
  }
}

// Both could be wrong alike.
TEST(OrderedGemm, IsWithinItsBound) {
  for (const DType dtype : kGpuMatrixDTypes) {
    SCOPED_TRACE(Info(dtype).name);
    const Case c{dtype, 144, 512, 70, GpuGemmOut::kF32};
    const TestGpuMatrix weights(dtype, c.rows, c.columns, /*seed=*/3);
    const std::vector<uint16_t> x = RandomBF16(size_t{c.tokens} * c.columns, /*seed=*/4);
    const std::vector<std::byte> out =
        Product(c, weights, x, {.is_ordered = true, .is_large = true, .seed = 5});
    for (uint32_t token = 0; token < c.tokens; token += 23) {
      ExpectGemmRow(weights.matrix(), &x[size_t{token} * c.columns], c.output, &out[token * RowBytes(c)], 0);
    }
  }
}

}  // namespace
}  // namespace terrace
