// What the tests of prefill attention share, emulated and on a GPU: batches with pools, and what must come
// out.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "base/parallel_for.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/attention/paged_attention_gpu.h"
#include "kernels/attention/prefill_runs.h"
#include "kernels/scalar_convert.h"

namespace terrace {

struct PrefillShape {
  KvDType dtype = KvDType::kBF16;
  uint32_t heads = 2, kv_heads = 1, head_dim = 64, log2_block_tokens = 4;
  struct Sequence {
    uint32_t position, count;  // of its first query; queries
  };
  std::vector<Sequence> sequences;
  float magnitude = 1;  // of queries
  float growth = 0;     // keys at position p are 1 + growth * p times as large
  uint32_t window = 0;  // as in GpuAttentionArgs
  float softcap = 0;
  uint64_t seed = 1;
};

// In host memory. What no one may use is NaN, or a block far outside: rows behind a sequence's last position
// and before the window of its first query, keys and values between the queries of a [heads + 2 kv_heads]
// row, entries of a table behind its last block and before that window.
class PrefillBatch {
 public:
  static constexpr int32_t kNowhere = 0x555555;  // far outside any pool, even if 32 bits number its bytes

  explicit PrefillBatch(const PrefillShape& shape) : shape_(shape) {
    std::mt19937_64 random(shape.seed);
    const uint32_t block_tokens = 1u << shape.log2_block_tokens;
    for (uint32_t i = 0; i < shape.sequences.size(); ++i) {
      const auto [position, count] = shape.sequences[i];
      chunks.push_back({static_cast<uint32_t>(positions.size()), count, position});
      for (uint32_t j = 0; j < count; ++j) {
        positions.push_back(position + j);
        sequences.push_back(i);
      }
      const uint32_t sequence_blocks = (position + count + block_tokens - 1) / block_tokens;
      table_pitch = std::max(table_pitch, sequence_blocks + 1);
      blocks += sequence_blocks;
    }
    std::vector<int32_t> order(blocks);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    tables.assign(shape.sequences.size() * table_pitch, kNowhere);
    size_t used = 0;
    for (size_t i = 0; i < shape.sequences.size(); ++i) {
      const uint32_t length = shape.sequences[i].position + shape.sequences[i].count;
      for (size_t j = 0; j * block_tokens < length; ++j) tables[i * table_pitch + j] = order[used++];
    }
    FillPool(random);
    for (size_t i = 0; i < shape.sequences.size(); ++i) {
      std::fill_n(&tables[i * table_pitch], Unseen(i) / block_tokens, kNowhere);
    }
    std::normal_distribution<float> normal(0, shape.magnitude);
    const size_t width = size_t{shape.heads} * shape.head_dim;
    q.assign(positions.size() * q_pitch(), 0xffff);
    for (size_t t = 0; t < positions.size(); ++t) {
      for (size_t i = 0; i < width; ++i) q[t * q_pitch() + i] = BF16FromFloat(normal(random));
    }
    runs = PrefillRuns(chunks, shape.window);
  }

  uint32_t tokens() const { return static_cast<uint32_t>(positions.size()); }
  size_t q_pitch() const { return size_t{shape_.heads + 2 * shape_.kv_heads} * shape_.head_dim; }
  size_t width() const { return size_t{shape_.heads} * shape_.head_dim; }
  float scale() const { return 1 / std::sqrt(static_cast<float>(shape_.head_dim)); }

  // All but `out`, in host memory.
  GpuAttentionArgs Args() {
    GpuAttentionArgs args;
    args.batch = {.tokens = tokens(),
                  .positions = positions.data(),
                  .sequences = sequences.data(),
                  .block_tables = tables.data(),
                  .table_pitch = table_pitch,
                  .kv_heads = shape_.kv_heads,
                  .head_dim = shape_.head_dim,
                  .blocks = blocks,
                  .log2_block_tokens = shape_.log2_block_tokens};
    args.q = q.data();
    args.q_pitch = static_cast<uint32_t>(q_pitch());
    args.kv = {shape_.dtype, {keys.data(), key_scales.data()}, {values.data(), value_scales.data()}};
    args.heads = shape_.heads;
    args.scale = scale();
    args.window = shape_.window;
    args.softcap = shape_.softcap;
    args.runs = runs.data();
    args.run_count = static_cast<uint32_t>(runs.size());
    return args;
  }

