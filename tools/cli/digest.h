// `terrace digest`: the list of digests of a model's weight files, which lets ranks of a group read only what
// they use (docs/adr/0014-digest-lists.md).
#pragma once

#include <string>

#include "base/status.h"
#include "tools/cli/command_context.h"

namespace terrace {

struct DigestOptions {
  std::string model;
  bool check = false;  // compare with the list that is there, and write nothing
};

// Errors of OpenModel; UNAVAILABLE where the list cannot be written. With `check` AnswerIsNo where a file is
// not what the list says, and errors of ReadDigestList.
Status RunDigest(const DigestOptions& options, const CommandContext& context);

}  // namespace terrace
