#include "tools/cli/generate.h"

#include <iostream>
#include <iterator>
#include <span>
#include <vector>

#include "base/json.h"
#include "base/mapped_file.h"
#include "tools/cli/task_file.h"

namespace terrace {
namespace {

StatusOr<v1::ChatMessages> ReadMessages(const std::string& file) {
  std::string text;
  if (file == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
  } else {
    ASSIGN_OR_RETURN(text, ReadFile(file));
  }
  StatusOr<v1::ChatMessages> messages = ParseMessages(text);
  if (!messages.ok()) return DataLoss(file == "-" ? "stdin" : file, ": ", Message(messages.status()));
  return messages;
}

StatusOr<v1::GenerateRequest> MakeRequest(const GenerateOptions& options) {
  v1::GenerateRequest request;
  request.set_model(options.target.served_name());
  if (options.prompt.has_value()) {
    request.set_prompt(*options.prompt);
  } else if (!options.messages_file.empty()) {
    ASSIGN_OR_RETURN(*request.mutable_chat(), ReadMessages(options.messages_file));
  } else {
    request.mutable_prompt_tokens()->mutable_ids()->Assign(options.prompt_tokens.begin(),
                                                           options.prompt_tokens.end());
  }
  options.request.ApplyTo(request);
  request.set_logprobs(options.json || options.logprobs.has_value());
  request.set_top_logprobs(options.logprobs.value_or(0));
  request.set_prompt_logprobs(options.prompt_logprobs);
  request.set_echo(options.echo);
  request.set_n(options.answers);
  request.set_best_of(options.best_of);
  return request;
}

void ShowTokens(std::span<const v1::OutputToken> tokens, const char* label, std::ostream& out) {
  for (const v1::OutputToken& token : tokens) {
    out << label << token.id() << "\t" << token.logprob();
    for (const v1::TokenLogprob& top : token.top()) out << "\t" << top.token() << ":" << top.logprob();
    out << "\n";
  }
}

// The first token of a prompt has no log-probability.
void ShowPrompt(std::span<const v1::OutputToken> tokens, std::ostream& out) {
  if (tokens.empty()) return;
  out << "prompt\t" << tokens.front().id() << "\t-\n";
  ShowTokens(tokens.subspan(1), "prompt\t", out);
}

// One answer is shown as it comes.
StatusOr<std::vector<Answer>> Stream(Answerer& answerer, const v1::GenerateRequest& request,
                                     const CommandContext& context) {
  bool is_line_open = false;  // the cursor is behind text
  AskOptions ask;
  ask.on_piece = [&](const v1::GenerateResponse& piece) {
    context.out << piece.text() << std::flush;
    if (!piece.text().empty()) is_line_open = !piece.text().ends_with('\n');
  };
  auto answers = AskSeveral(answerer, request, context.shutdown, ask);
  // An answer without any text still gets its line, an error before any does not.
  if (is_line_open || (answers.ok() && answers->front().text.empty())) context.out << "\n" << std::flush;
  return answers;
}

}  // namespace

Status RunGenerate(const GenerateOptions& options, const CommandContext& context) {
  ASSIGN_OR_RETURN(const v1::GenerateRequest request, MakeRequest(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<Answerer> answerer, OpenTarget(options.target, context));
  const bool is_streamed = !options.json && options.answers == 1;
  ASSIGN_OR_RETURN(const std::vector<Answer> answers, is_streamed
                                                          ? Stream(*answerer, request, context)
                                                          : AskSeveral(*answerer, request, context.shutdown));
  if (options.json) {
    context.out << AnswersToJson(answers).dump() << "\n";
    return Status();
  }
  if (options.prompt_logprobs) ShowPrompt(answers.front().prompt_tokens, context.out);
  for (size_t i = 0; i < answers.size(); ++i) {
    if (!is_streamed) {
      const std::string& text = answers[i].text;
      context.out << context.Bold(Concat("answer ", i + 1, " of ", answers.size())) << "\n"
                  << text << (text.ends_with('\n') ? "" : "\n");
    }
    if (options.logprobs.has_value()) ShowTokens(answers[i].tokens, "", context.out);
  }
  if (context.is_err_terminal) context.err << context.Dim(DescribeFinished(TotalOf(answers))) << "\n";
  return Status();
}

}  // namespace terrace
