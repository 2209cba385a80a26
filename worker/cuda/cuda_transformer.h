// The transformer on a CUDA device: weights, KV pool and the kernels of a step, in order, on one stream. One
// thread at a time calls it. Nothing here waits for the device but where it says so.
//
// A step's activations are bf16 and the residual stream f32. Small batches go through stream_gemm and large
// ones through cuBLASLt, whichever was faster when a shape came a second time or a graph was made of it. In
// the invariant mode large ones go through ordered_gemm, which makes the bits of stream_gemm, and prompts
// through run_attention, which makes those of decode_attention, so that a position's logits depend on its
// tokens only (docs/adr/0003-same-bits.md).
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
#include "worker/engine/device_backend.h"
#include "worker/model/transformer.h"

namespace terrace {

struct CudaLayer {
  const float *attention_norm = nullptr, *ffn_norm = nullptr;  // [hidden]
  GpuMatrix qkv;                                               // [(heads + 2 kv_heads) * head_dim, hidden]
  GpuMatrix output;                                            // [hidden, heads * head_dim]
  GpuMatrix gate_up;                                           // [2 ffn, hidden], by tiles of 8 and 8
  GpuMatrix down;                                              // [hidden, ffn]
};

// On the device. Owns it.
struct CudaWeights {
  const uint16_t* embedding = nullptr;  // [vocabulary, hidden] bf16
  const float* final_norm = nullptr;    // [hidden]
  GpuMatrix head;                       // [vocabulary, hidden]
  std::vector<CudaLayer> layers;
  uint64_t parameters = 0, bytes = 0;  // of the file; on the device: memory
  DeviceLoadTimes load;
  std::vector<CudaBuffer> memory;
};

// Errors of Transformer::Load and of the device. The model was checked.
StatusOr<CudaWeights> LoadCudaWeights(const DeviceLoadOptions& options);
// For benchmarks: normal values of a trained model's size, or random codes. kW4 is INT4_G128's layout.
StatusOr<CudaWeights> RandomCudaWeights(const ModelConfig& config, GpuFormat format);

class CudaTransformer {
 public:
  // Borrows `weights`. UNIMPLEMENTED, reason unsupported_device.
  static StatusOr<std::unique_ptr<CudaTransformer>> Create(const ModelConfig& config,
                                                           const CudaWeights& weights, const KvShape& shape,
                                                           const DeviceLimits& limits, bool is_invariant,
                                                           const DeviceTuning& tuning = {});
  // What Create takes beside the KV pool.
  static uint64_t ScratchBytes(const ModelConfig& config, const CudaWeights& weights,
                               const DeviceLimits& limits);
  ~CudaTransformer();

  static constexpr uint32_t kMostAdjustments = 1u << 20;
  // How tokens are chosen from a batch's logits: one row per logit wanted, in their order. At most
  // kMostAdjustments.
  struct Choice {
    std::span<const GpuSampleRow> rows;
    std::span<const GpuLogitAdjustment> adjustments;
    bool wants_logits =
        false;  // Logits() will be called: those of rows without adjustments are as the model gave them
  };
  // Queues a step. Wanted logits [rows, vocabulary] lie at logits() behind it.
  Status Forward(const Batch& batch, const Choice* choice = nullptr);
  // Waits; the results of the last step's choice, good until the next step.
  StatusOr<std::span<const GpuSampleResult>> Results();
  // Waits; the logits of the last step, copied to the host: of one without a choice, or that wants them.
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
