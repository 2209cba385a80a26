// Exit codes of every Terrace binary (sysexits.h numbers, so that supervisors can tell causes apart).
#pragma once

#include "base/status.h"

namespace terrace {

enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,        // the work was done and the answer is "no" (a gate that did not pass)
  kExitUsage = 64,         // wrong flags or arguments
  kExitData = 65,          // a model, tokenizer or task file is malformed
  kExitNoInput = 66,       // a named file does not exist or cannot be read
  kExitUnavailable = 69,   // a port, peer or memory that is needed cannot be had
  kExitSoftware = 70,      // a fault of ours
  kExitNoPermission = 77,  // the server that was asked wants a key, or another one
  kExitConfig = 78,        // the configuration is wrong
};

// Status -> exit code: DATA_LOSS 65, NOT_FOUND 66, UNAVAILABLE, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED 69,
// INVALID_ARGUMENT 64, UNAUTHENTICATED and PERMISSION_DENIED 77, FAILED_PRECONDITION 78, everything else 70.
ExitCode ExitCodeFor(const Status& status);

}  // namespace terrace
