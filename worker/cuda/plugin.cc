// What libterrace_cuda.so exports.
#include <memory>
#include <string>
#include <utility>

#include "worker/cuda/cuda_runner.h"
#include "worker/cuda/cuda_transformer.h"
#include "worker/engine/device_backend.h"
#include "worker/engine/device_rules.h"

namespace terrace {
namespace {

constexpr int kOldestMajor = 8;  // compute capability 8.0: Ampere

Status Probe() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return WithReason(Unavailable("no CUDA device can be used: ", cudaGetErrorString(error)), "no_device");
  }
  if (count == 0) return WithReason(Unavailable("no CUDA device here"), "no_device");
  cudaDeviceProp properties = {};
  RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, 0));
  if (properties.major < kOldestMajor) {
    return WithReason(Unavailable(properties.name, " has compute capability ", properties.major, ".",
                                  properties.minor, "; 8.0 is needed"),
                      "no_device");
  }
  const cudaError_t begun =
      cudaFree(nullptr);  // a device may be there and another process have it for itself
  if (begun != cudaSuccess) {
    return WithReason(Unavailable(properties.name, " cannot be used: ", cudaGetErrorString(begun)),
                      "no_device");
  }
  return {};
}

class CudaModel : public DeviceModel {
 public:
  CudaModel(const DeviceLoadOptions& options, CudaWeights weights, std::string name)
      : config_(*options.config),
        is_invariant_(options.is_invariant),
        tuning_(options.tuning),
        weights_(std::move(weights)),
        name_(std::move(name)) {}

  std::string name() const override { return name_; }
  uint64_t parameters() const override { return weights_.parameters; }
  uint64_t weight_bytes() const override { return weights_.bytes; }
  DeviceLoadTimes load_times() const override { return weights_.load; }

  StatusOr<uint64_t> FreeBytes() const override {
    size_t free_bytes = 0, total = 0;
    RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free_bytes, &total));
    return free_bytes;
  }
  uint64_t StepBytes(const DeviceLimits& limits) const override {
    return CudaTransformer::ScratchBytes(config_, weights_, limits);
  }

  StatusOr<std::unique_ptr<Executor>> MakeExecutor(const KvShape& shape,
                                                   const DeviceLimits& limits) override {
    ASSIGN_OR_RETURN(auto transformer,
                     CudaTransformer::Create(config_, weights_, shape, limits, is_invariant_, tuning_));
    return std::unique_ptr<Executor>(std::make_unique<CudaRunner>(config_, std::move(transformer)));
  }

 private:
  const ModelConfig config_;
  const bool is_invariant_;
  const DeviceTuning tuning_;
  const CudaWeights weights_;
  const std::string name_;
};

StatusOr<std::unique_ptr<DeviceModel>> Load(const DeviceLoadOptions& options) {
  cudaDeviceProp properties = {};
  RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, 0));
  RETURN_IF_ERROR(Annotate(CheckDeviceModel(*options.config), "CUDA"));
  ASSIGN_OR_RETURN(CudaWeights weights, LoadCudaWeights(options));
  return std::unique_ptr<DeviceModel>(
      std::make_unique<CudaModel>(options, std::move(weights), Concat("cuda ", properties.name)));
}

}  // namespace
}  // namespace terrace

extern "C" __attribute__((visibility("default"))) const terrace::DeviceBackend* terrace_device_backend() {
  static const terrace::DeviceBackend kBackend{.probe = terrace::Probe, .load = terrace::Load};
  return &kBackend;
}

extern "C" __attribute__((visibility("default"))) const char* terrace_device_abi() {
  static const std::string kAbi = terrace::DeviceAbi();
  return kAbi.c_str();
}
