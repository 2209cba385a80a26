// Device code of DecodeAttentionCuda (decode_attention_cuda.h).
//
// Grid (parts, kv_heads, tokens). A block takes all the query heads of one kv head over some spans of one
// token's positions; its warps take tiles of kTile positions in turn. Keys and values go from global memory
// straight into the fragments of mma.m16n8k16: what order the elements of a head are summed in, and which row
// of a product is which element, is ours to choose, so each lane loads 16 bytes of a row and they are its
// fragments as they lie.
//   scores: S[heads, positions] = q K^T. Lane (g, t) loads keys g and g + 8 of a tile: columns g of two mmas.
//   output: O^T[elements, heads] += V^T P^T. P^T is the layout in which S leaves its mma; lane (g, t) loads
//           values 2t, 2t+1, 2t+8, 2t+9 and pairs them up by BytePermute.
//
// The order of all sums is a function of the token's position alone. A tile belongs to a warp by its place in
// its span; the warps of a span are merged in their order; kGroupSpans spans in rising order make a group,
// and groups in rising order the result. Blocks of whole groups or of single spans do the same sums: a
// block's `unit`, which depends on the batch, says only which of the results between pass through memory.
//
// With kLimits there is a window or a cap. Spans before the one that the window begins in are no one's:
// blocks count their units from there, but groups are the same ones as without a window.
//
// With kRopes every block rotates the queries it reads, and the block of a token's last span makes the
// token's own key and value: it writes them to the pool, and its warps take them from shared memory. So
// nothing but q is of the kernel before this one: the first keys and values are under way before that is
// done.
#pragma once

#include <cmath>

#include "kernels/attention/paged_attention_gpu.h"
#include "kernels/quant/e4m3_device.h"
#include "kernels/rope/rope_kv_device.h"
#include "kernels/simt/simt.h"

namespace terrace::decode_attention {

inline constexpr uint32_t kTile = 16;     // positions of a warp at a time; never across blocks of the pool
inline constexpr uint32_t kHeadTile = 8;  // heads of a P^T
inline constexpr uint32_t kLog2GroupSpans = 2, kGroupSpans = 1u << kLog2GroupSpans;  // see above

// More heads want more accumulators, so fewer warps.
template <uint32_t kHeadTiles>
inline constexpr uint32_t kWarpsOf = kHeadTiles == 1 ? 8 : 4;
// Of heads of 256 the outputs and a tile's keys and values are 192 registers: there is one head tile only.
template <uint32_t kHeadDim, uint32_t kHeadTiles>
inline constexpr uint32_t kBlocksPerSm = kHeadDim > 128    ? 1
                                         : kHeadTiles == 1 ? 2
                                                           : 3;

// The rows of each KvDType: fragments of what was loaded, and the 16-bit format they, q and the weights have.
struct BF16Rows {
  static constexpr KvDType kDType = KvDType::kBF16;
  static constexpr uint32_t kBytes = 2;
  static constexpr bool kScaled = false;
  TERRACE_DEVICE static uint32_t Query(uint32_t pair) { return pair; }
  TERRACE_DEVICE static uint32_t Pack(float low, float high) { return simt::PackBF16(low, high); }
  TERRACE_DEVICE static float SumOfPair(uint32_t pair) { return simt::BF16Low(pair) + simt::BF16High(pair); }
  TERRACE_DEVICE static void Mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    simt::MmaBF16(c, a, b);
  }
  // Elements 4 * step to 4 * step + 3 of a lane's part of a key.
  template <uint32_t kWords>
  TERRACE_DEVICE static void Key(const uint32_t (&part)[kWords], uint32_t step, uint32_t (&b)[2]) {
    b[0] = part[2 * step];
    b[1] = part[2 * step + 1];
  }
  // Elements 2i (rows g) and 2i + 1 (rows g + 8) of a lane's parts of four values.
  template <uint32_t kWords>
  TERRACE_DEVICE static void Values(const uint32_t (&parts)[4][kWords], uint32_t i, uint32_t (&a)[4]) {
    a[0] = simt::BytePermute(parts[0][i], parts[1][i], 0x5410);
    a[1] = simt::BytePermute(parts[0][i], parts[1][i], 0x7632);
    a[2] = simt::BytePermute(parts[2][i], parts[3][i], 0x5410);
    a[3] = simt::BytePermute(parts[2][i], parts[3][i], 0x7632);
  }
};

// q, which is bf16, is saturated at what f16 holds; below 2^-14 it is rounded to multiples of 2^-24.
struct F16Rows : BF16Rows {
  static constexpr KvDType kDType = KvDType::kF16;
  TERRACE_DEVICE static float Saturate(float x) { return x > 65504 ? 65504.f : x < -65504 ? -65504.f : x; }
  TERRACE_DEVICE static uint32_t Query(uint32_t pair) {
    return simt::PackF16(Saturate(simt::BF16Low(pair)), Saturate(simt::BF16High(pair)));
  }
  TERRACE_DEVICE static uint32_t Pack(float low, float high) { return simt::PackF16(low, high); }
  TERRACE_DEVICE static float SumOfPair(uint32_t pair) { return simt::F16Low(pair) + simt::F16High(pair); }
  TERRACE_DEVICE static void Mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    simt::MmaF16(c, a, b);
  }
};

// Of codes of one byte. Codes::Pairs makes the fragments of bytes 0 and 1, and of 2 and 3, of a word.
template <typename Base, typename Codes>
struct ByteRows : Base {
  static constexpr uint32_t kBytes = 1;
  template <uint32_t kWords>
  TERRACE_DEVICE static void Key(const uint32_t (&part)[kWords], uint32_t step, uint32_t (&b)[2]) {
    Codes::Pairs(part[step], b[0], b[1]);
  }
  template <uint32_t kWords>
  TERRACE_DEVICE static void Values(const uint32_t (&parts)[4][kWords], uint32_t i, uint32_t (&a)[4]) {
    const uint32_t selector = i % 2 == 0 ? 0x5140 : 0x7362;
    Codes::Pairs(simt::BytePermute(parts[0][i / 2], parts[1][i / 2], selector), a[0], a[1]);
    Codes::Pairs(simt::BytePermute(parts[2][i / 2], parts[3][i / 2], selector), a[2], a[3]);
  }
};

