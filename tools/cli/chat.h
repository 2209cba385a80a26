// `terrace chat`: a conversation with a served model, line by line.
#pragma once

#include <string>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/request_options.h"
#include "tools/cli/router_client.h"

namespace terrace {

struct ChatOptions {
  std::string router = kDefaultRouter;
  ServerAccess access;
  std::string model;   // "": the router's default
  std::string system;  // "": none
  RequestOptions request;
};

// Reads stdin: a line is a message, "/reset" forgets the conversation, "/exit" or the end of input ends it.
// Ctrl-C ends the answer in progress; at the prompt, the program.
Status RunChat(const ChatOptions& options, const CommandContext& context);

}  // namespace terrace
