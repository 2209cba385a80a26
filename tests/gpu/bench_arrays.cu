#include <cuda_bf16.h>

#include "tests/gpu/bench_arrays.h"

namespace terrace {
namespace {

constexpr uint32_t kThreads = 256;

__device__ uint64_t Mix(uint64_t v) {  // splitmix64 (Steele, Lea and Flood, 2014)
  v += 0x9e3779b97f4a7c15;
  v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9;
  v = (v ^ (v >> 27)) * 0x94d049bb133111eb;
  return v ^ (v >> 31);
}

// Box and Muller, 1958.
__device__ float Normal(const NormalFill& fill, uint64_t i) {
  const uint64_t bits = Mix(fill.seed * 0x632be59bd9b4e019 + i);
  const float u = (static_cast<float>(bits >> 40) + 0.5f) * 0x1p-24f;
  const float v = static_cast<float>(bits & 0xffffff) * 0x1p-24f;
  return fill.mean + fill.deviation * sqrtf(-2 * logf(u)) * cospif(2 * v);
}

__device__ uint64_t FirstIndex() { return uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ uint64_t Stride() { return uint64_t{gridDim.x} * blockDim.x; }

__global__ void FillBF16Kernel(uint16_t* out, uint64_t count, NormalFill fill) {
  for (uint64_t i = FirstIndex(); i < count; i += Stride()) {
    out[i] = __bfloat16_as_ushort(__float2bfloat16_rn(Normal(fill, i)));
  }
}

__global__ void FillF32Kernel(float* out, uint64_t count, NormalFill fill) {
  for (uint64_t i = FirstIndex(); i < count; i += Stride()) out[i] = Normal(fill, i);
}

__global__ void FillBytesKernel(ulonglong2* out, uint64_t count, uint64_t seed, uint64_t mask) {
  for (uint64_t i = FirstIndex(); i < count; i += Stride()) {
    out[i] = make_ulonglong2(Mix(seed * 0x632be59bd9b4e019 + 2 * i) & mask,
                             Mix(seed * 0x632be59bd9b4e019 + 2 * i + 1) & mask);
  }
}

// Eight loads of 16 bytes of each thread in flight.
__global__ void __launch_bounds__(kThreads) ReadKernel(const uint4* from, uint64_t count, uint32_t* sums) {
  constexpr int kTogether = 8;
  uint32_t sum = 0;
  const uint64_t stride = Stride();
  uint64_t i = FirstIndex();
  for (; i + (kTogether - 1) * stride < count; i += kTogether * stride) {
    uint4 v[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) v[j] = __ldcs(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < kTogether; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < count; i += stride) {
    const uint4 v = __ldcs(from + i);
    sum += v.x ^ v.y ^ v.z ^ v.w;
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffff, sum, lanes);
  __shared__ uint32_t of_warps[kThreads / 32];
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0;
  for (const uint32_t of_warp : of_warps) sum += of_warp;
  sums[blockIdx.x] = sum;
}

template <typename T>
__global__ void CountNotFiniteKernel(const T* values, uint64_t count, T exponent, unsigned long long* found) {
  unsigned long long mine = 0;
  for (uint64_t i = FirstIndex(); i < count; i += Stride()) mine += (values[i] & exponent) == exponent;
  if (mine > 0) atomicAdd(found, mine);
}

uint32_t BlocksOf(uint64_t count) {
  constexpr uint64_t kMost = 8192;
  const uint64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<uint32_t>(blocks < kMost ? blocks : kMost);
}

}  // namespace

cudaError_t FillBF16(uint16_t* out, uint64_t count, const NormalFill& fill, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  FillBF16Kernel<<<BlocksOf(count), kThreads, 0, stream>>>(out, count, fill);
  return cudaGetLastError();
}

cudaError_t FillF32(float* out, uint64_t count, const NormalFill& fill, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  FillF32Kernel<<<BlocksOf(count), kThreads, 0, stream>>>(out, count, fill);
  return cudaGetLastError();
}

cudaError_t FillBytes(void* out, uint64_t bytes, uint64_t seed, cudaStream_t stream, uint8_t mask) {
  if (bytes == 0) return cudaSuccess;
  FillBytesKernel<<<BlocksOf(bytes / 16), kThreads, 0, stream>>>(static_cast<ulonglong2*>(out), bytes / 16,
                                                                 seed, uint64_t{mask} * 0x0101010101010101);
  return cudaGetLastError();
}

cudaError_t ReadAll(const void* from, uint64_t bytes, uint32_t* sums, cudaStream_t stream) {
  ReadKernel<<<kReadSums, kThreads, 0, stream>>>(static_cast<const uint4*>(from), bytes / 16, sums);
  return cudaGetLastError();
}

cudaError_t CountNotFiniteBF16(const uint16_t* values, uint64_t count, unsigned long long* found,
                               cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  CountNotFiniteKernel<uint16_t><<<BlocksOf(count), kThreads, 0, stream>>>(values, count, 0x7f80, found);
  return cudaGetLastError();
}

cudaError_t CountNotFiniteF32(const float* values, uint64_t count, unsigned long long* found,
                              cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  CountNotFiniteKernel<uint32_t><<<BlocksOf(count), kThreads, 0, stream>>>(
      reinterpret_cast<const uint32_t*>(values), count, 0x7f800000, found);
  return cudaGetLastError();
}

}  // namespace terrace