// Codes become kStep of themselves as bf16, exactly: code + 128 as the lower bits of a bf16 is 2^-133 of it,
// also where it reaches the exponent, for the first normal binade has the step of the subnormals; that times
// 2^127, less 2. q is multiplied by 1 / kStep; scales multiply scores and weights.
struct Int8Codes {
  TERRACE_DEVICE static void Pairs(uint32_t codes, uint32_t& first, uint32_t& second) {
    const uint32_t biased = codes ^ 0x80808080;
    first = simt::FmaBF16x2(simt::BytePermute(biased, 0, 0x4140), 0x7f007f00, 0xc000c000);
    second = simt::FmaBF16x2(simt::BytePermute(biased, 0, 0x4342), 0x7f007f00, 0xc000c000);
  }
};
struct Int8Rows : ByteRows<BF16Rows, Int8Codes> {
  static constexpr KvDType kDType = KvDType::kInt8;
  static constexpr bool kScaled = true;
  static constexpr float kStep = 0x1p-6f;  // of outputs, and so of the weights' sum
  TERRACE_DEVICE static uint32_t Query(uint32_t pair) { return simt::MulBF16x2(pair, 0x42804280); }
};

// Codes become f16, which is exact.
struct Fp8Codes {
  TERRACE_DEVICE static void Pairs(uint32_t codes, uint32_t& first, uint32_t& second) {
    first = F16OfE4M3(codes, 0);
    second = F16OfE4M3(codes, 1);
  }
};
struct Fp8Rows : ByteRows<F16Rows, Fp8Codes> {
  static constexpr KvDType kDType = KvDType::kFp8;
};

TERRACE_DEVICE uint32_t Least(uint32_t a, uint32_t b) { return a < b ? a : b; }
TERRACE_DEVICE uint32_t Most(uint32_t a, uint32_t b) { return a > b ? a : b; }
TERRACE_DEVICE float MinusInfinity() { return simt::FloatOfBits(0xff800000); }

// The first position that a token at `position` attends to.
TERRACE_DEVICE uint32_t WindowBegin(const GpuAttentionArgs& a, uint32_t position) {
  return a.window == 0 || position < a.window ? 0 : position + 1 - a.window;
}

// What a product of a query and a key is as a power of 2, with kLimits capped.
template <bool kLimits>
struct Octaves {
  float scale, cap;

  TERRACE_DEVICE explicit Octaves(const GpuAttentionArgs& a) : scale(a.scale * kLog2E), cap(0) {
    if (!kLimits || a.softcap == 0) return;
    cap = a.softcap * kLog2E;
    scale = 2 * scale * simt::Reciprocal(a.softcap);
  }
  TERRACE_DEVICE float operator()(float product) const {
    const float scaled = fmaf(product, scale, 0.f);  // not fused with what is done with it
    if (!kLimits || cap == 0) return scaled;
    // cap * tanh(x) = cap - 2 cap / (2^(2 x log2 e) + 1), off by some 2^-21 of the cap.
    return fmaf(-2 * cap, simt::Reciprocal(simt::Exp2(scaled) + 1), cap);
  }

 private:
  static constexpr float kLog2E = 1.4426950408889634f;
};

template <uint32_t kWords>
TERRACE_DEVICE void LoadWords(const std::byte* from, uint32_t (&words)[kWords]) {
  if constexpr (kWords == 4) {
    const uint4 v = simt::LoadStream(reinterpret_cast<const uint4*>(from));
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  } else if constexpr (kWords == 2) {
    const uint2 v = simt::LoadStream(reinterpret_cast<const uint2*>(from));
    words[0] = v.x, words[1] = v.y;
  } else {
    static_assert(kWords == 1);
    words[0] = *reinterpret_cast<const uint32_t*>(from);
  }
}

