// Prefill of paged_attention_gpu.h on Hopper (sm_90a), of bf16 keys and values: FlashAttention-3 (Shah et
// al., 2024) on wgmma.
//
// A block stays on its multiprocessor and takes work items (a run of queries, one head), one after the other.
// Of its three warpgroups the first copies: half of its threads keys, half queries and values, into rings of
// kStages tiles of kKeys positions, ahead of what is multiplied, beyond the end of an item too. The other two
// multiply, each 64 of the run's queries. What keeps the tensor cores busy:
//   - a warpgroup queues the scores of the next tile and the values of this one together, and computes the
//     next tile's weights while values are multiplied;
//   - the warpgroups queue their products in turns: one computes weights while the other's
//     products run.
//
// Bits: tiles begin at multiples of kKeys, and what a query may not see adds exact zeros to it. So a token's
// result depends on its own position only. With a window items begin at the tile in which that of their first
// query begins, a group at that of its own first.
#pragma once

#include "kernels/attention/prefill_attention_device.h"
#include "kernels/simt/warpgroup.h"

namespace terrace {
namespace hopper_prefill {

using prefill::kNoReference;
using prefill::kSlack;
using prefill::kTableTokens;
using prefill::Source;
using prefill::Window;

inline constexpr uint32_t kGroups = 2;         // warpgroups that multiply
inline constexpr uint32_t kGroupQueries = 64;  // rows of a wgmma
inline constexpr uint32_t kThreads = (1 + kGroups) * simt::kWarpgroup;
inline constexpr uint32_t kCopyThreads = 64;  // that copy keys; as many copy queries and values
static_assert(kGroups * kGroupQueries == kGpuQueryTile && 2 * kCopyThreads == simt::kWarpgroup);

// A thread's registers. A block begins with as many as a multiprocessor has, in eights for each thread.
inline constexpr uint32_t kCopierRegisters = 40, kGroupRegisters = 232;
static_assert((kCopierRegisters + kGroups * kGroupRegisters) * simt::kWarpgroup <=
              65536 / kThreads / 8 * 8 * kThreads);

// Named barriers: a group's turn, and those that copy values.
inline constexpr uint32_t kTurnBarrier = 1, kCopyBarrier = kTurnBarrier + kGroups;

// Where chunk `chunk` (16 bytes) of row `row` lies in a tile of kRows rows: of each 64 elements of a row,
// tiles of simt::SwizzledByte, one behind the other.
template <uint32_t kRows>
TERRACE_DEVICE constexpr uint32_t TileByte(uint32_t row, uint32_t chunk) {
  return chunk / 8 * (kRows * 128) + simt::SwizzledByte(row, chunk % 8);
}

// Tiles of a ring. Of two some 5% less; a group awaits values before it releases those of the tile before.
inline constexpr uint32_t kStages = 3;

// What is copied reports to `full`; whoever is done with it, to `empty`.
struct Barriers {
  uint64_t keys_full[kStages], keys_empty[kStages], values_full[kStages], values_empty[kStages];
  uint64_t queries_full, queries_empty;
};

// A run of queries and a head.
struct Item {
  uint32_t token, count;  // of the batch
  uint32_t position;      // of the first
  uint32_t head;
};

// As it is told to the groups with the queries.
template <bool kLimits>
struct ToldItem : Item {
  prefill::Broken<kLimits> broken;
};

// kLimits: as of prefill.
template <uint32_t kHeadDim_, uint32_t kKeys_, bool kLimits_>
struct Layout {
  static constexpr uint32_t kHeadDim = kHeadDim_, kKeys = kKeys_;
  static constexpr bool kLimits = kLimits_;
  using Told = ToldItem<kLimits>;
  static_assert(kHeadDim == 64 || kHeadDim == 128);
  static_assert(kKeys % kTableTokens == 0 && kKeys / kTableTokens <= simt::kWarp);

