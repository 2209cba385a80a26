// Counter-based random numbers: a pure function of (seed, counter), so that draw i of a request is the same
// on any worker, in any batch, after any failover. Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As
// Easy as 1, 2, 3", SC 2011). Thread-safe: no state.
#pragma once

#include <array>
#include <cstdint>

namespace terrace {

// The four 32-bit outputs of Philox4x32-10 for a 128-bit counter and a 64-bit key.
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// 64 random bits for draw `counter` of `stream` under `seed`.
uint64_t RandomBits(uint64_t seed, uint64_t counter, uint64_t stream = 0);

// Uniform in [0, 1): 53 bits.
double RandomUniform(uint64_t seed, uint64_t counter, uint64_t stream = 0);

// The seed of answer `choice` among several to one request: `seed` itself for the first, so that asking for
// more answers does not change it.
uint64_t ChoiceSeed(uint64_t seed, uint32_t choice);

}  // namespace terrace
