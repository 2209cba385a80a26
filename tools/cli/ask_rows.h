// Asks an Answerer the rows of task files, several at a time. Used by one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/shutdown.h"
#include "base/status.h"
#include "tools/cli/answerer.h"
#include "tools/cli/task_file.h"

namespace terrace {

struct AskRowsOptions {
  std::string model = {};  // as the requests name it
  uint32_t concurrency = 16;
  uint32_t max_tokens = 128;
  uint32_t top_logprobs = 0;  // alternatives of each token; 0: no log-probabilities
};

// Greedy answers: `on_answer` is called once a row, in any order, and its error ends it. So does the first
// request that fails, with that error, which names the row; CANCELLED on a signal.
using OnRowAnswer = std::function<Status(size_t row, const Answer& answer)>;
Status AskRows(Answerer& answerer, const std::vector<TaskRow>& rows, const AskRowsOptions& options,
               ShutdownSignal& shutdown, const OnRowAnswer& on_answer);

}  // namespace terrace
