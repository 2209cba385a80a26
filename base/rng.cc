#include "base/rng.h"

namespace terrace {

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  auto [c0, c1, c2, c3] = counter;
  auto [k0, k1] = key;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9E3779B9;  // the Weyl constants of the paper: golden ratio, sqrt(3) - 1
    k1 += 0xBB67AE85;
  }
  return {c0, c1, c2, c3};
}

uint64_t RandomBits(uint64_t seed, uint64_t counter, uint64_t stream) {
  const auto out = Philox4x32({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                               static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                              {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return uint64_t{out[1]} << 32 | out[0];
}

double RandomUniform(uint64_t seed, uint64_t counter, uint64_t stream) {
  return static_cast<double>(RandomBits(seed, counter, stream) >> 11) * 0x1p-53;
}

uint64_t ChoiceSeed(uint64_t seed, uint32_t choice) {
  constexpr uint64_t kStream = 0x63686f696365;  // "choice": far from the streams that draw tokens
  return choice == 0 ? seed : RandomBits(seed, choice, kStream);
}

}  // namespace terrace
