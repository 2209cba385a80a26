// The flags of `terrace certify` and `terrace verify-manifest`, and those that other commands share of asking
// models in this process and of a comparison row by row.
#pragma once

#include "CLI/CLI.hpp"
#include "tools/cli/certify.h"
#include "tools/cli/verify_manifest.h"

namespace terrace {

// --tasks, --limit, --concurrency, --max-tokens, --threads and how models run in this process; all need
// `model`.
void AddAskingOptions(CLI::App& command, CLI::Option* model, EvaluateOptions& options);

// --margin, --level, --no-divergence, --probe, --probe-tokens and the files of answers.
void AddComparisonOptions(CLI::App& command, EvaluateOptions& options);

void AddCertify(CLI::App& app, CertifyOptions& options);
void AddVerifyManifest(CLI::App& app, VerifyManifestOptions& options);

}  // namespace terrace
