// What a step of a model that is split over ranks takes. Pure; values.
//
// Ranks tell each other messages of n bytes in alpha + n * beta seconds (Hockney, "The communication
// challenge for MPP", 1994). A sum over p ranks is the Communicator's: up to kAtOnceBytes one round in which
// each rank sends all to p - 1 others, else two, as of Rabenseifner's all-reduce without its halving (Thakur,
// Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005), of a share
// of n/p each:
//
//   sum(n, p) = alpha + (p - 1) n beta            n <= 64 KiB
//             = 2 alpha + 2 (p - 1)/p n beta      else: the bytes of a ring, in fewer rounds
//
// A stage of l layers computes a micro-batch of r rows, which look at c positions together, on a rank with
// matrices of w bytes and e elements (Williams, Waterman and Patterson, "Roofline", 2009), in
//
//   t = max(w / bandwidth, 2 e r / rate)                                   products
//     + max(KV bytes read / bandwidth, 4 heads head_dim l c / rate)        attention
//     + 2 l sum(bytes of r x hidden, p)                                    products cut by columns
//
// of its slowest rank. Of a mixture of E experts, of which a row takes k at random, the experts' part of w is
// what r rows read, 1 - (1 - k/E)^r of it, and their part of e is k/E. A step is cut into m micro-batches
// that pass the P stages in ticks (Huang et al., "GPipe", 2019): in tick k stage s has micro-batch k - s. A
// tick is as long as the slowest stage that has one; then all ranks meet, and each stage sends on what it has
// computed. The output matrix is multiplied by once, behind the last tick:
//
//   step = fixed + alpha (the plan) + sum over m + P - 1 ticks of (largest t + alpha)
//        + (m + P - 2) (alpha + bytes of r x hidden * beta) + output matrix + logits to rank 0
//   bubble = 1 - m * (sum of all t) / (P * sum of all ticks' t), of equal stages (P - 1)/(P + m - 1)
//
// Without stages (P = 1) there is no meeting, without other ranks no message at all. Left out: what norms,
// rotations and samples take, and that communication may be hidden behind computing.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/status.h"
#include "kernels/attention/kv_layer.h"
#include "tools/plan/model_split.h"
#include "tools/plan/step_cost.h"
#include "worker/parallel/collective_probe.h"

namespace terrace {

struct LinkCost {
  double round_seconds = 0, seconds_per_byte = 0;  // alpha and beta; of as many ranks as it was measured with

  double MessageSeconds(double bytes) const { return round_seconds + bytes * seconds_per_byte; }
  double SumSeconds(double bytes, uint32_t ranks) const;  // 0 of one rank
};

// That one rank sends for a sum; 0 of one rank.
double SumSentBytes(double bytes, uint32_t ranks);

// Least squares of the relative errors; neither is below 0. INVALID_ARGUMENT for fewer than two samples, or
// one without bytes or time.
StatusOr<LinkCost> FitLink(std::span<const SumSample> samples, uint32_t ranks);

// What a rank runs on. Rates are those that steps reach, not those of a data sheet.
struct DeviceSpec {
  std::string name = {};
  uint64_t memory_bytes = 0;
  double bytes_per_second = 0, operations_per_second = 0;  // multiplications and additions count each
  LinkCost link = {};
  uint32_t activation_bytes = 2;  // of an element that ranks send each other: f32 on CPUs, bf16 on devices
  double step_seconds = 0;        // of each step, whatever is in it
};

// One step: sequences that are all alike.
struct StepShape {
  uint32_t sequences = 1, tokens = 1;  // tokens: of each sequence
  uint64_t context = 0;                // positions before the tokens of each
  uint32_t micro_batches = 0;          // runs of tokens; 0: as many as the engine makes of them
};

struct StepEstimate {
  double seconds = 0;
  double sum_seconds = 0;   // of them, in sums over the ranks of stages
  double send_seconds = 0;  // of them, in messages: to the next stage, of logits, of the plan
  double sum_bytes = 0;     // that a rank sends for sums, the one that sends the most
  uint32_t micro_batches = 1;
  double bubble = 0;  // share of the stages' time that they wait for each other
};

// CHECKs a step without tokens, and rates that are not above 0.
StepEstimate EstimateStep(const ModelSplit& split, const ModelConfig& config, const DeviceSpec& device,
                          KvDType kv_dtype, const StepShape& step);

// What steps take on ranks of one machine that share its cores, from what they take without them: the same
// products, of which keys and values are computed more than once where a KV head is on several ranks, and
// the sums, the logits and what the leader tells. `max_sequences`: of which logits are wanted at most. The
// same cost where `split`, which has one stage, has one rank.
StepCost CostOnRanks(const StepCost& alone, const ModelSplit& split, const ModelConfig& config,
                     const LinkCost& link, uint32_t max_sequences);

}  // namespace terrace
