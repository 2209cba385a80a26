#include "router/balance/slow_start.h"

#include <algorithm>
#include <vector>

#include "base/rng.h"

namespace terrace {
namespace {

constexpr uint64_t kSeed = 3;
// Of so much of the greatest weight a candidate is no newer than the others: replicas that were started
// together are ready some moments apart, and the first of them is not to get all requests but the others'
// exact shares.
constexpr float kAsOld = 0.9f;

}  // namespace

size_t PickBySlowStart(const Balancer& balancer, const Arrival& arrival,
                       std::span<const Candidate> candidates, std::span<const float> weights) {
  CHECK(weights.size() == candidates.size(), weights.size(), " weights of ", candidates.size(),
        " candidates");
  const float greatest = std::ranges::max(weights);
  double sequences = 1, sum = 0;  // with the one that arrives
  for (size_t i = 0; i < candidates.size(); ++i) {
    sequences += candidates[i].sequences;
    sum += weights[i] / greatest;
  }
  const auto takes_part = [&](size_t i) {
    if (weights[i] >= kAsOld * greatest) return true;
    const double ratio = weights[i] / greatest;
    if (RandomUniform(kSeed, arrival.rotation, i) >= ratio) return false;
    return candidates[i].sequences == 0 || candidates[i].sequences + 1 <= ratio * sequences / sum;
  };
  std::vector<Candidate> taking_part;
  std::vector<size_t> places;  // in `candidates`
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (!takes_part(i)) continue;
    taking_part.push_back(candidates[i]);
    places.push_back(i);
  }
  return places[balancer.Pick(arrival, taking_part)];
}

}  // namespace terrace
