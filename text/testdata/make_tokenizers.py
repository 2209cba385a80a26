#!/usr/bin/env python3
"""Writes the files of this folder that say what Hugging Face's tokenizers and SentencePiece do, which Terrace has no part in.
Nothing here runs in a build or a test; what it wrote is checked in.

    python3 -m venv /tmp/oracle
    /tmp/oracle/bin/pip install tokenizers==0.22.2 transformers==4.57.6 sentencepiece==0.2.3 protobuf==7.36.2
    /tmp/oracle/bin/python text/testdata/make_tokenizers.py

tokenizers.json: for each shape of tokenizer.json that model families have, a small one, and texts with the ids and the
    decoded text that tokenizers gives for them: {"name", "file", "cases": [{"text", "ids", "decoded"}]}.
scores.json: a SentencePiece vocabulary with scores, and texts with the ids that SentencePiece gives. Many scores are the
    same, as those of the runs of spaces in Mistral's. {"tokens", "scores", "types", "cases": [{"text", "ids"}]}, types as in GGUF.
normalized.json: texts and their NFC by tokenizers.

All is trained on the sentences below, with fixed seeds.
"""

import io
import json
import pathlib
import random

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.normalizers import NFC
from transformers.convert_slow_tokenizer import generate_merges

FOLDER = pathlib.Path(__file__).parent
MARK = "\u2581"
SENTENCES = """The quick brown fox jumps over the lazy dog, and the dog does not mind.
She sells sea shells by the sea shore; the shells she sells are sea shells, I'm sure.
In the beginning there was nothing, and then there were 12345 things, 3.14 of them round.
def main(argc, argv):\n    for i in range(10):\n        print("i is", i)\n    return 0
Der Fluß fließt schnell über die grünen Hügel. Où est la bibliothèque ? Ça va très bien.
你好，世界。日本語の文章です。한국어도 있습니다. Привет, мир! Добрый день.
What's that? It's what they've said they'd do; we'll see. DON'T SHOUT.
a  b   c    d     e      f       g        h
x = {"key": [1, 2, 3], "other": {"nested": true}}; // a comment
\tindented with a tab\n\t\tand with two\n\n\nand after empty lines""".split("\n")
SENTENCES = [sentence.encode().decode("unicode_escape").encode("latin-1").decode() if "\\" in sentence and sentence.isascii()
             else sentence for sentence in SENTENCES] * 3

TEXTS = [
    "", " ", "  ", "   ", "a", " a", "a ", " a ", "  a  ", "the", " the", "The quick brown fox", "the  dog   does    not",
    "     five", "a" + " " * 7 + "b", " " * 16, " " * 17 + "x", " " * 40, "shells she sells ", "\n", "\n\n", "\n\n\n\n\n", " \n ",
    "a\nb\n\n c", "\t", "\t\t", "\t\t\tx", "a\tb", "\r\n", "tab\there", "12345 678 3.14", "it's They'RE we'll", "DON'T",
    "Hügel über Fluß", "e\u0301 a\u0308 n\u0303", "e\u0323\u0301 \u1e9b\u0323", "\u00e9\u00e8", "\u212b \u2126 \uf900",
    "\u1112\u1161\u11ab\u1100\u1173\u11af", "한국어", "你好，世界。", "你好 世界", "日本語の文章", "Привет, мир!", "🙂", "🙂🙂 🙂", "a🙂b",
    "👩\u200d👩\u200d👧", "\u00a0nbsp\u00a0", "\u3000wide", MARK, MARK + "the", "the" + MARK + "dog", MARK + MARK, " " + MARK + " ",
    "\x00", "a\x01b", "\u2028", "<0x0A>", "<0x41>the", "<s>", "</s>", "<s>the dog</s>", "<s> the dog </s>", "a<s>b</s>c", "<s><s>",
    "</s> ", " </s>", "<s>[INST] the dog [/INST] the shells</s>", "[INST]", "a[INST]b", "[ INST ]", "<table>", "the<table>dog",
    "<table> dog", "\n\n\n<table>\n\n", "<unk>", "<tool>the</tool>", "def main(argc, argv):\n    return 0\n",
    "x = {\"key\": [1, 2]}; // a comment", "theshellsshesellsareseashells" * 3, "the " * 20,
]


