// The tenants of a keys file, and who holds which key. Immutable. Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/crypto.h"
#include "base/status.h"
#include "proto/terrace/v1/config.pb.h"
#include "router/request/tenant.h"
#include "router/tier/model_catalog.h"

namespace terrace {

class Tenants : public Authenticator {
 public:
  static constexpr size_t kMinSecretBytes = 32, kMaxKeyBytes = 512;

  // FAILED_PRECONDITION "tenants[1].models[0]: ..." for the first value that cannot be used. Tenants' cached
  // prefixes are kept apart by `cluster_secret`, which is not kept.
  static StatusOr<std::shared_ptr<const Tenants>> Make(const v1::TenantsFile& file,
                                                       const ModelCatalog& catalog,
                                                       std::string_view cluster_secret);
  // Reads both files; FAILED_PRECONDITION with the file's name in front, never with anything of its content
  // that is secret; NOT_FOUND or UNAVAILABLE for one that cannot be read.
  static StatusOr<std::shared_ptr<const Tenants>> Load(const std::string& keys_file,
                                                       const std::string& secret_file,
                                                       const ModelCatalog& catalog);

  StatusOr<TenantPtr> Authenticate(std::string_view authorization) const override;
  size_t keys() const { return by_digest_.size(); }

 private:
  struct DigestHash {
    size_t operator()(const Digest256& digest) const {
      return std::hash<std::string_view>()(AsBytes(digest));
    }
  };
  struct IsSameDigest {
    bool operator()(const Digest256& a, const Digest256& b) const { return AreEqualInConstantTime(a, b); }
  };

  // By the SHA-256 of the key. What a look-up's time may tell is in which bucket a digest is, and nobody
  // chooses a digest.
  std::unordered_map<Digest256, TenantPtr, DigestHash, IsSameDigest> by_digest_;
};

}  // namespace terrace
