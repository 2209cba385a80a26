// What gemm does around its products: the norm before, the gate after, several matrices at once.
#include <cmath>

#include "kernels/op_testing.h"

namespace terrace {
namespace {

// A matrix of f32 values.
struct Floats {
  Floats(size_t rows, size_t columns, std::vector<float> elements)
      : values(std::move(elements)),
        matrix{.dtype = DType::kF32,
               .data = reinterpret_cast<const std::byte*>(values.data()),
               .rows = rows,
               .columns = columns} {}
  std::vector<float> values;
  WeightMatrix matrix;
};

// RmsNorm(x) * weight alone: through the identity, which adds nothing but zeros.
std::vector<float> RmsNorm(const OpTable& ops, const std::vector<float>& x, const std::vector<float>& weight,
                           ThreadPool& pool) {
  const size_t width = weight.size();
  Floats identity(width, width, std::vector<float>(width * width));
  for (size_t i = 0; i < width; ++i) identity.values[i * width + i] = 1;
  const PackedWeights packed(ops, identity.matrix, pool);
  std::vector<float> out(x.size());
  const GemmPart part{.weights = packed.weights, .out = out.data()};
  ops.gemm({.x = x.data(),
            .norm = weight.data(),
            .norm_epsilon = 1e-5f,
            .tokens = x.size() / width,
            .parts = {&part, 1}},
           pool);
  return out;
}

constexpr GateFunction kGateFunctions[] = {GateFunction::kSilu, GateFunction::kGelu};
const char* Name(GateFunction function) { return function == GateFunction::kSilu ? "SiLU" : "GELU"; }

// Gate(gate) * up alone: one token whose only input is 1.
std::vector<float> GateMul(const OpTable& ops, GateFunction function, const std::vector<float>& gate,
                           const std::vector<float>& up, ThreadPool& pool) {
  const Floats gates(gate.size(), 1, gate), ups(up.size(), 1, up);
  const PackedWeights packed_gates(ops, gates.matrix, pool), packed_ups(ops, ups.matrix, pool);
  const float one = 1;
  std::vector<float> out(gate.size());
  const GemmPart parts[] = {{packed_gates.weights, out.data()}, {packed_ups.weights, nullptr}};
  ops.gemm({.x = &one, .tokens = 1, .parts = parts, .gated = true, .gate = function}, pool);
  return out;
}

// The squares are positive, so their sum is off by at most width / 16 + 5 roundings (one per addition to a
// lane, four in the tree, one of the last partial vector), the root by half of that; 8 more for the mean, the
// root, the reciprocal, the two products and the reference's own.
TEST_P(EveryCpu, RmsNormMatchesTheReference) {
  for (const size_t width : {1, 15, 16, 17, 64, 100, 1003}) {
    SCOPED_TRACE(testing::Message() << "width " << width);
    const auto x = RandomNormal(5 * width, /*seed=*/width), weight = RandomNormal(width, /*seed=*/width + 1);
    const auto want = RmsNorm(ReferenceOps(), x, weight, pool_), got = RmsNorm(ops(), x, weight, pool_);
    const double bound = (static_cast<double>(width) / 32 + 11) * kRounding;
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(got[i], want[i], bound * std::abs(want[i])) << i;
  }
}

TEST_P(EveryCpu, RmsNormOfZeroIsZero) {
  const std::vector<float> x(20, 0), weight(20, 2);
  EXPECT_EQ(RmsNorm(ops(), x, weight, pool_), x);
}

// exp is off by at most 2.5e-7 (simd/exp.h), and 1 + exp, the division, the product and the reference round
// once each: 2.5e-7 + 4 * 2^-24 < 5e-7. GELU's z = 2 sqrt(2/pi) (x + 0.044715 x^3) is off by five roundings,
// which exp(-z) makes |z| times as much of. With z below -88 the result is 0, and the true one less than
// 1e-36.
TEST_P(EveryCpu, TheGateMatchesTheReference) {
  std::vector<float> gate = RandomNormal(4099, /*seed=*/1);
  for (float x = -120; x <= 120; x += 0.0625f) gate.push_back(x);
  for (float x = -11; x <= 11; x += 0x1p-8f) gate.push_back(x);
  const std::vector<float> up = RandomNormal(gate.size(), /*seed=*/2);
  for (const GateFunction function : kGateFunctions) {
    SCOPED_TRACE(Name(function));
    const auto want = GateMul(ReferenceOps(), function, gate, up, pool_);
    const auto got = GateMul(ops(), function, gate, up, pool_);
    for (size_t i = 0; i < want.size(); ++i) {
      double error = 5e-7;
      if (function == GateFunction::kGelu) {
        const double z = 1.6 * gate[i] + 0.0714 * std::pow(gate[i], 3);
        error += z > 0 ? kRounding * 5 : kRounding * 5 * -z;  // z * (1 - sigmoid(z)) is less than 1
      }
      EXPECT_NEAR(got[i], want[i], error * std::abs(want[i]) + 1e-36 * std::abs(up[i])) << "gate " << gate[i];
    }
  }
}

// As models define them: with tanh, of which double has 2^-52 left far below 0.
TEST(GateReference, IsTheDefinition) {
  ThreadPool pool(1);
  std::vector<float> gate;
  for (float x = -12; x <= 12; x += 0x1p-6f) gate.push_back(x);
  const std::vector<float> ones(gate.size(), 1);
  const auto silu = GateMul(ReferenceOps(), GateFunction::kSilu, gate, ones, pool);
  const auto gelu = GateMul(ReferenceOps(), GateFunction::kGelu, gate, ones, pool);
  for (size_t i = 0; i < gate.size(); ++i) {
    const double x = gate[i];
    const double tanh_of = std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x));
    EXPECT_NEAR(silu[i], x / 2 * (1 + std::tanh(x / 2)), kRounding * std::abs(silu[i]) + 1e-14) << x;
    EXPECT_NEAR(gelu[i], x / 2 * (1 + tanh_of), kRounding * std::abs(gelu[i]) + 1e-14) << x;
  }
}

