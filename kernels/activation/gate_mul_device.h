// Gate(gate) * up. A thread takes tiles: 8 of the gate and the 8 of up, 32 bytes that lie together, make 16
// bytes. To bf16 it knows no rows. To E4M3 it is a block a row: up to kGateMulKept values stay in registers
// until the largest is known; of a wider row they are computed twice.
#pragma once

#include <cstdint>

#include "kernels/activation/gate_function_device.h"
#include "kernels/activation/gate_mul_gpu.h"
#include "kernels/launch_geometry.h"
#include "kernels/quant/e4m3_device.h"
#include "kernels/simt/simt.h"

namespace terrace {

inline constexpr uint32_t kGateMulTile = 8;
inline constexpr uint32_t kGateMulRowThreads = 1024;  // of a block for a row, at most
inline constexpr uint32_t kGateMulKept = 4 * kGateMulTile * kGateMulRowThreads;
inline constexpr uint32_t kGateMulManyTiles = 1u << 20;  // fill a GPU many times over: threads take two

struct GateMulTile {
  float v[kGateMulTile];
};

TERRACE_DEVICE GateMulTile GateMulTileOf(GateFunction function, const uint4& gate, const uint4& up) {
  const auto low = [&](uint32_t g, uint32_t u) {
    return GateMul(function, simt::BF16Low(g), simt::BF16Low(u));
  };
  const auto high = [&](uint32_t g, uint32_t u) {
    return GateMul(function, simt::BF16High(g), simt::BF16High(u));
  };
  return {{low(gate.x, up.x), high(gate.x, up.x), low(gate.y, up.y), high(gate.y, up.y),  //
           low(gate.z, up.z), high(gate.z, up.z), low(gate.w, up.w), high(gate.w, up.w)}};
}
TERRACE_DEVICE uint4 PackTileBF16(const GateMulTile& t) {
  return {simt::PackBF16(t.v[0], t.v[1]), simt::PackBF16(t.v[2], t.v[3]), simt::PackBF16(t.v[4], t.v[5]),
          simt::PackBF16(t.v[6], t.v[7])};
}

// Grid: enough for kTiles of the `tiles` a thread.
template <uint32_t kTiles>
TERRACE_KERNEL void TERRACE_BOUNDS(kElementwiseThreads, 4) GateMulKernel(GpuGateMulArgs a, uint32_t tiles) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  const auto* const in = reinterpret_cast<const uint4*>(a.in);
  auto* const out = reinterpret_cast<uint4*>(a.out);
  const uint32_t first = blockIdx.x * (kTiles * kElementwiseThreads) + threadIdx.x;
  uint4 gate[kTiles], up[kTiles];
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kTiles; ++i) {
    const uint32_t tile = first + i * kElementwiseThreads;
    gate[i] = up[i] = {};
    if (tile < tiles) {
      gate[i] = in[uint64_t{tile} * 2];
      up[i] = in[uint64_t{tile} * 2 + 1];
    }
  }
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kTiles; ++i) {
    const uint32_t tile = first + i * kElementwiseThreads;
    if (tile < tiles) out[tile] = PackTileBF16(GateMulTileOf(a.gate, gate[i], up[i]));
  }
}

TERRACE_DEVICE uint32_t LargestOfTile(const GateMulTile& t, uint32_t largest) {
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kGateMulTile; ++i) largest = Larger(largest, Magnitude(t.v[i]));
  return largest;
}

// Of the block; every thread gets it. Called once a kernel.
TERRACE_DEVICE uint32_t LargestOfBlock(uint32_t mine) {
  TERRACE_SHARED uint32_t of_warps[simt::kWarp];
  const auto of_warp = [](uint32_t largest) {
    for (uint32_t mask = simt::kWarp / 2; mask > 0; mask /= 2) {
      largest = Larger(largest, simt::ShuffleXor(largest, mask));
    }
    return largest;
  };
  mine = of_warp(mine);
  if (simt::Lane() == 0) of_warps[simt::WarpIndex()] = mine;
  simt::SyncThreads();
  return of_warp(simt::Lane() < blockDim.x / simt::kWarp ? of_warps[simt::Lane()] : 0);
}

