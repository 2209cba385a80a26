// `terrace status`: the router's tiers and replicas as it sees them now.
#pragma once

#include <string>

#include "base/json_fwd.h"
#include "base/status.h"
#include "tools/cli/command_context.h"

namespace terrace {

struct StatusOptions {
  std::string router_ops = "127.0.0.1:9090";
  enum class Refresh { kOnTerminal, kAlways, kNever } refresh = Refresh::kOnTerminal;
  bool json = false;
};

Status RunStatus(const StatusOptions& options, const CommandContext& context);

// The router's /statusz as a table. DATA_LOSS when a field is missing or of the wrong type.
StatusOr<std::string> FormatStatus(const Json& statusz, const CommandContext& context);

}  // namespace terrace