template <uint32_t kWords>
TERRACE_DEVICE void LoadSharedWords(const std::byte* from, uint32_t (&words)[kWords]) {
  TERRACE_UNROLL
  for (uint32_t i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const uint32_t*>(from)[i];
}

// The token's own key and value in shared memory, as the pool holds them: KvRows, but of one row each.
template <typename Rows, uint32_t kHeadDim>
struct OwnRows {
  struct alignas(16) Row {
    std::byte data[kHeadDim * Rows::kBytes];
    float scale;
  };
  Row key, value;

  // From `key_and_value`, `kv_stride` elements from each other, by a warp; to row `row` of the pool too.
  TERRACE_DEVICE void Make(const GpuAttentionArgs& a, const uint16_t* key_and_value, uint32_t kv_stride,
                           uint32_t position, uint64_t row) {
    constexpr uint32_t kGroup = kHeadDim / 16, kHalf = kHeadDim / 2;  // lanes of a row; elements
    const uint32_t piece = simt::Lane() % kGroup, of = simt::Lane() / kGroup;
    const bool is_key = of == 0, is_mine = of < 2;
    const uint16_t* from = key_and_value + (of == 1 ? kv_stride : 0) + 8 * piece;
    RopePiece low = UnpackBF16(*reinterpret_cast<const uint4*>(from));
    RopePiece high = UnpackBF16(*reinterpret_cast<const uint4*>(from + kHalf));
    if (is_key) {
      const uint64_t angles = uint64_t{position} * kHalf;
      float4 cos[2], sin[2];
      if (a.neighbours) {
        LoadAngles<true>(a.cos + angles, piece, kHalf, cos);
        LoadAngles<true>(a.sin + angles, piece, kHalf, sin);
        RotatePieces<true>(low, high, cos, sin);
      } else {
        LoadAngles<false>(a.cos + angles, piece, kHalf, cos);
        LoadAngles<false>(a.sin + angles, piece, kHalf, sin);
        RotatePieces<false>(low, high, cos, sin);
      }
    }
    float scale = 0;
    if constexpr (Rows::kScaled) scale = Int8Scale(low, high, kGroup);
    if (!is_mine) return;
    Row& own = is_key ? key : value;
    std::byte* const rows = is_key ? a.kv.keys.data : a.kv.values.data;
    const auto pieces = KvPieces<Rows::kDType>::Of(low, high, scale);
    pieces.Store(own.data, kHalf, piece);
    pieces.Store(rows + row * sizeof(own.data), kHalf, piece);
    if (Rows::kScaled && piece == 0) {
      own.scale = scale;
      (is_key ? a.kv.keys.scales : a.kv.values.scales)[row] = scale;
    }
  }
};

// Softmax-weighted values of some positions, of one head: four elements of their sum, relative to 2^largest.
struct Part {
  float largest, sum;
  float4 o;
};
TERRACE_DEVICE Part NoPositions() { return {MinusInfinity(), 0, {0, 0, 0, 0}}; }

// Written out: the compiler may not choose which products it fuses, which could differ from place to place.
TERRACE_DEVICE void Scale(float by, float4& x) { x = {x.x * by, x.y * by, x.z * by, x.w * by}; }
TERRACE_DEVICE void AddScaled(float by, const float4& x, float4& to) {
  to = {fmaf(x.x, by, to.x), fmaf(x.y, by, to.y), fmaf(x.z, by, to.z), fmaf(x.w, by, to.w)};
}
TERRACE_DEVICE void Fold(const Part& part, Part& into) {
  const float largest = fmaxf(into.largest, part.largest);
  const float keep = simt::Exp2(into.largest - largest), add = simt::Exp2(part.largest - largest);
  into.largest = largest;
  into.sum = fmaf(part.sum, add, into.sum * keep);
  Scale(keep, into.o);
  AddScaled(add, part.o, into.o);
}

// Where the parts are that blocks exchange: [token, kv_head, unit, group head], of the head's elements and,
// behind all of these, of {largest, sum}.
template <uint32_t kHeadDim>
struct PartialPlace {
  float4* o;
  float2* totals;
  uint32_t heads;  // of a kv head

  TERRACE_DEVICE PartialPlace(const GpuAttentionArgs& a, uint32_t index, uint32_t kv_head,
                              uint32_t group_heads)
      : heads(group_heads) {
    const uint64_t row = (uint64_t{index} * a.batch.kv_heads + kv_head) * a.most_spans * heads;
    o = reinterpret_cast<float4*>(a.partials) + row * (kHeadDim / 4);
    totals =
        reinterpret_cast<float2*>(a.partials + uint64_t{a.count} * a.heads * a.most_spans * kHeadDim) + row;
  }
  TERRACE_DEVICE Part Load(uint32_t unit, uint32_t item) const {
    const float2 total = totals[unit * heads + item / (kHeadDim / 4)];
    return {total.x, total.y, o[unit * heads * (kHeadDim / 4) + item]};
  }
  TERRACE_DEVICE void Store(uint32_t unit, uint32_t item, const Part& part) const {
    o[unit * heads * (kHeadDim / 4) + item] = part.o;
    if (item % (kHeadDim / 4) == 0) totals[unit * heads + item / (kHeadDim / 4)] = {part.largest, part.sum};
  }
};

// What a warp has in registers.
template <typename Rows, uint32_t kHeadDim, uint32_t kHeadTiles>
struct Warp {
  static constexpr uint32_t kRowBytes = kHeadDim * Rows::kBytes;
  // A key is shared out among four lanes, a value among eight: loads of up to 16 bytes, of neighbouring
  // lanes.
  static constexpr uint32_t kMost = 16 / Rows::kBytes;
  static constexpr uint32_t kKeyPart = kHeadDim / 4 < kMost ? kHeadDim / 4 : kMost;  // elements
  static constexpr uint32_t kValuePart = kHeadDim / 8 < kMost ? kHeadDim / 8 : kMost;
  static constexpr uint32_t kKeyLoads = kHeadDim / (4 * kKeyPart), kValueLoads = kHeadDim / (8 * kValuePart);
  static constexpr uint32_t kQuads = kHeadDim / 16;              // fragments of a tile of q, of 32 lanes each
  static constexpr uint32_t kQueryTiles = (kHeadTiles + 1) / 2;  // of 16 rows: two head tiles

  uint32_t keys[2][kKeyLoads][kKeyPart * Rows::kBytes / 4];
  uint32_t values[kValueLoads][4][kValuePart * Rows::kBytes / 4];
  uint2 key_scales[2], value_scales[2];  // of positions 2t, 2t+1 and 2t+8, 2t+9; as bits
  float o[kHeadTiles][kHeadDim / 16][4];
  float largest[kHeadTiles], sum[kHeadTiles];  // of head g of a tile; of this lane's positions

  // The first of the eight elements of q that lane t has in fragments 2 * pair and 2 * pair + 1.
  TERRACE_DEVICE static uint32_t QueryElement(uint32_t pair, uint32_t t) {
    constexpr uint32_t kPairs = kKeyPart / 8;
    return pair / kPairs * 4 * kKeyPart + t * kKeyPart + pair % kPairs * 8;
  }

  // `row` is the tile's first. Rows before the token's window, of which `before` are in the tile, and behind
  // its own, `last`, hold anything: the window's first and the token's own stand for them, and weigh nothing
  // there.
  TERRACE_DEVICE static uint32_t RowFor(uint32_t i, uint32_t before, uint32_t last) {
    return Least(Most(i, before), last);
  }
  TERRACE_DEVICE void LoadKeys(const KvRows& rows, uint64_t row, uint32_t before, uint32_t last) {
    const uint32_t g = simt::Lane() / 4, t = simt::Lane() % 4;
    const std::byte* from = rows.data + row * kRowBytes + t * kKeyPart * Rows::kBytes;
    TERRACE_UNROLL
    for (uint32_t j = 0; j < 2; ++j) {
      const std::byte* key = from + RowFor(8 * j + g, before, last) * kRowBytes;
      TERRACE_UNROLL
      for (uint32_t c = 0; c < kKeyLoads; ++c) LoadWords(key + c * 4 * kKeyPart * Rows::kBytes, keys[j][c]);
    }
    if constexpr (Rows::kScaled) LoadScales(rows.scales + row, key_scales);
  }
  TERRACE_DEVICE void LoadValues(const KvRows& rows, uint64_t row, uint32_t before, uint32_t last) {
    const uint32_t g = simt::Lane() / 4, t = simt::Lane() % 4;
    const std::byte* from = rows.data + row * kRowBytes + g * kValuePart * Rows::kBytes;
    TERRACE_UNROLL
    for (uint32_t k = 0; k < 4; ++k) {
      const std::byte* value = from + RowFor(k / 2 * 8 + 2 * t + k % 2, before, last) * kRowBytes;
      TERRACE_UNROLL
      for (uint32_t u = 0; u < kValueLoads; ++u)
        LoadWords(value + u * 8 * kValuePart * Rows::kBytes, values[u][k]);
    }
    if constexpr (Rows::kScaled) LoadScales(rows.scales + row, value_scales);
  }
  TERRACE_DEVICE static void LoadScales(const float* scales, uint2 (&to)[2]) {
    const uint32_t t = simt::Lane() % 4;
    to[0] = simt::LoadStream(reinterpret_cast<const uint2*>(scales + 2 * t));
    to[1] = simt::LoadStream(reinterpret_cast<const uint2*>(scales + 8 + 2 * t));
  }
  // A tile's keys and values for L2: one stretch of memory.
  TERRACE_DEVICE static void Prefetch(const KvRows& rows, uint64_t row) {
    constexpr uint32_t kLine = 128;
    static_assert(kTile * kRowBytes <= simt::kWarp * kLine);
    const uint32_t at = simt::Lane() * kLine;
    if (at < kTile * kRowBytes) simt::PrefetchL2(rows.data + row * kRowBytes + at);
  }

  // Of the tile that the token's own row, its `last`, belongs to: takes what LoadKeys or LoadValues got from
  // the pool there out of shared memory.
  using Own = typename OwnRows<Rows, kHeadDim>::Row;
  TERRACE_DEVICE void TakeOwnKey(const Own& own, uint32_t last) {
    const uint32_t g = simt::Lane() / 4, t = simt::Lane() % 4;
    TERRACE_UNROLL
    for (uint32_t j = 0; j < 2; ++j) {
      if (8 * j + g < last) continue;
      TERRACE_UNROLL
      for (uint32_t c = 0; c < kKeyLoads; ++c)
        LoadSharedWords(own.data + (c * 4 + t) * kKeyPart * Rows::kBytes, keys[j][c]);
    }
    if constexpr (Rows::kScaled) TakeOwnScale(own, last, key_scales);
  }
  TERRACE_DEVICE void TakeOwnValue(const Own& own, uint32_t last) {
    const uint32_t g = simt::Lane() / 4, t = simt::Lane() % 4;
    TERRACE_UNROLL
    for (uint32_t k = 0; k < 4; ++k) {
      if (k / 2 * 8 + 2 * t + k % 2 < last) continue;
      TERRACE_UNROLL
      for (uint32_t u = 0; u < kValueLoads; ++u)
        LoadSharedWords(own.data + (u * 8 + g) * kValuePart * Rows::kBytes, values[u][k]);
    }
    if constexpr (Rows::kScaled) TakeOwnScale(own, last, value_scales);
  }
  TERRACE_DEVICE static void TakeOwnScale(const Own& own, uint32_t last, uint2 (&to)[2]) {
    const uint32_t t = simt::Lane() % 4, bits = simt::BitsOfFloat(own.scale);
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 2; ++i) {
      if (8 * i + 2 * t == last) to[i].x = bits;
      if (8 * i + 2 * t + 1 == last) to[i].y = bits;
    }
  }

  TERRACE_DEVICE void Begin() {
    TERRACE_UNROLL
    for (uint32_t h = 0; h < kHeadTiles; ++h) {
      largest[h] = MinusInfinity();
      sum[h] = 0;
      TERRACE_UNROLL
      for (uint32_t i = 0; i < kHeadDim / 16; ++i) {
        TERRACE_UNROLL
        for (uint32_t e = 0; e < 4; ++e) o[h][i][e] = 0;
      }
    }
  }

  // scores[h][2j + e] = q . key of head g of tile h at position 8j + 2t + e. Quads are of
  // [kQueryTiles][kQuads][32 lanes].
  TERRACE_DEVICE void Score(const uint4* quads, float (&scores)[kHeadTiles][4]) const {
    float c[kQueryTiles][2][4] = {};
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kQuads; ++i) {
      constexpr uint32_t kSteps = kKeyPart / 4;
      uint32_t b[2][2];
      TERRACE_UNROLL
      for (uint32_t j = 0; j < 2; ++j) Rows::Key(keys[j][i / kSteps], i % kSteps, b[j]);
      TERRACE_UNROLL
      for (uint32_t m = 0; m < kQueryTiles; ++m) {
        const uint4 quad = quads[(m * kQuads + i) * simt::kWarp + simt::Lane()];
        const uint32_t a[4] = {quad.x, quad.y, quad.z, quad.w};
        TERRACE_UNROLL
        for (uint32_t j = 0; j < 2; ++j) Rows::Mma(c[m][j], a, b[j]);
      }
    }
    TERRACE_UNROLL
    for (uint32_t h = 0; h < kHeadTiles; ++h) {
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 4; ++i) {
        scores[h][i] = c[h / 2][i / 2][2 * (h % 2) + i % 2];
        if constexpr (Rows::kScaled) scores[h][i] *= ScaleOf(key_scales, i);
      }
    }
  }

  // Weighs the tile's positions by exp2(octaves(scores)) and adds their values; those before the first
  // `before` and those behind `last` weigh nothing.
  template <bool kLimits>
  TERRACE_DEVICE void Add(const float (&scores)[kHeadTiles][4], const Octaves<kLimits>& octaves,
                          uint32_t before, uint32_t last) {
    uint32_t b[kHeadTiles][2];
    float keep[kHeadTiles];
    Weigh<true>(
        scores, octaves, [&](uint32_t) { return static_cast<int32_t>(before); },
        [&](uint32_t) { return static_cast<int32_t>(last); }, b, keep);
    ScaleOutputs(keep);
    AddValues(b);
  }

  // The weights as fragments b; keep[h] is what head g of tile h scales what it had before by. Of head g of
  // tile h positions before before(h), if there are limits, and behind last(h) weigh nothing; where these are
  // all, which kAllSee rules out, the tile changes nothing of it. Where a product is rounded is written out,
  // as in Fold.
  template <bool kAllSee, bool kLimits, typename Before, typename Last>
  TERRACE_DEVICE void Weigh(const float (&scores)[kHeadTiles][4], const Octaves<kLimits>& octaves,
                            const Before& before, const Last& last, uint32_t (&b)[kHeadTiles][2],
                            float (&keep)[kHeadTiles]) {
    const uint32_t t = simt::Lane() % 4;
    TERRACE_UNROLL
    for (uint32_t h = 0; h < kHeadTiles; ++h) {
      const auto is_outside = [&](uint32_t i) {
        const auto place = static_cast<int32_t>(i / 2 * 8 + 2 * t + i % 2);
        return place > last(h) || (kLimits && place < before(h));
      };
      float weights[4];
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 4; ++i) {
        weights[i] = octaves(scores[h][i]);
        if (is_outside(i)) weights[i] = MinusInfinity();
      }
      // Of the quad of lanes that share head g. NaN is nobody's largest; it comes through the sum.
      float most = fmaxf(fmaxf(weights[0], weights[1]), fmaxf(weights[2], weights[3]));
      most = fmaxf(most, simt::ShuffleXor(most, 1));
      most = fmaxf(most, simt::ShuffleXor(most, 2));
      most = fmaxf(most, largest[h]);
      // Else `most` may still be -infinity.
      const bool is_seen = kAllSee || (last(h) >= 0 && (!kLimits || before(h) < int32_t{kTile}));
      keep[h] = is_seen ? simt::Exp2(largest[h] - most) : 1;
      largest[h] = most;
      TERRACE_UNROLL
      for (uint32_t i = 0; i < 4; ++i) weights[i] = is_seen ? simt::Exp2(weights[i] - most) : 0;
      if constexpr (Rows::kScaled) {
        sum[h] = fmaf(sum[h], keep[h], Rows::kStep * ((weights[0] + weights[1]) + (weights[2] + weights[3])));
        TERRACE_UNROLL
        for (uint32_t i = 0; i < 4; ++i) {
          // The scale of a row that is not seen may be NaN.
          weights[i] = is_outside(i) ? 0 : weights[i] * ScaleOf(value_scales, i);
        }
      }
      b[h][0] = Rows::Pack(weights[0], weights[1]);
      b[h][1] = Rows::Pack(weights[2], weights[3]);
      // The weights as they are multiplied: whatever their rounding, the result is an average of values.
      if constexpr (!Rows::kScaled) {
        sum[h] = fmaf(sum[h], keep[h], Rows::SumOfPair(b[h][0]) + Rows::SumOfPair(b[h][1]));
      }
    }
  }
  TERRACE_DEVICE void ScaleOutputs(const float (&keep)[kHeadTiles]) {
    const uint32_t t = simt::Lane() % 4;
    TERRACE_UNROLL
    for (uint32_t h = 0; h < kHeadTiles; ++h) {
      // Columns 2t and 2t + 1 are those heads; head g is with lanes 4g to 4g + 3.
      const float keep_even = simt::Shuffle(keep[h], 8 * t), keep_odd = simt::Shuffle(keep[h], 8 * t + 4);
      TERRACE_UNROLL
      for (uint32_t i = 0; i < kHeadDim / 16; ++i) {
        TERRACE_UNROLL
        for (uint32_t e = 0; e < 4; ++e) o[h][i][e] *= e % 2 == 0 ? keep_even : keep_odd;
      }
    }
  }
  // o += values * weights.
  TERRACE_DEVICE void AddValues(const uint32_t (&b)[kHeadTiles][2]) {
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kHeadDim / 16; ++i) {
      uint32_t a[4];
      Rows::Values(values[i / (kValuePart / 2)], i % (kValuePart / 2), a);
      TERRACE_UNROLL
      for (uint32_t h = 0; h < kHeadTiles; ++h) Rows::Mma(o[h][i], a, b[h]);
    }
  }
  // The same for the lane's columns e of tiles h, 0 or 1, of which is_of(h, e) is true.
  template <typename IsOf>
  TERRACE_DEVICE void AddValues(const uint32_t (&b)[kHeadTiles][2], const IsOf& is_of) {
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kHeadDim / 16; ++i) {
      uint32_t a[4];
      Rows::Values(values[i / (kValuePart / 2)], i % (kValuePart / 2), a);
      TERRACE_UNROLL
      for (uint32_t h = 0; h < kHeadTiles; ++h) {
        float sums[4] = {o[h][i][0], o[h][i][1], o[h][i][2], o[h][i][3]};
        Rows::Mma(sums, a, b[h]);
        TERRACE_UNROLL
        for (uint32_t e = 0; e < 4; ++e) o[h][i][e] = is_of(h, e % 2) ? sums[e] : o[h][i][e];
      }
    }
  }
  TERRACE_DEVICE static float ScaleOf(const uint2 (&scales)[2], uint32_t i) {
    return simt::FloatOfBits(i % 2 == 0 ? scales[i / 2].x : scales[i / 2].y);
  }
};

