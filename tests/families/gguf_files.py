"""A model of a Hugging Face folder as the .gguf that llama.cpp's convert_hf_to_gguf.py makes of it (compared with that
converter, key by key and tensor by tensor, when this was written): the keys of each architecture, the names of tensors,
and what is done to their values. Matrices are BF16, everything else is F32."""

import math

import gguf
import numpy as np

import vocabulary

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "mixtral": "llama", "gemma2": "gemma2", "gemma3_text": "gemma3",
                 "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}

GLOBAL_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp", "block_sparse_moe.gate": "ffn_gate_inp",
    # Of a block with two norms; in gemma, which has four, the first of these stands behind the attention.
    "post_attention_layernorm": "ffn_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
EXPERT_NAMES = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps", "gate_proj": "ffn_gate_exps",
                "down_proj": "ffn_down_exps", "up_proj": "ffn_up_exps"}


def pair_neighbours(rows, heads):
    """Rows i and i + head_dim/2 of each head become rows 2i and 2i + 1: llama's RoPE rotates neighbours."""
    head_dim = rows.shape[0] // heads
    return rows.reshape(heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def llama3_divisors(config, rope):
    """rope_freqs.weight: by what each pair's frequency is divided."""
    head_dim, context = config["head_dim"], rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (2 * pair / head_dim)
        smooth = min(1.0, max(0.0, (context / wavelength - low) / (high - low)))  # 1: as it is, 0: by the whole factor
        divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, np.float32)


def layer_name(architecture, layer, module, suffix):
    name = LAYER_NAMES[module]
    if module == "post_attention_layernorm" and architecture in ("gemma2", "gemma3"):
        name = "post_attention_norm"
    return f"blk.{layer}.{name}.{suffix}"


def tensors(architecture, config, state):
    """Name -> values, in float64."""
    result, experts = {}, {}
    for name, value in state.items():
        if name.endswith("norm.weight") and architecture in ("gemma2", "gemma3"):
            value = value + 1
        if architecture == "llama" and "q_proj" in name:
            value = pair_neighbours(value, config["num_attention_heads"])
        if architecture == "llama" and "k_proj" in name:
            value = pair_neighbours(value, config["num_key_value_heads"])
        if name in GLOBAL_NAMES:
            result[GLOBAL_NAMES[name]] = value
            continue
        layer, module = name.removeprefix("model.layers.").split(".", 1)
        module, suffix = module.rsplit(".", 1)
        if ".experts." in module:  # ....experts.INDEX.MATRIX: one tensor [experts, rows, columns] of each layer
            expert, matrix = module.split(".experts.")[1].split(".")
            experts.setdefault(f"blk.{layer}.{EXPERT_NAMES[matrix]}.weight", {})[int(expert)] = value
        else:
            result[layer_name(architecture, layer, module, suffix)] = value
    for name, of_expert in experts.items():
        result[name] = np.stack([of_expert[i] for i in range(len(of_expert))])
    return result


def write_keys(writer, architecture, config):
    def count(key, value):
        if value is not None:
            writer.add_uint32(f"{architecture}.{key}", value)

    def number(key, value):
        if value is not None:
            writer.add_float32(f"{architecture}.{key}", value)

    head_dim = config.get("head_dim")
    count("block_count", config["num_hidden_layers"])
    count("context_length", config["max_position_embeddings"])
    count("embedding_length", config["hidden_size"])
    count("feed_forward_length", config["intermediate_size"])
    count("attention.head_count", config["num_attention_heads"])
    count("attention.head_count_kv", config["num_key_value_heads"])
    number("attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    count("attention.key_length", head_dim)
    count("attention.value_length", head_dim)
    if architecture != "gemma2":  # which has no key for the base: readers take 10,000
        number("rope.freq_base", config["rope_theta"])
    if architecture == "llama":
        count("vocab_size", config["vocab_size"])
        count("rope.dimension_count", head_dim)
    if architecture in ("gemma2", "gemma3"):
        # Nothing says which layers have it, nor what query_pre_attn_scalar is: readers know the architecture.
        count("attention.sliding_window", config["sliding_window"])
        number("attn_logit_softcapping", config["attn_logit_softcapping"])
        number("final_logit_softcapping", config["final_logit_softcapping"])
    if architecture == "gemma3":
        number("rope.freq_base_swa", config["rope_local_base_freq"])  # of converters since late 2025
        scaling = config["rope_scaling"]
        if scaling:  # of the full layers only
            writer.add_string("gemma3.rope.scaling.type", scaling["rope_type"])
            number("rope.scaling.factor", scaling["factor"])
    count("expert_count", config.get("num_local_experts", config.get("num_experts")))
    count("expert_used_count", config.get("num_experts_per_tok"))
    count("expert_feed_forward_length", config.get("moe_intermediate_size"))


def write_vocabulary(writer):
    types = [gguf.TokenType.CONTROL if t in vocabulary.CONTROL else gguf.TokenType.NORMAL for t in vocabulary.TOKENS]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.TOKENS)
    writer.add_token_types(types)
    writer.add_token_merges([f"{left} {right}" for left, right in vocabulary.MERGES])
    writer.add_bos_token_id(vocabulary.BOS)
    writer.add_eos_token_id(vocabulary.END)
    writer.add_add_bos_token(False)


def write(path, config, state):
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, architecture)
    write_keys(writer, architecture, config)
    write_vocabulary(writer)
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config, scaling))
    for name, value in tensors(architecture, config, state).items():
        values = np.ascontiguousarray(value, np.float32)
        is_f32 = values.ndim == 1 or name.endswith("ffn_gate_inp.weight")
        kind = gguf.GGMLQuantizationType.F32 if is_f32 else gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
