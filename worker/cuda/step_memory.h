// What steps take of a device's memory beside the weights and the KV pool. The one description of it:
// CudaTransformer makes its buffers by it, and ScratchBytes is its sum. Pure.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/attention/paged_attention_gpu.h"
#include "kernels/gemm/gpu_matrix.h"
#include "kernels/sample/sample_gpu.h"
#include "worker/cuda/array_layout.h"
#include "worker/cuda/expert_routes.h"
#include "worker/engine/device_backend.h"
#include "worker/formats/model_config.h"

namespace terrace {

// Tokens for which tile_gemm is tried on quantized weights; wide_gemm is for all from kLeastTileTokens on.
inline constexpr uint32_t kLeastTileTokens = 9, kMostTileTokens = 512;
// Steps of at most so many tokens are replayed as graphs.
inline constexpr uint32_t kMostGraphTokens = 512;
// Logits are made of so many rows at a time.
inline constexpr uint32_t kMostLogitRows = 512;
inline constexpr uint32_t kMostLogitAdjustments = 1u << 20;  // of a step
inline constexpr uint32_t kLeastBlockTokens = 16;

constexpr uint32_t StepTokens(const DeviceLimits& limits) {
  return std::max(limits.max_step_tokens, limits.max_sequences);
}
constexpr uint32_t LogitRows(const DeviceLimits& limits) {
  return std::min(kMostLogitRows, std::max(StepTokens(limits), 1u));
}

// What a step's description consists of, as offsets into the staging memory of host and device.
struct StepLayout {
  uint64_t tokens, positions, sequences, wanted, runs, choices, adjustments;  // these last
  StepLayout(uint32_t token_count, uint32_t wanted_count, uint32_t run_count) {
    ArrayLayout layout;
    tokens = layout.Add<int32_t>(token_count);
    positions = layout.Add<uint32_t>(token_count);
    sequences = layout.Add<uint32_t>(token_count);
    wanted = layout.Add<uint32_t>(wanted_count);
    runs = layout.Add<GpuQueryRun>(run_count);
    choices = layout.Add<GpuSampleRow>(wanted_count);
    adjustments = layout.bytes();
  }
};

// What the matrices of a model ask for.
struct StepMatrices {
  void Add(const GpuMatrix& matrix);  // of a layer
  uint32_t head_rows = 0;             // of a group the rank's
  uint32_t most_rows = 0;
  uint64_t most_elements = 0;      // of one that is bf16 for cuBLASLt alone
  uint32_t most_code_columns = 0;  // of one whose activations may be codes
};

struct StepMemoryOptions {
  const ModelConfig& config;  // of a group the rank's
  DeviceLimits limits;
  StepMatrices matrices;
  bool is_of_group = false;
  bool has_logits = true;  // not on other ranks than 0
  uint32_t block_tokens = kLeastBlockTokens;
  uint64_t sampling_bytes = 0;  // GpuSampleScratchBytes of LogitRows
};

struct StepMemory {
  // Where the arrays of kActivations begin.
  struct Arrays {
    uint64_t hidden, sublayer, normed, squares, qkv, attended, gate_up, gate;
    ExpertRoutesLayout experts;
    uint64_t expert_rows, last_normed, logits, gathered, partials, arrived, tile_arrived, dequantized, codes,
        code_scales;
  };
  enum Buffer : uint8_t { kActivations, kRope, kStep, kTables, kSampling, kResults, kBuffers };
  struct Size {
    const char* what = nullptr;
    uint64_t bytes = 0;
  };

  // Of all buffers, each in whole pages of the device.
  uint64_t bytes() const;

  Arrays at;
  uint64_t arrived_count = 0, tile_arrived_count = 0;  // counters, which begin as zeros
  uint32_t table_pitch = 0;                            // blocks of a sequence's row of kTables
  std::array<Size, kBuffers> buffers = {};
};

StepMemory PlanStepMemory(const StepMemoryOptions& options);

}  // namespace terrace
