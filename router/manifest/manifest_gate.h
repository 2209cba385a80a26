// Which models a tier may serve: those that one of its manifests has found good enough. Immutable: made of
// the files as they are at one moment. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/signature.h"
#include "base/status.h"
#include "proto/terrace/v1/config.pb.h"
#include "router/manifest/manifest.h"

namespace terrace {

// Of a tier with require_manifest: see TierConfig.
struct ManifestGateOptions {
  std::vector<std::string> files = {}, key_files = {};
  std::string baseline = {};  // model digest; "": any
  ManifestLimits limits = {};

  friend bool operator==(const ManifestGateOptions&, const ManifestGateOptions&) = default;
};

// What a tier with require_manifest says, as it says it: nothing is checked.
ManifestGateOptions GateOptionsOf(const v1::TierConfig& tier);

// FAILED_PRECONDITION names a file that cannot be used, NOT_FOUND or UNAVAILABLE one that cannot be read.
StatusOr<std::vector<PublicKey>> ReadPublicKeys(const std::vector<std::string>& files);

class ManifestGate {
 public:
  // Errors of ReadPublicKeys: without a key nothing could be told. What is wrong with
  // a manifest is a reason to refuse models, which Check tells.
  static StatusOr<std::shared_ptr<const ManifestGate>> Load(const ManifestGateOptions& options);

  // Whether a passing manifest is of this model. Else a Status with one of kManifestReasons, of the manifest
  // that came closest, and its file in the message.
  Status Check(std::string_view model_digest, std::string_view text_digest,
               const Arithmetic& served = {}) const;
  // Whether a file could not be read, which may be so for a moment alone.
  bool HasUnreadable() const;
  // Whether a passing manifest is of any model; else the same.
  Status CheckAny() const;

 private:
  struct Entry {
    std::string file = {};
    Status error = {};  // why it counts for no model
    Manifest manifest = {};
  };

  ManifestGate(std::string baseline, ManifestLimits limits)
      : baseline_(std::move(baseline)), limits_(std::move(limits)) {}
  // Of whatever model it is.
  Status CheckTerms(const Manifest& manifest) const;
  // `judge` tells of each sound manifest.
  template <typename Judge>
  Status BestOf(Judge judge) const;

  const std::string baseline_;
  const ManifestLimits limits_;
  std::vector<Entry> entries_;
};

}  // namespace terrace
