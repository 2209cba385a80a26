#include "kernels/moe/expert_ffn.h"

#include <cmath>
#include <random>

#include "kernels/op_testing.h"
#include "kernels/quant/weight_values.h"

namespace terrace {
namespace {

constexpr float kEpsilon = 1e-5f;

// The matrices of some experts, as files hold them.
struct Experts {
  Experts(DType dtype, size_t count, size_t width, size_t ffn_width, uint64_t seed)
      : hidden(width), ffn(ffn_width), norm(RandomNormal(width, seed)) {
    for (size_t i = 0; i < count; ++i) {
      gates.emplace_back(dtype, ffn, hidden, seed + 3 * i + 1);
      ups.emplace_back(dtype, ffn, hidden, seed + 3 * i + 2);
      downs.emplace_back(dtype, hidden, ffn, seed + 3 * i + 3);
    }
  }
  size_t count() const { return gates.size(); }

  size_t hidden, ffn;
  std::vector<float> norm;
  std::vector<RandomWeights> gates, ups, downs;
};

// The same as a backend takes them.
struct PackedExperts {
  PackedExperts(const OpTable& ops, const Experts& from, ThreadPool& pool) {
    const auto pack = [&](const std::vector<RandomWeights>& all, std::vector<GemmWeights>& to) {
      for (const RandomWeights& one : all) to.push_back(kept.emplace_back(ops, one.matrix, pool).weights);
    };
    kept.reserve(3 * from.count());
    pack(from.gates, gates);
    pack(from.ups, ups);
    pack(from.downs, downs);
  }
  std::vector<PackedWeights> kept;
  std::vector<GemmWeights> gates, ups, downs;
};

struct Routes {
  size_t per_token;
  std::vector<uint32_t> chosen;  // [tokens, per_token], different ones of each token
  std::vector<float> weights;
  size_t tokens() const { return chosen.size() / per_token; }
};

// Among the first `used` experts: the others have no token. With per_token of them each has all tokens.
Routes RandomRoutes(size_t tokens, size_t used, size_t per_token, uint64_t seed) {
  Routes out{per_token, {}, {}};
  std::mt19937_64 random(seed);
  std::vector<uint32_t> experts(used);
  for (size_t i = 0; i < used; ++i) experts[i] = static_cast<uint32_t>(i);
  for (size_t token = 0; token < tokens; ++token) {
    for (size_t slot = 0; slot < per_token; ++slot) {
      std::swap(experts[slot], experts[slot + random() % (used - slot)]);
      out.chosen.push_back(experts[slot]);
      out.weights.push_back(std::uniform_real_distribution<float>(0, 1)(random));
    }
  }
  return out;
}

std::vector<float> RunExperts(const OpTable& ops, const Experts& experts, const PackedExperts& packed,
                              const Routes& routes, std::vector<float> x, ThreadPool& pool,
                              GateFunction gate = GateFunction::kSilu) {
  ExpertGroups groups;
  GroupPairs(routes.chosen, experts.count(), groups);
  const size_t pairs = routes.chosen.size();
  std::vector<float> gathered, gated(pairs * experts.ffn), rows(pairs * experts.hidden);
  MultiplyGatedExperts(ops,
                       {.groups = groups,
                        .per_token = routes.per_token,
                        .x = x.data(),
                        .norm = experts.norm.data(),
                        .norm_epsilon = kEpsilon,
                        .gates = packed.gates,
                        .ups = packed.ups,
                        .gate = gate,
                        .out = gated.data()},
                       gathered, pool);
  MultiplyExperts(ops, {.groups = groups, .x = gated.data(), .weights = packed.downs, .out = rows.data()},
                  pool);
  CombineExperts({.groups = groups,
                  .tokens = routes.tokens(),
                  .per_token = routes.per_token,
                  .width = experts.hidden,
                  .rows = rows.data(),
                  .weights = routes.weights.data(),
                  .out = x.data(),
                  .add_to_out = true},
                 pool);
  return x;
}

// In double, and what ops in double that round each output to f32 may differ from it: u for the norm of an
// element and for each product of a pair, the sum of the pairs, and x; through what comes behind, of which
// the gate's slope is at most 1.1.
struct Reference {
  std::vector<double> x, bound;
};
Reference InDouble(const Experts& experts, const Routes& routes, const std::vector<float>& x) {
  const size_t hidden = experts.hidden, ffn = experts.ffn;
  constexpr double u = kRounding;
  Reference out;
  for (size_t token = 0; token < routes.tokens(); ++token) {
    const float* row = &x[token * hidden];
    double squares = 0;
    for (size_t i = 0; i < hidden; ++i) squares += double{row[i]} * row[i];
    const double root = std::sqrt(squares / static_cast<double>(hidden) + kEpsilon);
    std::vector<double> h(hidden), sum(hidden), bound(hidden);
    for (size_t i = 0; i < hidden; ++i) h[i] = row[i] / root * experts.norm[i];
    for (size_t slot = 0; slot < routes.per_token; ++slot) {
      const size_t expert = routes.chosen[token * routes.per_token + slot];
      const double weight = routes.weights[token * routes.per_token + slot];
      std::vector<double> product(ffn), error(ffn);
      for (size_t j = 0; j < ffn; ++j) {
        double gate = 0, up = 0, gate_error = 0, up_error = 0;
        for (size_t i = 0; i < hidden; ++i) {
          const double g = WeightAt(experts.gates[expert].matrix, j, i) * h[i];
          const double v = WeightAt(experts.ups[expert].matrix, j, i) * h[i];
          gate += g, up += v;
          gate_error += u * std::abs(g), up_error += u * std::abs(v);
        }
        const double silu = gate / (1 + std::exp(-gate));
        product[j] = silu * up;
        error[j] = 1.1 * gate_error * (std::abs(up) + up_error) + std::abs(silu) * up_error +
                   u * std::abs(product[j]);
      }
      for (size_t i = 0; i < hidden; ++i) {
        double row_sum = 0, row_error = 0;
        for (size_t j = 0; j < ffn; ++j) {
          const double w = WeightAt(experts.downs[expert].matrix, i, j);
          row_sum += w * product[j];
          row_error += std::abs(w) * error[j];
        }
        sum[i] += weight * row_sum;
        const auto roundings = static_cast<double>(routes.per_token + 2);
        bound[i] += weight * (row_error + roundings * u * std::abs(row_sum));
      }
    }
    for (size_t i = 0; i < hidden; ++i) {
      out.x.push_back(row[i] + sum[i]);
      out.bound.push_back(1.01 * bound[i] + u * std::abs(row[i] + sum[i]));
    }
  }
  return out;
}

constexpr struct {
  size_t tokens, experts, used, per_token;
} kCases[] = {{1, 1, 1, 1},  {1, 8, 8, 2},    {3, 5, 2, 2},    {7, 8, 8, 8},  {13, 9, 3, 3},
              {70, 4, 1, 1}, {33, 12, 12, 4}, {70, 12, 11, 6}, {19, 7, 7, 5}, {2, 12, 12, 7}};

TEST(ExpertFfn, IsWhatTheDefinitionSays) {
  ThreadPool pool(2);
  for (const auto& c : kCases) {
    for (const DType dtype : {DType::kF32, DType::kQ8_0}) {
      SCOPED_TRACE(testing::Message() << c.tokens << " tokens to " << c.per_token << " of " << c.used
                                      << " of " << c.experts << " experts, " << Info(dtype).name);
      const Experts experts(dtype, c.experts, /*hidden=*/64, /*ffn=*/32, /*seed=*/c.tokens);
      const PackedExperts packed(ReferenceOps(), experts, pool);
      const Routes routes = RandomRoutes(c.tokens, c.used, c.per_token, /*seed=*/c.experts);
      const auto x = RandomNormal(c.tokens * experts.hidden, /*seed=*/7);
      const Reference want = InDouble(experts, routes, x);
      const auto got = RunExperts(ReferenceOps(), experts, packed, routes, x, pool);
      for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(got[i], want.x[i], want.bound[i]) << i;
    }
  }
}

// One pair after the other, by dense products of one token.
std::vector<float> Alone(const OpTable& ops, const Experts& experts, const PackedExperts& packed,
                         const Routes& routes, const std::vector<float>& x, GateFunction gate,
                         ThreadPool& pool) {
  std::vector<float> out = x;
  for (size_t token = 0; token < routes.tokens(); ++token) {
    std::vector<float> sum(experts.hidden);
    for (size_t pair = token * routes.per_token; pair < (token + 1) * routes.per_token; ++pair) {
      const size_t expert = routes.chosen[pair];
      std::vector<float> gated(experts.ffn), row(experts.hidden);
      const GemmPart parts[] = {{packed.gates[expert], gated.data()}, {packed.ups[expert], nullptr}};
      ops.gemm({.x = &x[token * experts.hidden],
                .norm = experts.norm.data(),
                .norm_epsilon = kEpsilon,
                .tokens = 1,
                .parts = parts,
                .gated = true,
                .gate = gate},
               pool);
      const GemmPart down{packed.downs[expert], row.data()};
      ops.gemm({.x = gated.data(), .tokens = 1, .parts = {&down, 1}}, pool);
      for (size_t i = 0; i < experts.hidden; ++i) sum[i] += routes.weights[pair] * row[i];
    }
    for (size_t i = 0; i < experts.hidden; ++i) out[token * experts.hidden + i] += sum[i];
  }
  return out;
}

TEST_P(EveryCpu, ATokenHasTheBitsOfDenseLayersWhoeverSharesItsExperts) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kQ8_0}) {
    const Experts experts(dtype, /*count=*/12, /*width=*/96, /*ffn_width=*/160, /*seed=*/1);
    const PackedExperts packed(ops(), experts, pool_);
    for (const auto& c : kCases) {
      SCOPED_TRACE(testing::Message() << c.tokens << " tokens to " << c.per_token << " of " << c.used
                                      << " experts, " << Info(dtype).name);
      const Routes routes = RandomRoutes(c.tokens, c.used, c.per_token, /*seed=*/c.experts);
      const auto x = RandomNormal(c.tokens * experts.hidden, /*seed=*/8);
      for (const GateFunction gate : {GateFunction::kSilu, GateFunction::kGelu}) {
        if (gate == GateFunction::kGelu && c.tokens > 13) continue;
        const auto got = RunExperts(ops(), experts, packed, routes, x, pool_, gate);
        EXPECT_TRUE(SameBits(got, Alone(ops(), experts, packed, routes, x, gate, pool_)));
        ThreadPool one(1);
        EXPECT_TRUE(SameBits(got, RunExperts(ops(), experts, packed, routes, x, one, gate)));
      }
    }
  }
}

