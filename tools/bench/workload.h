// The requests of a benchmark: their lengths, prompts, seeds and which of them are cancelled. Pure after
// construction: the same settings give the same requests, whatever the target does. Thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/status.h"
#include "tools/bench/length_distribution.h"
#include "tools/bench/prompt_builder.h"

namespace terrace {

struct WorkloadSettings {
  LengthDistribution prompt_tokens = LengthDistribution::Fixed(128);  // the shared prefix included
  LengthDistribution output_tokens = LengthDistribution::Fixed(64);
  uint32_t shared_prefix_tokens = 0;
  uint32_t prefix_groups = 1;
  double prefix_zipf = 0;
  double cancel_fraction = 0;  // of the requests, each after a random token
  uint64_t seed = 0;
};

// INVALID_ARGUMENT, naming the flag, for settings that make no sense.
Status Validate(const WorkloadSettings& settings);

// Which request: the i-th of a level, or of that level's warm-up. A level's requests have the lengths of
// every other level's, and prefixes and prompts of its own, so that none profits from what a cache kept of
// another.
struct RequestKey {
  static constexpr uint32_t kMaxLevels = 64;
  static constexpr uint64_t kMaxIndex = uint64_t{1} << 32;

  uint32_t level = 0;
  bool is_warmup = false;  // with the level's prefixes
  uint64_t index = 0;
};

struct PlannedRequest {
  std::vector<TokenId> prompt;
  uint32_t output_tokens = 0;
  std::optional<uint32_t> cancel_after;  // tokens, fewer than output_tokens
  uint64_t sampling_seed = 0;
  bool is_cut = false;  // a drawn length did not fit the context
};

class Workload {
 public:
  // `context_length` 0: unknown. INVALID_ARGUMENT when lengths other than log-normal ones do not fit; those
  // are cut.
  static StatusOr<Workload> Make(const WorkloadSettings& settings, std::vector<TokenId> vocabulary,
                                 uint32_t context_length);

  PlannedRequest Plan(const RequestKey& key) const;

 private:
  Workload(const WorkloadSettings& settings, std::vector<TokenId> vocabulary, uint32_t context_length);

  WorkloadSettings settings_;
  uint32_t context_length_;  // the largest number when unknown
  PromptBuilder prompts_;
};

}  // namespace terrace
