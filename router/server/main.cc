// terrace-router: takes requests over HTTP and gRPC and answers them from the cheapest model tier that is
// good enough.
#include <sys/resource.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/config.h"
#include "base/drain.h"
#include "base/exit_code.h"
#include "base/file_stamp.h"
#include "base/log.h"
#include "base/shutdown.h"
#include "base/version.h"
#include "router/manifest/manifest.h"
#include "router/server/options.h"
#include "router/server/router.h"

namespace terrace {
namespace {

struct Flags {
  std::string config;
  std::vector<std::string> overrides;
  std::string http, grpc, ops;
  bool validate = false;
  std::string running;  // what a router runs with that is to take the configuration; "": none does
};

constexpr char kFooter[] =
    "SIGTERM and SIGINT drain: running answers may finish for drain_seconds of the configuration, then they "
    "end\nwith the error draining; a second signal ends them at once. SIGHUP reads the configuration anew.";

constexpr double kLookSeconds = 1;  // between looks at the files
constexpr int kLooksToRetry = 5;
constexpr double kEndSeconds = 2;  // for requests that are ended: their worker calls end here, at once

StatusOr<RouterOptions> LoadOptions(const Flags& flags, const CLI::App& app, const std::string& file) {
  v1::RouterConfig config;
  RETURN_IF_ERROR(LoadYamlFile(file, config));
  for (const std::string& assignment : flags.overrides) RETURN_IF_ERROR(ApplyOverride(assignment, config));
  if (app.count("--http") > 0) config.mutable_listen()->set_http(flags.http);
  if (app.count("--grpc") > 0) config.mutable_listen()->set_grpc(flags.grpc);
  if (app.count("--ops") > 0) config.mutable_listen()->set_ops(flags.ops);
  return MakeRouterOptions(config);
}

// The files that a configuration is made of. Main thread.
class ConfigFiles {
 public:
  // To be called before they are read: what changes while they are is a change.
  void Watch(const std::string& file) {
    if (!file.empty()) stamps_[file] = StampOf(file);
  }
  // Since this or Watch was called last.
  bool HaveChanged() {
    bool changed = false;
    for (auto& [file, stamp] : stamps_) {
      const FileStamp now = StampOf(file);
      changed = changed || now != stamp;
      stamp = now;
    }
    return changed;
  }

 private:
  std::map<std::string, FileStamp> stamps_;
};

// Keeps a running router at what its files say.
class Reloader {
 public:
  Reloader(const Flags& flags, const CLI::App& app, MetricRegistry& metrics)
      : flags_(flags), app_(app), metrics_(metrics) {
    metrics_.GetGauge("terrace_config_reload_success").Set(1);
  }

  StatusOr<RouterOptions> Load() {
    files_.Watch(flags_.config);
    ASSIGN_OR_RETURN(RouterOptions options, LoadOptions(flags_, app_, flags_.config));
    for (const std::string& file : options.files()) files_.Watch(file);
    for (const std::string& file : options.manifest_files()) manifests_.Watch(file);
    return options;
  }

  // Until a signal to stop.
  void Run(Router& router, ShutdownSignal& shutdown) {
    for (;;) {
      const int signal = shutdown.Wait(kLookSeconds, [&] { return IsDue(router); });
      if (signal != 0 && signal != SIGHUP) return;
      if (signal != 0) {
        is_retry_ = false;
        manifests_alone_ = false;
      }
      Reload(router, shutdown);
    }
  }

 private:
  // Also what was refused may have been half written, or not to be read for a moment, and so may a manifest.
  bool IsDue(const Router& router) {
    const bool have_files_changed = files_.HaveChanged(), have_manifests_changed = manifests_.HaveChanged();
    is_retry_ = !have_files_changed && !have_manifests_changed;
    manifests_alone_ = !have_files_changed && (refusal_.empty() || manifests_alone_);
    if (!is_retry_) return true;
    if (refusal_.empty() && !router.HasUnreadableManifest()) return false;
    return ++looks_ >= kLooksToRetry;
  }

  Status LoadInto(Router& router, ShutdownSignal& shutdown) {
    ASSIGN_OR_RETURN(const RouterOptions options, Load());
    return router.Reload(options, [&] { return shutdown.IsPending(); });
  }

