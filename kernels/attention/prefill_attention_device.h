// Prefill of paged_attention_gpu.h: FlashAttention-2 (Dao, 2023) on mma.m16n8k16.
//
// A block of 4 warps takes a run of queries and one head, a warp 32 of the queries: with 16, ldmatrix would
// have to read keys and values from shared memory faster than it can. A tile is 64 positions; while one is
// multiplied the next is copied. Two blocks share a multiprocessor at head_dim 128: one is in its softmax
// while the other multiplies. At 256 outputs of 32 queries would be all registers that a thread can have: 8
// warps take 16 of the queries each, tiles are 32 positions, and a block has the multiprocessor alone.
//
// Bits: tiles begin at multiples of their size, and what a query may not see adds exact zeros to it. So a
// token's result depends on its own position only: not on how its prompt was cut into runs, nor on the rest
// of the batch. With a window a run begins at the tile in which that of its first query begins; what lies
// before that window in the tile is not read, not even in the block table.
//
// Windows and caps have instantiations of their own, kLimits: who has neither does not pay for them.
//
// Pools of f16, int8 and fp8 become bf16 in shared memory, rounded but for fp8, by the threads that copied
// them.
#pragma once

#include "kernels/attention/paged_attention_gpu.h"
#include "kernels/quant/e4m3_device.h"
#include "kernels/simt/simt.h"

namespace terrace {
namespace prefill {

inline constexpr uint32_t kTableTokens = 16;  // the smallest block
inline constexpr float kSlack = 8;            // log2 of how far weights may pass 1, see MoveReferences
inline constexpr float kLog2E = 1.44269504f;
// A row's reference before it has seen a score: less than any, but finite, so that weights of what is masked
// are 0 in a tile of which the query sees nothing, too.
inline constexpr float kNoReference = -0x1.fffffep127f;

// How a block shares out its work.
template <uint32_t kHeadDim>
struct Shape {
  static constexpr uint32_t kKeys = kHeadDim > 128 ? 32 : 64;    // positions of a tile
  static constexpr uint32_t kRowTiles = kHeadDim > 128 ? 1 : 2;  // of mma, of a warp's queries
  static constexpr uint32_t kWarpQueries = 16 * kRowTiles;
  static constexpr uint32_t kThreads = kGpuQueryTile / kWarpQueries * simt::kWarp;

  using Scores = float[kRowTiles][kKeys / 8][4];  // a warp's queries by the tile's keys: accumulators
};

// Where chunk `chunk` (16 bytes) of row `row` of a tile lies: eight rows' chunks of one number, which
// ldmatrix reads at once, lie in different banks, and so do a row's chunks. Chunks 2k and 2k + 1 lie where 0
// and 1 do, xor 32 k.
template <uint32_t kHeadDim>
TERRACE_DEVICE constexpr uint32_t TileByte(uint32_t row, uint32_t chunk) {
  return row * 2 * kHeadDim + 16 * (chunk ^ (kHeadDim >= 64 ? row % 8 : row / 2 % 4));
}

template <KvDType kDType, uint32_t kHeadDim>
struct Layout : Shape<kHeadDim> {
  static_assert(kDType != KvDType::kF32);
  static_assert(kHeadDim == 32 || kHeadDim == 64 || kHeadDim == 128 || kHeadDim == 256);
  using Shape<kHeadDim>::kKeys, Shape<kHeadDim>::kThreads;
  static constexpr KvDType kOfDType = kDType;
  static constexpr uint32_t kOfHeadDim = kHeadDim;
  static constexpr bool kHasCodes = KvElementBytes(kDType) == 1, kHasScales = HasScales(kDType);

  // Bytes of shared memory: queries, at last outputs; two stages of keys and values; of int8 and fp8 the
  // codes [2, kKeys, kHeadDim], ordered by the thread that copies; of int8 scales [2, kKeys]; a Broken.
  static constexpr uint32_t kRowBytes = 2 * kHeadDim, kTileBytes = kKeys * kRowBytes;
  static constexpr uint32_t kStages = kGpuQueryTile * kRowBytes;
  static constexpr uint32_t kCodes = kStages + 4 * kTileBytes;
  static constexpr uint32_t kScales = kCodes + (kHasCodes ? kTileBytes : 0);
  static constexpr uint32_t kBroken = kScales + (kHasScales ? 2 * kKeys * 4 : 0);
  static constexpr uint32_t kBytes = kBroken + kGpuQueryTile;

