// What the tests of decode attention share, emulated and on a GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/attention/prefill_attention_testing.h"

namespace terrace {

// A batch of which every token is the last of its own sequence.
struct DecodeShape {
  KvDType dtype = KvDType::kBF16;
  uint32_t heads = 2, kv_heads = 1, head_dim = 64, log2_block_tokens = 4;
  std::vector<uint32_t> positions;
  float magnitude = 1, growth = 0;  // as in PrefillShape
  uint64_t seed = 1;
};

class DecodeBatch : public PrefillBatch {
 public:
  explicit DecodeBatch(const DecodeShape& shape) : PrefillBatch(AsPrefill(shape)) {}

  // All but `out`, `partials` and `arrived`, in host memory; decodes every token.
  GpuAttentionArgs Args() {
    GpuAttentionArgs args = PrefillBatch::Args();
    args.runs = nullptr;
    args.run_count = 0;
    args.count = tokens();
    args.most_spans = *std::max_element(positions.begin(), positions.end()) / kGpuAttentionSpan + 1;
    return args;
  }

  // The reference reads the same rows. Weights are rounded to bf16 or f16, at most 2^-8 of each, and divided
  // by the sum of what they became: that moves the result by at most 2^-8 of the sum of the terms and of the
  // result, and it is rounded by 2^-8 itself. What f32 sums and 2^x add is below 2^-12 of the terms: scores
  // of up to 100 are off by 2^-21 of themselves.
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
                            .scale = from.scale};
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
    for (const uint32_t position : shape.positions) as.sequences.push_back({position, 1});
    return as;
  }
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

}  // namespace terrace