  // Bytes of shared memory: queries, rings of keys and of values, barriers, two items. Two, because those
  // that copy begin an item while the groups are in the one before.
  static constexpr uint32_t kRowBytes = 2 * kHeadDim, kTileBytes = kKeys * kRowBytes;
  static constexpr uint32_t kKeyTiles = kGpuQueryTile * kRowBytes;
  static constexpr uint32_t kValueTiles = kKeyTiles + kStages * kTileBytes;
  static constexpr uint32_t kBarriers = kValueTiles + kStages * kTileBytes;
  static constexpr uint32_t kItems = kBarriers + sizeof(Barriers);
  static constexpr uint32_t kBytes = (kItems + 2 * sizeof(Told) + 1023) / 1024 * 1024;
  static_assert(kBytes <= 227 * 1024);

  // A thread copies always the same column of rows CopyRow() + i * kCopyRows.
  static constexpr uint32_t kChunks = kHeadDim / 8, kCopyRows = kCopyThreads / kChunks;
  static_assert(kTableTokens % kCopyRows == 0);
  TERRACE_DEVICE static uint32_t CopyRow() { return threadIdx.x % kCopyThreads / kChunks; }
  TERRACE_DEVICE static uint32_t CopyColumn() { return threadIdx.x % kChunks; }

