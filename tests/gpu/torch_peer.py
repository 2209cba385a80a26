#!/usr/bin/env python3
"""What PyTorch reaches on this GPU, for what tests/gpu/bench.cc measures: the same shapes (Llama 3.1 8B's), the
same bytes counted, memory that rotates beyond the device's cache, calls in CUDA graphs. Prints JSON to
standard output, a table to standard error; --json FILE writes it to a file too. Takes about 15 s."""

import argparse
import json
import statistics
import sys
import time

try:
    import torch
    import torch.nn.functional as functional
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    sys.exit(f"no PyTorch: {error}")

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
MATRICES = {"qkv": (6144, 4096), "output": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336),
            "head": (128256, 4096)}
LAYER = ("qkv", "output", "gate_up", "down")
ROTATE_BYTES = 400 << 20
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def seconds_of(work, rounds=7):
    """Median seconds of a call of `work`, which only queues, and (largest - smallest) / median."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    until = time.monotonic() + 0.01
    while True:
        work()
        torch.cuda.synchronize()
        if time.monotonic() >= until:
            break
    seconds = []
    for _ in range(rounds):
        begin.record()
        work()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    median = statistics.median(seconds)
    return median, (max(seconds) - min(seconds)) / median


def seconds_of_graph(calls):
    """Median seconds of each of `calls`, run one after the other as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is made at a first call is made outside of the graph
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    seconds, spread = seconds_of(graph.replay)
    return seconds / len(calls), spread


class Report:
    def __init__(self):
        self.entries = []

    def add(self, name, value, unit, spread=None, fraction=None, limit=None):
        assert value == value and value != float("inf"), name
        self.entries.append({"name": name, "value": value, "unit": unit, "spread": spread,
                             "fraction": fraction, "limit": limit})
        share = "" if fraction is None else f"{fraction:9.3f} {limit}"
        print(f"{name:<52} {value:10.4g} {unit:<8} {share}", file=sys.stderr, flush=True)


def check_finite(name, tensor):
    if not torch.isfinite(tensor).all():
        sys.exit(f"{name}: outputs that are not finite")


def measure_limits(report):
    source = torch.randint(0, 256, (2 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds, spread = seconds_of(lambda: target.copy_(source), 15)
    copy = 2 * source.numel() / seconds
    report.add("copy of 2 GiB, read and written", copy / 1e9, "GB/s", spread)
    del source, target
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    for _ in range(50):
        torch.mm(a, b.t(), out=out)
    seconds, spread = seconds_of(lambda: torch.mm(a, b.t(), out=out), 15)
    check_finite("mm", out)
    matmul = 2 * 8192**3 / seconds
    report.add("bf16 product of 8192 x 8192 x 8192", matmul / 1e9, "GFLOP/s", spread)
    return copy, matmul


def measure_linear(report, copy, matmul):
    seconds = {}
    tokens_of = (1, 4, 8, 16, 32, 64)
    for name, (rows, columns) in MATRICES.items():
        weight_bytes = 2 * rows * columns
        weights = [torch.randn(rows, columns, dtype=torch.bfloat16, device="cuda") * 0.02
                   for _ in range(max(1, ROTATE_BYTES // weight_bytes))]
        for tokens in tokens_of:
            x = torch.randn(tokens, columns, dtype=torch.bfloat16, device="cuda")
            outputs = []
            calls = [lambda w=w: outputs.append(functional.linear(x, w)) for w in weights]
            repeats = max(1, round(2e-3 * copy / weight_bytes / len(calls)))
            each, spread = seconds_of_graph(calls * repeats)
            check_finite(name, outputs[-1])
            seconds[name, tokens] = each
            limit = max((weight_bytes + 2 * tokens * (rows + columns)) / copy,
                        2 * tokens * rows * columns / matmul)
            report.add(f"linear bf16, {tokens} tokens: {name}", each * 1e6, "us", spread, limit / each,
                       "copy, matmul")
        del weights
    for tokens in tokens_of:
        layer = sum(seconds[name, tokens] for name in LAYER)
        report.add(f"linear bf16, {tokens} tokens: a layer", layer * 1e6, "us")


def sdpa(query, key, value, causal):
    return functional.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)


def each_backend(report, name, measure):
    """measure(its name) within each backend; those that do not take the shapes are said to be left out."""
    for backend, which in BACKENDS.items():
        try:
            with sdpa_kernel(which):
                measure(f"{name}, {backend}")
        except RuntimeError as error:
            if "out of memory" in str(error) or "CUDA error" in str(error):
                raise
            print(f"{name}, {backend}: {str(error).splitlines()[0]}", file=sys.stderr)


def measure_attention(report, copy, matmul):
    def random(*shape):
        return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")

    for tokens in (512, 2048, 8192, 32768):
        query = random(1, HEADS, tokens, HEAD_DIM)
        key, value = (random(1, KV_HEADS, tokens, HEAD_DIM) for _ in range(2))
        flops = 4 * HEADS * HEAD_DIM * tokens * (tokens + 1) / 2

        def prefill(name):
            out = sdpa(query, key, value, True)
            check_finite(name, out)
            calls = [lambda: sdpa(query, key, value, True)] * max(16384 // tokens, 1)
            seconds, spread = seconds_of_graph(calls)
            report.add(name, flops / seconds / 1e12, "TFLOP/s", spread, flops / seconds / matmul, "matmul")

        each_backend(report, f"prefill attention bf16, {tokens} tokens", prefill)
    for count, context in ((64, 8192), (256, 1024), (1, 8192)):
        one_bytes = 2 * 2 * count * context * KV_HEADS * HEAD_DIM
        turns = max(1, ROTATE_BYTES // one_bytes)
        query = random(count, HEADS, 1, HEAD_DIM)
        pairs = [tuple(random(count, KV_HEADS, context, HEAD_DIM) for _ in range(2)) for _ in range(turns)]

        def decode(name):
            check_finite(name, sdpa(query, *pairs[0], False))
            repeats = max(1, round(2e-3 * copy / one_bytes / turns))
            seconds, spread = seconds_of_graph([lambda p=p: sdpa(query, *p, False) for p in pairs] * repeats)
            report.add(name, seconds * 1e6, "us", spread, one_bytes / seconds / copy, "copy")

        each_backend(report, f"decode attention bf16, {count} x {context}, contiguous", decode)
        del pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="file for the results too")
    flags = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU: PyTorch sees none")
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    report = Report()
    begin = time.monotonic()
    copy, matmul = measure_limits(report)
    measure_linear(report, copy, matmul)
    measure_attention(report, copy, matmul)
    text = json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__,
                       "seconds": time.monotonic() - begin, "entries": report.entries}, indent=1)
    print(text)
    if flags.json:
        with open(flags.json, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
