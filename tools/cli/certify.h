// `terrace certify`: a model against its baseline on the user's own tasks, and a signed manifest of what came
// of it, which a tier can ask for (require_manifest).
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "router/manifest/manifest.h"
#include "tools/cli/command_context.h"
#include "tools/cli/evaluate.h"
#include "tools/cli/paired_evaluation.h"

namespace terrace {

struct CertifyThresholds {
  double max_mean_kl = ManifestLimits().max_mean_kl;      // nats
  double max_flip_rate = ManifestLimits().max_flip_rate;  // of the likeliest tokens
};

struct CertifyOptions {
  EvaluateOptions evaluate = {};  // of two models in this process
  CertifyThresholds thresholds = {};
  std::string key = {};       // file of the private key that signs
  std::string out = {};       // of the manifest
  std::string make_key = {};  // instead of all that: NAME.private.pem and NAME.public.pem are made
};

// Why a model is not good enough, in words: each task that is not shown to be non-inferior, and each
// threshold of distributions that is not kept, or could not be measured though it was asked for. Without a
// row that has a checker distributions alone decide, and without them nothing does. None: it is.
std::vector<std::string> FindFailures(const ModelComparison& comparison, const CertifyThresholds& thresholds,
                                      bool needs_divergence);

// Writes the manifest whatever its verdict; AnswerIsNo for "failed". Errors of EvaluatePaired, with which
// there is no manifest. Before anything is asked: errors of ReadFile or INVALID_ARGUMENT for the key,
// UNAVAILABLE when `out` cannot be written, INVALID_ARGUMENT when it is a file that is read, errors of
// OpenModel, and INVALID_ARGUMENT, reason same_model, when the
// baseline is the candidate, and reason tokenizer_mismatch, when distributions are to be compared and the
// models have different tokens. DATA_LOSS for a manifest that is too
// large to be read.
Status RunCertify(const CertifyOptions& options, const CommandContext& context);

}  // namespace terrace
