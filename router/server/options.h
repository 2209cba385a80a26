// The router's configuration, checked and with its defaults filled in: the only reader of RouterConfig, and
// of the calibration files that it names.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/status.h"
#include "base/tls.h"
#include "proto/terrace/v1/config.pb.h"
#include "router/balance/balancer.h"
#include "router/cluster/ejection.h"
#include "router/dispatch/retry_budget.h"
#include "router/manifest/manifest_gate.h"
#include "router/tier/model_catalog.h"

namespace terrace {

// Of the HTTP listener: see HttpLimitsConfig.
struct HttpLimits {
  uint32_t max_connections = 16384, max_header_bytes = 61440, max_headers = 100;
  double header_timeout_seconds = 10, idle_timeout_seconds = 600;
  uint32_t min_body_bytes_per_second = 1024;
  uint32_t stream_buffer_bytes = 262144;  // of gRPC streams too, as the next
  double slow_reader_seconds = 60;
  uint32_t max_buffered_body_bytes = 1 << 30;

  friend bool operator==(const HttpLimits&, const HttpLimits&) = default;
};

// Of the gRPC listener: see GrpcLimitsConfig.
struct GrpcLimits {
  uint32_t max_streams = 1024, max_memory_bytes = 1 << 30;
  uint32_t max_resets = 200;  // 0: no limit

  friend bool operator==(const GrpcLimits&, const GrpcLimits&) = default;
};

struct RouterOptions {
  std::string http = "127.0.0.1:8080", grpc = "127.0.0.1:8081", ops = "127.0.0.1:9090";  // "": off
  std::optional<TlsFiles> tls;         // of http and grpc; absent: plain text
  std::optional<TlsFiles> worker_tls;  // of the connections to workers; absent: plain text
  std::string worker_server_name;      // that their certificates are for; "": the host of each address
  std::vector<CatalogTier> tiers;
  std::vector<std::vector<std::string>> workers;              // by tier
  std::vector<std::optional<ManifestGateOptions>> manifests;  // by tier, or fewer; absent: any model
  std::vector<CatalogPolicy> policies;
  std::string default_model;
  BalancePolicy balance = BalancePolicy::kPrefix;
  HttpLimits http_limits;
  GrpcLimits grpc_limits;
  bool grpc_reflection = true;
  uint32_t max_in_flight = 16384, max_queued = 4096;
  double max_first_token_seconds = 30;
  uint32_t max_body_bytes = 8 << 20;
  double default_timeout_seconds = 600, max_timeout_seconds = 3600;
  double connect_backoff_seconds = 0.25, watch_timeout_seconds = 3, dns_refresh_seconds = 10;
  EjectionOptions ejection;
  double slow_start_seconds = 30;
  RetryOptions retries;
  uint64_t token_cache_bytes = 64 << 20;       // 0: none
  std::string keys_file, cluster_secret_file;  // both or neither
  double drain_seconds = 30;
  LogOptions log;
  uint64_t config_hash = 0;  // 48 bits of what it was made from

  // That are read besides the configuration and those of the manifests.
  std::vector<std::string> files() const {
    std::vector<std::string> all = {keys_file, cluster_secret_file};
    for (const CatalogPolicy& policy : policies) all.push_back(policy.calibration_file);
    return all;
  }
  // The manifests and their keys.
  std::vector<std::string> manifest_files() const {
    std::vector<std::string> all;
    for (const auto& tier : manifests) {
      if (!tier.has_value()) continue;
      all.insert(all.end(), tier->files.begin(), tier->files.end());
      all.insert(all.end(), tier->key_files.begin(), tier->key_files.end());
    }
    return all;
  }
};

// FAILED_PRECONDITION "tiers[1].name: ..." for the first value that cannot be used.
StatusOr<RouterOptions> MakeRouterOptions(const v1::RouterConfig& config);

// FAILED_PRECONDITION, as above, for the first setting that differs and that a running router cannot change.
Status CheckReloadable(const RouterOptions& before, const RouterOptions& after);

}  // namespace terrace