  TERRACE_DEVICE static Barriers& BarriersOf(std::byte* shared) {
    return *reinterpret_cast<Barriers*>(shared + kBarriers);
  }
  TERRACE_DEVICE static Told* ItemsOf(std::byte* shared) { return reinterpret_cast<Told*>(shared + kItems); }
};

// A place in a ring of tiles. Parity of the phase of its barriers: of `full` the one to wait for, of `empty`
// the one before it.
struct RingPlace {
  uint32_t stage = 0, parity = 0;
  TERRACE_DEVICE void Next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Items are numbered run by run, heads of a run beside each other, as heads of one key-value head read the
// same. Runs get shorter: of every two rounds a block that begins the one early begins the other late.
TERRACE_DEVICE uint32_t ItemNumber(uint32_t round) {
  return round * gridDim.x + (round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
}

// ---- The warpgroup that copies

// Begins to copy the tile at `begin`, `block` is from.Block<kKeys>(begin). As prefill::CopyTile.
template <typename L>
TERRACE_DEVICE void CopyTile(const Source<L::kLimits>& from, const KvRows& rows, uint32_t block,
                             uint32_t begin, std::byte* tile) {
  const uint32_t row = L::CopyRow(), column = L::CopyColumn();
  TERRACE_NO_UNROLL  // registers are few
      for (uint32_t above = 0; above < L::kKeys; above += kTableTokens) {
    const uint32_t mine = simt::Shuffle(block, above / kTableTokens);
    const uint32_t chunk = (from.Row(mine, begin + above) + row) * L::kChunks + column;
    const std::byte* data = rows.data + uint64_t{chunk} * 16;
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kTableTokens; i += L::kCopyRows) {
      simt::CpAsync16(tile + TileByte<L::kKeys>(above + i + row, column), data + i * L::kRowBytes,
                      from.Counts(begin + above + i + row));
    }
  }
}

// Of a tile that holds positions some queries may not see, what the calling thread has copied: see
// prefill::MendValues.
template <typename L, typename Note>
TERRACE_DEVICE void MendValues(std::byte* tile, const Note& note) {
  TERRACE_NO_UNROLL
  for (uint32_t i = 0; i < L::kKeys; i += L::kCopyRows) {
    const uint32_t row = L::CopyRow() + i;
    prefill::MendChunk(tile + TileByte<L::kKeys>(row, L::CopyColumn()), [&] { note(row); });
  }
}

// Queries that do not exist are zeros.
template <typename L>
TERRACE_DEVICE void CopyQueries(const GpuAttentionArgs& args, const Item& item, std::byte* queries) {
  const uint32_t row = L::CopyRow(), column = L::CopyColumn();
  const uint16_t* q = args.q + uint64_t{item.token} * args.q_pitch + item.head * L::kHeadDim + column * 8;
  TERRACE_NO_UNROLL
  for (uint32_t i = 0; i < kGpuQueryTile; i += L::kCopyRows) {
    simt::CpAsync16(queries + TileByte<kGpuQueryTile>(row + i, column), q + uint64_t{row + i} * args.q_pitch,
                    row + i < item.count);
  }
}

// What the calling thread has copied is there, for the tensor cores too.
TERRACE_DEVICE void Publish(uint64_t* full) {
  simt::CpAsyncWait<0>();
  simt::FenceAsyncShared();
  simt::BarrierArrive(full);
}

TERRACE_DEVICE Item ReadItem(const GpuAttentionArgs& args, uint32_t number) {
  const GpuQueryRun run = args.runs[number / args.heads];
  return {run.first, run.count, args.batch.positions[run.first], number % args.heads};
}

// Of all of the block's items: keys; or values, and before those of an item its queries.
template <typename L, bool kIsValues>
TERRACE_DEVICE void Copy(const GpuAttentionArgs& args, std::byte* shared) {
  Barriers& barriers = L::BarriersOf(shared);
  uint64_t* const full = kIsValues ? barriers.values_full : barriers.keys_full;
  uint64_t* const empty = kIsValues ? barriers.values_empty : barriers.keys_empty;
  const KvRows& rows = kIsValues ? args.kv.values : args.kv.keys;
  std::byte* const tiles = shared + (kIsValues ? L::kValueTiles : L::kKeyTiles);
  const uint32_t items = args.run_count * args.heads;
  const Window<L::kLimits> window(args);
  RingPlace place;
  for (uint32_t round = 0; ItemNumber(round) < items; ++round) {
    const Item item = ReadItem(args, ItemNumber(round));
    const uint32_t kv_head = item.head / (args.heads / args.batch.kv_heads);
    const Source<L::kLimits> source = {args, kv_head * args.batch.blocks,
                                       args.batch.sequences[item.token] * args.batch.table_pitch,
                                       item.position + item.count - 1, window.Begin(item.position)};
    typename L::Told& told = L::ItemsOf(shared)[round % 2];
    const uint32_t start = source.first / L::kKeys * L::kKeys;
    uint32_t block = source.template Block<L::kKeys>(start);
    if constexpr (kIsValues) {
      simt::BarrierWait(&barriers.queries_empty, round % 2 ^ 1);
      if (threadIdx.x % kCopyThreads == 0) static_cast<Item&>(told) = item;
      told.broken.Clear(threadIdx.x % kCopyThreads, kCopyThreads);
      simt::SyncSome(kCopyBarrier, kCopyThreads);  // before one notes what is broken
      CopyQueries<L>(args, item, shared);
      simt::CpAsyncCommit();
      Publish(&barriers.queries_full);
    }
    TERRACE_NO_UNROLL
    for (uint32_t begin = start; begin <= source.last; begin += L::kKeys) {
      std::byte* const tile = tiles + place.stage * L::kTileBytes;
      simt::BarrierWait(empty + place.stage, place.parity ^ 1);
      CopyTile<L>(source, rows, block, begin, tile);
      simt::CpAsyncCommit();
      block = source.template Block<L::kKeys>(begin + L::kKeys);
      if (kIsValues && (begin + L::kKeys - 1 > item.position || window.Hides(begin, source.last))) {
        simt::CpAsyncWait<0>();
        MendValues<L>(tile,
                      [&](uint32_t i) { told.broken.Note(begin + i, window, item.position, source.last); });
      }
      Publish(full + place.stage);
      place.Next();
    }
  }
}

// ---- The warpgroups that multiply

// A thread's part of its group's 64 queries: rows g and g + 8 of the 16 of its warp, with g = lane / 4.
template <uint32_t kHeadDim>
struct GroupState {
  float out[kHeadDim / 2];  // an accumulator
  float reference[2];       // of row g + 8 h: log2 of what its weights are relative to
  float sum[2];             // of the thread's weights
};

// Row of its group of a thread's row 8 h.
TERRACE_DEVICE uint32_t RowOfGroup() { return simt::WarpIndex() % 4 * 16 + simt::Lane() / 4; }

// A group is done with what `empty` guards.
TERRACE_DEVICE void Release(uint64_t* empty) {
  simt::SyncWarp();
  if (simt::Lane() == 0) simt::BarrierArrive(empty);
}

// Queues scores = queries * keys. (Queries in registers would take less of shared memory's bandwidth; they
// did not pay.)
template <typename L>
TERRACE_DEVICE void QueueScores(float (&scores)[L::kKeys / 2], uint64_t queries, uint64_t keys) {
  TERRACE_UNROLL
  for (uint32_t k = 0; k < L::kHeadDim / 16; ++k) {
    const uint64_t query = simt::TileAt(queries, k / 4 * (kGpuQueryTile * 128) + k % 4 * 32);
    simt::Wgmma<L::kKeys>(scores, query, simt::TileAt(keys, k / 4 * (L::kKeys * 128) + k % 4 * 32), k > 0);
  }
  simt::WgmmaCommit();
}

// Queues out += weights * values.
template <typename L>
TERRACE_DEVICE void QueueValues(float (&out)[L::kHeadDim / 2], const uint32_t (&weights)[L::kKeys / 16][4],
                                uint64_t values) {
  TERRACE_UNROLL
  for (uint32_t k = 0; k < L::kKeys / 16; ++k) {
    simt::WgmmaTransposed<L::kHeadDim>(out, weights[k], simt::TileAt(values, k * (16 * 128)), true);
  }
  simt::WgmmaCommit();
}

// As prefill's.
template <uint32_t kKeys>
TERRACE_DEVICE void Cap(float (&scores)[kKeys / 2], float scale) {
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kKeys / 2; ++i) scores[i] = prefill::CappedScore(scores[i], scale);
}
template <bool kIsBehind, uint32_t kKeys>
TERRACE_DEVICE void Mask(float (&scores)[kKeys / 2], int32_t edge) {
  TERRACE_UNROLL
  for (uint32_t i = 0; i < 4; ++i) {
    const int32_t left =
        edge + static_cast<int32_t>(RowOfGroup() + i / 2 * 8) - static_cast<int32_t>(simt::Lane() % 4 * 2);
    TERRACE_UNROLL
    for (uint32_t n = 0; n < kKeys / 8; ++n) {
      if ((static_cast<int32_t>(8 * n + i % 2) >= left) == kIsBehind) scores[4 * n + i] = -INFINITY;
    }
  }
}

// As prefill::MoveReferences. True when `out` must be multiplied by factor[h], when it may be written again.
template <uint32_t kKeys, uint32_t kHeadDim>
TERRACE_DEVICE bool MoveReferences(GroupState<kHeadDim>& state, const float (&scores)[kKeys / 2], float scale,
                                   float (&factor)[2]) {
  float largest[2];
  bool is_far = false;
  TERRACE_UNROLL
  for (uint32_t h = 0; h < 2; ++h) {
    float most = fmaxf(scores[2 * h], scores[2 * h + 1]);  // NaNs are passed over
    TERRACE_UNROLL
    for (uint32_t n = 1; n < kKeys / 8; ++n) {
      most = fmaxf(most, fmaxf(scores[4 * n + 2 * h], scores[4 * n + 2 * h + 1]));
    }
    largest[h] = most * scale;
    is_far = is_far || largest[h] > state.reference[h] + kSlack;
    factor[h] = 1;
  }
  if (simt::Ballot(is_far) == 0) return false;
  TERRACE_UNROLL
  for (uint32_t h = 0; h < 2; ++h) {
    float most = fmaxf(largest[h], simt::ShuffleXor(largest[h], 1));
    most = fmaxf(most, simt::ShuffleXor(most, 2));
    if (most > state.reference[h] + kSlack) {
      factor[h] = simt::Exp2(state.reference[h] - most);
      state.reference[h] = most;
      state.sum[h] *= factor[h];
    }
  }
  return true;
}

// Weights of the scores, in their place. The fused multiply-add is written out: an item's first tile is
// weighed at a place of its own, and may be any tile of a query's.
template <uint32_t kKeys, uint32_t kHeadDim>
TERRACE_DEVICE void Weigh(GroupState<kHeadDim>& state, float (&scores)[kKeys / 2], float scale) {
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kKeys / 2; i += 2) {
    const uint32_t h = i / 2 % 2;
    scores[i] = simt::Exp2(fmaf(scores[i], scale, -state.reference[h]));
    scores[i + 1] = simt::Exp2(fmaf(scores[i + 1], scale, -state.reference[h]));
    state.sum[h] += scores[i] + scores[i + 1];
  }
}

// The accumulator's fragments are those of the next product's operand.
template <uint32_t kKeys>
TERRACE_DEVICE void PackWeights(uint32_t (&weights)[kKeys / 16][4], const float (&scores)[kKeys / 2]) {
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kKeys / 4; ++i) {
    weights[i / 4][i % 4] = simt::PackBF16(scores[2 * i], scores[2 * i + 1]);
  }
}

