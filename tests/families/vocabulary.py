"""The vocabulary of the tiny models: single bytes in GPT-2's alphabet, two merges, two control tokens."""

import json

BOS, END, FIRST_TEXT = 0, 1, 2
SIZE = 160
CONTROL = ["<|bos|>", "<|end|>"]
MERGES = [("h", "e"), ("\u0120", "t")]
# A space and a line feed, what ASCII prints, and as many bytes above it as there is room for.
BYTES = ["\u0120", "\u010a"] + [chr(c) for c in range(33, 127)] + [chr(c) for c in range(0xAE, 0xFF)]
TOKENS = (CONTROL + ["".join(merge) for merge in MERGES] + BYTES)[:SIZE]
assert len(set(TOKENS)) == SIZE


def write_files(folder):
    added = [dict(id=TOKENS.index(token), content=token, single_word=False, lstrip=False, rstrip=False, normalized=False,
                  special=True) for token in CONTROL]
    tokenizer = dict(
        version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None,
        pre_tokenizer=dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True),
        post_processor=None, decoder=dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
        model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                   fuse_unk=False, byte_fallback=False, vocab={token: i for i, token in enumerate(TOKENS)},
                   merges=[f"{left} {right}" for left, right in MERGES]))
    config = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=CONTROL[BOS], eos_token=CONTROL[END],
                  clean_up_tokenization_spaces=False)
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
