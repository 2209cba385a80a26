#include "tools/cli/verify_manifest.h"

#include <optional>

#include "base/mapped_file.h"
#include "router/manifest/manifest.h"
#include "router/manifest/manifest_gate.h"
#include "text/text_assets.h"
#include "tools/cli/format.h"
#include "tools/cli/verdict.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

StatusOr<SignedManifest> ReadManifest(const std::string& file) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxManifestBytes));
  auto manifest = ParseManifest(text);
  if (!manifest.ok()) return Annotate(manifest.status(), file);
  return manifest;
}

// "" for "", which is any.
StatusOr<std::string> ModelDigestOf(const std::string& model) {
  if (model.empty()) return std::string();
  ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(model));
  return files.digest.Hex();
}

// As ManifestGate::Check, of what was read.
Status CheckModels(const Manifest& manifest, const VerifyManifestOptions& options) {
  if (!options.model.empty()) {
    ASSIGN_OR_RETURN(const ModelFiles model, OpenModel(options.model));
    RETURN_IF_ERROR(CheckCandidate(manifest, model.digest.Hex(), Digest(*model.text).Hex()));
  }
  ASSIGN_OR_RETURN(const std::string baseline, ModelDigestOf(options.baseline));
  RETURN_IF_ERROR(CheckBaseline(manifest, baseline));
  return CheckVerdict(manifest);
}

// A refusal is an answer; that a model cannot be opened is an error.
Status AsAnswer(const Status& verdict, const std::string& file) {
  if (verdict.ok() || !IsManifestReason(Reason(verdict))) return verdict;
  return AnswerIsNo(file, ": ", Message(verdict), " (", Reason(verdict), ")");
}

void Show(const char* what, const CertifiedModel& model, const CommandContext& context) {
  context.out << what << Shown(model.name) << ", model " << Shown(model.model_digest) << ", text "
              << Shown(model.text_digest) << "\n";
}

std::string Figure(const std::optional<double>& value) {
  return value.has_value() ? Concat(*value) : std::string("not said");
}

// On what the verdict rests, and whether a tier takes that without manifest_limits of its own.
void ShowTerms(const Manifest& manifest, const CommandContext& context) {
  const ManifestTerms terms = TermsOf(manifest);
  context.out << "rows       " << FormatCount(terms.tasks, "task") << ", the smallest of "
              << FormatCount(terms.least_rows, "row") << "; margin " << Figure(terms.margin) << ", level "
              << Figure(terms.level) << "\ndistributions  ";
  if (terms.has_distributions) {
    context.out << "mean KL " << Figure(terms.mean_kl) << " (allowed " << Figure(terms.max_mean_kl)
                << "), flip rate " << Figure(terms.flip_rate) << " (allowed " << Figure(terms.max_flip_rate)
                << ")\n";
  } else {
    context.out << "not compared\n";
  }
  const Status limits = CheckLimits(manifest, {});
  context.out << "limits     "
              << (limits.ok() ? "within those of a tier that names none"
                              : "needs manifest_limits of the tier's own: " + Message(limits))
              << "\n";
}

}  // namespace

Status RunVerifyManifest(const VerifyManifestOptions& options, const CommandContext& context) {
  ASSIGN_OR_RETURN(const SignedManifest read, ReadManifest(options.file));
  const Manifest& manifest = read.manifest;
  if (options.payload) {
    context.out << SignedBytes(manifest);
    return {};
  }
  ASSIGN_OR_RETURN(const std::vector<PublicKey> keys, ReadPublicKeys(options.keys));
  RETURN_IF_ERROR(AsAnswer(CheckSigner(read, keys), options.file));  // before anything of it is shown
  Show("candidate  ", manifest.candidate, context);
  Show("baseline   ", manifest.baseline, context);
  context.out << "tasks      " << Shown(manifest.task_set_digest) << "\nmade       "
              << Shown(manifest.created) << " by " << Shown(manifest.tool) << "\nkey        " << read.key_id
              << "\n";
  ShowTerms(manifest, context);
  RETURN_IF_ERROR(AsAnswer(CheckModels(manifest, options), options.file));
  context.out << "verdict    passed\n";
  return {};
}

}  // namespace terrace