  // Blocks of a multiprocessor that registers allow.
  static constexpr uint32_t kResident = kHeadDim > 128 ? 1 : kHeadDim == 128 ? 2 : 3;

  // A thread copies kCopies chunks of a tile: of rows CopyRow() + i * kCopyRows, always the same column.
  static constexpr uint32_t kPoolRowBytes = kHeadDim * KvElementBytes(kDType);
  static constexpr uint32_t kColumns = kPoolRowBytes / 16;
  static constexpr uint32_t kCopies = kKeys * kColumns / kThreads, kCopyRows = kThreads / kColumns;
  static_assert(kCopyRows % 8 == 0);  // they are swizzled alike

  // Of codes' rows of 8 chunks and more, eight threads take 4 of each of two rows: the bf16 of those lie in
  // different banks.
  static constexpr bool kOfTwoRows = kHasCodes && kColumns >= 8;
  TERRACE_DEVICE static constexpr uint32_t CopyRow(uint32_t thread) {
    return kOfTwoRows ? thread / 4 % 2 + thread / (2 * kColumns) * 2 : thread / kColumns;
  }
  TERRACE_DEVICE static constexpr uint32_t CopyColumn(uint32_t thread) {
    return kOfTwoRows ? thread % 4 + thread / 8 % (kColumns / 4) * 4 : thread % kColumns;
  }
};

// A query sees positions Begin(its own) to its own: not one that is hidden from it, so far before it.
template <bool kLimits>
struct Window {
  TERRACE_DEVICE explicit Window(const GpuAttentionArgs&) {}
  TERRACE_DEVICE uint32_t Begin(uint32_t) const { return 0; }
  TERRACE_DEVICE bool Hides(uint32_t, uint32_t) const { return false; }
};
template <>
struct Window<true> {
  static constexpr int32_t kAll = 1 << 30;  // more positions than a sequence has
  int32_t size;

  TERRACE_DEVICE explicit Window(const GpuAttentionArgs& args)
      : size(args.window == 0 || args.window > kAll ? kAll : static_cast<int32_t>(args.window)) {}
  TERRACE_DEVICE uint32_t Begin(uint32_t query) const {
    return Hides(0, query) ? query + 1 - static_cast<uint32_t>(size) : 0;
  }
  TERRACE_DEVICE bool Hides(uint32_t key, uint32_t query) const {
    return static_cast<int32_t>(query - key) >= size;
  }
};

// Which queries of a run, at positions [first, last], see one of the values that MendChunk took away. In
// shared memory; Clear is of every thread of so many that share the queries out evenly.
template <bool kLimits>
struct Broken {
  uint32_t from;  // ~position of the first at most, 0 for none: who is at or behind it does

  TERRACE_DEVICE void Clear(uint32_t thread, uint32_t) {
    if (thread == 0) from = 0;
  }
  TERRACE_DEVICE void Note(uint32_t position, const Window<false>&, uint32_t, uint32_t) {
    simt::AtomicMax(&from, ~position);
  }
  // Whether row `row` + i, which is at `position` + i, sees none of them.
  TERRACE_DEVICE auto WholeRows(uint32_t, uint32_t position) const {
    const uint32_t whole = ~from > position ? ~from - position : 0;
    return [whole](uint32_t i) { return i < whole; };
  }
};
template <>
struct Broken<true> {
  uint8_t queries[kGpuQueryTile];  // 1: it does

  TERRACE_DEVICE void Clear(uint32_t thread, uint32_t threads) {
    for (uint32_t i = 0; i < kGpuQueryTile; i += threads) queries[i + thread] = 0;
  }
  TERRACE_DEVICE void Note(uint32_t position, const Window<true>& window, uint32_t first, uint32_t last) {
    TERRACE_NO_UNROLL
    for (uint32_t at = position > first ? position : first; at <= last && !window.Hides(position, at); ++at) {
      queries[at - first] = 1;
    }
  }
  TERRACE_DEVICE auto WholeRows(uint32_t row, uint32_t) const {
    return [rows = queries + row](uint32_t i) { return rows[i] == 0; };
  }
};

// A sequence's rows of one key-value head. Small, as registers are short: 32 bits number the rows of a layer
// and their chunks.
template <bool kLimits>
struct Source {
  const GpuAttentionArgs& args;
  uint32_t head_block;  // blocks of the heads before
  uint32_t table;       // entries of the sequences before
  uint32_t last;        // position that counts
  uint32_t first;       // that counts; 0 without a window

