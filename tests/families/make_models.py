#!/usr/bin/env python3
"""Writes tests/families/data: for each model family a tiny random model, a text, and the logits that transformers gives
it, which Terrace has no part in. Nothing here runs in a build or a test; what it wrote is checked in.

    python3 -m venv /tmp/oracle
    /tmp/oracle/bin/pip install torch==2.8.0 transformers==4.57.6 safetensors==0.8.0 gguf==0.17.1 numpy==2.4.6
    /tmp/oracle/bin/python tests/families/make_models.py [FAMILY...]
    /tmp/oracle/bin/pip install --target /tmp/oracle/v5 transformers==5.24.0
    PYTHONPATH=/tmp/oracle/v5 /tmp/oracle/bin/python tests/families/make_models.py

Each folder has
    config.json, model.safetensors   as transformers writes them; the weights are BF16
    config_v5.json                   the same configuration as transformers 5 writes it, which puts RoPE elsewhere
    tokenizer.json, ...              a byte-level BPE, for what opens whole models: no tests are about it
    model.gguf                       the same model as llama.cpp's converter writes it (gguf_files.py)
    tokens.json                      the text: 40 token ids
    logits.f32                       [40, vocab_size] float32, little-endian: the logits behind each token
    logits_gguf.f32                  only where llama.cpp runs the file as another model: those of the .gguf

The logits are computed in float64, but for what transformers itself computes in float32 (norms, softmax, RoPE): float32
everywhere moves them by 1.6e-5 at most. transformers 5.24.0 agrees within 5e-7. llama.cpp with F32 files and an F32 cache
agrees within 1.1e-5; of the gemmas within 4.6e-3, as its GELU is a table of float16 (with such a table in transformers, and
nothing else changed, they differ by as much).

Before anything is written the script switches off each feature of a family by itself and demands that the logits change, so
that a test that compares with them is a test of each.
"""

import copy
import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file
from torch import nn

import gguf_files
import vocabulary

DATA = pathlib.Path(__file__).parent / "data"
TOKENS = 40
WINDOW = 7  # far shorter than the text
CHANGE = 0.05  # a feature that is switched off moves some logit by so much at least,
GELU_CHANGE = 1e-3  # but GELU by erf in place of tanh, which differ by 5e-4 at most
# Of the router's logits, between the last expert that is taken and the first that is not: what rounds activations to
# BF16 must take the same experts.
ROUTER_MARGIN = 0.05
# What a .gguf of the family has no key for, with what llama.cpp takes instead: no window in the architecture llama; the
# head's size for query_pre_attn_scalar (but in the 27B models, which it knows by their number of layers).
UNSAID_BY_GGUF = {"mistral": dict(sliding_window=None), "gemma3_linear": dict(query_pre_attn_scalar=16)}

# hidden_size, heads and head_dim differ in what they divide, so that a shape that is mistaken for another is seen.
SHAPE = dict(vocab_size=vocabulary.SIZE, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, intermediate_size=96, max_position_embeddings=512,
             bos_token_id=vocabulary.BOS, eos_token_id=vocabulary.END, pad_token_id=None)
GEMMA = dict(SHAPE, sliding_window=WINDOW, query_pre_attn_scalar=16)
GEMMA3 = dict(GEMMA, num_hidden_layers=6, intermediate_size=48)
EXPERTS = dict(SHAPE, num_hidden_layers=3, num_experts_per_tok=2)


def without(config, **changes):
    changed = copy.deepcopy(config)
    for key, value in changes.items():
        assert hasattr(changed, key), key
        setattr(changed, key, value)
    return changed


GELU_BY_ERF = "GELU's tanh"


# A switch is (name, changed config or None, changed weights or None, changed model or None).
def by_config(name, config, **changes):
    return name, without(config, **changes), None, None


def by_weights(name, change, suffixes):
    def changed(state):
        found = {key: change(value) for key, value in state.items() if key.endswith(suffixes)}
        assert found, suffixes
        return state | found

    return name, None, changed, None


def by_identity(name, *modules):
    def changed(model):
        for layer in model.model.layers:
            for module in modules:
                parent, _, child = module.rpartition(".")
                setattr(layer.get_submodule(parent), child, nn.Identity())

    return name, None, None, changed


def window_switches(config):
    """Of a config in which each layer has its kind in layer_types, as the families have it whose layers differ."""
    kinds = config.layer_types
    swapped = [k for kind in kinds for k in ("full_attention", "sliding_attention") if k != kind]
    return [
        by_config("window", config, layer_types=["full_attention"] * len(kinds)),
        by_config("a window in all layers", config, layer_types=["sliding_attention"] * len(kinds)),
        by_config("which layers have it", config, layer_types=swapped),
        by_config("window - 1", config, sliding_window=WINDOW - 1),
        by_config("window + 1", config, sliding_window=WINDOW + 1),
    ]


