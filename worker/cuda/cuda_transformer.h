// The transformer on a CUDA device: weights, KV pool and the kernels of a step, in order, on one stream. One
// thread at a time calls it. Nothing here waits for the device but where it says so.
//
// Of a group it is one rank's part of a model (worker/engine/device_shard.h), on that rank's device, over
// NCCL: all ranks call Forward with the same batches, and rank 0 has the logits (worker/cuda/rank_step.h).
//
// A step's activations are bf16 and the residual stream f32. Small batches go through stream_gemm and large
// ones through cuBLASLt, whichever was faster when a shape came a second time or a graph was made of it. In
// the invariant mode large ones go through ordered_gemm, which makes the bits of stream_gemm, and prompts
// through run_attention, which makes those of decode_attention, or where it has no such heads through that
// itself, so that a position's logits depend on its tokens only (docs/adr/0003-same-bits.md).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/attention/kv_layer.h"
#include "kernels/gemm/gpu_matrix.h"
#include "kernels/sample/sample_gpu.h"
#include "worker/cuda/cuda_memory.h"
#include "worker/cuda/step_memory.h"
#include "worker/engine/device_backend.h"
#include "worker/model/transformer.h"
#include "worker/parallel/nccl_communicator.h"

namespace terrace {

// Of a group all sizes but hidden are this rank's.
struct CudaLayer {
  const float *attention_norm = nullptr, *ffn_norm = nullptr;            // [hidden]
  const float *attention_post_norm = nullptr, *ffn_post_norm = nullptr;  // [hidden], or null
  const uint16_t* qkv_bias = nullptr;                                    // [rows of qkv] bf16, or null
  const float *query_norm = nullptr, *key_norm = nullptr;                // [head_dim], or null
  GpuMatrix qkv;      // [(heads + 2 kv_heads) * head_dim, hidden]
  GpuMatrix output;   // [hidden, heads * head_dim]
  GpuMatrix gate_up;  // [2 ffn, hidden], by tiles of 8 and 8
  GpuMatrix down;     // [hidden, ffn]
  // With experts gate_up and down are the first one's, and all of them are, but for the pointers, like that.
  GpuMatrix router;                     // [experts, hidden], and rows of zeros up to a whole tile
  const GpuMatrix* gate_ups = nullptr;  // [experts], in the device's memory
  const GpuMatrix* downs = nullptr;     // [experts]
};

// On the device. Owns it.
struct CudaWeights {
  const uint16_t* embedding = nullptr;  // [at least vocabulary, hidden] bf16
  const float* final_norm = nullptr;    // [hidden]
  // [vocabulary, hidden], and rows of zeros up to a whole tile; of a group this rank's part of the vocabulary
  GpuMatrix head;
  std::vector<CudaLayer> layers;
  // Of the file: parameters of the whole model, bytes of what of it is here. On the device: memory.
  uint64_t parameters = 0, bytes = 0;
  DeviceLoadTimes load;
  std::vector<CudaBuffer> memory;
};

// Errors of Transformer::Load and of the device. The model was checked.
StatusOr<CudaWeights> LoadCudaWeights(const DeviceLoadOptions& options);
// For benchmarks: normal values of a trained model's size, or random codes. kW4 is INT4_G128's layout.
StatusOr<CudaWeights> RandomCudaWeights(const ModelConfig& config, GpuFormat format);

class CudaTransformer {
 public:
  // Borrows `weights`, and of a group `nccl`, which is null where the whole model is here; then `config` is
  // that of the rank (ConfigOfRank), and so is `shape`. UNIMPLEMENTED, reason unsupported_device.
  static StatusOr<std::unique_ptr<CudaTransformer>> Create(const ModelConfig& config,
                                                           const CudaWeights& weights, const KvShape& shape,
                                                           const DeviceLimits& limits, bool is_invariant,
                                                           const DeviceTuning& tuning = {},
                                                           NcclCommunicator* nccl = nullptr);
  // What Create takes beside the KV pool, on the one of `ranks` that takes the most, and what the driver may
  // take for steps.
  static uint64_t ScratchBytes(const ModelConfig& config, const CudaWeights& weights,
                               const DeviceLimits& limits, uint32_t ranks = 1);
  ~CudaTransformer();

  // How tokens are chosen from a batch's logits: one row per logit wanted, in their order. At most
  // kMostLogitAdjustments.
  struct Choice {
    std::span<const GpuSampleRow> rows;
    std::span<const GpuLogitAdjustment> adjustments;
    bool wants_logits =
        false;  // Logits() will be called: those of rows without adjustments are as the model gave them
  };
  // Queues a step. Of a group it waits until all ranks have come, and for the device until nothing more of
  // the step waits for another rank; on an error the group has ended.
  Status Forward(const Batch& batch, const Choice* choice = nullptr);
  // Whether there are logits here, to choose from or to copy; not on other ranks than 0, which take no
  // Choice.
  bool has_logits() const;
  // Waits; the results of the last step's choice, good until the next step.
  StatusOr<std::span<const GpuSampleResult>> Results();
  // Waits; the logits of the last step, [rows, vocabulary], copied to the host: of one without a choice, or
  // that wants them.
  StatusOr<std::vector<float>> Logits(size_t rows);

  // Of the last step: see StepResult.
  bool is_first_of_its_kind() const;

  // Queued behind the steps before, and steps behind them: see KvPool.
  Status CopyRows(BlockId from, BlockId to, uint32_t rows);
  Status CopyToHost(BlockId from, uint32_t host_block);
  Status CopyFromHost(uint32_t host_block, BlockId to);
  // Until all of these are done.
  Status WaitForCopies();

  cudaStream_t stream() const;
  // Seconds of the device of the last step that was replayed as a graph, for benchmarks; waits.
  StatusOr<double> LastStepSeconds();

 private:
  struct Impl;
  explicit CudaTransformer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace terrace
