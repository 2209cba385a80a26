// terrace-worker: runs one model and serves it to routers, tokens in and tokens out.
#include <unistd.h>

#include <atomic>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/clock.h"
#include "base/config.h"
#include "base/drain.h"
#include "base/exit_code.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "base/shutdown.h"
#include "base/version.h"
#include "worker/server/options.h"
#include "worker/server/run_follower.h"
#include "worker/server/worker_server.h"

namespace terrace {
namespace {

constexpr char kFooter[] =
    "Every setting, its unit and its default: WorkerConfig in proto/terrace/v1/config.proto.\n"
    "SIGTERM and SIGINT drain: running answers may finish for drain_seconds, then other workers go on with "
    "them;\n"
    "a second signal ends at once, but for the step in progress, which is waited for until it counts as one "
    "that\n"
    "hangs (a rank that does not lead has to be killed then).\n"
    "Exit codes: 0 stopped, 64 wrong flags, 65 malformed model, 66 no such file, 69 port, memory or device\n"
    "not to be had, the device or a rank of the group lost, or a step that hangs, 78 wrong configuration, or "
    "not that of the group.";

constexpr double kDevicePollSeconds = 0.25;  // for how long a lost device may go unnoticed

struct Flags {
  std::string config, model, served_name, grpc, ops, device, leader;
  uint32_t threads = 0, rank = 0, ranks = 1, pipeline_parallel = 1;
  bool validate = false;
  std::vector<std::string> overrides;
};

GroupEnvironment ReadGroupEnvironment() {
  const auto read = [](const char* name) -> std::string {
    const char* const value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  char host_name[HOST_NAME_MAX + 1] = {};
  gethostname(host_name, HOST_NAME_MAX);  // "" when it fails
  return {.leader_address = read("LWS_LEADER_ADDRESS"),
          .group_size = read("LWS_GROUP_SIZE"),
          .worker_index = read("LWS_WORKER_INDEX"),
          .host_name = host_name};
}

StatusOr<WorkerOptions> LoadOptions(const Flags& flags, const CLI::App& app) {
  v1::WorkerConfig config;
  if (!flags.config.empty()) RETURN_IF_ERROR(LoadYamlFile(flags.config, config));
  for (const std::string& assignment : flags.overrides) RETURN_IF_ERROR(ApplyOverride(assignment, config));
  if (app.count("--model") > 0) config.set_model(flags.model);
  if (app.count("--served-name") > 0) config.set_served_name(flags.served_name);
  if (app.count("--grpc") > 0) config.set_grpc(flags.grpc);
  if (app.count("--ops") > 0) config.set_ops(flags.ops);
  if (app.count("--threads") > 0) config.mutable_engine()->set_threads(flags.threads);
  if (app.count("--device") > 0) config.mutable_engine()->set_device(flags.device);
  if (app.count("--rank") > 0) config.mutable_group()->set_rank(flags.rank);
  if (app.count("--ranks") > 0) config.mutable_group()->set_ranks(flags.ranks);
  if (app.count("--pipeline-parallel") > 0)
    config.mutable_group()->set_pipeline_parallel(flags.pipeline_parallel);
  if (app.count("--leader") > 0) config.mutable_group()->set_leader(flags.leader);
  RETURN_IF_ERROR(ApplyGroupEnvironment(ReadGroupEnvironment(), config));
  return MakeWorkerOptions(config);
}

// Running answers may finish for a while; a second signal ends it at once.
void Drain(WorkerServer& server, double drain_seconds, ShutdownSignal& shutdown) {
  const EngineStats stats = server.Stats();
  Log(LogLevel::kInfo, "worker_draining", {{"running", stats.running}, {"waiting", stats.waiting}});
  std::atomic<bool> is_drained = false;
  server.Drain([&is_drained] { is_drained = true; });
  AwaitDrained(
      shutdown, [&is_drained] { return is_drained.load(); }, drain_seconds);
  server.Stop();  // hands over what is left; is_drained is written no more
}

int Fail(const Status& status) {
  std::fprintf(stderr, "terrace-worker: %s\n", Message(status).c_str());
  return ExitCodeFor(status);
}

Status Serve(const WorkerOptions& options, ShutdownSignal& shutdown) {
  InitLog(options.log);
  WorkerServerOptions server_options = options.server;
  server_options.engine.is_cancelled = [&shutdown] { return shutdown.IsPending(); };
  server_options.on_step_hangs = [](const Status& error) { std::_Exit(Fail(error)); };
  const auto started = WorkerServer::Start(server_options);
  if (started.status().code() == StatusCode::kCancelled) {
    Log(LogLevel::kInfo, "worker_stopped", {{"reason", "asked to while it loaded the model"}});
    return {};
  }
  RETURN_IF_ERROR(started.status());
  const auto& server = *started;
  shutdown.Wait(kDevicePollSeconds, [&server] { return !server->device_error().ok(); });
  Drain(*server, options.server.engine.drain_seconds, shutdown);
  const EngineStats stats = server->Stats();
  Log(LogLevel::kInfo, "worker_stopped",
      {{"finished", stats.finished}, {"failed", stats.failed}, {"cancelled", stats.cancelled}});
  const Status lost = server->device_error();
  if (lost.ok()) return {};
  const bool is_group = options.server.engine.group.ranks > 1;
  return WithReason(Unavailable(is_group ? "the group is lost: " : "the device is lost: ", Message(lost)),
                    is_group ? "group_lost" : "device_lost");
}

// A rank that does not lead its group. Its leader is told to stop too, and goes on for a while: so this one
// does, until a second signal.
Status Follow(const WorkerOptions& options, ShutdownSignal& shutdown) {
  InitLog(options.log);
  WorkerServerOptions server = options.server;
  server.engine.is_cancelled = [&shutdown] { return shutdown.IsPending(); };
  const double patience = server.engine.drain_seconds + Seconds(server.group.timeout);
  std::optional<MonoTime> asked;
  const Status end = RunFollower(server, [&] {
    const MonoTime now = RealClock().Now();
    if (const int signal = shutdown.WaitFor(0); signal != 0) {
      if (asked.has_value() && signal == SIGHUP) return false;  // a terminal that is closed hangs up twice
      if (asked.has_value()) return true;
      asked = now;
      Log(LogLevel::kInfo, "worker_draining");
    }
    return asked.has_value() && Seconds(now - *asked) > patience;
  });
  if (!end.ok() && end.code() != StatusCode::kCancelled) return end;
  Log(LogLevel::kInfo, "worker_stopped", {{"rank", server.engine.group.rank}});
  return {};
}

int Main(int argc, char** argv) {
  TERRACE_ARM_FAILPOINTS();
  ShutdownSignal shutdown;
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);  // its errors come back as ours, one line each
  CLI::App app("Terrace worker: runs one model and serves it to routers, tokens in and tokens out.",
               "terrace-worker");
  Flags flags;
  app.add_option("--config", flags.config, "YAML file (WorkerConfig); the flags below win over it");
  app.add_option("--model", flags.model, "folder with config.json and *.safetensors, or a .gguf file");
  app.add_option("--served-name", flags.served_name, "name that routers see (default: the model's own)");
  app.add_option("--grpc", flags.grpc,
                 "host:port of terrace.v1.Worker (default 127.0.0.1:8101); port 0: any free one");
  app.add_option(
      "--ops", flags.ops,
      "host:port of /metrics /healthz /readyz (default 127.0.0.1:9091); \"\" for none; port 0: any free one");
  app.add_option("--threads", flags.threads, "compute threads (default: all cores this process may use)");
  app.add_option("--device", flags.device,
                 "auto (CUDA where there is a device that can run the model), cpu or cuda (default auto)");
  app.add_option("--ranks", flags.ranks, "processes that run the model together (default 1: this one alone)");
  app.add_option("--rank", flags.rank, "which of them this is; 0, the default, leads and serves");
  app.add_option("--pipeline-parallel", flags.pipeline_parallel,
                 "stages of layers that the ranks form (default 1: all of them share every layer)");
  app.add_option("--leader", flags.leader, "host:port at which the leader listens for the other ranks");
  app.add_option("--set", flags.overrides, "override one setting: --set engine.max_sequences=8 (repeatable)")
      ->allow_extra_args(false);
  app.add_flag(
      "--validate", flags.validate,
      "say whether the configuration can be used, and end; the model has to be there, and is read only "
      "to see whether a group can share it and a draft model has its tokens");
  app.set_version_flag("--version", std::string("terrace-worker ") + kVersion);
  app.footer(kFooter);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {  // --help, --version
    return app.exit(asked);
  } catch (const CLI::ParseError& error) {
    return Fail(InvalidArgument(error.what(), " (terrace-worker --help)"));
  }
  const auto options = LoadOptions(flags, app);
  if (!options.ok()) return Fail(options.status());
  if (flags.validate) {
    if (const Status there = CheckFiles(options->server); !there.ok()) return Fail(there);
    std::printf("%s: can be used\n", flags.config.empty() ? "the flags" : flags.config.c_str());
    return kExitOk;
  }
  const bool leads = options->server.engine.group.rank == 0;
  const Status served = leads ? Serve(*options, shutdown) : Follow(*options, shutdown);
  return served.ok() ? kExitOk : Fail(served);
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
