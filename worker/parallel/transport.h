// What carries the messages of a group of processes: `group.transport`.
#pragma once

#include <memory>
#include <string_view>

#include "worker/parallel/communicator.h"
#include "worker/parallel/rendezvous.h"

namespace terrace {

enum class Transport { kTcp, kGloo };  // TcpCommunicator, GlooCommunicator

std::string_view TransportName(Transport transport);  // as ParseTransport takes it
StatusOr<Transport> ParseTransport(std::string_view name);

// Returns when all ranks are connected, which have to have the same transport. Errors of ConnectTcp,
// ConnectGloo.
StatusOr<std::unique_ptr<Communicator>> Connect(Transport transport, const ConnectOptions& options,
                                                const Rendezvous& rendezvous);

}  // namespace terrace
