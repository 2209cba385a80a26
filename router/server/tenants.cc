#include "router/server/tenants.h"

#include <cctype>
#include <cmath>
#include <set>
#include <utility>

#include "base/config.h"
#include "base/crypto.h"
#include "base/mapped_file.h"
#include "router/server/checks.h"

namespace terrace {
namespace {

constexpr double kMinWeight = 0.001, kMaxWeight = 1000;
constexpr size_t kMaxSecretBytes = 64 << 10;

Status InvalidKey(const char* text) {
  return WithReason(Status(StatusCode::kUnauthenticated, text), "invalid_api_key");
}

Status NoKey() { return InvalidKey("an API key is needed: Authorization: Bearer <key>"); }

Status SetLimit(const std::string& path, bool is_set, double value, double& out) {
  if (!is_set) return {};
  if (!std::isfinite(value) || value <= 0) return BadSetting(path, "must be above 0, got ", value);
  out = value;
  return {};
}

StatusOr<std::shared_ptr<Tenant>> MakeTenant(const std::string& path, const v1::TenantConfig& config,
                                             const ModelCatalog& catalog, std::string_view cluster_secret) {
  auto out = std::make_shared<Tenant>();
  // What is in the file is not repeated: it may be a key at the wrong place.
  if (!CheckSettingName("", config.name()).ok())
    return BadSetting(path + ".name", "must be 1 to 64 of a-z 0-9 . _ -");
  out->name = config.name();
  for (int i = 0; i < config.models_size(); ++i) {
    const auto entry = config.models(i).empty() ? NotFound("it is empty") : catalog.Find(config.models(i));
    if (!entry.ok())
      return BadSetting(Concat(path, ".models[", i, "]"), "no tier, policy or alias of that name");
    out->models.insert((*entry)->id);
  }
  RETURN_IF_ERROR(SetLimit(path + ".requests_per_minute", config.has_requests_per_minute(),
                           config.requests_per_minute(), out->requests_per_minute));
  RETURN_IF_ERROR(SetLimit(path + ".tokens_per_minute", config.has_tokens_per_minute(),
                           config.tokens_per_minute(), out->tokens_per_minute));
  RETURN_IF_ERROR(SetLimit(path + ".weight", config.has_weight(), config.weight(), out->weight));
  if (out->weight < kMinWeight || out->weight > kMaxWeight) {
    return BadSetting(path + ".weight", "must be in [", kMinWeight, ", ", kMaxWeight, "], got ", out->weight);
  }
  if (config.has_max_in_flight() && config.max_in_flight() == 0) {
    return BadSetting(path + ".max_in_flight", "must be at least 1");
  }
  out->max_in_flight = config.max_in_flight();
  out->max_priority = config.max_priority();
  if (out->max_priority < 0 || out->max_priority > Request::kMaxPriority) {
    return BadSetting(path + ".max_priority", "must be in [0, ", Request::kMaxPriority, "], got ",
                      out->max_priority);
  }
  out->cache_key = std::string(AsBytes(HmacSha256(cluster_secret, out->name)));
  return out;
}

StatusOr<std::string> ReadSecret(const std::string& file) {
  ASSIGN_OR_RETURN(std::string secret, ReadConfigFile(file, kMaxSecretBytes));
  while (!secret.empty() && (secret.back() == '\n' || secret.back() == '\r')) secret.pop_back();
  if (secret.size() >= Tenants::kMinSecretBytes) return secret;
  return FailedPrecondition(file, ": holds ", secret.size(), " bytes, at least ", Tenants::kMinSecretBytes,
                            " are needed");
}

}  // namespace

StatusOr<std::shared_ptr<const Tenants>> Tenants::Make(const v1::TenantsFile& file,
                                                       const ModelCatalog& catalog,
                                                       std::string_view cluster_secret) {
  if (file.tenants().empty()) return BadSetting("tenants", "at least one is needed");
  auto out = std::make_shared<Tenants>();
  std::set<std::string> names;
  for (int i = 0; i < file.tenants_size(); ++i) {
    const v1::TenantConfig& config = file.tenants(i);
    const std::string path = Concat("tenants[", i, "]");
    ASSIGN_OR_RETURN(const TenantPtr tenant, MakeTenant(path, config, catalog, cluster_secret));
    if (!names.insert(tenant->name).second) return BadSetting(path + ".name", "another tenant has this name");
    for (int k = 0; k < config.key_sha256_size(); ++k) {
      const std::string key_path = Concat(path, ".key_sha256[", k, "]");
      const auto digest = ParseDigest256(config.key_sha256(k));
      if (!digest.has_value()) {
        return BadSetting(key_path, "must be the 64 hexadecimal digits of a key's SHA-256");
      }
      if (!out->by_digest_.emplace(*digest, tenant).second) {
        return BadSetting(key_path, "the same key is there twice");
      }
    }
  }
  return out;
}

StatusOr<std::shared_ptr<const Tenants>> Tenants::Load(const std::string& keys_file,
                                                       const std::string& secret_file,
                                                       const ModelCatalog& catalog) {
  v1::TenantsFile file;
  RETURN_IF_ERROR(LoadYamlFile(keys_file, file, ConfigValues::kSecret));
  ASSIGN_OR_RETURN(const std::string secret, ReadSecret(secret_file));
  auto tenants = Make(file, catalog, secret);
  if (!tenants.ok()) return Annotate(tenants.status(), keys_file);
  return tenants;
}

StatusOr<TenantPtr> Tenants::Authenticate(std::string_view authorization) const {
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() <= kScheme.size() || authorization.size() > kScheme.size() + kMaxKeyBytes) {
    return NoKey();
  }
  for (size_t i = 0; i < kScheme.size(); ++i) {
    if (std::tolower(static_cast<unsigned char>(authorization[i])) != kScheme[i]) return NoKey();
  }
  const auto found = by_digest_.find(Sha256(authorization.substr(kScheme.size())));
  if (found == by_digest_.end()) return InvalidKey("no tenant has this API key");
  return found->second;
}

}  // namespace terrace
