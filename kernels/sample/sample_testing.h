// What the tests of sample_gpu.h share: rows, and their reference in double by sorting.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/sample/sample_gpu.h"

namespace terrace {

struct SampleCase {
  std::vector<float> logits;
  GpuSampleRow params;
  std::vector<GpuLogitAdjustment> adjustments = {};  // rising tokens
};

// What lies between two rows.
struct SamplePadding {
  uint32_t pitch_multiple = 4, more = 4;  // the pitch is the next such multiple, and `more`
  float value = std::numeric_limits<float>::quiet_NaN();
};
// Behind the products of an output matrix that is zeros up to a whole tile.
inline constexpr SamplePadding kHeadPadding = {.pitch_multiple = 16, .more = 0, .value = 0};

// Rows of one vocabulary as the kernels take them.
struct SampleBatch {
  explicit SampleBatch(const std::vector<SampleCase>& cases, const SamplePadding& padding = {}) {
    vocab = static_cast<uint32_t>(cases[0].logits.size());
    pitch =
        (vocab + padding.pitch_multiple - 1) / padding.pitch_multiple * padding.pitch_multiple + padding.more;
    for (const SampleCase& one : cases) {
      logits.insert(logits.end(), one.logits.begin(), one.logits.end());
      logits.resize(logits.size() + pitch - vocab, padding.value);
      GpuSampleRow row = one.params;
      row.adjustments_begin = static_cast<uint32_t>(adjustments.size());
      adjustments.insert(adjustments.end(), one.adjustments.begin(), one.adjustments.end());
      row.adjustments_end = static_cast<uint32_t>(adjustments.size());
      params.push_back(row);
      samples |= row.temperature > 0;
      tops |= row.top > 0;
    }
  }

  uint32_t vocab, pitch;
  bool samples = false, tops = false;
  std::vector<float> logits;
  std::vector<GpuSampleRow> params;
  std::vector<GpuLogitAdjustment> adjustments;
};

inline std::vector<float> AdjustedLogits(const SampleCase& one) {
  const auto saturated = [](double logit) {
    constexpr double kLargest = std::numeric_limits<float>::max();
    return std::isinf(logit) && logit < 0 ? static_cast<float>(logit)
                                          : static_cast<float>(std::clamp(logit, -kLargest, kLargest));
  };
  std::vector<float> adjusted = one.logits;
  for (const GpuLogitAdjustment& by : one.adjustments) {
    float& to = adjusted[static_cast<size_t>(by.token)];
    const double logit = saturated(double{to} + by.bias);
    to = saturated((logit > 0 ? logit / by.repetition : logit * by.repetition) - by.subtract);
  }
  return adjusted;
}

inline std::vector<uint32_t> FallingTokens(const std::vector<float>& logits) {
  std::vector<uint32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
  return order;
}

// The ranks, in the falling order of the adjusted logits, of the tokens that may be drawn: one, unless a cut
// lies within the weights' error of a boundary (sample_gpu.h).
struct DrawnRanks {
  size_t least = 0, most = 0;
};
inline DrawnRanks RanksOfDraw(const std::vector<float>& falling, const GpuSampleRow& params) {
  const size_t size = falling.size();
  std::vector<double> weight(size), error(size), sum(size + 1), sum_error(size + 1, std::ldexp(1, -43));
  for (size_t i = 0; i < size; ++i) {
    const double logarithm = (double{falling[i]} - falling[0]) / params.temperature;
    weight[i] = std::exp(logarithm);
    if (falling[i] < falling[0] && weight[i] > 0) {
      error[i] = weight[i] * std::ldexp(1 - logarithm, -22) + std::ldexp(1, -44);
    }
    sum[i + 1] = sum[i] + weight[i];
    sum_error[i + 1] = sum_error[i] + error[i];
  }
  const size_t limit = params.top_k > 0 ? std::min<size_t>(static_cast<size_t>(params.top_k), size) : size;
  // So many tokens are kept when every error goes up (sign 1) or down (-1) in what the cut compares.
  const auto kept = [&](double sign) {
    size_t count = limit;
    if (params.top_p < 1) {
      const double enough = params.top_p * (sum[limit] - sign * sum_error[limit]);
      count = 1;
      while (count < limit && sum[count] + sign * sum_error[count] < enough) ++count;
    }
    size_t likely = 1;
    while (likely < count && weight[likely] - sign * error[likely] >= double{params.min_p}) ++likely;
    return std::min(count, likely);
  };
  const size_t least_kept = kept(1), most_kept = kept(-1);
  DrawnRanks ranks;
  const double least = params.uniform * (sum[least_kept] - sum_error[least_kept]);
  const double most = params.uniform * (sum[most_kept] + sum_error[most_kept]);
  while (ranks.least + 1 < least_kept && sum[ranks.least + 1] + sum_error[ranks.least + 1] <= least)
    ++ranks.least;
  while (ranks.most + 1 < most_kept && sum[ranks.most + 1] - sum_error[ranks.most + 1] <= most) ++ranks.most;
  return ranks;
}

// Checks a row's result; returns whether only one token could have been drawn.
inline bool ExpectSampled(const SampleCase& one, const GpuSampleResult& got) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  bool is_bad = false;
  for (const float logit : one.logits) is_bad |= !(logit < kInfinity);
  is_bad |= *std::max_element(one.logits.begin(), one.logits.end()) == -kInfinity;
  if (is_bad) {
    EXPECT_EQ(got.token, -1);
    return true;
  }

