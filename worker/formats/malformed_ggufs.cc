#include <limits>

#include "worker/formats/malformed_models.h"
#include "worker/formats/testing_files.h"

namespace terrace {
namespace {

using Strings = std::vector<std::string>;

class Table {
 public:
  // A change of one part.
  void Add(const std::string& name, const std::string& reason, const Strings& mentions,
           void (*change)(GgufParts&)) {
    models_.push_back({name + ".gguf", reason, mentions, [change](const std::string& path) {
                         GgufParts parts = TinyGguf();
                         change(parts);
                         WriteFile(path, parts.Bytes());
                       }});
  }
  // A change of the finished bytes.
  void AddBytes(const std::string& name, const std::string& reason, const Strings& mentions,
                void (*change)(std::string&)) {
    models_.push_back({name + ".gguf", reason, mentions, [change](const std::string& path) {
                         std::string bytes = TinyGguf().Bytes();
                         change(bytes);
                         WriteFile(path, bytes);
                       }});
  }
  // Another value for one key.
  void AddKey(const std::string& name, const std::string& reason, const std::string& key, GgufField value) {
    models_.push_back(
        {name + ".gguf", reason, {"key \"" + key + "\"", "byte "}, [key, value](const std::string& path) {
           GgufParts parts = TinyGguf();
           parts.Set(key, value);
           WriteFile(path, parts.Bytes());
         }});
  }
  std::vector<MalformedModel> Take() { return std::move(models_); }

