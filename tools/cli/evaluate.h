// `terrace evaluate`: the task files against a tier, a policy or a bare model, alone or row by row against
// another one; or the perplexity of texts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/model_target.h"
#include "tools/quality/paired.h"

namespace terrace {

struct EvaluateOptions {
  ModelTarget target;
  std::string compare;   // a second model of the same kind, shown beside it
  std::string baseline;  // a second model of the same kind, compared row by row
  // Files of AnswerJournal, "": none. What they have is not asked again, what is missing is added; without a
  // `baseline` the second one has to be whole.
  std::string records, baseline_records;
  // Of a router, which tells there what model a tier has: what its recorded answers are tied to.
  std::string router_ops = "127.0.0.1:9090";
  ComparisonOptions comparison;
  bool divergence = true;          // compare distributions too, where both models run in this process
  uint32_t probe = 0;              // prompts of each length and depth (MakeLookupProbe); 0: no probe
  uint32_t probe_tokens = 4096;    // of its longest prompt, at most
  std::vector<std::string> tasks;  // files; empty: the six test files of models/eval
  uint32_t limit = 0;              // rows of each file; 0: all
  uint32_t concurrency = 16;
  uint32_t max_tokens = 128;
  bool json = false;
  // Files of text: how likely the model finds them, instead of all above (perplexity.h). 0: the usual
  // windows.
  std::vector<std::string> perplexity;
  uint32_t window = 0, stride = 0;  // tokens

  bool has_baseline() const { return !baseline.empty() || !baseline_records.empty(); }
};

// A status of an interruption says whether the same command goes on with answers that were kept.
Status ExplainedByRecords(const Status& status, const EvaluateOptions& options);

Status RunEvaluate(const EvaluateOptions& options, const CommandContext& context);

}  // namespace terrace
