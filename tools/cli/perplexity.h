// `terrace evaluate --perplexity`: how likely a model finds texts, on CPUs, with nothing to compare it with.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/evaluate.h"
#include "tools/quality/perplexity.h"

namespace terrace {

struct TextPerplexity {
  std::string file;
  size_t texts = 0;
  Surprise all = {}, answers = {};  // `answers`: of those of chats, among `all`
};

struct PerplexityReport {
  TextWindows windows = {};
  std::vector<TextPerplexity> files = {};  // in their order
};

// A file that ends in .jsonl has a TextRow (tools/optimize/text_row.h) a line, each a text of its own, of
// which options.limit, where it is above 0, are taken; every other file is one text. INVALID_ARGUMENT for a
// model that is not in this process or not on CPUs and for windows that do not fit, DATA_LOSS "file:line:
// ..." for a row that is not so and for a file without text; NOT_FOUND; CANCELLED on a signal.
StatusOr<PerplexityReport> MeasurePerplexity(const EvaluateOptions& options, const CommandContext& context);

// Shows it.
Status RunPerplexity(const EvaluateOptions& options, const CommandContext& context);

}  // namespace terrace