  TERRACE_DEVICE bool Counts(uint32_t position) const {
    if constexpr (kLimits) {
      if (position < first) return false;
    }
    return position <= last;
  }

  // What lane i has to know of the table before the tile of kPositions at `begin` is copied: the block of row
  // 16 (i % (kPositions / 16)).
  template <uint32_t kPositions>
  TERRACE_DEVICE uint32_t Block(uint32_t begin) const {
    uint32_t position = begin + simt::Lane() % (kPositions / kTableTokens) * kTableTokens;
    if constexpr (kLimits) position = position < first ? first : position;
    const uint32_t entry = (position < last ? position : last) >> args.batch.log2_block_tokens;
    return head_block + static_cast<uint32_t>(simt::LoadReadOnly(args.batch.block_tables + (table + entry)));
  }
  TERRACE_DEVICE uint32_t Row(uint32_t block, uint32_t position) const {
    const uint32_t log2 = args.batch.log2_block_tokens;
    return (block << log2) + (position & ((1u << log2) - 1));
  }
};

// Begins to copy the tile at `begin`, `block` is Block(begin). Rows that do not count become zeros: their
// weights are 0, but 0 times what lies there may be NaN.
template <KvDType kDType, uint32_t kHeadDim, bool kLimits>
TERRACE_DEVICE void CopyTile(const Source<kLimits>& from, uint32_t block, uint32_t begin, std::byte* shared,
                             std::byte* stage) {
  using L = Layout<kDType, kHeadDim>;
  const uint32_t row = L::CopyRow(threadIdx.x), column = L::CopyColumn(threadIdx.x);
  std::byte* to =
      L::kHasCodes ? shared + L::kCodes + 16 * threadIdx.x : stage + TileByte<kHeadDim>(row, column);
  constexpr uint32_t kStep = L::kHasCodes ? 16 * L::kThreads : L::kCopyRows * L::kRowBytes;
  constexpr uint32_t kValues = L::kHasCodes ? L::kTileBytes / 2 : L::kTileBytes;
  const KvLayer& kv = from.args.kv;
  uint32_t mine = 0;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < L::kCopies; ++i) {
    const uint32_t above = i * L::kCopyRows;
    if (above % kTableTokens == 0) {
      mine = simt::Shuffle(
          block, L::kCopyRows <= kTableTokens ? above / kTableTokens : (above + row) / kTableTokens);
    }
    const uint32_t position = begin + above + row;
    const bool counts = from.Counts(position);
    const uint32_t chunk = from.Row(mine, position) * L::kColumns + column;
    simt::CpAsync16(to + i * kStep, kv.keys.data + uint64_t{chunk} * 16, counts);
    simt::CpAsync16(to + i * kStep + kValues, kv.values.data + uint64_t{chunk} * 16, counts);
  }
  if constexpr (L::kHasScales) {  // a thread of the first warp: 4 scales of keys or of values
    static_assert(L::kKeys / 2 <= simt::kWarp);
    if (threadIdx.x >= simt::kWarp) return;
    const uint32_t four = threadIdx.x % (L::kKeys / 4), position = begin + 4 * four;
    const uint32_t at = from.Row(simt::Shuffle(block, 4 * four / kTableTokens), position);
    if (threadIdx.x >= L::kKeys / 2) return;
    const float* scales = threadIdx.x < L::kKeys / 4 ? kv.keys.scales : kv.values.scales;
    simt::CpAsync16(shared + L::kScales + 16 * threadIdx.x, scales + at, position <= from.last);
  }
}

TERRACE_DEVICE uint32_t BF16OfF16(uint32_t pair) {
  return simt::PackBF16(simt::F16Low(pair), simt::F16High(pair));
}
// Codes 2 pair and 2 pair + 1 of four; `scale` is of int8.
template <KvDType kDType>
TERRACE_DEVICE uint32_t BF16OfCodes(uint32_t codes, uint32_t pair, float scale) {
  if constexpr (kDType == KvDType::kFp8) {
    return BF16OfF16(F16OfE4M3(codes, pair));
  } else {  // code + 128 as the lower bits of 2^23 as f32
    const uint32_t biased = codes ^ 0x80808080, selector = 0x7440 + 2 * pair;
    const float low = simt::FloatOfBits(simt::BytePermute(biased, 0x4b000000, selector)) - (0x1p23f + 128);
    const float high =
        simt::FloatOfBits(simt::BytePermute(biased, 0x4b000000, selector + 1)) - (0x1p23f + 128);
    return simt::PackBF16(low * scale, high * scale);
  }
}

// Makes bf16 of what the calling thread has copied, of f16 and of codes.
template <KvDType kDType, uint32_t kHeadDim>
TERRACE_DEVICE void ConvertTile(std::byte* stage) {
  using L = Layout<kDType, kHeadDim>;
  const uint32_t column = L::CopyColumn(threadIdx.x);
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 2 * L::kCopies; ++i) {  // keys, values
    const uint32_t row = L::CopyRow(threadIdx.x) + i % L::kCopies * L::kCopyRows;
    std::byte* tile = stage + i / L::kCopies * L::kTileBytes;
    auto* chunk = reinterpret_cast<uint4*>(tile + TileByte<kHeadDim>(row, column));
    const uint4 f16 = *chunk;
    *chunk = uint4{BF16OfF16(f16.x), BF16OfF16(f16.y), BF16OfF16(f16.z), BF16OfF16(f16.w)};
  }
}
template <KvDType kDType, uint32_t kHeadDim>
TERRACE_DEVICE void DecodeTile(uint32_t begin, uint32_t last, const std::byte* shared, std::byte* stage) {
  using L = Layout<kDType, kHeadDim>;
  const uint32_t column = L::CopyColumn(threadIdx.x);
  TERRACE_NO_UNROLL                                // for want of registers
      for (uint32_t part = 0; part < 2; ++part) {  // keys, values
    std::byte* const tile = stage + part * L::kTileBytes;
    TERRACE_UNROLL
    for (uint32_t i = 0; i < L::kCopies; ++i) {
      const uint32_t row = L::CopyRow(threadIdx.x) + i * L::kCopyRows;
      const uint32_t chunk = (part * L::kCopies + i) * L::kThreads + threadIdx.x;
      const uint4 codes = *reinterpret_cast<const uint4*>(shared + L::kCodes + 16 * chunk);
      float scale = 0;
      if constexpr (L::kHasScales) {
        const auto* scales = reinterpret_cast<const float*>(shared + L::kScales) + part * L::kKeys;
        scale = begin + row <= last ? scales[row] : 0;
      }
      const auto eight = [&](uint32_t x, uint32_t y) {
        return uint4{BF16OfCodes<kDType>(x, 0, scale), BF16OfCodes<kDType>(x, 1, scale),
                     BF16OfCodes<kDType>(y, 0, scale), BF16OfCodes<kDType>(y, 1, scale)};
      };
      *reinterpret_cast<uint4*>(tile + TileByte<kHeadDim>(row, 2 * column)) = eight(codes.x, codes.y);
      *reinterpret_cast<uint4*>(tile + TileByte<kHeadDim>(row, 2 * column + 1)) = eight(codes.z, codes.w);
    }
  }
}

