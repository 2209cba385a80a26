// The Communicator of processes, on one machine or several: TCP, one connection for each two ranks and no
// thread of its own (why not Gloo's: docs/adr/0012-tcp-between-ranks.md). The thread that makes a call moves
// its messages, of all peers at once, between the callers' memory and the kernel. Plain text, to whoever has
// heard the rendezvous: for networks of one's own.
//
// In each exchange either side sends a header, with its call and the length of its message, if it sends one:
// so both know that the other takes part and means the same. What a rank sends early, which may be in its
// next call, stays in the socket.
#pragma once

#include <memory>

#include "worker/parallel/communicator.h"
#include "worker/parallel/rendezvous.h"

namespace terrace {

// Returns when all ranks are connected. Errors of ConnectTcpMesh.
StatusOr<std::unique_ptr<Communicator>> ConnectTcp(const ConnectOptions& options,
                                                   const Rendezvous& rendezvous);

}  // namespace terrace
