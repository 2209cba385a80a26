#include "router/cluster/cluster_view.h"

#include <algorithm>

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
  }
  return "";
}

size_t TierView::ready_replicas() const {
  return static_cast<size_t>(std::count_if(replicas.begin(), replicas.end(), [](const auto& replica) {
    return replica.state == ReplicaState::kReady;
  }));
}

}  // namespace terrace
