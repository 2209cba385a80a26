// The router's configuration, checked and with its defaults filled in: the only reader of RouterConfig. Pure.
#pragma once

#include <string>
#include <vector>

#include "base/log.h"
#include "base/status.h"
#include "proto/terrace/v1/config.pb.h"
#include "router/balance/balancer.h"
#include "router/tier/model_catalog.h"

namespace terrace {

struct RouterOptions {
  std::string http = "127.0.0.1:8080", grpc = "127.0.0.1:50051", ops = "127.0.0.1:9090";  // "": off
  std::vector<CatalogTier> tiers;
  std::vector<std::vector<std::string>> workers;  // by tier
  std::vector<CatalogPolicy> policies;
  std::string default_model;
  BalancePolicy balance = BalancePolicy::kPrefix;
  uint32_t max_in_flight = 1024;
  uint32_t max_body_bytes = 8 << 20;
  double default_timeout_seconds = 600, max_timeout_seconds = 3600;
  double connect_backoff_seconds = 0.25, watch_timeout_seconds = 3, dns_refresh_seconds = 10;
  LogOptions log;
};

// FAILED_PRECONDITION "tiers[1].name: ..." for the first value that cannot be used.
StatusOr<RouterOptions> MakeRouterOptions(const v1::RouterConfig& config);

}  // namespace terrace
