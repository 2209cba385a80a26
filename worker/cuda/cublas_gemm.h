// Large products through cuBLASLt: out[t][n] (+)= sum_k x[t][k] * weights[n][k], bf16 or FP8 E4M3 in, f32
// sums. One thread at a time. An algorithm is found for each shape when it is first seen: cuBLASLt's first
// few guesses are timed on what they will multiply, and the fastest is kept.
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

  // Queues the product. A shape is new when Knows() says no: then this also times algorithms, waiting for the
  // device (not while a graph is captured), on `samples` - operands of the same shape that together exceed
  // the device's cache - with outputs that may be overwritten. UNIMPLEMENTED when there is no algorithm.
  Status Run(const CublasGemm& gemm, cudaStream_t stream);
  bool Knows(const CublasGemm& gemm) const;
  // Finds the algorithm of the samples' shape; their mean seconds with it.
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
