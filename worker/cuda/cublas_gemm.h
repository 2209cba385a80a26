// Large products through cuBLASLt: out[t][n] (+)= sum_k x[t][k] * weights[n][k], bf16 or FP8 E4M3 in, f32
// sums. One thread at a time. Of each shape cuBLASLt's first guess is used, until Tune has timed the first
// few on what they will multiply and kept the fastest: for this process and, with a folder, for later ones.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <memory>
#include <source_location>
#include <span>
#include <string_view>

#include "base/status.h"
#include "worker/cuda/cuda_memory.h"
#include "worker/cuda/gemm_choices.h"
#include "worker/engine/device_backend.h"

namespace terrace {

// CUBLAS_STATUS_NOT_SUPPORTED is UNIMPLEMENTED, reason unsupported_device, any other INTERNAL, reason
// device_error; with file, line and call as CudaStatus has them.
Status CublasStatus(cublasStatus_t status, std::string_view call,
                    std::source_location at = std::source_location::current());

struct CublasGemm {
  const void* x = nullptr;          // [tokens, columns] bf16, or E4M3 codes with x_scales
  const float* x_scales = nullptr;  // [tokens]
  uint32_t tokens = 0;
  const void* weights = nullptr;         // [rows, columns] as x
  const float* weight_scales = nullptr;  // [rows]
  uint32_t rows = 0, columns = 0;
  void* out = nullptr;      // [tokens, rows]
  bool out_is_f32 = false;  // else bf16
  bool add_to_out = false;  // f32 only
};

class CublasLt {
 public:
  static constexpr size_t kWorkspaceBytes = size_t{64} << 20;

  static StatusOr<std::unique_ptr<CublasLt>> Create(const DeviceTuning& tuning = {});
  ~CublasLt();

  // Queues the product. UNIMPLEMENTED when there is no algorithm.
  Status Run(const CublasGemm& gemm, cudaStream_t stream);
  // Finds the algorithm of the samples' shape; their mean seconds with it. Waits for the device (so not while
  // a graph is captured). Samples are operands of one shape that together exceed the device's cache; their
  // outputs may be overwritten.
  StatusOr<double> Tune(std::span<const CublasGemm> samples, cudaStream_t stream);

 private:
  struct Plan;
  CublasLt(const DeviceTuning& tuning, GemmMachine machine);
  static GemmShape ShapeOf(const CublasGemm& gemm);
  // With `uses_kept` of the algorithm that was kept, where there is one that runs here, else of cuBLASLt's
  // guesses.
  StatusOr<std::unique_ptr<Plan>> MakePlan(const CublasGemm& gemm, bool uses_kept) const;
  Status Multiply(Plan& plan, const CublasGemm& gemm, const cublasLtMatmulAlgo_t* algorithm,
                  cudaStream_t stream);
  StatusOr<double> TimeGuesses(Plan& plan, std::span<const CublasGemm> samples, cudaStream_t stream);
  void TellOnce(const Status& status);

  const DeviceTuning tuning_;
  GemmChoices choices_;
  bool is_told_ = false;
  cublasLtHandle_t handle_ = nullptr;
  CudaBuffer workspace_;
  std::map<GemmShape, std::unique_ptr<Plan>> plans_;
};

}  // namespace terrace
