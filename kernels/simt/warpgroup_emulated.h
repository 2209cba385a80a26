// The test side of warpgroup.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/simt/simt_emulated.h"

namespace terrace::simt {

inline constexpr bool kHasWarpgroups = true;

uint64_t SharedTile(const void* shared, uint32_t stride, uint32_t leading = 16);

// One product: `a` is fragments of the calling thread, or null and `a_tile` counts.
struct WgmmaOperands {
  float* d;
  uint32_t n;
  const uint32_t* a;
  uint64_t a_tile, b_tile;
  bool adds, transposes;
};
void BeginWgmma(const WgmmaOperands& operands);
void WgmmaWaitFor(int groups);

template <uint32_t kN>
void Wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool adds) {
  BeginWgmma({.d = d, .n = kN, .a = a, .a_tile = 0, .b_tile = b, .adds = adds, .transposes = false});
}
template <uint32_t kN>
void Wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool adds) {
  BeginWgmma({.d = d, .n = kN, .a = nullptr, .a_tile = a, .b_tile = b, .adds = adds, .transposes = false});
}
template <uint32_t kN>
void WgmmaTransposed(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool adds) {
  BeginWgmma({.d = d, .n = kN, .a = a, .a_tile = 0, .b_tile = b, .adds = adds, .transposes = true});
}
template <uint32_t kN>
void WgmmaTransposed(float (&d)[kN / 2], uint64_t a, uint64_t b, bool adds) {
  BeginWgmma({.d = d, .n = kN, .a = nullptr, .a_tile = a, .b_tile = b, .adds = adds, .transposes = true});
}
template <typename T, size_t kCount>
void PinRegisters(T (&)[kCount]) {}
inline void WgmmaFence() {}
void WgmmaCommit();
template <int kGroups>
void WgmmaWait() {
  WgmmaWaitFor(kGroups);
}

inline void FenceAsyncShared() {}

void BarrierInit(uint64_t* barrier, uint32_t count);
inline void BarrierInitDone() {}
void BarrierArrive(uint64_t* barrier);
void BarrierExpect(uint64_t* barrier, uint32_t bytes);
void BarrierWait(uint64_t* barrier, uint32_t parity);
void BulkCopy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier);
void CpAsync4(void* shared, const void* global, bool valid);

void SyncSome(uint32_t id, uint32_t threads);
void ArriveSome(uint32_t id, uint32_t threads);

template <uint32_t kRegisters>
void KeepRegisters() {}
template <uint32_t kRegisters>
void TakeRegisters() {}

}  // namespace terrace::simt
