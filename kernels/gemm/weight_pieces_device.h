// How a warp reads a GpuMatrix: in pieces of kTileRows rows and kColumns columns, of which each lane has 16
// bytes once or twice: the codes of its A fragments of mma.m16n8k16. The order of k inside an mma is free as
// long as A and B agree, so a lane's columns are chosen contiguous. Those of step s of run r (kRun / 4 steps
// each) are, of the piece,
//   t * kLaneStride + r * kRunStride + 4 s + {0, 1, 2, 3},   t = lane % 4,
// for A and for B alike; the four are elements k 2t, 2t+1, 2t+8, 2t+9 of the mma.
//
// Codes become bf16 exactly, with few instructions:
//   E4M3  its bits, where those of a bf16 are, make 2^-120 of the value, subnormals too; then times 2^120
//   W4    as the upper bits of the mantissa of 16: 16 + code. (As the lower bits of 128 the rounding of what
//         is taken off later would be eight times as much.)
//   2:4   what is kept goes to its places by prmt, whose selector is made of these
//   W8    as the lower 8 bits of a bf16: code * 2^-133, also where it reaches the exponent, for the first
//         normal binade has the step of the subnormals; then times 2^127: code / 64
#pragma once

#include <type_traits>

#include "kernels/gemm/gpu_matrix.h"
#include "kernels/simt/simt.h"

namespace terrace {

TERRACE_DEVICE uint32_t WordOf(const uint4& v, uint32_t i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Codes 2 pair and 2 pair + 1 of the four of a word.
TERRACE_DEVICE uint32_t E4M3Pair(uint32_t word, uint32_t pair) {
  const uint32_t high = simt::BytePermute(word, 0, pair == 0 ? 0x1404 : 0x3424);  // in the upper bytes
  return simt::MulBF16x2((high & 0x80008000) | (high >> 4 & 0x07f007f0), 0x7b807b80);
}
// (word & mask) | bits: of two constants nvcc makes two instructions.
TERRACE_DEVICE uint32_t AndOr(uint32_t word, uint32_t mask, uint32_t bits) {
#ifdef __CUDACC__
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(word), "r"(mask), "r"(bits));
  return out;
#else
  return (word & mask) | bits;
#endif
}
// 16 + code of pair `pair` of four.
TERRACE_DEVICE uint32_t W4Pair(uint32_t word, uint32_t pair) {
  const uint32_t shift = 4 * pair;
  const uint32_t rotated = shift == 0 ? word : word >> shift | word << (32 - shift);
  return AndOr(rotated, 0x00780078, 0x41804180);
}
// code * 2^-133 of bytes 0 and 2, or 1 and 3.
TERRACE_DEVICE uint32_t W8Bits(uint32_t word, uint32_t pair) {
  return pair == 0 ? word & 0x00ff00ff : simt::BytePermute(word, 0, 0x4341);
}
inline constexpr uint32_t kW8Factor = 0x7f007f00;  // 2^127
// code / 64 of the same.
TERRACE_DEVICE uint32_t W8Pair(uint32_t word, uint32_t pair) {
  return simt::MulBF16x2(W8Bits(word, pair), kW8Factor);
}

// Rows g and g + 8 of each piece of row-major codes of kBytes.
template <uint32_t kBytes>
class RowPieces {
 public:
  static constexpr uint32_t kColumns = 64 / kBytes;
  static constexpr uint32_t kGroups = 0;        // scales that a piece has
  static constexpr uint32_t kSlotBytes = 1024;  // of shared memory
  static constexpr uint32_t kRun = 8, kRunStride = 8, kLaneStride = 16 / kBytes;
  static constexpr bool kIsRowMajor = true;
  static constexpr float kStep = 1;  // of what fragments hold

  struct Piece {
    uint4 low, high;
  };

  // At piece `piece` of the tile.
  TERRACE_DEVICE RowPieces(const GpuMatrix& matrix, uint32_t tile, uint32_t piece, uint32_t lane)
      : lane_(lane),
        step_(uint64_t{8} * matrix.columns * kBytes),
        from_(static_cast<const std::byte*>(matrix.codes) + lane % 4 * 16 + uint64_t{piece} * 64 +
              (uint64_t{tile} * kTileRows + lane / 4) * matrix.columns * kBytes) {}

