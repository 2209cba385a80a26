#include "worker/parallel/transport.h"

#include "worker/parallel/gloo_communicator.h"
#include "worker/parallel/tcp_communicator.h"

namespace terrace {

std::string_view TransportName(Transport transport) { return transport == Transport::kTcp ? "tcp" : "gloo"; }

StatusOr<Transport> ParseTransport(std::string_view name) {
  for (const Transport each : {Transport::kTcp, Transport::kGloo}) {
    if (name == TransportName(each)) return each;
  }
  return InvalidArgument("\"", name, "\", not one of tcp, gloo");
}

StatusOr<std::unique_ptr<Communicator>> Connect(Transport transport, const ConnectOptions& options,
                                                const Rendezvous& rendezvous) {
  return transport == Transport::kTcp ? ConnectTcp(options, rendezvous) : ConnectGloo(options, rendezvous);
}

}  // namespace terrace
