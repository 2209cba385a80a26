// A probe of long contexts: one fact among many alike, at several depths of prompts of several lengths, and a
// question about it ("a needle in a haystack"). Pure; the same seed gives the same prompts.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace terrace {

struct ProbeOptions {
  uint32_t longest = 0;  // prompt, in tokens
  uint32_t repeats = 0;  // prompts of each length and depth
  uint64_t seed = 0;
};

struct ProbePrompt {
  uint32_t quarters = 0;  // of the longest: 1 to 4
  uint32_t depth = 0;     // of the fact in the prompt, in kProbeDepths - 1 equal parts: 0 to 4
  std::string prompt = {}, expected = {};
};

inline constexpr uint32_t kProbeLengths = 4, kProbeDepths = 5;

// How many tokens a prompt has, as the model is asked it.
using CountTokens = std::function<StatusOr<size_t>(const std::string& prompt)>;

// kProbeLengths x kProbeDepths x repeats prompts, each as long as its length allows. INVALID_ARGUMENT when a
// quarter of `longest` does not hold one fact.
StatusOr<std::vector<ProbePrompt>> MakeLookupProbe(const ProbeOptions& options, const CountTokens& count);

}  // namespace terrace
