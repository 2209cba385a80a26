// Which experts a token goes to in a mixture of experts, and what each of them weighs (Shazeer et al.,
// "Outrageously Large Neural Networks", 2017; Jiang et al., "Mixtral of Experts", 2024):
//   p = softmax(logits) over all experts;  chosen: the per_token largest p, in falling order, of equal ones
//   the lower expert first;  weights: their p, with `normalizes` divided by their sum (which is the softmax
//   over the chosen logits)
// so that y = sum_slot weights[slot] * expert_chosen[slot](h), added by slot (kernels/moe/expert_ffn.h).
//
// Order is that of the logits, which is exact: p may round two of them to one. A row with a NaN, +infinity,
// or nothing finite has weights that are all NaN, and so has what the token's experts add up to; its experts
// are 0, 1, ..; -infinity weighs 0.
//
// Same bits: a token's experts and weights depend on its own row only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/sample/softmax_weights.h"

namespace terrace {

class ThreadPool;

struct RouteExpertsArgs {
  const float* logits = nullptr;  // [tokens, experts]
  size_t pitch = 0;               // floats from one token's logits to the next; 0: experts, without a gap
  size_t tokens = 0, experts = 0;
  size_t per_token = 0;  // 1 to experts
  bool normalizes = false;
  uint32_t* chosen = nullptr;  // [tokens, per_token]: experts
  float* weights = nullptr;    // [tokens, per_token]

  const float* Token(size_t token) const { return logits + token * (pitch > 0 ? pitch : experts); }
};

void RouteExpertsRef(const RouteExpertsArgs& args, ThreadPool& pool);

// What backends have in common: tokens [begin, end), of which softmax_weights makes weights.
void RouteTokens(const RouteExpertsArgs& args, SoftmaxSums (*softmax_weights)(const SoftmaxWeightsArgs&),
                 size_t begin, size_t end);

}  // namespace terrace
