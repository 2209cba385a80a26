// What device code is written against: threads of a block, warps of 32, shared memory, tensor cores,
// asynchronous copies. nvcc compiles it for a GPU (simt_cuda.h); any C++ compiler compiles it for tests,
// where simt_emulated.h runs every thread of a block as a fiber and does what the instruction would
// (`simt::Run`), so that index maps, barriers and bounds of a kernel are tested without a device.
//
// Device code lives in `*_device.h`: functions marked TERRACE_DEVICE, and kernels marked TERRACE_KERNEL whose
// bodies are whole. It uses threadIdx, blockIdx, blockDim and gridDim as CUDA does, `TERRACE_SHARED T
// name[n];` for shared memory of fixed size, simt::DynamicShared() for the rest, and nothing of <cuda*.h>.
// Blocks have whole warps; whole warps (never part of one) call what is said to be of a warp.
//
// Both sides offer, in namespace terrace::simt:
//   SyncThreads(), SyncWarp()                      barriers of a block, of a warp
//   Shuffle(v, lane), ShuffleXor(v, mask)          of a warp; v is float, int32_t or uint32_t
//   Ballot(bool)                                   of a warp: bit i is lane i's
//   MmaBF16(c, a, b), MmaF16(c, a, b)              of a warp: c[16,8] += a[16,16] * b[16,8], f32 sums
//   MmaS8(c, a, b)                                 of a warp: c[16,8] += a[16,32] * b[32,8], int8, int32 sums
//   MmaSparseBF16<s>(c, a, b, places)              of a warp: c[16,8] += a[16,32] * b[32,8], of each four
//                                                  neighbours of a row of a two are kept; s is 0 or 1
//   LdMatrix4(r, row), LdMatrix4Trans(r, row)      of a warp: four 8x8 matrices of 16-bit elements
//   CpAsync16(shared, global, valid)               16 bytes, zeros unless valid; CpAsyncCommit();
//   CpAsyncWait<n>()                               ... until at most n committed groups are under way
//   PrefetchL2(global)                             asks for 128 bytes in L2
//   LoadStream(const uint4*), LoadStream(const uint2*)   global memory that is read once by one thread
//   LoadReadOnly(const T*)                         global memory no one writes while the kernel runs
//   Exp2(x), Reciprocal(x), ReciprocalSqrt(x)      to about 2 ulp on a device
//   PackBF16(low, high), BF16Low(w), BF16High(w), PackF16, F16Low, F16High   pairs in 32 bits
//   MulBF16x2(a, b), MulF16x2(a, b), FmaBF16x2(a, b, c)   of pairs, rounded once
//   BytePermute(a, b, selector)                    prmt
//   AtomicAdd(uint32_t*, v), AtomicAdd(unsigned long long*, v), AtomicMax(uint32_t*, v)   old value
//   ThreadFence()                                  of the device
//   WaitForPrevious()    the kernel before this one on the stream is done, its writes are seen
//   LetNextStart()       the kernel behind this one may start (it waits as above)
//
// Layout of the operands of mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"), g = lane / 4,
// t = lane % 4, pairs in rising order of the fast index, low half first:
//   a[0]: row g,     k 2t, 2t+1      a[1]: row g + 8, k 2t, 2t+1
//   a[2]: row g,     k 2t+8, 2t+9    a[3]: row g + 8, k 2t+8, 2t+9
//   b[0]: k 2t, 2t+1, column g       b[1]: k 2t+8, 2t+9, column g
//   c[0], c[1]: row g, columns 2t, 2t+1      c[2], c[3]: row g + 8, columns 2t, 2t+1
// Of mma.m16n8k32 of int8, c as above, four elements to a word, k 4t to 4t+3 or 4t+16 to 4t+19:
//   a[0]: row g, k 4t     a[1]: row g + 8, k 4t     a[2]: row g, k 4t+16     a[3]: row g + 8, k 4t+16
//   b[0]: k 4t, column g     b[1]: k 4t+16, column g
// Of mma.sp.m16n8k32 ("Matrix fragments for sparse mma.m16n8k32"), c as above, j a group of k 4j to 4j+3:
//   a[0]: what is kept of row g, j = t       a[1]: of row g + 8, j = t
//   a[2]: of row g, j = t + 4                a[3]: of row g + 8, j = t + 4
//   b[i]: k 8i+2t, 8i+2t+1, column g
//   places of lane 4 g + 2 s + h: of rows g (lower 16 bits) and g + 8, four bits for each j = 4h to 4h+3:
//   where the two were in their four, two bits each, the first one lower. Other lanes' are not looked at.
#pragma once

#ifdef __CUDACC__
#include "kernels/simt/simt_cuda.h"
#else
#include "kernels/simt/simt_emulated.h"
#endif

namespace terrace::simt {

inline constexpr uint32_t kWarp = 32;

TERRACE_DEVICE uint32_t Lane() { return threadIdx.x % kWarp; }
TERRACE_DEVICE uint32_t WarpIndex() { return threadIdx.x / kWarp; }

// Of a warp: every lane gets the result, which is the same whatever the lane.
TERRACE_DEVICE float WarpSum(float v) {
  for (uint32_t mask = kWarp / 2; mask > 0; mask /= 2) v += ShuffleXor(v, mask);
  return v;
}
TERRACE_DEVICE float WarpMax(float v) {
  for (uint32_t mask = kWarp / 2; mask > 0; mask /= 2) {
    const float other = ShuffleXor(v, mask);
    v = v > other ? v : other;
  }
  return v;
}

}  // namespace terrace::simt
