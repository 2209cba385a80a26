// The device side of warpgroup.h: PTX ISA 8.x, sm_90a.
#pragma once

#include <cstddef>
#include <type_traits>

#include "kernels/simt/simt_cuda.h"
#include "kernels/simt/warpgroup_wgmma_cuda.h"

namespace terrace::simt {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
inline constexpr bool kHasWarpgroups = true;
#else
inline constexpr bool kHasWarpgroups = false;
#endif

// "Matrix-descriptor format" of the PTX ISA, with 128-byte swizzling.
TERRACE_DEVICE uint64_t SharedTile(const void* shared, uint32_t stride, uint32_t leading = 16) {
  const uint64_t address = SharedAddress(shared);
  return (address & 0x3ffff) >> 4 | uint64_t{leading >> 4} << 16 | uint64_t{stride >> 4} << 32 |
         uint64_t{1} << 62;
}

template <uint32_t kN>
TERRACE_DEVICE void Wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool adds) {
  WgmmaOfRegisters<kN, false>(d, a, b, adds);
}
template <uint32_t kN>
TERRACE_DEVICE void Wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool adds) {
  WgmmaOfShared<kN, false>(d, a, b, adds);
}
template <uint32_t kN>
TERRACE_DEVICE void WgmmaTransposed(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool adds) {
  WgmmaOfRegisters<kN, true>(d, a, b, adds);
}
template <uint32_t kN>
TERRACE_DEVICE void WgmmaTransposed(float (&d)[kN / 2], uint64_t a, uint64_t b, bool adds) {
  WgmmaOfShared<kN, true>(d, a, b, adds);
}
template <typename T, size_t kCount>
TERRACE_DEVICE void PinRegisters(T (&registers)[kCount]) {
  static_assert(sizeof(T) == 4);
  TERRACE_UNROLL
  for (size_t i = 0; i < kCount; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      asm volatile("" : "+f"(registers[i])::"memory");
    } else {
      asm volatile("" : "+r"(registers[i])::"memory");
    }
  }
}
TERRACE_DEVICE void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
TERRACE_DEVICE void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kGroups>
TERRACE_DEVICE void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

TERRACE_DEVICE void FenceAsyncShared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

TERRACE_DEVICE void BarrierInit(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(count)
               : "memory");
}
TERRACE_DEVICE void BarrierInitDone() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
TERRACE_DEVICE void BarrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
TERRACE_DEVICE void BarrierExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(bytes)
               : "memory");
}
TERRACE_DEVICE void BarrierWait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra over;\nbra "
      "again;\nover:\n}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}
TERRACE_DEVICE void BulkCopy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}
TERRACE_DEVICE void CpAsync4(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(SharedAddress(shared)), "l"(global),
               "r"(valid ? 4 : 0)
               : "memory");
}

TERRACE_DEVICE void SyncSome(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
TERRACE_DEVICE void ArriveSome(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <uint32_t kRegisters>
TERRACE_DEVICE void KeepRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <uint32_t kRegisters>
TERRACE_DEVICE void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace terrace::simt
