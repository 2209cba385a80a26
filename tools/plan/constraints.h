// What serving has to keep to. Values; pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/status.h"

namespace terrace {

struct PlanConstraints {
  std::optional<uint64_t> memory_bytes = {};           // of a worker, or a rank of one: weights and KV pool
  std::optional<double> first_token_p99_seconds = {};  // from a request's arrival
  std::optional<double> inter_token_p99_seconds = {};
  std::optional<double> output_tokens_per_second = {};    // of all workers together, at least
  std::optional<double> min_accuracy = {};                // share of right answers
  std::optional<double> max_usd_per_million_tokens = {};  // of prompts and answers as the traffic mixes them
};

// "8GiB", "1.5 GB", "512MiB", "100000B": bytes, above 0; units to TB and TiB. INVALID_ARGUMENT, also for a
// number without its unit.
StatusOr<uint64_t> ParseBytes(std::string_view text);

}  // namespace terrace
