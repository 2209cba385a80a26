// Measures what steps of an engine in this process take: a few sequences at a time, of chosen lengths, and
// each step looked at. Some seconds for a small model. Used by one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "text/tokenizer.h"
#include "tools/plan/step_cost.h"
#include "tools/report/technique_row.h"
#include "worker/engine/open_engine.h"
#include "worker/formats/model_files.h"

namespace terrace {

// Sequences that begin together.
struct ProbeRound {
  uint32_t sequences = 1, prompt_tokens = 16, answer_tokens = 24;
};

// Enough to see each number of tokens up to what a step may have, and short and long contexts.
std::vector<ProbeRound> ProbeRounds(uint32_t max_sequences, uint32_t max_step_tokens,
                                    uint32_t context_length);

// Of the steps of a round, in their order. Only steps whose work is known: those that decode every sequence
// and nothing else, and of a single sequence those that read its prompt.
std::vector<StepSample> SamplesOf(const ProbeRound& round, std::span<const StepObservation> steps);

struct ProbedEngine {
  TechniqueRow engine = {};  // its runtime, digests and memory (DescribeEngine)
  StepCost cost;
  uint32_t context_length = 0, max_step_tokens = 0;
};

// `engine` is opened without a prefix cache and without a drafter. `repeats`, at least 1: how often each
// round is run. `vocabulary` gives the ids that prompts are made of. FAILED_PRECONDITION for an empty
// vocabulary; errors of OpenEngine and of the sequences; CANCELLED.
StatusOr<ProbedEngine> ProbeSteps(
    OpenEngineOptions engine, uint32_t repeats,
    const std::function<std::vector<TokenId>(const ModelFiles& files)>& vocabulary);

}  // namespace terrace
