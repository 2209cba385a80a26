// Large arrays on a GPU, for benchmarks: filled with random values, read once, searched for what is not
// finite. All pointers are device memory, 16-byte aligned; all calls only queue.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace terrace {

// Normal values around `mean`.
struct NormalFill {
  float mean = 0, deviation = 1;
  uint64_t seed = 1;
};
cudaError_t FillBF16(uint16_t* out, uint64_t count, const NormalFill& fill, cudaStream_t stream);
cudaError_t FillF32(float* out, uint64_t count, const NormalFill& fill, cudaStream_t stream);
// Random bytes & mask; without one each n of int8 KV rows is as likely as any. `bytes` is a multiple of 16.
cudaError_t FillBytes(void* out, uint64_t bytes, uint64_t seed, cudaStream_t stream, uint8_t mask = 0xff);

inline constexpr uint32_t kReadSums = 1056;
// Reads [from, from + bytes), a multiple of 16, and writes sums[kReadSums], so that no read can be left out.
cudaError_t ReadAll(const void* from, uint64_t bytes, uint32_t* sums, cudaStream_t stream);

// Adds to *found how many of the values are infinite or NaN.
cudaError_t CountNotFiniteBF16(const uint16_t* values, uint64_t count, unsigned long long* found,
                               cudaStream_t stream);
cudaError_t CountNotFiniteF32(const float* values, uint64_t count, unsigned long long* found,
                              cudaStream_t stream);

}  // namespace terrace