// The down product by virtual shards of its columns, as tensor parallelism has it.
TEST_P(EveryCpu, ColumnsMayBeMultipliedInShards) {
  const size_t tokens = 9, per_token = 3, count = 5, hidden = 64, ffn = 128, half = ffn / 2;
  const Experts experts(DType::kQ8_0, count, hidden, ffn, /*seed=*/1);
  const Routes routes = RandomRoutes(tokens, count, per_token, /*seed=*/2);
  ExpertGroups groups;
  GroupPairs(routes.chosen, count, groups);
  const auto x = RandomNormal(tokens * per_token * ffn, /*seed=*/3);
  for (size_t shard = 0; shard < 2; ++shard) {
    std::vector<PackedWeights> kept;
    std::vector<GemmWeights> weights;
    for (const RandomWeights& down : experts.downs) {
      kept.emplace_back(ops(), ColumnsOf(down.matrix, shard * half, half), pool_);
      weights.push_back(kept.back().weights);
    }
    std::vector<float> rows(tokens * per_token * hidden), sums(tokens * hidden, NAN);
    MultiplyExperts(ops(),
                    {.groups = groups,
                     .x = x.data() + shard * half,
                     .x_pitch = ffn,
                     .weights = weights,
                     .out = rows.data()},
                    pool_);
    CombineExperts({.groups = groups,
                    .tokens = tokens,
                    .per_token = per_token,
                    .width = hidden,
                    .rows = rows.data(),
                    .weights = routes.weights.data(),
                    .out = sums.data()},
                   pool_);
    for (size_t token = 0; token < tokens; ++token) {
      std::vector<float> want(hidden);
      for (size_t pair = token * per_token; pair < (token + 1) * per_token; ++pair) {
        const auto first = x.begin() + static_cast<ptrdiff_t>(groups.places[pair] * ffn + shard * half);
        const auto row =
            Gemm(ops(), {first, first + static_cast<ptrdiff_t>(half)},
                 ColumnsOf(experts.downs[routes.chosen[pair]].matrix, shard * half, half), pool_);
        for (size_t i = 0; i < hidden; ++i) want[i] += routes.weights[pair] * row[i];
      }
      for (size_t i = 0; i < hidden; ++i) ASSERT_EQ(sums[token * hidden + i], want[i]) << token << " " << i;
    }
  }
}

