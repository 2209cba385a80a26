// Owners of what the CUDA runtime hands out, and its errors as Status.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.h"

namespace terrace {

// "worker/cuda/x.cc:12: cudaMalloc": of the expression `call` what stands before its arguments.
std::string CallAt(std::string_view call, std::source_location at = std::source_location::current());

// INTERNAL, reason device_error: "worker/cuda/x.cc:12: cudaMalloc: out of memory
// (cudaErrorMemoryAllocation)", with what CallAt says of `call`.
Status CudaStatus(cudaError_t error, std::string_view call,
                  std::source_location at = std::source_location::current());

#define RETURN_IF_CUDA_ERROR(call)                                                            \
  do {                                                                                        \
    const cudaError_t cuda_error_here = (call);                                               \
    if (cuda_error_here != cudaSuccess) return ::terrace::CudaStatus(cuda_error_here, #call); \
  } while (false)

// What `error` of cudaMalloc says of `bytes` for `what`. OK of cudaSuccess; where there is no room
// RESOURCE_EXHAUSTED, reason device_memory, with the size and what is free, and the device goes on; else
// CudaStatus.
Status CudaMallocStatus(cudaError_t error, size_t bytes, const char* what,
                        std::source_location at = std::source_location::current());
// The same of cudaHostAlloc; the reason is pinned_memory, and what is free is not known.
Status CudaHostAllocStatus(cudaError_t error, size_t bytes, const char* what,
                           std::source_location at = std::source_location::current());

// Device memory, or pinned memory of the host.
class CudaBuffer {
 public:
  CudaBuffer() = default;
  // Errors of CudaMallocStatus and CudaHostAllocStatus, with the caller's file and line.
  static StatusOr<CudaBuffer> Device(size_t bytes, const char* what,
                                     std::source_location at = std::source_location::current());
  static StatusOr<CudaBuffer> Pinned(size_t bytes, const char* what,
                                     std::source_location at = std::source_location::current());
  ~CudaBuffer();
  CudaBuffer(CudaBuffer&& other) noexcept { *this = std::move(other); }
  CudaBuffer& operator=(CudaBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(is_pinned_, other.is_pinned_);
    return *this;
  }

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as(size_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(data_ + offset_bytes);
  }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  bool is_pinned_ = false;
};

class CudaStream {
 public:
  static StatusOr<CudaStream> Create();
  CudaStream() = default;
  ~CudaStream();
  CudaStream(CudaStream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  CudaStream& operator=(CudaStream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace terrace
