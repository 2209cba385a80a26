#include "worker/cuda/cuda_nccl_device.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "kernels/reduce/tree_sum_cuda.h"
#include "worker/cuda/cuda_memory.h"

namespace terrace {
namespace {

class CudaNcclDevice final : public NcclDevice {
 public:
  CudaNcclDevice(int device, CudaStream stream) : device_(device), stream_(std::move(stream)) {}

  Status Use() override {
    RETURN_IF_CUDA_ERROR(cudaSetDevice(device_));
    return Status();
  }
  StatusOr<DeviceBytes> Allocate(size_t bytes) override {
    ASSIGN_OR_RETURN(CudaBuffer buffer, CudaBuffer::Device(bytes, "messages between ranks"));
    std::byte* const data = buffer.data();
    return DeviceBytes(data, [owner = std::make_shared<CudaBuffer>(std::move(buffer))](std::byte*) mutable {
      owner.reset();
    });
  }
  cudaStream_t stream() override { return stream_.get(); }

  Status Copy(void* to, const void* from, size_t bytes, cudaStream_t stream) override {
    if (bytes == 0) return Status();
    RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
    return Status();
  }
  Status AddTree(const GpuTreeSumArgs& args, cudaStream_t stream) override {
    RETURN_IF_CUDA_ERROR(TreeSumCuda(args, {.stream = stream}));
    return Status();
  }
  StatusOr<bool> IsIdle(cudaStream_t stream) override {
    const cudaError_t error = cudaStreamQuery(stream);
    if (error == cudaErrorNotReady) {
      cudaGetLastError();  // forgets it: it is none
      return false;
    }
    if (error != cudaSuccess) return CudaStatus(error, "cudaStreamQuery");
    return true;
  }

 private:
  const int device_;
  const CudaStream stream_;
};

}  // namespace

StatusOr<std::unique_ptr<NcclDevice>> OpenCudaNcclDevice(int device) {
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device));
  ASSIGN_OR_RETURN(CudaStream stream, CudaStream::Create());
  return std::unique_ptr<NcclDevice>(std::make_unique<CudaNcclDevice>(device, std::move(stream)));
}

}  // namespace terrace
