// Whether whoever listens at an address speaks TLS: gRPC's errors do not tell a peer that speaks otherwise
// from one that is not there.
#pragma once

#include <functional>
#include <string>

#include "base/status.h"

namespace terrace {

// Begins a TLS handshake with `address`, host:port: true when it is answered, with a refusal too, false when
// something else comes back. Believes and shows nothing, so what it says is for an error alone. Blocks for up
// to two seconds, and while a name is resolved; asks `is_cancelled` some times a second. UNAVAILABLE when
// nothing is known: nobody is there, or says a word; CANCELLED. SIGPIPE has to be ignored (base/shutdown.h
// does).
StatusOr<bool> SpeaksTls(const std::string& address, const std::function<bool()>& is_cancelled = nullptr);

}  // namespace terrace
