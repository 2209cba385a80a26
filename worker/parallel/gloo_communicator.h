// The Communicator of processes, on one machine or several: Gloo's TCP transport, one connection for each two
// ranks and a thread of Gloo's. Plain text, as Debian's Gloo is built without its TLS transport, and open to
// whoever reaches its ports while the group connects: for networks of one's own. Gloo writes to connections
// that the other side may have closed: SIGPIPE has to be ignored (base/shutdown.h does).
//
// Of Gloo's collectives none is used: they add in an order of their own, and end the process when ranks
// disagree about sizes. A message has a frame of a fixed size with its call and length and its first bytes;
// what does not fit follows once the receiver has agreed.
#pragma once

#include <memory>
#include <string>

#include "worker/parallel/communicator.h"
#include "worker/parallel/rendezvous.h"

namespace terrace {

struct GlooOptions {
  uint32_t rank = 0, ranks = 1;
  std::string host = "127.0.0.1";  // of this rank, as the others reach it
  Duration timeout = std::chrono::seconds(10);
  Duration connect_timeout = std::chrono::seconds(30);  // of each connection, behind the rendezvous
};

// Returns when all ranks are connected. UNAVAILABLE when a rank cannot be reached, with its number, when
// `host` is not this machine's, or when `rendezvous` tells of another number of ranks; errors of
// `rendezvous`.
StatusOr<std::unique_ptr<Communicator>> ConnectGloo(const GlooOptions& options, const Rendezvous& rendezvous);

}  // namespace terrace
