// Large products through cuBLASLt: out[t][n] (+)= sum_k x[t][k] * weights[n][k], bf16 or FP8 E4M3 in, f32
// sums. One thread at a time. Of each shape cuBLASLt's first guess is used, until Tune has timed the first
// few on what they will multiply and kept the fastest.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <tuple>

#include "base/status.h"
#include "worker/cuda/cuda_memory.h"

namespace terrace {

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
  static StatusOr<std::unique_ptr<CublasLt>> Create();
  ~CublasLt();

  // Queues the product. UNIMPLEMENTED when there is no algorithm.
  Status Run(const CublasGemm& gemm, cudaStream_t stream);
  // Finds the algorithm of the samples' shape; their mean seconds with it. Waits for the device (so not while
  // a graph is captured). Samples are operands of one shape that together exceed the device's cache; their
  // outputs may be overwritten.
  StatusOr<double> Tune(std::span<const CublasGemm> samples, cudaStream_t stream);

 private:
  // tokens, rows, columns, is E4M3, out is f32, adds
  using Key = std::tuple<uint32_t, uint32_t, uint32_t, bool, bool, bool>;
  struct Plan;
  CublasLt() = default;
  static Key KeyOf(const CublasGemm& gemm);
  StatusOr<std::unique_ptr<Plan>> MakePlan(const CublasGemm& gemm) const;
  Status Multiply(Plan& plan, const CublasGemm& gemm, const cublasLtMatmulAlgo_t* algorithm,
                  cudaStream_t stream);

  cublasLtHandle_t handle_ = nullptr;
  CudaBuffer workspace_;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace terrace
