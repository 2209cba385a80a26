#include "tools/optimize/random_weights.h"

#include <cmath>

#include "base/hash.h"
#include "base/rng.h"

namespace terrace {
namespace {

// Of the sum of four uniform whole numbers from 0 to 65535: each has the variance (2^32 - 1) / 12.
const double kDeviationOfSum = std::sqrt((0x1p32 - 1) / 3);
constexpr int kMeanOfSum = 2 * 65535;

float Centered(uint32_t a, uint32_t b) {
  const uint32_t sum = (a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16);
  return static_cast<float>(static_cast<int>(sum) - kMeanOfSum);
}

}  // namespace

RandomMatrix::RandomMatrix(uint64_t seed, std::string_view name, uint64_t columns)
    : seed_(seed),
      stream_(HashBytes(name).low),
      scale_(static_cast<float>(1 / (kDeviationOfSum * std::sqrt(static_cast<double>(columns))))) {}

void RandomMatrix::FillRow(uint64_t row, std::span<float> out) const {
  const std::array<uint32_t, 2> key = {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)};
  for (size_t column = 0; column < out.size(); column += 2) {  // one draw makes two values
    const auto draw = Philox4x32({static_cast<uint32_t>(column / 2), static_cast<uint32_t>(row),
                                  static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)},
                                 key);
    out[column] = Centered(draw[0], draw[1]) * scale_;
    if (column + 1 < out.size()) out[column + 1] = Centered(draw[2], draw[3]) * scale_;
  }
}

}  // namespace terrace
