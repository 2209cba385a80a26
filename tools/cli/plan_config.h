// What `terrace plan` has chosen, as a cluster file. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "proto/terrace/v1/config.pb.h"
#include "tools/plan/plan.h"

namespace terrace {

// How the workers of a tier are run.
struct PlannedWorker {
  std::string name = {};      // of the tier
  std::string model = {};     // an absolute path
  std::string kv_dtype = {};  // as of KvConfig, like the others of their messages
  std::string device = {}, compute = {};
  uint32_t threads = 0;          // of the worker; ranks share them. 0: left out
  uint32_t ranks = 1;            // of its group, which terrace up starts; 1: there is none
  std::string drafter = "none";  // none, ngram or model
  std::string draft_model = {};  // an absolute path
  uint64_t kv_bytes_per_token = 0, draft_kv_bytes_per_token = 0;  // of each rank; of the drafter
};

// A tier for each of the plan's, with its price (TierPrice) and its workers on addresses of this machine. Of
// several there is a policy "planned": the cascade whose steps but the last accept above `min_mean_logprob`.
// `workers` is [tiers] (CHECK).
v1::ClusterFile ClusterOf(const PlannedServing& plan, std::span<const PlannedWorker> workers,
                          double min_mean_logprob);

}  // namespace terrace
