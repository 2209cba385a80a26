// A TCP connection for each two ranks of a group. Each rank listens on a port that the system picks, and
// tells where; it connects to the ranks before it and takes connections of those behind it. Either side says
// who it is with a random number that the other one told over the rendezvous: who has not heard that, such as
// a stranger that finds the port, is neither taken for a rank nor waited for.
#pragma once

#include <vector>

#include "base/descriptor.h"
#include "worker/parallel/rendezvous.h"

namespace terrace {

// By rank: connected sockets that do not delay small messages; this rank's own is none. UNAVAILABLE when a
// rank cannot be reached or does not come within connect_timeout (of all connections together), with its
// number, when `host` is not this machine's, or when `rendezvous` tells of another number of ranks; errors of
// `rendezvous` and of find_end.
StatusOr<std::vector<Descriptor>> ConnectTcpMesh(const ConnectOptions& options, const Rendezvous& rendezvous);

}  // namespace terrace
