"""Damage of the kinds that conversions and quantizers do, put into copies of models: a folder in F16 (safetensors), or a GGUF
file whose matrices are Q8_0. Of the Llama family, with tied embeddings; nothing but the standard library."""

import json
import pathlib
import shutil
import struct

Q8_0, BLOCK_BYTES = 8, 34  # of 32 values: a scale of 2 bytes, then the codes


class Folder:
    """A copy of a model folder, whose tensors are rows of bytes."""

    def __init__(self, source, path):
        self.path = pathlib.Path(path)
        shutil.copytree(source, self.path)
        self.file, self.config_file = self.path / "model.safetensors", self.path / "config.json"
        data = self.file.read_bytes()
        (head,) = struct.unpack_from("<Q", data)
        self.head, self.begin = json.loads(data[8:8 + head]), 8 + head
        self.data = bytearray(data)
        self.config = json.loads(self.config_file.read_text())
        self.layers, self.head_dim = self.config["num_hidden_layers"], self.config["head_dim"]

    def save(self):
        for file, data in ((self.file, self.data), (self.config_file, json.dumps(self.config).encode())):
            file.unlink()  # a copy may be read-only
            file.write_bytes(data)
        return self.path

    def span(self, name):
        begin, end = self.head[name]["data_offsets"]
        return slice(self.begin + begin, self.begin + end)

    def rows(self, name):
        span = self.span(name)
        size = (span.stop - span.start) // self.head[name]["shape"][0]
        return [bytes(self.data[i:i + size]) for i in range(span.start, span.stop, size)]

    def set_rows(self, name, rows):
        self.data[self.span(name)] = b"".join(rows)

    def zero(self, name):
        self.set_rows(name, [bytes(len(row)) for row in self.rows(name)])


def layer_name(layer, part):
    return f"model.layers.{layer}.{part}.weight"


def skipped_layer(model):
    """What a layer adds is nothing."""
    layer = model.layers // 2
    model.zero(layer_name(layer, "self_attn.o_proj"))
    model.zero(layer_name(layer, "mlp.down_proj"))


def shuffled_vocabulary(model):
    """Rows of the embedding behind the bytes are off by one."""
    rows = model.rows("model.embed_tokens.weight")
    model.set_rows("model.embed_tokens.weight", rows[:300] + rows[301:] + rows[300:301])


def wrong_rope_base(model):
    model.config["rope_theta"] = 500000.0


def wrong_norm_epsilon(model):
    model.config["rms_norm_eps"] = 0.1


def zeroed_head(model):
    """Of one layer the first attention head goes nowhere."""
    name = layer_name(1, "self_attn.o_proj")
    cut = 2 * model.head_dim  # bytes
    model.set_rows(name, [bytes(cut) + row[cut:] for row in model.rows(name)])


def swapped_gate_and_up(model):
    for layer in range(model.layers):
        gate, up = layer_name(layer, "mlp.gate_proj"), layer_name(layer, "mlp.up_proj")
        rows = model.rows(gate)
        model.set_rows(gate, model.rows(up))
        model.set_rows(up, rows)


def swapped_key_heads(model):
    """Keys of the first two heads are each other's; values are not."""
    for layer in range(model.layers):
        name, size = layer_name(layer, "self_attn.k_proj"), model.head_dim
        rows = model.rows(name)
        model.set_rows(name, rows[size:2 * size] + rows[:size] + rows[2 * size:])


def wrong_rope_pairing(model):
    """Rows of Q and K in GGUF's order, in a file that is read in the other one."""
    for layer in range(model.layers):
        for part in ("self_attn.q_proj", "self_attn.k_proj"):
            name, size = layer_name(layer, part), model.head_dim
            rows, out = model.rows(name), []
            for head in range(0, len(rows), size):
                for i in range(size // 2):
                    out += [rows[head + i], rows[head + size // 2 + i]]
            model.set_rows(name, out)


FOLDER_DEFECTS = (skipped_layer, shuffled_vocabulary, wrong_rope_base, wrong_norm_epsilon, zeroed_head, swapped_gate_and_up,
                  swapped_key_heads, wrong_rope_pairing)


class Gguf:
    """A copy of a GGUF file, and where the data of its tensors is."""

    SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    STRING, ARRAY = 8, 9

    def __init__(self, source, path):
        self.path = pathlib.Path(path)
        self.data = bytearray(pathlib.Path(source).read_bytes())
        self.at = 8
        tensors, keys = self.take("<Q"), self.take("<Q")
        alignment = 32
        for _ in range(keys):
            name = self.string()
            kind = self.take("<I")
            if name == b"general.alignment":
                alignment = struct.unpack_from("<I", self.data, self.at)[0]
            self.skip(kind)
        entries = []
        for _ in range(tensors):
            name = self.string()
            dims = [self.take("<Q") for _ in range(self.take("<I"))]
            entries.append((name, dims, self.take("<I"), self.take("<Q")))
        self.begin = -(-self.at // alignment) * alignment
        self.matrices = []  # (begin, end) of the Q8_0 ones
        for _, dims, kind, offset in entries:
            if kind == Q8_0:
                values = dims[0] * dims[1]
                begin = self.begin + offset
                self.matrices.append((begin, begin + values // 32 * BLOCK_BYTES))

    def take(self, format):
        (value,) = struct.unpack_from(format, self.data, self.at)
        self.at += struct.calcsize(format)
        return value

    def string(self):
        size = self.take("<Q")
        self.at += size
        return bytes(self.data[self.at - size:self.at])

    def skip(self, kind):
        if kind == self.STRING:
            self.string()
        elif kind == self.ARRAY:
            inner, count = self.take("<I"), self.take("<Q")
            for _ in range(count):
                self.skip(inner)
        else:
            self.at += self.SIZES[kind]

    def save(self):
        self.path.write_bytes(self.data)
        return self.path


def swapped_scales(model):
    """Those of each two neighbouring blocks."""
    for begin, end in model.matrices:
        for at in range(begin, end - BLOCK_BYTES, 2 * BLOCK_BYTES):
            first, second = slice(at, at + 2), slice(at + BLOCK_BYTES, at + BLOCK_BYTES + 2)
            model.data[first], model.data[second] = model.data[second], model.data[first]


def wrong_group_size(model):
    """Each second block has the scale of the one before it, as if groups were twice as large."""
    for begin, end in model.matrices:
        for at in range(begin, end - BLOCK_BYTES, 2 * BLOCK_BYTES):
            model.data[at + BLOCK_BYTES:at + BLOCK_BYTES + 2] = model.data[at:at + 2]


def truncated_weights(model):
    """The last quarter of the data was never written."""
    begin = model.begin + (len(model.data) - model.begin) * 3 // 4
    model.data[begin:] = bytes(len(model.data) - begin)


GGUF_DEFECTS = (swapped_scales, wrong_group_size, truncated_weights)
