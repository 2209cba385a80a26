#include "tools/quality/divergence.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tools/quality/logits.h"

namespace terrace {

Status DivergenceMeter::Add(std::span<const float> candidate, std::span<const float> baseline, int32_t next) {
  CHECK(candidate.size() == baseline.size() && next >= 0 && static_cast<size_t>(next) < candidate.size(),
        candidate.size(), " and ", baseline.size(), " logits, token ", next);
  ASSIGN_OR_RETURN(const NormalizedLogits of_candidate, Normalize(candidate, "candidate"));
  ASSIGN_OR_RETURN(const NormalizedLogits of_baseline, Normalize(baseline, "baseline"));
  double divergence = 0;
  for (size_t i = 0; i < baseline.size(); ++i) {
    const double log_p = baseline[i] - of_baseline.log_sum, log_q = candidate[i] - of_candidate.log_sum;
    divergence += std::exp(log_p) * (log_p - log_q);
  }
  divergences_.push_back(std::max(0.0, divergence));  // rounding may leave a little less than nothing
  flips_ += of_candidate.likeliest != of_baseline.likeliest;
  const auto at = static_cast<size_t>(next);
  candidate_surprise_ += of_candidate.log_sum - candidate[at];
  baseline_surprise_ += of_baseline.log_sum - baseline[at];
  return {};
}

Divergence DivergenceMeter::Finish() const {
  if (divergences_.empty()) return {};
  const auto positions = static_cast<double>(divergences_.size());
  std::vector<double> sorted = divergences_;
  std::ranges::sort(sorted);
  const auto rank = static_cast<size_t>(std::ceil(0.99 * positions));
  return {.positions = sorted.size(),
          .mean_kl = std::accumulate(sorted.begin(), sorted.end(), 0.0) / positions,
          .p99_kl = sorted[rank - 1],
          .max_kl = sorted.back(),
          .flip_rate = static_cast<double>(flips_) / positions,
          .candidate_perplexity = std::exp(candidate_surprise_ / positions),
          .baseline_perplexity = std::exp(baseline_surprise_ / positions)};
}

}  // namespace terrace