 private:
  std::vector<MalformedModel> models_;
};

template <typename T>
void Overwrite(std::string& bytes, size_t at, T value) {
  bytes.replace(at, sizeof(value), Packed(value));
}

constexpr size_t kVersionAt = 4, kTensorCountAt = 8, kKeyCountAt = 16, kFirstKeyAt = 24;
constexpr uint64_t kHuge = std::numeric_limits<int64_t>::max();
constexpr char kQuery[] = "blk.0.attn_q.weight", kGate[] = "blk.0.ffn_gate.weight";
constexpr char kQueryQuoted[] = "tensor \"blk.0.attn_q.weight\"";

void AddHeaders(Table& table) {
  table.Add("gguf_bad_magic", "bad_magic", {"byte 0"}, [](GgufParts& g) { g.magic = "GGUX"; });
  table.Add("gguf_version_0", "bad_version", {"version 0", "byte 4"}, [](GgufParts& g) { g.version = 0; });
  table.Add("gguf_version_1", "bad_version", {"version 1", "byte 4"}, [](GgufParts& g) { g.version = 1; });
  table.Add("gguf_version_99", "bad_version", {"version 99", "byte 4"}, [](GgufParts& g) { g.version = 99; });
  table.AddBytes("gguf_big_endian", "bad_version", {"big-endian", "byte 4"},
                 [](std::string& bytes) { Overwrite(bytes, kVersionAt, uint32_t{0x0300'0000}); });
  table.AddBytes("gguf_empty_file", "truncated", {"byte 0"}, [](std::string& bytes) { bytes.clear(); });
  table.AddBytes("gguf_cut_in_counts", "truncated", {"byte 16"},
                 [](std::string& bytes) { bytes.resize(20); });
  table.AddBytes("gguf_cut_in_data", "truncated", {"tensor \"output_norm.weight\"", "byte "},
                 [](std::string& bytes) { bytes.resize(bytes.size() - 1); });
  table.AddBytes("gguf_tensor_count_2_63", "count_limit", {"byte 8"},
                 [](std::string& bytes) { Overwrite(bytes, kTensorCountAt, kHuge); });
  table.AddBytes("gguf_key_count_2_63", "count_limit", {"byte 16"},
                 [](std::string& bytes) { Overwrite(bytes, kKeyCountAt, kHuge); });
}

void AddKeys(Table& table) {
  table.AddBytes("gguf_key_length_2_63", "bad_key", {"byte 24"},
                 [](std::string& bytes) { Overwrite(bytes, kFirstKeyAt, kHuge); });
  table.Add("gguf_key_empty", "bad_key", {"byte 24"}, [](GgufParts& g) { g.keys[0].name = ""; });
  table.Add("gguf_key_not_utf8", "bad_key", {"byte 24"},
            [](GgufParts& g) { g.keys[0].name = "general.\xff"; });
  table.Add("gguf_key_twice", "bad_key", {"key \"general.architecture\"", "byte "},
            [](GgufParts& g) { g.keys.push_back(g.keys[0]); });
  table.AddKey("gguf_array_count_2_62", "count_limit", "x.array",
               {GgufType::kArray, Packed(uint32_t{5}) + Packed(uint64_t{1} << 62)});
  table.AddKey("gguf_array_longer_than_file", "truncated", "x.array",
               {GgufType::kArray, Packed(uint32_t{5}) + Packed(uint64_t{1} << 20)});
  table.AddKey("gguf_array_of_arrays", "type_mismatch", "x.array",
               {GgufType::kArray, Packed(uint32_t{9}) + Packed(uint64_t{1})});
  table.AddKey("gguf_unknown_value_type", "type_mismatch", "x.value",
               {static_cast<GgufType>(13), Packed(uint64_t{0})});
  table.AddKey("gguf_string_length_2_63", "truncated", "x.text", {GgufType::kString, Packed(kHuge)});
  table.AddKey("gguf_string_not_utf8", "bad_value", "general.name", GgufString("caf\xe9"));
  table.AddKey("gguf_bool_of_2", "bad_value", "tokenizer.ggml.add_bos_token",
               {GgufType::kBool, Packed(uint8_t{2})});
  table.AddKey("gguf_alignment_of_wrong_type", "bad_alignment", "general.alignment", GgufString("32"));
  table.AddKey("gguf_alignment_0", "bad_alignment", "general.alignment", GgufU32(0));
  table.AddKey("gguf_alignment_3", "bad_alignment", "general.alignment", GgufU32(3));
  table.AddKey("gguf_alignment_2_31", "bad_alignment", "general.alignment", GgufU32(1u << 31));
}

void AddTensors(Table& table) {
  table.Add("gguf_five_dimensions", "bad_shape", {kQueryQuoted, "byte "}, [](GgufParts& g) {
    g.tensor(kQuery).dims = {32, 1, 1, 1, 32};
  });
  table.Add("gguf_no_dimensions", "bad_shape", {kQueryQuoted, "byte "},
            [](GgufParts& g) { g.tensor(kQuery).dims = {}; });
  table.Add("gguf_zero_dimension", "bad_shape", {kQueryQuoted, "byte "}, [](GgufParts& g) {
    g.tensor(kQuery).dims = {32, 0};
  });
  table.Add("gguf_negative_dimension", "bad_shape", {kQueryQuoted, "byte "}, [](GgufParts& g) {
    g.tensor(kQuery).dims = {32, static_cast<uint64_t>(-32)};
  });
  table.Add("gguf_shape_product_wraps", "bad_shape", {kQueryQuoted, "byte "}, [](GgufParts& g) {
    g.tensor(kQuery).dims = {(uint64_t{1} << 42) + 1, uint64_t{1} << 22};
  });
  table.Add("gguf_shape_product_passes_2_63", "bad_shape", {kQueryQuoted, "byte "}, [](GgufParts& g) {
    g.tensor(kQuery).dims = {kHuge, 2};
  });
  table.Add("gguf_bytes_pass_2_63", "bad_shape", {kQueryQuoted, "byte "}, [](GgufParts& g) {
    g.tensor(kQuery).dims = {uint64_t{1} << 40, uint64_t{1} << 22};
  });
  table.Add("gguf_shape_larger_than_file", "truncated", {kQueryQuoted, "byte "}, [](GgufParts& g) {
    g.tensor(kQuery).dims = {1 << 20, 1 << 20};
  });
  table.Add("gguf_offset_misaligned", "bad_offset", {kQueryQuoted, "byte "},
            [](GgufParts& g) { g.tensor(kQuery).offset = 33; });
  table.Add("gguf_offset_overlaps", "bad_offset", {kQueryQuoted, "byte "},
            [](GgufParts& g) { g.tensor(kQuery).offset = 32; });
  table.Add("gguf_offset_past_end", "bad_offset", {kQueryQuoted, "byte "},
            [](GgufParts& g) { g.tensor(kQuery).offset = uint64_t{1} << 40; });
  table.Add("gguf_offset_wraps", "bad_offset", {kQueryQuoted, "byte "},
            [](GgufParts& g) { g.tensor(kQuery).offset = ~uint64_t{31}; });
  table.Add("gguf_tensor_twice", "bad_name", {kQueryQuoted, "byte "},
            [](GgufParts& g) { g.tensors.push_back(g.tensor(kQuery)); });
  table.Add("gguf_tensor_name_too_long", "bad_name", {"65 bytes", "byte "},
            [](GgufParts& g) { g.tensor(kQuery).name = std::string(65, 'x'); });
  table.Add("gguf_dtype_q3_k", "bad_dtype", {kQueryQuoted, "Q3_K", "byte "},
            [](GgufParts& g) { g.tensor(kQuery).type = 11; });
  table.Add("gguf_dtype_removed", "bad_dtype", {kQueryQuoted, "type number 4", "byte "},
            [](GgufParts& g) { g.tensor(kQuery).type = 4; });
  table.Add("gguf_dtype_unknown", "bad_dtype", {kQueryQuoted, "type number 4000000000", "byte "},
            [](GgufParts& g) { g.tensor(kQuery).type = 4'000'000'000; });
  table.Add("gguf_q8_0_row_of_partial_blocks", "bad_dtype", {kQueryQuoted, "Q8_0", "byte "},
            [](GgufParts& g) {
              g.tensor(kQuery).type = 8;
              g.tensor(kQuery).dims = {33, 32};
            });
}

void AddHyperParameters(Table& table) {
  table.AddKey("gguf_architecture_unknown", "unsupported_architecture", "general.architecture",
               GgufString("gpt2"));
  table.AddKey("gguf_2000_layers", "bad_hparam", "llama.block_count", GgufU32(2000));
  table.AddKey("gguf_negative_layers", "bad_hparam", "llama.block_count", GgufI32(-1));
  table.AddKey("gguf_0_heads", "bad_hparam", "llama.attention.head_count", GgufU32(0));
  table.AddKey("gguf_heads_as_float", "type_mismatch", "llama.attention.head_count", GgufF32(2));
  table.AddKey("gguf_heads_as_array", "type_mismatch", "llama.attention.head_count", GgufInts({2}));
  table.AddKey("gguf_heads_do_not_divide", "bad_hparam", "llama.attention.head_count", GgufU32(5));
  table.AddKey("gguf_kv_heads_do_not_divide", "bad_hparam", "llama.attention.head_count_kv", GgufU32(3));
  table.AddKey("gguf_ffn_sizes_too_many", "bad_hparam", "llama.feed_forward_length", GgufInts({32, 32}));
  table.AddKey("gguf_ffn_size_0", "bad_hparam", "llama.feed_forward_length", GgufInts({0}));
  table.AddKey("gguf_ffn_sizes_not_numbers", "type_mismatch", "llama.feed_forward_length",
               GgufStrings({"32"}));
  table.Add("gguf_odd_head_size", "bad_hparam", {"key \"llama.attention.head_count\"", "key_length"},
            [](GgufParts& g) {
              g.Remove("llama.rope.dimension_count");
              g.Set("llama.attention.head_count", GgufU32(32));
              g.Set("llama.attention.head_count_kv", GgufU32(32));
            });
  table.AddKey("gguf_odd_rope_dimension", "bad_hparam", "llama.rope.dimension_count", GgufU32(15));
  table.AddKey("gguf_context_0", "bad_hparam", "llama.context_length", GgufU32(0));
  table.AddKey("gguf_epsilon_nan", "bad_hparam", "llama.attention.layer_norm_rms_epsilon",
               GgufF32(std::numeric_limits<float>::quiet_NaN()));
  table.Add("gguf_no_epsilon", "missing_key", {"key \"llama.attention.layer_norm_rms_epsilon\""},
            [](GgufParts& g) { g.Remove("llama.attention.layer_norm_rms_epsilon"); });
  table.AddKey("gguf_rope_scaling", "bad_hparam", "llama.rope.scaling.type", GgufString("yarn"));
  table.AddKey("gguf_experts_513", "bad_hparam", "llama.expert_count", GgufU32(513));
  table.AddKey("gguf_experts_shared", "bad_hparam", "llama.expert_shared_count", GgufU32(1));
  table.AddKey("gguf_experts_by_sigmoid", "bad_hparam", "llama.expert_gating_func", GgufU32(2));
  table.AddKey("gguf_experts_scaled", "bad_hparam", "llama.expert_weights_scale", GgufF32(2.5f));
  table.AddKey("gguf_experts_not_normalized", "bad_hparam", "llama.expert_weights_norm", GgufBool(false));
  table.Add("gguf_experts_used_missing", "missing_key", {"key \"llama.expert_used_count\""},
            [](GgufParts& g) { g.Set("llama.expert_count", GgufU32(8)); });
  table.Add("gguf_experts_used_9_of_8", "bad_hparam", {"key \"llama.expert_used_count\"", "byte "},
            [](GgufParts& g) {
              g.Set("llama.expert_count", GgufU32(8));
              g.Set("llama.expert_used_count", GgufU32(9));
            });
  table.Add("gguf_experts_of_gemma", "bad_hparam", {"key \"gemma2.expert_count\"", "byte "},
            [](GgufParts& g) {
              g.Set("general.architecture", GgufString("gemma2"));
              g.Set("gemma2.expert_count", GgufU32(8));
            });
  table.Add("gguf_experts_none_of_qwen", "missing_key", {"key \"qwen3moe.expert_count\""},
            [](GgufParts& g) { g.Set("general.architecture", GgufString("qwen3moe")); });
  table.Add("gguf_stack_of_2_dimensions", "bad_shape", {"tensor \"blk.0.ffn_gate_exps.weight\"", "byte "},
            [](GgufParts& g) { g.tensor(kGate).name = "blk.0.ffn_gate_exps.weight"; });
  table.Add("gguf_stack_of_513", "bad_shape", {"tensor \"blk.0.ffn_gate_exps.weight\"", "513"},
            [](GgufParts& g) {
              auto& gate = g.tensor(kGate);
              gate.name = "blk.0.ffn_gate_exps.weight";
              gate.dims = {2, 1, 513};
              gate.type = 0;
              gate.data = std::string(2 * 513 * sizeof(float), '\0');
            });
  table.Add("gguf_stacks_of_300000", "count_limit", {"tensor \"blk.", "_exps.weight\"", "byte "},
            [](GgufParts& g) {
              for (int i = 0; i < 600; ++i) {
                GgufParts::Tensor& stack = g.tensors.emplace_back();
                stack.name = Concat("blk.", i, ".ffn_up_exps.weight");
                stack.dims = {1, 1, 512};
                stack.data = std::string(512 * sizeof(float), '\0');
              }
            });
  table.Add("gguf_expert_twice", "bad_name",
            {"tensor \"blk.0.ffn_gate.1.weight\"", "blk.0.ffn_gate_exps.weight", "byte "}, [](GgufParts& g) {
              const std::string zeros(16 * sizeof(float), '\0');
              g.tensors.push_back({"blk.0.ffn_gate.1.weight", {4, 2}, 0, zeros.substr(32), {}});
              g.tensors.push_back({"blk.0.ffn_gate_exps.weight", {4, 2, 2}, 0, zeros, {}});
            });
  table.AddKey("gguf_split", "bad_split", "split.count", GgufU32(3));
  table.Add("gguf_tensor_missing", "missing_tensor", {"tensor \"blk.0.ffn_gate.weight\""},
            [](GgufParts& g) { g.Remove(kGate); });
  table.Add("gguf_shape_mismatch", "shape_mismatch", {kQueryQuoted, "[16, 64]", "[32, 32]"},
            [](GgufParts& g) {
              g.tensor(kQuery).dims = {64, 16};
            });
  table.Add("gguf_quantized_norm", "bad_dtype", {"tensor \"output_norm.weight\""}, [](GgufParts& g) {
    g.tensor("output_norm.weight").type = 8;
    g.tensor("output_norm.weight").data = std::string(34, '\0');
  });
  table.AddKey("gguf_rope_base_infinite", "bad_hparam", "llama.rope.freq_base",
               {GgufType::kFloat64, Packed(1e308)});
  table.Add("gguf_bias", "unsupported_tensor", {"tensor \"blk.0.attn_q.bias\""}, [](GgufParts& g) {
    g.tensors.push_back({"blk.0.attn_q.bias", {32}, 0, std::string(128, '\0'), {}});
  });
  table.Add("gguf_rope_factors", "bad_hparam", {"tensor \"rope_freqs.weight\""}, [](GgufParts& g) {
    g.tensors.push_back({"rope_freqs.weight", {8}, 0, std::string(32, '\0'), {}});
  });
  table.Add("gguf_nan_in_norm", "nonfinite", {"tensor \"output_norm.weight\""}, [](GgufParts& g) {
    Overwrite(g.tensor("output_norm.weight").data, 4 * 7, std::numeric_limits<float>::quiet_NaN());
  });
}

void AddTokenizers(Table& table) {
  table.AddKey("gguf_tokenizer_unknown", "unsupported_tokenizer", "tokenizer.ggml.model", GgufString("bert"));
  table.AddKey("gguf_pre_tokenizer_unknown", "unsupported_pre_tokenizer", "tokenizer.ggml.pre",
               GgufString("no-such"));
  table.AddKey("gguf_tokens_as_integers", "type_mismatch", "tokenizer.ggml.tokens", GgufInts({1, 2, 3}));
  table.AddKey("gguf_token_types_missing", "vocab_size", "tokenizer.ggml.token_type",
               GgufInts({3, 3, 3, 3, 1}));
  table.AddKey("gguf_byte_token_type", "bad_token_type", "tokenizer.ggml.token_type",
               GgufInts(std::vector<int32_t>(262, 6)));
  table.Add("gguf_tokens_empty", "bad_hparam", {"key \"tokenizer.ggml.tokens\"", "vocab_size"},
            [](GgufParts& g) {
              g.Remove("llama.vocab_size");
              g.Set("tokenizer.ggml.tokens", GgufStrings({}));
            });
  table.Add("gguf_no_tokens", "missing_key", {"key \"tokenizer.ggml.tokens\""},
            [](GgufParts& g) { g.Remove("tokenizer.ggml.tokens"); });
  table.Add("gguf_more_tokens_than_embeddings", "vocab_size", {"key \"tokenizer.ggml.tokens\"", "262", "261"},
            [](GgufParts& g) {
              g.Set("llama.vocab_size", GgufU32(261));
              g.tensor("token_embd.weight").dims = {32, 261};
            });
  table.AddKey("gguf_merge_of_absent_token", "bad_merge", "tokenizer.ggml.merges",
               GgufStrings({"t h", "q zz"}));
  table.AddKey("gguf_merge_of_one_token", "bad_merge", "tokenizer.ggml.merges", GgufStrings({"th"}));
  table.AddKey("gguf_bos_out_of_range", "bad_special_id", "tokenizer.ggml.bos_token_id", GgufU32(262));
  table.AddKey("gguf_eos_negative", "bad_special_id", "tokenizer.ggml.eos_token_id", GgufI32(-1));
  table.AddKey("gguf_eos_2_32", "bad_special_id", "tokenizer.ggml.eos_token_id", GgufU32(~0u));
  table.AddKey("gguf_template_syntax", "bad_template", "tokenizer.chat_template",
               GgufString("{% for m in messages %}{{ m"));
  table.AddKey("gguf_template_import", "bad_template", "tokenizer.chat_template",
               GgufString("{% import 'os' as os %}{{ os.system('id') }}"));
}

void AddForeign(Table& table) {
  table.AddBytes("gguf_is_a_zip", "unsupported_format", {"zip", "byte 0"},
                 [](std::string& bytes) { bytes.replace(0, 4, "PK\x03\x04"); });
  table.AddBytes("gguf_is_a_pickle", "unsupported_format", {"pickle", "byte 0"},
                 [](std::string& bytes) { bytes.replace(0, 2, "\x80\x02"); });
  table.AddBytes("gguf_is_gzip", "unsupported_format", {"gzip", "byte 0"},
                 [](std::string& bytes) { bytes.replace(0, 2, "\x1f\x8b"); });
  table.AddBytes("gguf_is_a_tar", "unsupported_format", {"tar", "byte 257"}, [](std::string& bytes) {
    bytes.replace(0, 4, "name");
    bytes.replace(257, 5, "ustar");
  });
  table.AddBytes("gguf_is_ggjt", "unsupported_format", {"GGJT", "byte 0"},
                 [](std::string& bytes) { bytes.replace(0, 4, "tjgg"); });
}

}  // namespace

std::vector<MalformedModel> MalformedGgufs() {
  Table table;
  AddHeaders(table);
  AddKeys(table);
  AddTensors(table);
  AddHyperParameters(table);
  AddTokenizers(table);
  AddForeign(table);
  return table.Take();
}

}  // namespace terrace