def gemma_switches(config):
    def unscaled(state):
        head = state["model.embed_tokens.weight"]
        return state | {"lm_head.weight": head, "model.embed_tokens.weight": head / config.hidden_size**0.5}

    return [
        ("embedding's factor", without(config, tie_word_embeddings=False), unscaled, None),
        by_weights("1 + norm", lambda weight: weight - 1, "norm.weight"),
        by_identity("norm behind attention", "post_attention_layernorm"),
        by_identity("norm behind FFN", "post_feedforward_layernorm"),
        by_config("GELU", config, hidden_activation="silu"),
        by_config(GELU_BY_ERF, config, hidden_activation="gelu"),
        by_config("query_pre_attn_scalar", config, query_pre_attn_scalar=12),
    ]


def head_norm_switches():
    return [by_identity("norm of Q", "self_attn.q_norm"), by_identity("norm of K", "self_attn.k_norm")]


def zero(name):
    return by_weights(f"bias of {name}", torch.zeros_like, f"{name}.bias")


# name -> (configuration, its switches, seed). The seeds of experts are searched for: see ROUTER_MARGIN.
def families():
    # Scaled pairs rotate far within the text: of the 8 wavelengths 6.3 to 353, 2 are short, 3 between, 3 long.
    llama3 = transformers.LlamaConfig(**SHAPE, rope_theta=100.0, rms_norm_eps=1e-5, tie_word_embeddings=False,
                                      rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                                        high_freq_factor=4.0,
                                                        original_max_position_embeddings=64))
    yield "llama3", llama3, [
        by_config("RoPE scaling", llama3, rope_scaling=None),
        by_config("linear instead", llama3, rope_scaling=dict(rope_type="linear", factor=8.0)),
    ], 1

    mistral = transformers.MistralConfig(**SHAPE, sliding_window=WINDOW, rms_norm_eps=1e-5)
    yield "mistral", mistral, [
        by_config("window", mistral, sliding_window=None),
        by_config("window - 1", mistral, sliding_window=WINDOW - 1),
        by_config("window + 1", mistral, sliding_window=WINDOW + 1),
    ], 2

    gemma2 = transformers.Gemma2Config(**GEMMA, attn_logit_softcapping=5.0, final_logit_softcapping=10.0)
    yield "gemma2", gemma2, window_switches(gemma2) + gemma_switches(gemma2) + [
        by_config("cap of scores", gemma2, attn_logit_softcapping=None),
        by_config("cap of logits", gemma2, final_logit_softcapping=None),
    ], 3

    # As the 1B model, and what the larger ones add: full layers whose positions are divided, and (27B) scores whose
    # factor is not head_dim's.
    linear = dict(rope_scaling=dict(rope_type="linear", factor=8.0), query_pre_attn_scalar=20)
    for name, more in (("gemma3", {}), ("gemma3_linear", linear)):
        gemma3 = transformers.Gemma3TextConfig(**GEMMA3 | more)
        switches = window_switches(gemma3) + gemma_switches(gemma3) + head_norm_switches() + [
            by_config("RoPE base of full layers", gemma3, rope_theta=gemma3.rope_local_base_freq),
            by_config("RoPE base of layers with a window", gemma3, rope_local_base_freq=gemma3.rope_theta),
        ]
        if more:
            switches.append(by_config("RoPE scaling", gemma3, rope_scaling=None))
        yield name, gemma3, switches, 4

    shape = dict(SHAPE, hidden_size=64, num_hidden_layers=2)
    del shape["head_dim"]  # the family has none: hidden_size / heads
    qwen2 = transformers.Qwen2Config(**shape, rope_theta=1e6, tie_word_embeddings=True)
    yield "qwen2", qwen2, [zero("q_proj"), zero("k_proj"), zero("v_proj")], 5

    qwen3 = transformers.Qwen3Config(**SHAPE, rope_theta=1e6, tie_word_embeddings=True)
    yield "qwen3", qwen3, head_norm_switches(), 6

    mixtral = transformers.MixtralConfig(**dict(EXPERTS, intermediate_size=40), num_local_experts=4)
    yield "mixtral", mixtral, [
        by_config("one expert", mixtral, num_experts_per_tok=1),
        by_config("three experts", mixtral, num_experts_per_tok=3),
        by_weights("router", torch.zeros_like, "gate.weight"),
    ], 390

    qwen3_moe = transformers.Qwen3MoeConfig(**EXPERTS, moe_intermediate_size=40, num_experts=4, norm_topk_prob=True,
                                            rope_theta=1e6)
    yield "qwen3_moe", qwen3_moe, head_norm_switches() + [
        by_config("one expert", qwen3_moe, num_experts_per_tok=1),
        by_config("three experts", qwen3_moe, num_experts_per_tok=3),
        by_config("weights that add to 1", qwen3_moe, norm_topk_prob=False),
        by_weights("router", torch.zeros_like, "gate.weight"),
    ], 75


