// Device code of RunAttentionCuda (run_attention_cuda.h): decode attention's bits for several tokens of a
// sequence that read its keys and values together.
//
// Grid (blocks of a run, kv_heads, runs). A block takes up to kRows rows: the query heads of one kv head of
// consecutive tokens of a run, row i is head i % heads of token i / heads. They are what the heads are to the
// decode kernel: rows of the scores' mma, columns of the outputs'. Neither meets another of its kind in an
// mma, and all else of decode_attention_device.h is of one row, so a row's bits are decode's: spans, their
// tiles and the warps that take them, the order in which these are merged.
//
// What may differ is what a token must not see, behind its own position and, with kLimits, before its window:
//   - a tile that all tokens of the block see whole is added for all at once;
//   - one that some see in part, or not at all, is weighed for all at once (Warp::Weigh), but its values are
//     added token by token, as decode has them: rows that the token does not see are replaced by one that it
//     does (0 times what others left there may be NaN), and only the token's columns are kept;
//   - spans of which a token sees nothing are not merged into it.
#pragma once

#include <type_traits>

#include "kernels/attention/decode_attention_device.h"

namespace terrace::run_attention {

namespace decode = decode_attention;

inline constexpr uint32_t kHeadTiles = 4, kRows = kHeadTiles * decode::kHeadTile;

// As many warps as the decode kernel has for so many heads to a kv head: bits depend on it.
inline constexpr uint32_t kFewHeadWarps = decode::kWarpsOf<1>, kManyHeadWarps = decode::kWarpsOf<2>;

// Half of the outputs at a time where all would be more than blocks have on 8.0 (163 KiB; of heads of 64
// on 8.6, 99 KiB).
template <uint32_t kHeadDim, uint32_t kWarps>
inline constexpr uint32_t kPutTiles = kHeadDim >= 64 && kWarps == kFewHeadWarps ? kHeadTiles / 2 : kHeadTiles;

template <typename Rows, uint32_t kHeadDim, uint32_t kWarps>
struct Shared : decode::Shared<Rows, kHeadDim, kHeadTiles, kWarps, kPutTiles<kHeadDim, kWarps>> {
  using Base = decode::Shared<Rows, kHeadDim, kHeadTiles, kWarps, kPutTiles<kHeadDim, kWarps>>;
  using typename Base::Warp;

  decode::Part total[Base::kItems];  // of the groups of spans before; each of one thread

