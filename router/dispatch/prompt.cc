#include "router/dispatch/prompt.h"

#include <algorithm>
#include <utility>

#include "router/request/param.h"
#include "text/detokenizer.h"

namespace terrace {
namespace {

Status CheckToolSupport(const Request& request, const std::vector<ChatMessage>& chat,
                        const TextAssets& text) {
  if (text.chat_template == nullptr || text.tool_call_format() != ToolCallFormat::kNone) return {};
  const auto has_tools = [](const ChatMessage& message) {
    return message.role == "tool" || !message.tool_calls.empty();
  };
  if (request.tools().empty() && std::ranges::none_of(chat, has_tools)) return {};
  return ParamError("unsupported_parameter", request.tools().empty() ? "messages" : "tools",
                    "the model's chat template has no tools, or calls them in an unknown way");
}

// Of an input that is text.
StatusOr<std::vector<TokenId>> Encode(const Request& request, const TextAssets& text) {
  if (const auto* chat = std::get_if<std::vector<ChatMessage>>(&request.input())) {
    RETURN_IF_ERROR(CheckToolSupport(request, *chat, text));
    auto tokens =
        text.EncodeChat(*chat, request.add_generation_prompt(), request.tools(), request.cache_salt());
    return tokens.ok() ? std::move(tokens) : WithParam(tokens.status(), "messages");
  }
  return text.EncodePrompt(std::get<std::string>(request.input()), request.cache_salt());
}

}  // namespace

Status CheckTokenIds(const Request& request, const TierView& tier) {
  const auto check = [&](std::string_view param, TokenId id) -> Status {
    if (static_cast<uint32_t>(id) < tier.vocab_size) return {};
    return ParamError("invalid_value", param, "no such token: ", id, ", the vocabulary has ",
                      tier.vocab_size);
  };
  for (const auto& [token, bias] : request.sampling().logit_bias) RETURN_IF_ERROR(check("logit_bias", token));
  for (const TokenId token : request.stop_tokens()) RETURN_IF_ERROR(check("stop_tokens", token));
  if (const auto* tokens = std::get_if<std::vector<TokenId>>(&request.input())) {
    for (const TokenId token : *tokens) RETURN_IF_ERROR(check(TokensParam(request.api()), token));
  }
  return {};
}

StatusOr<PromptPtr> EncodeInput(const RequestPtr& request, const TierView& tier) {
  RETURN_IF_ERROR(CheckTokenIds(*request, tier));
  if (const auto* written = std::get_if<std::vector<TokenId>>(&request->input()))
    return PromptPtr(request, written);
  ASSIGN_OR_RETURN(std::vector<TokenId> tokens, Encode(*request, *tier.text));
  if (tokens.empty()) return ParamError("invalid_value", "prompt", "gives no token");
  tokens.shrink_to_fit();  // they are kept as long as the answer takes
  return std::make_shared<const std::vector<TokenId>>(std::move(tokens));
}

std::string EchoText(const Request& request, const std::vector<TokenId>& prompt, const Tokenizer& tokenizer) {
  if (!request.echo()) return "";
  const auto* written = std::get_if<std::string>(&request.input());
  return written != nullptr ? *written : PromptText(tokenizer, prompt);
}

Status CheckContext(const Request& request, size_t prompt_tokens, const TierView& tier) {
  const uint64_t answer = request.is_prompt_only() ? 0 : std::max<uint64_t>(request.max_tokens(), 1);
  if (prompt_tokens + answer <= tier.context_length) return {};
  const char* param =
      std::holds_alternative<std::vector<ChatMessage>>(request.input()) ? "messages" : "prompt";
  const std::string asked = request.max_tokens() == 0
                                ? ""
                                : Concat(" and max_tokens is ", request.max_tokens(), ", together ",
                                         prompt_tokens + request.max_tokens());
  return ParamError("context_length_exceeded", param, "the model's context is ", tier.context_length,
                    " tokens, the prompt has ", prompt_tokens, asked);
}

}  // namespace terrace