def make_model(config):
    # In float64 from the start: gemma3 keeps the embedding's factor in the type it is made in.
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float64).eval()


def random_weights(config, seed):
    """Of the size that makes attention choose and logits differ; every value is one that BF16 has."""
    generator = torch.Generator().manual_seed(seed)
    model = make_model(config)
    is_gemma = config.model_type.startswith("gemma")
    state = {}
    for name, value in sorted(model.state_dict().items()):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if "norm" in name:
            weight = 0.3 * noise + (0 if is_gemma else 1)  # gemma's multiply with 1 + weight
        elif name.endswith(".bias"):
            weight = 0.5 * noise
        elif name.endswith("gate.weight"):  # a router
            weight = 0.5 * noise
        elif "embed" in name or "lm_head" in name:
            weight = 0.3 * noise
        else:
            weight = noise * (1.2 / value.shape[-1] ** 0.5)  # 0.15 to 0.2
        state[name] = weight.bfloat16().double()
    return state


def logits_of(config, state, tokens, change=None, dtype=torch.float64):
    model = make_model(config)
    result = model.load_state_dict(state, strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) <= {"lm_head.weight"}, result
    model.tie_weights()
    if change:
        change(model)
    margins = []

    def note_margin(module, _, output):
        if hasattr(module, "top_k"):
            best = output[1].topk(module.top_k + 1, dim=-1).values
            margins.append((best[:, -2] - best[:, -1]).min().item())

    for module in model.modules():
        module.register_forward_hook(note_margin)
    with torch.no_grad():
        logits = model.to(dtype)(torch.tensor([tokens])).logits[0].double()
    assert logits.isfinite().all()
    return logits, min(margins, default=None)


def check_switches(name, config, state, tokens, logits, switches):
    for switch, other_config, change_state, change_model in switches:
        other, _ = logits_of(other_config or config, change_state(state) if change_state else state, tokens, change_model)
        change = (other - logits).abs().max().item()
        print(f"  without {switch}: {change:.4f}")
        assert change > (GELU_CHANGE if switch == GELU_BY_ERF else CHANGE), (name, switch, change)


def write_family(name, config, switches, seed):
    generator = torch.Generator().manual_seed(100 + seed)
    tokens = torch.randint(vocabulary.FIRST_TEXT, vocabulary.SIZE, (TOKENS,), generator=generator).tolist()
    config.architectures = [type(make_model(config)).__name__]
    config.dtype = "bfloat16"
    state = random_weights(config, seed)
    logits, margin = logits_of(config, state, tokens)
    rounded, _ = logits_of(config, state, tokens, dtype=torch.bfloat16)
    print(f"{name}: logits of {logits.std():.2f} on average, {logits.abs().max():.2f} at most; all in BF16 they are off by "
          f"{(rounded - logits).abs().max():.3f} at most, {(rounded - logits).std():.4f} on average" +
          (f"; experts chosen by {margin:.3f} at least" if margin is not None else ""))
    assert margin is None or margin > ROUTER_MARGIN
    check_switches(name, config, state, tokens, logits, switches)

    folder = DATA / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_file({key: value.bfloat16().contiguous() for key, value in state.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    vocabulary.write_files(folder)
    (folder / "tokens.json").write_text(json.dumps(tokens) + "\n")
    logits.numpy().astype("<f4").tofile(folder / "logits.f32")
    written = json.loads((folder / "config.json").read_text())
    gguf_files.write(folder / "model.gguf", written, {key: value.numpy() for key, value in state.items()})
    if name in UNSAID_BY_GGUF:
        as_gguf, _ = logits_of(without(config, **UNSAID_BY_GGUF[name]), state, tokens)
        assert (as_gguf - logits).abs().max() > CHANGE
        as_gguf.numpy().astype("<f4").tofile(folder / "logits_gguf.f32")


def write_v5_configs():
    for folder in sorted(DATA.iterdir()):
        config = transformers.AutoConfig.from_pretrained(folder)
        (folder / "config_v5.json").write_text(config.to_json_string())


def main():
    if transformers.__version__.startswith("5."):
        write_v5_configs()
        return
    torch.set_num_threads(1)
    wanted = set(sys.argv[1:])
    for name, config, switches, seed in families():
        if not wanted or name in wanted:
            write_family(name, config, switches, seed)


if __name__ == "__main__":
    main()
