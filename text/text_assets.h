// What turns a conversation into tokens for one model: tokenizer, chat template and the two strings a
// template may ask for. Workers read it from the model's files and hand it to routers (Worker.FetchText), so
// a router needs no model files and agrees with its workers on every token. Immutable; shared by any number
// of threads.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "base/status.h"
#include "text/chat_template.h"
#include "text/token_cache.h"
#include "text/tokenizer.h"

namespace terrace {

struct TextAssets {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplate> chat_template;  // null: the model answers completions only
  std::string bos_text, eos_text;                     // the template's bos_token and eos_token
  // Of what is encoded here; null: all is encoded anew. No part of the digest.
  std::shared_ptr<TokenCache> token_cache = {};

  // FAILED_PRECONDITION, reason template_missing, without a template; errors of ChatTemplate::Render. Who has
  // the same `scope` shares the token cache.
  StatusOr<std::vector<TokenId>> EncodeChat(const std::vector<ChatMessage>& messages,
                                            bool add_generation_prompt = true,
                                            const std::vector<Tool>& tools = {},
                                            std::string_view scope = {}) const;
  // How this model writes calls of tools; kNone: it takes no tools.
  ToolCallFormat tool_call_format() const {
    return chat_template == nullptr ? ToolCallFormat::kNone : chat_template->tool_call_format();
  }
  // A plain completion prompt: bos in front where the model wants one; control tokens are not recognised.
  std::vector<TokenId> EncodePrompt(std::string_view prompt, std::string_view scope = {}) const;
};

// Canonical bytes and their hash: replicas of one tier must have the same digest.
std::string Serialize(const TextAssets& assets);
StatusOr<TextAssets> ParseTextAssets(std::string_view serialized);
Hash128 Digest(const TextAssets& assets);
// Of the tokenizer alone: where it is the same, a token means the same.
Hash128 TokenizerDigest(const TextAssets& assets);

// From a Hugging Face style folder: tokenizer.json, tokenizer_config.json, generation_config.json.
StatusOr<TextAssets> LoadTextAssets(const std::string& directory);

}  // namespace terrace
