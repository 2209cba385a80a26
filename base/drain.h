// The end of a server's main: after the first signal, what runs may finish.
#pragma once

#include <functional>

#include "base/shutdown.h"

namespace terrace {

// Returns when `is_drained`, asked about every 50 ms, says so, after `limit_seconds`, or at another signal.
void AwaitDrained(ShutdownSignal& shutdown, const std::function<bool()>& is_drained, double limit_seconds);

}  // namespace terrace
