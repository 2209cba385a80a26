#include "base/hash.h"

#include <cstdio>

#define XXH_STATIC_LINKING_ONLY  // XXH3_state_t is held by value
#include <xxhash.h>

namespace terrace {

struct Hasher::State {
  XXH3_state_t xxh;
};

std::string Hash128::Hex() const {
  char text[33];
  std::snprintf(text, sizeof(text), "%016llx%016llx", static_cast<unsigned long long>(high),
                static_cast<unsigned long long>(low));
  return text;
}

Hash128 HashBytes(std::string_view bytes, uint64_t seed) {
  const XXH128_hash_t hash = XXH3_128bits_withSeed(bytes.data(), bytes.size(), seed);
  return {hash.high64, hash.low64};
}

Hasher::Hasher(uint64_t seed) : state_(new State) { XXH3_128bits_reset_withSeed(&state_->xxh, seed); }
Hasher::~Hasher() = default;

Hasher& Hasher::Add(std::string_view bytes) {
  Add(bytes.size());
  XXH3_128bits_update(&state_->xxh, bytes.data(), bytes.size());
  return *this;
}

Hasher& Hasher::Add(uint64_t value) {
  unsigned char little_endian[8];
  for (int i = 0; i < 8; ++i) little_endian[i] = static_cast<unsigned char>(value >> (8 * i));
  XXH3_128bits_update(&state_->xxh, little_endian, sizeof(little_endian));
  return *this;
}

Hash128 Hasher::Finish() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(&state_->xxh);
  return {hash.high64, hash.low64};
}

}  // namespace terrace
