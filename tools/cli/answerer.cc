#include "tools/cli/answerer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "tools/cli/mailbox.h"

namespace terrace {
namespace {
constexpr double kWaitSeconds = 0.05;  // how late a Ctrl-C may be noticed
}

uint32_t ChoicesOf(const v1::GenerateRequest& request) { return std::max(request.n(), 1u); }

void AddUsage(const v1::Usage& from, v1::Usage& to) {
  to.set_prompt_tokens(to.prompt_tokens() + from.prompt_tokens());
  to.set_cached_tokens(to.cached_tokens() + from.cached_tokens());
  to.set_completion_tokens(to.completion_tokens() + from.completion_tokens());
  to.set_speculated_tokens(to.speculated_tokens() + from.speculated_tokens());
  to.set_accepted_speculated_tokens(to.accepted_speculated_tokens() + from.accepted_speculated_tokens());
}

std::vector<ChatMessage> MessagesOf(const v1::ChatMessages& chat) {
  std::vector<ChatMessage> messages;
  for (const v1::ChatMessage& message : chat.messages())
    messages.push_back({.role = message.role(), .content = message.content()});
  return messages;
}

void Answer::Add(const v1::GenerateResponse& piece) {
  text += piece.text();
  tokens.insert(tokens.end(), piece.tokens().begin(), piece.tokens().end());
  prompt_tokens.insert(prompt_tokens.end(), piece.prompt_tokens().begin(), piece.prompt_tokens().end());
  if (piece.has_finished()) finished = piece.finished();
}

StatusOr<std::vector<Answer>> AskSeveral(Answerer& answerer, const v1::GenerateRequest& request,
                                         ShutdownSignal& shutdown, const AskOptions& options) {
  const auto mailbox = std::make_shared<Mailbox<AnswerPiece>>();
  const std::unique_ptr<AnswerCall> call =
      answerer.Start(request, [mailbox](AnswerPiece piece) { mailbox->Push(std::move(piece)); });
  std::vector<Answer> answers(ChoicesOf(request));
  size_t finished = 0;
  while (true) {
    const std::optional<AnswerPiece> piece = mailbox->Pop(kWaitSeconds);
    if (shutdown.WaitFor(0) != 0) {
      call->Cancel();
      return Cancelled("interrupted");
    }
    if (options.on_wait) options.on_wait();
    if (!piece.has_value()) continue;
    if (!piece->ok()) {
      call->Cancel();  // its other answers
      return piece->status();
    }
    const uint32_t choice = (*piece)->choice();
    if (choice >= answers.size()) return Internal("answer ", choice, " of ", answers.size(), " came");
    answers[choice].Add(**piece);
    if (options.on_piece) options.on_piece(**piece);
    if ((*piece)->has_finished() && ++finished == answers.size()) return answers;
  }
}

StatusOr<Answer> Ask(Answerer& answerer, const v1::GenerateRequest& request, ShutdownSignal& shutdown,
                     const AskOptions& options) {
  ASSIGN_OR_RETURN(std::vector<Answer> answers, AskSeveral(answerer, request, shutdown, options));
  return std::move(answers.front());
}

}  // namespace terrace