// Dynamic shared memory of a block, whose warps put outputs of kPutTiles head tiles there at a time.
template <typename Rows, uint32_t kHeadDim, uint32_t kHeadTiles, uint32_t kBlockWarps = kWarpsOf<kHeadTiles>,
          uint32_t kPutTiles = kHeadTiles>
struct Shared {
  using Warp = decode_attention::Warp<Rows, kHeadDim, kHeadTiles>;
  static constexpr uint32_t kWarps = kBlockWarps, kHeads = kHeadTile * kHeadTiles;
  static constexpr uint32_t kItems = kHeads * kHeadDim / 4;
  static constexpr uint32_t kPutHeads = kHeadTile * kPutTiles;
  static constexpr uint32_t kPitch = kHeadDim / 4 + 1;  // float4; heads 2t of a store in other banks

  uint4 quads[Warp::kQueryTiles * Warp::kQuads * simt::kWarp];
  float4 o[kWarps][kPutHeads][kPitch];
  float2 totals[kWarps][kHeads];  // largest, sum
  Part unit[kItems];              // of the spans before this one of the block's unit; each of one thread
  OwnRows<Rows, kHeadDim> own;    // with kRopes, of the block of the token's last span
  uint32_t is_last;               // of the token's blocks

  // Fragments of q's rows [heads, kHeadDim], by all threads. turn(row, element) has eight elements of a row.
  template <typename Turn>
  TERRACE_DEVICE void SetQuery(const uint16_t* q, uint32_t heads, const Turn& turn) {
    static_assert(kWarps * simt::kWarp >= kHeadDim);
    if (const uint32_t i = threadIdx.x; i < kHeadDim) {
      const uint32_t pair = i / simt::kWarp, lane = i % simt::kWarp, g = lane / 4;
      const uint32_t element = Warp::QueryElement(pair, lane % 4);
      const auto load = [&](uint32_t head) {
        if (head >= heads) return uint4{0, 0, 0, 0};
        const uint4 v = turn(q + head * kHeadDim, element);
        return uint4{Rows::Query(v.x), Rows::Query(v.y), Rows::Query(v.z), Rows::Query(v.w)};
      };
      const uint4 v = load(g), w = kHeadTiles > 1 ? load(g + kHeadTile) : uint4{0, 0, 0, 0};
      quads[2 * pair * simt::kWarp + lane] = {v.x, w.x, v.y, w.y};
      quads[(2 * pair + 1) * simt::kWarp + lane] = {v.z, w.z, v.w, w.w};
    }
  }

