// A refusal that says when to try again: of HTTP replies the header Retry-After. Thread-safe: values only.
#pragma once

#include <optional>

#include "base/status.h"

namespace terrace {

// `status` with the seconds after which trying again makes sense; OK stays OK.
Status WithRetryAfter(Status status, double seconds);
std::optional<double> RetryAfter(const Status& status);

}  // namespace terrace
