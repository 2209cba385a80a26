#include "worker/formats/testing_files.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "text/byte_alphabet.h"
#include "worker/formats/safetensors_writer.h"
#include "worker/formats/tensor_names.h"

namespace terrace {
namespace {

constexpr uint32_t kHidden = 32, kFfn = 64, kContext = 64;
constexpr char kTemplate[] =
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";
const std::vector<std::string> kControl = {"<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"};
const std::vector<std::pair<std::string, std::string>> kMerges = {{"t", "h"}, {"th", "e"}};

std::vector<std::string> TinyTokens() {
  std::vector<std::string> tokens = kControl;
  for (int byte = 0; byte < 256; ++byte)
    tokens.push_back(ToByteAlphabet(std::string(1, static_cast<char>(byte))));
  for (const auto& [left, right] : kMerges) tokens.push_back(left + right);
  return tokens;
}

ModelConfig TinyConfig(NameScheme names) {
  ModelConfig config;
  config.names = names;
  config.vocab_size = static_cast<uint32_t>(TinyTokens().size());
  config.context_length = kContext;
  config.hidden_size = kHidden;
  config.layers = 1;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = kHidden / 2;
  config.ffn_size = kFfn;
  config.tied_embeddings = true;
  return config;
}

std::string Repeated(const std::string& piece, uint64_t count) {
  std::string out;
  for (uint64_t i = 0; i < count; ++i) out += piece;
  return out;
}

std::string Ones(const TensorRequirement& tensor) {
  const uint64_t count = *ElementCount(tensor.shape);
  return IsVector(tensor.kind) ? Repeated(Packed(1.0f), count) : Repeated(Packed(uint16_t{0x3C00}), count);
}

Json TinyTokenizerJson() {
  Json added = Json::array(), vocab = Json::object(), merges = Json::array();
  const std::vector<std::string> tokens = TinyTokens();
  for (size_t id = 0; id < tokens.size(); ++id) vocab[tokens[id]] = id;
  for (size_t id = 0; id < kControl.size(); ++id)
    added.push_back({{"id", id}, {"content", kControl[id]}, {"special", true}, {"normalized", false}});
  for (const auto& [left, right] : kMerges) merges.push_back(left + " " + right);
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Sequence"},
            {"pretokenizers", {{{"type", "Digits"}, {"individual_digits", true}}, byte_level}}}},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}

}  // namespace

void GgufParts::Set(std::string_view name, GgufField value) {
  const auto found =
      std::find_if(keys.begin(), keys.end(), [&](const GgufKey& key) { return key.name == name; });
  if (found != keys.end())
    found->value = std::move(value);
  else
    keys.push_back({std::string(name), std::move(value)});
}

void GgufParts::Remove(std::string_view name) {
  const auto is_it = [&](const auto& part) { return part.name == name; };
  CHECK(std::erase_if(keys, is_it) + std::erase_if(tensors, is_it) == 1, "no ", name);
}

GgufParts::Tensor& GgufParts::tensor(std::string_view name) {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& tensor) { return tensor.name == name; });
  CHECK(found != tensors.end(), "no ", name);
  return *found;
}

std::string GgufParts::Header() const {
  std::string out = magic + Packed(version) + Packed(tensor_count.value_or(tensors.size())) +
                    Packed(key_count.value_or(keys.size()));
  for (const GgufKey& key : keys) AppendGgufKey(out, key);
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors) {
    AppendGgufTensorInfo(out, {tensor.name, tensor.dims, tensor.type, tensor.offset.value_or(offset)});
    offset = RoundUp(offset + tensor.data.size(), alignment);
  }
  return out;
}

std::string GgufParts::Bytes() const {
  std::string out = Header();
  for (const Tensor& tensor : tensors) {
    out.resize(RoundUp(out.size(), alignment));
    out += tensor.data;
  }
  return out;
}

void SafetensorsParts::Add(const std::string& name, std::string_view dtype,
                           const std::vector<uint64_t>& shape, std::string_view bytes) {
  header[name] = SafetensorsEntry(dtype, shape, data.size(), bytes.size());
  data += bytes;
}

std::string SafetensorsParts::Bytes() const {
  const std::string text = header_text.value_or(header.dump());
  return Packed(header_bytes.value_or(text.size())) + text + data;
}

