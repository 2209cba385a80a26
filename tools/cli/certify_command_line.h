// The flags of `terrace certify` and `terrace verify-manifest`, and those of a comparison row by row.
#pragma once

#include "CLI/CLI.hpp"
#include "tools/cli/certify.h"
#include "tools/cli/verify_manifest.h"

namespace terrace {

// --margin, --level, --no-divergence, --probe, --probe-tokens and the files of answers.
void AddComparisonOptions(CLI::App& command, EvaluateOptions& options);

void AddCertify(CLI::App& app, CertifyOptions& options);
void AddVerifyManifest(CLI::App& app, VerifyManifestOptions& options);

}  // namespace terrace
