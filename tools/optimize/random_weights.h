// Random weights as a pure function of (seed, name, row, column): neither threads nor the order of calls nor
// the file's format change a value.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace terrace {

class RandomMatrix {
 public:
  // Values with mean 0 and standard deviation 1/sqrt(columns): inputs of size 1 give outputs of size 1.
  RandomMatrix(uint64_t seed, std::string_view name, uint64_t columns);

  // The sum of four uniform numbers for each element, close to a normal distribution and within 3.5 standard
  // deviations. Thread-safe.
  void FillRow(uint64_t row, std::span<float> out) const;  // out: [columns]

 private:
  const uint64_t seed_;
  const uint64_t stream_;  // hash of the name
  const float scale_;
};

}  // namespace terrace
