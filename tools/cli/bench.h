// `terrace bench`: measures a router, a worker or a model in this process under load.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "tools/bench/bench_settings.h"
#include "tools/cli/command_context.h"
#include "tools/cli/kept_channel.h"

namespace terrace {

struct BenchOptions {
  std::string router, worker;  // host:port; at most one of them
  ServerAccess access;         // of either
  std::string model;  // with `router`: a served name; alone: the path of a model to run in this process
  uint32_t threads = 0, max_sequences = 0;                           // of a model in this process: see
  std::string device = "auto", compute = "auto", kv_dtype = "auto";  // OpenEngineOptions
  std::string drafter = "none", draft_model = "";                    // and SpeculationOptions
  BenchSettings settings;
  std::string json;  // a file, "-" for stdout; "": none
};

// Prints what was measured, then fails with CANCELLED when a signal came, and with UNAVAILABLE when no
// request was answered.
Status RunBench(const BenchOptions& options, const CommandContext& context);

}  // namespace terrace
