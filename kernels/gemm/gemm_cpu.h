// Strips of outputs [begin, end), counted over all parts. Included once per instruction set, after
// simd/vec16_*.h.
//
// A block of kStrips strips by kTokens tokens keeps its sums in registers while it walks a group of 128
// inputs; between groups they rest in a small array, so that a chunk of weights, read once from memory, meets
// every token while it is in the cache. One arithmetic for any number of tokens (gemm/activation_groups.h):
// blocks decide only which independent sums are in flight together.
#pragma once

#include <type_traits>

#include "kernels/activation/gate_mul_cpu.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/weight_strips.h"
#include "kernels/simd/inlining.h"

namespace terrace {
namespace {

// The formats of strips. Codes(block, step) are the unsigned codes of elements [4 step, 4 step + 4) of 32;
// `line` counts the scales of a chunk. kShared is how many elements share a scale; kBiasShift the bias as a
// power of two, -1 without one; kBits those of a code; Minimum(chunk, line) what each code's value lacks, of
// formats with kHasMinimum.
struct Codes8 {
  static constexpr int kBits = 8;
  static Bytes64 Codes(const std::byte* block, size_t step) { return LoadBytes(block + 64 * step); }
};
struct Codes4 {
  static constexpr int kBits = 4;
  static Bytes64 Codes(const std::byte* block, size_t step) {
    const Bytes64 nibbles = LoadBytes(block + 64 * (step / 2));
    return step % 2 == 0 ? LowNibbles(nibbles) : HighNibbles(nibbles);
  }
};
struct ScalesF16 {
  static Vec16 Scale(const std::byte* chunk, size_t line) { return LoadF16(chunk + 32 * line); }
};

struct Q8Strip : Codes8, ScalesF16 {
  static constexpr DType kDType = DType::kQ8_0;
  static constexpr size_t kShared = 32;
  static constexpr int kBiasShift = 7;
  static constexpr bool kHasMinimum = false;
};
struct Q4Strip : Codes4, ScalesF16 {
  static constexpr DType kDType = DType::kQ4_0;
  static constexpr size_t kShared = 32;
  static constexpr int kBiasShift = 3;
  static constexpr bool kHasMinimum = false;
};
struct Q5Strip : ScalesF16 {
  static constexpr int kBits = 5;
  static constexpr DType kDType = DType::kQ5_0;
  static constexpr size_t kShared = 32;
  static constexpr int kBiasShift = 4;
  static constexpr bool kHasMinimum = false;
  static Bytes64 Codes(const std::byte* block, size_t step) {
    return AddBits<0x10>(Codes4::Codes(block, step), LoadBytes(block + 256), 4 - static_cast<int>(step));
  }
};
struct Q4KStrip : Codes4 {
  static constexpr DType kDType = DType::kQ4_K;
  static constexpr size_t kShared = 32;
  static constexpr int kBiasShift = -1;
  static constexpr bool kHasMinimum = true;
  static Vec16 Scale(const std::byte* chunk, size_t line) {
    return Mul(LoadF16(chunk), LoadU8(chunk + 64 + 16 * line));
  }
  static Vec16 Minimum(const std::byte* chunk, size_t line) {
    return Mul(LoadF16(chunk + 32), LoadU8(chunk + 192 + 16 * line));
  }
};
struct Q6KStrip {
  static constexpr int kBits = 6;
  static constexpr DType kDType = DType::kQ6_K;
  static constexpr size_t kShared = 16;
  static constexpr int kBiasShift = 5;
  static constexpr bool kHasMinimum = false;
  static Vec16 Scale(const std::byte* chunk, size_t line) {
    return Mul(LoadF16(chunk), LoadI8(chunk + 32 + 16 * line));
  }
  static Bytes64 Codes(const std::byte* block, size_t step) {
    return AddBits<0x30>(Codes4::Codes(block, step), LoadBytes(block + 256 + 64 * (step / 4)),
                         4 - 2 * static_cast<int>(step % 4));
  }
};
struct Int4G32Strip : Codes4, ScalesF16 {
  static constexpr DType kDType = DType::kInt4G32;
  static constexpr size_t kShared = 32;
  static constexpr int kBiasShift = -1;
  static constexpr bool kHasMinimum = true;
  static Vec16 Minimum(const std::byte* chunk, size_t line) {
    return Mul(Scale(chunk, line), LoadU8(chunk + 128 + 16 * line));
  }
};
struct Int4G128Strip : Codes4, ScalesF16 {
  static constexpr DType kDType = DType::kInt4G128;
  static constexpr size_t kShared = kGroup;
  static constexpr int kBiasShift = -1;
  static constexpr bool kHasMinimum = true;
  static Vec16 Minimum(const std::byte* chunk, size_t) { return Mul(Scale(chunk, 0), LoadU8(chunk + 32)); }
};
struct Int8Strip : Codes8 {
  static constexpr DType kDType = DType::kInt8;
  static constexpr size_t kShared = kGroup;
  static constexpr int kBiasShift = 7;
  static constexpr bool kHasMinimum = false;
  static Vec16 Scale(const std::byte* chunk, size_t) { return LoadF32(chunk); }
};
struct BF16Strip {
  static constexpr DType kDType = DType::kBF16;
};
struct F32Strip {
  static constexpr DType kDType = DType::kF32;
};
// Two of four: their groups are spread to those of Dense before they are multiplied.
struct TwoOfFourStrip {
  using Dense = BF16Strip;
};
struct TwoOfFourInt8Strip {
  using Dense = Int8Strip;
};
template <typename Strip>
concept IsSpread = requires {
  typename Strip::Dense;
};

template <typename Strip>
constexpr StripFormat kFormatOf = FormatOf(Strip::kDType);
template <IsSpread Strip>
constexpr StripFormat kFormatOf<Strip> = TwoOfFourFormat(Strip::Dense::kDType);

// Calls use(strip) with the struct of the weights.
template <typename Use>
inline void WithStrip(const GemmWeights& weights, Use use) {
  if (weights.two_of_four)
    return weights.dtype == DType::kInt8 ? use(TwoOfFourInt8Strip()) : use(TwoOfFourStrip());
  switch (weights.dtype) {
    case DType::kF32:
      return use(F32Strip());
    case DType::kF16:
      return;  // never in strips
    case DType::kBF16:
      return use(BF16Strip());
    case DType::kQ8_0:
      return use(Q8Strip());
    case DType::kQ4_0:
      return use(Q4Strip());
    case DType::kQ5_0:
      return use(Q5Strip());
    case DType::kQ4_K:
      return use(Q4KStrip());
    case DType::kQ6_K:
      return use(Q6KStrip());
    case DType::kInt4G32:
      return use(Int4G32Strip());
    case DType::kInt4G128:
      return use(Int4G128Strip());
    case DType::kInt8:
      return use(Int8Strip());
  }
}

// -(sum of a token's activations) over the elements that share scale `line` of the group.
template <typename Strip>
inline const int32_t* MinusSum(const Int8Group& x, size_t line) {
  if constexpr (Strip::kShared == 16) return x.minus_sums16 + line;
  if constexpr (Strip::kShared == 32) return x.minus_sums32 + line;
  return &x.minus_sum;
}

// What a block asks memory for while it computes: nothing, or the bytes at a distance from those it reads.
struct NothingAhead {
  void Touch(const std::byte*) const {}
};
struct BytesAhead {
  size_t distance;
  void Touch(const std::byte* from) const { Prefetch(from + distance); }
};

// Where the sums of a block rest between groups: in registers, or in memory, from where they are fetched when
// a group is done, so that they take no registers while it is multiplied.
template <size_t kSums>
struct SumsInRegisters {
  Vec16 sums[kSums];
  Vec16 Get(size_t i) const { return sums[i]; }
  void Set(size_t i, Vec16 sum) { sums[i] = sum; }
};
struct SumsInMemory {
  float* memory;
  Vec16 Get(size_t i) const { return Load(memory + 16 * i); }
  void Set(size_t i, Vec16 sum) { Store(memory + 16 * i, sum); }
};

// Adds one group of inputs, `blocks` blocks of 32, to the sums [kTokens][kStrips]. `chunks` are where the
// strips' chunks begin and `group` is the group's number in them.
template <typename Strip, size_t kStrips, size_t kTokens, typename Ahead, typename Sums>
TERRACE_INLINE inline void AddInt8Group(const std::byte* const (&chunks)[kStrips], size_t group,
                                        size_t blocks, const Int8Group* x, Ahead ahead, Sums& sums) {
  constexpr StripFormat kFormat = FormatOf(Strip::kDType);
  constexpr size_t kSums = kTokens * kStrips;
  constexpr size_t kSharedSteps = (Strip::kShared < kStripBlock ? Strip::kShared : kStripBlock) / 4;
  constexpr size_t kLines = kStripBlock / 4 / kSharedSteps;  // of a block; a line is a scale
  using LineDots = Dots<Strip::kBits, kSums == 1>;
  const size_t first_line = group * (Strip::kShared == kGroup ? 1 : kGroup / kStripBlock * kLines);
  const size_t codes = kFormat.scale_bytes + group * (kGroup / kStripBlock) * kFormat.block_bytes;
  Vec16 group_sums[kSums];
  LineDots dots[kSums];
  TERRACE_UNROLL(32)
  for (size_t i = 0; i < kSums; ++i) group_sums[i] = Zero();
  const auto bias = [&](size_t token, size_t line) TERRACE_INLINE {
    if constexpr (Strip::kBiasShift < 0) {
      return ZeroSums();
    } else {
      return ShiftedSplat<Strip::kBiasShift>(MinusSum<Strip>(x[token], line));
    }
  };
  const auto begin_line = [&](size_t line) TERRACE_INLINE {
    TERRACE_UNROLL(32)
    for (size_t i = 0; i < kSums; ++i) dots[i].Begin(bias(i / kStrips, line));
  };
  const auto end_line = [&](size_t line) TERRACE_INLINE {
    TERRACE_UNROLL(8)
    for (size_t strip = 0; strip < kStrips; ++strip) {
      const Vec16 scale = Strip::Scale(chunks[strip], first_line + line);
      TERRACE_UNROLL(8)
      for (size_t token = 0; token < kTokens; ++token) {
        Vec16& sum = group_sums[token * kStrips + strip];
        sum = Fma(ToFloats(dots[token * kStrips + strip].End(bias(token, line))), scale, sum);
      }
    }
    if constexpr (Strip::kHasMinimum) {
      TERRACE_UNROLL(8)
      for (size_t strip = 0; strip < kStrips; ++strip) {
        const Vec16 minimum = Strip::Minimum(chunks[strip], first_line + line);
        TERRACE_UNROLL(8)
        for (size_t token = 0; token < kTokens; ++token) {
          Vec16& sum = group_sums[token * kStrips + strip];
          sum = Fma(minimum, SplatToFloats(MinusSum<Strip>(x[token], line)), sum);
        }
      }
    }
  };
  if constexpr (Strip::kShared == kGroup) begin_line(0);
  for (size_t block = 0; block < blocks; ++block) {
    TERRACE_UNROLL(2)
    for (size_t line = 0; line < kLines; ++line) {
      if constexpr (Strip::kShared != kGroup) begin_line(block * kLines + line);
      TERRACE_UNROLL(8)
      for (size_t step = line * kSharedSteps; step < (line + 1) * kSharedSteps; ++step) {
        typename LineDots::Codes weights[kStrips];
        TERRACE_UNROLL(8)
        for (size_t strip = 0; strip < kStrips; ++strip) {
          if (64 * step < kFormat.block_bytes) {
            ahead.Touch(chunks[strip] + codes + block * kFormat.block_bytes + 64 * step);
          }
          weights[strip] =
              LineDots::Prepare(Strip::Codes(chunks[strip] + codes + block * kFormat.block_bytes, step));
          KeepInRegister(weights[strip]);
        }
        TERRACE_UNROLL(8)
        for (size_t token = 0; token < kTokens; ++token) {
          const auto values = LineDots::Splat(x[token].values + block * kStripBlock + 4 * step);
          TERRACE_UNROLL(8)
          for (size_t strip = 0; strip < kStrips; ++strip) {
            dots[token * kStrips + strip].Add(step, weights[strip], values);
          }
        }
      }
      if constexpr (Strip::kShared != kGroup) end_line(block * kLines + line);
    }
  }
  if constexpr (Strip::kShared == kGroup) end_line(0);
  TERRACE_UNROLL(8)
  for (size_t token = 0; token < kTokens; ++token) {
    const Vec16 scale = Splat(x[token].scale);
    TERRACE_UNROLL(8)
    for (size_t strip = 0; strip < kStrips; ++strip) {
      const size_t i = token * kStrips + strip;
      sums.Set(i, Fma(group_sums[i], scale, sums.Get(i)));
    }
  }
}

// How the vectors of a group of floats meet activations.
struct MultiplyPairs {
  template <typename Group>
  static BF16Pair Splat(const Group& x, size_t i) {
    return SplatPair(x.values + 2 * i);
  }
  static Vec16 Add(Vec16 sum, Bytes64 weights, BF16Pair x) { return DotBF16(sum, weights, x); }
};
struct MultiplyElements {
  static Bytes64 Splat(const F32Group& x, size_t i) { return SplatFour(x.values + i); }
  static Vec16 Add(Vec16 sum, Bytes64 weights, Bytes64 x) { return Fma(AsFloats(weights), AsFloats(x), sum); }
};

// The same for strips of floats: vectors of even and odd number have a sum each.
template <typename Multiply, size_t kStrips, size_t kTokens, typename Group, typename Ahead, typename Sums>
TERRACE_INLINE inline void AddFloatGroup(const std::byte* const (&chunks)[kStrips], size_t vectors,
                                         const Group* x, Ahead ahead, Sums& sums) {
  constexpr size_t kSums = kTokens * kStrips;
  Vec16 halves[2][kSums];
  TERRACE_UNROLL(32)
  for (size_t i = 0; i < kSums; ++i) halves[0][i] = halves[1][i] = Zero();
  for (size_t vector = 0; vector < vectors; vector += 4) {
    TERRACE_UNROLL(4)
    for (size_t i = 0; i < 4; ++i) {
      Bytes64 weights[kStrips];
      TERRACE_UNROLL(8)
      for (size_t strip = 0; strip < kStrips; ++strip) {
        ahead.Touch(chunks[strip] + 64 * (vector + i));
        weights[strip] = LoadBytes(chunks[strip] + 64 * (vector + i));
        KeepInRegister(weights[strip]);
      }
      TERRACE_UNROLL(8)
      for (size_t token = 0; token < kTokens; ++token) {
        const auto activations = Multiply::Splat(x[token], vector + i);
        TERRACE_UNROLL(8)
        for (size_t strip = 0; strip < kStrips; ++strip) {
          Vec16& sum = halves[i % 2][token * kStrips + strip];
          sum = Multiply::Add(sum, weights[strip], activations);
        }
      }
    }
  }
  TERRACE_UNROLL(32)
  for (size_t i = 0; i < kSums; ++i) sums.Set(i, Add(sums.Get(i), Add(halves[0][i], halves[1][i])));
}

template <typename Strip, size_t kStrips, size_t kTokens, typename Sums, typename Ahead = NothingAhead>
TERRACE_INLINE inline void AddGroup(const std::byte* const (&chunks)[kStrips], size_t group, size_t blocks,
                                    const ActivationGroups& in, size_t in_group, size_t token, Sums& sums,
                                    Ahead ahead = {}) {
  constexpr ActivationFormat kActivations = ActivationsOf(kFormatOf<Strip>, kHasBF16Dots);
  constexpr size_t kBlockBytes = kFormatOf<Strip>.block_bytes;
  if constexpr (kActivations == ActivationFormat::kInt8) {
    AddInt8Group<Strip, kStrips, kTokens>(chunks, group, blocks,
                                          in.At<Int8Group>(kActivations, in_group, token), ahead, sums);
  } else if constexpr (kActivations == ActivationFormat::kBF16) {
    AddFloatGroup<MultiplyPairs, kStrips, kTokens>(
        chunks, blocks * kBlockBytes / 64, in.At<BF16Group>(kActivations, in_group, token), ahead, sums);
  } else if constexpr (kActivations == ActivationFormat::kBF16Wide) {
    AddFloatGroup<MultiplyPairs, kStrips, kTokens>(
        chunks, blocks * kBlockBytes / 64, in.At<F32Group>(kActivations, in_group, token), ahead, sums);
  } else {
    AddFloatGroup<MultiplyElements, kStrips, kTokens>(
        chunks, blocks * kBlockBytes / 64, in.At<F32Group>(kActivations, in_group, token), ahead, sums);
  }
}

// A block of 32 elements of two of four as the dense strip has it, with the zeros: `kept` are the lines
// behind its places. Memory is asked for `ahead` bytes before it is read.
inline void SpreadBlock(TwoOfFourStrip, const std::byte* kept, Bytes64 places, size_t ahead, std::byte* to) {
  TERRACE_UNROLL(8)
  for (size_t four = 0; four < 8; ++four, kept += 64, to += 128) {
    Prefetch(kept + ahead);
    const Bytes64 pairs = LoadBytes(kept);
    StoreBytes(to, Spread(pairs, places, kSpreadControls[0]));
    StoreBytes(to + 64, Spread(pairs, places, kSpreadControls[1]));
    places = NextPlaces(places);
  }
}
inline void SpreadBlock(TwoOfFourInt8Strip, const std::byte* kept, Bytes64 places, size_t ahead,
                        std::byte* to) {
  TERRACE_UNROLL(4)
  for (size_t two = 0; two < 4; ++two, kept += 64, to += 128) {
    Prefetch(kept + ahead);
    const Bytes64 values = LoadBytes(kept);
    StoreBytes(to, FlipSigns(Spread(values, places, kSpreadCodeControls[0])));
    places = NextPlaces(places);
    StoreBytes(to + 64, FlipSigns(Spread(values, places, kSpreadCodeControls[1])));
    places = NextPlaces(places);
  }
}

// A group likewise, which is a chunk: its scales, then its blocks.
template <IsSpread Strip>
inline void SpreadGroup(const std::byte* chunk, size_t blocks, size_t ahead, std::byte* to) {
  constexpr StripFormat kFormat = kFormatOf<Strip>, kDense = kFormatOf<typename Strip::Dense>;
  static_assert(kFormat.chunk == kGroup && kDense.chunk == kGroup);
  static_assert(kFormat.scale_bytes == kDense.scale_bytes && kFormat.scale_bytes % 64 == 0);
  for (size_t left = kFormat.scale_bytes; left > 0; left -= 64, chunk += 64, to += 64) {
    Prefetch(chunk + ahead);
    StoreBytes(to, LoadBytes(chunk));
  }
  for (size_t block = 0; block < blocks; ++block, chunk += kFormat.block_bytes, to += kDense.block_bytes) {
    Prefetch(chunk + ahead);
    SpreadBlock(Strip(), chunk + 64, LoadBytes(chunk), ahead, to);
  }
}

// Memory for a spread group of each of kStrips strips; none where nothing is spread.
template <typename Strip, size_t kStrips>
struct SpreadMemory {};
template <IsSpread Strip, size_t kStrips>
struct SpreadMemory<Strip, kStrips> {
  alignas(64) std::byte groups[kStrips][kFormatOf<typename Strip::Dense>.ChunkBytes()];
};

// How many blocks of 32 inputs a group has.
inline size_t BlocksOf(size_t inputs, size_t group) {
  const size_t left = inputs - group * kGroup;
  return left < kGroup ? (left + kStripBlock - 1) / kStripBlock : kGroup / kStripBlock;
}

// Sums of one strip for one token: memory is read as one stream and the sums never leave their registers.
template <typename Strip>
Vec16 MultiplyOne(const GemmWeights& weights, const ActivationGroups& in, size_t strip) {
  constexpr StripFormat kFormat = kFormatOf<Strip>;
  constexpr size_t kGroups = kFormat.chunk / kGroup;  // of a chunk
  const std::byte* chunk[1] = {weights.data + strip * StripBytes(kFormat, weights.columns)};
  SumsInRegisters<1> sum = {{Zero()}};
  const size_t whole = weights.columns / kGroup, groups = GroupsOf(weights.columns);
  for (size_t group = 0; group < whole; ++group) {
    AddGroup<Strip, 1, 1>(chunk, group % kGroups, kGroup / kStripBlock, in, group, 0, sum,
                          BytesAhead{kGemmAhead});
    if ((group + 1) % kGroups == 0) chunk[0] += kFormat.ChunkBytes();
  }
  if (whole < groups) AddGroup<Strip, 1, 1>(chunk, 0, BlocksOf(weights.columns, whole), in, whole, 0, sum);
  return sum.Get(0);
}

template <IsSpread Strip>
Vec16 MultiplyOne(const GemmWeights& weights, const ActivationGroups& in, size_t strip) {
  constexpr StripFormat kFormat = kFormatOf<Strip>;
  const std::byte* chunk = weights.data + strip * StripBytes(kFormat, weights.columns);
  SpreadMemory<Strip, 1> spread;
  const std::byte* const dense[1] = {spread.groups[0]};
  SumsInRegisters<1> sum = {{Zero()}};
  for (size_t group = 0; group < GroupsOf(weights.columns); ++group) {
    const size_t blocks = BlocksOf(weights.columns, group);
    SpreadGroup<Strip>(chunk, blocks, kGemmAhead, spread.groups[0]);
    AddGroup<typename Strip::Dense, 1, 1>(dense, 0, blocks, in, group, 0, sum);
    chunk += kFormat.ChunkBytes();
  }
  return sum.Get(0);
}

// The strip whose groups are multiplied.
template <typename Strip>
struct DenseOf {
  using Type = Strip;
};
template <IsSpread Strip>
struct DenseOf<Strip> {
  using Type = typename Strip::Dense;
};

// One block of tokens, whose sums are [kTokens][kStrips][16] in memory.
template <typename Strip, size_t kStrips, size_t kTokens, typename Ahead = NothingAhead>
TERRACE_INLINE inline void AddToSums(const std::byte* const (&chunks)[kStrips], size_t group, size_t blocks,
                                     const ActivationGroups& in, size_t in_group, size_t token, float* memory,
                                     Ahead ahead = {}) {
  SumsInMemory sums{memory};
  AddGroup<Strip, kStrips, kTokens>(chunks, group, blocks, in, in_group, token, sums, ahead);
}

// Sums [tokens][kStrips][16] of strips [strip, strip + kStrips) for tokens [token, token + tokens).
template <typename Strip, size_t kStrips>
void MultiplyStrips(const GemmWeights& weights, const ActivationGroups& in, size_t strip, size_t token,
                    size_t tokens, float* sums) {
  constexpr StripFormat kFormat = kFormatOf<Strip>;
  constexpr size_t kGroups = kFormat.chunk / kGroup;
  const std::byte* chunks[kStrips];
  constexpr bool kIsSpread = IsSpread<Strip>;
  using Dense = typename DenseOf<Strip>::Type;
  [[maybe_unused]] SpreadMemory<Strip, kStrips> spread;
  const size_t strip_bytes = StripBytes(kFormat, weights.columns);
  for (size_t i = 0; i < kStrips; ++i) chunks[i] = weights.data + (strip + i) * strip_bytes;
  for (size_t i = 0; i < tokens * kStrips; ++i) Store(sums + 16 * i, Zero());
  const size_t groups = GroupsOf(weights.columns);
  constexpr size_t kGroupBytes = kFormat.ChunkBytes() / kGroups, kGroupLines = kGroupBytes / 64;
  constexpr bool kIsInt8 = kFormat.activations == ActivationFormat::kInt8;
  constexpr size_t kBlockTokens = kIsInt8 ? kGemmIntTokens : kGemmFloatTokens;
  constexpr size_t kPassTokens = kIsInt8 ? kBlockTokens : 2 * kBlockTokens;
  constexpr size_t kFewTokens = kIsInt8 ? kGemmFewIntTokens : kGemmFewFloatTokens;
  const bool are_few = tokens <= (kFewTokens > kPassTokens ? kFewTokens : kPassTokens);
  for (size_t group = 0; group < groups; ++group) {
    const size_t blocks = BlocksOf(weights.columns, group), in_chunk = group % kGroups;
    // Without prefetching the memory system would rest while a group meets several blocks of tokens. For few
    // each block asks for all of it, line by line; many share it out.
    const size_t next = kGroupBytes + (group + 1 == groups ? (kStrips - 1) * strip_bytes : 0);
    const std::byte* from[kStrips];
    for (size_t i = 0; i < kStrips; ++i) {
      from[i] = chunks[i];
      if constexpr (kIsSpread) {
        SpreadGroup<Strip>(chunks[i], blocks, kGroupBytes, spread.groups[i]);
        from[i] = spread.groups[i];
      }
    }
    size_t line = 0;
    const auto add = [&]<size_t kTokens>(std::integral_constant<size_t, kTokens>, size_t i) TERRACE_INLINE {
      float* to = sums + i * kStrips * 16;
      if constexpr (kStrips == kGemmStrips && !kIsSpread) {
        if (are_few) {
          AddToSums<Dense, kStrips, kTokens>(from, in_chunk, blocks, in, group, token + i, to,
                                             BytesAhead{next});
          return;
        }
        for (const size_t end = kGroupLines * (i + kTokens) / tokens; line < end; ++line) {
          for (const std::byte* chunk : chunks) Prefetch(chunk + in_chunk * kGroupBytes + next + 64 * line);
        }
      }
      AddToSums<Dense, kStrips, kTokens>(from, in_chunk, blocks, in, group, token + i, to);
    };
    size_t i = 0;
    for (; i + kBlockTokens <= tokens; i += kBlockTokens) {
      add(std::integral_constant<size_t, kBlockTokens>(), i);
    }
    static_assert(kBlockTokens <= 4);
    if constexpr (kBlockTokens == 4) {
      if (i + 3 == tokens) add(std::integral_constant<size_t, 3>(), i), i += 3;
    }
    if constexpr (kBlockTokens >= 3) {
      if (i + 2 == tokens) add(std::integral_constant<size_t, 2>(), i), i += 2;
    }
    if (i < tokens) add(std::integral_constant<size_t, 1>(), i);
    if (in_chunk + 1 == kGroups) {
      for (size_t s = 0; s < kStrips; ++s) chunks[s] += kFormat.ChunkBytes();
    }
  }
}

// `strips` is kGemmStrips or 1.
inline void MultiplyTile(const GemmWeights& weights, const ActivationGroups& in, size_t strip, size_t strips,
                         size_t token, size_t tokens, float* sums) {
  WithStrip(weights, [&](auto format) {
    using Strip = decltype(format);
    if (in.tokens == 1) {
      for (size_t i = 0; i < strips; ++i) Store(sums + 16 * i, MultiplyOne<Strip>(weights, in, strip + i));
    } else if (strips == kGemmStrips) {
      MultiplyStrips<Strip, kGemmStrips>(weights, in, strip, token, tokens, sums);
    } else {
      MultiplyStrips<Strip, 1>(weights, in, strip, token, tokens, sums);
    }
  });
}

// Puts sums [tokens][strips][16] of `part` where they belong; with `up`, gate(sums) * up.
inline void Finish(const GemmPart& part, size_t strip, size_t strips, size_t token, size_t tokens,
                   const float* sums, const float* up, GateFunction gate) {
  const size_t outputs = part.weights.rows;
  for (size_t i = 0; i < tokens; ++i) {
    for (size_t s = 0; s < strips; ++s, sums += 16) {
      const size_t output = (strip + s) * kStripRows;
      const size_t left = outputs - output < 16 ? outputs - output : 16;
      float* out = part.out + (token + i) * outputs + output;
      Vec16 sum = Load(sums);
      if (up != nullptr) {
        sum = GateMul(gate, sum, Load(up));
        up += 16;
      }
      if (part.add_to_out) sum = Add(left == 16 ? Load(out) : LoadPartial(out, left), sum);
      left == 16 ? Store(out, sum) : StorePartial(out, left, sum);
    }
  }
}

// Tokens whose activations stay in a thread's share of the third cache while all strips pass them: from
// memory comes one pass over the weights for each tile.
inline size_t TileTokens(const GemmArgs& a, size_t most) {
  constexpr size_t kCacheBytes = 2 << 20, kStep = 12;  // whole blocks of tokens, of any size
  size_t group_bytes = 1;
  for (const GemmPart& part : a.parts) {
    const size_t bytes = GroupBytes(ActivationsOf(FormatOf(part.weights), kHasBF16Dots));
    if (bytes > group_bytes) group_bytes = bytes;
  }
  const size_t tokens = kCacheBytes / (group_bytes * GroupsOf(a.inputs())) / kStep * kStep;
  return tokens < kStep ? kStep : tokens > most ? most : tokens;
}

inline void GemmStrips(const GemmArgs& a, const ActivationGroups& in, size_t begin, size_t end) {
  // Sums of a tile, those of the other part of a gated pair, and the chunks of weights and activations that
  // meet in them share the first cache.
  constexpr size_t kTileTokens = 48;
  alignas(64) float sums[2][kTileTokens * kGemmStrips * 16];
  const size_t tile = TileTokens(a, kTileTokens);
  for (size_t token = 0; token < a.tokens; token += tile) {
    const size_t tokens = a.tokens - token < tile ? a.tokens - token : tile;
    size_t first = 0;  // strip of the part
    for (const GemmPart& part : a.parts.first(a.gated ? 1 : a.parts.size())) {
      const size_t count = StripsOf(part.weights.rows);
      const size_t from = begin > first ? begin - first : 0, to = end - first < count ? end - first : count;
      for (size_t strip = from, strips; strip < to && first < end; strip += strips) {
        strips = to - strip < kGemmStrips ? 1 : kGemmStrips;  // the few that are left one by one
        MultiplyTile(part.weights, in, strip, strips, token, tokens, sums[0]);
        if (a.gated) MultiplyTile(a.parts[1].weights, in, strip, strips, token, tokens, sums[1]);
        Finish(part, strip, strips, token, tokens, sums[0], a.gated ? sums[1] : nullptr, a.gate);
      }
      first += count;
    }
  }
}

}  // namespace
}  // namespace terrace
