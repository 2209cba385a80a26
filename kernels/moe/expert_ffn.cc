#include "kernels/moe/expert_ffn.h"

#include <algorithm>

#include "base/parallel_for.h"
#include "base/status.h"

namespace terrace {
namespace {

constexpr size_t kTogether = 16 << 10;  // elements that are worth another thread

size_t GrainOf(size_t elements_of_item) { return std::max<size_t>(1, kTogether / elements_of_item); }

// The tokens of places [begin, end), side by side: where they lie, or copied to `gathered`.
const float* Gather(const GatedExpertsArgs& a, size_t begin, size_t end, size_t inputs,
                    std::vector<float>& gathered, ThreadPool& pool) {
  const auto token = [&](size_t place) { return a.groups.pairs[place] / a.per_token; };
  // Tokens of an expert rise.
  if (token(end - 1) - token(begin) == end - 1 - begin) return a.x + token(begin) * inputs;
  if (gathered.size() < (end - begin) * inputs) gathered.resize((end - begin) * inputs);
  pool.ParallelFor(end - begin, GrainOf(inputs), [&](size_t from, size_t to) {
    for (size_t i = from; i < to; ++i)
      std::copy_n(a.x + token(begin + i) * inputs, inputs, gathered.data() + i * inputs);
  });
  return gathered.data();
}

}  // namespace

void MultiplyGatedExperts(const OpTable& ops, const GatedExpertsArgs& a, std::vector<float>& gathered,
                          ThreadPool& pool) {
  CHECK(a.gates.size() == a.groups.experts() && a.ups.size() == a.groups.experts());
  for (size_t expert = 0; expert < a.groups.experts(); ++expert) {
    const size_t begin = a.groups.begin[expert], end = a.groups.begin[expert + 1];
    if (begin == end) continue;
    const GemmWeights &gate = a.gates[expert], &up = a.ups[expert];
    const GemmPart parts[] = {{.weights = gate, .out = a.out + begin * gate.rows}, {.weights = up}};
    ops.gemm({.x = Gather(a, begin, end, gate.columns, gathered, pool),
              .norm = a.norm,
              .norm_epsilon = a.norm_epsilon,
              .tokens = end - begin,
              .parts = parts,
              .gated = true,
              .gate = a.gate},
             pool);
  }
}

void MultiplyExperts(const OpTable& ops, const ExpertsArgs& a, ThreadPool& pool) {
  CHECK(a.weights.size() == a.groups.experts());
  for (size_t expert = 0; expert < a.groups.experts(); ++expert) {
    const size_t begin = a.groups.begin[expert], tokens = a.groups.TokensOf(expert);
    if (tokens == 0) continue;
    const GemmWeights& weights = a.weights[expert];
    const size_t pitch = a.x_pitch > 0 ? a.x_pitch : weights.columns;
    const GemmPart part{.weights = weights, .out = a.out + begin * weights.rows};
    ops.gemm({.x = a.x + begin * pitch, .x_pitch = pitch, .tokens = tokens, .parts = {&part, 1}}, pool);
  }
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
