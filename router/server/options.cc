#include "router/server/options.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "base/host_port.h"
#include "router/cluster/discovery.h"

namespace terrace {
namespace {

constexpr size_t kMaxNameBytes = 64;

template <typename... Text>
Status Bad(std::string_view path, const Text&... text) {
  return FailedPrecondition(path, ": ", text...);
}

Status CheckName(const std::string& path, const std::string& name) {
  const auto is_allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
  };
  if (!name.empty() && name.size() <= kMaxNameBytes && std::all_of(name.begin(), name.end(), is_allowed))
    return {};
  return Bad(path, "must be 1 to ", kMaxNameBytes, " of a-z 0-9 . _ -, got \"", name, "\"");
}

Status CheckPrice(const std::string& path, double price) {
  return std::isfinite(price) && price >= 0 ? Status()
                                            : Bad(path, "must be a price of at least 0, got ", price);
}

Status CheckAddress(const std::string& path, const std::string& address, bool may_be_off) {
  if (address.empty() && may_be_off) return {};
  const auto parsed = ParseHostPort(address);
  return parsed.ok() ? Status() : Bad(path, Message(parsed.status()));
}

Status SetSeconds(const std::string& path, bool is_set, double value, double low, double high, double& out) {
  if (!is_set) return {};
  if (!(value >= low && value <= high))
    return Bad(path, "must be in [", low, ", ", high, "] seconds, got ", value);
  out = value;
  return {};
}

Status SetCount(const std::string& path, bool is_set, uint32_t value, uint32_t& out) {
  if (!is_set) return {};
  if (value == 0) return Bad(path, "must be at least 1");
  out = value;
  return {};
}

Status SetListen(const v1::ListenConfig& config, RouterOptions& out) {
  if (config.has_http()) out.http = config.http();
  if (config.has_grpc()) out.grpc = config.grpc();
  if (config.has_ops()) out.ops = config.ops();
  RETURN_IF_ERROR(CheckAddress("listen.http", out.http, /*may_be_off=*/true));
  RETURN_IF_ERROR(CheckAddress("listen.grpc", out.grpc, /*may_be_off=*/true));
  return CheckAddress("listen.ops", out.ops, /*may_be_off=*/true);
}

Status SetTiers(const v1::RouterConfig& config, RouterOptions& out) {
  if (config.tiers().empty()) return Bad("tiers", "at least one is needed");
  std::set<std::string> names;
  const auto add_name = [&](const std::string& path, const std::string& name) -> Status {
    RETURN_IF_ERROR(CheckName(path, name));
    return names.insert(name).second ? Status() : Bad(path, "\"", name, "\" is taken");
  };
  for (int i = 0; i < config.tiers_size(); ++i) {
    const v1::TierConfig& tier = config.tiers(i);
    const std::string path = Concat("tiers[", i, "]");
    RETURN_IF_ERROR(add_name(path + ".name", tier.name()));
    for (int a = 0; a < tier.aliases_size(); ++a) {
      RETURN_IF_ERROR(add_name(Concat(path, ".aliases[", a, "]"), tier.aliases(a)));
    }
    RETURN_IF_ERROR(
        CheckPrice(path + ".usd_per_million_prompt_tokens", tier.usd_per_million_prompt_tokens()));
    RETURN_IF_ERROR(
        CheckPrice(path + ".usd_per_million_completion_tokens", tier.usd_per_million_completion_tokens()));
    std::vector<std::string> workers(tier.workers().begin(), tier.workers().end());
    if (workers.empty()) return Bad(path + ".workers", "at least one is needed");
    if (const auto found = MakeDiscovery(workers); !found.ok())
      return Bad(path + ".workers", Message(found.status()));
    out.workers.push_back(std::move(workers));
    out.tiers.push_back(
        {.name = tier.name(),
         .price = {tier.usd_per_million_prompt_tokens(), tier.usd_per_million_completion_tokens()},
         .aliases = {tier.aliases().begin(), tier.aliases().end()}});
  }
  for (int i = 0; i < config.policies_size(); ++i) {
    RETURN_IF_ERROR(add_name(Concat("policies[", i, "].name"), config.policies(i).name()));
  }
  return {};
}

StatusOr<std::vector<CascadePolicyStep>> MakeSteps(const std::string& path, const v1::CascadeConfig& cascade,
                                                   const std::map<std::string, size_t>& tiers) {
  if (cascade.steps().empty()) return Bad(path, "at least one is needed");
  std::vector<CascadePolicyStep> out;
  for (int i = 0; i < cascade.steps_size(); ++i) {
    const v1::CascadeStep& step = cascade.steps(i);
    const std::string here = Concat(path, "[", i, "]");
    const auto tier = tiers.find(step.tier());
    if (tier == tiers.end()) return Bad(here + ".tier", "there is no tier \"", step.tier(), "\"");
    CascadePolicyStep& next = out.emplace_back(CascadePolicyStep{.tier = tier->second});
    const bool is_last = i + 1 == cascade.steps_size();
    if (is_last == step.has_min_mean_logprob()) {
      return Bad(here + ".min_mean_logprob", is_last ? "the last step accepts every answer" : "is needed");
    }
    if (is_last) continue;
    next.min_mean_logprob = step.min_mean_logprob();
    if (!(step.min_mean_logprob() <= 0)) {  // also NaN
      return Bad(here + ".min_mean_logprob", "must be at most 0, got ", step.min_mean_logprob());
    }
  }
  return out;
}

Status SetPolicies(const v1::RouterConfig& config, RouterOptions& out) {
  std::map<std::string, size_t> tiers;
  for (size_t i = 0; i < out.tiers.size(); ++i) tiers[out.tiers[i].name] = i;
  for (int i = 0; i < config.policies_size(); ++i) {
    const std::string path = Concat("policies[", i, "].cascade.steps");
    ASSIGN_OR_RETURN(auto steps, MakeSteps(path, config.policies(i).cascade(), tiers));
    out.policies.push_back({config.policies(i).name(), std::move(steps)});
  }
  out.default_model = config.default_model();
  const auto catalog = ModelCatalog::Make(out.tiers, out.policies, out.default_model);
  return catalog.ok() ? Status() : Bad("default_model", Message(catalog.status()));
}

Status SetLimits(const v1::RouterConfig& config, RouterOptions& out) {
  const v1::AdmissionConfig& admission = config.admission();
  RETURN_IF_ERROR(SetCount("admission.max_in_flight", admission.has_max_in_flight(),
                           admission.max_in_flight(), out.max_in_flight));
  RETURN_IF_ERROR(SetCount("admission.max_body_bytes", admission.has_max_body_bytes(),
                           admission.max_body_bytes(), out.max_body_bytes));
  RETURN_IF_ERROR(SetSeconds("admission.default_timeout_seconds", admission.has_default_timeout_seconds(),
                             admission.default_timeout_seconds(), 0.001, 86400, out.default_timeout_seconds));
  RETURN_IF_ERROR(SetSeconds("admission.max_timeout_seconds", admission.has_max_timeout_seconds(),
                             admission.max_timeout_seconds(), 0.001, 86400, out.max_timeout_seconds));
  if (config.balance().has_policy()) {
    const auto policy = ParseBalancePolicy(config.balance().policy());
    if (!policy.has_value()) {
      return Bad("balance.policy", "must be prefix, least_loaded, power_of_two or round_robin, got \"",
                 config.balance().policy(), "\"");
    }
    out.balance = *policy;
  }
  const v1::ClusterConfig& cluster = config.cluster();
  RETURN_IF_ERROR(SetSeconds("cluster.connect_backoff_seconds", cluster.has_connect_backoff_seconds(),
                             cluster.connect_backoff_seconds(), 0.01, 60, out.connect_backoff_seconds));
  RETURN_IF_ERROR(SetSeconds("cluster.watch_timeout_seconds", cluster.has_watch_timeout_seconds(),
                             cluster.watch_timeout_seconds(), 1, 300, out.watch_timeout_seconds));
  return SetSeconds("cluster.dns_refresh_seconds", cluster.has_dns_refresh_seconds(),
                    cluster.dns_refresh_seconds(), 0.1, 3600, out.dns_refresh_seconds);
}

Status SetLog(const v1::LogConfig& config, RouterOptions& out) {
  out.log.component = "router";
  if (config.has_level()) {
    const auto level = ParseLogLevel(config.level());
    if (!level.ok()) return Bad("log.level", Message(level.status()));
    out.log.level = *level;
  }
  if (config.has_format()) {
    if (config.format() != "json" && config.format() != "text") {
      return Bad("log.format", "must be json or text, got \"", config.format(), "\"");
    }
    out.log.as_json = config.format() == "json";
  }
  return {};
}

}  // namespace

StatusOr<RouterOptions> MakeRouterOptions(const v1::RouterConfig& config) {
  RouterOptions out;
  RETURN_IF_ERROR(SetListen(config.listen(), out));
  RETURN_IF_ERROR(SetTiers(config, out));
  RETURN_IF_ERROR(SetPolicies(config, out));
  RETURN_IF_ERROR(SetLimits(config, out));
  RETURN_IF_ERROR(SetLog(config.log(), out));
  return out;
}

}  // namespace terrace