  // Of `chosen` tokens: [chosen, heads, head_dim], and how far from it a result may be.
  struct Expected {
    std::vector<float> out, tolerance;
  };
  // The reference reads what the kernel does: the pool's values as bf16. Then what differs is that weights
  // are rounded to bf16 (2^-8 of each term), and so is the result. What f32 sums and 2^x add is below 2^-13
  // of the terms: scores up to 100 are off by 2^-23 of themselves, or with a cap of up to 64 by 2^-21 of
  // that, 512 roundings of 2^-24 of sums of one sign.
  Expected Reference(const std::vector<uint32_t>& chosen) {
    std::vector<uint32_t> chosen_positions;
    std::vector<const int32_t*> chosen_tables;
    std::vector<float> queries;
    for (const uint32_t t : chosen) {
      chosen_positions.push_back(positions[t]);
      chosen_tables.push_back(&tables[size_t{sequences[t]} * table_pitch]);
      for (size_t i = 0; i < width(); ++i) queries.push_back(FloatFromBF16(q[t * q_pitch() + i]));
    }
    std::vector<float> read_keys = ReadPool(keys, key_scales), read_values = ReadPool(values, value_scales);
    Expected expected;
    expected.out.resize(chosen.size() * width());
    PagedAttentionArgs args{.batch = {.positions = chosen_positions.data(),
                                      .block_tables = chosen_tables.data(),
                                      .tokens = chosen.size(),
                                      .kv_heads = shape_.kv_heads,
                                      .head_dim = shape_.head_dim,
                                      .blocks = blocks,
                                      .block_tokens = size_t{1} << shape_.log2_block_tokens},
                            .q = queries.data(),
                            .out = expected.out.data(),
                            .kv = {KvDType::kF32,
                                   {reinterpret_cast<std::byte*>(read_keys.data())},
                                   {reinterpret_cast<std::byte*>(read_values.data())}},
                            .heads = shape_.heads,
                            .scale = scale(),
                            .window = shape_.window,
                            .softcap = shape_.softcap};
    ThreadPool pool(1);
    PagedAttentionRef(args, pool);
    for (float& value : read_values) value = std::abs(value);
    expected.tolerance.resize(expected.out.size());
    args.out = expected.tolerance.data();
    PagedAttentionRef(args, pool);
    for (size_t i = 0; i < expected.out.size(); ++i) {
      expected.tolerance[i] = (0x1p-8f + 0x1p-13f) * (expected.tolerance[i] + std::abs(expected.out[i]));
    }
    return expected;
  }

  std::vector<PrefillChunk> chunks;
  std::vector<GpuQueryRun> runs;
  std::vector<uint32_t> positions, sequences;
  std::vector<int32_t> tables;
  uint32_t table_pitch = 0, blocks = 0;
  std::vector<uint16_t> q;
  std::vector<std::byte> keys, values;
  std::vector<float> key_scales, value_scales;  // of int8

 private:
  // Positions before the window of a sequence's first query.
  size_t Unseen(size_t sequence) const {
    const size_t seen = size_t{shape_.sequences[sequence].position} + 1;
    return shape_.window == 0 || seen <= shape_.window ? 0 : seen - shape_.window;
  }
  void FillPool(std::mt19937_64& random) {
    const size_t rows = (size_t{shape_.kv_heads} * blocks) << shape_.log2_block_tokens;
    keys.assign(rows * shape_.head_dim * KvElementBytes(shape_.dtype), std::byte{0xff});
    values = keys;
    if (HasScales(shape_.dtype)) key_scales.assign(rows, std::nanf(""));
    value_scales = key_scales;
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < shape_.sequences.size(); ++i) {
      const size_t length = size_t{shape_.sequences[i].position} + shape_.sequences[i].count;
      const size_t row = size_t{shape_.kv_heads} * shape_.head_dim;
      std::vector<float> new_keys(length * row), new_values(length * row);
      std::vector<uint32_t> all(length);
      std::iota(all.begin(), all.end(), 0);
      for (size_t j = 0; j < length * row; ++j) {
        new_keys[j] = normal(random) * (1 + shape_.growth * static_cast<float>(j / row));
        new_values[j] = normal(random);
      }
      std::fill_n(new_keys.begin(), Unseen(i) * row, std::nanf(""));
      std::fill_n(new_values.begin(), Unseen(i) * row, std::nanf(""));
      const std::vector<const int32_t*> of_each(length, &tables[i * table_pitch]);
      WriteKv({.batch = {.positions = all.data(),
                         .block_tables = of_each.data(),
                         .tokens = length,
                         .kv_heads = shape_.kv_heads,
                         .head_dim = shape_.head_dim,
                         .blocks = blocks,
                         .block_tokens = size_t{1} << shape_.log2_block_tokens},
               .keys = new_keys.data(),
               .values = new_values.data(),
               .kv = {shape_.dtype, {keys.data(), key_scales.data()}, {values.data(), value_scales.data()}}});
    }
  }

  std::vector<float> ReadPool(const std::vector<std::byte>& data, const std::vector<float>& scales) const {
    std::vector<float> out(data.size() / KvElementBytes(shape_.dtype));
    for (size_t i = 0; i < out.size(); ++i) {
      float x = 0;
      if (shape_.dtype == KvDType::kBF16) x = FloatFromBF16(LoadUnaligned<uint16_t>(&data[2 * i]));
      if (shape_.dtype == KvDType::kF16) x = FloatFromF16(LoadUnaligned<uint16_t>(&data[2 * i]));
      if (shape_.dtype == KvDType::kFp8) x = FloatFromE4M3(std::to_integer<uint8_t>(data[i]));
      if (shape_.dtype == KvDType::kInt8) x = scales[i / shape_.head_dim] * LoadUnaligned<int8_t>(&data[i]);
      out[i] = FloatFromBF16(BF16FromFloat(x));
    }
    return out;
  }

  PrefillShape shape_;
};

}  // namespace terrace
