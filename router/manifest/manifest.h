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

inline constexpr size_t kMaxManifestBytes = size_t{4} << 20;  // of a file

struct Manifest {
  std::string tool = {};     // that made it: "terrace 0.1.0"
  std::string created = {};  // 2026-11-30T12:00:00Z
  CertifiedModel candidate = {}, baseline = {};
  std::string task_set_digest = {};
  // Which thresholds it does not keep, in words; none: it passed.
  std::vector<std::string> failures = {};
  // What was measured, how, and the thresholds (docs/how-to/certify.md). An object; nothing is decided by it.
  Json report = Json::object();

  bool passed() const { return failures.empty(); }
};

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
    "manifest_unreadable",      // the file cannot be read
    "manifest_malformed",       // it is none, or has been changed by hand
    "manifest_unknown_key",     // signed with a key that is not asked for
    "manifest_bad_signature",   // not what the key's owner has signed
    "manifest_other_model",     // of other weights, configuration, tokenizer or chat template
    "manifest_other_baseline",  // measured against another model than is asked for
    "manifest_failed"};         // of this model, and its verdict is no

bool IsManifestReason(std::string_view reason);

// FAILED_PRECONDITION, reason manifest_unknown_key or manifest_bad_signature, unless one of `keys` has
// signed.
Status CheckSigner(const SignedManifest& manifest, std::span<const PublicKey> keys);
// The same, reason manifest_other_model, with both digests.
Status CheckCandidate(const Manifest& manifest, std::string_view model_digest, std::string_view text_digest);
// The same, reason manifest_other_baseline, unless `model_digest` is empty.
Status CheckBaseline(const Manifest& manifest, std::string_view model_digest);
// The same, reason manifest_failed, with the first failures.
Status CheckVerdict(const Manifest& manifest);

}  // namespace terrace