  // What the calling warp has of head tiles from kFirst on.
  template <uint32_t kFirst = 0>
  TERRACE_DEVICE void Put(const Warp& warp, uint32_t heads) {
    const uint32_t w = simt::WarpIndex(), g = simt::Lane() / 4, t = simt::Lane() % 4;
    constexpr uint32_t kMmas = Warp::kValuePart / 2;  // of one load
    TERRACE_UNROLL
    for (uint32_t h = kFirst; h < kFirst + kPutTiles; ++h) {
      float sum = warp.sum[h];
      sum += simt::ShuffleXor(sum, 1);
      sum += simt::ShuffleXor(sum, 2);
      if (t == 0) totals[w][h * kHeadTile + g] = {warp.largest[h], sum};
      TERRACE_UNROLL
      for (uint32_t e = 0; e < 2; ++e) {
        const uint32_t head = h * kHeadTile + 2 * t + e;
        if (head >= heads) continue;
        TERRACE_UNROLL
        for (uint32_t i = 0; i < kHeadDim / 16; i += 2) {
          const uint32_t element = i / kMmas * 8 * Warp::kValuePart + g * Warp::kValuePart + i % kMmas * 2;
          const auto& x = warp.o[h][i];
          const auto& y = warp.o[h][i + 1];
          o[w][head % kPutHeads][element / 4] = {x[e], x[2 + e], y[e], y[2 + e]};
        }
      }
    }
  }

