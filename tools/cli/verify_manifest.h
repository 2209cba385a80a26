// `terrace verify-manifest`: whether a manifest lets a model in, as a router would say, and on what its
// verdict rests: a tier's own limits (manifest_limits) are not known here.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "tools/cli/command_context.h"

namespace terrace {

struct VerifyManifestOptions {
  std::string file = {};
  std::vector<std::string> keys = {};  // files of public keys, one of which has to have signed
  std::string model = {};              // folder or .gguf that it has to be of; "": any
  std::string baseline = {};           // the same of what it was compared with
  bool payload = false;                // write the signed bytes, and check nothing
};

// AnswerIsNo with the reason; NOT_FOUND and DATA_LOSS for a file that is no manifest, FAILED_PRECONDITION for
// a key, errors of OpenModel.
Status RunVerifyManifest(const VerifyManifestOptions& options, const CommandContext& context);

}  // namespace terrace