// 16 bytes of values at a position that some queries may not see: what is not finite becomes 0, as 0 times it
// would not be, and note() tells those who see it: Broken.
template <typename Note>
TERRACE_DEVICE void MendChunk(std::byte* chunk, const Note& note) {
  constexpr uint32_t kExponents = 0x7f807f80, kOne = 0x00800080, kCarries = 0x80008000;
  auto* at = reinterpret_cast<uint4*>(chunk);
  const uint4 v = *at;
  const uint32_t carries = ((v.x & kExponents) + kOne) | ((v.y & kExponents) + kOne) |
                           ((v.z & kExponents) + kOne) | ((v.w & kExponents) + kOne);
  if ((carries & kCarries) != 0) {
    *at = uint4{0, 0, 0, 0};
    note();
  }
}

// note(i) is of row i.
template <uint32_t kHeadDim, typename Note>
TERRACE_DEVICE void MendValues(std::byte* values, const Note& note) {
  using S = Shape<kHeadDim>;
  constexpr uint32_t kChunks = kHeadDim / 8;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < S::kKeys * kChunks / S::kThreads; ++i) {
    const uint32_t row = (i * S::kThreads + threadIdx.x) / kChunks, chunk = threadIdx.x % kChunks;
    MendChunk(values + TileByte<kHeadDim>(row, chunk), [&] { note(row); });
  }
}

