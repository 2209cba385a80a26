#include "worker/cuda/cuda_memory.h"

namespace terrace {

std::string CallAt(std::string_view call, std::source_location at) {
  return Concat(at.file_name(), ":", at.line(), ": ", call.substr(0, call.find('(')));
}

Status CudaStatus(cudaError_t error, std::string_view call, std::source_location at) {
  return WithReason(
      Internal(CallAt(call, at), ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")"),
      "device_error");
}

Status CudaMallocStatus(cudaError_t error, size_t bytes, const char* what, std::source_location at) {
  if (error == cudaSuccess) return {};
  if (error != cudaErrorMemoryAllocation) {
    return CudaStatus(error, Concat("cudaMalloc of ", bytes, " bytes for ", what), at);
  }
  size_t free_bytes = 0, total = 0;
  cudaGetLastError();  // forgets it: the device goes on
  cudaMemGetInfo(&free_bytes, &total);
  return WithReason(
      ResourceExhausted(what, ": ", bytes, " bytes needed on the device, ", free_bytes, " free"),
      "device_memory");
}

Status CudaHostAllocStatus(cudaError_t error, size_t bytes, const char* what, std::source_location at) {
  if (error == cudaSuccess) return {};
  if (error != cudaErrorMemoryAllocation) {
    return CudaStatus(error, Concat("cudaHostAlloc of ", bytes, " bytes for ", what), at);
  }
  cudaGetLastError();
  return WithReason(ResourceExhausted(what, ": ", bytes, " bytes of pinned memory cannot be had"),
                    "pinned_memory");
}

StatusOr<CudaBuffer> CudaBuffer::Device(size_t bytes, const char* what, std::source_location at) {
  CudaBuffer buffer;
  if (bytes == 0) return buffer;
  const cudaError_t error = cudaMalloc(reinterpret_cast<void**>(&buffer.data_), bytes);
  RETURN_IF_ERROR(CudaMallocStatus(error, bytes, what, at));
  buffer.bytes_ = bytes;
  return buffer;
}

StatusOr<CudaBuffer> CudaBuffer::Pinned(size_t bytes, const char* what, std::source_location at) {
  CudaBuffer buffer;
  if (bytes == 0) return buffer;
  const cudaError_t error =
      cudaHostAlloc(reinterpret_cast<void**>(&buffer.data_), bytes, cudaHostAllocDefault);
  RETURN_IF_ERROR(CudaHostAllocStatus(error, bytes, what, at));
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
