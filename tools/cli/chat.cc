#include "tools/cli/chat.h"

#include <unistd.h>

#include <optional>

#include "tools/cli/line_reader.h"

namespace terrace {
namespace {

constexpr char kPrompt[] = "> ";

void AddMessage(v1::ChatMessages& chat, const char* role, const std::string& content) {
  v1::ChatMessage& message = *chat.add_messages();
  message.set_role(role);
  message.set_content(content);
}

v1::ChatMessages NewConversation(const ChatOptions& options) {
  v1::ChatMessages chat;
  if (!options.system.empty()) AddMessage(chat, "system", options.system);
  return chat;
}

// Asks with the conversation so far, streams the answer and adds it. An answer that was stopped stays in the
// conversation as far as it came.
Status Reply(Answerer& answerer, const ChatOptions& options, const CommandContext& context,
             v1::ChatMessages& chat) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  *request.mutable_chat() = chat;
  options.request.ApplyTo(request);
  std::string shown;
  AskOptions ask;
  ask.on_piece = [&](const v1::GenerateResponse& piece) {
    shown += piece.text();
    context.out << piece.text() << std::flush;
  };
  const StatusOr<Answer> answer = Ask(answerer, request, context.shutdown, ask);
  if (!shown.empty()) context.out << "\n" << std::flush;
  const bool is_stopped = answer.status().code() == StatusCode::kCancelled;
  if (!answer.ok() && !is_stopped) return answer.status();
  AddMessage(chat, "assistant", shown);
  context.out << context.Dim(is_stopped ? "(stopped)" : DescribeFinished(answer->finished)) << "\n"
              << std::flush;
  return Status();
}

}  // namespace

Status RunChat(const ChatOptions& options, const CommandContext& context) {
  const bool is_interactive = context.is_out_terminal && isatty(STDIN_FILENO) != 0;
  ASSIGN_OR_RETURN(const ChannelSecurity security, OpenSecurity(options.access));
  RouterClient router(options.router, security);
  RETURN_IF_ERROR(router.ListModels().status());  // an absent router is told before the first question
  if (is_interactive) {
    context.out << context.Dim("/reset starts anew, /exit or Ctrl-D ends, Ctrl-C stops an answer") << "\n";
  }
  v1::ChatMessages chat = NewConversation(options);
  LineReader lines(STDIN_FILENO);
  while (true) {
    if (is_interactive) context.out << context.Bold(kPrompt) << std::flush;
    const std::optional<std::string> line = lines.Next(context.shutdown);
    if (!line.has_value() || *line == "/exit") break;
    if (line->empty()) continue;
    if (*line == "/reset") {
      chat = NewConversation(options);
      continue;
    }
    if (line->starts_with('/')) {
      context.err << "unknown command " << *line << " (/reset, /exit)\n";
      continue;
    }
    AddMessage(chat, "user", *line);
    const Status status = Reply(router, options, context, chat);
    if (status.ok()) continue;
    if (!is_interactive) return status;
    chat.mutable_messages()->RemoveLast();  // the question that had no answer
    const bool is_full = Reason(status) == "context_length_exceeded";
    context.err << context.Red(Message(status)) << (is_full ? " (/reset starts anew)" : "") << "\n";
  }
  if (is_interactive) context.out << "\n";
  return Status();
}

}  // namespace terrace
