// How fast the pairs of a head turn. Rotary position embedding (Su et al., "RoFormer", 2021): pair p of a
// head at position m is rotated by the angle m * base^(-2p / head_dim). A model that was trained on short
// contexts and then on long ones divides each pair's angle by a number of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace terrace {

struct RopeFrequencies {
  std::vector<double> steps;  // [head_dim / 2] radians a position
  float scale = 1;            // of cosine and sine: YaRN's attention factor
};

// steps[p] = base^(-2p / head_dim) / divisors[p]; no divisors: none divides.
RopeFrequencies MakeRopeFrequencies(double base, size_t head_dim, std::span<const float> divisors = {});

// Positions are interpolated (Chen et al., "Extending Context Window of Large Language Models via Positional
// Interpolation", 2023).
std::vector<float> LinearRopeDivisors(size_t head_dim, float factor);

// Of Llama 3.1 (`rope_type` llama3): pairs that turn more often than high_freq_factor times in the original
// context stay, those that turn less often than low_freq_factor times in it are slowed down by `factor`, and
// the frequency of one in between is interpolated.
struct Llama3RopeScaling {
  double factor = 8;
  double low_freq_factor = 1, high_freq_factor = 4;  // high above low
  double original_context = 8192;
};
std::vector<float> Llama3RopeDivisors(double base, size_t head_dim, const Llama3RopeScaling& scaling);

// Fills cos and sin, [tokens, head_dim / 2], for one position per token. Angles are computed in double (a
// position below 2^24 times an f32 angle step would be off by up to a radian) and only their cosine and sine
// are rounded: a pure function of the position, whatever the batch.
void RopeAngles(const uint32_t* positions, size_t tokens, const RopeFrequencies& frequencies, float* cos,
                float* sin);

}  // namespace terrace