// What a warp knows of its queries. Of tile `m` a lane has rows 16 m + g and 16 m + g + 8, with g = lane / 4.
template <uint32_t kHeadDim>
struct WarpState {
  static constexpr uint32_t kRowTiles = Shape<kHeadDim>::kRowTiles;
  float out[kRowTiles][kHeadDim / 8][4];  // of tile m, columns 8 n: an accumulator
  float reference[kRowTiles][2];          // of row 16 m + g + 8 h: log2 of what its weights are relative to
  float sum[kRowTiles][2];                // of the lane's weights
};

// scores[m][n] += queries * keys.
template <uint32_t kHeadDim>
TERRACE_DEVICE void Scores(typename Shape<kHeadDim>::Scores& scores, const std::byte* queries,
                           const std::byte* keys) {
  using S = Shape<kHeadDim>;
  constexpr uint32_t kRowBytes = 2 * kHeadDim;
  const uint32_t lane = simt::Lane();
  const uint32_t query = TileByte<kHeadDim>(lane % 16, lane / 16);
  const uint32_t key = TileByte<kHeadDim>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  TERRACE_UNROLL
  for (uint32_t k = 0; k < kHeadDim / 16; ++k) {
    uint32_t a[S::kRowTiles][4];
    TERRACE_UNROLL
    for (uint32_t m = 0; m < S::kRowTiles; ++m)
      simt::LdMatrix4(a[m], queries + (query ^ (32 * k)) + m * 16 * kRowBytes);
    TERRACE_UNROLL
    for (uint32_t n = 0; n < S::kKeys / 16; ++n) {
      uint32_t b[4];
      simt::LdMatrix4(b, keys + (key ^ (32 * k)) + n * 16 * kRowBytes);
      const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
      TERRACE_UNROLL
      for (uint32_t m = 0; m < S::kRowTiles; ++m) {
        simt::MmaBF16(scores[m][2 * n], a[m], b0);
        simt::MmaBF16(scores[m][2 * n + 1], a[m], b1);
      }
    }
  }
}

// What weights are 2^(scale * score - reference) of. With a cap the score is CappedScore.
template <bool kLimits>
TERRACE_DEVICE float ScoreScale(const GpuAttentionArgs& args) {
  return (kLimits && args.softcap != 0 ? args.softcap : args.scale) * kLog2E;
}

// tanh(args.scale * product / args.softcap) to 2^-21; `scale` is CapScale(). (tanh.approx is good for 2^-11
// only, which times a cap of 50 would be more than the rounding of weights to bf16.)
TERRACE_DEVICE float CapScale(const GpuAttentionArgs& args) {
  return 2 * kLog2E * args.scale * simt::Reciprocal(args.softcap);
}
TERRACE_DEVICE float CappedScore(float product, float scale) {
  return 1 - 2 * simt::Reciprocal(1 + simt::Exp2(product * scale));
}
template <uint32_t kHeadDim>
TERRACE_DEVICE void Cap(typename Shape<kHeadDim>::Scores& scores, float scale) {
  using S = Shape<kHeadDim>;
  TERRACE_UNROLL
  for (uint32_t m = 0; m < S::kRowTiles; ++m) {
    TERRACE_UNROLL
    for (uint32_t n = 0; n < S::kKeys / 8; ++n) {
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 4; ++i) scores[m][n][i] = CappedScore(scores[m][n][i], scale);
    }
  }
}