def random_texts(count, seed):
    rng = random.Random(seed)
    parts = ["the", "shell", "s", "he", "sea", " ", "  ", "   ", "\n", "\t", "é", "e\u0301", "ß", "中", "界", "한", "я", "🙂", "1",
             "23", ".", ",", "'s", "'", "<s>", "</s>", "[INST]", "<table>", MARK, "\u0323", "\u0308", "a", "A", "\u1100", "\u1161",
             "\u11a8", "가", "\u00a0", "\r"]
    return ["".join(rng.choice(parts) for _ in range(rng.randrange(1, 14))) for _ in range(count)]


def case(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return {"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)}


def added(content, special=True, normalized=False):
    return AddedToken(content, single_word=False, lstrip=False, rstrip=False, normalized=normalized, special=special)


# ---- in the manner of SentencePiece

def train_sentencepiece(vocab_size, user_defined=(), byte_fallback=True):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, model_type="bpe", vocab_size=vocab_size,
        byte_fallback=byte_fallback, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, split_digits=True, allow_whitespace_only_pieces=True, character_coverage=0.98,
        user_defined_symbols=list(user_defined), num_threads=1, minloglevel=2)
    return model.getvalue()


def piece_scores(proto):
    return {piece.piece: piece.score for piece in proto.pieces}


def sentencepiece_tokenizer(proto, normalizer, pre_tokenizer, strips, specials=(), others=()):
    """As transformers' converters of Llama and Gemma make it."""
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    merges = generate_merges(vocab, piece_scores(proto))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    steps = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(content=" ", left=1)] if strips else []))
    tokenizer.add_special_tokens([added(token) for token in ("<unk>", "<s>", "</s>", *specials)])
    tokenizer.add_tokens([added(token, special=False) for token in others])
    return tokenizer


def add_runs(proto, pieces, score):
    """Pieces at the end of a vocabulary, all of one score."""
    known = {piece.piece for piece in proto.pieces}
    for piece in pieces:
        if piece not in known:
            proto.pieces.add(piece=piece, score=score, type=1)


def sentencepiece_protos():
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(train_sentencepiece(560))
    add_runs(proto, [MARK * n for n in (2, 3, 4, 5, 6, 7, 8, 9, 12, 16)], -1e9)  # as in Mistral's
    gemma = sentencepiece_model_pb2.ModelProto()
    gemma.ParseFromString(train_sentencepiece(540))
    for piece in list(gemma.pieces):
        if piece.piece == "\t" or (piece.type == 1 and "\t" in piece.piece):
            gemma.pieces.remove(piece)
    for piece in ("[INST]", "<table>"):  # Gemma's vocabulary has all of its added tokens
        gemma.pieces.add(piece=piece, score=0.0, type=4)
    next(piece for piece in gemma.pieces if piece.piece == "<0x09>").piece = "\t"  # as transformers' converter does
    add_runs(gemma, ["\n\n", "\n\n\n", "\t\t", "\t\t\t", *(MARK * n for n in (2, 3, 4, 5, 8)), "\n"], 0.0)
    return proto, gemma


def sentencepiece_shapes():
    proto, gemma = sentencepiece_protos()
    replace = normalizers.Replace(" ", MARK)
    prepend = normalizers.Sequence([normalizers.Prepend(MARK), replace])
    yield "llama2", sentencepiece_tokenizer(proto, prepend, None, True)
    yield "mistral", sentencepiece_tokenizer(proto, prepend, None, True, specials=("[INST]", "[/INST]"), others=("<tool>",))
    for scheme in ("always", "first", "never"):
        for split in (False, True):
            yield f"metaspace-{scheme}-{'words' if split else 'whole'}", sentencepiece_tokenizer(
                proto, None, pre_tokenizers.Metaspace(MARK, prepend_scheme=scheme, split=split), scheme != "never",
                specials=("[INST]", "[/INST]"))
    cut = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer = sentencepiece_tokenizer(gemma, replace, cut, False, specials=("[INST]",),
                                        others=("\n\n", "\n\n\n", MARK * 2, "<table>"))
    yield "gemma", tokenizer
    file = json.loads(tokenizer.to_str())  # of a .gguf, which has the byte: a token with two texts
    file["model"]["vocab"]["<0x09>"] = file["model"]["vocab"]["\t"]
    yield "gemma-bytes", file
    # A vocabulary with tokens across words, so that no text may be cut at spaces.
    crossing = sentencepiece_model_pb2.ModelProto()
    crossing.CopyFrom(proto)
    add_runs(crossing, ["e" + MARK, "e" + MARK + "d", "s" + MARK + "s", "the" + MARK, "the" + MARK + "dog", "." + MARK, MARK + "d"],
             1.0)
    yield "crossing", sentencepiece_tokenizer(crossing, prepend, None, True)


