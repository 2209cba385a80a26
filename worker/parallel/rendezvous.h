// How the ranks of a group meet before they have connections: whoever connects the processes has a way for
// it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace terrace {

// Tells `mine` to all ranks and returns what each of them told, in their order, this one's too. Any bytes.
// Errors end the connecting. Called once.
using Rendezvous = std::function<StatusOr<std::vector<std::string>>(const std::string& mine)>;

// Of one rank of processes that connect over a network.
struct ConnectOptions {
  uint32_t rank = 0, ranks = 1;
  std::string host = "127.0.0.1";                       // of this rank, as the others reach it
  Duration timeout = std::chrono::seconds(10);          // of each call of the communicator
  Duration connect_timeout = std::chrono::seconds(30);  // behind the rendezvous
  // Asked some times a second while ranks connect behind the rendezvous: its error, such as that a rank is
  // lost or that somebody wants an end, ends that. Over TCP only.
  std::function<Status()> find_end = nullptr;
};

}  // namespace terrace
