// What `terrace certify` found of a model, signed: a tier may ask for one before it serves the model
// (manifest_gate.h). Values; pure. The file:
//
//   {"key": "...", "manifest": {"format": "terrace-manifest-1", ...}, "signature": "..."}
//
// `key` is the PublicKey::id of who signed. `signature` is the Base64 of the Ed25519 signature of the compact
// JSON text of `manifest`: UTF-8, members in the order of their names' bytes, no white space between tokens,
// as ToJsonText writes it (SignedBytes). The file is this document, members ordered alike, indented by two
// spaces for people, and a line end; it is read only when it is exactly that, so that no byte of it can
// change unnoticed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/signature.h"
#include "base/status.h"

namespace terrace {

// A model as a worker tells of it: digests as of WorkerDescription.
struct CertifiedModel {
  std::string name = {};
  std::string model_digest = {}, text_digest = {};
};

// What a worker rounds to besides the weights, as it tells of it: engine.compute, and the dtype of keys and
// values. Empty: not said, and not looked at.
struct Arithmetic {
  std::string_view compute = {}, kv_dtype = {};
};

// What a tier asks of a manifest besides its verdict, which rests on whatever `terrace certify` was given.
// The defaults are those that it has by itself.
struct ManifestLimits {
  double max_margin = 0.05;  // share of a task's rows
  double max_level = 0.05;
  double max_mean_kl = 0.1;           // as measured, nats
  double max_flip_rate = 0.1;         // as measured
  uint64_t min_rows = 1;              // of each task; 0: also where there is none
  bool require_distributions = true;  // false: also where they were not compared
  std::string task_set = {};          // digest; "": any

  friend bool operator==(const ManifestLimits&, const ManifestLimits&) = default;
};

inline constexpr size_t kMaxManifestBytes = size_t{4} << 20;  // of a file

struct Manifest {
  std::string tool = {};     // that made it: "terrace 0.1.0"
  std::string created = {};  // 2026-11-30T12:00:00Z
  CertifiedModel candidate = {}, baseline = {};
  std::string task_set_digest = {};
  // Which thresholds it does not keep, in words; none: it passed.
  std::vector<std::string> failures = {};
  // What was measured, how, and the thresholds (docs/how-to/certify.md). An object; TermsOf reads it.
  Json report = Json::object();

  bool passed() const { return failures.empty(); }
};

// On what a manifest's verdict rests, as its report says it; absent: the report does not say it.
struct ManifestTerms {
  std::optional<double> margin = {}, level = {};
  std::optional<double> max_mean_kl = {}, max_flip_rate = {};  // that were allowed
  std::optional<double> mean_kl = {}, flip_rate = {};          // that were measured
  bool has_distributions = false;                              // whether they were compared
  uint64_t tasks = 0, least_rows = 0;                          // of the smallest task; 0 of none
};
ManifestTerms TermsOf(const Manifest& manifest);

// What a manifest says, for messages: cut to `most` bytes, and '?' for each byte of a control character.
std::string Shown(std::string_view text, size_t most = 64);

std::string SignedBytes(const Manifest& manifest);

// The text of a manifest's file.
std::string ManifestText(const Manifest& manifest, const PrivateKey& key);

struct SignedManifest {
  Manifest manifest = {};
  std::string key_id = {};     // 64 lower-case hexadecimal digits
  std::string signature = {};  // bytes
};
// DATA_LOSS, reason manifest_malformed, says what is wrong. Whose signature it is, and whether, is not looked
// at.
StatusOr<SignedManifest> ParseManifest(std::string_view text);

// Why a manifest does not let a model in, in the order in which that is looked at. The checks below have the
// reasons from the third on.
inline constexpr std::string_view kManifestReasons[] = {
    "manifest_unreadable",        // the file cannot be read
    "manifest_malformed",         // it is none, or has been changed by hand
    "manifest_unknown_key",       // signed with a key that is not asked for
    "manifest_bad_signature",     // not what the key's owner has signed
    "manifest_other_model",       // of other weights, configuration, tokenizer or chat template
    "manifest_other_arithmetic",  // measured with less rounding than the worker does
    "manifest_other_baseline",    // measured against another model than is asked for, or against itself
    "manifest_failed",            // of this model, and its verdict is no
    "manifest_outside_limits"};   // its verdict is yes, by weaker terms than are asked for

bool IsManifestReason(std::string_view reason);

// FAILED_PRECONDITION, reason manifest_unknown_key or manifest_bad_signature, unless one of `keys` has
// signed.
Status CheckSigner(const SignedManifest& manifest, std::span<const PublicKey> keys);
// The same, reason manifest_other_model, with both digests.
Status CheckCandidate(const Manifest& manifest, std::string_view model_digest, std::string_view text_digest);
// The same, reason manifest_other_arithmetic: what is served may round less than what was measured, not more.
// In this order: f32, auto, fp8 for `compute`; 32 and 16 bits, then int8 or fp8, for `kv_dtype`.
Status CheckArithmetic(const Manifest& manifest, const Arithmetic& served);
// The same, reason manifest_other_baseline; "": any but the candidate itself.
Status CheckBaseline(const Manifest& manifest, std::string_view model_digest);
// The same, reason manifest_failed, with the first failures.
Status CheckVerdict(const Manifest& manifest);
// The same, reason manifest_outside_limits, with the first figure that is outside, and its limit.
Status CheckLimits(const Manifest& manifest, const ManifestLimits& limits);

}  // namespace terrace
