// The feed-forward layers of a mixture of experts, after route_experts.h and expert_groups.h:
//   x[t] += sum_slot weights[t][slot] * W_down_e (gate(W_gate_e h) * W_up_e h),  e = chosen[t][slot]
// with h = RmsNorm(x), by the products of a backend, each expert's over all of its tokens. Between the steps
// lie rows of pairs in the order of `groups.pairs`.
//
// Same bits: each product has the bits of a dense layer with the expert's matrices, whichever tokens share
// the expert; a token's rows are added by slot, in f32, before the residual.
//
// Where W_down is cut by columns into virtual shards, MultiplyExperts and CombineExperts are called for each
// of them, the latter into a sum of its own (add_to_out = false): what is added as a tree over shards and
// ranks is [tokens, hidden], not a row for each pair.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/moe/expert_groups.h"
#include "kernels/op_table.h"

namespace terrace {

struct GatedExpertsArgs {
  const ExpertGroups& groups;
  size_t per_token = 0;
  const float* x = nullptr;     // [tokens, inputs]
  const float* norm = nullptr;  // [inputs], or null; as of GemmArgs
  float norm_epsilon = 0;
  std::span<const GemmWeights> gates, ups;  // [experts] of [outputs, inputs]
  GateFunction gate = GateFunction::kSilu;
  float* out = nullptr;  // [pairs, outputs]
};

// `gathered` is scratch: it grows to the most pairs seen and stays.
void MultiplyGatedExperts(const OpTable& ops, const GatedExpertsArgs& args, std::vector<float>& gathered,
                          ThreadPool& pool);

struct ExpertsArgs {
  const ExpertGroups& groups;
  const float* x = nullptr;              // [pairs, inputs]
  size_t x_pitch = 0;                    // floats from one pair of x to the next; 0: inputs, without a gap
  std::span<const GemmWeights> weights;  // [experts] of [outputs, inputs]
  float* out = nullptr;                  // [pairs, outputs]
};

void MultiplyExperts(const OpTable& ops, const ExpertsArgs& args, ThreadPool& pool);

struct CombineExpertsArgs {
  const ExpertGroups& groups;
  size_t tokens = 0, per_token = 0, width = 0;
  const float* rows = nullptr;     // [pairs, width]
  const float* weights = nullptr;  // [tokens, per_token]
  float* out = nullptr;            // [tokens, width]
  bool add_to_out = false;
};

void CombineExperts(const CombineExpertsArgs& args, ThreadPool& pool);

}  // namespace terrace
