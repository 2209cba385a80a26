#include "tools/cli/ask_rows.h"

#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "tools/cli/mailbox.h"

namespace terrace {
namespace {

constexpr double kWaitSeconds = 0.05;  // how late a Ctrl-C may be noticed

struct RowPiece {
  size_t row = 0;  // index
  AnswerPiece piece;
};

v1::GenerateRequest RequestFor(const TaskRow& row, const AskRowsOptions& options) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  *request.mutable_chat() = row.chat;
  request.set_max_tokens(options.max_tokens);
  request.mutable_sampling()->set_temperature(0);
  request.set_logprobs(options.top_logprobs > 0);
  request.set_top_logprobs(options.top_logprobs);
  return request;
}

}  // namespace

Status AskRows(Answerer& answerer, const std::vector<TaskRow>& rows, const AskRowsOptions& options,
               ShutdownSignal& shutdown, const OnRowAnswer& on_answer) {
  const auto mailbox = std::make_shared<Mailbox<RowPiece>>();
  std::map<size_t, std::unique_ptr<AnswerCall>> calls;  // in flight, by row
  std::map<size_t, Answer> answers;                     // of those
  const auto give_up = [&](const Status& status) {
    for (const auto& [row, call] : calls) call->Cancel();
    return status;
  };
  size_t started = 0, done = 0;
  while (done < rows.size()) {
    while (started < rows.size() && calls.size() < options.concurrency) {
      const size_t row = started++;
      calls[row] = answerer.Start(RequestFor(rows[row], options), [mailbox, row](AnswerPiece piece) {
        mailbox->Push({.row = row, .piece = std::move(piece)});
      });
    }
    const std::optional<RowPiece> event = mailbox->Pop(kWaitSeconds);
    if (shutdown.WaitFor(0) != 0) return give_up(Cancelled("interrupted"));
    if (!event.has_value()) continue;
    const std::string& name = rows[event->row].id;
    if (!event->piece.ok()) return give_up(Annotate(event->piece.status(), name));
    Answer& answer = answers[event->row];
    answer.Add(*event->piece);
    if (!event->piece->has_finished()) continue;
    if (const Status status = on_answer(event->row, answer); !status.ok())
      return give_up(Annotate(status, name));
    answers.erase(event->row);
    calls.erase(event->row);
    ++done;
  }
  return {};
}

}  // namespace terrace
