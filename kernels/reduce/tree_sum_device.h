// A thread takes four elements of all parts at a time, where every part and the sum are aligned for it, else
// one. It reads an element of all parts before it writes the sum, so that the sum may take a part's place.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/launch_geometry.h"
#include "kernels/reduce/tree_sum_gpu.h"
#include "kernels/simt/simt.h"

namespace terrace {

struct F32Parts {
  static constexpr uintptr_t kQuadBytes = 16;
  TERRACE_DEVICE static float4 LoadQuad(const void* from, size_t quad) {
    return static_cast<const float4*>(from)[quad];
  }
  TERRACE_DEVICE static void StoreQuad(void* to, size_t quad, const float4& v) {
    static_cast<float4*>(to)[quad] = v;
  }
  TERRACE_DEVICE static float Load(const void* from, size_t i) { return static_cast<const float*>(from)[i]; }
  TERRACE_DEVICE static void Store(void* to, size_t i, float v) { static_cast<float*>(to)[i] = v; }
};

struct BF16Parts {
  static constexpr uintptr_t kQuadBytes = 8;
  TERRACE_DEVICE static float4 LoadQuad(const void* from, size_t quad) {
    const uint2 w = static_cast<const uint2*>(from)[quad];
    return {simt::BF16Low(w.x), simt::BF16High(w.x), simt::BF16Low(w.y), simt::BF16High(w.y)};
  }
  TERRACE_DEVICE static void StoreQuad(void* to, size_t quad, const float4& v) {
    static_cast<uint2*>(to)[quad] = {simt::PackBF16(v.x, v.y), simt::PackBF16(v.z, v.w)};
  }
  TERRACE_DEVICE static float Load(const void* from, size_t i) {
    return simt::BF16Low(static_cast<const uint16_t*>(from)[i]);
  }
  TERRACE_DEVICE static void Store(void* to, size_t i, float v) {
    static_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(simt::PackBF16(v, 0));
  }
};

struct F16Parts {
  static constexpr uintptr_t kQuadBytes = 8;
  TERRACE_DEVICE static float4 LoadQuad(const void* from, size_t quad) {
    const uint2 w = static_cast<const uint2*>(from)[quad];
    return {simt::F16Low(w.x), simt::F16High(w.x), simt::F16Low(w.y), simt::F16High(w.y)};
  }
  TERRACE_DEVICE static void StoreQuad(void* to, size_t quad, const float4& v) {
    static_cast<uint2*>(to)[quad] = {simt::PackF16(v.x, v.y), simt::PackF16(v.z, v.w)};
  }
  TERRACE_DEVICE static float Load(const void* from, size_t i) {
    return simt::F16Low(static_cast<const uint16_t*>(from)[i]);
  }
  TERRACE_DEVICE static void Store(void* to, size_t i, float v) {
    static_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(simt::PackF16(v, 0));
  }
};

TERRACE_DEVICE void AddTo(float& left, float right) { left += right; }
TERRACE_DEVICE void AddTo(float4& left, const float4& right) {
  left.x += right.x;
  left.y += right.y;
  left.z += right.z;
  left.w += right.w;
}

// The tree over v[0, parts), in v[0]. What is behind takes no part.
template <uint32_t kMost, typename T>
TERRACE_DEVICE void AddParts(T (&v)[kMost], uint32_t parts) {
  TERRACE_UNROLL
  for (uint32_t distance = 1; distance < kMost; distance *= 2) {
    TERRACE_UNROLL
    for (uint32_t left = 0; left + distance < kMost; left += 2 * distance) {
      if (left + distance < parts) AddTo(v[left], v[left + distance]);
    }
  }
}

template <uint32_t kMost>
TERRACE_DEVICE bool AreAligned(const GpuTreeSumArgs& a, uintptr_t bytes) {
  auto all = reinterpret_cast<uintptr_t>(a.out);
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kMost; ++i) {
    if (i < a.part_count) all |= reinterpret_cast<uintptr_t>(a.parts[i]);
  }
  return all % bytes == 0;
}

// Up to kMost parts. Grid: any; its threads stride by all of it.
template <typename Parts, uint32_t kMost>
TERRACE_KERNEL void TERRACE_BOUNDS(kElementwiseThreads, 2) TreeSumKernel(GpuTreeSumArgs a) {
  simt::LetNextStart();
  simt::WaitForPrevious();
  const size_t quads = AreAligned<kMost>(a, Parts::kQuadBytes) ? a.count / 4 : 0;
  const size_t step = size_t{gridDim.x} * kElementwiseThreads;
  const size_t first = size_t{blockIdx.x} * kElementwiseThreads + threadIdx.x;
  for (size_t quad = first; quad < quads; quad += step) {
    float4 v[kMost] = {};
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kMost; ++i) {
      if (i < a.part_count) v[i] = Parts::LoadQuad(a.parts[i], quad);
    }
    AddParts(v, a.part_count);
    Parts::StoreQuad(a.out, quad, v[0]);
  }
  for (size_t at = 4 * quads + first; at < a.count; at += step) {
    float v[kMost] = {};
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kMost; ++i) {
      if (i < a.part_count) v[i] = Parts::Load(a.parts[i], at);
    }
    AddParts(v, a.part_count);
    Parts::Store(a.out, at, v[0]);
  }
}

// Of the host: calls launch(blocks, threads of a block, kernel, args) for `args` of 1 to kMaxTreeParts parts,
// at least one element and a dtype of the contract.
template <typename Parts, typename Launch>
auto LaunchTreeSumOf(const GpuTreeSumArgs& args, const Launch& launch) {
  const LaunchGeometry grid = ElementwiseGeometry(args.count / 4 + (args.count % 4 != 0));
  if (args.part_count <= 2) return launch(grid.blocks, grid.threads, TreeSumKernel<Parts, 2>, args);
  if (args.part_count <= 4) return launch(grid.blocks, grid.threads, TreeSumKernel<Parts, 4>, args);
  if (args.part_count <= 8) return launch(grid.blocks, grid.threads, TreeSumKernel<Parts, 8>, args);
  return launch(grid.blocks, grid.threads, TreeSumKernel<Parts, kMaxTreeParts>, args);
}
template <typename Launch>
auto LaunchTreeSum(const GpuTreeSumArgs& args, const Launch& launch) {
  if (args.dtype == DType::kBF16) return LaunchTreeSumOf<BF16Parts>(args, launch);
  if (args.dtype == DType::kF16) return LaunchTreeSumOf<F16Parts>(args, launch);
  return LaunchTreeSumOf<F32Parts>(args, launch);
}

}  // namespace terrace
