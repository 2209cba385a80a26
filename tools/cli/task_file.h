// Task files (docs/how-to/evaluate.md): one JSON object a line, a chat and what a right answer to it is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/status.h"
#include "proto/terrace/v1/inference.pb.h"
#include "tools/cli/checkers.h"

namespace terrace {

struct TaskRow : Expectation {
  std::string id;
  std::string task;
  int64_t difficulty = 0;  // 1 easy to 5 hard; 0: not said
  v1::ChatMessages chat;
};

// Errors of ReadFile; DATA_LOSS "file:line: ..." for a row that is not as above.
StatusOr<std::vector<TaskRow>> LoadTaskFile(const std::string& path);

// Those that have a checker, in their order.
std::vector<TaskRow> ScoredRows(const std::vector<TaskRow>& rows);

// Of all that decides which answers are right: rows of the same digest can be compared.
Hash128 TaskSetDigest(const std::vector<TaskRow>& rows);

// A JSON list of {"role", "content"}, not empty. INVALID_ARGUMENT says which element is wrong.
StatusOr<v1::ChatMessages> ParseMessages(std::string_view json);

}  // namespace terrace
