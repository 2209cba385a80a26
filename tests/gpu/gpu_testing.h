// What the tests and benchmarks on a GPU share: arrays on the device, errors that end the program, timing.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace terrace {

inline void CudaMustImpl(cudaError_t error, const char* call, const char* file, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s:%d: %s: %s (%s)\n", file, line, call, cudaGetErrorString(error),
               cudaGetErrorName(error));
  std::abort();
}
#define CUDA_MUST(call) ::terrace::CudaMustImpl((call), #call, __FILE__, __LINE__)

// Owns device memory. Every byte begins as 0xff: NaN in every float format.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count = 0) : count_(count) {
    if (count_ == 0) return;
    CUDA_MUST(cudaMalloc(reinterpret_cast<void**>(&data_), count_ * sizeof(T)));
    Clear();
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { Set(values); }
  DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~DeviceArray() {
    if (data_ != nullptr) cudaFree(data_);
  }

  T* data() const { return data_; }
  size_t size() const { return count_; }
  // As it was at the beginning, so that what is read behind it has been written.
  void Clear() {
    if (count_ > 0) CUDA_MUST(cudaMemset(data_, 0xff, count_ * sizeof(T)));
  }
  void Set(const std::vector<T>& values) {
    CUDA_MUST(cudaMemcpy(data_, values.data(), std::min(count_, values.size()) * sizeof(T),
                         cudaMemcpyHostToDevice));
  }
  std::vector<T> Get() const {  // waits for the device
    std::vector<T> out(count_);
    if (count_ > 0) CUDA_MUST(cudaMemcpy(out.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return out;
  }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

// Seconds of one call of `work`, which only queues on `stream`: the median of `rounds` timings of `repeats`
// calls each, after one that warms up. `spread`, if given, gets (largest - smallest) / median.
inline double SecondsOf(cudaStream_t stream, int rounds, int repeats, const std::function<void()>& work,
                        double* spread = nullptr) {
  cudaEvent_t begin, end;
  CUDA_MUST(cudaEventCreate(&begin));
  CUDA_MUST(cudaEventCreate(&end));
  work();
  std::vector<double> seconds;
  for (int round = 0; round < rounds; ++round) {
    CUDA_MUST(cudaEventRecord(begin, stream));
    for (int i = 0; i < repeats; ++i) work();
    CUDA_MUST(cudaEventRecord(end, stream));
    CUDA_MUST(cudaEventSynchronize(end));
    float milliseconds = 0;
    CUDA_MUST(cudaEventElapsedTime(&milliseconds, begin, end));
    seconds.push_back(milliseconds / 1e3 / repeats);
  }
  CUDA_MUST(cudaEventDestroy(begin));
  CUDA_MUST(cudaEventDestroy(end));
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  if (spread != nullptr) *spread = (seconds.back() - seconds.front()) / median;
  return median;
}

}  // namespace terrace
