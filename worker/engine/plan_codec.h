// A StepPlan as words that a group's leader sends to its other ranks: what the model needs of it, nothing of
// what only sampling looks at. Of a sequence that was in the step before too, only the blocks are sent that
// its table did not have then: reader and writer both keep the tables of the last step. One thread each.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "base/status.h"
#include "worker/engine/executor.h"
#include "worker/kv/block_table.h"

namespace terrace {

// Of one step, by sequence and whether it is its branch.
using PlanTables = std::map<std::pair<uint64_t, bool>, BlockTable>;

class PlanWriter {
 public:
  // Valid until the next call.
  std::span<const int32_t> Write(const StepPlan& plan);

 private:
  void WritePart(const PlannedSequence& part, BlockTable& table);
  void Put(uint64_t value) { words_.push_back(static_cast<int32_t>(static_cast<uint32_t>(value))); }

  std::vector<int32_t> words_;
  PlanTables tables_;
};

// What the numbers of a plan have to keep to, or the model would touch memory that is not its own.
struct PlanLimits {
  uint32_t blocks = 0, host_blocks = 0, block_tokens = 0;
  uint32_t context_length = 0, vocab_size = 0;
};

class PlanReader {
 public:
  explicit PlanReader(const PlanLimits& limits) : limits_(limits) {}

  // The plan of Write's words, given in the same order: with the same transfers, and for each sequence its
  // id, is_branch, tokens, first_position, blocks and WantedLogits. Borrows `words` and the reader's memory
  // until the next call. DATA_LOSS for words that are no plan, or none within the limits; then the reader is
  // of no more use.
  StatusOr<StepPlan> Read(std::span<const int32_t> words);

 private:
  const PlanLimits limits_;
  PlanTables tables_;
};

}  // namespace terrace