  // Of all warps, when they have put it.
  TERRACE_DEVICE Part Merge(uint32_t item) const {
    const uint32_t head = item / (kHeadDim / 4), d = item % (kHeadDim / 4);
    Part part = NoPositions();
    TERRACE_UNROLL
    for (uint32_t w = 0; w < kWarps; ++w) part.largest = fmaxf(part.largest, totals[w][head].x);
    TERRACE_UNROLL
    for (uint32_t w = 0; w < kWarps; ++w) {
      const float weight = simt::Exp2(totals[w][head].x - part.largest);
      part.sum = fmaf(totals[w][head].y, weight, part.sum);
      AddScaled(weight, o[w][head % kPutHeads][d], part.o);
    }
    return part;
  }
};

// Eight elements of a row of a head, from `element` on, as RoPE turns them and rounds them to bf16. The
// angles are of the token's position.
template <uint32_t kHeadDim, bool kNeighbours>
TERRACE_DEVICE uint4 TurnedEight(const uint16_t* row, uint32_t element, const float* cos_row,
                                 const float* sin_row) {
  constexpr uint32_t kHalf = kHeadDim / 2;
  RopePiece piece = UnpackBF16(*reinterpret_cast<const uint4*>(row + element));
  if constexpr (kNeighbours) {
    const float4 c = simt::LoadReadOnly(reinterpret_cast<const float4*>(cos_row + element / 2));
    const float4 s = simt::LoadReadOnly(reinterpret_cast<const float4*>(sin_row + element / 2));
    const float cos[4] = {c.x, c.y, c.z, c.w}, sin[4] = {s.x, s.y, s.z, s.w};
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 4; ++i) RotatePair(piece.x[2 * i], piece.x[2 * i + 1], cos[i], sin[i]);
  } else {
    const RopePiece other = UnpackBF16(*reinterpret_cast<const uint4*>(row + (element ^ kHalf)));
    float4 c[2], s[2];
    LoadAngles<false>(cos_row, element % kHalf / 8, kHalf, c);
    LoadAngles<false>(sin_row, element % kHalf / 8, kHalf, s);
    const float cos[8] = {c[0].x, c[0].y, c[0].z, c[0].w, c[1].x, c[1].y, c[1].z, c[1].w};
    const float sin[8] = {s[0].x, s[0].y, s[0].z, s[0].w, s[1].x, s[1].y, s[1].z, s[1].w};
    TERRACE_UNROLL
    for (uint32_t i = 0; i < 8; ++i) {  // real of the first half, imaginary of the second: RotatePair
      const float turned = other.x[i] * sin[i];
      piece.x[i] = fmaf(piece.x[i], cos[i], element < kHalf ? -turned : turned);
    }
  }
  return PackPieceBF16(piece);
}

// `out` is of the heads of a token and kv head.
TERRACE_DEVICE void StoreResult(uint16_t* out, uint32_t item, const Part& part) {
  const float by = simt::Reciprocal(part.sum);
  reinterpret_cast<uint2*>(out)[item] = {simt::PackBF16(part.o.x * by, part.o.y * by),
                                         simt::PackBF16(part.o.z * by, part.o.w * by)};
}

// The result of a token whose `units` units of `unit` spans have been stored; single spans, from the one
// behind the first `before` of a group on.
template <uint32_t kHeadDim>
TERRACE_DEVICE Part MergeUnits(const PartialPlace<kHeadDim>& place, uint32_t item, uint32_t units,
                               uint32_t unit, uint32_t before) {
  constexpr uint32_t kAhead = 8;
  static_assert(kAhead % kGroupSpans == 0);
  const uint32_t end = before + units;
  Part total = NoPositions();
  for (uint32_t first = 0; first < end; first += kAhead) {
    Part parts[kAhead];
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kAhead; ++i)
      parts[i] = place.Load(Least(Most(first + i, before), end - 1) - before, item);
    Part group = NoPositions();
    TERRACE_UNROLL
    for (uint32_t i = 0; i < kAhead; ++i) {
      if (first + i >= end) break;
      if (first + i < before) continue;
      if (unit == kGroupSpans) {
        Fold(parts[i], total);
        continue;
      }
      Fold(parts[i], group);
      if (i % kGroupSpans == kGroupSpans - 1 || first + i == end - 1) {
        Fold(group, total);
        group = NoPositions();
      }
    }
  }
  return total;
}