// -infinity where the key is behind the query, or, unless kIsBehind, before its window. Of the warp's first
// query `edge` keys of the tile are not behind it, or are before; of each further query one more.
template <uint32_t kHeadDim, bool kIsBehind>
TERRACE_DEVICE void Mask(typename Shape<kHeadDim>::Scores& scores, int32_t edge) {
  using S = Shape<kHeadDim>;
  const auto lane = static_cast<int32_t>(simt::Lane());
  TERRACE_UNROLL
  for (uint32_t m = 0; m < S::kRowTiles; ++m) {
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      const int32_t left = edge + static_cast<int32_t>(16 * m + i / 2 * 8) + lane / 4 - lane % 4 * 2;
      TERRACE_UNROLL
      for (uint32_t n = 0; n < S::kKeys / 8; ++n) {
        if ((static_cast<int32_t>(8 * n + i % 2) >= left) == kIsBehind) scores[m][n][i] = -INFINITY;
      }
    }
  }
}

// Weights are 2^(score * scale - reference). The reference is moved, and all that is relative to it with it,
// only when a weight would pass 2^kSlack: after the first tile that is rare, and bf16 and f32 do not mind. A
// row's reference depends on its own scores only, and a tile of which it sees nothing leaves it as it is.
template <uint32_t kHeadDim>
TERRACE_DEVICE void MoveReferences(WarpState<kHeadDim>& state, const typename Shape<kHeadDim>::Scores& scores,
                                   float scale) {
  using S = Shape<kHeadDim>;
  float largest[S::kRowTiles][2];
  bool is_far = false;
  TERRACE_UNROLL
  for (uint32_t m = 0; m < S::kRowTiles; ++m) {
    TERRACE_UNROLL
    for (uint32_t h = 0; h < 2; ++h) {
      float most = fmaxf(scores[m][0][2 * h], scores[m][0][2 * h + 1]);  // NaNs are passed over
      TERRACE_UNROLL
      for (uint32_t n = 1; n < S::kKeys / 8; ++n) {
        most = fmaxf(most, fmaxf(scores[m][n][2 * h], scores[m][n][2 * h + 1]));
      }
      largest[m][h] = most * scale;
      is_far = is_far || largest[m][h] > state.reference[m][h] + kSlack;
    }
  }
  if (simt::Ballot(is_far) == 0) return;
  TERRACE_UNROLL
  for (uint32_t m = 0; m < S::kRowTiles; ++m) {
    TERRACE_UNROLL
    for (uint32_t h = 0; h < 2; ++h) {
      float most = fmaxf(largest[m][h], simt::ShuffleXor(largest[m][h], 1));
      most = fmaxf(most, simt::ShuffleXor(most, 2));
      float& reference = state.reference[m][h];
      const bool moves = most > reference + kSlack;
      const float factor = moves ? simt::Exp2(reference - most) : 1;
      reference = moves ? most : reference;
      state.sum[m][h] *= factor;
      TERRACE_UNROLL
      for (uint32_t n = 0; n < kHeadDim / 8; ++n) {
        state.out[m][n][2 * h] *= factor;
        state.out[m][n][2 * h + 1] *= factor;
      }
    }
  }
}

// out += weights * values, weights of the scores. Step by step: 16 keys' weights are made while the tensor
// cores multiply those before.
template <uint32_t kHeadDim>
TERRACE_DEVICE void AddValues(WarpState<kHeadDim>& state, const typename Shape<kHeadDim>::Scores& scores,
                              float scale, const std::byte* values) {
  using S = Shape<kHeadDim>;
  constexpr uint32_t kRowBytes = 2 * kHeadDim;
  const uint32_t lane = simt::Lane();
  const uint32_t value = TileByte<kHeadDim>(lane % 16, lane / 16);
  TERRACE_UNROLL
  for (uint32_t k = 0; k < S::kKeys / 16; ++k) {
    uint32_t a[S::kRowTiles][4];
    TERRACE_UNROLL
    for (uint32_t m = 0; m < S::kRowTiles; ++m) {
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 4; ++i) {
        const float(&pair)[4] = scores[m][2 * k + i / 2];
        const float low = simt::Exp2(pair[i % 2 * 2] * scale - state.reference[m][i % 2]);
        const float high = simt::Exp2(pair[i % 2 * 2 + 1] * scale - state.reference[m][i % 2]);
        state.sum[m][i % 2] += low + high;
        a[m][i] = simt::PackBF16(low, high);
      }
    }
    TERRACE_UNROLL
    for (uint32_t n = 0; n < kHeadDim / 16; ++n) {
      uint32_t b[4];
      simt::LdMatrix4Trans(b, values + (value ^ (32 * n)) + k * 16 * kRowBytes);
      const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
      TERRACE_UNROLL
      for (uint32_t m = 0; m < S::kRowTiles; ++m) {
        simt::MmaBF16(state.out[m][2 * n], a[m], b0);
        simt::MmaBF16(state.out[m][2 * n + 1], a[m], b1);
      }
    }
  }
}

