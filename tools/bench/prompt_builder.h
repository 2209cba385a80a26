// Prompts of random token ids. A prompt begins with the prefix of its group, which all prompts of the group
// share, and goes on with tokens of its own: the first few spell the request's number, so that no two prompts
// are the same and a prefix cache can find the shared part only. Pure after construction; thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "text/tokenizer.h"

namespace terrace {

struct PromptSettings {
  uint32_t shared_prefix_tokens = 0;
  uint32_t prefix_groups = 1;  // distinct prefixes
  double prefix_zipf = 0;      // group k is drawn with weight 1/(k+1)^this; 0: all alike
  uint64_t seed = 0;
};

class PromptBuilder {
 public:
  static constexpr uint64_t kMaxRequests = uint64_t{1} << 40;

  // `vocabulary`: the ids to draw from, at least 2, all different.
  PromptBuilder(const PromptSettings& settings, std::vector<TokenId> vocabulary);

  uint32_t GroupOf(uint64_t request) const;
  // `length` tokens, more than the prefix has. `generation` changes every prefix.
  std::vector<TokenId> Build(uint64_t request, uint64_t generation, uint32_t length) const;
  // Two requests of one group differ within this many tokens after the prefix, if they are that long.
  uint32_t unique_tokens() const { return unique_tokens_; }

 private:
  TokenId Draw(uint64_t counter, uint64_t stream) const;

  const PromptSettings settings_;
  const std::vector<TokenId> vocabulary_;
  uint32_t unique_tokens_ = 0;
  std::vector<double> cumulative_;  // of the groups' weights, the last is 1
};

}  // namespace terrace
