// The device side of simt.h: PTX ISA 8.x, sm_80 and later.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#define TERRACE_DEVICE __device__ __forceinline__
#define TERRACE_KERNEL __global__
#define TERRACE_SHARED __shared__
#define TERRACE_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define TERRACE_UNROLL _Pragma("unroll")
#define TERRACE_NO_UNROLL _Pragma("unroll 1")

namespace terrace::simt {

inline constexpr uint32_t kAllLanes = 0xffffffff;

TERRACE_DEVICE void SyncThreads() { __syncthreads(); }
TERRACE_DEVICE void SyncWarp() { __syncwarp(); }

template <typename T>
TERRACE_DEVICE T Shuffle(T v, uint32_t lane) {
  return __shfl_sync(kAllLanes, v, static_cast<int>(lane));
}
template <typename T>
TERRACE_DEVICE T ShuffleXor(T v, uint32_t mask) {
  return __shfl_xor_sync(kAllLanes, v, static_cast<int>(mask));
}
TERRACE_DEVICE uint32_t Ballot(bool vote) { return __ballot_sync(kAllLanes, vote); }

TERRACE_DEVICE void MmaBF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
TERRACE_DEVICE void MmaF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

TERRACE_DEVICE void MmaS8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <uint32_t kSelector>
TERRACE_DEVICE void MmaSparseBF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                  uint32_t places) {
  static_assert(kSelector < 2);
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
      "{%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(places),
        "n"(kSelector));
}

TERRACE_DEVICE uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
TERRACE_DEVICE void LdMatrix4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
TERRACE_DEVICE void LdMatrix4Trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}

TERRACE_DEVICE void CpAsync16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
TERRACE_DEVICE void CpAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroups>
TERRACE_DEVICE void CpAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Not ld.global.nc: ptxas moves those to behind griddepcontrol.wait, so that nothing would be read ahead.
TERRACE_DEVICE uint4 LoadStream(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
TERRACE_DEVICE uint2 LoadStream(const uint2* from) {
  uint2 v;
  asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
  return v;
}
TERRACE_DEVICE void PrefetchL2(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
template <typename T>
TERRACE_DEVICE T LoadReadOnly(const T* from) {
  return __ldg(from);
}

TERRACE_DEVICE float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
TERRACE_DEVICE float Reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
TERRACE_DEVICE float ReciprocalSqrt(float x) { return rsqrtf(x); }

TERRACE_DEVICE uint32_t PackBF16(float low, float high) {
  uint32_t w;  // cvt puts its first operand into the upper half
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
  return w;
}
TERRACE_DEVICE float BF16Low(uint32_t w) { return __uint_as_float(w << 16); }
TERRACE_DEVICE float BF16High(uint32_t w) { return __uint_as_float(w & 0xffff0000u); }
TERRACE_DEVICE uint32_t PackF16(float low, float high) {
  uint32_t w;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
  return w;
}
TERRACE_DEVICE float F16Low(uint32_t w) { return __half2float(__ushort_as_half(static_cast<uint16_t>(w))); }
TERRACE_DEVICE float F16High(uint32_t w) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(w >> 16)));
}
TERRACE_DEVICE uint32_t MulBF16x2(uint32_t a, uint32_t b) {
  uint32_t w;  // -0: a product keeps its sign
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(w) : "r"(a), "r"(b), "r"(0x80008000u));
  return w;
}
TERRACE_DEVICE uint32_t MulF16x2(uint32_t a, uint32_t b) {
  uint32_t w;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(w) : "r"(a), "r"(b));
  return w;
}
TERRACE_DEVICE uint32_t FmaBF16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t w;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(w) : "r"(a), "r"(b), "r"(c));
  return w;
}
TERRACE_DEVICE uint32_t BytePermute(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
TERRACE_DEVICE float FloatOfBits(uint32_t bits) { return __uint_as_float(bits); }
TERRACE_DEVICE uint32_t BitsOfFloat(float value) { return __float_as_uint(value); }

TERRACE_DEVICE uint32_t AtomicAdd(uint32_t* to, uint32_t v) { return atomicAdd(to, v); }
TERRACE_DEVICE unsigned long long AtomicAdd(unsigned long long* to, unsigned long long v) {
  return atomicAdd(to, v);
}
TERRACE_DEVICE uint32_t AtomicMax(uint32_t* to, uint32_t v) { return atomicMax(to, v); }
TERRACE_DEVICE void ThreadFence() { __threadfence(); }

TERRACE_DEVICE void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
TERRACE_DEVICE void LetNextStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

TERRACE_DEVICE std::byte* DynamicShared() {
  extern __shared__ __align__(1024) unsigned char terrace_dynamic_shared[];
  return reinterpret_cast<std::byte*>(terrace_dynamic_shared);
}

}  // namespace terrace::simt
