// terrace-router: takes requests over HTTP and gRPC and answers them from the cheapest model tier that is
// good enough.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/config.h"
#include "base/drain.h"
#include "base/exit_code.h"
#include "base/log.h"
#include "base/shutdown.h"
#include "base/version.h"
#include "router/server/options.h"
#include "router/server/router.h"

namespace terrace {
namespace {

struct Flags {
  std::string config;
  std::vector<std::string> overrides;
  std::string http, grpc, ops;
};

StatusOr<RouterOptions> LoadOptions(const Flags& flags, const CLI::App& app) {
  v1::RouterConfig config;
  RETURN_IF_ERROR(LoadYamlFile(flags.config, config));
  for (const std::string& assignment : flags.overrides) RETURN_IF_ERROR(ApplyOverride(assignment, config));
  if (app.count("--http") > 0) config.mutable_listen()->set_http(flags.http);
  if (app.count("--grpc") > 0) config.mutable_listen()->set_grpc(flags.grpc);
  if (app.count("--ops") > 0) config.mutable_listen()->set_ops(flags.ops);
  return MakeRouterOptions(config);
}

// Requests in flight may finish; a second signal ends at once.
void Drain(Router& router, ShutdownSignal& shutdown) {
  Log(LogLevel::kInfo, "router_draining", {{"in_flight", router.in_flight()}});
  router.BeginDrain();
  AwaitDrained(shutdown, [&router] { return router.in_flight() == 0; });
}

Status Serve(const RouterOptions& options, ShutdownSignal& shutdown) {
  InitLog(options.log);
  MetricRegistry metrics;
  ASSIGN_OR_RETURN(const auto router, Router::Start(options, metrics));
  Log(LogLevel::kInfo, "router_ready",
      {{"version", kVersion},
       {"http", router->http_address()},
       {"grpc", router->grpc_address()},
       {"ops", router->ops_address()}});
  shutdown.Wait();
  Drain(*router, shutdown);
  Log(LogLevel::kInfo, "router_stopped", {{"cut_off", router->in_flight()}});
  return {};
}

int Fail(const Status& status) {
  std::fprintf(stderr, "terrace-router: %s\n", Message(status).c_str());
  return ExitCodeFor(status);
}

int Main(int argc, char** argv) {
  ShutdownSignal shutdown;
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);  // its errors come back as ours, one line each
  CLI::App app("Terrace router: answers requests from the cheapest model tier that is good enough.",
               "terrace-router");
  Flags flags;
  app.add_option("--config", flags.config, "YAML file (RouterConfig in proto/terrace/v1/config.proto)")
      ->required();
  app.add_option("--set", flags.overrides,
                 "override one setting: --set admission.max_in_flight=64 (repeatable)")
      ->allow_extra_args(false);
  app.add_option("--http", flags.http,
                 "host:port of the OpenAI-compatible API, \"\" for none; port 0: any free one");
  app.add_option("--grpc", flags.grpc, "host:port of the gRPC API");
  app.add_option("--ops", flags.ops, "host:port of /metrics /healthz /readyz /statusz");
  app.set_version_flag("--version", std::string("terrace-router ") + kVersion);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {  // --help, --version
    return app.exit(asked);
  } catch (const CLI::ParseError& error) {
    return Fail(InvalidArgument(error.what(), " (see terrace-router --help)"));
  }
  const auto options = LoadOptions(flags, app);
  if (!options.ok()) return Fail(options.status());
  const Status served = Serve(*options, shutdown);
  return served.ok() ? kExitOk : Fail(served);
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
