#include "router/balance/balancer.h"

#include <algorithm>

#include "base/rng.h"

namespace terrace {
namespace {

// What a sequence costs those beside it, in tokens of prompt: it takes its share of every step.
constexpr uint64_t kTokensPerSequence = 32;
// No replica gets more than this times the mean number of sequences, however well its cache fits: a hot
// prefix spills over to others, which then have it too. (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing
// with Bounded Loads.) A few are no load at all.
constexpr double kLoadBound = 1.25;
constexpr uint64_t kFewSequences = 4;

constexpr uint64_t kNotAllowed = ~uint64_t{0};  // a cost above all others

// The index of the least cost(candidate), of equals the first from `rotation` on. At least one has to be
// allowed.
template <typename Cost>
size_t Cheapest(std::span<const Candidate> candidates, uint64_t rotation, Cost cost) {
  size_t best = candidates.size();
  uint64_t least = kNotAllowed;
  const auto look_at = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const uint64_t here = cost(candidates[i]);
      if (here >= least) continue;
      best = i;
      least = here;
    }
  };
  const size_t first = rotation % candidates.size();
  look_at(first, candidates.size());
  look_at(0, first);
  CHECK(best < candidates.size(), "no candidate is allowed");
  return best;
}

class RoundRobin : public Balancer {
 public:
  size_t Pick(const Arrival& arrival, std::span<const Candidate> candidates) const override {
    return arrival.rotation % candidates.size();
  }
};

class LeastLoaded : public Balancer {
 public:
  size_t Pick(const Arrival& arrival, std::span<const Candidate> candidates) const override {
    return Cheapest(candidates, arrival.rotation,
                    [](const Candidate& candidate) { return uint64_t{candidate.sequences}; });
  }
};

// Mitzenmacher: The Power of Two Choices in Randomized Load Balancing.
class PowerOfTwo : public Balancer {
 public:
  size_t Pick(const Arrival& arrival, std::span<const Candidate> candidates) const override {
    const uint64_t count = candidates.size();
    const uint64_t first = RandomBits(kSeed, arrival.rotation, 0) % count;
    if (count == 1) return first;
    const uint64_t second = (first + 1 + RandomBits(kSeed, arrival.rotation, 1) % (count - 1)) % count;
    return candidates[second].sequences < candidates[first].sequences ? second : first;
  }

 private:
  static constexpr uint64_t kSeed = 2;
};

class Random : public Balancer {
 public:
  size_t Pick(const Arrival& arrival, std::span<const Candidate> candidates) const override {
    return RandomBits(kSeed, arrival.rotation, 0) % candidates.size();
  }

 private:
  static constexpr uint64_t kSeed = 3;
};

class PrefixAware : public Balancer {
 public:
  size_t Pick(const Arrival& arrival, std::span<const Candidate> candidates) const override {
    uint64_t sequences = 1, queued_tokens = 0;  // with this one
    for (const Candidate& candidate : candidates) {
      sequences += candidate.sequences;
      queued_tokens += candidate.queued_tokens;
    }
    const uint64_t delay = DelayOfOthers(arrival, queued_tokens / candidates.size());
    const double mean = static_cast<double>(sequences) / static_cast<double>(candidates.size());
    const uint64_t most = std::max(kFewSequences, static_cast<uint64_t>(kLoadBound * mean) + 1);
    return Cheapest(candidates, arrival.rotation,
                    [most, delay, prompt_tokens = arrival.prompt_tokens](const Candidate& candidate) {
                      const uint64_t own = prompt_tokens - std::min(candidate.cached_tokens, prompt_tokens);
                      const uint64_t cost = candidate.queued_tokens +
                                            kTokensPerSequence * candidate.sequences + own +
                                            (own * delay >> kDelayBits);
                      // Who has the fewest has at most the mean, less this one: somebody is always allowed.
                      // Not a branch, which would be guessed wrongly for every third of a thousand.
                      const uint64_t is_full = candidate.sequences >= most;
                      return cost | (is_full * kNotAllowed);
                    });
  }

 private:
  // What this request computes delays who comes behind it, too: about as many prompts as wait at a replica on
  // average. So the busier the tier, the more it is worth that nothing is computed twice, and the longer a
  // request waits for that. In 1 / (1 << kDelayBits) prompts.
  static uint64_t DelayOfOthers(const Arrival& arrival, uint64_t mean_queued_tokens) {
    constexpr uint64_t kMost = 64;  // prompts
    const uint64_t prompt_tokens = std::max(arrival.prompt_tokens, 1u);
    return std::min(mean_queued_tokens, kMost * prompt_tokens) * (1 << kDelayBits) / prompt_tokens;
  }
  static constexpr int kDelayBits = 8;
};

}  // namespace

std::string_view BalancePolicyName(BalancePolicy policy) {
  switch (policy) {
    case BalancePolicy::kPrefix:
      return "prefix";
    case BalancePolicy::kLeastLoaded:
      return "least_loaded";
    case BalancePolicy::kPowerOfTwo:
      return "power_of_two";
    case BalancePolicy::kRoundRobin:
      return "round_robin";
    case BalancePolicy::kRandom:
      return "random";
  }
  return "";
}

std::optional<BalancePolicy> ParseBalancePolicy(std::string_view name) {
  for (const BalancePolicy policy : kBalancePolicies) {
    if (name == BalancePolicyName(policy)) return policy;
  }
  return std::nullopt;
}

std::unique_ptr<Balancer> MakeBalancer(BalancePolicy policy) {
  switch (policy) {
    case BalancePolicy::kPrefix:
      return std::make_unique<PrefixAware>();
    case BalancePolicy::kLeastLoaded:
      return std::make_unique<LeastLoaded>();
    case BalancePolicy::kPowerOfTwo:
      return std::make_unique<PowerOfTwo>();
    case BalancePolicy::kRoundRobin:
      return std::make_unique<RoundRobin>();
    case BalancePolicy::kRandom:
      return std::make_unique<Random>();
  }
  return nullptr;
}

}  // namespace terrace
