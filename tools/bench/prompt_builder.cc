#include "tools/bench/prompt_builder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/rng.h"
#include "tools/bench/streams.h"

namespace terrace {
namespace {

constexpr uint64_t kCountersPerPrompt = uint64_t{1} << 21;  // more than the longest prompt

std::vector<double> CumulativeWeights(uint32_t groups, double exponent) {
  std::vector<double> out(groups);
  double sum = 0;
  for (uint32_t k = 0; k < groups; ++k) out[k] = sum += std::pow(k + 1.0, -exponent);
  for (double& weight : out) weight /= sum;
  return out;
}

}  // namespace

PromptBuilder::PromptBuilder(const PromptSettings& settings, std::vector<TokenId> vocabulary)
    : settings_(settings),
      vocabulary_(std::move(vocabulary)),
      cumulative_(CumulativeWeights(settings.prefix_groups, settings.prefix_zipf)) {
  CHECK(vocabulary_.size() >= 2, vocabulary_.size());
  for (uint64_t left = kMaxRequests - 1; left > 0; left /= vocabulary_.size()) ++unique_tokens_;
}

uint32_t PromptBuilder::GroupOf(uint64_t request) const {
  const double uniform = RandomUniform(settings_.seed, request, kPrefixGroupStream);
  const auto found = std::upper_bound(cumulative_.begin(), cumulative_.end(), uniform);
  return std::min<uint32_t>(found - cumulative_.begin(), settings_.prefix_groups - 1);
}

std::vector<TokenId> PromptBuilder::Build(uint64_t request, uint64_t generation, uint32_t length) const {
  CHECK(request < kMaxRequests && length > settings_.shared_prefix_tokens, request, " ", length);
  const uint64_t prefix = (generation * settings_.prefix_groups + GroupOf(request)) * kCountersPerPrompt;
  std::vector<TokenId> prompt;
  prompt.reserve(length);
  for (uint32_t i = 0; i < settings_.shared_prefix_tokens; ++i)
    prompt.push_back(Draw(prefix + i, kPrefixTokenStream));
  // The number's digits, each turned by a fixed random amount: different numbers stay different.
  uint64_t number = request;
  for (uint32_t i = 0; i < unique_tokens_ && prompt.size() < length; ++i) {
    const uint64_t turn = RandomBits(settings_.seed, i, kSuffixTokenStream) % vocabulary_.size();
    prompt.push_back(vocabulary_[(number + turn) % vocabulary_.size()]);
    number /= vocabulary_.size();
  }
  for (uint64_t i = unique_tokens_; prompt.size() < length; ++i)
    prompt.push_back(Draw((request + 1) * kCountersPerPrompt + i, kSuffixTokenStream));
  return prompt;
}

TokenId PromptBuilder::Draw(uint64_t counter, uint64_t stream) const {
  return vocabulary_[RandomBits(settings_.seed, counter, stream) % vocabulary_.size()];
}

}  // namespace terrace
