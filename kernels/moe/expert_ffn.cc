#include "kernels/moe/expert_ffn.h"

#include <algorithm>
#include <array>

#include "base/parallel_for.h"
#include "base/status.h"

namespace terrace {
namespace {

constexpr size_t kTogether = 16 << 10;  // elements that are worth another thread

size_t GrainOf(size_t elements_of_item) { return std::max<size_t>(1, kTogether / elements_of_item); }

// [pairs, inputs]: the rows of x that all places want, side by side.
void Gather(const GatedExpertsArgs& a, size_t inputs, std::vector<float>& gathered, ThreadPool& pool) {
  const size_t pairs = a.groups.pairs.size();
  if (gathered.size() < pairs * inputs) gathered.resize(pairs * inputs);
  pool.ParallelFor(pairs, GrainOf(inputs), [&](size_t from, size_t to) {
    for (size_t place = from; place < to; ++place)
      std::copy_n(a.x + a.groups.pairs[place] / a.per_token * inputs, inputs,
                  gathered.data() + place * inputs);
  });
}

// Products of the experts that have tokens, with places [begin, end).
struct Products {
  std::vector<GemmArgs> args;
  std::vector<std::array<GemmPart, 2>> parts;  // what args borrow

  explicit Products(const ExpertGroups& groups) {
    args.reserve(groups.experts());
    parts.reserve(groups.experts());
  }
  // set(expert, begin, product, parts) says all but the tokens, and what of `count` parts.
  template <typename Set>
  void Add(const ExpertGroups& groups, size_t count, const Set& set) {
    for (size_t expert = 0; expert < groups.experts(); ++expert) {
      if (groups.TokensOf(expert) == 0) continue;
      std::array<GemmPart, 2>& of = parts.emplace_back();
      GemmArgs& product = args.emplace_back();
      set(expert, groups.begin[expert], product, of);
      product.tokens = groups.TokensOf(expert);
      product.parts = std::span(of).first(count);
    }
  }
};

}  // namespace

void MultiplyGatedExperts(const OpTable& ops, const GatedExpertsArgs& a, std::vector<float>& gathered,
                          ThreadPool& pool) {
  CHECK(a.gates.size() == a.groups.experts() && a.ups.size() == a.groups.experts());
  if (a.groups.pairs.empty()) return;
  const size_t inputs = a.gates[0].columns;
  const bool is_one = a.groups.pairs.size() == a.per_token;  // token, whose row all places want
  if (!is_one) Gather(a, inputs, gathered, pool);
  Products products(a.groups);
  products.Add(a.groups, 2, [&](size_t expert, size_t begin, GemmArgs& product, std::array<GemmPart, 2>& of) {
    const GemmWeights& gate = a.gates[expert];
    of[0] = {.weights = gate, .out = a.out + begin * gate.rows};
    of[1].weights = a.ups[expert];
    product.x = is_one ? a.x : gathered.data() + begin * inputs;
    product.norm = a.norm;
    product.norm_epsilon = a.norm_epsilon;
    product.gated = true;
    product.gate = a.gate;
  });
  ops.gemm_each(products.args, pool);
}

void MultiplyExperts(const OpTable& ops, const ExpertsArgs& a, ThreadPool& pool) {
  CHECK(a.weights.size() == a.groups.experts());
  Products products(a.groups);
  products.Add(a.groups, 1, [&](size_t expert, size_t begin, GemmArgs& product, std::array<GemmPart, 2>& of) {
    const GemmWeights& weights = a.weights[expert];
    product.x_pitch = a.x_pitch > 0 ? a.x_pitch : weights.columns;
    product.x = a.x + begin * product.x_pitch;
    of[0] = {.weights = weights, .out = a.out + begin * weights.rows};
  });
  ops.gemm_each(products.args, pool);
}

void CombineExperts(const CombineExpertsArgs& a, ThreadPool& pool) {
  pool.ParallelFor(a.tokens, GrainOf(a.per_token * a.width), [&](size_t begin, size_t end) {
    constexpr size_t kPiece = 1024;  // whose sums stay in the L1 cache
    for (size_t token = begin; token < end; ++token) {
      float* const out = a.out + token * a.width;
      for (size_t first = 0; first < a.width; first += kPiece) {
        const size_t count = std::min(kPiece, a.width - first);
        float sums[kPiece] = {};
        for (size_t pair = token * a.per_token; pair < (token + 1) * a.per_token; ++pair) {
          const float* row = a.rows + a.groups.places[pair] * a.width + first;
          const float weight = a.weights[pair];
          for (size_t i = 0; i < count; ++i) sums[i] += weight * row[i];
        }
        for (size_t i = 0; i < count; ++i) out[first + i] = a.add_to_out ? out[first + i] + sums[i] : sums[i];
      }
    }
  });
}

}  // namespace terrace
