// What the tests of run attention share, emulated and on a GPU: batches of prompts, to be decoded or taken
// run by run.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/attention/decode_attention_testing.h"

namespace terrace {

inline constexpr PrefillShape::Sequence kRunSequences[] = {{0, 9},       // within the first tiles
                                                           {250, 20},    // into a second span
                                                           {13, 1},      // a run of one token
                                                           {1020, 14}};  // into a second group of spans

inline PrefillShape RunShape(KvDType dtype, uint32_t group, uint32_t head_dim, uint64_t seed) {
  return {.dtype = dtype,
          .heads = 2 * group,
          .kv_heads = 2,
          .head_dim = head_dim,
          .log2_block_tokens = static_cast<uint32_t>(4 + seed % 2),
          .sequences = {std::begin(kRunSequences), std::end(kRunSequences)},
          .growth = 0.001f,
          .seed = seed};
}

// Within a tile, within a span, across spans, across groups of spans.
struct RunLimits {
  uint32_t window = 0;
  float softcap = 0;
};
inline constexpr RunLimits kRunLimits[] = {{1, 0}, {5, 20}, {18, 0}, {200, 1}, {256, 0}, {700, 30}, {0, 5}};

// That decode attention takes all tokens of the batch, for what a run must come to.
inline void DecodeAll(GpuAttentionArgs& args, const PrefillBatch& batch) {
  args.count = batch.tokens();
  args.most_spans = *std::max_element(batch.positions.begin(), batch.positions.end()) / kGpuAttentionSpan + 1;
}

// Bits are equal, or both are NaN.
inline void ExpectSameBits(const PrefillBatch& batch, const std::vector<uint16_t>& got,
                           const std::vector<uint16_t>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(FloatFromBF16(got[i])) && std::isnan(FloatFromBF16(want[i]))) continue;
    const size_t token = i / batch.width();
    ASSERT_EQ(got[i], want[i]) << "sequence " << batch.sequences[token] << ", position "
                               << batch.positions[token] << ", element " << i % batch.width();
  }
}

// A value of sequence `sequence` at `position`, of kv head 1, becomes NaN.
inline void BreakValue(PrefillBatch& batch, uint32_t sequence, uint32_t position) {
  const GpuAttentionArgs args = batch.Args();
  const uint64_t row = KvRow(args.batch, sequence, /*kv_head=*/1, position);
  if (HasScales(args.kv.dtype)) {
    batch.value_scales[row] = std::nanf("");
  } else {
    std::memset(&batch.values[2 * (row * args.batch.head_dim + 5)], 0xff, 2);
  }
}

}  // namespace terrace
