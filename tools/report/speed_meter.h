// How fast a model reads and writes in this process, and the memory it takes: an engine of its own, asked in
// rounds of so many sequences at once. Used by one thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "text/tokenizer.h"
#include "tools/report/technique_row.h"
#include "worker/engine/open_engine.h"

namespace terrace {

struct SpeedOptions {
  OpenEngineOptions engine = {};  // but for what follows from the other fields: no prefix is cached
  std::vector<std::vector<TokenId>> prompts = {};  // taken in turn, round after round
  std::vector<uint32_t> batches = {1, 16};
  uint32_t answer_tokens = 64;  // of each sequence: the model's end tokens do not end it
  // Of each batch, after one round that does not count: at least so many, for at least so long.
  uint32_t least_rounds = 3;
  double least_seconds = 1;
};

inline constexpr uint32_t kMaxSpeedBatch = 256, kMinSpeedTokens = 2;

// What an engine is and the memory it takes, its drafter's too: the row's runtime, digests and bytes.
// `draft_model` is the drafter's path, as it was named.
StatusOr<TechniqueRow> DescribeEngine(const OpenedEngine& engine, const std::string& model,
                                      const std::string& draft_model);

// Medians of the rounds; digests, runtime and memory as the engine has them, the drafter's memory too. What
// depends on answers is left out.
//
// INVALID_ARGUMENT for a batch out of [1, kMaxSpeedBatch] or answers under kMinSpeedTokens; for no prompt, or
// one that leaves no room for the answer in the model's context; FAILED_PRECONDITION when the answers end
// before the last prompt of a batch is read; errors of OpenEngine and of the sequences; CANCELLED.
StatusOr<TechniqueRow> MeasureSpeed(const SpeedOptions& options);

// Of each batch the medians of several measurements, one or more, of the same batches in the same order.
std::vector<BatchSpeed> MedianSpeeds(std::span<const std::vector<BatchSpeed>> measured);

}  // namespace terrace
