#include "tests/gpu/bench_timing.h"

#include <algorithm>
#include <vector>

#include "tests/gpu/bench_arrays.h"
#include "worker/cuda/cublas_gemm.h"
#include "worker/cuda/cuda_memory.h"

namespace terrace {
namespace {

constexpr uint64_t kArrayBytes = uint64_t{2} << 30;
constexpr double kWarmSeconds = 0.02;

Status CallStatus(cudaError_t error) {
  if (error == cudaErrorInvalidValue || error == cudaErrorNotSupported) {
    cudaGetLastError();
    return Unimplemented("not supported: ", cudaGetErrorString(error));
  }
  RETURN_IF_CUDA_ERROR(error);
  return {};
}

struct Event {
  Event() = default;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() {
    if (event != nullptr) cudaEventDestroy(event);
  }
  cudaEvent_t event = nullptr;
};

// Seconds of each of `rounds` calls of `work`, after calls that warm up until `warm_seconds` have passed.
StatusOr<Timing> TimeRounds(cudaStream_t stream, int rounds, const std::function<Status()>& work,
                            double warm_seconds = kWarmSeconds) {
  Event begin, end;
  RETURN_IF_CUDA_ERROR(cudaEventCreate(&begin.event));
  RETURN_IF_CUDA_ERROR(cudaEventCreate(&end.event));
  const MonoTime start = RealClock().Now();
  do {
    RETURN_IF_ERROR(work());
    RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream));
  } while (Seconds(RealClock().Now() - start) < warm_seconds);
  std::vector<double> seconds;
  for (int round = 0; round < rounds; ++round) {
    RETURN_IF_CUDA_ERROR(cudaEventRecord(begin.event, stream));
    RETURN_IF_ERROR(work());
    RETURN_IF_CUDA_ERROR(cudaEventRecord(end.event, stream));
    RETURN_IF_CUDA_ERROR(cudaEventSynchronize(end.event));
    float milliseconds = 0;
    RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(&milliseconds, begin.event, end.event));
    seconds.push_back(milliseconds / 1e3);
  }
  return TimingOf(std::move(seconds));
}

struct Graph {
  Graph() = default;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    if (executable != nullptr) cudaGraphExecDestroy(executable);
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
};

Status CountsNothing(const CudaBuffer& found, const char* what, cudaStream_t stream) {
  unsigned long long count = 0;
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(&count, found.data(), sizeof(count), cudaMemcpyDeviceToHost, stream));
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream));
  if (count == 0) return {};
  return WithReason(Internal(what, ": ", uint64_t{count}, " outputs are not finite"), "not_finite");
}

StatusOr<CudaBuffer> ZeroCount(cudaStream_t stream) {
  ASSIGN_OR_RETURN(CudaBuffer found, CudaBuffer::Device(sizeof(unsigned long long), "count"));
  RETURN_IF_CUDA_ERROR(cudaMemsetAsync(found.data(), 0, found.bytes(), stream));
  return found;
}

StatusOr<Timing> TimeMatmul(cudaStream_t stream, int rounds) {
  constexpr uint32_t kSize = 8192;
  constexpr uint64_t kElements = uint64_t{kSize} * kSize;
  ASSIGN_OR_RETURN(const CudaBuffer memory, CudaBuffer::Device(3 * kElements * 2, "bf16 product"));
  uint16_t* const x = memory.as<uint16_t>();
  RETURN_IF_CUDA_ERROR(FillBF16(x, 2 * kElements, {.seed = 2}, stream));
  ASSIGN_OR_RETURN(const std::unique_ptr<CublasLt> cublas, CublasLt::Create());
  const CublasGemm gemm = {.x = x,
                           .tokens = kSize,
                           .weights = x + kElements,
                           .rows = kSize,
                           .columns = kSize,
                           .out = x + 2 * kElements};
  RETURN_IF_ERROR(cublas->Tune(std::vector<CublasGemm>(4, gemm), stream).status());
  // Warm: clocks fall when tensor cores are busy for long.
  for (int i = 0; i < 50; ++i) RETURN_IF_ERROR(cublas->Run(gemm, stream));
  ASSIGN_OR_RETURN(const Timing timing,
                   TimeRounds(stream, 3 * rounds, [&] { return cublas->Run(gemm, stream); }));
  RETURN_IF_ERROR(CheckFinite(x + 2 * kElements, kElements, "bf16 product", stream));
  return timing;
}

// "13.0" of 13000.
std::string VersionText(int cuda) { return Concat(cuda / 1000, ".", cuda % 1000 / 10); }

}  // namespace

Timing TimingOf(std::vector<double> seconds) {
  CHECK(!seconds.empty());
  std::ranges::sort(seconds);
  const double median = seconds[seconds.size() / 2];
  const size_t left_out = seconds.size() >= 20 ? seconds.size() / 10 : 0;
  return {.seconds = median, .spread = (seconds[seconds.size() - 1 - left_out] - seconds[left_out]) / median};
}

