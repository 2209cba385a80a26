#include "tools/cli/launch_command.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/machine.h"
#include "tools/cli/format.h"

namespace terrace {
namespace {
constexpr double kWatchSeconds = 0.1;  // how late a Ctrl-C may be noticed
constexpr size_t kShownCharacters = 160;
constexpr size_t kTimeCharacters = 12;  // "15:04:05.123", as text logs begin (base/log.cc)
}  // namespace

std::string ShownLine(const std::string& line) {
  return line.find(" info ") == kTimeCharacters ? Shorten(line, kShownCharacters) : line;
}

std::string DescribeEnd(const ChildExit& exit, AfterEnd after) {
  if (exit.name == kRouterName) return exit.Describe();
  switch (after) {
    case AfterEnd::kGroupIsStartedAgain:
      return exit.Describe() + "; its group is lost and is started again";
    case AfterEnd::kGroupWaits:
      return exit.Describe() + "; its group is lost and is started again later, and the others go on";
    case AfterEnd::kNothing:
      break;
  }
  return exit.Describe() + "; it is not started again, and the others go on";
}

StatusOr<std::unique_ptr<LocalCluster>> Launch(const LaunchOptions& options, const CommandContext& context) {
  ASSIGN_OR_RETURN(ClusterPlan plan,
                   options.file.empty() ? PlanForModel(options.model) : PlanFromFile(options.file));
  ShareCores(plan, UsableCores());
  LocalClusterOptions launch;
  ASSIGN_OR_RETURN(launch.bin_dir, FindBinaries(options.bin_dir, context.argv0));
  RETURN_IF_ERROR(CheckPorts(plan.ports()));

  const size_t count = plan.workers.size();
  context.out << "starting " << FormatCount(count, "worker") << " and a router ("
              << (options.file.empty() ? options.model : options.file) << ")\n"
              << std::flush;
  const MonoTime start = RealClock().Now();
  launch.ready_timeout_seconds = options.ready_timeout_seconds;
  launch.log_format = context.is_out_terminal ? "text" : "";
  launch.on_ready = [&context, start](const std::string& name) {
    context.out << context.Green(name) << " is ready (" << FormatSeconds(Seconds(RealClock().Now() - start))
                << ")\n"
                << std::flush;
  };
  launch.on_group = [&context](const std::string& line) {
    context.err << context.Red(line) << "\n" << std::flush;
  };
  if (options.show_output) {
    launch.on_line = [&context](const std::string& name, const std::string& line) {
      context.out << context.Dim("[" + name + "]") << " "
                  << (context.is_out_terminal ? ShownLine(line) : line) << "\n"
                  << std::flush;
    };
  }
  return LocalCluster::Start(plan, std::move(launch), context.shutdown);
}

Status Watch(LocalCluster& cluster, double seconds, const CommandContext& context) {
  Status status;
  for (const ChildExit& exit : cluster.Poll(seconds)) {
    if (exit.name == kRouterName) status = Internal(exit.Describe());
    context.err << context.Red(DescribeEnd(exit, cluster.AfterEndOf(exit.name)));
    context.err << (exit.last_lines.empty() ? "\n" : "; its last lines:\n");
    for (const std::string& line : exit.last_lines) context.err << "  | " << line << "\n";
    context.err << std::flush;
  }
  return status;
}

Status WatchUntilSignal(LocalCluster& cluster, const CommandContext& context) {
  while (context.shutdown.WaitFor(0) == 0) RETURN_IF_ERROR(Watch(cluster, kWatchSeconds, context));
  return Status();
}

std::string DefaultModel(const v1::RouterConfig& router) {
  if (!router.default_model().empty()) return router.default_model();
  if (router.policies_size() > 0) return router.policies(0).name();
  return router.tiers(0).name();
}

std::string CurlExample(const ClusterPlan& plan, const std::string& question) {
  if (plan.router.listen().http().empty()) return "";
  return Concat("curl -s http://", ClientAddress(plan.router.listen().http()),
                "/v1/chat/completions -H 'Content-Type: application/json' ",
                plan.router.has_auth() ? "-H 'Authorization: Bearer KEY' " : "",
                "\\\n    -d '{\"model\": ", ToJsonText(DefaultModel(plan.router)),
                ", \"messages\": [{\"role\": \"user\", \"content\": ", ToJsonText(question),
                "}], \"temperature\": 0}'");
}

}  // namespace terrace
