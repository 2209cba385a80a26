#include "tools/cli/answerer.h"

#include <optional>

#include "tools/cli/mailbox.h"

namespace terrace {
namespace {
constexpr double kWaitSeconds = 0.05;  // how late a Ctrl-C may be noticed
}

void Answer::Add(const v1::GenerateResponse& piece) {
  text += piece.text();
  tokens.insert(tokens.end(), piece.tokens().begin(), piece.tokens().end());
  if (piece.has_finished()) finished = piece.finished();
}

StatusOr<Answer> Ask(Answerer& answerer, const v1::GenerateRequest& request, ShutdownSignal& shutdown,
                     const AskOptions& options) {
  const auto mailbox = std::make_shared<Mailbox<AnswerPiece>>();
  const std::unique_ptr<AnswerCall> call =
      answerer.Start(request, [mailbox](AnswerPiece piece) { mailbox->Push(std::move(piece)); });
  Answer answer;
  while (true) {
    const std::optional<AnswerPiece> piece = mailbox->Pop(kWaitSeconds);
    if (shutdown.WaitFor(0) != 0) {
      call->Cancel();
      return Cancelled("interrupted");
    }
    if (options.on_wait) options.on_wait();
    if (!piece.has_value()) continue;
    RETURN_IF_ERROR(piece->status());
    answer.Add(**piece);
    if (options.on_piece) options.on_piece(**piece);
    if ((*piece)->has_finished()) return answer;
  }
}

}  // namespace terrace
