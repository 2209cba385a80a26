// The layout of weights in memory. A *strip* is 16 rows, interleaved so that one load of 64 bytes holds the
// next elements of all of them, and each of the 16 lanes of a vector works for one output:
//
//   F32     1 element of each row       [k][16 rows]
//   BF16    2 elements                  [k / 2][16 rows][2]
//   8 bits  4 elements                  [k / 4][16 rows][4]
//   4 bits  8 elements                  low nibbles: the first 4 of each row, high nibbles: the next 4
//
// A strip is a run of *chunks* of 128 or 256 elements of K: the scales of its blocks, then the codes, block
// of 32 after block of 32. A matrix is its strips, one after the other, so that a thread which multiplies one
// token reads memory in one stream. Columns are padded to 32 and rows to 16, with zeros.
//
// A matrix of F16, BF16 or INT8 of whose every four neighbours of a row at most two are not zero (2:4, as
// `terrace prune` makes them), with rows of whole blocks of 32, becomes strips of less. Of 16 bits 0.5625: a
// block is 32 bits of each row with the places of its 8 x 2 elements ([16 rows], three bits for each four,
// pair_places.h), then these ([four][16 rows][2]). Groups are spread to those of BF16 in the first cache
// before they are multiplied, so that the sums are those of BF16 to the bit. INT8 likewise, 0.636 of the
// bytes: behind the scales of the chunk a block is its places and then the codes as they are, signed ([two
// fours] [16 rows][2 of the one, 2 of the other]).
//
// Codes are unsigned: the dot-product instructions take unsigned bytes times signed ones. Of quantized
// formats a value is scale * (code - bias), or scale * code - minimum; see StripFormat.
#pragma once

#include <cstddef>

#include "kernels/gemm/activation_groups.h"
#include "kernels/gemm/gemm_weights.h"

namespace terrace {

class ThreadPool;

inline constexpr size_t kStripRows = 16;
inline constexpr size_t kStripBlock = 32;  // elements of K

// One entry for each dtype that strips hold.
struct StripFormat {
  ActivationFormat activations;
  size_t chunk;        // elements of K
  size_t scale_bytes;  // at the start of a chunk; a multiple of 64
  size_t block_bytes;  // the codes of 32 elements of 16 rows; a multiple of 64

  constexpr size_t ChunkBytes() const { return scale_bytes + chunk / kStripBlock * block_bytes; }
};

// Where the scales of a chunk lie; each line is 16 values, one for each row.
//   Q8_0, Q4_0, Q5_0  4 x f16
//   Q4_K              f16 scale, f16 minimum, 8 x u8 scales, 8 x u8 minima
//   Q6_K              f16 scale, 16 x i8 scales (of blocks of 16), 32 bytes unused
//   INT4 of 32        4 x f16, 4 x u8 zero points
//   INT4 of 128       f16, u8 zero point, 16 bytes unused
//   INT8              f32
// Codes beyond four bits have their high bits after the nibbles of the block: Q5_0 64 bytes, bit s of each
// for the elements 4 s to 4 s + 3; Q6_K 2 x 64 bytes, bits 2 s and 2 s + 1 likewise, four s each.
constexpr StripFormat FormatOf(DType dtype) {
  constexpr size_t kLineF16 = 32, kLineU8 = 16, kLineF32 = 64;
  switch (dtype) {
    case DType::kF32:
      return {ActivationFormat::kF32, kGroup, 0, 2048};
    case DType::kF16:  // becomes BF16
    case DType::kBF16:
      return {ActivationFormat::kBF16, kGroup, 0, 1024};
    case DType::kQ8_0:
      return {ActivationFormat::kInt8, kGroup, 4 * kLineF16, 512};
    case DType::kQ4_0:
      return {ActivationFormat::kInt8, kGroup, 4 * kLineF16, 256};
    case DType::kQ5_0:
      return {ActivationFormat::kInt8, kGroup, 4 * kLineF16, 256 + 64};
    case DType::kQ4_K:
      return {ActivationFormat::kInt8, 2 * kGroup, 2 * kLineF16 + 16 * kLineU8, 256};
    case DType::kQ6_K:
      return {ActivationFormat::kInt8, 2 * kGroup, kLineF16 + 16 * kLineU8 + 32, 256 + 128};
    case DType::kInt4G32:
      return {ActivationFormat::kInt8, kGroup, 4 * kLineF16 + 4 * kLineU8, 256};
    case DType::kInt4G128:
      return {ActivationFormat::kInt8, kGroup, kLineF16 + kLineU8 + 16, 256};
    case DType::kInt8:
      return {ActivationFormat::kInt8, kGroup, kLineF32, 512};
  }
  return {};
}

// Of strips with two of each four elements, of kBF16 or kInt8: places before half of the codes of a block.
constexpr StripFormat TwoOfFourFormat(DType dtype) {
  StripFormat format = FormatOf(dtype);
  format.block_bytes = 64 + format.block_bytes / 2;
  return format;
}

constexpr StripFormat FormatOf(const GemmWeights& strips) {
  return strips.two_of_four ? TwoOfFourFormat(strips.dtype) : FormatOf(strips.dtype);
}

// Whether a matrix of F16, BF16 or INT8 has the pattern, in rows of whole blocks of 32. Reads all of one that
// has, by all threads, and of others little.
bool IsTwoOfFour(const WeightMatrix& matrix, ThreadPool& pool);

// The dtype that strips of a matrix of `dtype` have.
constexpr DType StripDType(DType dtype, ComputeType compute) {
  if (compute == ComputeType::kF32) return DType::kF32;
  return dtype == DType::kF16 ? DType::kBF16 : dtype;
}

// What a matrix of strips is multiplied by. `has_bf16_dots`: the processor adds up products of two bf16.
constexpr ActivationFormat ActivationsOf(const StripFormat& format, bool has_bf16_dots) {
  const bool is_wide = format.activations == ActivationFormat::kBF16 && !has_bf16_dots;
  return is_wide ? ActivationFormat::kBF16Wide : format.activations;
}

constexpr size_t StripsOf(size_t rows) { return (rows + kStripRows - 1) / kStripRows; }

constexpr size_t StripBytes(const StripFormat& format, size_t columns) {
  const size_t whole = columns / format.chunk, rest = columns % format.chunk;
  const size_t blocks = (rest + kStripBlock - 1) / kStripBlock;
  return whole * format.ChunkBytes() + (rest > 0 ? format.scale_bytes + blocks * format.block_bytes : 0);
}

constexpr size_t StripBytes(DType dtype, size_t columns) { return StripBytes(FormatOf(dtype), columns); }

// The strips of a matrix, without data; `bytes` are a multiple of 64.
GemmWeights LayOutStrips(const WeightMatrix& matrix, ComputeType compute, ThreadPool& pool);

// Fills `memory`, aligned to 64 bytes, and returns the strips in it. `layout` is what LayOutStrips says of
// the matrix.
GemmWeights PackStrips(const WeightMatrix& matrix, const GemmWeights& layout, std::byte* memory,
                       ThreadPool& pool);

}  // namespace terrace