void FolderParts::Write(const std::string& directory) const {
  std::map<std::string, std::string> all = {{"config.json", config.dump()},
                                            {"generation_config.json", generation_config.dump()},
                                            {"tokenizer.json", tokenizer.dump()},
                                            {"tokenizer_config.json", tokenizer_config.dump()},
                                            {"model.safetensors", weights.Bytes()}};
  for (const auto& [name, text] : files) all[name] = text;
  std::filesystem::remove_all(directory);
  std::filesystem::create_directories(directory);
  for (const auto& [name, text] : all) {
    if (!absent.contains(name)) WriteFile(directory + "/" + name, text);
  }
}

GgufParts TinyGguf() {
  const ModelConfig config = TinyConfig(NameScheme::kGguf);
  std::vector<int32_t> types(config.vocab_size, 1);
  std::fill_n(types.begin(), kControl.size(), 3);
  std::vector<std::string> merges;
  for (const auto& [left, right] : kMerges) merges.push_back(left + " " + right);
  GgufParts parts;
  parts.keys = {{"general.architecture", GgufString("llama")},
                {"general.name", GgufString("tiny")},
                {"llama.vocab_size", GgufU32(config.vocab_size)},
                {"llama.context_length", GgufU32(config.context_length)},
                {"llama.embedding_length", GgufU32(config.hidden_size)},
                {"llama.block_count", GgufU32(config.layers)},
                {"llama.feed_forward_length", GgufU32(config.ffn_size)},
                {"llama.rope.dimension_count", GgufU32(config.head_dim)},
                {"llama.rope.freq_base", GgufF32(config.rope_base)},
                {"llama.attention.head_count", GgufU32(config.heads)},
                {"llama.attention.head_count_kv", GgufU32(config.kv_heads)},
                {"llama.attention.layer_norm_rms_epsilon", GgufF32(config.norm_epsilon)},
                {"tokenizer.ggml.model", GgufString("gpt2")},
                {"tokenizer.ggml.pre", GgufString("smollm")},
                {"tokenizer.ggml.tokens", GgufStrings(TinyTokens())},
                {"tokenizer.ggml.token_type", GgufInts(types)},
                {"tokenizer.ggml.merges", GgufStrings(merges)},
                {"tokenizer.ggml.bos_token_id", GgufU32(0)},
                {"tokenizer.ggml.eos_token_id", GgufU32(1)},
                {"tokenizer.ggml.add_bos_token", GgufBool(true)},
                {"tokenizer.chat_template", GgufString(kTemplate)}};
  for (const TensorRequirement& required : RequiredTensors(config)) {
    GgufParts::Tensor tensor = {required.name, {}, IsVector(required.kind) ? 0u : 1u, Ones(required), {}};
    for (size_t i = required.shape.rank; i-- > 0;) tensor.dims.push_back(required.shape[i]);
    parts.tensors.push_back(std::move(tensor));
  }
  return parts;
}

FolderParts TinyFolder() {
  const ModelConfig config = TinyConfig(NameScheme::kHuggingFace);
  FolderParts parts;
  parts.config = {{"architectures", {"LlamaForCausalLM"}},
                  {"model_type", "llama"},
                  {"hidden_act", "silu"},
                  {"vocab_size", config.vocab_size},
                  {"max_position_embeddings", config.context_length},
                  {"hidden_size", config.hidden_size},
                  {"num_hidden_layers", config.layers},
                  {"num_attention_heads", config.heads},
                  {"num_key_value_heads", config.kv_heads},
                  {"head_dim", config.head_dim},
                  {"intermediate_size", config.ffn_size},
                  {"rms_norm_eps", 1e-5},
                  {"rope_theta", 10000.0},
                  {"rope_scaling", nullptr},
                  {"tie_word_embeddings", true},
                  {"bos_token_id", 0},
                  {"eos_token_id", 1}};
  parts.generation_config = {{"bos_token_id", 0}, {"eos_token_id", 1}};
  parts.tokenizer = TinyTokenizerJson();
  parts.tokenizer_config = {{"add_bos_token", true},
                            {"bos_token", kControl[0]},
                            {"eos_token", kControl[1]},
                            {"chat_template", kTemplate}};
  for (const TensorRequirement& required : RequiredTensors(config)) {
    const std::vector<uint64_t> shape(required.shape.dims.begin(),
                                      required.shape.dims.begin() + required.shape.rank);
    parts.weights.Add(required.name, IsVector(required.kind) ? "F32" : "F16", shape, Ones(required));
  }
  return parts;
}

void WriteFile(const std::string& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  CHECK(!out.fail(), "cannot write ", path);
}

}  // namespace terrace