  TERRACE_DEVICE void Skip(uint32_t pieces) { from_ += pieces * 64; }
  // To the tile that is `tiles` further, `pieces` back.
  TERRACE_DEVICE void MoveOn(uint32_t tiles, uint32_t pieces) { from_ += tiles * (2 * step_) - pieces * 64; }
  // Starts to copy two pieces: with kTwoTiles of this tile and the next one, else this one and, if there is
  // one, the one behind it. A warp may read them after it has waited for them and then called SyncWarp.
  template <bool kTwoTiles>
  TERRACE_DEVICE void CopyTwo(std::byte* slot, bool has_second) const {
    const std::byte* second = from_ + (kTwoTiles ? 2 * step_ : has_second ? 64 : 0);
    slot += lane_ * 16;
    simt::CpAsync16(slot, from_, true);
    simt::CpAsync16(slot + 512, from_ + step_, true);
    simt::CpAsync16(slot + kSlotBytes, second, true);
    simt::CpAsync16(slot + kSlotBytes + 512, second + step_, true);
  }
  TERRACE_DEVICE Piece Read(const std::byte* slot) const {
    return {*reinterpret_cast<const uint4*>(slot + lane_ * 16),
            *reinterpret_cast<const uint4*>(slot + 512 + lane_ * 16)};
  }

 private:
  uint32_t lane_;
  uint64_t step_;  // bytes of 8 rows
  const std::byte* from_;
};

class BF16Pieces : public RowPieces<2> {
 public:
  using RowPieces::RowPieces;
  static constexpr uint32_t kRuns = 1;
  static constexpr bool kHasRowScales = false;
  TERRACE_DEVICE static void Fragment(const Piece& piece, uint32_t, uint32_t step, uint32_t (&a)[4]) {
    for (uint32_t i = 0; i < 4; ++i) a[i] = WordOf(i % 2 == 0 ? piece.low : piece.high, 2 * step + i / 2);
  }
};

class E4M3Pieces : public RowPieces<1> {
 public:
  using RowPieces::RowPieces;
  static constexpr uint32_t kRuns = 2;
  static constexpr bool kHasRowScales = true;
  TERRACE_DEVICE static void Fragment(const Piece& piece, uint32_t run, uint32_t step, uint32_t (&a)[4]) {
    for (uint32_t i = 0; i < 4; ++i) {
      a[i] = E4M3Pair(WordOf(i % 2 == 0 ? piece.low : piece.high, 2 * run + step), i / 2);
    }
  }
};

// Columns 0 and 1, and 2 and 3, of four of which `kept` is a pair; its places are the lowest bits of
// `places`.
TERRACE_DEVICE uint2 SpreadFour(uint32_t kept, uint32_t places) {
  // Bytes of {kept, 0} for each column: 0x54, which is 0, but 0x10 and 0x32 at the places.
  const uint32_t first = places << 3 & 24, second = places << 1 & 24;
  const uint32_t selector = 0x54545454u ^ 0x44u << first ^ 0x66u << second;
  return {simt::BytePermute(kept, 0, selector & 0xffff), simt::BytePermute(kept, 0, selector >> 16)};
}

// Chunk of 16 bytes.
TERRACE_DEVICE const std::byte* ChunkOf(const void* from, uint32_t i) {
  return static_cast<const std::byte*>(from) + uint64_t{i} * 16;
}

// Of kSparse. Fragments are dense: zeros take the places of what is not kept.
class SparsePieces {
 public:
  static constexpr uint32_t kColumns = kSparsePieceColumns, kGroups = 0, kSlotBytes = kSparsePieceBytes;
  static constexpr uint32_t kRuns = 4, kRun = 4, kRunStride = 16, kLaneStride = 4;
  static constexpr bool kHasRowScales = false, kIsRowMajor = false;
  static constexpr float kStep = 1;

  struct Piece {
    uint4 first, second;  // what is kept of both steps: rows g and g + 8 of run 2 s, then of run 2 s + 1
    uint4 places;         // of the lane in each run: of row g in bits 0 to 3, of row g + 8 in bits 16 to 19
  };

  TERRACE_DEVICE SparsePieces(const GpuMatrix& matrix, uint32_t tile, uint32_t piece, uint32_t lane)
      : lane_(lane),
        step_(uint64_t{matrix.columns / kColumns} * kSparsePieceBytes),
        from_(static_cast<const std::byte*>(matrix.codes) + tile * step_ +
              uint64_t{piece} * kSparsePieceBytes) {}