// Of lanes 4 i to 4 i + 3, lane t's word j becomes lane j's word t.
TERRACE_DEVICE void TransposeFour(uint32_t (&words)[4]) {
  TERRACE_UNROLL
  for (uint32_t mask = 1; mask <= 2; mask *= 2) {
    const bool is_upper = (simt::Lane() & mask) != 0;
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      if ((i & mask) != 0) continue;
      const uint32_t theirs = simt::ShuffleXor(is_upper ? words[i] : words[i | mask], mask);
      words[i] = is_upper ? theirs : words[i];
      words[i | mask] = is_upper ? words[i | mask] : theirs;
    }
  }
}

// The rows of group `group` that exist. Those that see a broken value are NaN.
template <uint32_t kHeadDim, bool kLimits>
TERRACE_DEVICE void Store(const GroupState<kHeadDim>& state, const GpuAttentionArgs& args,
                          const ToldItem<kLimits>& item, uint32_t group) {
  const auto is_whole = item.broken.WholeRows(0, item.position);
  TERRACE_UNROLL
  for (uint32_t h = 0; h < 2; ++h) {
    float sum = state.sum[h];
    sum += simt::ShuffleXor(sum, 1);
    sum += simt::ShuffleXor(sum, 2);
    const uint32_t row = group * kGroupQueries + RowOfGroup() + 8 * h;
    const float inverse = is_whole(row) ? simt::Reciprocal(sum) : NAN;
    uint16_t* const to = args.out + ((uint64_t{item.token} + row) * args.heads + item.head) * kHeadDim;
    TERRACE_UNROLL
    for (uint32_t n = 0; n < kHeadDim / 8; n += 4) {  // lane t stores 16 bytes: columns 8 (n + t)
      uint32_t words[4];
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 4; ++i) {
        const float* pair = &state.out[4 * (n + i) + 2 * h];
        words[i] = simt::PackBF16(pair[0] * inverse, pair[1] * inverse);
      }
      TransposeFour(words);
      if (row < item.count) {
        *reinterpret_cast<uint4*>(to + 8 * (n + simt::Lane() % 4)) =
            uint4{words[0], words[1], words[2], words[3]};
      }
    }
  }
}

