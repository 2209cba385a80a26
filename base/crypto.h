// SHA-256, HMAC-SHA-256 and random bytes, all OpenSSL's. Pure but for the random ones. Thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace terrace {

using Digest256 = std::array<uint8_t, 32>;

Digest256 Sha256(std::string_view data);
// FIPS 198-1.
Digest256 HmacSha256(std::string_view key, std::string_view data);
// In a time that depends on nothing but the size.
bool AreEqualInConstantTime(const Digest256& a, const Digest256& b);
// From the system's source, fit for keys.
std::string SecretBytes(size_t count);

inline std::string_view AsBytes(const Digest256& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}
std::string ToHex(std::string_view bytes);                      // lower case
std::optional<Digest256> ParseDigest256(std::string_view hex);  // 64 digits of either case

}  // namespace terrace
