#include "text/text_assets.h"

#include "text/json_fields.h"
#include "text/tokenizer_config.h"

namespace terrace {
namespace {

constexpr std::string_view kFormat = "terrace-text-1";

TokenCacheScope ScopeOf(TokenCache& cache, std::string_view scope) { return {cache, HashBytes(scope)}; }

}  // namespace

StatusOr<std::vector<TokenId>> TextAssets::EncodeChat(const std::vector<ChatMessage>& messages,
                                                      bool add_generation_prompt,
                                                      const std::vector<Tool>& tools,
                                                      std::string_view scope) const {
  if (chat_template == nullptr) {
    return WithReason(FailedPrecondition("the model has no chat template"), "template_missing");
  }
  ASSIGN_OR_RETURN(const MarkedText prompt,
                   chat_template->Render({.messages = messages,
                                          .add_generation_prompt = add_generation_prompt,
                                          .bos_token = bos_text,
                                          .eos_token = eos_text,
                                          .tools = tools}));
  if (token_cache == nullptr) return tokenizer->Encode(prompt);
  return tokenizer->EncodeCached(prompt.text, prompt.control, ScopeOf(*token_cache, scope));
}

std::vector<TokenId> TextAssets::EncodePrompt(std::string_view prompt, std::string_view scope) const {
  std::vector<TokenId> tokens = token_cache == nullptr
                                    ? tokenizer->Encode(prompt)
                                    : tokenizer->EncodeCached(prompt, {}, ScopeOf(*token_cache, scope));
  const SpecialTokens& special = tokenizer->special();
  if (special.add_bos) tokens.insert(tokens.begin(), special.bos);
  return tokens;
}

// One line of JSON with sorted keys, then the tokenizer's own bytes.
std::string Serialize(const TextAssets& assets) {
  const bool has_template = assets.chat_template != nullptr;
  const Json head = {{"format", kFormat},
                     {"bos_text", assets.bos_text},
                     {"eos_text", assets.eos_text},
                     {"chat_template", has_template ? Json(assets.chat_template->source()) : Json(nullptr)}};
  return Concat(ToJsonText(head), "\n", assets.tokenizer->Serialize());
}

StatusOr<TextAssets> ParseTextAssets(std::string_view serialized) {
  const size_t line_end = serialized.find('\n');
  if (line_end == std::string_view::npos) {
    return WithReason(DataLoss("text assets: no end of the first line"), "truncated");
  }
  const auto head = ParseJsonData(serialized.substr(0, line_end));
  if (!head.ok()) return Annotate(head.status(), "text assets");
  const JsonReader root(*head, "");
  ASSIGN_OR_RETURN(const std::string format, root.Text("format"));
  if (format != kFormat) {
    return WithReason(DataLoss("text assets: format is not \"", kFormat, "\""), "unsupported_tokenizer");
  }
  TextAssets assets;
  ASSIGN_OR_RETURN(assets.bos_text, root.Text("bos_text"));
  ASSIGN_OR_RETURN(assets.eos_text, root.Text("eos_text"));
  if (root.Has("chat_template")) {
    ASSIGN_OR_RETURN(const std::string source, root.Text("chat_template"));
    ASSIGN_OR_RETURN(assets.chat_template, ChatTemplate::Parse(source));
  }
  ASSIGN_OR_RETURN(assets.tokenizer, ParseTokenizer(serialized.substr(line_end + 1)));
  return assets;
}

Hash128 Digest(const TextAssets& assets) { return HashBytes(Serialize(assets)); }

Hash128 TokenizerDigest(const TextAssets& assets) { return HashBytes(assets.tokenizer->Serialize()); }

StatusOr<TextAssets> LoadTextAssets(const std::string& directory) {
  TextAssets assets;
  ASSIGN_OR_RETURN(assets.tokenizer, LoadTokenizerJson(directory));
  ASSIGN_OR_RETURN(const TokenizerConfig config, ReadTokenizerConfig(directory));
  assets.bos_text = config.bos_token.value_or("");
  assets.eos_text = config.eos_token.value_or("");
  auto chat_template = LoadChatTemplate(directory);
  if (chat_template.ok()) {
    assets.chat_template = *std::move(chat_template);
  } else if (chat_template.status().code() != StatusCode::kNotFound) {
    return chat_template.status();
  }
  return assets;
}

}  // namespace terrace
