// One decoder-only transformer over an ArchSpec (worker/model/arch_spec.h), run by an OpTable. Immutable
// weights; Forward has scratch memory of its own, so one thread at a time calls it.
//
// Same bits: the logits of a position depend only on the weights and the tokens before and at it, never on
// what else is in the batch, how the prompt was cut into chunks, which blocks hold its KV, or how many
// threads ran.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/op_table.h"
#include "worker/formats/model_config.h"
#include "worker/formats/weight_source.h"
#include "worker/kv/block_table.h"
#include "worker/kv/kv_pool.h"

namespace terrace {

// The part of one sequence that one step computes: positions [first_position, first_position +
// tokens.size()), of which those before first_position are in the KV pool already. Borrowed for the call.
struct BatchSequence {
  std::span<const int32_t> tokens;
  uint32_t first_position = 0;
  std::span<const BlockId> blocks;  // at least BlocksFor(first_position + tokens.size())
  // Logits wanted of the last `logits` tokens of this part: 0 in the middle of a prompt, 1 to sample, all to
  // score.
  uint32_t logits = 0;
};

struct Batch {
  std::vector<BatchSequence> sequences;
};

class Transformer {
 public:
  // Borrows `weights` and `ops` for its lifetime; `pool` is the compute pool of its thread. DATA_LOSS when a
  // tensor is missing or misshapen; RESOURCE_EXHAUSTED, reason weights_too_large, when the packed weights
  // take more than `free_bytes`; CANCELLED when `is_cancelled`, asked before each matrix, says so.
  static StatusOr<std::unique_ptr<Transformer>> Load(const ModelConfig& config, const WeightSource& weights,
                                                     const OpTable& ops, ThreadPool& pool,
                                                     ComputeType compute = ComputeType::kAuto,
                                                     uint64_t free_bytes = UINT64_MAX,
                                                     const std::function<bool()>& is_cancelled = nullptr);
  ~Transformer();

  // Runs the batch, writes its keys and values into `kv`, and returns the wanted logits [rows, vocab_size]:
  // rows in the order of the sequences and, in each, of positions. Valid until the next call.
  std::span<const float> Forward(const Batch& batch, KvPool& kv);

  const ModelConfig& config() const;
  uint64_t parameters() const;  // elements of all weights, tied ones once
  uint64_t weight_bytes() const;

 private:
  struct Impl;
  explicit Transformer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace terrace