// A block's spans: part p of gridDim.x takes units p, p + gridDim.x, ... of `unit` spans each, 1 or
// kGroupSpans.
template <typename Rows, uint32_t kHeadDim, uint32_t kHeadTiles, bool kRopes, bool kLimits>
TERRACE_KERNEL void TERRACE_BOUNDS(kWarpsOf<kHeadTiles>* simt::kWarp, (kBlocksPerSm<kHeadDim, kHeadTiles>))
    DecodeAttentionKernel(GpuAttentionArgs a, uint32_t log2_unit, uint32_t heads) {
  using BlockShared = Shared<Rows, kHeadDim, kHeadTiles>;
  constexpr uint32_t kWarps = kWarpsOf<kHeadTiles>, kThreads = kWarps * simt::kWarp;
  constexpr uint32_t kStep = kWarps * kTile, kTiles = kGpuAttentionSpan / kStep;  // of a warp, in a span
  static_assert(kTiles >= 2 && kTiles * kStep == kGpuAttentionSpan);
  static_assert(!kRopes || !kLimits);
  auto& shared = *reinterpret_cast<BlockShared*>(simt::DynamicShared());
  simt::LetNextStart();
  if constexpr (!kRopes) simt::WaitForPrevious();

  const uint32_t index = blockIdx.z, kv_head = blockIdx.y, token = a.first + index;
  // Volatile: asked for with the position, instead of when that has said that the block has something to do.
  const uint32_t sequence = *static_cast<const volatile uint32_t*>(a.batch.sequences + token);
  const uint32_t position = a.batch.positions[token];
  const uint32_t spans = position / kGpuAttentionSpan + 1, unit = 1u << log2_unit;
  const uint32_t window_begin = kLimits ? WindowBegin(a, position) : 0;
  const uint32_t first_span = window_begin / kGpuAttentionSpan, first_unit = first_span >> log2_unit;
  const uint32_t units = ((spans + unit - 1) >> log2_unit) - first_unit;
  uint32_t span = (first_unit + blockIdx.x) << log2_unit;
  if (span >= spans) {
    if constexpr (kRopes) simt::WaitForPrevious();  // whoever follows waits for this kernel alone
    return;
  }
  span = Most(span, first_span);

  const uint32_t log2_block = a.batch.log2_block_tokens;
  const int32_t* table = a.batch.block_tables + uint64_t{sequence} * a.batch.table_pitch;
  const uint64_t head_blocks = uint64_t{kv_head} * a.batch.blocks;
  // For a tile that is not there, a block that is.
  const auto find_block = [&](uint32_t first) { return table[Least(first, position) >> log2_block]; };
  const auto row_of = [&](int32_t block, uint32_t first) {
    return ((head_blocks + static_cast<uint32_t>(block)) << log2_block) + (first & ((1u << log2_block) - 1));
  };

  // How many positions of the tile at `first` are before the window.
  const auto before_window = [&](uint32_t first) {
    return kLimits && first < window_begin ? window_begin - first : 0;
  };
  // Whether the block's next span is not the one behind this one, but of its next unit.
  const auto ends_its_unit = [&](uint32_t one) { return ((one + 1) & (unit - 1)) == 0 || one + 1 == spans; };

  Warp<Rows, kHeadDim, kHeadTiles> warp;
  const auto load_keys = [&](int32_t block, uint32_t first) {
    if (first > position) return;
    warp.LoadKeys(a.kv.keys, row_of(block, first), before_window(first), position - first);
  };
  uint32_t first = span * kGpuAttentionSpan + simt::WarpIndex() * kTile;
  uint32_t step = kStep;                           // from the warp's first tile to its second
  if (kLimits && first + kTile <= window_begin) {  // those before the window are passed over
    const uint32_t passed = (window_begin - first - kTile) / kStep + 1;
    const uint32_t skipped = ends_its_unit(span) ? (gridDim.x - 1) * unit * kGpuAttentionSpan : 0;
    first += passed * kStep + (passed == kTiles ? skipped : 0);
    step += passed + 1 == kTiles ? skipped : 0;
  }
  int32_t block = find_block(first), block_ahead = find_block(first + step);
  load_keys(block, first);
  const uint32_t items = heads * kHeadDim / 4;
  const uint16_t* const rows = a.q + uint64_t{token} * a.q_pitch;
  const uint16_t* const q = rows + kv_head * heads * kHeadDim;
  bool has_values = false;  // of the tile that the warp is about to add
  if constexpr (kRopes) {
    has_values = kHeadTiles == 1 && first <= position;  // with more heads there are no registers for both
    if (has_values) {
      warp.LoadValues(a.kv.values, row_of(block, first), 0, position - first);
    } else if (first <= position) {
      warp.Prefetch(a.kv.values, row_of(block, first));
    }
    if (first + kStep <= position) {
      warp.Prefetch(a.kv.keys, row_of(block_ahead, first + kStep));
      warp.Prefetch(a.kv.values, row_of(block_ahead, first + kStep));
    }
    simt::WaitForPrevious();
    const uint64_t angles = uint64_t{position} * (kHeadDim / 2);
    shared.SetQuery(q, heads, [&](const uint16_t* row, uint32_t element) {
      return a.neighbours ? TurnedEight<kHeadDim, true>(row, element, a.cos + angles, a.sin + angles)
                          : TurnedEight<kHeadDim, false>(row, element, a.cos + angles, a.sin + angles);
    });
    const bool has_last_span = (((spans - 1) >> log2_unit) - blockIdx.x) % gridDim.x == 0;
    if (has_last_span && simt::WarpIndex() == kWarps - 1) {
      shared.own.Make(a, rows + (a.heads + kv_head) * kHeadDim, a.batch.kv_heads * kHeadDim, position,
                      row_of(find_block(position), position));
    }
  } else {
    shared.SetQuery(q, heads, [](const uint16_t* row, uint32_t element) {
      return *reinterpret_cast<const uint4*>(row + element);
    });
  }
  simt::SyncThreads();

  // Found again where they are used: few, and not worth registers in between.
  const auto place = [&] { return PartialPlace<kHeadDim>(a, blockIdx.z, blockIdx.y, heads); };
  const auto out = [&] {
    return a.out + (uint64_t{a.first + blockIdx.z} * a.heads + blockIdx.y * heads) * kHeadDim;
  };
  const Octaves<kLimits> octaves(a);
  while (true) {
    const bool begins_unit = (span & (unit - 1)) == 0 || (kLimits && span == first_span);
    const bool ends_unit = ends_its_unit(span);
    const uint32_t next = span + 1 + (ends_unit ? (gridDim.x - 1) * unit : 0);
    const uint32_t skipped = (next - span - 1) * kGpuAttentionSpan;
    warp.Begin();
    TERRACE_UNROLL
    for (uint32_t n = 0; n < kTiles; ++n) {
      if (kLimits && first >= span * kGpuAttentionSpan + (n + 1) * kStep) continue;  // n has been passed over
      if (first > position) break;
      const uint32_t last = position - first, before = before_window(first);
      // Values are asked for before the keys on their way are waited for, the next keys before these values.
      if (!kRopes || n > 0 || !has_values) warp.LoadValues(a.kv.values, row_of(block, first), before, last);
      simt::SyncWarp();  // so that the compiler does not keep q in registers, which all of these loads need
      if (kRopes && last < kTile) warp.TakeOwnKey(shared.own.key, last);
      float scores[kHeadTiles][4];
      warp.Score(shared.quads, scores);
      const uint32_t after = first + 2 * kStep + (n + 2 >= kTiles ? skipped : 0);
      first += kStep + (n + 1 == kTiles ? skipped : 0);
      load_keys(block_ahead, first);
      block = block_ahead;
      block_ahead = find_block(after);
      if (kRopes && last < kTile) warp.TakeOwnValue(shared.own.value, last);
      warp.Add(scores, octaves, before, last);
    }
    has_values = false;
    shared.Put(warp, heads);
    simt::SyncThreads();
    for (uint32_t item = threadIdx.x; item < items; item += kThreads) {
      const Part of_span = shared.Merge(item);
      Part of_unit = begins_unit ? NoPositions() : shared.unit[item];
      Fold(of_span, of_unit);
      if (!ends_unit) {
        shared.unit[item] = of_unit;
      } else if (units > 1) {
        if (unit == 1) of_unit = of_span;
        place().Store((span >> log2_unit) - first_unit, item, of_unit);
      } else {
        Part total = NoPositions();
        Fold(of_unit, total);
        StoreResult(out(), item, total);
      }
    }
    if (next >= spans) break;
    simt::SyncThreads();  // before shared.o is written again
    span = next;
  }
  if (units == 1) return;

  // The last of the token's blocks has the results of all of them.
  simt::SyncThreads();
  if (threadIdx.x == 0) {
    uint32_t* const arrived = a.arrived + index * a.batch.kv_heads + kv_head;
    simt::ThreadFence();  // of what all threads wrote before the barrier
    shared.is_last = simt::AtomicAdd(arrived, 1u) == Least(gridDim.x, units) - 1;
    simt::ThreadFence();
    if (shared.is_last) *arrived = 0;
  }
  simt::SyncThreads();
  if (!shared.is_last) return;
  const uint32_t before = unit == 1 ? first_span % kGroupSpans : 0;
  for (uint32_t item = threadIdx.x; item < items; item += kThreads) {
    StoreResult(out(), item, MergeUnits(place(), item, units, unit, before));
  }
}

