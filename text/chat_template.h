// Chat templates: a bounded subset of Jinja (the one Hugging Face's tokenizer_config.json uses), with no
// attribute or import access to anything but the values below. Immutable after Parse; any thread may Render.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "text/tokenizer.h"
#include "text/tool_calls.h"

namespace terrace {

struct ChatMessage {
  std::string role = {};  // validated by the caller: system, user, assistant, tool
  std::string content = {};
  std::vector<ToolCall> tool_calls = {};  // an assistant's; beside them "" means none to a template
  std::string tool_call_id = {};          // of a tool's message: the call that it answers
  std::string name = {};                  // of who speaks; "": none. Few templates show it
};

struct ChatTemplateInput {
  std::vector<ChatMessage> messages;
  bool add_generation_prompt = true;
  std::string bos_token = {}, eos_token = {};
  std::vector<Tool> tools = {};  // their JSON is not deeper than 64
};

class ChatTemplate {
 public:
  // DATA_LOSS, reason bad_template, with line and column, for syntax outside the subset.
  static StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source);
  ~ChatTemplate();

  // The prompt; its `control` ranges are the bytes that came from the template, the roles and bos/eos, never
  // from message contents. Limits: 1e6 steps, 8 MiB of output, depth 64. INVALID_ARGUMENT, reason
  // template_error, when a limit is passed, a value is misused or the template calls raise_exception.
  StatusOr<MarkedText> Render(const ChatTemplateInput& input) const;

  const std::string& source() const;
  // How an answer to tools is written. kNone: the template has no tools, or a format that is not known.
  ToolCallFormat tool_call_format() const;

 private:
  struct Program;
  explicit ChatTemplate(std::unique_ptr<Program> program);
  std::unique_ptr<Program> program_;
};

// `chat_template` of `directory`/tokenizer_config.json (or the file chat_template.jinja there). NOT_FOUND
// when the model has none.
StatusOr<std::unique_ptr<ChatTemplate>> LoadChatTemplate(const std::string& directory);

}  // namespace terrace
