#!/usr/bin/python3
"""What each `balance.policy` is worth where prompts share prefixes: a cluster of four workers for each, started afresh, in turns,
the same requests for all policies of a round.

    ./quickstart --once
    bin/terrace synthesize --out 135m.gguf --shape 135m --dtype q8_0
    tests/bench/balancing.py --model 135m.gguf

Client, router and workers share the cores of this machine, so only ratios within a round count.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))
from cluster import BIN, Cluster, free_ports

POLICIES = ["prefix", "power_of_two", "least_loaded", "round_robin", "random"]


class BalancedCluster(Cluster):
    def __init__(self, policy, model, workers):
        self.policy, self.model, self.workers = policy, str(model.resolve()), workers
        super().__init__()

    def adjust(self, config, directory):
        ports = free_ports(2 * self.workers)
        grpc = [f"127.0.0.1:{port}" for port in ports[: self.workers]]
        ops = [f"127.0.0.1:{port}" for port in ports[self.workers :]]
        router = config["router"]
        router["tiers"] = [{"name": "tier", "workers": grpc}]
        router["policies"] = []
        router["balance"] = {"policy": self.policy}
        config["workers"] = [
            {"model": self.model, "grpc": g, "ops": o, "engine": {"threads": 1}, "kv": {"dtype": "f16"}} for g, o in zip(grpc, ops)
        ]


def run(policy, seed, options):
    """What one policy made of the requests of `seed`."""
    with BalancedCluster(policy, options.model, options.workers) as cluster:
        command = [BIN / "terrace", "bench", "--router", f"127.0.0.1:{cluster.grpc}", "--json", "-", "--seed", str(seed)]
        for name in ("concurrency", "requests", "prompt_tokens", "shared_prefix_tokens", "prefix_groups", "output_tokens"):
            command += ["--" + name.replace("_", "-"), str(getattr(options, name))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        if done.returncode != 0:
            sys.exit(f"{policy}: {done.stderr.strip()}")
    level = json.loads(done.stdout)["levels"][0]
    if level["requests"]["failed"] > 0 or level["failures"]:
        sys.exit(f"{policy}: {level['failures']}")
    first = level["latency_seconds"]["first_token"]
    return {
        "cached": level["tokens"]["cached_share"],
        "first p50": first["p50"],
        "first p99": first["p99"],
        "output": level["output_tokens_per_second"],
    }


def spread(values, scale, digits):
    return f"{statistics.median(values) * scale:.{digits}f} ({min(values) * scale:.{digits}f} to {max(values) * scale:.{digits}f})"


def print_table(results):
    print("| policy | prompt tokens cached | first token p50, s | p99, s | output tok/s | p50 over round_robin's |\n|---|---|---|---|---|---|")
    for policy, rounds in results.items():
        column = lambda name: [each[name] for each in rounds]
        base = results.get("round_robin")
        ratios = [a["first p50"] / b["first p50"] for a, b in zip(rounds, base)] if base else []
        print(f"| {policy} | {spread(column('cached'), 100, 0)}% | {spread(column('first p50'), 1, 2)} | {spread(column('first p99'), 1, 2)} | "
              f"{spread(column('output'), 1, 1)} | {spread(ratios, 1, 2) if ratios else ''} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--policies", type=lambda text: text.split(","), default=POLICIES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--prompt-tokens", type=int, default=640)
    parser.add_argument("--shared-prefix-tokens", type=int, default=512)
    parser.add_argument("--prefix-groups", type=int, default=16)
    parser.add_argument("--output-tokens", type=int, default=16)
    options = parser.parse_args()
    unknown = [policy for policy in options.policies if policy not in POLICIES]
    if unknown or not options.model.exists():
        parser.error(f"no policy {unknown[0]}" if unknown else f"no model {options.model}")
    results = {policy: [] for policy in options.policies}
    for seed in range(1, options.rounds + 1):
        shift = seed % len(options.policies)
        for policy in options.policies[shift:] + options.policies[:shift]:
            results[policy].append(run(policy, seed, options))
            print(f"round {seed}, {policy}: {results[policy][-1]}", file=sys.stderr, flush=True)
    most = options.shared_prefix_tokens * (1 - options.prefix_groups / options.requests) / options.prompt_tokens
    print(f"at most {most:.0%} of the prompts' tokens can be cached, if each prefix is computed once\n")
    print_table(results)


if __name__ == "__main__":
    main()