  // The choice.
  const std::vector<float> adjusted = AdjustedLogits(one);
  const std::vector<uint32_t> order = FallingTokens(adjusted);
  DrawnRanks ranks;
  if (one.params.temperature > 0) {
    std::vector<float> falling;
    for (const uint32_t token : order) falling.push_back(adjusted[token]);
    ranks = RanksOfDraw(falling, one.params);
  }
  const size_t rank = static_cast<size_t>(
      std::find(order.begin(), order.end(), static_cast<uint32_t>(got.token)) - order.begin());
  EXPECT_GE(rank, ranks.least) << "token " << got.token;
  EXPECT_LE(rank, ranks.most) << "token " << got.token;
  if (rank == order.size()) return false;
  EXPECT_GT(adjusted[static_cast<size_t>(got.token)], -kInfinity);

  // Its report. A weight of the raw row has a relative error of 2^-22 and of its argument's two roundings;
  // the sum adds 16 weights to a thread, then 5 times in the warp and 8 in the block.
  const std::vector<uint32_t> raw = FallingTokens(one.logits);
  const double largest = one.logits[raw[0]];
  double sum = 0, weighted = 0, sum_error = 0, weighted_error = 0;
  for (const float logit : one.logits) {
    if (logit == -kInfinity) continue;
    const double logarithm = logit - largest, weight = std::exp(logarithm);
    const double relative = std::ldexp(1 - logarithm, -22) + std::ldexp(32, -24);
    sum += weight;
    weighted += weight * logarithm;
    sum_error += weight * relative;
    weighted_error += weight * std::abs(logarithm) * (relative + std::ldexp(1, -22));
  }
  const double log_sum = largest + std::log(sum), log_error = sum_error / sum;
  const auto expect_logprob = [&](uint32_t token, float logprob) {
    const double want = one.logits[token] - log_sum;
    if (want < -std::numeric_limits<float>::max()) {
      EXPECT_EQ(logprob, -kInfinity) << "token " << token;
    } else {
      EXPECT_NEAR(logprob, want, log_error + std::ldexp(std::abs(want), -23)) << "token " << token;
    }
  };
  expect_logprob(static_cast<uint32_t>(got.token), got.logprob);
  EXPECT_EQ(got.margin, raw.size() > 1 ? one.logits[raw[0]] - one.logits[raw[1]] : kInfinity);
  const double entropy = std::log(sum) - weighted / sum;
  EXPECT_NEAR(
      got.entropy, entropy,
      log_error + weighted_error / sum + log_error * std::abs(weighted / sum) + std::ldexp(entropy, -23));
  for (size_t i = 0; i < one.params.top; ++i) {
    if (i >= raw.size()) {
      EXPECT_EQ(got.top_tokens[i], -1) << "top " << i;
      continue;
    }
    EXPECT_EQ(got.top_tokens[i], static_cast<int32_t>(raw[i])) << "top " << i;
    expect_logprob(raw[i], got.top_logprobs[i]);
  }
  return ranks.least == ranks.most;
}

// Logits as a model's: most near the middle, a few that stand out.
inline std::vector<float> ModelLogits(uint32_t vocab, float spread, std::mt19937_64& random) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(random);
  for (int i = 0; i < 8; ++i) logits[random() % vocab] += 3 * spread;
  return logits;
}

struct NamedLogits {
  std::string name;
  std::vector<float> logits;
};

