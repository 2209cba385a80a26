#!/usr/bin/python3
"""End to end: what each rank of 1, 2 and 4 holds of a model, beside what ShardPlan shares out to it (worker/parallel/shard_plan.h). A
rank reports exactly its share, and takes no more memory beside it than a process with the whole model does. The table is printed.

    TERRACE_RANK_MEMORY_SHAPE="--shape 1b --context 2048" tests/e2e/rank_memory_test.py    # flags of terrace synthesize
"""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

from cluster import BIN, PATIENCE_SECONDS
from processes import samples_at
from rank_group import RankGroup

SHAPE = os.environ.get("TERRACE_RANK_MEMORY_SHAPE") or (
    "--shape 135m --layers 8 --hidden 512 --heads 8 --kv-heads 4 --head-dim 64 --ffn 4096 --vocab 8192 --context 1024"
)
DEGREES = (1, 2, 4)
BLOCK_TOKENS = 16
WEIGHT_BYTES, KV_BYTES = 2, 4  # of an element: F16 weights, which kernels take as BF16, and f32 keys and values
# By how much more a rank may hold beside its weights than the process with the whole model does: threads, what allocators keep, huge
# pages. It holds less there, as its parts of KV blocks and of activations are smaller: 11 to 16 MiB, and the one process 25. With one
# more share, of 29 MiB for four ranks at least, that were 40 MiB or more, above 25 and this: each run checks it.
SLACK_BYTES = 6 << 20


class Model:
    def __init__(self, path):
        self.path = str(path)
        subprocess.run([BIN / "terrace", "synthesize", "--out", path, "--dtype", "f16", *SHAPE.split()], check=True, capture_output=True)
        config = json.loads((path / "config.json").read_text())
        self.layers, self.hidden, self.ffn, self.vocab, self.heads, self.kv_heads, self.head_dim, self.context = (
            config[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads",
                                      "num_key_value_heads", "head_dim", "max_position_embeddings")
        )

    def kv_heads_of(self, ranks):
        return max(1, self.kv_heads // ranks)  # a head is on several ranks where there are more of them

    def weights_of(self, ranks):
        """Bytes that a rank multiplies by: all matrices are cut, the embedding is read from the file."""
        heads, kv = self.heads // ranks * self.head_dim, self.kv_heads_of(ranks) * self.head_dim
        layer = self.hidden * (2 * heads + 2 * kv + 3 * self.ffn // ranks)
        return WEIGHT_BYTES * (self.layers * layer + self.vocab // ranks * self.hidden)

    def block_of(self, ranks):
        """Bytes of a KV block at a rank."""
        return 2 * self.layers * self.kv_heads_of(ranks) * self.head_dim * BLOCK_TOKENS * KV_BYTES

    def pool(self):
        """For kv.pool_bytes: one context, where one process has all heads."""
        return -(-self.context // BLOCK_TOKENS) * self.block_of(1)


def memory_of(pid):
    """/proc/PID/smaps_rollup, in bytes."""
    lines = pathlib.Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    return {name: int(kilobytes) << 10 for name, kilobytes in re.findall(r"^(\w+): +(\d+) kB$", "\n".join(lines), re.MULTILINE)}


class RankMemory(unittest.TestCase):
    def test_a_rank_holds_its_share_of_the_model_and_nothing_of_the_others(self):
        with tempfile.TemporaryDirectory(prefix="terrace-memory-") as folder:
            model = Model(pathlib.Path(folder, "model"))
            print(f"\n{SHAPE}, F16; MiB; held: of its own (Pss_Anon); KV pools are taken as they are used")
            print("| ranks | rank | weights by the plan | reported | KV pool by the plan | reported | held | beside the weights | PSS | RSS |")
            print("|---|---|---|---|---|---|---|---|---|---|")
            beside = {ranks: self.measure(model, ranks) for ranks in DEGREES}
        whole = max(beside[1])
        for ranks in DEGREES[1:]:
            for rank, rest in enumerate(beside[ranks]):
                self.assertLess(rest, whole + SLACK_BYTES, f"rank {rank} of {ranks} holds more than its share")
                self.assertGreater(rest + model.weights_of(ranks), whole + SLACK_BYTES, f"with another share rank {rank} of {ranks} would pass")

    def measure(self, model, ranks):
        """What each rank holds beside its weights, after some answers."""
        weights, block = model.weights_of(ranks), model.block_of(ranks)
        kv = model.pool() // block * block
        engine = {"kernels": "auto", "compute": "auto"}
        with RankGroup(ranks, model=model.path, engine=engine, kv={"pool_bytes": model.pool(), "block_tokens": BLOCK_TOKENS}) as group:
            self.work(group)
            reported = {(labels["kind"], int(labels["rank"])): value
                        for labels, value in samples_at(group.ops, "terrace_group_rank_memory_bytes")}
            if ranks > 1:
                expected = {(kind, rank): value for rank in range(ranks) for kind, value in (("weights", weights), ("kv", kv))}
                self.assertEqual(reported, expected)
            held = [memory_of(process.pid) for process in group.processes]
        for rank, memory in enumerate(held):
            cells = (weights, reported.get(("weights", rank)), kv, reported.get(("kv", rank)), memory["Pss_Anon"],
                     memory["Pss_Anon"] - weights, memory["Pss"], memory["Rss"])
            print(f"| {ranks} | {rank} | {' | '.join('' if cell is None else f'{cell / (1 << 20):.1f}' for cell in cells)} |", flush=True)
            self.assertGreater(memory["Pss_Anon"], weights, "its weights are in its memory")
        return [memory["Pss_Anon"] - weights for memory in held]

    def work(self, group):
        """Steps of prompts and of answers, so that what they need is there."""
        done = subprocess.run([BIN / "terrace", "bench", "--worker", group.grpc, "--requests", "4", "--prompt-tokens", "200", "--output-tokens", "4"],
                              capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
