// A FaultProxy's controls as lines of text, for programs that are not C++.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "tests/chaos/fault_proxy.h"

namespace terrace {

inline constexpr std::string_view kFaultCommands =
    "DIRECTION is c2s (client to server), s2c or both; what is set holds for all connections, also later "
    "ones.\n"
    "  delay DIRECTION MS [JITTER_MS]  bytes wait so long, and up to JITTER_MS longer; their order is kept\n"
    "  rate DIRECTION BYTES            so many a second; 0: no limit\n"
    "  corrupt DIRECTION FIRST [EVERY] flips a bit of byte FIRST, counted from now, and of every EVERY-th "
    "behind it\n"
    "  stall DIRECTION                 nothing is read or sent on; nothing is lost\n"
    "  swallow DIRECTION               a black hole: what is sent is lost, ends too\n"
    "  pass DIRECTION                  ends stall and swallow; a connection that lost bytes is reset\n"
    "  cut DIRECTION BYTES [reset]     ends, once, the connection that passes the last of so many bytes from "
    "now on\n"
    "  half-close DIRECTION            the receiver of each connection that there is sees the sender's end\n"
    "  reset                           both sides of each connection that there is see a reset\n"
    "  refuse | accept                 new connections\n"
    "  clear                           all faults are over\n"
    "  stats                           connections so far and now, bytes passed and lost\n";

// Does what `line` says. The result is what there is to tell: "", or the counters as JSON.
StatusOr<std::string> RunFaultCommand(FaultProxy& proxy, const std::string& line);

}  // namespace terrace
