#include "kernels/simt/warpgroup.h"

#include "kernels/launch_cuda.h"
#include "tests/gpu/warpgroup_probe.h"

namespace terrace {
namespace {

constexpr uint32_t kRows = kProbeRows, kN = kProbeColumns, kDepth = kProbeDepth;
constexpr uint32_t kBytesOfA = kRows * 128, kBytesOfB = kN * kDepth * 2,
                   kShared = kBytesOfA + kBytesOfB + 1024;

template <bool kOfRegisters, bool kTransposed>
__global__ void __launch_bounds__(128) WgmmaKernel(const uint16_t* a, const uint16_t* b, float* out) {
  if constexpr (simt::kHasWarpgroups) {
    std::byte* const a_at = simt::DynamicShared();
    std::byte* const b_at = a_at + kBytesOfA;
    auto* const barrier = reinterpret_cast<uint64_t*>(b_at + kBytesOfB);
    const uint32_t thread = threadIdx.x, lane = simt::Lane(), warp = simt::WarpIndex();
    if (thread == 0) {
      simt::BarrierInit(barrier, 1);
      simt::BarrierInitDone();
    }
    for (uint32_t i = thread; i < kRows * kDepth / 8; i += 128) {
      simt::CpAsync16(a_at + simt::SwizzledByte(i / 8, i % 8), a + i * 8, true);
    }
    simt::SyncThreads();
    if constexpr (kTransposed) {
      // 16 bytes at a time, which is not how one would: the copies are what is probed.
      if (thread == 0) simt::BarrierExpect(barrier, kBytesOfB);
      for (uint32_t i = thread; i < kDepth * kN / 8; i += 128) {
        const uint32_t k = i / (kN / 8), chunk = i % (kN / 8);
        simt::BulkCopy(b_at + chunk / 8 * (kDepth * 128) + simt::SwizzledByte(k, chunk % 8), b + i * 8, 16,
                       barrier);
      }
      simt::BarrierWait(barrier, 0);
    } else {
      auto* const pairs = reinterpret_cast<uint32_t*>(b_at);
      for (uint32_t i = thread; i < kN * kDepth / 2; i += 128) {
        const uint32_t column = i / (kDepth / 2), pair = i % (kDepth / 2);
        const uint32_t low = b[2 * pair * kN + column], high = b[(2 * pair + 1) * kN + column];
        pairs[(simt::SwizzledByte(column, pair / 4) + pair % 4 * 4) / 4] = low | high << 16;
      }
    }
    simt::CpAsyncCommit();
    simt::CpAsyncWait<0>();
    simt::FenceAsyncShared();
    simt::SyncThreads();
    float d[kN / 2];
    const auto index = [&](uint32_t i) {
      return (16 * warp + lane / 4 + i % 4 / 2 * 8) * kN + i / 4 * 8 + lane % 4 * 2 + i % 2;
    };
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kN / 2; ++i) d[i] = out[index(i)];
    uint32_t fragments[kDepth / 16][4];
    TERRACE_UNROLL
    for (uint32_t step = 0; step < kDepth / 16; ++step) {
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t row = 16 * warp + lane / 4 + i % 2 * 8, k = 16 * step + lane % 4 * 2 + i / 2 * 8;
        fragments[step][i] = *reinterpret_cast<const uint32_t*>(a + row * kDepth + k);
      }
    }
    const uint64_t a_tile = simt::SharedTile(a_at, 1024);
    const uint64_t b_tile = simt::SharedTile(b_at, 1024, kDepth * 128);
    simt::WgmmaFence();
    TERRACE_UNROLL
    for (uint32_t step = 0; step < kDepth / 16; ++step) {
      const uint64_t from_a = simt::TileAt(a_tile, 32 * step);
      const uint64_t from_b = simt::TileAt(b_tile, kTransposed ? 2048 * step : 32 * step);
      if constexpr (kOfRegisters && kTransposed) simt::WgmmaTransposed<kN>(d, fragments[step], from_b, true);
      if constexpr (kOfRegisters && !kTransposed) simt::Wgmma<kN>(d, fragments[step], from_b, true);
      if constexpr (!kOfRegisters && kTransposed) simt::WgmmaTransposed<kN>(d, from_a, from_b, true);
      if constexpr (!kOfRegisters && !kTransposed) simt::Wgmma<kN>(d, from_a, from_b, true);
    }
    simt::WgmmaCommit();
    simt::WgmmaWait<0>();
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kN / 2; ++i) out[index(i)] = d[i];
  }
}

__global__ void __launch_bounds__(128) MmaKernel(const uint16_t* a, const uint16_t* b, float* out) {
  const uint32_t lane = simt::Lane(), row = 16 * simt::WarpIndex() + lane / 4;
  for (uint32_t column = 0; column < kN; column += 8) {
    float c[4];
    const auto index = [&](uint32_t i) { return (row + i / 2 * 8) * kN + column + lane % 4 * 2 + i % 2; };
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) c[i] = out[index(i)];
    for (uint32_t step = 0; step < kDepth / 16; ++step) {
      uint32_t of_a[4], of_b[2];
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t k = 16 * step + lane % 4 * 2 + i / 2 * 8;
        of_a[i] = *reinterpret_cast<const uint32_t*>(a + (row + i % 2 * 8) * kDepth + k);
      }
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 2; ++i) {
        const uint16_t* from = b + (16 * step + lane % 4 * 2 + i * 8) * kN + column + lane / 4;
        of_b[i] = from[0] | uint32_t{from[kN]} << 16;
      }
      simt::MmaBF16(c, of_a, of_b);
    }
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) out[index(i)] = c[i];
  }
}

template <bool kOfRegisters, bool kTransposed>
cudaError_t Launch(const uint16_t* a, const uint16_t* b, float* out, cudaStream_t stream) {
  constexpr auto kernel = WgmmaKernel<kOfRegisters, kTransposed>;
  return LaunchCuda({.stream = stream}, kernel, dim3(1), 128, kShared, a, b, out);
}

}  // namespace

cudaError_t ProbeWgmma(const uint16_t* a, const uint16_t* b, float* out, bool of_registers, bool transposed,
                       cudaStream_t stream) {
  if (!HasWarpgroups()) return cudaErrorNotSupported;
  if (of_registers) {
    return transposed ? Launch<true, true>(a, b, out, stream) : Launch<true, false>(a, b, out, stream);
  }
  return transposed ? Launch<false, true>(a, b, out, stream) : Launch<false, false>(a, b, out, stream);
}

cudaError_t ProbeMma(const uint16_t* a, const uint16_t* b, float* out, cudaStream_t stream) {
  return LaunchCuda({.stream = stream}, MmaKernel, dim3(1), 128, 0, a, b, out);
}

}  // namespace terrace