// A group that multiplies: where it is in the rings, and whose turn it is.
template <typename L>
class Group {
 public:
  TERRACE_DEVICE Group(const GpuAttentionArgs& args, std::byte* shared, uint32_t group)
      : args_(args),
        shared_(shared),
        barriers_(L::BarriersOf(shared)),
        items_(L::ItemsOf(shared)),
        group_(group),
        keys_(simt::SharedTile(shared + L::kKeyTiles, 1024)),
        values_(simt::SharedTile(shared + L::kValueTiles, 1024, L::kKeys * 128)),
        window_(args),
        scale_(prefill::ScoreScale<L::kLimits>(args)) {}

  TERRACE_DEVICE void Run() {
    if (group_ == 1) EndTurn();  // the first is group 0's
    const uint32_t items = args_.run_count * args_.heads;
    for (uint32_t round = 0; ItemNumber(round) < items; ++round) {
      simt::BarrierWait(&barriers_.queries_full, round % 2);
      const Told& item = items_[round % 2];
      const uint32_t last = item.position + item.count - 1;
      const uint32_t first = item.position + group_ * kGroupQueries;
      const uint32_t begin = window_.Begin(item.position) / L::kKeys, end = last / L::kKeys + 1;
      const uint32_t most = first + kGroupQueries - 1;
      const uint32_t seen = first > last ? begin : (most < last ? most : last) / L::kKeys + 1;
      if (seen > begin) {
        const uint32_t own = window_.Begin(first) / L::kKeys;
        TERRACE_NO_UNROLL
        for (uint32_t tile = begin; tile < own; ++tile) Pass();
        Attend(item, first, own, seen);
      } else {
        Release(&barriers_.queries_empty);
      }
      TERRACE_NO_UNROLL
      for (uint32_t tile = seen; tile < end; ++tile) Pass();
    }
    if (group_ == 0) BeginTurn();  // the other group's last EndTurn was for it
  }

