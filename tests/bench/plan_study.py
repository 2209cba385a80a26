#!/usr/bin/python3
"""What `terrace plan` predicts against what it measures: models and key-value types under several kinds of traffic.

    ./quickstart --once                                  # builds bin/terrace
    tests/bench/plan_study.py [--model models/terrace-demo-base]... [--rounds 3] [--json FILE]

Each configuration is planned alone and run with --verify, so that predicted and measured stand side by side; the rounds go
through all configurations, one after the other. Printed are the medians of the errors (predicted over measured, less one)
over the rounds, and at the end their medians and largest over the configurations. A machine that does other work meanwhile
shows in the 99th percentiles first.
"""

import argparse
import collections
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAFFIC = {
    "one at a time": ["--prompt-tokens", "64", "--output-tokens", "48", "--concurrency", "1", "--requests", "100"],
    "8 at a time": ["--prompt-tokens", "uniform:16-200", "--output-tokens", "uniform:16-96", "--concurrency", "8", "--requests", "200"],
    "shared prefix": ["--prompt-tokens", "200", "--shared-prefix-tokens", "160", "--output-tokens", "32", "--concurrency", "4", "--requests", "200"],
    "at random times": ["--prompt-tokens", "lognormal:80,0.5", "--output-tokens", "lognormal:40,0.5", "--requests", "200"],
}
LOAD = 0.5  # of what eight at a time do: the rate of arrivals at random times
LINE = re.compile(r"^(output tok/s|first token p50|first token p99|inter-token p50|inter-token p99) +(.*\S) +([+-][0-9.]+)%$")


def plan(arguments, work):
    """name -> error, and tokens a second as measured."""
    command = [ROOT / "bin/terrace", "plan", "--price-per-hour", "0.1", "--verify", "--work", work, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    errors, rate = {}, None
    for line in result.stdout.splitlines():
        found = LINE.match(line.strip())
        if found:
            errors[found[1]] = float(found[3]) / 100
            if found[1] == "output tok/s":
                rate = float(found[2].split()[-1])
    if len(errors) != 5:
        sys.exit(f"{' '.join(map(str, command))}: exit code {result.returncode}\n{result.stdout}{result.stderr}")
    return errors, rate


def configurations(models):
    for model in models:
        yield pathlib.Path(model).name, ["--model", model]
    largest = models[-1]
    name = pathlib.Path(largest).name
    yield f"{name}, KV int8", ["--model", largest, "--kv-dtype", "int8"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="a model to plan for; the last one also with keys and values in int8 (default: the demo family and what is quantized of it)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="file for all of it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="terrace-plan-study-") as work:
        models = arguments.model
        if not models:
            base = str(ROOT / "models/terrace-demo-base")
            models = [str(ROOT / "models/terrace-demo-small"), base]
            quantized = f"{work}/base-q8_0"
            subprocess.run([ROOT / "bin/terrace", "quantize", "--model", base, "--to", "q8_0", "--method", "rtn", "--out", quantized], check=True, capture_output=True)
            models.insert(1, quantized)
        errors = collections.defaultdict(lambda: collections.defaultdict(list))
        measured = collections.defaultdict(list)
        for _ in range(arguments.rounds):
            for name, flags in configurations(models):
                rate = None
                for traffic, load in TRAFFIC.items():
                    if traffic == "at random times":
                        per_second = LOAD * rate / 56  # tokens of an answer of eight at a time, in the mean
                        load = [*load, "--rate", f"{per_second:.3f}"]
                    found, tokens = plan([*flags, *load], work)
                    if traffic == "8 at a time":
                        rate = tokens
                    measured[name, traffic].append(tokens)
                    for what, error in found.items():
                        errors[name, traffic][what].append(error)
    columns = ["output tok/s", "first token p50", "first token p99", "inter-token p50", "inter-token p99"]
    print(f"{len(errors)} configurations, medians of {arguments.rounds} rounds; predicted over measured, less one")
    print("".join([f"{'model':32}{'traffic':18}{'measured tok/s':>15}", *(f"{column:>18}" for column in columns)]))
    for (name, traffic), found in errors.items():
        row = [f"{name:32}{traffic:18}{statistics.median(measured[name, traffic]):15.0f}"]
        row += [f"{statistics.median(found[column]):+18.1%}" for column in columns]
        print("".join(row))
    for title, of in (("median of the absolute errors", statistics.median), ("largest", max)):
        row = [f"{title:65}"]
        for column in columns:
            row.append(f"{of(abs(statistics.median(found[column])) for found in errors.values()):18.1%}")
        print("".join(row))
    if arguments.json:
        rows = [{"model": name, "traffic": traffic, "output_tokens_per_second": measured[name, traffic], "errors": found} for (name, traffic), found in errors.items()]
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
