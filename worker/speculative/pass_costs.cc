#include "worker/speculative/pass_costs.h"

#include <algorithm>
#include <vector>

namespace terrace {
namespace {

// A pass costs as much as so many of its tokens, before anything is known.
constexpr double kPassTokens = 32;

}  // namespace

void PassCosts::Learn(std::span<const uint32_t> passes, double seconds) {
  double all = 0;
  std::vector<double> shares;
  for (const uint32_t tokens : passes) {
    shares.push_back(is_known() ? Seconds(tokens) : kPassTokens + tokens);
    all += shares.back();
  }
  for (size_t i = 0; i < passes.size(); ++i) curve_.Learn(passes[i], seconds * shares[i] / all);
}

double PassCosts::ReadSeconds(uint32_t missing) const {
  const uint32_t pass = std::min(missing, max_pass_tokens_);
  return Seconds(pass) * missing / pass;
}

}  // namespace terrace
