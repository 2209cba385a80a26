// How the ranks of a group meet before they have connections: whoever connects the processes has a way for
// it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace terrace {

// Tells `mine` to all ranks and returns what each of them told, in their order, this one's too. Any bytes.
// Errors end the connecting. Called once.
using Rendezvous = std::function<StatusOr<std::vector<std::string>>(const std::string& mine)>;

}  // namespace terrace
