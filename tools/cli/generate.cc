#include "tools/cli/generate.h"

#include <iostream>
#include <iterator>

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
  return request;
}

}  // namespace

Status RunGenerate(const GenerateOptions& options, const CommandContext& context) {
  ASSIGN_OR_RETURN(const v1::GenerateRequest request, MakeRequest(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<Answerer> answerer, OpenTarget(options.target));
  AskOptions ask;
  bool is_line_open = true;  // the cursor is behind text; an answer without any still gets its line
  if (!options.json) {
    ask.on_piece = [&](const v1::GenerateResponse& piece) {
      context.out << piece.text() << std::flush;
      if (!piece.text().empty()) is_line_open = !piece.text().ends_with('\n');
    };
  }
  const StatusOr<Answer> answer = Ask(*answerer, request, context.shutdown, ask);
  if (options.json) {
    RETURN_IF_ERROR(answer.status());
    context.out << AnswerToJson(*answer).dump() << "\n";
    return Status();
  }
  if (is_line_open) context.out << "\n" << std::flush;
  RETURN_IF_ERROR(answer.status());
  if (options.logprobs.has_value()) {
    for (const v1::OutputToken& token : answer->tokens) {
      context.out << token.id() << "\t" << token.logprob();
      for (const v1::TokenLogprob& top : token.top())
        context.out << "\t" << top.token() << ":" << top.logprob();
      context.out << "\n";
    }
  }
  if (context.is_err_terminal) context.err << context.Dim(DescribeFinished(answer->finished)) << "\n";
  return Status();
}

}  // namespace terrace
