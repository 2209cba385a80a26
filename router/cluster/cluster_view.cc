#include "router/cluster/cluster_view.h"

#include <algorithm>
#include <utility>

namespace terrace {

const char* ReplicaStateName(ReplicaState state) {
  switch (state) {
    case ReplicaState::kConnecting:
      return "connecting";
    case ReplicaState::kStarting:
      return "starting";
    case ReplicaState::kReady:
      return "ready";
    case ReplicaState::kDraining:
      return "draining";
    case ReplicaState::kSilent:
      return "silent";
    case ReplicaState::kMismatch:
      return "mismatch";
    case ReplicaState::kEjected:
      return "ejected";
    case ReplicaState::kRefused:
      return "refused";
    case ReplicaState::kStalled:
      return "stalled";
  }
  return "";
}

float SlowStartWeight(Duration in_use, Duration whole_after) {
  constexpr double kFirst = 0.1;
  if (in_use >= whole_after) return 1;
  const double part = std::max(0.0, Seconds(in_use) / Seconds(whole_after));
  return static_cast<float>(kFirst + (1 - kFirst) * part);
}

OthersLoad LoadOfOthers(const ReplicaLoad& reported, const ReplicaInFlight& ours) {
  const uint32_t sequences = reported.running_sequences + reported.waiting_sequences;
  const uint32_t our_sequences = ours.requests.load(std::memory_order_relaxed);
  const uint64_t our_tokens = ours.prompt_tokens.load(std::memory_order_relaxed);
  return {
      .sequences = sequences - std::min(sequences, our_sequences),
      .prompt_tokens = reported.waiting_prompt_tokens - std::min(reported.waiting_prompt_tokens, our_tokens)};
}

void TierView::FindReady() {
  ready.clear();
  weights.clear();
  kv_namings.clear();
  for (uint32_t i = 0; i < replicas.size(); ++i) {
    const ReplicaView& replica = replicas[i];
    if (replica.state != ReplicaState::kReady) continue;
    ready.push_back({.id = replica.id,
                     .index = i,
                     .prefix_slot = replica.prefix_slot,
                     .others = replica.others,
                     .in_flight = replica.in_flight.get()});
    weights.push_back(replica.weight);
    const ReplicaDescription& has = replica.description;
    if (has.kv_layout.empty() || has.block_tokens == 0 || has.block_tokens > kMaxBlockTokens) continue;
    KvNaming naming{.scope = {.model = model_digest, .layout = has.kv_layout},
                    .block_tokens = has.block_tokens};
    if (std::ranges::find(kv_namings, naming) == kv_namings.end()) kv_namings.push_back(std::move(naming));
  }
  if (std::ranges::all_of(weights, [](float weight) { return weight == 1; })) weights.clear();
}

}  // namespace terrace
