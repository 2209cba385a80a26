// What the tests of decode attention share, emulated and on a GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/attention/prefill_attention_testing.h"
#include "kernels/rope/rope_frequencies.h"
#include "kernels/rope/rope_kv.h"
#include "kernels/rope/rope_kv_gpu.h"

namespace terrace {

// A batch whose tokens are the last of their sequences.
struct DecodeShape {
  KvDType dtype = KvDType::kBF16;
  uint32_t heads = 2, kv_heads = 1, head_dim = 64, log2_block_tokens = 4;
  std::vector<uint32_t> positions;  // of the first token of each sequence
  uint32_t count = 1;               // tokens of each
  float magnitude = 1, growth = 0;  // as in PrefillShape
  uint64_t seed = 1;
  uint32_t window = 0;
  float softcap = 0;
};

// What lies before the window of a sequence's first token is gone: its rows are NaN, and where a whole block
// is, the table leads nowhere.
inline void LeaveBehind(PrefillBatch& batch, uint32_t window) {
  const GpuAttentionArgs args = batch.Args();
  const size_t row_bytes = args.batch.head_dim * KvElementBytes(args.kv.dtype);
  const uint32_t log2_block = args.batch.log2_block_tokens;
  for (const PrefillChunk& chunk : batch.chunks) {
    if (window == 0 || chunk.position < window) continue;
    const uint32_t begin = chunk.position + 1 - window, sequence = batch.sequences[chunk.first];
    for (uint32_t position = 0; position < begin; ++position) {
      for (uint32_t head = 0; head < args.batch.kv_heads; ++head) {
        const uint64_t row = KvRow(args.batch, sequence, head, position);
        std::memset(&batch.keys[row * row_bytes], 0xff, row_bytes);
        std::memset(&batch.values[row * row_bytes], 0xff, row_bytes);
        if (HasScales(args.kv.dtype)) batch.key_scales[row] = batch.value_scales[row] = std::nanf("");
      }
    }
    std::fill_n(batch.tables.begin() + static_cast<ptrdiff_t>(sequence * size_t{batch.table_pitch}),
                begin >> log2_block, 0x40000000);
  }
}

// Every second span of a batch of bf16 becomes the keys of the one before it, with its values negated.
// Outputs are then little more than what rounding left of large sums, so that another order of these is
// another result; else most of the differences would vanish in bf16.
inline void CancelSpans(PrefillBatch& batch) {
  const GpuAttentionArgs args = batch.Args();
  const size_t row_bytes = args.batch.head_dim * KvElementBytes(KvDType::kBF16);
  for (const PrefillChunk& chunk : batch.chunks) {
    for (uint32_t position = 0; position < chunk.position + chunk.count; ++position) {
      if (position / kGpuAttentionSpan % 2 == 0) continue;
      for (uint32_t head = 0; head < args.batch.kv_heads; ++head) {
        const uint32_t sequence = batch.sequences[chunk.first];
        const uint64_t to = KvRow(args.batch, sequence, head, position) * row_bytes;
        const uint64_t from = KvRow(args.batch, sequence, head, position - kGpuAttentionSpan) * row_bytes;
        std::memcpy(&batch.keys[to], &batch.keys[from], row_bytes);
        std::memcpy(&batch.values[to], &batch.values[from], row_bytes);
        for (size_t i = 1; i < row_bytes; i += 2) batch.values[to + i] ^= std::byte{0x80};
      }
    }
  }
}

class DecodeBatch : public PrefillBatch {
 public:
  explicit DecodeBatch(const DecodeShape& shape)
      : PrefillBatch(AsPrefill(shape)), window_(shape.window), softcap_(shape.softcap) {
    LeaveBehind(*this, window_);
  }

  // All but `out`, `partials` and `arrived`, in host memory; decodes every token.
  GpuAttentionArgs Args() {
    GpuAttentionArgs args = PrefillBatch::Args();
    args.runs = nullptr;
    args.run_count = 0;
    args.window = window_;
    args.softcap = softcap_;
    args.count = tokens();
    args.most_spans = *std::max_element(positions.begin(), positions.end()) / kGpuAttentionSpan + 1;
    return args;
  }