// Three matrices of different formats and heights, and a norm in front of them, at once or one by one; with
// enough tokens that threads share the norm, too.
TEST_P(EveryCpu, PartsAndNormGiveTheBitsOfSeparateCalls) {
  const size_t inputs = 288;
  const RandomWeights q(DType::kQ8_0, 70, inputs, 1), k(DType::kBF16, 5, inputs, 2),
      v(DType::kF32, 16, inputs, 3);
  const PackedWeights pq(ops(), q.matrix, pool_), pk(ops(), k.matrix, pool_), pv(ops(), v.matrix, pool_);
  for (const size_t tokens : {1, 7, 100}) {
    const auto x = RandomNormal(tokens * inputs, 4), norm = RandomNormal(inputs, 5);
    const auto normed = RmsNorm(ops(), x, norm, pool_);
    std::vector<float> out_q(tokens * 70), out_k(tokens * 5), out_v(tokens * 16);
    const GemmPart parts[] = {
        {pq.weights, out_q.data()}, {pk.weights, out_k.data()}, {pv.weights, out_v.data()}};
    ops().gemm({.x = x.data(), .norm = norm.data(), .norm_epsilon = 1e-5f, .tokens = tokens, .parts = parts},
               pool_);
    EXPECT_TRUE(SameBits(out_q, Gemm(ops(), normed, q.matrix, pool_)));
    EXPECT_TRUE(SameBits(out_k, Gemm(ops(), normed, k.matrix, pool_)));
    EXPECT_TRUE(SameBits(out_v, Gemm(ops(), normed, v.matrix, pool_)));
  }
}

