#include "tools/cli/model_target.h"

#include <filesystem>
#include <system_error>

#include "tools/cli/local_model.h"
#include "tools/cli/router_client.h"
#include "tools/cli/worker_model.h"

namespace terrace {

OpenEngineOptions EngineOptionsOf(const ModelTarget& target, const ShutdownSignal& shutdown) {
  OpenEngineOptions options;
  options.model = target.model;
  options.threads = target.threads;
  options.max_sequences = target.max_sequences;
  options.device = target.device;
  options.compute = target.compute;
  options.kv_dtype = target.kv_dtype;
  options.speculation.drafter = target.drafter;
  options.speculation.model = target.draft_model;
  options.is_cancelled = [&shutdown] { return shutdown.IsPending(); };
  return options;
}

StatusOr<std::unique_ptr<Answerer>> OpenTarget(const ModelTarget& target, const CommandContext& context) {
  if (!target.is_in_process()) {
    ASSIGN_OR_RETURN(const ChannelSecurity security, OpenSecurity(target.access));
    if (!target.worker.empty()) {
      ASSIGN_OR_RETURN(std::unique_ptr<WorkerModel> worker, WorkerModel::Open(target.worker, security));
      return std::unique_ptr<Answerer>(std::move(worker));
    }
    return std::unique_ptr<Answerer>(
        new RouterClient(target.router.empty() ? kDefaultRouter : target.router, security));
  }
  if (!target.access.tls.ca.empty())
    return InvalidArgument("--tls-ca: a model in this process is not connected to");
  std::error_code error;
  if (!std::filesystem::exists(target.model, error)) {
    return NotFound("no model folder or file ", target.model,
                    " (to ask a router for a served model add --router ", kDefaultRouter, ")");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<LocalModel> local,
                   LocalModel::Open(EngineOptionsOf(target, context.shutdown)));
  if (!local->device_note().empty()) context.err << "on the CPUs: " << local->device_note() << "\n";
  return std::unique_ptr<Answerer>(std::move(local));
}

}  // namespace terrace
