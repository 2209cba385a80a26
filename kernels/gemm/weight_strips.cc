#include "kernels/gemm/weight_strips.h"

#include <atomic>
#include <bit>
#include <cstring>
#include <vector>

#include "base/parallel_for.h"
#include "kernels/quant/weight_codes.h"
#include "kernels/quant/weight_values.h"
#include "kernels/simd/pair_places.h"

namespace terrace {
namespace {

// Where the codes of 32 elements of a row go in a block of a strip: eight groups of four.
void PutBytes(const uint8_t (&codes)[kStripBlock], size_t row, std::byte* block) {
  for (size_t step = 0; step < 8; ++step) std::memcpy(block + 64 * step + 4 * row, codes + 4 * step, 4);
}

void PutFloats(const float (&values)[kStripBlock], size_t row, std::byte* block) {
  for (size_t k = 0; k < kStripBlock; ++k) std::memcpy(block + 64 * k + 4 * row, values + k, 4);
}

// Low nibbles, then high ones, of eight groups of four.
void PutNibbles(const uint8_t (&codes)[kStripBlock], size_t row, std::byte* block) {
  for (size_t two = 0; two < 4; ++two) {
    uint32_t low, high;
    std::memcpy(&low, codes + 8 * two, 4);
    std::memcpy(&high, codes + 8 * two + 4, 4);
    const uint32_t both = (low & 0x0f0f0f0f) | (high & 0x0f0f0f0f) << 4;
    std::memcpy(block + 64 * two + 4 * row, &both, 4);
  }
}

// The bits above the nibbles, kBits of each code, of groups that share a vector: 8 / kBits of them.
template <int kBits>
void PutHighBits(const uint8_t (&codes)[kStripBlock], size_t row, std::byte* block) {
  constexpr size_t kSteps = 8 / kBits;
  constexpr uint32_t kMask = kBits == 1 ? 0x01010101 : 0x03030303;
  for (size_t vector = 0; vector < 8 / kSteps; ++vector) {
    uint32_t bits = 0;
    for (size_t step = 0; step < kSteps; ++step) {
      uint32_t four;
      std::memcpy(&four, codes + 4 * (vector * kSteps + step), 4);
      bits |= (four >> 4 & kMask) << (kBits * step);
    }
    std::memcpy(block + 64 * vector + 4 * row, &bits, 4);
  }
}

template <typename T>
void PutLine(T value, size_t row, std::byte* line) {
  std::memcpy(line + sizeof(T) * row, &value, sizeof(T));
}

// The scales of the 32 elements that are block `in_chunk` of a chunk. `block` is the file's, of which they
// are part `part`.
void PutScales(Q8_0Blocks, const std::byte* block, size_t, size_t in_chunk, size_t row, std::byte* chunk) {
  PutLine(Q8_0Blocks::ScaleBits(block), row, chunk + 32 * in_chunk);
}
void PutScales(Q4_0Blocks, const std::byte* block, size_t, size_t in_chunk, size_t row, std::byte* chunk) {
  PutLine(Q4_0Blocks::ScaleBits(block), row, chunk + 32 * in_chunk);
}
void PutScales(Q5_0Blocks, const std::byte* block, size_t, size_t in_chunk, size_t row, std::byte* chunk) {
  PutLine(Q5_0Blocks::ScaleBits(block), row, chunk + 32 * in_chunk);
}
void PutScales(Q4_KBlocks, const std::byte* block, size_t part, size_t, size_t row, std::byte* chunk) {
  PutLine(Q4_KBlocks::ScaleBits(block), row, chunk);
  PutLine(Q4_KBlocks::MinimumBits(block), row, chunk + 32);
  PutLine(Q4_KBlocks::SubScale(block, part), row, chunk + 64 + 16 * part);
  PutLine(Q4_KBlocks::SubMinimum(block, part), row, chunk + 192 + 16 * part);
}
void PutScales(Q6_KBlocks, const std::byte* block, size_t part, size_t, size_t row, std::byte* chunk) {
  PutLine(Q6_KBlocks::ScaleBits(block), row, chunk);
  PutLine(Q6_KBlocks::SubScale(block, 2 * part), row, chunk + 32 + 32 * part);
  PutLine(Q6_KBlocks::SubScale(block, 2 * part + 1), row, chunk + 48 + 32 * part);
}
void PutScales(Int4Blocks<32>, const std::byte* block, size_t, size_t in_chunk, size_t row,
               std::byte* chunk) {
  PutLine(Int4Blocks<32>::ScaleBits(block), row, chunk + 32 * in_chunk);
  PutLine(Int4Blocks<32>::ZeroPoint(block), row, chunk + 128 + 16 * in_chunk);
}
void PutScales(Int4Blocks<128>, const std::byte* block, size_t, size_t, size_t row, std::byte* chunk) {
  PutLine(Int4Blocks<128>::ScaleBits(block), row, chunk);
  PutLine(Int4Blocks<128>::ZeroPoint(block), row, chunk + 32);
}

void PutCodes(DType dtype, const uint8_t (&codes)[kStripBlock], size_t row, std::byte* block) {
  if (dtype == DType::kQ8_0 || dtype == DType::kInt8) return PutBytes(codes, row, block);
  PutNibbles(codes, row, block);
  if (dtype == DType::kQ5_0) PutHighBits<1>(codes, row, block + 256);
  if (dtype == DType::kQ6_K) PutHighBits<2>(codes, row, block + 256);
}

// Row `row` of the matrix as row `in_strip` of a strip; `strip` is its memory, filled with zeros.
void PackFloats(const WeightMatrix& matrix, size_t row, size_t in_strip, std::byte* strip) {
  thread_local std::vector<float> values;
  values.assign((matrix.columns + kStripBlock - 1) / kStripBlock * kStripBlock, 0);
  DecodeRow(matrix, row, values.data());
  for (size_t first = 0; first < values.size(); first += kStripBlock) {
    PutFloats(*reinterpret_cast<const float(*)[kStripBlock]>(values.data() + first), in_strip,
              strip + first / kStripBlock * FormatOf(DType::kF32).block_bytes);
  }
}

// BF16 of every F16, indexed by its bits.
const std::vector<uint16_t>& BF16FromF16() {
  static const std::vector<uint16_t> kTable = [] {
    std::vector<uint16_t> table(0x10000);
    for (uint32_t bits = 0; bits < table.size(); ++bits) {
      table[bits] = BF16FromFloat(FloatFromF16(static_cast<uint16_t>(bits)));
    }
    return table;
  }();
  return kTable;
}

// Rows of 16-bit elements; `convert` makes one BF16.
template <typename Convert>
void PackPairs(const WeightMatrix& matrix, size_t row, size_t in_strip, std::byte* strip, Convert convert) {
  const std::byte* from = matrix.Row(row);
  std::byte* to = strip + 4 * in_strip;
  size_t k = 0;
  for (; k + 2 <= matrix.columns; k += 2, from += 4, to += 64) {
    const uint16_t two[2] = {convert(LoadUnaligned<uint16_t>(from)),
                             convert(LoadUnaligned<uint16_t>(from + 2))};
    std::memcpy(to, two, 4);
  }
  if (k < matrix.columns) {
    const uint16_t last = convert(LoadUnaligned<uint16_t>(from));
    std::memcpy(to, &last, 2);
  }
}

// The places of two of four elements, all that are not zero among them.
template <typename IsKept>
PairPlaces KeptPlaces(IsKept is_kept) {
  uint32_t first = 0, second = 3;
  while (first < 2 && !is_kept(first)) ++first;
  while (second > first + 1 && !is_kept(second)) --second;
  return {first, second};
}

// Rows of 16-bit elements, of each four of which two are kept, in their order.
template <typename Convert>
void PackTwoOfFour(const WeightMatrix& matrix, size_t row, size_t in_strip, std::byte* strip,
                   Convert convert) {
  const std::byte* from = matrix.Row(row);
  for (size_t first = 0; first < matrix.columns; first += kStripBlock) {
    std::byte* const block = strip + first / kStripBlock * TwoOfFourFormat(DType::kBF16).block_bytes;
    uint32_t places = 0;
    for (uint32_t four = 0; four < 8; ++four, from += 8) {
      const auto bits = [&](uint32_t i) { return LoadUnaligned<uint16_t>(from + 2 * i); };
      const PairPlaces kept = KeptPlaces([&](uint32_t i) { return (bits(i) & 0x7fff) != 0; });
      const uint16_t two[2] = {convert(bits(kept.first)), convert(bits(kept.second))};
      std::memcpy(block + 64 + 64 * four + 4 * in_strip, two, 4);
      places |= CodeOfPlaces(kept.first, kept.second) << (3 * four);
    }
    PutLine(places, in_strip, block);
  }
}

// The same of INT8.
void PackTwoOfFourBytes(const WeightMatrix& matrix, size_t row, size_t in_strip, std::byte* strip) {
  constexpr StripFormat kFormat = TwoOfFourFormat(DType::kInt8);
  const std::byte* from = matrix.Row(row);
  for (size_t first = 0; first < matrix.columns; first += kStripBlock) {
    std::byte* const chunk = strip + first / kFormat.chunk * kFormat.ChunkBytes();
    std::byte* const block =
        chunk + kFormat.scale_bytes + first % kFormat.chunk / kStripBlock * kFormat.block_bytes;
    uint32_t places = 0;
    for (uint32_t four = 0; four < 8; ++four, from += 4) {
      const PairPlaces kept = KeptPlaces([&](uint32_t i) { return from[i] != std::byte{0}; });
      const std::byte two[2] = {from[kept.first], from[kept.second]};
      std::memcpy(block + 64 + 64 * (four / 2) + 4 * in_strip + 2 * (four % 2), two, 2);
      places |= CodeOfPlaces(kept.first, kept.second) << (3 * four);
    }
    PutLine(places, in_strip, block);
    PutLine(matrix.row_scales[row], in_strip, chunk);
  }
}

void PackCodes(const WeightMatrix& matrix, size_t row, size_t in_strip, std::byte* strip) {
  const StripFormat format = FormatOf(matrix.dtype);
  const auto pack = [&](auto read) {
    for (size_t first = 0; first < matrix.columns; first += kStripBlock) {
      std::byte* chunk = strip + first / format.chunk * format.ChunkBytes();
      const size_t in_chunk = first % format.chunk / kStripBlock;
      uint8_t codes[kStripBlock] = {};
      read(first, in_chunk, chunk, codes);
      PutCodes(matrix.dtype, codes, in_strip, chunk + format.scale_bytes + in_chunk * format.block_bytes);
    }
  };
  const std::byte* data = matrix.Row(row);
  WithBlocks(matrix.dtype, [&](auto blocks) {
    using Blocks = decltype(blocks);
    pack([&](size_t first, size_t in_chunk, std::byte* chunk, uint8_t(&codes)[kStripBlock]) {
      const std::byte* block = data + first / Blocks::kElements * Info(matrix.dtype).block_bytes;
      const size_t part = first % Blocks::kElements / kStripBlock;
      Blocks::Codes(block, part, codes);
      PutScales(blocks, block, part, in_chunk, in_strip, chunk);
    });
  });
  if (matrix.dtype == DType::kInt8) {
    pack([&](size_t first, size_t, std::byte* chunk, uint8_t(&codes)[kStripBlock]) {
      for (size_t i = 0; i < kStripBlock; ++i) {  // padding is zero: code 128
        const bool is_in = first + i < matrix.columns;
        codes[i] = is_in ? ByteAt(data + first + i) ^ 0x80 : 0x80;
      }
      PutLine(matrix.row_scales[row], in_strip, chunk);
    });
  }
}

// Adding what all bits but the sign's are carries into the sign of what is not 0; of INT8, whose only zero
// has no sign, the sign counts, too. Eight bytes are one four, or two.
bool IsRowTwoOfFour(const WeightMatrix& matrix, size_t row) {
  const bool is_int8 = matrix.dtype == DType::kInt8;
  const uint64_t magnitudes = is_int8 ? 0x7f7f7f7f7f7f7f7f : 0x7fff7fff7fff7fff;
  const std::byte* at = matrix.Row(row);
  for (const std::byte* const end = at + matrix.RowBytes(); at < end; at += 8) {
    const auto bits = LoadUnaligned<uint64_t>(at);
    const uint64_t kept = (((bits & magnitudes) + magnitudes) | (is_int8 ? bits : 0)) & ~magnitudes;
    if (is_int8 ? std::popcount(static_cast<uint32_t>(kept)) > 2 || std::popcount(kept >> 32) > 2
                : std::popcount(kept) > 2)
      return false;
  }
  return true;
}

}  // namespace

bool IsTwoOfFour(const WeightMatrix& matrix, ThreadPool& pool) {
  const bool may_be =
      matrix.dtype == DType::kF16 || matrix.dtype == DType::kBF16 || matrix.dtype == DType::kInt8;
  if (!may_be || matrix.columns % kStripBlock != 0) return false;
  if (matrix.rows > 0 && !IsRowTwoOfFour(matrix, 0)) return false;  // wakes nobody
  std::atomic<bool> holds = true;
  pool.ParallelFor(matrix.rows, /*grain=*/64, [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end && holds.load(std::memory_order_relaxed); ++row) {
      if (!IsRowTwoOfFour(matrix, row)) holds.store(false, std::memory_order_relaxed);
    }
  });
  return holds;
}

