#include "text/chat_template.h"

#include <utility>

#include "text/jinja/evaluator.h"
#include "text/jinja/parser.h"
#include "text/tokenizer_config.h"

namespace terrace {

struct ChatTemplate::Program {
  std::string source;
  TemplateProgram program;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Program> program) : program_(std::move(program)) {}
ChatTemplate::~ChatTemplate() = default;

const std::string& ChatTemplate::source() const { return program_->source; }

StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source) {
  ASSIGN_OR_RETURN(TemplateProgram program, ParseTemplate(source));
  auto whole = std::make_unique<Program>(Program{std::string(source), std::move(program)});
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(whole)));
}

StatusOr<MarkedText> ChatTemplate::Render(const ChatTemplateInput& input) const {
  ValueList messages;
  for (const ChatMessage& message : input.messages) {
    ASSIGN_OR_RETURN(
        Value entry,
        MakeDict({{MakeText("role"), MakeText(message.role)},
                  {MakeText("content"), MakeText(MarkedString(message.content, /*trusted=*/false))}}));
    messages.push_back(std::move(entry));
  }
  ASSIGN_OR_RETURN(const Value message_list, MakeList(std::move(messages)));
  ASSIGN_OR_RETURN(
      const MarkedString output,
      RenderTemplate(program_->program, {{"messages", message_list},
                                         {"add_generation_prompt", Value{input.add_generation_prompt}},
                                         {"bos_token", MakeText(input.bos_token)},
                                         {"eos_token", MakeText(input.eos_token)},
                                         {"tools", Value{NoneValue()}},
                                         {"documents", Value{NoneValue()}}}));
  MarkedText text{.text = output.bytes(), .control = {}};
  for (const auto& [begin, end] : output.TrustedRanges()) text.control.push_back({begin, end});
  return text;
}

StatusOr<std::unique_ptr<ChatTemplate>> LoadChatTemplate(const std::string& directory) {
  ASSIGN_OR_RETURN(const TokenizerConfig config, ReadTokenizerConfig(directory));
  if (!config.chat_template) return NotFound(directory, ": no chat template");
  auto chat_template = ChatTemplate::Parse(*config.chat_template);
  if (!chat_template.ok()) return Annotate(chat_template.status(), directory + "/tokenizer_config.json");
  return chat_template;
}

}  // namespace terrace