constexpr bool HasLimits(const GpuAttentionArgs& a) { return a.window != 0 || a.softcap != 0; }

// The most stretches of `stretch` that `count` in a row may lie in, of `most` that there are.
constexpr uint32_t MostTouched(uint32_t count, uint32_t stretch, uint32_t most) {
  const uint64_t touched = (uint64_t{count} + stretch - 2) / stretch + 1;
  return touched < most ? static_cast<uint32_t>(touched) : most;
}

// How the decode is laid out for its batch: blocks of whole groups once these alone fill a GPU many times
// over, and no more blocks than that, which may find nothing to do where most_spans is a generous bound.
struct DecodeGeometry {
  uint32_t log2_unit, parts;
};
inline constexpr uint32_t kManyBlocks = 4096;  // of a GPU that runs 264 at once
constexpr DecodeGeometry GeometryOf(const GpuAttentionArgs& a) {
  const uint64_t pairs = uint64_t{a.count} * a.batch.kv_heads;  // of token and kv head
  uint32_t spans = a.most_spans, groups = (spans + kGroupSpans - 1) / kGroupSpans;
  if (a.window != 0) {
    spans = MostTouched(a.window, kGpuAttentionSpan, spans);
    groups = MostTouched(a.window, kGpuAttentionSpan * kGroupSpans, groups);
  }
  const bool is_of_groups = pairs * groups >= kManyBlocks / 2;
  const uint32_t units = is_of_groups ? groups : spans;
  const auto parts = static_cast<uint32_t>((kManyBlocks + pairs - 1) / pairs);
  return {.log2_unit = is_of_groups ? kLog2GroupSpans : 0, .parts = parts < units ? parts : units};
}

template <typename Rows, uint32_t kHeadDim, uint32_t kHeadTiles, typename Launch>
auto LaunchKernel(const GpuAttentionArgs& a, const Launch& launch) {
  const auto [log2_unit, parts] = GeometryOf(a);
  auto kernel = HasLimits(a) ? DecodeAttentionKernel<Rows, kHeadDim, kHeadTiles, false, true>
                             : DecodeAttentionKernel<Rows, kHeadDim, kHeadTiles, false, false>;
  if constexpr (GpuDecodeHasRope(kHeadDim)) {
    if (a.cos != nullptr) kernel = DecodeAttentionKernel<Rows, kHeadDim, kHeadTiles, true, false>;
  }
  return launch(kernel, parts, kWarpsOf<kHeadTiles> * simt::kWarp, sizeof(Shared<Rows, kHeadDim, kHeadTiles>),
                log2_unit, a.heads / a.batch.kv_heads);
}
template <typename Rows, uint32_t kHeadDim, typename Launch>
auto LaunchHeadTiles(const GpuAttentionArgs& a, const Launch& launch) {
  if constexpr (GpuMostGroupHeads(kHeadDim) > kHeadTile) {
    if (a.heads / a.batch.kv_heads > kHeadTile) return LaunchKernel<Rows, kHeadDim, 2>(a, launch);
  }
  return LaunchKernel<Rows, kHeadDim, 1>(a, launch);
}
template <typename Rows, typename Launch>
auto LaunchHeadDim(const GpuAttentionArgs& a, const Launch& launch) {
  switch (a.batch.head_dim) {
    case 32:
      return LaunchHeadTiles<Rows, 32>(a, launch);
    case 64:
      return LaunchHeadTiles<Rows, 64>(a, launch);
    case 128:
      return LaunchHeadTiles<Rows, 128>(a, launch);
    default:
      return LaunchHeadTiles<Rows, 256>(a, launch);
  }
}
// launch(kernel, parts, threads, shared bytes, unit) for a grid (parts, kv_heads, count), and what it
// returns.
template <typename Launch>
auto LaunchDecodeAttention(const GpuAttentionArgs& a, const Launch& launch) {
  switch (a.kv.dtype) {
    case KvDType::kF16:
      return LaunchHeadDim<F16Rows>(a, launch);
    case KvDType::kInt8:
      return LaunchHeadDim<Int8Rows>(a, launch);
    case KvDType::kFp8:
      return LaunchHeadDim<Fp8Rows>(a, launch);
    default:
      return LaunchHeadDim<BF16Rows>(a, launch);
  }
}

}  // namespace terrace::decode_attention
