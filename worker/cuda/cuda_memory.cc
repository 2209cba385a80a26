#include "worker/cuda/cuda_memory.h"

namespace terrace {

Status CudaStatus(cudaError_t error, const char* call, const char* file, int line) {
  return WithReason(Internal(file, ":", line, ": ", call, ": ", cudaGetErrorString(error), " (",
                             cudaGetErrorName(error), ")"),
                    "device_error");
}

Status CudaMallocStatus(cudaError_t error, size_t bytes, const char* what) {
  if (error == cudaSuccess) return {};
  if (error != cudaErrorMemoryAllocation) return CudaStatus(error, "cudaMalloc", __FILE__, __LINE__);
  size_t free_bytes = 0, total = 0;
  cudaGetLastError();  // forgets it: the device goes on
  cudaMemGetInfo(&free_bytes, &total);
  return WithReason(
      ResourceExhausted(what, ": ", bytes, " bytes needed on the device, ", free_bytes, " free"),
      "device_memory");
}

StatusOr<CudaBuffer> CudaBuffer::Device(size_t bytes, const char* what) {
  CudaBuffer buffer;
  if (bytes == 0) return buffer;
  RETURN_IF_ERROR(CudaMallocStatus(cudaMalloc(reinterpret_cast<void**>(&buffer.data_), bytes), bytes, what));
  buffer.bytes_ = bytes;
  return buffer;
}

StatusOr<CudaBuffer> CudaBuffer::Pinned(size_t bytes, const char* what) {
  CudaBuffer buffer;
  if (bytes == 0) return buffer;
  const cudaError_t error =
      cudaHostAlloc(reinterpret_cast<void**>(&buffer.data_), bytes, cudaHostAllocDefault);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return ResourceExhausted(what, ": ", bytes, " bytes of pinned memory cannot be had");
  }
  if (error != cudaSuccess) return CudaStatus(error, "cudaHostAlloc", __FILE__, __LINE__);
  buffer.bytes_ = bytes;
  buffer.is_pinned_ = true;
  return buffer;
}

CudaBuffer::~CudaBuffer() {
  if (data_ == nullptr) return;
  if (is_pinned_) {
    cudaFreeHost(data_);
  } else {
    cudaFree(data_);
  }
}

StatusOr<CudaStream> CudaStream::Create() {
  CudaStream stream;
  RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream.stream_, cudaStreamNonBlocking));
  return stream;
}

CudaStream::~CudaStream() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

}  // namespace terrace
