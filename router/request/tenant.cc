#include "router/request/tenant.h"

#include "base/crypto.h"

namespace terrace {

std::string Tenant::CacheSalt(const std::string& callers_salt) const {
  return cache_key.empty() ? callers_salt : ToHex(AsBytes(HmacSha256(cache_key, callers_salt)));
}

const TenantPtr& DefaultTenant() {
  static const TenantPtr& tenant = *new TenantPtr(std::make_shared<Tenant>());
  return tenant;
}

}  // namespace terrace
