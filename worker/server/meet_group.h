// From an address to a group of connected ranks: over gRPC they find out that they fit, and tell each other
// where they listen; then connections of the transport are theirs.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "base/tls.h"
#include "worker/engine/rank_group.h"
#include "worker/parallel/transport.h"

namespace terrace {

struct GroupEndpoint {
  std::string leader;  // host:port, at which rank 0 listens
  std::string host;  // of this rank; "": of the leader that of `leader`, of others the one that reaches that
  Duration timeout = std::chrono::seconds(5);  // of each call of the communicator
  Transport transport = Transport::kTcp;       // of all ranks
  // Of the meeting, not of what follows it: with what the leader listens, or another rank connects; absent:
  // plain text.
  std::optional<TlsFiles> tls = {};
  std::string server_name = {};  // that the leader's certificate is for; "": the host of `leader`
};

// Where the leader listens: at its address; a name, which the system may not know so early, stands for all of
// this machine's.
std::string ListenAddress(const std::string& leader);

// Rank `rank` of `ranks`. The leader waits for the others, and they for the leader, until `is_cancelled` says
// so: CANCELLED. FAILED_PRECONDITION, reason ranks_differ, for a rank that does not fit, also one that comes
// with TLS to a leader without, or without to one with it; UNAVAILABLE when `leader` or `host` cannot be
// listened on, and when a rank is lost while they connect; errors of LoadTls.
StatusOr<std::unique_ptr<RankGroup>> MeetGroup(const GroupEndpoint& endpoint, uint32_t rank, uint32_t ranks,
                                               const RankTraits& traits,
                                               const std::function<bool()>& is_cancelled);

}  // namespace terrace
