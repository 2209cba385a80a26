// A pool in the memory of the host, and what a copy of it does, byte by byte: for tests on the emulator and
// on a GPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/copy/kv_copy_gpu.h"

namespace terrace {

// The parts of two int8 layers: rows of head_dim bytes, and of 4, their scales.
struct KvCopyPool {
  KvCopyPool(uint32_t pool_blocks, uint32_t heads, uint32_t block_tokens, uint32_t head_dim)
      : kv_heads(heads), blocks(pool_blocks) {
    std::mt19937_64 random(block_tokens + head_dim);
    for (int i = 0; i < 8; ++i) {
      GpuKvPart part;
      part.row_bytes = i % 2 == 0 ? head_dim : 4;
      part.bytes = part.row_bytes * block_tokens;
      part.staged_at = staging_bytes;
      staging_bytes += uint64_t{kv_heads} * part.bytes;
      parts.push_back(part);
      memory.emplace_back(uint64_t{kv_heads} * blocks * part.bytes / 4);
      for (uint32_t& word : memory.back()) word = static_cast<uint32_t>(random());
    }
  }

  // args.parts is not read; staging is memory of the host.
  void Copy(const GpuKvCopyArgs& args) {
    for (size_t i = 0; i < parts.size(); ++i) {
      const GpuKvPart& part = parts[i];
      for (uint32_t head = 0; head < kv_heads; ++head) {
        auto* pool = reinterpret_cast<std::byte*>(memory[i].data()) + uint64_t{head} * blocks * part.bytes;
        std::byte *from = pool + uint64_t{args.from} * part.bytes,
                  *to = pool + uint64_t{args.to} * part.bytes;
        if (args.staging != nullptr) {
          (args.to_pool ? from : to) =
              static_cast<std::byte*>(args.staging) + part.staged_at + uint64_t{head} * part.bytes;
        }
        std::memmove(to, from, size_t{args.rows} * part.row_bytes);
      }
    }
  }

  uint32_t kv_heads, blocks;
  std::vector<GpuKvPart> parts;               // without data
  std::vector<std::vector<uint32_t>> memory;  // of each part
  uint64_t staging_bytes = 0;
};

}  // namespace terrace