StatusOr<Timing> TimeCalls(cudaStream_t stream, const CallPlan& plan, const QueueCall& queue) {
  // Once outside of a graph: kernels are loaded at their first launch, and errors are the plainer.
  RETURN_IF_ERROR(CallStatus(queue(0, {.stream = stream})));
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream));
  Graph graph;
  RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  cudaError_t error = cudaSuccess;
  for (uint32_t i = 0; i < plan.calls && error == cudaSuccess; ++i)
    error = queue(i, {.stream = stream, .follows = i > 0});
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph.graph);
  RETURN_IF_ERROR(CallStatus(error));
  RETURN_IF_CUDA_ERROR(ended);
  RETURN_IF_CUDA_ERROR(cudaGraphInstantiate(&graph.executable, graph.graph, 0));
  const auto replay = [&]() -> Status {
    RETURN_IF_CUDA_ERROR(cudaGraphLaunch(graph.executable, stream));
    return {};
  };
  ASSIGN_OR_RETURN(Timing timing, TimeRounds(stream, plan.rounds, replay, plan.warm_seconds));
  timing.seconds /= plan.calls;
  return timing;
}

Status CheckFinite(const uint16_t* bf16, uint64_t count, const char* what, cudaStream_t stream) {
  ASSIGN_OR_RETURN(const CudaBuffer found, ZeroCount(stream));
  RETURN_IF_CUDA_ERROR(CountNotFiniteBF16(bf16, count, found.as<unsigned long long>(), stream));
  return CountsNothing(found, what, stream);
}

Status CheckFinite(const float* values, uint64_t count, const char* what, cudaStream_t stream) {
  ASSIGN_OR_RETURN(const CudaBuffer found, ZeroCount(stream));
  RETURN_IF_CUDA_ERROR(CountNotFiniteF32(values, count, found.as<unsigned long long>(), stream));
  return CountsNothing(found, what, stream);
}

StatusOr<GpuLimits> MeasureGpuLimits(BenchReport& report, cudaStream_t stream, int rounds) {
  GpuLimits limits;
  int device = 0;
  cudaDeviceProp properties = {};
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, device));
  limits.device = properties.name;
  const auto add = [&](const char* name, double amount, const Timing& timing, const char* unit) {
    report.Add({.name = name, .value = amount / timing.seconds / 1e9, .unit = unit, .spread = timing.spread});
    return amount / timing.seconds;
  };
  {
    ASSIGN_OR_RETURN(const CudaBuffer from, CudaBuffer::Device(kArrayBytes, "copy"));
    ASSIGN_OR_RETURN(const CudaBuffer to, CudaBuffer::Device(kArrayBytes, "copy"));
    ASSIGN_OR_RETURN(const CudaBuffer sums, CudaBuffer::Device(kReadSums * sizeof(uint32_t), "sums"));
    RETURN_IF_CUDA_ERROR(FillBytes(from.data(), kArrayBytes, 1, stream));
    ASSIGN_OR_RETURN(const Timing copy, TimeRounds(stream, 3 * rounds, [&]() -> Status {
                       RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to.data(), from.data(), kArrayBytes,
                                                            cudaMemcpyDeviceToDevice, stream));
                       return {};
                     }));
    limits.copy = add("copy of 2 GiB, read and written", 2.0 * kArrayBytes, copy, "GB/s");
    ASSIGN_OR_RETURN(const Timing read, TimeRounds(stream, 3 * rounds, [&]() -> Status {
                       RETURN_IF_CUDA_ERROR(ReadAll(from.data(), kArrayBytes, sums.as<uint32_t>(), stream));
                       return {};
                     }));
    limits.read = add("sum of 2 GiB, read only", kArrayBytes, read, "GB/s");

    constexpr size_t kPinnedBytes = size_t{512} << 20;
    ASSIGN_OR_RETURN(const CudaBuffer pinned, CudaBuffer::Pinned(kPinnedBytes, "pinned"));
    const auto time_transfer = [&](cudaMemcpyKind kind) {
      const bool to_host = kind == cudaMemcpyDeviceToHost;
      return TimeRounds(stream, rounds, [&, to_host]() -> Status {
        RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to_host ? pinned.data() : to.data(),
                                             to_host ? from.data() : pinned.data(), kPinnedBytes, kind,
                                             stream));
        return {};
      });
    };
    ASSIGN_OR_RETURN(const Timing to_host, time_transfer(cudaMemcpyDeviceToHost));
    limits.to_host = add("device to pinned memory, 512 MiB", kPinnedBytes, to_host, "GB/s");
    ASSIGN_OR_RETURN(const Timing to_device, time_transfer(cudaMemcpyHostToDevice));
    limits.to_device = add("pinned memory to device, 512 MiB", kPinnedBytes, to_device, "GB/s");
  }
  ASSIGN_OR_RETURN(const Timing matmul, TimeMatmul(stream, rounds));
  limits.matmul =
      add("bf16 product of 8192 x 8192 x 8192 (cuBLASLt)", 2.0 * 8192 * 8192 * 8192, matmul, "GFLOP/s");

  int driver = 0, runtime = 0;
  RETURN_IF_CUDA_ERROR(cudaDriverGetVersion(&driver));
  RETURN_IF_CUDA_ERROR(cudaRuntimeGetVersion(&runtime));
  report.Device({{"name", limits.device},
                 {"cuda_of_driver", VersionText(driver)},
                 {"cuda_of_toolkit", VersionText(runtime)},
                 {"multiprocessors", properties.multiProcessorCount},
                 {"memory_bytes", properties.totalGlobalMem},
                 {"l2_bytes", properties.l2CacheSize},
                 {"copy_bytes_per_second", limits.copy},
                 {"read_bytes_per_second", limits.read},
                 {"matmul_flops", limits.matmul},
                 {"to_device_bytes_per_second", limits.to_device},
                 {"to_host_bytes_per_second", limits.to_host}});
  return limits;
}

}  // namespace terrace