 private:
  using Told = typename L::Told;

  // Tiles [begin, end) of an item; the group's first query is at position `first`.
  TERRACE_DEVICE void Attend(const Told& item, uint32_t first, uint32_t begin, uint32_t end) {
    GroupState<L::kHeadDim> state;
    TERRACE_UNROLL
    for (uint32_t i = 0; i < L::kHeadDim / 2; ++i) state.out[i] = 0;
    state.reference[0] = state.reference[1] = kNoReference;
    state.sum[0] = state.sum[1] = 0;
    float scores[L::kKeys / 2], factor[2];
    uint32_t weights[L::kKeys / 16][4];
    const uint64_t queries = simt::SharedTile(shared_ + group_ * (kGroupQueries * 128), 1024);

    WaitFor(barriers_.keys_full, key_);
    BeginTurn();
    simt::WgmmaFence();
    QueueScores<L>(scores, queries, KeyTile());
    EndTurn();
    simt::WgmmaWait<0>();
    simt::PinRegisters(scores);
    ReleaseKeys();
    auto seen = static_cast<int32_t>(first + 1 - begin * L::kKeys);  // of the tile's keys, by the first query
    CapAndMask(scores, seen);
    MoveReferences<L::kKeys>(state, scores, scale_, factor);
    Weigh<L::kKeys>(state, scores, scale_);
    PackWeights<L::kKeys>(weights, scores);
    WaitFor(barriers_.values_full, value_);

    TERRACE_NO_UNROLL
    for (uint32_t tile = begin + 1; tile < end; ++tile) {
      WaitFor(barriers_.keys_full, key_);
      PinWeights(weights);
      simt::PinRegisters(state.out);
      BeginTurn();
      simt::WgmmaFence();
      QueueScores<L>(scores, queries, KeyTile());
      QueueValues<L>(state.out, weights, ValueTile());
      EndTurn();
      simt::WgmmaWait<1>();
      simt::PinRegisters(scores);
      ReleaseKeys();
      seen -= static_cast<int32_t>(L::kKeys);
      CapAndMask(scores, seen);
      const bool moves = MoveReferences<L::kKeys>(state, scores, scale_, factor);
      Weigh<L::kKeys>(state, scores, scale_);
      simt::PinRegisters(scores);
      const uint32_t multiplied = value_.stage;
      value_.Next();
      WaitFor(barriers_.values_full, value_);  // here, as ptxas moves no weights behind this loop
      simt::WgmmaWait<0>();
      PinWeights(weights);
      simt::PinRegisters(state.out);
      Release(barriers_.values_empty + multiplied);
      if (moves) {
        TERRACE_UNROLL
        for (uint32_t i = 0; i < L::kHeadDim / 2; ++i) state.out[i] *= factor[i / 2 % 2];
      }
      PackWeights<L::kKeys>(weights, scores);
    }
    Release(&barriers_.queries_empty);

    PinWeights(weights);
    simt::PinRegisters(state.out);
    simt::WgmmaFence();
    QueueValues<L>(state.out, weights, ValueTile());
    simt::WgmmaWait<0>();
    PinWeights(weights);
    simt::PinRegisters(state.out);
    ReleaseValues();
    Store(state, args_, item, group_);
  }

  // `seen` keys of the tile are not behind the group's first query.
  TERRACE_DEVICE void CapAndMask(float (&scores)[L::kKeys / 2], int32_t seen) const {
    if constexpr (L::kLimits) {
      if (args_.softcap != 0) Cap<L::kKeys>(scores, prefill::CapScale(args_));
    }
    if (seen < static_cast<int32_t>(L::kKeys)) Mask<true, L::kKeys>(scores, seen);
    if constexpr (L::kLimits) {
      const int32_t before = seen - window_.size;  // of the tile's keys, the first query's window
      if (before + static_cast<int32_t>(kGroupQueries) > 1) Mask<false, L::kKeys>(scores, before);
    }
  }

