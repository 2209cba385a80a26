// The CPU tables: the leaves of one instruction set, shared out to the threads of a pool.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/cpu_leaves.h"
#include "kernels/op_table.h"

namespace terrace {
namespace {

// Multiply-adds that are worth waking another thread for: about 10 us of one core.
constexpr size_t kPartWork = 512 << 10;

// body(begin, end) over [0, count), each item costing `work` multiply-adds, in shares of whole `multiple`s.
void Share(ThreadPool& pool, size_t count, size_t work, size_t multiple,
           const std::function<void(size_t, size_t)>& body) {
  const size_t items = std::max<size_t>(1, kPartWork / std::max<size_t>(1, work));
  pool.ParallelFor(count, (items + multiple - 1) / multiple * multiple, body);
}

template <const CpuLeaves& kLeaves>
void RmsNorm(const RmsNormArgs& a, ThreadPool& pool) {
  Share(pool, a.tokens, a.width, 1, [&](size_t begin, size_t end) { kLeaves.rms_norm(a, begin, end); });
}

template <const CpuLeaves& kLeaves>
void Gemm(const GemmArgs& a, ThreadPool& pool) {
  if (a.tokens == 0) return;
  // A quarter of a 1 MiB L2 cache: activations and outputs need the rest.
  constexpr size_t kTileFloats = 64 << 10;
  const size_t stride = (a.inputs() + 15) / 16 * 16, block = kLeaves.gemm_row_block;
  const size_t tile_rows =
      std::clamp<size_t>(kTileFloats / std::max<size_t>(1, stride) / block * block, block, 64);
  Share(pool, a.outputs(), a.inputs() * a.tokens, block, [&](size_t begin, size_t end) {
    constexpr size_t kLineFloats = 16;  // a vector that straddles two cache lines is loaded twice
    thread_local std::vector<float> memory;
    if (memory.size() < tile_rows * stride + kLineFloats) memory.resize(tile_rows * stride + kLineFloats);
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    float* tile = memory.data() + (-address / sizeof(float)) % kLineFloats;
    kLeaves.gemm(a, begin, end, tile, tile_rows, stride);
  });
}

template <const CpuLeaves& kLeaves>
void PagedAttention(const PagedAttentionArgs& a, ThreadPool& pool) {
  if (a.batch.tokens == 0) return;
  const auto* positions = a.batch.positions;
  const size_t longest = size_t{*std::max_element(positions, positions + a.batch.tokens)} + 1;
  Share(pool, a.batch.tokens * a.heads, 2 * longest * a.batch.head_dim, 1,
        [&](size_t begin, size_t end) { kLeaves.paged_attention(a, begin, end); });
}

template <const CpuLeaves& kLeaves>
void SiluMul(const SiluMulArgs& a, ThreadPool& pool) {
  constexpr size_t kWork = 16;  // one exp and one division
  Share(pool, a.count, kWork, 16, [&](size_t begin, size_t end) { kLeaves.silu_mul(a, begin, end); });
}

template <const CpuLeaves& kLeaves>
OpTable MakeTable(std::string_view name) {
  return {.name = name,
          .embed = kLeaves.embed,
          .rms_norm = RmsNorm<kLeaves>,
          .gemm = Gemm<kLeaves>,
          .rope = RopeCpu,
          .write_kv = WriteKvRef,
          .paged_attention = PagedAttention<kLeaves>,
          .silu_mul = SiluMul<kLeaves>,
          .softmax_weights = kLeaves.softmax_weights};
}

bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

std::vector<OpTable> MakeTables() {
  std::vector<OpTable> tables;
  if (HasAvx512()) tables.push_back(MakeTable<kAvx512Leaves>("cpu avx512"));
  if (HasAvx2()) tables.push_back(MakeTable<kAvx2Leaves>("cpu avx2"));
  tables.push_back(MakeTable<kGenericLeaves>("cpu generic"));
  return tables;
}

}  // namespace

std::span<const OpTable> AllCpuOps() {
  static const std::vector<OpTable> tables = MakeTables();
  return tables;
}

const OpTable& CpuOps() { return AllCpuOps().front(); }

}  // namespace terrace