TEST_P(EveryCpu, AGatedPairGivesTheBitsOfItsProductsAndTheActivation) {
  const size_t inputs = 256, outputs = 83;
  const RandomWeights gate(DType::kQ4_K, outputs, inputs, 1), up(DType::kQ6_K, outputs, inputs, 2);
  const PackedWeights packed_gate(ops(), gate.matrix, pool_), packed_up(ops(), up.matrix, pool_);
  for (const size_t tokens : {1, 6}) {
    const auto x = RandomNormal(tokens * inputs, 3);
    const auto g = Gemm(ops(), x, gate.matrix, pool_), u = Gemm(ops(), x, up.matrix, pool_);
    for (const GateFunction function : kGateFunctions) {
      std::vector<float> got(tokens * outputs);
      const GemmPart parts[] = {{packed_gate.weights, got.data()}, {packed_up.weights, nullptr}};
      ops().gemm({.x = x.data(), .tokens = tokens, .parts = parts, .gated = true, .gate = function}, pool_);
      EXPECT_TRUE(SameBits(got, GateMul(ops(), function, g, u, pool_))) << Name(function);
    }
  }
}

// Of one of many tokens, among which threads share the norm.
TEST_P(EveryCpu, RmsNormOfATokenDoesNotDependOnTheBatchOrThreads) {
  const size_t width = 300, tokens = 150;
  const auto x = RandomNormal(tokens * width, /*seed=*/1), weight = RandomNormal(width, /*seed=*/2);
  const auto all = RmsNorm(ops(), x, weight, pool_);
  ThreadPool one(1);
  for (const size_t token : {size_t{0}, size_t{77}, tokens - 1}) {
    const auto first = static_cast<ptrdiff_t>(token * width),
               last = static_cast<ptrdiff_t>((token + 1) * width);
    EXPECT_TRUE(SameBits(RmsNorm(ops(), {x.begin() + first, x.begin() + last}, weight, one),
                         {all.begin() + first, all.begin() + last}));
  }
}

// Zeros would look healthy.
TEST_P(EveryCpu, ANormWhoseSquaresOverflowIsNaN) {
  const std::vector<float> x(16, 2e19f), ones(16, 1);
  for (const float value : RmsNorm(ops(), x, ones, pool_)) EXPECT_TRUE(std::isnan(value));
}

// Also where a square or cube overflows.
TEST_P(EveryCpu, TheGateOfLargeNumbersIsZeroOrItself) {
  const std::vector<float> gate = {-89, -1e4f, -1e13f, -1e20f, -1e30f, -3e38f, 89, 1e4f, 1e13f, 1e20f, 1e30f},
                           up(gate.size(), 1000);
  for (const GateFunction function : kGateFunctions) {
    SCOPED_TRACE(Name(function));
    const auto got = GateMul(ops(), function, gate, up, pool_);
    for (size_t i = 0; i < gate.size(); ++i) {
      EXPECT_EQ(got[i], gate[i] < 0 ? 0 : gate[i] * 1000) << gate[i];
    }
  }
}

TEST_P(EveryCpu, NaNGoesThroughTheNormAndTheGate) {
  std::vector<float> x(20, 1), ones(20, 1);
  x[18] = std::numeric_limits<float>::quiet_NaN();
  for (const float value : RmsNorm(ops(), x, ones, pool_)) EXPECT_TRUE(std::isnan(value));
  for (const GateFunction function : kGateFunctions) {
    EXPECT_TRUE(std::isnan(GateMul(ops(), function, x, ones, pool_)[18])) << Name(function);
    EXPECT_TRUE(std::isnan(GateMul(ops(), function, ones, x, pool_)[18])) << Name(function);
  }
  for (const float bad : {-INFINITY, INFINITY}) {
    for (const GateFunction function : kGateFunctions) {
      EXPECT_FALSE(std::isfinite(GateMul(ops(), function, {bad}, {1}, pool_)[0])) << Name(function);
    }
    x[18] = bad;
    EXPECT_TRUE(std::isnan(RmsNorm(ops(), x, ones, pool_)[18]));
  }
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
