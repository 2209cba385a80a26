// Asks every tier every row of the task files, and keeps of each answer what a calibration is made from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"
#include "router/tier/records.h"
#include "tools/cli/answerer.h"
#include "tools/cli/command_context.h"
#include "tools/cli/model_target.h"
#include "tools/cli/task_file.h"

namespace terrace {

struct AskTiersOptions {
  // Cheapest first: names that a router serves, or NAME=MODEL for a model folder or .gguf that is run in this
  // process under that name.
  std::vector<std::string> tiers = {};
  ModelTarget target = {};  // but for the model: where tiers are served, and how models are run
  std::string router_ops = "127.0.0.1:9090";  // tells which models the served tiers have
  uint32_t concurrency = 16;
  uint32_t max_tokens = 128;
  // A file where every answer is kept as it comes, and that a second run goes on with; "": none.
  std::string journal = {};
};

// Greedy answers, one tier after the other; rows without a checker are left out. The first request that fails
// ends it with that error, which names tier and row; CANCELLED on a signal; errors of RecordJournal.
StatusOr<Records> AskTiers(const std::vector<TaskRow>& rows, const AskTiersOptions& options,
                           const CommandContext& context);

// Of an answer whose tokens have at least two alternatives each; FAILED_PRECONDITION for others. Entropies
// are a little low: what lies beyond the alternatives counts as if all of it were as likely as the last of
// them.
StatusOr<AnswerSignals> SignalsOf(const Answer& answer);

// What a router's /statusz says of a tier's ready replicas: its digests. NOT_FOUND when there is no such
// tier, FAILED_PRECONDITION when none is ready, DATA_LOSS when a member is missing. `parameters` is left out.
StatusOr<RecordedTier> DescribeServedTier(const Json& statusz, const std::string& name);
// The same of the router with that ops address. Also errors of HttpGet.
StatusOr<RecordedTier> AskServedTier(const std::string& router_ops, const std::string& name);

}  // namespace terrace
