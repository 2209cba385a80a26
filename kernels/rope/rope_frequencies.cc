#include "kernels/rope/rope_frequencies.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/status.h"

namespace terrace {
namespace {

double StepOf(double base, size_t head_dim, size_t pair) {
  return std::pow(base, -2.0 * static_cast<double>(pair) / static_cast<double>(head_dim));
}

}  // namespace

RopeFrequencies MakeRopeFrequencies(double base, size_t head_dim, std::span<const float> divisors) {
  const size_t pairs = head_dim / 2;
  CHECK(divisors.empty() || divisors.size() == pairs, divisors.size(), " divisors of ", pairs, " pairs");
  RopeFrequencies out;
  for (size_t pair = 0; pair < pairs; ++pair) {
    out.steps.push_back(StepOf(base, head_dim, pair) / (divisors.empty() ? 1.0 : double{divisors[pair]}));
  }
  return out;
}

std::vector<float> LinearRopeDivisors(size_t head_dim, float factor) {
  return std::vector<float>(head_dim / 2, factor);
}

std::vector<float> Llama3RopeDivisors(double base, size_t head_dim, const Llama3RopeScaling& scaling) {
  std::vector<float> divisors;
  for (size_t pair = 0; pair < head_dim / 2; ++pair) {
    const double turns = scaling.original_context * StepOf(base, head_dim, pair) / (2 * std::numbers::pi);
    const double kept = std::clamp(
        (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0);
    divisors.push_back(static_cast<float>(1 / ((1 - kept) / scaling.factor + kept)));
  }
  return divisors;
}

void RopeAngles(const uint32_t* positions, size_t tokens, const RopeFrequencies& frequencies, float* cos,
                float* sin) {
  const size_t pairs = frequencies.steps.size();
  const double scale = frequencies.scale;
  for (size_t pair = 0; pair < pairs; ++pair) {
    for (size_t token = 0; token < tokens; ++token) {
      const double angle = positions[token] * frequencies.steps[pair];
      cos[token * pairs + pair] = static_cast<float>(scale * std::cos(angle));
      sin[token * pairs + pair] = static_cast<float>(scale * std::sin(angle));
    }
  }
}

}  // namespace terrace