  void Reload(Router& router, ShutdownSignal& shutdown) {
    const Status status = manifests_alone_ ? router.ReloadManifests() : LoadInto(router, shutdown);
    looks_ = 0;
    metrics_.GetGauge("terrace_config_reload_success").Set(status.ok() ? 1 : 0);
    if (is_retry_ && Message(status) == refusal_) return;  // that was told
    refusal_ = Message(status);
    metrics_
        .GetCounter("terrace_config_reloads_total", std::vector<std::string>{status.ok() ? "ok" : "refused"})
        .Add();
    if (status.ok()) {
      Log(LogLevel::kInfo, "config_reloaded", {{"file", flags_.config}});
    } else {
      Log(LogLevel::kError, "config_refused", {{"error", refusal_}, {"file", flags_.config}});
    }
  }

  const Flags& flags_;
  const CLI::App& app_;
  MetricRegistry& metrics_;
  ConfigFiles files_, manifests_;
  std::string refusal_;           // of the last reload; "" when it was none
  int looks_ = 0;                 // since the last reload, while another is wanted
  bool is_retry_ = false;         // nothing has changed and nobody has asked
  bool manifests_alone_ = false;  // of this reload or the last one: nothing else is read
};

// Requests in flight may finish, for as long as they are given or until a second signal; then they are ended.
// How many those are.
size_t Drain(Router& router, ShutdownSignal& shutdown) {
  router.BeginDrain();
  const auto is_drained = [&router] { return router.in_flight() == 0; };
  AwaitDrained(shutdown, is_drained, router.drain_seconds());
  const size_t cut_off = router.in_flight();
  if (cut_off == 0) return 0;
  router.EndRequests();
  AwaitDrained(shutdown, is_drained, kEndSeconds);
  return cut_off;
}

Status Serve(const Flags& flags, const CLI::App& app, ShutdownSignal& shutdown) {
  MetricRegistry metrics;
  Reloader reloader(flags, app, metrics);
  ASSIGN_OR_RETURN(const RouterOptions options, reloader.Load());
  InitLog(options.log);
  ASSIGN_OR_RETURN(const auto router, Router::Start(options, metrics));
  Log(LogLevel::kInfo, "router_ready",
      {{"version", kVersion},
       {"http", router->http_address()},
       {"grpc", router->grpc_address()},
       {"ops", router->ops_address()}});
  reloader.Run(*router, shutdown);
  const size_t cut_off = Drain(*router, shutdown);
  Log(LogLevel::kInfo, "router_stopped", {{"cut_off", cut_off}});
  return {};
}

// Whether a router would start with it, and one that runs would take it.
Status CheckUsable(const Flags& flags, const CLI::App& app) {
  ASSIGN_OR_RETURN(const RouterOptions options, LoadOptions(flags, app, flags.config));
  if (!flags.running.empty()) {
    const auto running = LoadOptions(flags, app, flags.running);
    if (!running.ok()) return Annotate(running.status(), "--running");
    RETURN_IF_ERROR(CheckReloadable(*running, options));
  }
  return CheckFiles(options);
}

int Fail(const Status& status) {
  std::fprintf(stderr, "terrace-router: %s\n", Message(status).c_str());
  return ExitCodeFor(status);
}

// A connection is a descriptor, and the usual limit is 1024: it may be as high as the system lets it.
void RaiseDescriptorLimit() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

int Main(int argc, char** argv) {
  RaiseDescriptorLimit();
  ShutdownSignal shutdown(ShutdownSignal::Hangup::kDoesNotStop);
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
  auto* const validate = app.add_flag(
      "--validate", flags.validate,
      "say whether the configuration can be used, and end; exit code 1: it can, and a tier's manifests let "
      "no model in");
  app.add_option("--running", flags.running,
                 "with --validate: whether a router that runs with this file can change to the other, too")
      ->type_name("FILE")
      ->needs(validate);
  app.set_version_flag("--version", std::string("terrace-router ") + kVersion);
  app.footer(kFooter);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {  // --help, --version
    return app.exit(asked);
  } catch (const CLI::ParseError& error) {
    return Fail(InvalidArgument(error.what(), " (see terrace-router --help)"));
  }
  if (flags.validate) {
    const Status usable = CheckUsable(flags, app);
    if (IsManifestReason(Reason(usable))) {
      std::printf("%s: would start, and the tier would be refused: %s\n", flags.config.c_str(),
                  Message(usable).c_str());
      return kExitFailure;
    }
    if (!usable.ok()) return Fail(usable);
    std::printf("%s: can be used\n", flags.config.c_str());
    return kExitOk;
  }
  const Status served = Serve(flags, app, shutdown);
  return served.ok() ? kExitOk : Fail(served);
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
