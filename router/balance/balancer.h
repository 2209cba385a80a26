// Which of a tier's replicas gets a request. A Balancer is const and pure: what it knows is in its arguments.
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "base/status.h"

namespace terrace {

struct Candidate {             // a ready replica that the request has not tried
  uint32_t sequences = 0;      // that run or wait there
  uint32_t cached_tokens = 0;  // of the request's prompt that it is believed to have in its cache
  uint64_t queued_tokens = 0;  // of other prompts, to be computed before this one
};

struct Arrival {  // what is to be placed
  uint32_t prompt_tokens = 0;
  uint64_t rotation = 0;  // counts the picks of this router: who is first among equals
};

class Balancer {
 public:
  virtual ~Balancer() = default;
  // An index into `candidates`, which has at least one.
  virtual size_t Pick(const Arrival& arrival, std::span<const Candidate> candidates) const = 0;
};

enum class BalancePolicy : uint8_t {
  kPrefix,       // the least work: what is queued, what of the prompt is not cached, what runs beside it
  kLeastLoaded,  // the fewest sequences
  kPowerOfTwo,   // the fewer sequences of two drawn at random
  kRoundRobin,   // each in turn
  kRandom,       // any: what the others are compared with
};
inline constexpr BalancePolicy kBalancePolicies[] = {BalancePolicy::kPrefix, BalancePolicy::kLeastLoaded,
                                                     BalancePolicy::kPowerOfTwo, BalancePolicy::kRoundRobin,
                                                     BalancePolicy::kRandom};
std::string_view BalancePolicyName(
    BalancePolicy policy);  // prefix, least_loaded, power_of_two, round_robin, random
std::optional<BalancePolicy> ParseBalancePolicy(std::string_view name);

std::unique_ptr<Balancer> MakeBalancer(BalancePolicy policy);

}  // namespace terrace
