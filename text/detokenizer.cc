#include "text/detokenizer.h"

#include "text/unicode.h"

namespace terrace {

std::string Detokenizer::Push(TokenId token) {
  pending_.append(tokenizer_.TokenBytes(token, with_control_));
  std::string out;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Step step = DecodeUtf8(rest);
    if (step.truncated) break;
    out.append(step.valid ? rest.substr(0, step.length) : kReplacementCharacter);
    rest.remove_prefix(step.length);
  }
  pending_ = std::string(rest);
  return out;
}

std::string Detokenizer::Finish() {
  const bool is_cut = !pending_.empty();
  pending_.clear();
  return is_cut ? std::string(kReplacementCharacter) : "";
}

std::string PromptText(const Tokenizer& tokenizer, std::span<const TokenId> tokens) {
  Detokenizer detokenizer(tokenizer, /*with_control=*/true);
  std::string text;
  for (const TokenId token : tokens) text += detokenizer.Push(token);
  text += detokenizer.Finish();
  if (tokenizer.adds_space() && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

}  // namespace terrace
