// Chooses tokens from rows of logits on a GPU, by the rules of worker/sample/sampler.h.
//
// A token's weight, exp((adjusted - largest) / temperature), is a multiple of 2^-44, at least one of them;
// those below 2^-44 are never drawn. Their sums are of integers, so that a row's token depends on nothing but
// the row. It differs from what exact weights would give only where the draw, top_p or min_p lies within
// rounding of a boundary: a weight's relative error is at most 2^-22 + 2^-22 ln(1 / weight) + 2^-44 / weight.
// A greedy token is exact. The rest is of the raw logits, summed in a fixed order.
#pragma once

#include <cstdint>

namespace terrace {

struct GpuSampleRow {
  float temperature = 0;                                // 0: greedy
  int32_t top_k = 0;                                    // 0: off
  float top_p = 1;                                      // 1: off
  float min_p = 0;                                      // 0: off
  double uniform = 0;                                   // in [0, 1): the draw (unused when greedy)
  uint32_t adjustments_begin = 0, adjustments_end = 0;  // of GpuSampleArgs::adjustments
  uint32_t top = 0;                                     // so many of the most likely, at most kGpuMostTop
};

inline constexpr uint32_t kGpuMostTop = 20;
inline constexpr uint32_t kGpuMostSampleVocab = 1u << 19;

// One token's logit before the choice, as the host's sampler computes it (in f64, rounded to f32 where
// marked):
//   l' = f32(l + bias);  f32((l' > 0 ? l' / repetition : l' * repetition) - subtract)
// both saturated at the largest f32. A row's adjustments are in rising order of token; those of one token
// apply one after the other.
struct GpuLogitAdjustment {
  int32_t token = 0;
  float bias = 0;
  float repetition = 1;
  float raw = 0;        // written: the logit before the first adjustment of its token, in that one
  double subtract = 0;  // presence + frequency * count
};

struct GpuSampleResult {
  int32_t token = 0;  // -1: a logit is NaN or +infinity, or none is finite (numeric_error);
                      // nothing else is written then
  float logprob = 0;  // of the raw logits
  float margin = 0;   // first less second of the raw logits' log-probabilities
  float entropy = 0;  // of the raw logits, nats
  int32_t top_tokens[kGpuMostTop] = {};  // the first `top` are written; -1 where the vocabulary ends before
  float top_logprobs[kGpuMostTop] = {};
};

struct GpuSampleArgs {
  float* logits = nullptr;  // [rows, pitch] f32, aligned to 16 bytes; adjusted ones replace raw ones
  uint32_t rows = 0, vocab = 0, pitch = 0;  // up to 65535; up to kGpuMostSampleVocab; a multiple of 4
  bool samples = false;                     // a row's temperature may be above 0; else all are greedy
  bool tops = false;                        // a row's top may be above 0
  const GpuSampleRow* params = nullptr;     // [rows]
  GpuLogitAdjustment* adjustments = nullptr;
  GpuSampleResult* results = nullptr;  // [rows]
  void* scratch = nullptr;             // GpuSampleScratchBytes(rows, vocab), aligned to 256 bytes
};

}  // namespace terrace
