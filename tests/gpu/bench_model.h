// Parts of the benchmark that run whole models of Llama 3.1 8B's shape with random weights, and the weights
// themselves, which the benchmarks of the kernels use too.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "base/status.h"
#include "tests/gpu/bench_report.h"
#include "tests/gpu/bench_timing.h"
#include "worker/cuda/cuda_transformer.h"
#include "worker/formats/model_config.h"

namespace terrace {

ModelConfig BenchConfig();  // of Llama 3.1 8B
std::string_view NameOf(GpuFormat format);

// What of a matrix a product reads.
uint64_t BytesOf(const GpuMatrix& matrix);

// The model's weights in each format, made when first asked for.
class BenchWeights {
 public:
  StatusOr<const CudaWeights*> Of(GpuFormat format);
  void Drop(GpuFormat format) { made_.erase(format); }

 private:
  std::map<GpuFormat, CudaWeights> made_;
};

struct BenchContext {
  BenchReport& report;
  const GpuLimits& limits;
  BenchWeights& weights;
  cudaStream_t stream = nullptr;
  bool is_quick = false;
  int rounds = 7;
};

Status BenchKernels(BenchContext& bench);           // bench_kernels.cc
Status BenchFamilies(BenchContext& bench);          // what they have beside Llama, and f16 KV
Status BenchLayer(BenchContext& bench);             // a layer of a decode step, and what may be set in it
Status BenchWideGemm(BenchContext& bench);          // bench_wide_gemm.cc
Status BenchSparse(BenchContext& bench);            // bench_sparse.cc
Status BenchExperts(BenchContext& bench);           // bench_moe.cc
Status BenchPrefillAttention(BenchContext& bench);  // every kernel that does it
Status BenchDecode(BenchContext& bench);  // steps of 1 to 256 sequences, against a roofline; the host's share
Status BenchEngineHostGap(BenchContext& bench);  // bench_engine.cc: the host's share of an engine's steps
Status BenchDrafts(BenchContext& bench);     // a draft model's steps, steps that verify, and when both pay
Status BenchPrefill(BenchContext& bench);    // one prompt in one step
Status BenchInvariant(BenchContext& bench);  // what the invariant mode costs
Status BenchInvariantKernels(BenchContext& bench);  // bench_invariant.cc: its kernels of many tokens
Status BenchMemory(BenchContext& bench, const std::string& model);  // KV blocks to the host and back; a load

// bench_load.cc. Models that are written into `folder`, unless it is "", as a worker loads them: 6 and 16 GB.
Status BenchLoad(BenchContext& bench, const std::string& folder);
Status BenchLoadFolders(BenchContext& bench, const std::string& folder);
// What a process does that these measure: a line when there is a token, then one of JSON.
Status PrintFirstToken(const std::string& model, const std::string& compute);

}  // namespace terrace