# ---- byte-level

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level_shapes():
    from tokenizers import Regex
    for name, pattern, normalizer, ignores in (("llama3", LLAMA3, None, True), ("qwen2", QWEN2, NFC(), False)):
        tokenizer = Tokenizer(models.BPE(ignore_merges=ignores))
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                      show_progress=False)
        tokenizer.train_from_iterator(SENTENCES, trainer)
        tokenizer.add_special_tokens([added(token) for token in ("<s>", "</s>", "[INST]", "[/INST]")])
        tokenizer.add_tokens([added("<table>", special=False)])
        yield name, tokenizer


# ---- scores

def score_cases(proto):
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    texts = [text for text in TEXTS + random_texts(150, seed=3) if "\x00" not in text]
    # SentencePiece puts no space in front of nothing, and has no added tokens in the text.
    return [{"text": text, "ids": processor.encode(text)} for text in texts]


def write(name, rows, key):
    """One row a line, so that a change is seen."""
    lines = [json.dumps(row, ensure_ascii=True) for row in rows]
    (FOLDER / name).write_text("[\n" + ",\n".join(lines) + "\n]\n" if key is None else
                               json.dumps(key)[:-1] + ', "cases": [\n' + ",\n".join(lines) + "\n]}\n")


def main():
    shapes = []
    for name, shape in [*sentencepiece_shapes(), *byte_level_shapes()]:
        texts = TEXTS + random_texts(60, seed=len(name))
        file = shape if isinstance(shape, dict) else json.loads(shape.to_str())
        tokenizer = Tokenizer.from_str(json.dumps(file))
        shapes.append({"name": name, "file": file, "cases": [case(tokenizer, text) for text in texts]})
        print(name, tokenizer.get_vocab_size(), "tokens,", len(shapes[-1]["file"]["model"]["merges"]), "merges")
    write("tokenizers.json", shapes, None)
    proto, _ = sentencepiece_protos()
    scores = {"tokens": [piece.piece for piece in proto.pieces], "scores": [piece.score for piece in proto.pieces],
              "types": [piece.type for piece in proto.pieces]}
    write("scores.json", score_cases(proto), scores)
    nfc = NFC()
    write("normalized.json", [{"text": text, "nfc": nfc.normalize_str(text)} for text in TEXTS + nfc_texts()], None)


def nfc_texts():
    rng = random.Random(4)
    marks = [chr(c) for c in (0x300, 0x301, 0x307, 0x308, 0x323, 0x327, 0x328, 0x345, 0x5B0, 0x5B4, 0x64B, 0x651, 0x93C, 0x94D,
                              0x9BE, 0x9D7, 0xE38, 0xF71, 0xF72, 0xF74, 0x1DC0, 0x302A, 0x3099, 0x309A, 0x1D165, 0x1D16E)]
    starters = [chr(c) for c in (0x41, 0x61, 0x65, 0x6F, 0x73, 0xC5, 0xDC, 0xF4, 0x17F, 0x1E9B, 0x212B, 0x2126, 0x3B1, 0x3C9,
                                 0x915, 0x9C7, 0xF40, 0x304B, 0x30CF, 0x1100, 0x1112, 0x1161, 0x1175, 0x11A8, 0x11C2, 0xAC00,
                                 0xAC01, 0xD7A3, 0xF900, 0xFB1D, 0xFB2A, 0x1D15E, 0x2F800, 0x11099, 0x110BA, 0x20)]
    return ["".join(rng.choice(marks if rng.random() < 0.6 else starters) for _ in range(rng.randrange(1, 9)))
            for _ in range(400)]


if __name__ == "__main__":
    main()
