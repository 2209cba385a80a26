#include "kernels/gemm/gemm.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "kernels/gemm/activation_groups.h"
#include "kernels/gemm/weight_strips.h"
#include "kernels/op_testing.h"
#include "kernels/quant/weight_codes.h"
#include "kernels/quant/weight_values.h"
#include "kernels/simd/pair_places.h"

namespace terrace {
namespace {

std::vector<float> Rows(const std::vector<float>& matrix, size_t width, size_t first, size_t count) {
  const auto begin = matrix.begin() + static_cast<ptrdiff_t>(first * width);
  return {begin, begin + static_cast<ptrdiff_t>(count * width)};
}

// activation_groups.h once more, plainly: what is rounded and in which order it is added.
class Definition {
 public:
  Definition(const WeightMatrix& matrix, bool is_f32, bool is_fused)
      : matrix_(matrix), is_f32_(is_f32), is_fused_(is_fused) {}

  float Output(const float* x, size_t output) const {
    float sum = 0;
    for (size_t first = 0; first < matrix_.columns; first += kGroup) {
      const size_t count = std::min(kGroup, matrix_.columns - first);
      if (is_f32_ || matrix_.dtype == DType::kF32) {
        sum += Floats(x + first, output, first, count);
      } else if (matrix_.dtype == DType::kF16 || matrix_.dtype == DType::kBF16) {
        sum += Pairs(x + first, output, first, count);
      } else {
        AddInt8(x + first, output, first, count, sum);
      }
    }
    return sum;
  }

 private:
  float MultiplyAdd(float a, float b, float c) const { return is_fused_ ? std::fma(a, b, c) : a * b + c; }

  float Floats(const float* x, size_t output, size_t first, size_t count) const {
    float halves[2] = {};
    for (size_t k = 0; k < count; ++k) {
      halves[k % 2] = MultiplyAdd(WeightAt(matrix_, output, first + k), x[k], halves[k % 2]);
    }
    return halves[0] + halves[1];
  }

  float Pairs(const float* x, size_t output, size_t first, size_t count) const {
    const auto round = [](float value) { return FloatFromBF16(BF16FromFloat(value)); };
    float halves[2] = {};
    for (size_t pair = 0; pair < (count + 1) / 2; ++pair) {
      float& half = halves[pair % 2];
      for (const size_t k : {2 * pair + 1, 2 * pair}) {
        if (k < count) half = MultiplyAdd(round(WeightAt(matrix_, output, first + k)), round(x[k]), half);
      }
    }
    return halves[0] + halves[1];
  }

  void AddInt8(const float* x, size_t output, size_t first, size_t count, float& sum) const {
    float most = 0;
    for (size_t k = 0; k < count; ++k) most = std::max(most, std::abs(x[k]));
    if (most < kSmallestGroup) return;
    const float inverse = 127 / most;
    std::vector<int> n(count);
    for (size_t k = 0; k < count; ++k) n[k] = static_cast<int>(std::nearbyint(x[k] * inverse));
    float group_sum = 0;
    WithBlocks(matrix_.dtype, [&](auto blocks) {
      using Blocks = decltype(blocks);
      for (size_t k = 0; k < count;) {
        const size_t in_row = first + k, in_block = in_row % Blocks::kElements;
        const std::byte* block =
            matrix_.Row(output) + in_row / Blocks::kElements * Info(matrix_.dtype).block_bytes;
        int dot = 0, plain = 0;
        for (const size_t end = k + Blocks::kShared; k < end; ++k) {
          uint8_t codes[kCodes];
          Blocks::Codes(block, (first + k) % Blocks::kElements / kCodes, codes);
          dot += (codes[(first + k) % kCodes] - Blocks::kBias) * n[k];
          plain += n[k];
        }
        const size_t shared = in_block / Blocks::kShared;
        group_sum = MultiplyAdd(static_cast<float>(dot), Blocks::Scale(block, shared), group_sum);
        const float minimum = Blocks::Minimum(block, shared);
        if (minimum != 0) group_sum = MultiplyAdd(minimum, -static_cast<float>(plain), group_sum);
      }
    });
    if (matrix_.dtype == DType::kInt8) {
      int dot = 0;
      for (size_t k = 0; k < count; ++k) dot += LoadUnaligned<int8_t>(matrix_.Row(output) + first + k) * n[k];
      group_sum = static_cast<float>(dot) * matrix_.row_scales[output];
    }
    sum = MultiplyAdd(group_sum, most / 127, sum);
  }

