#include "worker/formats/malformed_models.h"
#include "worker/formats/testing_files.h"

namespace terrace {
namespace {

using Strings = std::vector<std::string>;

constexpr char kQuery[] = "model.layers.0.self_attn.q_proj.weight",
               kKey[] = "model.layers.0.self_attn.k_proj.weight";
constexpr char kQueryQuoted[] = "tensor \"model.layers.0.self_attn.q_proj.weight\"";
constexpr char kWeights[] = "model.safetensors", kIndex[] = "model.safetensors.index.json";

class Table {
 public:
  void Add(const std::string& name, const std::string& reason, const Strings& mentions,
           void (*change)(FolderParts&)) {
    models_.push_back({name, reason, mentions, [change](const std::string& path) {
                         FolderParts parts = TinyFolder();
                         change(parts);
                         parts.Write(path);
                       }});
  }
  // Another value for one key of config.json.
  void AddConfig(const std::string& name, const std::string& reason, const std::string& key,
                 const Json& value) {
    models_.push_back(
        {name, reason, {"config.json", "key \"" + key + "\""}, [key, value](const std::string& path) {
           FolderParts parts = TinyFolder();
           parts.config[key] = value;
           parts.Write(path);
         }});
  }
  // Another header text before the same data.
  void AddHeader(const std::string& name, const std::string& reason, const Strings& mentions,
                 const std::string& text) {
    models_.push_back({name, reason, mentions, [text](const std::string& path) {
                         FolderParts parts = TinyFolder();
                         parts.weights.header_text = text;
                         parts.Write(path);
                       }});
  }
  std::vector<MalformedModel> Take() { return std::move(models_); }

