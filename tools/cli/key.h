// `terrace key`: a new API key for a tenant, and what a keys file says of it.
#pragma once

#include <string>

#include "base/status.h"
#include "tools/cli/command_context.h"

namespace terrace {

struct KeyOptions {
  std::string file = {};  // of a key to be described again; "": a new one
  std::string out = {};   // a file for the new key, which nobody else may read; "": it is shown
};

// Shows the key, unless it goes to a file, and the key_sha256 of TenantConfig. UNAVAILABLE when the file
// cannot be written or is there already.
Status RunKey(const KeyOptions& options, const CommandContext& context);

// The key that a file holds, without the end of its line. NOT_FOUND, or INVALID_ARGUMENT when there is none.
StatusOr<std::string> ReadApiKey(const std::string& file);

}  // namespace terrace
