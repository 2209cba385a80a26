#include "router/api/openai_tokenize.h"

#include <utility>

#include "router/api/openai_fields.h"
#include "router/api/openai_format.h"
#include "router/api/openai_messages.h"

namespace terrace {
namespace {

constexpr const char* kUnsupportedFields[] = {"continue_final_message", "chat_template",
                                              "chat_template_kwargs", "mm_processor_kwargs"};

}  // namespace

StatusOr<TokenizeFields> ParseTokenize(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseBody(body));
  const Fields request(json);
  TokenizeFields out{.fields = {.api = ApiKind::kTokenize}};
  const bool is_chat = request.Find("messages") != nullptr;
  if (is_chat == (request.Find("prompt") != nullptr))
    return request.Error("prompt", "there must be either this or messages");
  RETURN_IF_ERROR(request.RefuseSet(kUnsupportedFields, {}));
  RETURN_IF_ERROR(CheckSpecialTokens(request, is_chat));
  RETURN_IF_ERROR(request.Read("model", out.fields.model));
  RETURN_IF_ERROR(request.Read("return_token_strs", out.return_token_strs));
  if (is_chat) {
    ASSIGN_OR_RETURN(out.fields.input, ParseMessages(request));
    RETURN_IF_ERROR(ParseTools(request, body, out.fields));
    RETURN_IF_ERROR(request.Read("add_generation_prompt", out.fields.add_generation_prompt));
  } else {
    std::string prompt;
    RETURN_IF_ERROR(request.Read("prompt", prompt));
    out.fields.input = std::move(prompt);
  }
  return out;
}

StatusOr<RequestFields> ParseDetokenize(std::string_view body) {
  ASSIGN_OR_RETURN(const Json json, ParseBody(body));
  const Fields request(json);
  RequestFields out{.api = ApiKind::kTokenize};
  RETURN_IF_ERROR(request.Read("model", out.model));
  const Json* tokens = request.Find("tokens");
  if (tokens == nullptr) return request.Error("tokens", "is missing");
  ASSIGN_OR_RETURN(out.input, request.Tokens("tokens", *tokens, "a list of token ids"));
  return out;
}

Json TokenizeJson(const TokenizedInput& input, bool with_strings) {
  Json strings;
  if (with_strings) {
    strings = Json::array();
    for (const std::string& bytes : input.token_bytes) strings.push_back(TokenText(bytes));
  }
  return {{"count", input.tokens.size()},
          {"max_model_len", input.context_length},
          {"tokens", input.tokens},
          {"token_strs", std::move(strings)}};
}

}  // namespace terrace
