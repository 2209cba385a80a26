// A second Communicator of processes: Gloo's TCP transport, one connection for each two ranks and a thread of
// Gloo's. Slower than TcpCommunicator (docs/adr/0012-tcp-between-ranks.md). Plain text, as Debian's Gloo is
// built without its TLS transport, and open to whoever reaches its ports while the group connects: for
// networks of one's own. Gloo writes to connections that the other side may have closed: SIGPIPE has to be
// ignored (base/shutdown.h does).
//
// Of Gloo's collectives none is used: they add in an order of their own, and end the process when ranks
// disagree about sizes. A message has a frame of a fixed size with its call and length and its first bytes;
// what does not fit follows once the receiver has agreed, with an empty message behind it.
#pragma once

#include <memory>

#include "worker/parallel/communicator.h"
#include "worker/parallel/rendezvous.h"

namespace terrace {

// Returns when all ranks are connected; connect_timeout is that of each connection. UNAVAILABLE when a rank
// cannot be reached, with its number, when `host` is not this machine's, or when `rendezvous` tells of
// another number of ranks; errors of `rendezvous`.
StatusOr<std::unique_ptr<Communicator>> ConnectGloo(const ConnectOptions& options,
                                                    const Rendezvous& rendezvous);

}  // namespace terrace