// Rows that are hard on one step or another.
inline std::vector<NamedLogits> HardLogits(uint32_t vocab, std::mt19937_64& random) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kLargest = std::numeric_limits<float>::max();
  std::vector<NamedLogits> rows;
  const auto add = [&](const char* name, const auto& logit) {
    NamedLogits row{name, std::vector<float>(vocab)};
    for (uint32_t i = 0; i < vocab; ++i) row.logits[i] = logit(i);
    rows.push_back(std::move(row));
  };
  const auto uniform = [&] { return static_cast<float>(random() % 10'000) / 10'000; };
  add("all equal", [](uint32_t) { return 2.5f; });
  add("all zero, of either sign", [](uint32_t i) { return i % 3 == 0 ? 0.0f : -0.0f; });
  add("one dominates", [&](uint32_t i) { return i == vocab / 2 ? 90.0f : uniform(); });
  add("three levels", [&](uint32_t i) { return static_cast<float>(i * 7 % 3); });
  add("one of two", [&](uint32_t i) { return i % 2 == 0 ? -kInfinity : uniform(); });
  add("one finite, the last", [&](uint32_t i) { return i + 1 < vocab ? -kInfinity : -3.0f; });
  add("within one bin", [&](uint32_t) { return 5 + uniform() / 64; });
  add("one bin below one that is larger", [&](uint32_t i) { return i == 1 ? 9.0f : 5 + uniform() / 64; });
  add("next to each other", [&](uint32_t) { return 1 + static_cast<float>(random() % 4) / (1 << 23); });
  add("weights down to nothing", [&](uint32_t i) { return -static_cast<float>(i) * 0.05f; });
  add("denormal weights", [&](uint32_t i) { return i == 0 ? 0.0f : -86 - 2 * uniform(); });
  add("huge", [&](uint32_t i) { return i % 2 == 0 ? kLargest : -kLargest; });
  add("tiny", [&](uint32_t) { return uniform() * 1e-42f; });
  add("rising", [&](uint32_t i) { return static_cast<float>(i) / 256; });
  add("best in one thread", [&](uint32_t i) { return i < 16 ? 10 + uniform() : uniform(); });
  return rows;
}

// Every way to cut, one at a time and together.
inline std::vector<GpuSampleRow> SampleCuts() {
  std::vector<GpuSampleRow> cuts;
  for (const float temperature : {1.0f, 0.3f, 2.0f}) cuts.push_back({.temperature = temperature});
  for (const int32_t top_k : {1, 2, 40, 1000, 1 << 20}) cuts.push_back({.temperature = 1, .top_k = top_k});
  for (const float top_p : {1e-9f, 0.1f, 0.9f, 0.999999f}) cuts.push_back({.temperature = 1, .top_p = top_p});
  for (const float min_p : {1e-6f, 0.1f, 1.0f}) cuts.push_back({.temperature = 1, .min_p = min_p});
  cuts.push_back({.temperature = 0.8f, .top_k = 50, .top_p = 0.95f});
  cuts.push_back({.temperature = 1.5f, .top_k = 300, .top_p = 0.7f, .min_p = 0.02f});
  cuts.push_back({.temperature = 1, .top_p = 0.99f, .min_p = 0.3f});
  cuts.push_back({.temperature = 1e-38f});
  return cuts;
}

// Rows far below kHeadPadding, so that what reads that shows: cut in every way, and greedy; adjusted where
// the row ends.
inline std::vector<SampleCase> CasesBelowPadding(uint32_t vocab, std::mt19937_64& random) {
  std::uniform_real_distribution<double> uniform;
  std::vector<GpuSampleRow> all = SampleCuts();
  all.resize(all.size() + 3);
  std::vector<SampleCase> cases;
  for (GpuSampleRow params : all) {
    params.uniform = cases.size() % 4 == 0 ? 1 - 0x1p-53 : uniform(random);
    params.top = cases.size() % 3 == 0 ? kGpuMostTop : 0;
    SampleCase one{ModelLogits(vocab, 0.5f, random), params};
    for (float& logit : one.logits)
      logit = cases.size() % 5 == 1 ? -60 : logit - 60;  // more alike than are listed
    if (cases.size() % 2 == 0) one.adjustments = {{.token = static_cast<int32_t>(vocab - 1), .bias = 2}};
    cases.push_back(std::move(one));
  }
  return cases;
}

}  // namespace terrace
