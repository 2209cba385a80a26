// The test side of simt.h. `simt::Run(grid, threads, shared_bytes, kernel, arguments...)` runs the blocks one
// after the other; a block's threads are fibers of the calling thread. What a device leaves open is made as
// bad as it may be, so that a kernel that relies on it fails here:
//   - which thread goes on between barriers changes with Options::seed;
//   - an asynchronous copy happens when it is waited for, no earlier;
//   - shared memory begins as NaNs; it is as large as was asked for, and followed by an unreadable page;
//   - a collective that not all lanes of a warp call, or a barrier that not all threads reach, ends the
//   process
//     and says where the others are.
// One kernel at a time; not thread-safe.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

#define TERRACE_DEVICE inline
#define TERRACE_KERNEL inline
#define TERRACE_SHARED static
#define TERRACE_BOUNDS(threads, blocks)
#define TERRACE_UNROLL
#define TERRACE_NO_UNROLL

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace terrace::simt {

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

// Where the running fiber is.
struct Place {
  Dim3 thread, block, threads, grid;
};
const Place& Here();

struct Options {
  uint64_t seed = 0;  // 0: threads in rising order
};

// Runs body() as every thread of every block.
void RunBody(Dim3 grid, uint32_t threads, size_t shared_bytes, const std::function<void()>& body,
             Options options = {});
template <typename Kernel, typename... Arguments>
void Run(Dim3 grid, uint32_t threads, size_t shared_bytes, Kernel kernel, const Arguments&... arguments) {
  RunBody(grid, threads, shared_bytes, [&] { kernel(arguments...); });
}
template <typename Kernel, typename... Arguments>
void RunSeeded(uint64_t seed, Dim3 grid, uint32_t threads, size_t shared_bytes, Kernel kernel,
               const Arguments&... arguments) {
  RunBody(grid, threads, shared_bytes, [&] { kernel(arguments...); }, {.seed = seed});
}

// Of a warp: when all lanes have come, operation(operands) runs once; operands[i] is what lane i gave.
void Together(const char* what, void* mine, void (*operation)(void* const (&operands)[32]));

void SyncThreads();
void SyncWarp();

template <typename T>
T Shuffle(T v, uint32_t lane) {
  static_assert(sizeof(T) == 4);
  struct Operand {
    T in;
    uint32_t lane;
    T out;
  } mine{v, lane, v};
  Together("Shuffle", &mine, [](void* const(&all)[32]) {
    for (void* one : all) {
      auto& to = *static_cast<Operand*>(one);
      to.out = static_cast<const Operand*>(all[to.lane % 32])->in;
    }
  });
  return mine.out;
}
template <typename T>
T ShuffleXor(T v, uint32_t mask) {
  return Shuffle(v, (Here().thread.x % 32) ^ mask);
}
uint32_t Ballot(bool vote);

void MmaBF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void MmaF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void MmaS8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void MmaSparse(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t places,
               uint32_t selector);
template <uint32_t kSelector>
void MmaSparseBF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t places) {
  static_assert(kSelector < 2);
  MmaSparse(c, a, b, places, kSelector);
}
void LdMatrix4(uint32_t (&r)[4], const void* row);
void LdMatrix4Trans(uint32_t (&r)[4], const void* row);

void CpAsync16(void* shared, const void* global, bool valid);
void CpAsyncCommit();
void CpAsyncWaitFor(int groups);
template <int kGroups>
void CpAsyncWait() {
  CpAsyncWaitFor(kGroups);
}

inline uint4 LoadStream(const uint4* from) { return *from; }
inline uint2 LoadStream(const uint2* from) { return *from; }
inline void PrefetchL2(const void*) {}
template <typename T>
T LoadReadOnly(const T* from) {
  return *from;
}

inline float Exp2(float x) { return std::exp2(x); }
inline float Reciprocal(float x) { return 1 / x; }
inline float ReciprocalSqrt(float x) { return 1 / std::sqrt(x); }

uint32_t PackBF16(float low, float high);
float BF16Low(uint32_t w);
float BF16High(uint32_t w);
uint32_t PackF16(float low, float high);
float F16Low(uint32_t w);
float F16High(uint32_t w);
uint32_t MulBF16x2(uint32_t a, uint32_t b);
uint32_t MulF16x2(uint32_t a, uint32_t b);
uint32_t FmaBF16x2(uint32_t a, uint32_t b, uint32_t c);
uint32_t BytePermute(uint32_t a, uint32_t b, uint32_t selector);
float FloatOfBits(uint32_t bits);
uint32_t BitsOfFloat(float value);

template <typename T>
T AtomicAdd(T* to, T v) {
  return std::exchange(*to, *to + v);
}
inline uint32_t AtomicMax(uint32_t* to, uint32_t v) { return std::exchange(*to, *to > v ? *to : v); }
inline void ThreadFence() {}
inline void WaitForPrevious() {}
inline void LetNextStart() {}

std::byte* DynamicShared();

}  // namespace terrace::simt

#define threadIdx (::terrace::simt::Here().thread)
#define blockIdx (::terrace::simt::Here().block)
#define blockDim (::terrace::simt::Here().threads)
#define gridDim (::terrace::simt::Here().grid)
