#include "tools/optimize/synthetic_text.h"

#include "text/byte_alphabet.h"
#include "text/text_files.h"

namespace terrace {
namespace {

constexpr const char* kControl[] = {"<|bos|>",       "<|end|>",    "<|user|>",
                                    "<|assistant|>", "<|system|>", "<|pad|>"};
constexpr TokenId kBos = 0, kEnd = 1, kPad = 5;
constexpr char kTemplate[] =
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

}  // namespace

TextAssets ByteLevelText() {
  BpeData data;
  for (const char* token : kControl) {
    data.added.push_back({static_cast<TokenId>(data.tokens.size()), token, /*is_control=*/true});
    data.tokens.push_back(token);
  }
  for (int byte = 0; byte < 256; ++byte)
    data.tokens.push_back(ToByteAlphabet(std::string(1, static_cast<char>(byte))));
  data.special = {.bos = kBos, .end = {kEnd}, .pad = kPad, .add_bos = true};
  auto tokenizer = MakeBpeTokenizer(std::move(data));
  CHECK(tokenizer.ok(), Message(tokenizer.status()));
  auto chat_template = ChatTemplate::Parse(kTemplate);
  CHECK(chat_template.ok(), Message(chat_template.status()));
  return {.tokenizer = *std::move(tokenizer),
          .chat_template = *std::move(chat_template),
          .bos_text = kControl[kBos],
          .eos_text = kControl[kEnd]};
}

StatusOr<TextAssets> PadVocabulary(const TextAssets& assets, size_t vocab_size) {
  const size_t used = assets.tokenizer->vocab_size();
  if (used > vocab_size)
    return InvalidArgument("--vocab: the tokenizer has ", used, " tokens, the vocabulary ", vocab_size);
  TextAssets padded = assets;
  if (used == vocab_size) return padded;
  BpeData data = DataOf(*assets.tokenizer);
  for (size_t id = used; id < vocab_size; ++id) data.tokens.push_back(Concat("<|unused_", id, "|>"));
  ASSIGN_OR_RETURN(padded.tokenizer, MakeBpeTokenizer(std::move(data)));
  return padded;
}

}  // namespace terrace
