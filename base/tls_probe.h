// Whether whoever listens at an address speaks TLS: gRPC's errors do not tell a peer that speaks otherwise
// from one that is not there.
#pragma once

#include <string>

#include "base/status.h"

namespace terrace {

// Begins a TLS handshake with `address`, host:port: true when it is answered, with a refusal too, false when
// something else comes back. Believes and shows nothing, so what it says is for an error alone. Blocks for up
// to three seconds, and while a name is resolved. UNAVAILABLE when nothing is known: nobody is there, or says
// a word. SIGPIPE has to be ignored (base/shutdown.h does).
StatusOr<bool> SpeaksTls(const std::string& address);

}  // namespace terrace