  // The reference reads the same rows. Weights are rounded to bf16 or f16, at most 2^-8 of each, and divided
  // by the sum of what they became: that moves the result by at most 2^-8 of the sum of the terms and of the
  // result, and it is rounded by 2^-8 itself. What f32 sums and 2^x add is below 2^-12 of the terms: scores
  // of up to 100 are off by 2^-21 of themselves, capped ones by as much of the cap.
  Expected Reference() {
    const GpuAttentionArgs from = Args();
    std::vector<const int32_t*> of_each;
    std::vector<float> queries;
    for (uint32_t t = 0; t < tokens(); ++t) {
      of_each.push_back(&tables[size_t{sequences[t]} * table_pitch]);
      for (size_t i = 0; i < width(); ++i) queries.push_back(FloatFromBF16(q[t * q_pitch() + i]));
    }
    Expected expected;
    expected.out.resize(queries.size());
    PagedAttentionArgs args{.batch = {.positions = positions.data(),
                                      .block_tables = of_each.data(),
                                      .tokens = tokens(),
                                      .kv_heads = from.batch.kv_heads,
                                      .head_dim = from.batch.head_dim,
                                      .blocks = blocks,
                                      .block_tokens = size_t{1} << from.batch.log2_block_tokens},
                            .q = queries.data(),
                            .out = expected.out.data(),
                            .kv = from.kv,
                            .heads = from.heads,
                            .scale = from.scale,
                            .window = from.window,
                            .softcap = from.softcap};
    ThreadPool pool(1);
    PagedAttentionRef(args, pool);
    std::vector<std::byte> magnitudes = values;
    for (size_t i = 0; i < magnitudes.size(); ++i) {
      if (from.kv.dtype == KvDType::kInt8) {
        magnitudes[i] = static_cast<std::byte>(std::abs(static_cast<int8_t>(magnitudes[i])));
      } else if (i % KvElementBytes(from.kv.dtype) == KvElementBytes(from.kv.dtype) - 1) {
        magnitudes[i] &= std::byte{0x7f};
      }
    }
    args.kv.values.data = magnitudes.data();
    expected.tolerance.resize(expected.out.size());
    args.out = expected.tolerance.data();
    PagedAttentionRef(args, pool);
    for (size_t i = 0; i < expected.out.size(); ++i) {
      const float result = std::abs(expected.out[i]);
      expected.tolerance[i] = (0x1p-8f + 0x1p-12f) * (expected.tolerance[i] + result) + 0x1p-8f * result;
    }
    return expected;
  }

  // The same sequences in other blocks: those of the pool in reverse order.
  void ReverseBlocks() {
    const GpuAttentionArgs args = Args();
    const size_t block_bytes = (size_t{args.batch.head_dim} * KvElementBytes(args.kv.dtype))
                               << args.batch.log2_block_tokens;
    const auto reverse = [&](auto& rows, size_t block) {
      for (auto begin = rows.begin(); begin < rows.end(); begin += static_cast<ptrdiff_t>(blocks * block)) {
        for (size_t i = 0; i < blocks / 2; ++i) {
          const auto low = begin + static_cast<ptrdiff_t>(i * block);
          std::swap_ranges(low, low + static_cast<ptrdiff_t>(block),
                           begin + static_cast<ptrdiff_t>((blocks - 1 - i) * block));
        }
      }
    };
    for (auto* rows : {&keys, &values}) reverse(*rows, block_bytes);
    for (auto* scales : {&key_scales, &value_scales}) {
      reverse(*scales, size_t{1} << args.batch.log2_block_tokens);
    }
    for (int32_t& block : tables) {
      if (block < static_cast<int32_t>(blocks)) block = static_cast<int32_t>(blocks) - 1 - block;
    }
  }

 private:
  static PrefillShape AsPrefill(const DecodeShape& shape) {
    PrefillShape as{.dtype = shape.dtype,
                    .heads = shape.heads,
                    .kv_heads = shape.kv_heads,
                    .head_dim = shape.head_dim,
                    .log2_block_tokens = shape.log2_block_tokens,
                    .sequences = {},
                    .magnitude = shape.magnitude,
                    .growth = shape.growth,
                    .seed = shape.seed};
    for (const uint32_t position : shape.positions) as.sequences.push_back({position, shape.count});
    return as;
  }