// The warp's rows, of which the first `count` exist, to out + row * pitch (elements), by way of `rows`: the
// warp's own. NaN unless is_whole(row).
template <uint32_t kHeadDim, typename IsWhole>
TERRACE_DEVICE void Store(const WarpState<kHeadDim>& state, std::byte* rows, uint32_t count,
                          const IsWhole& is_whole, uint16_t* out, uint32_t pitch) {
  using S = Shape<kHeadDim>;
  const uint32_t lane = simt::Lane();
  TERRACE_UNROLL
  for (uint32_t m = 0; m < S::kRowTiles; ++m) {
    TERRACE_UNROLL
    for (uint32_t h = 0; h < 2; ++h) {
      float sum = state.sum[m][h];
      sum += simt::ShuffleXor(sum, 1);
      sum += simt::ShuffleXor(sum, 2);
      const uint32_t row = 16 * m + 8 * h + lane / 4;
      const float inverse = is_whole(row) ? simt::Reciprocal(sum) : NAN;
      TERRACE_UNROLL
      for (uint32_t n = 0; n < kHeadDim / 8; ++n) {
        *reinterpret_cast<uint32_t*>(rows + TileByte<kHeadDim>(row, n) + lane % 4 * 4) =
            simt::PackBF16(state.out[m][n][2 * h] * inverse, state.out[m][n][2 * h + 1] * inverse);
      }
    }
  }
  simt::SyncWarp();
  constexpr uint32_t kChunks = kHeadDim / 8;
  TERRACE_UNROLL
  for (uint32_t i = 0; i < S::kWarpQueries * kChunks / simt::kWarp; ++i) {
    const uint32_t row = (i * simt::kWarp + lane) / kChunks, chunk = lane % kChunks;
    if (row < count) {
      *reinterpret_cast<uint4*>(out + uint64_t{row} * pitch + chunk * 8) =
          *reinterpret_cast<const uint4*>(rows + TileByte<kHeadDim>(row, chunk));
    }
  }
}

}  // namespace prefill