  const WeightMatrix& matrix_;
  const bool is_f32_, is_fused_;
};

bool HasFusedMultiplyAdd(const OpTable& ops) { return ops.name != "cpu generic"; }

// What activations lose when they are rounded for the weights, at most, and what weights lose: as a bound on
// an output's error. The sums of f32 numbers add a rounding of 2^-24 of what they hold for each of their
// terms: two a step of two elements, and a few a group.
double RoundingBound(const WeightMatrix& matrix, bool is_f32, const float* x, size_t output) {
  double bound = 0, magnitude = 0;
  for (size_t first = 0; first < matrix.columns; first += kGroup) {
    const size_t count = std::min(kGroup, matrix.columns - first);
    double most = 0;
    for (size_t k = 0; k < count; ++k) most = std::max(most, std::abs(double{x[first + k]}));
    for (size_t k = 0; k < count; ++k) {
      const double weight = std::abs(double{WeightAt(matrix, output, first + k)});
      const double value = std::abs(double{x[first + k]});
      magnitude += weight * value;
      if (is_f32 || matrix.dtype == DType::kF32) continue;
      const bool is_float = Info(matrix.dtype).block_elements == 1 && matrix.dtype != DType::kInt8;
      bound += is_float ? weight * value * (2 * 0x1p-8 + 0x1p-16) : weight * most / 127 * 0.5001;
      if (!is_float) magnitude += weight * most / 127;
    }
  }
  // Formats with a minimum add code * scale and the minimum apart, each up to 15 times the value's own size.
  return bound + (static_cast<double>(std::min(matrix.columns, kGroup)) +
                  static_cast<double>(matrix.columns) / kGroup + 8) *
                     16 * kRounding * magnitude;
}

class GemmOfEveryFormat : public EveryCpu {
 protected:
  // Calls check(matrix, compute) with matrices of every format and of many shapes.
  void ForEveryFormat(const std::function<void(const WeightMatrix&, ComputeType)>& check) {
    for (const DType dtype : kEveryDType) {
      for (const size_t inputs : {1, 3, 31, 32, 33, 96, 128, 160, 256, 288, 512, 768}) {
        if (inputs % Info(dtype).block_elements != 0) continue;
        const size_t outputs = 1 + inputs % 7 * 13;  // whole and broken strips
        const RandomWeights weights(dtype, outputs, inputs, /*seed=*/inputs);
        for (const ComputeType compute : {ComputeType::kAuto, ComputeType::kF32}) {
          SCOPED_TRACE(testing::Message() << Info(dtype).name << " inputs " << inputs << " compute "
                                          << static_cast<int>(compute));
          check(weights.matrix, compute);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
};

TEST_P(GemmOfEveryFormat, IsItsDefinitionToTheBit) {
  ForEveryFormat([&](const WeightMatrix& matrix, ComputeType compute) {
    const Definition definition(matrix, compute == ComputeType::kF32, HasFusedMultiplyAdd(ops()));
    const size_t tokens = 2 + matrix.columns % 3;
    const auto x = RandomNormal(tokens * matrix.columns, /*seed=*/matrix.columns);
    const auto got = Gemm(ops(), x, matrix, pool_, compute);
    for (size_t i = 0; i < got.size(); ++i) {
      const float want = definition.Output(&x[i / matrix.rows * matrix.columns], i % matrix.rows);
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want))
          << "output " << i << ": " << got[i] << " against " << want;
    }
  });
}

TEST_P(GemmOfEveryFormat, MatchesTheReferenceWithinTheRoundingBound) {
  ForEveryFormat([&](const WeightMatrix& matrix, ComputeType compute) {
    const size_t tokens = 5;
    const auto x = RandomNormal(tokens * matrix.columns, /*seed=*/matrix.columns);
    const auto want = Gemm(ReferenceOps(), x, matrix, pool_);
    const auto got = Gemm(ops(), x, matrix, pool_, compute);
    for (size_t i = 0; i < got.size(); ++i) {
      const float* row = &x[i / matrix.rows * matrix.columns];
      ASSERT_NEAR(got[i], want[i], RoundingBound(matrix, compute == ComputeType::kF32, row, i % matrix.rows))
          << i;
    }
  });
}

TEST_P(GemmOfEveryFormat, ATokenDoesNotDependOnTheBatch) {
  for (const DType dtype : kEveryDType) {
    SCOPED_TRACE(Info(dtype).name);
    const size_t inputs = 512, outputs = 75, tokens = 101;  // more tokens than a tile holds
    const RandomWeights weights(dtype, outputs, inputs, /*seed=*/7);
    const auto x = RandomNormal(tokens * inputs, /*seed=*/8);
    const auto all = Gemm(ops(), x, weights.matrix, pool_);
    for (size_t first = 0; first < tokens; first += 1 + first / 2) {
      for (size_t count = 1; first + count <= tokens; count += 1 + count / 2) {
        EXPECT_TRUE(SameBits(Gemm(ops(), Rows(x, inputs, first, count), weights.matrix, pool_),
                             Rows(all, outputs, first, count)));
      }
    }
  }
}

// Two of each four elements of `weights` become zero, at random; of some fours three or all.
void MakeTwoOfFour(RandomWeights& weights, uint64_t seed) {
  const size_t fours = weights.matrix.rows * weights.matrix.columns / 4;
  const size_t bytes = Info(weights.matrix.dtype).block_bytes;  // of an element
  const std::vector<float> random = RandomNormal(2 * fours, seed);
  for (size_t i = 0; i < fours; ++i) {
    const auto one = static_cast<size_t>(std::abs(random[2 * i]) * 1000) % 4;
    const auto other = (one + 1 + static_cast<size_t>(std::abs(random[2 * i + 1]) * 1000) % 3) % 4;
    for (size_t k = 0; k < 4; ++k) {
      const bool is_kept = i % 13 == 0 ? false : i % 7 == 0 ? k == one : k == one || k == other;
      if (!is_kept) std::memset(weights.bytes.data() + 1 + (4 * i + k) * bytes, 0, bytes);
    }
  }
}

class GemmOfTwoOfFour : public EveryCpu {
 protected:
  void ForEveryShape(const std::function<void(const WeightMatrix&)>& check) {
    for (const DType dtype : {DType::kF16, DType::kBF16, DType::kInt8}) {
      for (const size_t inputs : {32, 96, 128, 160, 288, 512}) {
        const size_t outputs = 1 + inputs % 7 * 13;
        RandomWeights weights(dtype, outputs, inputs, /*seed=*/inputs);
        MakeTwoOfFour(weights, /*seed=*/inputs + 1);
        ASSERT_TRUE(IsTwoOfFour(weights.matrix, pool_));
        SCOPED_TRACE(testing::Message() << Info(dtype).name << " inputs " << inputs);
        check(weights.matrix);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
};

TEST_P(GemmOfTwoOfFour, IsItsDefinitionToTheBitAndNearTheReference) {
  ForEveryShape([&](const WeightMatrix& matrix) {
    const Definition definition(matrix, /*is_f32=*/false, HasFusedMultiplyAdd(ops()));
    for (const size_t tokens : {1, 2, 7, 50}) {
      const auto x = RandomNormal(tokens * matrix.columns, /*seed=*/matrix.columns);
      const auto want = Gemm(ReferenceOps(), x, matrix, pool_), got = Gemm(ops(), x, matrix, pool_);
      for (size_t i = 0; i < got.size(); ++i) {
        const float* row = &x[i / matrix.rows * matrix.columns];
        const float exact = definition.Output(row, i % matrix.rows);
        ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(exact))
            << "output " << i << " of " << tokens << " tokens: " << got[i] << " against " << exact;
        ASSERT_NEAR(got[i], want[i], RoundingBound(matrix, false, row, i % matrix.rows)) << i;
      }
    }
  });
}

// A product that never meets a zero: over the pairs that strips of 16 bits keep, in the order of K.
float KeptProduct(const GemmWeights& strips, size_t output, const float* x) {
  const size_t lane = output % kStripRows, block_bytes = FormatOf(strips).block_bytes;
  const std::byte* block = strips.data + output / kStripRows * StripBytes(FormatOf(strips), strips.columns);
  double sum = 0;
  for (size_t k = 0; k < strips.columns; k += kStripBlock, block += block_bytes) {
    const auto codes = LoadUnaligned<uint32_t>(block + 4 * lane);
    for (size_t four = 0; four < kStripBlock / 4; ++four) {
      const PairPlaces places = kPairPlaces[codes >> (3 * four) & 7];
      const std::byte* const pair = block + 64 * (1 + four) + 4 * lane;
      sum += double{x[k + 4 * four + places.first]} * FloatFromBF16(LoadUnaligned<uint16_t>(pair));
      sum += double{x[k + 4 * four + places.second]} * FloatFromBF16(LoadUnaligned<uint16_t>(pair + 2));
    }
  }
  return static_cast<float>(sum);
}

TEST_P(GemmOfTwoOfFour, WhatIsKeptGivesTheReferenceToTheBitWithoutTheZeros) {
  ForEveryShape([&](const WeightMatrix& matrix) {
    if (matrix.dtype != DType::kBF16) return;
    const auto x = RandomNormal(matrix.columns, /*seed=*/matrix.columns);
    const PackedWeights packed(ops(), matrix, pool_);
    ASSERT_TRUE(packed.weights.two_of_four);
    const auto want = Gemm(ReferenceOps(), x, matrix, pool_);
    for (size_t output = 0; output < matrix.rows; ++output)
      ASSERT_EQ(std::bit_cast<uint32_t>(KeptProduct(packed.weights, output, x.data())),
                std::bit_cast<uint32_t>(want[output]))
          << output;
  });
}

// Nine sixteenths of 16 bits.
TEST_P(GemmOfTwoOfFour, OfEachBlockOfARowHalfIsSavedAndFourBytesOfPlacesAreAdded) {
  ForEveryShape([&](const WeightMatrix& matrix) {
    WeightMatrix dense = matrix;
    std::vector<std::byte> bytes(matrix.rows * matrix.RowBytes(), std::byte{0x3c});
    dense.data = bytes.data();
    const size_t blocks = StripsOf(matrix.rows) * kStripRows * matrix.columns / kStripBlock;
    const auto bytes_of = [&](const WeightMatrix& each, ComputeType compute) {
      return ops().layout(each, compute, pool_).bytes;
    };
    EXPECT_EQ(bytes_of(dense, ComputeType::kAuto) - bytes_of(matrix, ComputeType::kAuto),
              blocks * (16 * Info(matrix.dtype).block_bytes - 4));
    EXPECT_EQ(bytes_of(matrix, ComputeType::kF32), bytes_of(dense, ComputeType::kF32));
  });
}

// Products of pairs where one part has the pattern and the other has not.
TEST_P(GemmOfTwoOfFour, MayStandBesideADenseMatrix) {
  const size_t inputs = 256, outputs = 48;
  for (const DType dtype : {DType::kBF16, DType::kInt8}) {
    SCOPED_TRACE(Info(dtype).name);
    RandomWeights sparse(dtype, outputs, inputs, /*seed=*/1);
    MakeTwoOfFour(sparse, /*seed=*/2);
    const RandomWeights dense(dtype, outputs, inputs, /*seed=*/3);
    for (const size_t tokens : {1, 20}) {
      const auto x = RandomNormal(tokens * inputs, /*seed=*/4);
      const PackedWeights a(ops(), sparse.matrix, pool_), b(ops(), dense.matrix, pool_);
      std::vector<float> of_a(tokens * outputs), of_b(tokens * outputs);
      const GemmPart parts[] = {{.weights = a.weights, .out = of_a.data()},
                                {.weights = b.weights, .out = of_b.data()}};
      ops().gemm({.x = x.data(), .tokens = tokens, .parts = parts}, pool_);
      EXPECT_TRUE(SameBits(of_a, Gemm(ops(), x, sparse.matrix, pool_)));
      EXPECT_TRUE(SameBits(of_b, Gemm(ops(), x, dense.matrix, pool_)));
    }
  }
}

TEST(IsTwoOfFour, CountsWhatIsNotZeroInEachFour) {
  ThreadPool pool(2);
  const float scale = 1;
  std::vector<int8_t> codes(64);
  const WeightMatrix bytes = {.dtype = DType::kInt8,
                              .data = reinterpret_cast<const std::byte*>(codes.data()),
                              .rows = 2,
                              .columns = 32,
                              .row_scales = &scale};
  std::vector<uint16_t> halves(64);
  const WeightMatrix floats = {.dtype = DType::kF16,
                               .data = reinterpret_cast<const std::byte*>(halves.data()),
                               .rows = 2,
                               .columns = 32};
  EXPECT_TRUE(IsTwoOfFour(bytes, pool));
  EXPECT_TRUE(IsTwoOfFour(floats, pool));
  for (size_t four = 0; four < 64; four += 4) {
    for (uint32_t kept = 0; kept < 16; ++kept) {
      for (size_t i = 0; i < 4; ++i) {
        const bool is_kept = (kept >> i & 1) != 0;
        constexpr int8_t kCodesOf[] = {-128, 127, 1, -1};  // all that is not 0 counts
        codes[four + i] = is_kept ? kCodesOf[i] : int8_t{0};
        halves[four + i] = is_kept ? 1 : 0x8000;  // the smallest, and -0
      }
      EXPECT_EQ(IsTwoOfFour(bytes, pool), std::popcount(kept) <= 2) << four << " " << kept;
      EXPECT_EQ(IsTwoOfFour(floats, pool), std::popcount(kept) <= 2) << four << " " << kept;
    }
    for (size_t i = 0; i < 4; ++i) codes[four + i] = 0, halves[four + i] = 0;
  }
  const WeightMatrix short_rows = {.dtype = DType::kInt8, .data = bytes.data, .rows = 2, .columns = 28};
  EXPECT_FALSE(IsTwoOfFour(short_rows, pool));  // no whole block of 32
}

TEST_P(GemmOfEveryFormat, ExtremeCodesDoNotOverflow) {
  for (const DType dtype : kEveryDType) {
    if (FormatOf(dtype).activations != ActivationFormat::kInt8) continue;
    for (const int bits : {0x00, 0x7f, 0x80, 0xff}) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " bytes " << bits);
      RandomWeights weights(dtype, 16, 256, /*seed=*/3);
      const size_t block = Info(dtype).block_bytes;
      const bool is_q6 = dtype == DType::kQ6_K;  // its scales come last
      const size_t head = dtype == DType::kInt8                                   ? 0
                          : dtype == DType::kQ4_K                                 ? 16
                          : dtype == DType::kInt4G32 || dtype == DType::kInt4G128 ? 4
                                                                                  : 2;
      for (size_t i = 1; i < weights.bytes.size(); ++i) {
        const size_t at = (i - 1) % block;
        if (is_q6 ? at < 192 : at >= head) weights.bytes[i] = static_cast<std::byte>(bits);
      }
      for (const float sign : {1.0f, -1.0f}) {
        const std::vector<float> x(2 * 256, sign);
        const auto got = Gemm(ops(), x, weights.matrix, pool_);
        for (size_t i = 0; i < got.size(); ++i) {
          double want = 0;
          for (size_t k = 0; k < 256; ++k) want += sign * WeightAt(weights.matrix, i % 16, k);
          EXPECT_NEAR(got[i], want, RoundingBound(weights.matrix, false, x.data(), i % 16));
        }
      }
    }
  }
}

TEST_P(EveryCpu, GemmDoesNotDependOnTheNumberOfThreads) {
  for (const size_t tokens : {1, 4, 33}) {
    const size_t inputs = 1024, outputs = 1030;  // enough products to be worth every thread
    const RandomWeights weights(DType::kQ8_0, outputs, inputs, /*seed=*/9);
    const auto x = RandomNormal(tokens * inputs, /*seed=*/10);
    ThreadPool one(1), three(3);
    const auto want = Gemm(ops(), x, weights.matrix, one);
    EXPECT_TRUE(SameBits(Gemm(ops(), x, weights.matrix, pool_), want));
    EXPECT_TRUE(SameBits(Gemm(ops(), x, weights.matrix, three), want));
  }
}

// Of several formats, sizes and numbers of tokens: few, whose activations each thread encodes for itself, and
// many; gated ones, too.
TEST_P(EveryCpu, ProductsTogetherHaveTheBitsOfEachAlone) {
  struct Product {
    DType dtype;
    size_t tokens, inputs, outputs;
    bool gated;
  };
  const Product list[] = {{DType::kQ8_0, 1, 1024, 70, false}, {DType::kBF16, 3, 64, 33, true},
                          {DType::kQ4_0, 1, 256, 1030, true}, {DType::kQ8_0, 40, 512, 100, false},
                          {DType::kF32, 0, 32, 16, false},    {DType::kQ4_K, 2, 256, 16, false},
                          {DType::kQ8_0, 5, 1024, 200, true}, {DType::kInt8, 1, 128, 1, false}};
  std::vector<RandomWeights> random;
  std::vector<PackedWeights> packed;
  std::vector<std::vector<float>> x, alone, together;
  std::vector<std::array<GemmPart, 2>> parts;
  random.reserve(2 * std::size(list));
  for (const Product& each : list) {
    for (int i = 0; i < 2; ++i) random.emplace_back(each.dtype, each.outputs, each.inputs, random.size() + 1);
    x.push_back(RandomNormal(each.tokens * each.inputs, 90 + x.size()));
    alone.emplace_back(each.tokens * each.outputs);
    together.emplace_back(each.tokens * each.outputs);
  }
  packed.reserve(random.size());
  for (const RandomWeights& each : random) packed.emplace_back(ops(), each.matrix, pool_);
  const auto products = [&](std::vector<std::vector<float>>& outs) {
    std::vector<GemmArgs> args;
    parts.clear();
    parts.reserve(std::size(list));
    for (size_t i = 0; i < std::size(list); ++i) {
      std::array<GemmPart, 2>& of = parts.emplace_back();
      of[0] = {.weights = packed[2 * i].weights, .out = outs[i].data()};
      of[1].weights = packed[2 * i + 1].weights;
      GemmArgs& product = args.emplace_back();
      product.x = x[i].data();
      product.tokens = list[i].tokens;
      product.parts = std::span(of).first(list[i].gated ? 2 : 1);
      product.gated = list[i].gated;
    }
    return args;
  };
  for (const GemmArgs& each : products(alone)) ops().gemm(each, pool_);
  for (const size_t threads : {1u, 2u, 3u}) {
    ThreadPool pool(threads);
    for (std::vector<float>& out : together) std::ranges::fill(out, NAN);
    ops().gemm_each(products(together), pool);
    for (size_t i = 0; i < std::size(list); ++i)
      EXPECT_TRUE(SameBits(together[i], alone[i])) << i << ", " << threads << " threads";
  }
}

TEST_P(EveryCpu, GemmAddsToOutAfterTheSum) {
  const RandomWeights random(DType::kBF16, 9, 33, /*seed=*/11);
  const PackedWeights weights(ops(), random.matrix, pool_);
  const auto x = RandomNormal(4 * 33, /*seed=*/12);
  auto out = RandomNormal(4 * 9, /*seed=*/13), want = out;
  const auto sums = Gemm(ops(), x, random.matrix, pool_);
  for (size_t i = 0; i < want.size(); ++i) want[i] += sums[i];
  const GemmPart part{.weights = weights.weights, .out = out.data(), .add_to_out = true};
  ops().gemm({.x = x.data(), .tokens = 4, .parts = {&part, 1}}, pool_);
  EXPECT_TRUE(SameBits(out, want));
}

// What a shard multiplies: some rows and columns of a matrix where it lies, and some inputs of each token.
TEST_P(EveryCpu, PartsOfMatricesAndOfTokensGiveTheBitsOfTheirCopies) {
  const size_t inputs = 768, first = 256, count = 256, first_row = 3, rows = 37;
  for (const DType dtype : kEveryDType) {
    const RandomWeights whole(dtype, 60, inputs, /*seed=*/18);
    const WeightMatrix part = ColumnsOf(RowsOf(whole.matrix, first_row, rows), first, count);
    std::vector<std::byte> bytes;
    for (size_t row = 0; row < rows; ++row) {
      bytes.insert(bytes.end(), part.Row(row), part.Row(row) + part.RowBytes());
    }
    WeightMatrix copy = part;
    copy.data = bytes.data();
    copy.row_pitch = 0;
    for (const size_t tokens : {1, 3, 70}) {
      SCOPED_TRACE(testing::Message() << Info(dtype).name << ", " << tokens << " tokens");
      const auto x = RandomNormal(tokens * inputs, /*seed=*/19);
      std::vector<float> own;
      for (size_t token = 0; token < tokens; ++token) {
        const auto from = x.begin() + static_cast<ptrdiff_t>(token * inputs + first);
        own.insert(own.end(), from, from + static_cast<ptrdiff_t>(count));
      }
      for (const OpTable* backend : {&ops(), &ReferenceOps()}) {
        const PackedWeights packed(*backend, part, pool_);
        std::vector<float> got(tokens * rows);
        const GemmPart product{.weights = packed.weights, .out = got.data()};
        backend->gemm({.x = x.data() + first, .x_pitch = inputs, .tokens = tokens, .parts = {&product, 1}},
                      pool_);
        EXPECT_TRUE(SameBits(got, Gemm(*backend, own, copy, pool_)));
      }
    }
  }
}

TEST_P(EveryCpu, ATokensNaNStaysInItsOwnRow) {
  for (const DType dtype : kEveryDType) {
    SCOPED_TRACE(Info(dtype).name);
    const size_t inputs = 256;
    const RandomWeights weights(dtype, 5, inputs, /*seed=*/14);
    auto x = RandomNormal(3 * inputs, /*seed=*/15);
    const auto want = Gemm(ops(), x, weights.matrix, pool_);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY}) {
      x[inputs + 130] = bad;
      const auto got = Gemm(ops(), x, weights.matrix, pool_);
      EXPECT_TRUE(SameBits(Rows(got, 5, 0, 1), Rows(want, 5, 0, 1)));
      EXPECT_TRUE(SameBits(Rows(got, 5, 2, 1), Rows(want, 5, 2, 1)));
      for (const float value : Rows(got, 5, 1, 1)) EXPECT_FALSE(std::isfinite(value));
    }
  }
}

TEST_P(EveryCpu, ActivationsOfTinyMagnitudeGiveZerosNotNaN) {
  for (const DType dtype : kEveryDType) {
    const RandomWeights weights(dtype, 16, 256, /*seed=*/17);
    for (const float tiny : {0.0f, 1e-44f, 1e-38f}) {
      for (const float value : Gemm(ops(), std::vector<float>(256, tiny), weights.matrix, pool_)) {
        EXPECT_LE(std::abs(value), 1e-30f);
      }
    }
  }
}

INSTANTIATE_EVERY_CPU(EveryCpu);
INSTANTIATE_EVERY_CPU(GemmOfEveryFormat);
INSTANTIATE_EVERY_CPU(GemmOfTwoOfFour);

}  // namespace
}  // namespace terrace