  uint32_t window_;
  float softcap_;
};

// One token, at position 0, whose values are every code: they come out as they are, for their weight is 1.
inline DecodeBatch EveryFp8Code() {
  DecodeBatch batch({.dtype = KvDType::kFp8, .heads = 2, .kv_heads = 2, .head_dim = 128, .positions = {0}});
  for (uint32_t code = 0; code < 256; ++code) {
    const uint64_t row = KvRow(batch.Args().batch, 0, /*kv_head=*/code / 128, 0);
    batch.values[row * 128 + code % 128] = static_cast<std::byte>(code);
  }
  return batch;
}
inline void ExpectEveryFp8Code(const std::vector<uint16_t>& out) {
  for (uint32_t code = 0; code < 256; ++code) {
    const float want = FloatFromE4M3(static_cast<uint8_t>(code)), got = FloatFromBF16(out[code]);
    EXPECT_TRUE(std::isnan(want) ? std::isnan(got) : got == want) << code << ": " << got;
  }
}

// The same before RoPE: behind its queries every token has its key and value, which the pool does not have
// yet.
class RopeDecodeBatch : public DecodeBatch {
 public:
  RopeDecodeBatch(const DecodeShape& shape, bool neighbours) : DecodeBatch(shape), neighbours_(neighbours) {
    const GpuAttentionArgs args = Args();
    const GpuBatch& batch = args.batch;
    std::mt19937_64 random(shape.seed + 1);
    std::normal_distribution<float> normal;
    for (uint16_t& each : q) {  // what is not a query was NaN
      if (std::isnan(FloatFromBF16(each))) each = BF16FromFloat(normal(random));
    }
    const size_t row_bytes = batch.head_dim * KvElementBytes(shape.dtype);
    for (uint32_t t = 0; t < tokens(); ++t) {
      for (uint32_t head = 0; head < batch.kv_heads; ++head) {
        const uint64_t row = KvRow(batch, sequences[t], head, positions[t]);
        std::fill_n(keys.begin() + static_cast<ptrdiff_t>(row * row_bytes), row_bytes, std::byte{0xff});
        std::fill_n(values.begin() + static_cast<ptrdiff_t>(row * row_bytes), row_bytes, std::byte{0xff});
        if (HasScales(shape.dtype)) key_scales[row] = value_scales[row] = std::nanf("");
      }
    }
    std::vector<uint32_t> every(*std::max_element(positions.begin(), positions.end()) + 1);
    std::iota(every.begin(), every.end(), 0u);
    cos.resize(every.size() * batch.head_dim / 2);
    sin.resize(cos.size());
    RopeAngles(every.data(), every.size(), MakeRopeFrequencies(10000, batch.head_dim), cos.data(),
               sin.data());
  }

  // In host memory, as Args().
  GpuRopeKvArgs RopeArgs() {
    const GpuAttentionArgs args = Args();
    return {.batch = args.batch,
            .qkv = q.data(),
            .cos = cos.data(),
            .sin = sin.data(),
            .heads = args.heads,
            .neighbours = neighbours_,
            .kv = args.kv};
  }
  GpuAttentionArgs FusedArgs() {
    GpuAttentionArgs args = Args();
    args.cos = cos.data();
    args.sin = sin.data();
    args.neighbours = neighbours_;
    return args;
  }
  void ExpectSamePool(const DecodeBatch& other) const {
    const auto same = [](const auto& a, const auto& b) {  // NaNs too
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
    };
    EXPECT_TRUE(same(keys, other.keys)) << "keys";
    EXPECT_TRUE(same(values, other.values)) << "values";
    if (key_scales.empty()) return;
    EXPECT_TRUE(same(key_scales, other.key_scales)) << "scales of keys";
    EXPECT_TRUE(same(value_scales, other.value_scales)) << "scales of values";
  }

  std::vector<float> cos, sin;

 private:
  bool neighbours_;
};

}  // namespace terrace