TERRACE_DEVICE void PutTile(const GpuGateMulArgs& a, uint32_t tile, const GateMulTile& t, float inverse) {
  const uint64_t first = uint64_t{blockIdx.x} * a.width;
  if (a.out != nullptr) reinterpret_cast<uint4*>(a.out + first)[tile] = PackTileBF16(t);
  reinterpret_cast<uint2*>(a.out_e4m3 + first)[tile] = {
      PackE4M3(t.v[0] * inverse, t.v[1] * inverse, t.v[2] * inverse, t.v[3] * inverse),
      PackE4M3(t.v[4] * inverse, t.v[5] * inverse, t.v[6] * inverse, t.v[7] * inverse)};
}

TERRACE_DEVICE float InverseOfRow(const GpuGateMulArgs& a, uint32_t largest) {
  const CodeRow row = E4M3RowOf(LargestOfBlock(largest));
  if (threadIdx.x == 0) a.scales[blockIdx.x] = row.scale;
  return row.inverse;
}

// Grid: [tokens]; up to kTiles * threads tiles a row.
template <uint32_t kTiles>
TERRACE_KERNEL void TERRACE_BOUNDS(kGateMulRowThreads, 1) GateMulE4M3Kernel(GpuGateMulArgs a) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  const uint32_t tiles = a.width / kGateMulTile;
  const auto* const in = reinterpret_cast<const uint4*>(a.in) + uint64_t{blockIdx.x} * tiles * 2;
  uint4 gate[kTiles], up[kTiles];
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kTiles; ++i) {
    const uint32_t tile = i * blockDim.x + threadIdx.x;
    gate[i] = up[i] = {};
    if (tile < tiles) {
      gate[i] = in[2 * tile];
      up[i] = in[2 * tile + 1];
    }
  }
  GateMulTile values[kTiles];
  uint32_t largest = 0;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kTiles; ++i) {
    values[i] = GateMulTileOf(a.gate, gate[i], up[i]);
    largest = LargestOfTile(values[i], largest);
  }
  const float inverse = InverseOfRow(a, largest);
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kTiles; ++i) {
    const uint32_t tile = i * blockDim.x + threadIdx.x;
    if (tile < tiles) PutTile(a, tile, values[i], inverse);
  }
}

// Grid: [tokens]; rows of any width.
TERRACE_KERNEL void TERRACE_BOUNDS(kGateMulRowThreads, 2) GateMulWideE4M3Kernel(GpuGateMulArgs a) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  const uint32_t tiles = a.width / kGateMulTile;
  const auto* const in = reinterpret_cast<const uint4*>(a.in) + uint64_t{blockIdx.x} * tiles * 2;
  uint32_t largest = 0;
  for (uint32_t tile = threadIdx.x; tile < tiles; tile += blockDim.x) {
    largest = LargestOfTile(GateMulTileOf(a.gate, in[2 * tile], in[2 * tile + 1]), largest);
  }
  const float inverse = InverseOfRow(a, largest);
  for (uint32_t tile = threadIdx.x; tile < tiles; tile += blockDim.x) {
    PutTile(a, tile, GateMulTileOf(a.gate, in[2 * tile], in[2 * tile + 1]), inverse);
  }
}

// Of the host: calls launch(blocks, threads of a block, kernel, the kernel's arguments...) for `args`, which
// has tokens and fewer than 2^31 tiles.
template <typename Launch>
auto LaunchGateMul(const GpuGateMulArgs& args, const Launch& launch) {
  const uint32_t tiles = args.width / kGateMulTile;
  if (args.out_e4m3 == nullptr) {
    const uint32_t all = args.tokens * tiles;
    if (all < kGateMulManyTiles) {
      const LaunchGeometry one = ElementwiseGeometry(all);
      return launch(one.blocks, one.threads, GateMulKernel<1>, args, all);
    }
    const LaunchGeometry two = ElementwiseGeometry((all + 1) / 2);
    return launch(two.blocks, two.threads, GateMulKernel<2>, args, all);
  }
  const auto threads = [tiles](uint32_t per_thread) {  // whole warps
    return (tiles + per_thread * simt::kWarp - 1) / (per_thread * simt::kWarp) * simt::kWarp;
  };
  if (tiles <= kGateMulRowThreads / 2) return launch(args.tokens, threads(1), GateMulE4M3Kernel<1>, args);
  if (tiles <= kGateMulRowThreads) return launch(args.tokens, threads(2), GateMulE4M3Kernel<2>, args);
  if (args.width <= kGateMulKept) return launch(args.tokens, threads(4), GateMulE4M3Kernel<4>, args);
  return launch(args.tokens, kGateMulRowThreads, GateMulWideE4M3Kernel, args);
}

}  // namespace terrace
