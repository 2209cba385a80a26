// `terrace generate`: one answer, or several, from a router or from a model in this process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/model_target.h"
#include "tools/cli/request_options.h"

namespace terrace {

struct GenerateOptions {
  ModelTarget target;
  std::optional<std::string> prompt;  // exactly one of these three
  std::string messages_file;          // "-": stdin
  std::vector<int32_t> prompt_tokens;
  RequestOptions request;
  std::optional<uint32_t> logprobs;  // of each token, with this many alternatives
  bool prompt_logprobs = false;      // of the prompt's tokens, with as many
  bool echo = false;
  uint32_t answers = 1;
  uint32_t best_of = 0;  // 0: no more are drawn than shown
  bool json = false;
};

Status RunGenerate(const GenerateOptions& options, const CommandContext& context);

}  // namespace terrace