// Of a wide row, whose sums are taken in pieces.
TEST(ExpertFfn, NaNWeightsMakeTheTokenNaNAndNoOther) {
  ThreadPool pool(3);
  const size_t tokens = 5, per_token = 2, width = 2500;
  Routes routes = RandomRoutes(tokens, 4, per_token, /*seed=*/1);
  routes.weights[2 * per_token + 1] = NAN;
  ExpertGroups groups;
  GroupPairs(routes.chosen, 4, groups);
  const auto rows = RandomNormal(tokens * per_token * width, /*seed=*/2);
  std::vector<float> out(tokens * width, 1);
  CombineExperts({.groups = groups,
                  .tokens = tokens,
                  .per_token = per_token,
                  .width = width,
                  .rows = rows.data(),
                  .weights = routes.weights.data(),
                  .out = out.data(),
                  .add_to_out = true},
                 pool);
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t pair = i / width * per_token;
    const float a = routes.weights[pair] * rows[groups.places[pair] * width + i % width];
    const float b = routes.weights[pair + 1] * rows[groups.places[pair + 1] * width + i % width];
    if (i / width == 2) {
      ASSERT_TRUE(std::isnan(out[i]));
    } else {
      ASSERT_EQ(out[i], 1 + (a + b)) << i;
    }
  }
}

INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
