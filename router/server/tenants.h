// The tenants of a keys file, and who holds which key. Immutable. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

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
  // that is secret; NOT_FOUND for one that cannot be read.
  static StatusOr<std::shared_ptr<const Tenants>> Load(const std::string& keys_file,
                                                       const std::string& secret_file,
                                                       const ModelCatalog& catalog);

  StatusOr<TenantPtr> Authenticate(std::string_view authorization) const override;
  size_t keys() const { return by_digest_.size(); }

 private:
  // By the SHA-256 of the key: what a lookup's time tells is about a digest that nobody chooses.
  std::unordered_map<std::string, TenantPtr> by_digest_;
};

}  // namespace terrace