  // Fragments of the rows of q, by all threads. `q` is of the block's first token and head.
  TERRACE_DEVICE void SetQueries(const uint16_t* q, uint32_t q_pitch, uint32_t heads, uint32_t rows) {
    for (uint32_t i = threadIdx.x; i < Warp::kQueryTiles * kHeadDim; i += kWarps * simt::kWarp) {
      const uint32_t pair = i % kHeadDim / simt::kWarp, lane = i % simt::kWarp;
      const uint32_t element = Warp::QueryElement(pair, lane % 4);
      const auto load = [&](uint32_t row) {
        if (row >= rows) return uint4{0, 0, 0, 0};
        const uint16_t* from = q + uint64_t{row / heads} * q_pitch + row % heads * kHeadDim + element;
        const uint4 v = *reinterpret_cast<const uint4*>(from);
        return uint4{Rows::Query(v.x), Rows::Query(v.y), Rows::Query(v.z), Rows::Query(v.w)};
      };
      const uint32_t row = i / kHeadDim * 16 + lane / 4;
      const uint4 v = load(row), w = load(row + 8);
      uint4* const to = this->quads + i / kHeadDim * Warp::kQuads * simt::kWarp + lane;
      to[2 * pair * simt::kWarp] = {v.x, w.x, v.y, w.y};
      to[(2 * pair + 1) * simt::kWarp] = {v.z, w.z, v.w, w.w};
    }
  }
};

// A block's tokens: `count`, at positions `first` to `last`, of `heads` rows each.
struct Tokens {
  uint32_t first, last, heads;
};

// Of positions from `begin` on, how many are before the window of a token at `position`.
template <bool kLimits>
TERRACE_DEVICE uint32_t BeforeWindow(const GpuAttentionArgs& a, uint32_t position, uint32_t begin) {
  if constexpr (!kLimits) return 0;
  const uint32_t first = decode::WindowBegin(a, position);
  return first > begin ? first - begin : 0;
}

// o *= keep where that changes anything: once the largest scores have been seen, it no longer does.
template <typename Warp>
TERRACE_DEVICE void ScaleOutputs(Warp& warp, const float (&keep)[kHeadTiles]) {
  bool is_one = true;
  TERRACE_UNROLL
  for (uint32_t h = 0; h < kHeadTiles; ++h) is_one = is_one && keep[h] == 1;
  if (simt::Ballot(!is_one) != 0) warp.ScaleOutputs(keep);
}

// Adds a tile that all see whole.
template <typename Warp, bool kLimits>
TERRACE_DEVICE void AddWhole(Warp& warp, const float (&scores)[kHeadTiles][4],
                             const decode::Octaves<kLimits>& octaves) {
  uint32_t b[kHeadTiles][2];
  float keep[kHeadTiles];
  warp.template Weigh<true>(
      scores, octaves, [](uint32_t) { return 0; }, [](uint32_t) { return int32_t{decode::kTile}; }, b, keep);
  ScaleOutputs(warp, keep);
  warp.AddValues(b);
}

// Adds a tile, from position `begin` on, of which some see nothing or only a part. `row` is its first in the
// pool.
template <typename Warp, bool kLimits>
TERRACE_DEVICE void AddPartly(Warp& warp, const GpuAttentionArgs& a, uint64_t row, uint32_t begin,
                              const Tokens& tokens, const float (&scores)[kHeadTiles][4],
                              const decode::Octaves<kLimits>& octaves) {
  const uint32_t g = simt::Lane() / 4, t = simt::Lane() % 4;
  uint32_t b[kHeadTiles][2];
  float keep[kHeadTiles];
  // Rows behind the last token's are given to no one.
  const auto position_of = [&](uint32_t h) {
    return tokens.first + (h * decode::kHeadTile + g) / tokens.heads;
  };
  const auto before_of = [&](uint32_t h) {
    return kLimits ? static_cast<int32_t>(decode::WindowBegin(a, position_of(h)) - begin) : 0;
  };
  const auto last_of = [&](uint32_t h) { return static_cast<int32_t>(position_of(h) - begin); };
  warp.template Weigh<false>(scores, octaves, before_of, last_of, b, keep);
  ScaleOutputs(warp, keep);
  TERRACE_NO_UNROLL
  for (uint32_t position = tokens.first < begin ? begin : tokens.first; position <= tokens.last; ++position) {
    const uint32_t first_row = (position - tokens.first) * tokens.heads, end_row = first_row + tokens.heads;
    const uint32_t before = BeforeWindow<kLimits>(a, position, begin);
    if (before >= decode::kTile) break;  // those behind see no more of it
    warp.LoadValues(a.kv.values, row, before, position - begin);
    warp.AddValues(b, [&](uint32_t h, uint32_t e) {
      const uint32_t of = h * decode::kHeadTile + 2 * t + e;
      return of >= first_row && of < end_row;
    });
  }
}

template <typename Rows, uint32_t kHeadDim, uint32_t kWarps, bool kLimits>
TERRACE_KERNEL void TERRACE_BOUNDS(kWarps* simt::kWarp, 1)
    RunAttentionKernel(GpuAttentionArgs a, uint32_t heads) {
  using BlockShared = Shared<Rows, kHeadDim, kWarps>;
  using Warp = typename BlockShared::Warp;
  constexpr uint32_t kThreads = kWarps * simt::kWarp, kItemsOfRow = kHeadDim / 4;
  constexpr uint32_t kStep = kWarps * decode::kTile, kTiles = kGpuAttentionSpan / kStep;
  auto& shared = *reinterpret_cast<BlockShared*>(simt::DynamicShared());
  simt::LetNextStart();
  simt::WaitForPrevious();

  const GpuQueryRun run = a.runs[blockIdx.z];
  const uint32_t kv_head = blockIdx.y, most = kRows / heads, before = blockIdx.x * most;
  if (before >= run.count) return;
  const uint32_t count = decode::Least(most, run.count - before), token = run.first + before;
  const uint32_t sequence = a.batch.sequences[token], first_position = a.batch.positions[token];
  const Tokens tokens = {first_position, first_position + count - 1, heads};
  const uint32_t rows = count * heads;

  const uint32_t log2_block = a.batch.log2_block_tokens;
  const int32_t* table = a.batch.block_tables + uint64_t{sequence} * a.batch.table_pitch;
  const uint64_t head_blocks = uint64_t{kv_head} * a.batch.blocks;
  // For a tile that is not there, a block that is.
  const auto find_block = [&](uint32_t first) {
    return table[decode::Least(first, tokens.last) >> log2_block];
  };
  const auto row_of = [&](int32_t block, uint32_t first) {
    return ((head_blocks + static_cast<uint32_t>(block)) << log2_block) + (first & ((1u << log2_block) - 1));
  };

  Warp warp;
  // Before all windows.
  const auto before_windows = [&](uint32_t begin) { return BeforeWindow<kLimits>(a, tokens.first, begin); };
  const auto load_keys = [&](int32_t block, uint32_t begin) {
    if (begin > tokens.last) return;
    warp.LoadKeys(a.kv.keys, row_of(block, begin), before_windows(begin), tokens.last - begin);
  };
  const uint32_t first_span = kLimits ? decode::WindowBegin(a, tokens.first) / kGpuAttentionSpan : 0;
  // By Shuffle it is known to be the same in all lanes: what follows from it takes no registers of each.
  const uint32_t warp_index = simt::Shuffle(simt::WarpIndex(), 0);
  uint32_t first = first_span * kGpuAttentionSpan + warp_index * decode::kTile;
  while (kLimits && before_windows(first) >= decode::kTile) first += kStep;  // tiles are passed over
  int32_t block = find_block(first), block_ahead = find_block(first + kStep);
  load_keys(block, first);
  shared.SetQueries(a.q + uint64_t{token} * a.q_pitch + kv_head * heads * kHeadDim, a.q_pitch, heads, rows);
  simt::SyncThreads();

  const decode::Octaves<kLimits> octaves(a);
  const uint32_t spans = tokens.last / kGpuAttentionSpan + 1;
  for (uint32_t span = first_span; span < spans; ++span) {
    warp.Begin();
    // A warp may pass over a span's first tiles.
    const auto is_of_span = [&](uint32_t n) {
      return kLimits ? first < (span + 1) * kGpuAttentionSpan : n < kTiles;
    };
    TERRACE_NO_UNROLL
    for (uint32_t n = 0; is_of_span(n) && first <= tokens.last; ++n) {
      const uint32_t begin = first;
      const uint64_t row = row_of(block, begin);
      // Values are asked for before the keys on their way are waited for, the next keys before these values.
      warp.LoadValues(a.kv.values, row, before_windows(begin), tokens.last - begin);
      simt::SyncWarp();
      float scores[kHeadTiles][4];
      warp.Score(shared.quads, scores);
      first += kStep;
      load_keys(block_ahead, first);
      block = block_ahead;
      block_ahead = find_block(first + kStep);
      if (begin + decode::kTile - 1 <= tokens.first && BeforeWindow<kLimits>(a, tokens.last, begin) == 0) {
        AddWhole(warp, scores, octaves);
      } else {
        AddPartly(warp, a, row, begin, tokens, scores, octaves);
      }
    }
    // Adds the span to rows of head tiles from kFirst on, and stores those of which it is the last.
    const auto finish = [&]<uint32_t kFirst>(std::integral_constant<uint32_t, kFirst>) {
      constexpr uint32_t kBegin = kFirst * decode::kHeadTile;
      if (kBegin >= rows) return;
      shared.template Put<kFirst>(warp, rows);
      simt::SyncThreads();
      const uint32_t end = decode::Least(rows, kBegin + BlockShared::kPutHeads) * kItemsOfRow;
      for (uint32_t item = kBegin * kItemsOfRow + threadIdx.x; item < end; item += kThreads) {
        const uint32_t row = item / kItemsOfRow, of = row / heads;
        const uint32_t last_span = (tokens.first + of) / kGpuAttentionSpan;
        const uint32_t begin_span =
            kLimits ? decode::WindowBegin(a, tokens.first + of) / kGpuAttentionSpan : 0;
        if (span > last_span || (kLimits && span < begin_span)) continue;
        const bool begins_group = span % decode::kGroupSpans == 0 || (kLimits && span == begin_span);
        decode::Part group = begins_group ? decode::NoPositions() : shared.unit[item];
        decode::Fold(shared.Merge(item), group);
        if (span < last_span && (span + 1) % decode::kGroupSpans != 0) {
          shared.unit[item] = group;
          continue;
        }
        const bool is_first_group = span / decode::kGroupSpans == begin_span / decode::kGroupSpans;
        decode::Part total = is_first_group ? decode::NoPositions() : shared.total[item];
        decode::Fold(group, total);
        if (span < last_span) {
          shared.total[item] = total;
          continue;
        }
        uint16_t* const out = a.out + (uint64_t{token + of} * a.heads + kv_head * heads) * kHeadDim;
        decode::StoreResult(out, item - of * heads * kItemsOfRow, total);
      }
      simt::SyncThreads();  // before shared.o is written again
    };
    finish(std::integral_constant<uint32_t, 0>());
    if constexpr (BlockShared::kPutHeads < kRows) finish(std::integral_constant<uint32_t, kHeadTiles / 2>());
  }
}

template <typename Rows, uint32_t kHeadDim, uint32_t kWarps, typename Launch>
auto LaunchKernel(const GpuAttentionArgs& a, const Launch& launch) {
  const uint32_t heads = a.heads / a.batch.kv_heads, tokens = kRows / heads;  // of a block
  return launch(decode::HasLimits(a) ? RunAttentionKernel<Rows, kHeadDim, kWarps, true>
                                     : RunAttentionKernel<Rows, kHeadDim, kWarps, false>,
                (kGpuQueryTile + tokens - 1) / tokens, kWarps * simt::kWarp,
                sizeof(Shared<Rows, kHeadDim, kWarps>), heads);
}
template <typename Rows, uint32_t kHeadDim, typename Launch>
auto LaunchHeads(const GpuAttentionArgs& a, const Launch& launch) {
  return a.heads / a.batch.kv_heads <= decode::kHeadTile
             ? LaunchKernel<Rows, kHeadDim, kFewHeadWarps>(a, launch)
             : LaunchKernel<Rows, kHeadDim, kManyHeadWarps>(a, launch);
}
template <typename Rows, typename Launch>
auto LaunchHeadDim(const GpuAttentionArgs& a, const Launch& launch) {
  switch (a.batch.head_dim) {
    case 32:
      return LaunchHeads<Rows, 32>(a, launch);
    case 64:
      return LaunchHeads<Rows, 64>(a, launch);
    default:
      return LaunchHeads<Rows, 128>(a, launch);
  }
}
// launch(kernel, blocks of a run, threads, shared bytes, heads) for a grid (blocks, kv_heads, run_count), and
// what it returns.
template <typename Launch>
auto LaunchRunAttention(const GpuAttentionArgs& a, const Launch& launch) {
  switch (a.kv.dtype) {
    case KvDType::kF16:
      return LaunchHeadDim<decode::F16Rows>(a, launch);
    case KvDType::kInt8:
      return LaunchHeadDim<decode::Int8Rows>(a, launch);
    case KvDType::kFp8:
      return LaunchHeadDim<decode::Fp8Rows>(a, launch);
    default:
      return LaunchHeadDim<decode::BF16Rows>(a, launch);
  }
}

}  // namespace terrace::run_attention
