#include "tools/cli/answered_text.h"

namespace terrace {

StatusOr<AnsweredText> EncodeAnswered(const TextAssets& text, const std::vector<ChatMessage>& messages,
                                      const std::optional<std::string>& answer) {
  AnsweredText out;
  ASSIGN_OR_RETURN(out.tokens, text.EncodeChat(messages, /*add_generation_prompt=*/answer.has_value()));
  out.answer_begin = out.tokens.size();
  if (!answer) return out;
  const std::vector<TokenId> answered = text.tokenizer->Encode(*answer);
  out.tokens.insert(out.tokens.end(), answered.begin(), answered.end());
  const std::vector<TokenId>& end = text.tokenizer->special().end;
  if (!end.empty()) out.tokens.push_back(end.front());
  return out;
}

AnsweredText EncodePlain(const TextAssets& text, const std::string& plain) {
  AnsweredText out = {.tokens = text.EncodePrompt(plain)};
  out.answer_begin = out.tokens.size();
  return out;
}

}  // namespace terrace