  TERRACE_DEVICE void Skip(uint32_t pieces) { from_ += uint64_t{pieces} * kSparsePieceBytes; }
  TERRACE_DEVICE void MoveOn(uint32_t tiles, uint32_t pieces) {
    from_ += tiles * step_ - uint64_t{pieces} * kSparsePieceBytes;
  }
  template <bool kTwoTiles>
  TERRACE_DEVICE void CopyTwo(std::byte* slot, bool has_second) const {
    const std::byte* second = from_ + (kTwoTiles ? step_ : has_second ? kSparsePieceBytes : 0);
    const uint32_t at = lane_ * 16;
    simt::CpAsync16(slot + at, from_ + at, true);
    simt::CpAsync16(slot + 512 + at, from_ + 512 + at, true);
    simt::CpAsync16(slot + kSlotBytes + at, second + at, true);
    simt::CpAsync16(slot + kSlotBytes + 512 + at, second + 512 + at, true);
    // The places of both at once; lanes that are left over copy the same once more.
    const uint32_t of = lane_ / 8 % 2, places = kSparseKeptBytes + lane_ % 8 * 16;
    simt::CpAsync16(slot + of * kSlotBytes + places, (of == 0 ? from_ : second) + places, true);
  }
  TERRACE_DEVICE Piece Read(const std::byte* slot) const {
    return Make(*reinterpret_cast<const uint4*>(slot + lane_ * 16),
                *reinterpret_cast<const uint4*>(slot + 512 + lane_ * 16),
                *reinterpret_cast<const uint4*>(slot + kSparseKeptBytes + lane_ / 4 * 16));
  }
  // From memory at once.
  TERRACE_DEVICE Piece Load() const {
    return Make(
        simt::LoadStream(reinterpret_cast<const uint4*>(from_ + lane_ * 16)),
        simt::LoadStream(reinterpret_cast<const uint4*>(from_ + 512 + lane_ * 16)),
        simt::LoadReadOnly(reinterpret_cast<const uint4*>(from_ + kSparseKeptBytes + lane_ / 4 * 16)));
  }

  TERRACE_DEVICE static void Fragment(const Piece& piece, uint32_t run, uint32_t, uint32_t (&a)[4]) {
    const uint4& kept = run < 2 ? piece.first : piece.second;
    const uint32_t places = WordOf(piece.places, run);
    const uint2 low = SpreadFour(WordOf(kept, run % 2 * 2), places);
    const uint2 high = SpreadFour(WordOf(kept, run % 2 * 2 + 1), places >> 16);
    a[0] = low.x, a[1] = high.x, a[2] = low.y, a[3] = high.y;
  }

 private:
  TERRACE_DEVICE Piece Make(const uint4& first, const uint4& second, const uint4& places) const {
    const uint32_t shift = lane_ % 4 * 4;
    return {first, second, {places.x >> shift, places.y >> shift, places.z >> shift, places.w >> shift}};
  }

  uint32_t lane_;
  uint64_t step_;  // bytes of a tile
  const std::byte* from_;
};

// Of tiles. kGroups: scales of a piece, 1 or 2; with 1 several pieces may share them.
template <uint32_t kPieceColumns, uint32_t kPieceGroups>
class TilePieces {
 public:
  static constexpr uint32_t kColumns = kPieceColumns, kGroups = kPieceGroups;
  static constexpr bool kHasRowScales = false, kIsRowMajor = false;
  static constexpr uint32_t kSlotBytes = kPieceBytes + 64 * kGroups;

  struct Piece {
    uint4 codes;
    uint32_t scales[2 * kGroups];  // rows g and g + 8 of each group: {scale, zero}
  };

  TERRACE_DEVICE TilePieces(const GpuMatrix& matrix, uint32_t tile, uint32_t piece, uint32_t lane)
      : lane_(lane), piece_(piece) {
    const uint32_t pieces = matrix.columns / kColumns;
    while (kColumns << shift_ < matrix.group) ++shift_;
    step_ = uint64_t{pieces} * kPieceBytes;
    scale_step_ = ((pieces + (1u << shift_) - 1) >> shift_) * kScaleBytes;
    from_ = static_cast<const std::byte*>(matrix.codes) + tile * step_ + uint64_t{piece} * kPieceBytes +
            lane * 16;
    scales_ = static_cast<const std::byte*>(matrix.scales) + uint64_t{tile} * scale_step_;
    if constexpr (kGroups == 2) scales_ += uint64_t{piece} * kScaleBytes;
  }