// Grid (heads, runs): query heads of one key-value head are neighbours in time; their tiles are in the L2
// cache.
template <KvDType kDType, uint32_t kHeadDim, bool kLimits>
TERRACE_KERNEL void TERRACE_BOUNDS((prefill::Layout<kDType, kHeadDim>::kThreads),
                                   (prefill::Layout<kDType, kHeadDim>::kResident))
    PrefillAttentionKernel(GpuAttentionArgs args) {
  using namespace prefill;
  using L = Layout<kDType, kHeadDim>;
  constexpr uint32_t kKeys = L::kKeys, kWarpQueries = L::kWarpQueries, kThreads = L::kThreads;
  simt::LetNextStart();
  simt::WaitForPrevious();
  const GpuQueryRun run = args.runs[blockIdx.y];
  const uint32_t head = blockIdx.x, kv_head = head / (args.heads / args.batch.kv_heads);
  const uint32_t first = args.batch.positions[run.first], last = first + run.count - 1;
  const Window<kLimits> window(args);
  const Source<kLimits> source = {args, kv_head * args.batch.blocks,
                                  args.batch.sequences[run.first] * args.batch.table_pitch, last,
                                  window.Begin(first)};
  std::byte* const shared = simt::DynamicShared();
  auto& broken = *reinterpret_cast<Broken<kLimits>*>(shared + L::kBroken);
  static_assert(kThreads >= kGpuQueryTile);
  if (kThreads == kGpuQueryTile || threadIdx.x < kGpuQueryTile) broken.Clear(threadIdx.x, kGpuQueryTile);
  const auto stage_of = [&](uint32_t tile) { return shared + L::kStages + tile % 2 * (2 * L::kTileBytes); };

  {  // Queries that do not exist are zeros.
    constexpr uint32_t kChunks = kHeadDim / 8;
    const uint32_t row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    const uint16_t* q = args.q + uint64_t{run.first} * args.q_pitch + head * kHeadDim + chunk * 8;
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kGpuQueryTile * kChunks / kThreads; ++i) {
      const uint32_t at = row + i * (kThreads / kChunks);
      simt::CpAsync16(shared + TileByte<kHeadDim>(at, chunk), q + uint64_t{at} * args.q_pitch,
                      at < run.count);
    }
  }
  const uint32_t start = source.first / kKeys * kKeys;
  CopyTile<kDType, kHeadDim>(source, source.template Block<kKeys>(start), start, shared,
                             stage_of(start / kKeys));
  simt::CpAsyncCommit();
  uint32_t block = source.template Block<kKeys>(start + kKeys);

  const uint32_t warp_row = simt::WarpIndex() * kWarpQueries;
  const uint32_t warp_first = first + warp_row;
  std::byte* const queries = shared + warp_row * L::kRowBytes;
  const float scale = ScoreScale<kLimits>(args);
  WarpState<kHeadDim> state;
  TERRACE_UNROLL
  for (uint32_t m = 0; m < L::kRowTiles; ++m) {
    TERRACE_UNROLL
    for (uint32_t n = 0; n < kHeadDim / 8; ++n) {
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 4; ++i) state.out[m][n][i] = 0;
    }
    TERRACE_UNROLL
    for (uint32_t h = 0; h < 2; ++h) {
      state.reference[m][h] = kNoReference;
      state.sum[m][h] = 0;
    }
  }

  for (uint32_t begin = start; begin <= last; begin += kKeys) {
    std::byte* const stage = stage_of(begin / kKeys);
    simt::CpAsyncWait<0>();
    if constexpr (L::kHasScales) simt::SyncThreads();  // they are others' copies
    if constexpr (kDType == KvDType::kF16) ConvertTile<kDType, kHeadDim>(stage);
    if constexpr (L::kHasCodes) DecodeTile<kDType, kHeadDim>(begin, last, shared, stage);
    simt::SyncThreads();  // the tile is here, and no one reads the one before it any more
    if (last - begin >= kKeys) {
      CopyTile<kDType, kHeadDim>(source, block, begin + kKeys, shared, stage_of(begin / kKeys + 1));
      simt::CpAsyncCommit();
      block = source.template Block<kKeys>(begin + 2 * kKeys);
    }
    if (begin + kKeys - 1 > first || window.Hides(begin, last)) {
      MendValues<kHeadDim>(stage + L::kTileBytes,
                           [&](uint32_t i) { broken.Note(begin + i, window, first, last); });
      simt::SyncThreads();
    }
    if (warp_first > last || begin >= warp_first + kWarpQueries) continue;
    if (window.Hides(begin + kKeys - 1, warp_first)) continue;
    typename L::Scores scores = {};
    Scores<kHeadDim>(scores, queries, stage);
    if constexpr (kLimits) {
      if (args.softcap != 0) Cap<kHeadDim>(scores, CapScale(args));
    }
    const auto seen = static_cast<int32_t>(warp_first + 1 - begin);
    if (seen < static_cast<int32_t>(kKeys)) Mask<kHeadDim, true>(scores, seen);
    if constexpr (kLimits) {
      if (window.Hides(begin, warp_first + kWarpQueries - 1))
        Mask<kHeadDim, false>(scores, seen - window.size);
    }
    MoveReferences<kHeadDim>(state, scores, scale);
    AddValues<kHeadDim>(state, scores, scale, stage + L::kTileBytes);
  }
  if (warp_first > last) return;
  const uint64_t row = (uint64_t{run.first} + warp_row) * args.heads + head;
  Store<kHeadDim>(state, queries, last + 1 - warp_first, broken.WholeRows(warp_row, warp_first),
                  args.out + row * kHeadDim, args.heads * kHeadDim);
}

}  // namespace terrace
