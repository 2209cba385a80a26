#include "router/manifest/manifest_gate.h"

#include <algorithm>
#include <iterator>
#include <span>
#include <utility>

#include "base/mapped_file.h"

namespace terrace {
namespace {

StatusOr<Manifest> ReadManifest(const std::string& file, std::span<const PublicKey> keys) {
  const auto text = ReadFile(file, kMaxManifestBytes);
  if (!text.ok())
    return WithReason(FailedPrecondition("it cannot be read: ", Message(text.status())),
                      "manifest_unreadable");
  ASSIGN_OR_RETURN(SignedManifest read, ParseManifest(*text));
  RETURN_IF_ERROR(CheckSigner(read, keys));
  return std::move(read.manifest);
}

// How far a manifest came until it was refused.
size_t StepOf(const Status& refusal) {
  const auto* const found =
      std::find(std::begin(kManifestReasons), std::end(kManifestReasons), Reason(refusal));
  return static_cast<size_t>(found - std::begin(kManifestReasons));
}

}  // namespace

ManifestGateOptions GateOptionsOf(const v1::TierConfig& tier) {
  ManifestGateOptions out{.files = {tier.manifests().begin(), tier.manifests().end()},
                          .key_files = {tier.manifest_keys().begin(), tier.manifest_keys().end()},
                          .baseline = tier.manifest_baseline()};
  const v1::ManifestLimitsConfig& said = tier.manifest_limits();
  ManifestLimits& limits = out.limits;
  if (said.has_max_margin()) limits.max_margin = said.max_margin();
  if (said.has_max_level()) limits.max_level = said.max_level();
  if (said.has_max_mean_kl()) limits.max_mean_kl = said.max_mean_kl();
  if (said.has_max_flip_rate()) limits.max_flip_rate = said.max_flip_rate();
  if (said.has_min_rows()) limits.min_rows = said.min_rows();
  if (said.has_require_distributions()) limits.require_distributions = said.require_distributions();
  limits.task_set = said.task_set();
  return out;
}

StatusOr<std::vector<PublicKey>> ReadPublicKeys(const std::vector<std::string>& files) {
  std::vector<PublicKey> keys;
  for (const std::string& file : files) {
    const auto pem = ReadFile(file, kMaxKeyFileBytes);
    if (pem.status().code() == StatusCode::kResourceExhausted)
      return FailedPrecondition(Message(pem.status()));
    RETURN_IF_ERROR(pem.status());
    auto key = PublicKey::Parse(*pem);
    if (!key.ok()) return FailedPrecondition(file, ": ", Message(key.status()));
    keys.push_back(*std::move(key));
  }
  return keys;
}

StatusOr<std::shared_ptr<const ManifestGate>> ManifestGate::Load(const ManifestGateOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<PublicKey> keys, ReadPublicKeys(options.key_files));
  const std::shared_ptr<ManifestGate> gate(new ManifestGate(options.baseline, options.limits));
  for (const std::string& file : options.files) {
    Entry& entry = gate->entries_.emplace_back(Entry{.file = file});
    auto manifest = ReadManifest(file, keys);
    entry.error = manifest.status();
    if (manifest.ok()) entry.manifest = *std::move(manifest);
  }
  return gate;
}

template <typename Judge>
Status ManifestGate::BestOf(Judge judge) const {
  Status best = WithReason(FailedPrecondition("there is no manifest"), kManifestReasons[0]);
  for (const Entry& entry : entries_) {
    const Status verdict = entry.error.ok() ? judge(entry.manifest) : entry.error;
    if (verdict.ok()) return {};
    if (StepOf(verdict) >= StepOf(best)) best = Annotate(verdict, entry.file);
  }
  return best;
}

Status ManifestGate::Check(std::string_view model_digest, std::string_view text_digest,
                           const Arithmetic& served) const {
  return BestOf([&](const Manifest& manifest) -> Status {
    RETURN_IF_ERROR(CheckCandidate(manifest, model_digest, text_digest));
    RETURN_IF_ERROR(CheckArithmetic(manifest, served));
    return CheckTerms(manifest);
  });
}

Status ManifestGate::CheckTerms(const Manifest& manifest) const {
  RETURN_IF_ERROR(CheckBaseline(manifest, baseline_));
  RETURN_IF_ERROR(CheckVerdict(manifest));
  return CheckLimits(manifest, limits_);
}

bool ManifestGate::HasUnreadable() const {
  return std::ranges::any_of(entries_,
                             [](const Entry& entry) { return Reason(entry.error) == kManifestReasons[0]; });
}

Status ManifestGate::CheckAny() const {
  return BestOf([this](const Manifest& manifest) { return CheckTerms(manifest); });
}

}  // namespace terrace