  TERRACE_DEVICE void Skip(uint32_t pieces) {
    from_ += pieces * kPieceBytes;
    if constexpr (kGroups == 1) {
      piece_ += pieces;
    } else {
      scales_ += pieces * kScaleBytes;
    }
  }
  TERRACE_DEVICE void MoveOn(uint32_t tiles, uint32_t pieces) {
    from_ += tiles * step_ - pieces * kPieceBytes;
    scales_ += uint64_t{tiles} * scale_step_;
    if constexpr (kGroups == 1) {
      piece_ -= pieces;
    } else {
      scales_ -= pieces * kScaleBytes;
    }
  }
  template <bool kTwoTiles>
  TERRACE_DEVICE void CopyTwo(std::byte* slot, bool has_second) const {
    const std::byte* second = from_ + (kTwoTiles ? step_ : has_second ? kPieceBytes : 0);
    simt::CpAsync16(slot + lane_ * 16, from_, true);
    simt::CpAsync16(slot + kSlotBytes + lane_ * 16, second, true);
    // The scales of both at once; lanes that are left over copy the same once more.
    constexpr uint32_t kLanes = kScaleBytes / 16;
    const uint32_t of = lane_ / kLanes % 2, in = lane_ % kLanes * 16;
    const std::byte* scales = kTwoTiles ? Scale(0) + of * scale_step_ : Scale(has_second ? of : 0);
    simt::CpAsync16(slot + of * kSlotBytes + kPieceBytes + in, scales + in, true);
  }
  TERRACE_DEVICE Piece Read(const std::byte* slot) const {
    return Make(*reinterpret_cast<const uint4*>(slot + lane_ * 16),
                *reinterpret_cast<const Scales*>(slot + kPieceBytes + lane_ / 4 * sizeof(Scales)));
  }
  // From memory at once.
  TERRACE_DEVICE Piece Load() const {
    return Make(simt::LoadStream(reinterpret_cast<const uint4*>(from_)),
                simt::LoadReadOnly(reinterpret_cast<const Scales*>(Scale(0)) + lane_ / 4));
  }

 private:
  static constexpr uint32_t kScaleBytes = 64 * kGroups;
  using Scales = std::conditional_t<kGroups == 1, uint2, uint4>;

  TERRACE_DEVICE const std::byte* Scale(uint32_t i) const {
    return scales_ + (kGroups == 1 ? uint64_t{(piece_ + i) >> shift_} : i) * kScaleBytes;
  }
  TERRACE_DEVICE static Piece Make(const uint4& codes, const Scales& scales) {
    if constexpr (kGroups == 1) {
      return {codes, {scales.x, scales.y}};
    } else {
      return {codes, {scales.x, scales.y, scales.z, scales.w}};
    }
  }

  uint32_t lane_, piece_, shift_ = 0;
  uint32_t scale_step_;  // bytes of a tile
  uint64_t step_;
  const std::byte* from_;
  const std::byte* scales_;
};

// kGroups 2: groups of 32.
template <uint32_t kPieceGroups>
class W4Pieces : public TilePieces<kW4PieceColumns, kPieceGroups> {
 public:
  using Base = TilePieces<kW4PieceColumns, kPieceGroups>;
  using Base::Base;
  static constexpr uint32_t kRuns = 2, kRun = 8, kRunStride = 32, kLaneStride = 8;
  // What a fragment holds is kStep * (code + kOffset).
  static constexpr float kStep = 1, kOffset = 16;
  // That is kFactor, a pair of bf16, times what Bits gives.
  static constexpr uint32_t kFactor = 0x3f803f80;
  TERRACE_DEVICE static uint32_t Bits(const typename Base::Piece& piece, uint32_t run, uint32_t step,
                                      uint32_t i) {
    return W4Pair(WordOf(piece.codes, 2 * run + step), i);
  }
  TERRACE_DEVICE static void Fragment(const typename Base::Piece& piece, uint32_t run, uint32_t step,
                                      uint32_t (&a)[4]) {
    for (uint32_t i = 0; i < 4; ++i) a[i] = Bits(piece, run, step, i);
  }
};

// kGroups 2: groups of 16.
template <uint32_t kPieceGroups>
class W8Pieces : public TilePieces<kW8PieceColumns, kPieceGroups> {
 public:
  using Base = TilePieces<kW8PieceColumns, kPieceGroups>;
  using Base::Base;
  static constexpr uint32_t kRuns = kPieceGroups, kRun = 8 / kRuns, kRunStride = 16;
  static constexpr uint32_t kLaneStride = kRun;
  static constexpr float kStep = 0x1p-6f, kOffset = 0;
  static constexpr uint32_t kFactor = kW8Factor;
  TERRACE_DEVICE static uint32_t Bits(const typename Base::Piece& piece, uint32_t run, uint32_t step,
                                      uint32_t i) {
    return W8Bits(WordOf(piece.codes, 2 * (run + step) + i / 2), i % 2);
  }
  TERRACE_DEVICE static void Fragment(const typename Base::Piece& piece, uint32_t run, uint32_t step,
                                      uint32_t (&a)[4]) {
    for (uint32_t i = 0; i < 4; ++i) {
      a[i] = W8Pair(WordOf(piece.codes, 2 * (run + step) + i / 2), i % 2);
    }
  }
};

}  // namespace terrace
