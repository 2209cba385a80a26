// When an open loop sends its requests. Deterministic by seed. Used by one thread.
#pragma once

#include <cstdint>

namespace terrace {

enum class ArrivalKind : uint8_t {
  kPoisson,   // independent arrivals: exponential gaps
  kConstant,  // every 1/rate seconds, the first at 0
};

class Arrivals {
 public:
  Arrivals(ArrivalKind kind, double rate, uint64_t seed) : kind_(kind), rate_(rate), seed_(seed) {}

  // Of the next request: seconds since the start, never before the one before.
  double Next();

 private:
  const ArrivalKind kind_;
  const double rate_;  // requests per second, above 0
  const uint64_t seed_;
  uint64_t count_ = 0;  // of arrivals so far
  double last_ = 0;
};

}  // namespace terrace
