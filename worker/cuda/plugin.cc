// What libterrace_cuda.so exports.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "kernels/reduce/tree_sum_gpu.h"
#include "worker/cuda/cuda_nccl_device.h"
#include "worker/cuda/cuda_runner.h"
#include "worker/cuda/cuda_transformer.h"
#include "worker/engine/device_abi.h"
#include "worker/engine/device_backend.h"
#include "worker/engine/device_rules.h"
#include "worker/engine/device_shard.h"
#include "worker/engine/max_ranks.h"
#include "worker/parallel/nccl_communicator.h"
#include "worker/parallel/sub_communicator.h"

namespace terrace {
namespace {

static_assert(kMaxDeviceRanks <= kMaxTreeParts);

constexpr int kOldestMajor = 8;  // compute capability 8.0: Ampere

// Values of the largest of the sums that are added up before the first step.
constexpr size_t kFirstSum = size_t{4} << 20;

template <typename... Text>
Status NoDevice(const Text&... text) {
  return WithReason(Unavailable(text...), "no_device");
}

StatusOr<uint32_t> Devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return NoDevice("no CUDA device can be used: ", cudaGetErrorString(error));
  }
  if (count == 0) return NoDevice("no CUDA device here");
  return static_cast<uint32_t>(count);
}

Status Probe() { return Devices().status(); }

StatusOr<uint32_t> Open(const DeviceChoice& choice) {
  ASSIGN_OR_RETURN(const uint32_t devices, Devices());
  ASSIGN_OR_RETURN(const uint32_t device, DeviceOfRank(choice, devices));
  cudaDeviceProp properties = {};
  const cudaError_t described = cudaGetDeviceProperties(&properties, static_cast<int>(device));
  if (described != cudaSuccess) {
    cudaGetLastError();
    return NoDevice("device ", device, " cannot be used: ", cudaGetErrorString(described));
  }
  if (properties.major < kOldestMajor) {
    return NoDevice(properties.name, " has compute capability ", properties.major, ".", properties.minor,
                    "; 8.0 is needed");
  }
  // A device may be there and another process have it for itself.
  cudaError_t begun = cudaSetDevice(static_cast<int>(device));
  if (begun == cudaSuccess) begun = cudaFree(nullptr);
  if (begun != cudaSuccess) {
    return NoDevice(properties.name, " cannot be used: ", cudaGetErrorString(begun));
  }
  return device;
}

class CudaModel : public DeviceModel {
 public:
  CudaModel(const DeviceLoadOptions& options, CudaWeights weights, std::string name)
      : config_(options.shard == nullptr ? *options.config : ConfigOfRank(*options.config, *options.shard)),
        is_invariant_(options.is_invariant),
        tuning_(options.tuning),
        device_(static_cast<int>(options.device)),
        ranks_(options.shard == nullptr ? 1 : options.shard->tensor_ranks),
        weights_(std::move(weights)),
        name_(std::move(name)) {}

  std::string name() const override { return name_; }
  uint64_t parameters() const override { return weights_.parameters; }
  uint64_t weight_bytes() const override { return weights_.bytes; }
  DeviceLoadTimes load_times() const override { return weights_.load; }

  Status Connect(Communicator& group, const DeviceLimits& limits) override {
    ASSIGN_OR_RETURN(const NcclApi nccl, LoadNccl());
    ASSIGN_OR_RETURN(auto device, OpenCudaNcclDevice(device_));
    const size_t tokens = std::max(limits.max_step_tokens, limits.max_sequences);
    const size_t tree_bytes = is_invariant_ ? tokens * config_.hidden_size * sizeof(float) : 0;
    ASSIGN_OR_RETURN(nccl_, ConnectNccl({.nccl = nccl,
                                         .control = MakeSubCommunicator(group, 0, group.ranks()),
                                         .device = std::move(device),
                                         .max_tree_sum_bytes = tree_bytes}));
    return AddUpFirst(tree_bytes);
  }

