// How the benchmarks time the device, and what they measure it against.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "kernels/launch_cuda.h"
#include "tests/gpu/bench_report.h"

namespace terrace {

// Of the device, measured. Everything else is a fraction of these.
struct GpuLimits {
  std::string device;
  double copy = 0;       // bytes per second, of 2 GiB device to device: read and written both count
  double read = 0;       // bytes per second, of 2 GiB
  double matmul = 0;     // operations per second, bf16, 8192^3, normal values, through cuBLASLt
  double to_device = 0;  // bytes per second, of pinned memory
  double to_host = 0;
};
StatusOr<GpuLimits> MeasureGpuLimits(BenchReport& report, cudaStream_t stream, int rounds);

struct Timing {
  double seconds = 0;  // the median
  double spread = 0;   // (largest - smallest) / median; of 20 and more without a tenth at either end
};
Timing TimingOf(std::vector<double> seconds);

// What queues call `i`. cudaErrorInvalidValue and cudaErrorNotSupported become UNIMPLEMENTED.
using QueueCall = std::function<cudaError_t(uint32_t i, const CudaLaunch& how)>;

// Seconds of a call: `calls` of them, each following the one before, are one graph, which is replayed until
// `warm_seconds` have passed, and then once for each of `rounds` timings.
struct CallPlan {
  uint32_t calls = 1;
  int rounds = 1;
  double warm_seconds = 0.01;
};
StatusOr<Timing> TimeCalls(cudaStream_t stream, const CallPlan& plan, const QueueCall& queue);

// `what` as a Status: INTERNAL, reason not_finite, when an output has infinities or NaNs.
Status CheckFinite(const uint16_t* bf16, uint64_t count, const char* what, cudaStream_t stream);
Status CheckFinite(const float* values, uint64_t count, const char* what, cudaStream_t stream);

}  // namespace terrace
