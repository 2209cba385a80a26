// Which model a command asks: a served one through a router, that of one worker, or one opened in this
// process.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/shutdown.h"
#include "base/status.h"
#include "tools/cli/answerer.h"
#include "tools/cli/command_context.h"
#include "tools/cli/kept_channel.h"
#include "worker/engine/open_engine.h"

namespace terrace {

// What a target in this process may say.
inline constexpr const char* kComputeNames[] = {"auto", "f32", "fp8"};
inline constexpr const char* kKvDTypeNames[] = {"auto", "f32", "f16", "bf16", "int8", "fp8"};

struct ModelTarget {
  std::string router;           // host:port; then `model` is a served name, "" the router's default
  std::string worker;           // host:port, without a router: its model, and `model` is ""
  std::string model;            // without either: the path of a model; "" the default router's default model
  uint32_t threads = 0;         // in process; 0: all cores
  uint32_t max_sequences = 16;  // in process
  std::string device = "auto", compute = "auto", kv_dtype = "auto";  // in process: see OpenEngineOptions
  std::string drafter = "none", draft_model = "";                    // in process: see SpeculationOptions
  ServerAccess access;                                               // of a router or a worker

  bool is_in_process() const { return router.empty() && worker.empty() && !model.empty(); }
  // What people called it; "": the router's default.
  const std::string& name() const { return worker.empty() ? model : worker; }
  // Another one of the same kind, by what people call it.
  ModelTarget Other(const std::string& other) const {
    ModelTarget target = *this;
    (worker.empty() ? target.model : target.worker) = other;
    return target;
  }
  // What a request to the opened Answerer says as its model.
  std::string served_name() const { return is_in_process() ? "" : model; }
};

// Of a target in this process; the signal cancels the load. `shutdown` outlives the options.
OpenEngineOptions EngineOptionsOf(const ModelTarget& target, const ShutdownSignal& shutdown);

// Errors of OpenEngine, OpenSecurity and WorkerModel::Open; NOT_FOUND for a path that does not exist, with
// the hint that a served name needs --router; CANCELLED when the context's signal comes while the model
// loads.
// A model in this process whose device: auto found a library of devices, or the name of one, and still took
// the CPUs says why in one line on the context's err.
StatusOr<std::unique_ptr<Answerer>> OpenTarget(const ModelTarget& target, const CommandContext& context);

}  // namespace terrace