  StatusOr<uint64_t> FreeBytes() const override {
    RETURN_IF_CUDA_ERROR(cudaSetDevice(device_));
    size_t free_bytes = 0, total = 0;
    RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free_bytes, &total));
    return free_bytes;
  }
  uint64_t StepBytes(const DeviceLimits& limits) const override {
    return CudaTransformer::ScratchBytes(config_, weights_, limits, ranks_);
  }

  StatusOr<std::unique_ptr<Executor>> MakeExecutor(const KvShape& shape,
                                                   const DeviceLimits& limits) override {
    CHECK((ranks_ > 1) == (nccl_ != nullptr), "a rank of ", ranks_, " that is not connected");
    RETURN_IF_CUDA_ERROR(cudaSetDevice(device_));
    ASSIGN_OR_RETURN(auto transformer, CudaTransformer::Create(config_, weights_, shape, limits,
                                                               is_invariant_, tuning_, nccl_.get()));
    return std::unique_ptr<Executor>(std::make_unique<CudaRunner>(config_, std::move(transformer), device_));
  }

 private:
  // What NCCL sets up, and allocates, when it is first asked for a sum is no part of a step.
  Status AddUpFirst(size_t tree_bytes) {
    const size_t most = is_invariant_ ? std::min(kFirstSum, tree_bytes / sizeof(float)) : kFirstSum;
    ASSIGN_OR_RETURN(const CudaBuffer values,
                     CudaBuffer::Device((most + ranks_) * sizeof(float), "the first sums of a group"));
    RETURN_IF_CUDA_ERROR(cudaMemset(values.data(), 0, values.bytes()));
    RETURN_IF_CUDA_ERROR(cudaDeviceSynchronize());
    const auto order =
        is_invariant_ ? NcclCommunicator::SumOrder::kTree : NcclCommunicator::SumOrder::kFastest;
    RETURN_IF_ERROR(nccl_->Meet(most));
    for (const size_t count : {size_t{1}, most}) {
      RETURN_IF_ERROR(nccl_->QueueSum({.data = values.data(), .count = count, .dtype = DType::kF32}, order,
                                      nccl_->stream()));
    }
    RETURN_IF_ERROR(nccl_->QueueAllGather({.data = values.data(), .count = 1, .dtype = DType::kF32},
                                          values.as<float>(most * sizeof(float)), nccl_->stream()));
    return nccl_->Wait(nccl_->stream());
  }

  const ModelConfig config_;  // of a group this rank's
  const bool is_invariant_;
  const DeviceTuning tuning_;
  const int device_;
  const uint32_t ranks_;
  const CudaWeights weights_;
  const std::string name_;
  std::unique_ptr<NcclCommunicator> nccl_;  // null where the whole model is here
};

StatusOr<std::unique_ptr<DeviceModel>> Load(const DeviceLoadOptions& options) {
  if (options.shard != nullptr) {  // before the weights take their time
    if (const Status nccl = LoadNccl().status(); !nccl.ok()) return NoDevice(Message(nccl));
  }
  const int device = static_cast<int>(options.device);
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device));
  cudaDeviceProp properties = {};
  RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, device));
  RETURN_IF_ERROR(Annotate(CheckDeviceModel(*options.config), "CUDA"));
  if (options.shard != nullptr)
    RETURN_IF_ERROR(Annotate(CheckDeviceModel(ConfigOfRank(*options.config, *options.shard)), "CUDA"));
  ASSIGN_OR_RETURN(CudaWeights weights, LoadCudaWeights(options));
  return std::unique_ptr<DeviceModel>(
      std::make_unique<CudaModel>(options, std::move(weights), Concat("cuda ", properties.name)));
}

}  // namespace
}  // namespace terrace

extern "C" __attribute__((visibility("default"))) const terrace::DeviceBackend* terrace_device_backend() {
  static const terrace::DeviceBackend kBackend{
      .probe = terrace::Probe, .open = terrace::Open, .load = terrace::Load};
  return &kBackend;
}

extern "C" __attribute__((visibility("default"))) const char* terrace_device_abi() {
  static const std::string kAbi = terrace::DeviceAbi();
  return kAbi.c_str();
}