 private:
  std::vector<MalformedModel> models_;
};

Json& Described(FolderParts& parts, const std::string& tensor) { return parts.weights.header[tensor]; }

void AddHeaders(Table& table) {
  table.Add("safetensors_empty_file", "header_limit", {kWeights, "byte 0"},
            [](FolderParts& f) { f.files[kWeights] = ""; });
  table.Add("safetensors_header_length_0", "header_limit", {kWeights, "byte 0"},
            [](FolderParts& f) { f.weights.header_bytes = 0; });
  table.Add("safetensors_header_longer_than_file", "header_limit", {kWeights, "byte 0"},
            [](FolderParts& f) { f.weights.header_bytes = 99'999'999; });
  table.Add("safetensors_header_over_100_mb", "header_limit", {kWeights, "byte 0"},
            [](FolderParts& f) { f.weights.header_bytes = 100'000'001; });
  table.Add("safetensors_header_2_63", "header_limit", {kWeights, "byte 0"},
            [](FolderParts& f) { f.weights.header_bytes = uint64_t{1} << 63; });
  table.AddHeader("safetensors_header_is_a_list", "bad_header", {kWeights, "byte 8"}, "[]");
  table.AddHeader("safetensors_header_not_utf8", "bad_header", {kWeights, "byte "}, "{\"\xff\":{}}");
  table.AddHeader("safetensors_header_key_twice", "bad_header", {kWeights, "\"a\""}, "{\"a\":{},\"a\":{}}");
  table.AddHeader("safetensors_header_depth_bomb", "bad_header", {kWeights, "byte "},
                  "{\"a\":" + std::string(100'000, '['));
  table.AddHeader("safetensors_header_trailing_bytes", "bad_header", {kWeights, "byte "}, "{}{}");
  table.AddHeader("safetensors_tensor_is_a_number", "bad_header", {kWeights, "tensor \"a\""}, "{\"a\":1}");
  table.Add("safetensors_tensor_without_dtype", "bad_header", {kWeights, kQueryQuoted},
            [](FolderParts& f) { Described(f, kQuery).erase("dtype"); });
  table.Add("safetensors_metadata_not_strings", "bad_header", {kWeights, "__metadata__", "\"step\""},
            [](FolderParts& f) {
              f.weights.header["__metadata__"] = {{"step", 1}};
            });
}

void AddTensors(Table& table) {
  table.Add("safetensors_overlap", "bad_offset", {kWeights, "tensor \"model.layers.0.self_attn.", "byte "},
            [](FolderParts& f) {
              Json& offsets = Described(f, kKey)["data_offsets"];
              offsets = {offsets[0].get<int>() - 2, offsets[1].get<int>() - 2};
            });
  table.Add("safetensors_hole", "bad_offset", {kWeights, "hole", "byte "},
            [](FolderParts& f) { f.weights.header.erase(kQuery); });
  table.Add("safetensors_begin_after_end", "bad_offset", {kWeights, kQueryQuoted, "byte "},
            [](FolderParts& f) {
              Described(f, kQuery)["data_offsets"] = {100, 50};
            });
  table.Add("safetensors_offset_past_end", "bad_offset", {kWeights, kQueryQuoted, "byte "},
            [](FolderParts& f) {
              Described(f, kQuery)["data_offsets"] = {0, 1'000'000'000};
            });
  table.Add("safetensors_offset_negative", "bad_offset", {kWeights, kQueryQuoted}, [](FolderParts& f) {
    Described(f, kQuery)["data_offsets"] = {-1, 50};
  });
  table.Add("safetensors_file_longer", "bad_offset", {kWeights, "byte "},
            [](FolderParts& f) { f.weights.data += "x"; });
  table.Add("safetensors_file_cut", "bad_offset", {kWeights, "byte "},
            [](FolderParts& f) { f.weights.data.pop_back(); });
  table.Add("safetensors_shape_product_wraps", "bad_shape", {kWeights, kQueryQuoted}, [](FolderParts& f) {
    Described(f, kQuery)["shape"] = {uint64_t{1} << 32, uint64_t{1} << 32};
  });
  table.Add("safetensors_shape_not_the_span", "bad_shape", {kWeights, kQueryQuoted, "byte "},
            [](FolderParts& f) {
              Described(f, kQuery)["shape"] = {32, 33};
            });
  table.Add("safetensors_zero_dimension", "bad_shape", {kWeights, kQueryQuoted}, [](FolderParts& f) {
    Described(f, kQuery)["shape"] = {32, 0};
  });
  table.Add("safetensors_float_dimension", "bad_shape", {kWeights, kQueryQuoted, "32.0"}, [](FolderParts& f) {
    Described(f, kQuery)["shape"] = {32.0, 32};
  });
  table.Add("safetensors_dtype_i8", "bad_dtype", {kWeights, kQueryQuoted, "I8"}, [](FolderParts& f) {
    Described(f, kQuery)["dtype"] = "I8";
    Described(f, kQuery)["shape"] = {32, 64};
  });
  table.Add("safetensors_dtype_u8", "bad_dtype", {kWeights, kQueryQuoted, "U8"},
            [](FolderParts& f) { Described(f, kQuery)["dtype"] = "U8"; });
  table.Add("safetensors_dtype_is_a_number", "bad_dtype", {kWeights, kQueryQuoted},
            [](FolderParts& f) { Described(f, kQuery)["dtype"] = 16; });
  table.Add("safetensors_tensor_missing", "missing_tensor", {kWeights, "tensor \"lm_head.weight\""},
            [](FolderParts& f) { f.config["tie_word_embeddings"] = false; });
  table.Add("safetensors_shape_mismatch", "shape_mismatch", {kWeights, kQueryQuoted, "[16, 64]", "[32, 32]"},
            [](FolderParts& f) {
              Described(f, kQuery)["shape"] = {16, 64};
            });
  table.Add("safetensors_infinite_norm", "nonfinite", {kWeights, "tensor \"model.norm.weight\""},
            [](FolderParts& f) {
              f.weights.data.replace(Described(f, "model.norm.weight")["data_offsets"][0].get<size_t>(), 4,
                                     Packed(0x7F80'0000));
            });
  table.Add("safetensors_bias", "unsupported_tensor",
            {kWeights, "tensor \"model.layers.0.self_attn.q_proj.bias\""}, [](FolderParts& f) {
              f.weights.Add("model.layers.0.self_attn.q_proj.bias", "F16", {32}, std::string(64, '\0'));
            });
}

// Two shards with a right index; `change` then breaks one of the three.
void Shard(FolderParts& parts) {
  SafetensorsParts all = std::move(parts.weights), first, second;
  Json map = Json::object();
  for (const auto& [name, description] : all.header.items()) {
    const bool is_first = map.size() < 4;
    const size_t begin = description["data_offsets"][0], end = description["data_offsets"][1];
    (is_first ? first : second)
        .Add(name, description["dtype"].get<std::string>(), description["shape"],
             all.data.substr(begin, end - begin));
    map[name] = is_first ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
  }
  parts.absent = {kWeights};
  parts.files["model-00001-of-00002.safetensors"] = first.Bytes();
  parts.files["model-00002-of-00002.safetensors"] = second.Bytes();
  parts.files[kIndex] = Json({{"metadata", {{"total_size", 0}}}, {"weight_map", map}}).dump();
}

void PutInShard(FolderParts& parts, const std::string& tensor, const std::string& shard) {
  Shard(parts);
  Json index = Json::parse(parts.files[kIndex]);
  index["weight_map"][tensor] = shard;
  parts.files[kIndex] = index.dump();
}

void AddShards(Table& table) {
  table.Add("index_climbs_out", "bad_index", {kIndex, kQueryQuoted},
            [](FolderParts& f) { PutInShard(f, kQuery, "../model-00001-of-00002.safetensors"); });
  table.Add("index_absolute_path", "bad_index", {kIndex, kQueryQuoted},
            [](FolderParts& f) { PutInShard(f, kQuery, "/etc/model-00001-of-00002.safetensors"); });
  table.Add("index_shard_is_no_safetensors", "bad_index", {kIndex, kQueryQuoted},
            [](FolderParts& f) { PutInShard(f, kQuery, "config.json"); });
  table.Add("index_shard_missing", "bad_index", {kIndex, "model-00002-of-00002.safetensors"},
            [](FolderParts& f) {
              Shard(f);
              f.absent.insert("model-00002-of-00002.safetensors");
            });
  table.Add(
      "index_tensor_in_other_shard", "bad_index", {kIndex, "tensor \"model.embed_tokens.weight\""},
      [](FolderParts& f) { PutInShard(f, "model.embed_tokens.weight", "model-00002-of-00002.safetensors"); });
  table.Add("index_tensor_in_no_shard", "bad_index", {kIndex, "tensor \"lm_head.weight\""},
            [](FolderParts& f) { PutInShard(f, "lm_head.weight", "model-00002-of-00002.safetensors"); });
  table.Add("index_without_map", "bad_index", {kIndex, "weight_map"}, [](FolderParts& f) {
    Shard(f);
    f.files[kIndex] = "{\"metadata\":{}}";
  });
  table.Add("index_not_json", "bad_index", {kIndex, "byte "}, [](FolderParts& f) {
    Shard(f);
    f.files[kIndex] = "{\"weight_map\":";
  });
}

void AddConfigs(Table& table) {
  table.Add("config_not_json", "invalid_json", {"config.json", "byte "},
            [](FolderParts& f) { f.files["config.json"] = "{"; });
  table.Add("config_is_a_list", "bad_config", {"config.json"},
            [](FolderParts& f) { f.config = Json::array(); });
  table.Add("config_key_twice", "duplicate_key", {"config.json", "\"vocab_size\""}, [](FolderParts& f) {
    f.files["config.json"] = "{\"vocab_size\":1," + f.config.dump().substr(1);
  });
  table.Add("config_depth_bomb", "json_limit", {"config.json", "byte "},
            [](FolderParts& f) { f.files["config.json"] = std::string(100'000, '['); });
  table.AddConfig("config_other_model_type", "unsupported_architecture", "model_type", "gpt_neox");
  table.AddConfig("config_other_architecture", "unsupported_architecture", "architectures",
                  {"MistralForCausalLM"});
  table.AddConfig("config_negative_width", "bad_config", "hidden_size", -32);
  table.AddConfig("config_float_width", "bad_config", "hidden_size", 32.0);
  table.AddConfig("config_string_width", "bad_config", "hidden_size", "32");
  table.AddConfig("config_missing_width", "bad_config", "hidden_size", nullptr);
  table.AddConfig("config_vocab_0", "bad_config", "vocab_size", 0);
  table.AddConfig("config_1e9_layers", "bad_config", "num_hidden_layers", 1'000'000'000);
  table.AddConfig("config_2_32_layers", "bad_config", "num_hidden_layers", (uint64_t{1} << 32) + 1);
  table.AddConfig("config_0_heads", "bad_config", "num_attention_heads", 0);
  table.AddConfig("config_kv_heads_do_not_divide", "bad_config", "num_key_value_heads", 3);
  table.AddConfig("config_odd_head_dim", "bad_config", "head_dim", 15);
  table.AddConfig("config_ffn_sizes_empty", "bad_config", "terrace_intermediate_sizes", Json::array());
  table.AddConfig("config_ffn_sizes_too_many", "bad_config", "terrace_intermediate_sizes", {32, 32});
  table.AddConfig("config_ffn_size_0", "bad_config", "terrace_intermediate_sizes", {0});
  table.AddConfig("config_ffn_size_beyond_the_largest", "bad_config", "terrace_intermediate_sizes",
                  {100'000});
  table.AddConfig("config_ffn_sizes_not_numbers", "bad_config", "terrace_intermediate_sizes", {"32"});
  table.Add("config_heads_too_wide", "bad_config", {"config.json", "key \"num_attention_heads\""},
            [](FolderParts& f) {
              f.config["num_attention_heads"] = 1024;
              f.config["head_dim"] = 1024;
            });
  table.AddConfig("config_epsilon_0", "bad_config", "rms_norm_eps", 0);
  table.AddConfig("config_rope_theta_1e308", "bad_config", "rope_theta", 1e308);
  table.AddConfig("config_rope_scaling", "bad_config", "rope_scaling",
                  {{"rope_type", "llama3"}, {"factor", 8.0}});
  table.AddConfig("config_rope_scaling_old", "bad_config", "rope_scaling",
                  {{"type", "linear"}, {"factor", 0}});
  table.AddConfig("config_rope_scaling_is_a_number", "bad_config", "rope_scaling", 2);
  table.AddConfig("config_attention_bias", "bad_config", "attention_bias", true);
  table.AddConfig("config_gelu", "bad_config", "hidden_act", "gelu");
  table.AddConfig("config_quantized", "bad_config", "quantization_config", {{"quant_method", "gptq"}});
  table.Add("generation_temperature_negative", "bad_config",
            {"generation_config.json", "key \"temperature\""},
            [](FolderParts& f) { f.generation_config["temperature"] = -1; });
  table.Add("generation_top_p_of_2", "bad_config", {"generation_config.json", "key \"top_p\""},
            [](FolderParts& f) { f.generation_config["top_p"] = 2; });
}

void AddTokenizers(Table& table) {
  table.Add("tokenizer_not_json", "invalid_json", {"tokenizer.json"},
            [](FolderParts& f) { f.files["tokenizer.json"] = "]"; });
  table.Add("tokenizer_depth_bomb", "json_limit", {"tokenizer.json"},
            [](FolderParts& f) { f.files["tokenizer.json"] = std::string(100'000, '['); });
  table.Add("tokenizer_key_twice", "duplicate_key", {"tokenizer.json", "\"model\""},
            [](FolderParts& f) { f.files["tokenizer.json"] = "{\"model\":1,\"model\":2}"; });
  table.Add("tokenizer_larger_than_model", "vocab_size", {"tokenizer.json", "262", "261"},
            [](FolderParts& f) {
              f.config["vocab_size"] = 261;
              SafetensorsParts all = std::move(f.weights);
              f.weights = {};
              for (const auto& [name, description] : all.header.items()) {
                const bool is_embedding = name == "model.embed_tokens.weight";
                const size_t begin = description["data_offsets"][0], end = description["data_offsets"][1];
                f.weights.Add(name, description["dtype"].get<std::string>(),
                              is_embedding ? std::vector<uint64_t>{261, 32}
                                           : description["shape"].get<std::vector<uint64_t>>(),
                              all.data.substr(begin, is_embedding ? 261 * 32 * 2 : end - begin));
              }
            });
  table.Add("tokenizer_merge_of_absent_token", "bad_merge", {"tokenizer.json"}, [](FolderParts& f) {
    f.tokenizer["model"]["merges"] = {"t h", "q zz"};
  });
  table.Add("tokenizer_id_out_of_range", "vocab_size", {"tokenizer.json"},
            [](FolderParts& f) { f.tokenizer["model"]["vocab"]["the"] = 1'000'000'000; });
  table.Add("tokenizer_added_token_empty", "bad_added_token", {"tokenizer.json"},
            [](FolderParts& f) { f.tokenizer["added_tokens"][3]["content"] = ""; });
  table.Add("tokenizer_added_token_twice", "bad_added_token", {"tokenizer.json"},
            [](FolderParts& f) { f.tokenizer["added_tokens"][3]["id"] = 2; });
  table.Add("tokenizer_regex_unknown", "unsupported_pre_tokenizer", {"tokenizer.json"}, [](FolderParts& f) {
    f.tokenizer["pre_tokenizer"] = {
        {"type", "Split"}, {"pattern", {{"Regex", "(a+)+$"}}}, {"behavior", "Isolated"}, {"invert", false}};
  });
  table.Add("tokenizer_eos_out_of_range", "bad_special_id", {"eos_token_id"},
            [](FolderParts& f) { f.generation_config["eos_token_id"] = 262; });
  table.Add("template_syntax", "bad_template", {"tokenizer_config.json"},
            [](FolderParts& f) { f.tokenizer_config["chat_template"] = "{% for m in messages %}{{ m"; });
  table.Add("template_import", "bad_template", {"tokenizer_config.json"}, [](FolderParts& f) {
    f.tokenizer_config["chat_template"] = "{% import 'os' as os %}{{ os.system('id') }}";
  });
}

void AddForeign(Table& table) {
  table.Add("safetensors_is_a_zip", "unsupported_format", {kWeights, "zip", "byte 0"},
            [](FolderParts& f) { f.files[kWeights] = "PK\x03\x04" + std::string(60, 'x'); });
  table.Add("safetensors_is_a_pickle", "unsupported_format", {kWeights, "pickle", "byte 0"},
            [](FolderParts& f) { f.files[kWeights] = "\x80\x04" + std::string(60, 'x'); });
  table.Add("weights_only_as_pickle", "unsupported_format", {"pytorch_model.bin"}, [](FolderParts& f) {
    f.absent = {kWeights};
    f.files["pytorch_model.bin"] = "\x80\x04" + std::string(60, 'x');
  });
}

}  // namespace

std::vector<MalformedModel> MalformedFolders() {
  Table table;
  AddHeaders(table);
  AddTensors(table);
  AddShards(table);
  AddConfigs(table);
  AddTokenizers(table);
  AddForeign(table);
  return table.Take();
}

}  // namespace terrace
