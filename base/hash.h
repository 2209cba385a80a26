// XXH3-128 (xxHash 0.8): the hash of block keys and of model, tokenizer and file digests. Stable across
// processes, machines and builds; not a defence against a chosen collision.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace terrace {

struct Hash128 {
  uint64_t high = 0, low = 0;
  friend auto operator<=>(const Hash128&, const Hash128&) = default;
  std::string Hex() const;  // 32 lower-case digits
};

Hash128 HashBytes(std::string_view bytes, uint64_t seed = 0);

// The same hash over pieces. Integers and lengths are added as 8 little-endian bytes, so that two different
// sequences of Add calls do not meet. One thread at a time.
class Hasher {
 public:
  explicit Hasher(uint64_t seed = 0);
  ~Hasher();
  Hasher& Add(std::string_view bytes);  // length first, then the bytes
  Hasher& Add(uint64_t value);
  Hash128 Finish() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace terrace
