// One decoder-only transformer for all families (worker/formats/model_family.h), run by an OpTable. Immutable
// weights; Forward has scratch memory of its own, so one thread at a time calls it.
//
// Same bits: the logits of a position depend only on the weights, the number of virtual shards and the tokens
// before and at it, never on what else is in the batch, how the prompt was cut into chunks, which blocks hold
// its KV, how many threads ran, or on how many ranks.
//
// Parallel: with a Communicator this is one rank's share of the model (worker/parallel/shard_plan.h). All
// ranks call Forward with the same batches, each with a KV pool of its own layers and KV heads; rank 0 has
// the logits. With several pipeline stages a batch passes them in micro-batches (worker/parallel/pipeline.h).
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
#include "worker/parallel/communicator.h"
#include "worker/parallel/shard_plan.h"

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

struct TransformerOptions {
  ComputeType compute = ComputeType::kAuto;
  uint64_t free_bytes = UINT64_MAX;              // memory that the packed weights may take
  std::function<bool()> is_cancelled = nullptr;  // asked before each matrix
  uint32_t virtual_shards = 0;                   // as of ShardOptions
  Communicator* communicator = nullptr;          // outlives the transformer; null: the whole model
  uint32_t stages = 1;                           // of the pipeline that its ranks are
};

class Transformer {
 public:
  // Borrows `weights` and `ops` for its lifetime; `pool` is the compute pool of its thread. DATA_LOSS when a
  // tensor is missing or misshapen; RESOURCE_EXHAUSTED, reason weights_too_large, when the packed weights
  // take more than free_bytes; CANCELLED when is_cancelled says so; errors of PlanShard.
  static StatusOr<std::unique_ptr<Transformer>> Load(const ModelConfig& config, const WeightSource& weights,
                                                     const OpTable& ops, ThreadPool& pool,
                                                     const TransformerOptions& options = {});
  // What of the model a rank would have, as Load has it; its errors come before anything is packed.
  // The blocks of `shard` are set to those of the weights.
  static StatusOr<ShardPlan> Plan(const ModelConfig& config, const WeightSource& weights, ShardOptions shard);
  ~Transformer();

  // Runs the batch, writes its keys and values into `kv`, and returns the wanted logits [rows, vocab_size]:
  // rows in the order of the sequences and, in each, of positions; nothing on ranks other than 0. Valid until
  // the next call. Fails only with a communicator, with its errors; the step is lost then, and so are the
  // keys and values it was to write.
  StatusOr<std::span<const float>> Forward(const Batch& batch, KvPool& kv);

  const ModelConfig& config() const;
  const ShardPlan& plan() const;  // what of it is here
  // Of what is here; the embedding and norms are on every rank of their stage.
  uint64_t parameters() const;        // elements of all weights, tied ones once
  uint64_t weight_bytes() const;      // in the file
  uint64_t packed_bytes() const;      // of memory
  uint64_t model_parameters() const;  // of the whole model, on however many ranks it is

 private:
  struct Impl;
  explicit Transformer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace terrace