GemmWeights LayOutStrips(const WeightMatrix& matrix, ComputeType compute, ThreadPool& pool) {
  GemmWeights out = {.dtype = StripDType(matrix.dtype, compute),
                     .packed = true,
                     .two_of_four = compute == ComputeType::kAuto && IsTwoOfFour(matrix, pool),
                     .rows = matrix.rows,
                     .columns = matrix.columns};
  out.bytes = StripsOf(matrix.rows) * StripBytes(FormatOf(out), matrix.columns);
  return out;
}

GemmWeights PackStrips(const WeightMatrix& matrix, const GemmWeights& layout, std::byte* memory,
                       ThreadPool& pool) {
  GemmWeights out = layout;
  out.data = memory;
  const DType dtype = out.dtype;
  const size_t bytes = StripBytes(FormatOf(out), matrix.columns);
  const auto same = [](uint16_t bits) { return bits; };
  const auto to_bf16 = [](uint16_t bits) { return BF16FromF16()[bits]; };
  pool.ParallelFor(StripsOf(matrix.rows), 1, [&](size_t begin, size_t end) {
    for (size_t strip = begin; strip < end; ++strip) {
      std::byte* to = memory + strip * bytes;
      std::memset(to, 0, bytes);
      for (size_t i = 0; i < kStripRows && strip * kStripRows + i < matrix.rows; ++i) {
        const size_t row = strip * kStripRows + i;
        if (out.two_of_four && dtype == DType::kInt8) {
          PackTwoOfFourBytes(matrix, row, i, to);
        } else if (FormatOf(dtype).activations == ActivationFormat::kInt8) {
          PackCodes(matrix, row, i, to);
        } else if (out.two_of_four && matrix.dtype == DType::kBF16) {
          PackTwoOfFour(matrix, row, i, to, same);
        } else if (out.two_of_four) {
          PackTwoOfFour(matrix, row, i, to, to_bf16);
        } else if (dtype == DType::kBF16 && matrix.dtype == DType::kBF16) {
          PackPairs(matrix, row, i, to, same);
        } else if (dtype == DType::kBF16 && matrix.dtype == DType::kF16) {
          PackPairs(matrix, row, i, to, to_bf16);
        } else {
          PackFloats(matrix, row, i, to);
        }
      }
    }
  });
  return out;
}

}  // namespace terrace
