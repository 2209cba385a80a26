// One row. Included once per instruction set, after simd/vec16_*.h.
//
// The sum is taken in f32 over pieces of kSoftmaxPiece elements, lane by lane, and in f64 over the pieces: as
// accurate for a vocabulary of 150,000 as for one of 1,000.
#pragma once

#include "kernels/sample/softmax_weights.h"
#include "kernels/simd/exp.h"

namespace terrace {
namespace {

constexpr size_t kSoftmaxPiece = 1024;

inline SoftmaxSums SoftmaxWeightsRow(const SoftmaxWeightsArgs& a) {
  const size_t whole = a.count / 16 * 16, rest = a.count - whole;
  alignas(64) float last[16];  // what lies behind weighs nothing
  for (size_t i = 0; i < 16; ++i) last[i] = i < rest ? a.logits[whole + i] : -__builtin_inff();

  Vec16 largest_lanes = Load(last);
  for (size_t i = 0; i < whole; i += 16) largest_lanes = Max(largest_lanes, Load(a.logits + i));
  const float largest = Largest(largest_lanes);

  const auto weigh = [&](const float* logits) {
    return Exp(Div(Sub(Load(logits), Splat(largest)), Splat(a.temperature)));
  };
  const Vec16 last_weights = weigh(last);
  if (a.weights != nullptr && rest > 0) StorePartial(a.weights + whole, rest, last_weights);
  double sum = Sum(last_weights);
  for (size_t first = 0; first < whole; first += kSoftmaxPiece) {
    const size_t end = whole - first < kSoftmaxPiece ? whole : first + kSoftmaxPiece;
    Vec16 lanes = Zero();
    for (size_t i = first; i < end; i += 16) {
      const Vec16 weights = weigh(a.logits + i);
      if (a.weights != nullptr) Store(a.weights + i, weights);
      lanes = Add(lanes, weights);
    }
    sum += double{Sum(lanes)};
  }
  return {.largest = largest, .sum = sum};
}

}  // namespace
}  // namespace terrace