  // A tile that no query of the group sees. Waited for, so that it is not released before it is there.
  TERRACE_DEVICE void Pass() {
    WaitFor(barriers_.keys_full, key_);
    BeginTurn();
    EndTurn();
    ReleaseKeys();
    WaitFor(barriers_.values_full, value_);
    ReleaseValues();
  }

  TERRACE_DEVICE static void PinWeights(uint32_t (&weights)[L::kKeys / 16][4]) {
    TERRACE_UNROLL
    for (uint32_t k = 0; k < L::kKeys / 16; ++k) simt::PinRegisters(weights[k]);
  }

  TERRACE_DEVICE void WaitFor(uint64_t* full, const RingPlace& place) {
    simt::BarrierWait(full + place.stage, place.parity);
  }
  TERRACE_DEVICE uint64_t KeyTile() const { return simt::TileAt(keys_, key_.stage * L::kTileBytes); }
  TERRACE_DEVICE uint64_t ValueTile() const { return simt::TileAt(values_, value_.stage * L::kTileBytes); }
  TERRACE_DEVICE void ReleaseKeys() {
    Release(barriers_.keys_empty + key_.stage);
    key_.Next();
  }
  TERRACE_DEVICE void ReleaseValues() {
    Release(barriers_.values_empty + value_.stage);
    value_.Next();
  }

  // Products are queued in turns, as many of either group's in an item as it has tiles.
  TERRACE_DEVICE void BeginTurn() { simt::SyncSome(kTurnBarrier + group_, kGroups * simt::kWarpgroup); }
  TERRACE_DEVICE void EndTurn() { simt::ArriveSome(kTurnBarrier + 1 - group_, kGroups * simt::kWarpgroup); }

  const GpuAttentionArgs& args_;
  const std::byte* const shared_;
  Barriers& barriers_;
  const Told* const items_;
  const uint32_t group_;
  const uint64_t keys_, values_;  // the rings' first tiles
  const Window<L::kLimits> window_;
  const float scale_;
  RingPlace key_, value_;
};

template <typename L>
TERRACE_DEVICE void InitBarriers(std::byte* shared) {
  constexpr uint32_t kGroupWarps = kGroups * simt::kWarpgroup / simt::kWarp;
  Barriers& barriers = L::BarriersOf(shared);
  for (uint32_t i = 0; i < kStages; ++i) {
    simt::BarrierInit(&barriers.keys_full[i], kCopyThreads);
    simt::BarrierInit(&barriers.values_full[i], kCopyThreads);
    simt::BarrierInit(&barriers.keys_empty[i], kGroupWarps);
    simt::BarrierInit(&barriers.values_empty[i], kGroupWarps);
  }
  simt::BarrierInit(&barriers.queries_full, kCopyThreads);
  simt::BarrierInit(&barriers.queries_empty, kGroupWarps);
  simt::BarrierInitDone();
}

}  // namespace hopper_prefill

// Any grid of one dimension: as many blocks as there are multiprocessors, or items if these are fewer.
template <typename L>
TERRACE_KERNEL void TERRACE_BOUNDS(hopper_prefill::kThreads, 1) HopperPrefillKernel(GpuAttentionArgs args) {
  if constexpr (simt::kHasWarpgroups) {
    using namespace hopper_prefill;
    std::byte* const shared = simt::DynamicShared();
    simt::LetNextStart();
    if (threadIdx.x == 0) InitBarriers<L>(shared);
    simt::SyncThreads();
    simt::WaitForPrevious();
    const uint32_t warp = simt::Shuffle(simt::WarpIndex(), 0);
    if (warp < 4) {
      simt::KeepRegisters<kCopierRegisters>();
      if (warp < 2) {
        Copy<L, false>(args, shared);
      } else {
        Copy<L, true>(args, shared);
      }
    } else {
      simt::TakeRegisters<kGroupRegisters>();
      Group<L>(args, shared, warp / 4 - 1).Run();
    }
  }
}

}  // namespace terrace
