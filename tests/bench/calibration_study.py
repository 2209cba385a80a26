#!/usr/bin/python3
"""What `terrace calibrate` makes of the demo family: settings are compared on validation rows, tests are only reported.

    ./quickstart                                    # builds bin/terrace
    tests/bench/calibration_study.py --work /tmp/study [--extra validation-2.jsonl]

Every tier answers the validation and the test tasks once (in this process, exact arithmetic); the records stay in the
work folder. For each setting the table has the chosen thresholds on the validation rows that tested them, and what
they do on the test rows. Below stand thresholds on the mean log-probability, each tier alone and the oracle.
"""

import argparse
import itertools
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TERRACE = ROOT / "bin" / "terrace"
EVAL = ROOT / "models" / "eval"
TIERS = ("nano", "small", "base")
TESTS = ("classify", "extract", "moderate", "compute", "rewrite", "lookup")
FEATURES = ("mean_logprob", "signals", "signals,prompt", "signals,prompt,derived", "signals,prompt,derived,agreement")
TARGETS = ("right", "no_worse")
EPSILONS = (0.03, 0.05, 0.08)


def run(*arguments):
    """The output of a command of terrace, or None and its reason."""
    done = subprocess.run([TERRACE, *map(str, arguments)], capture_output=True, text=True)
    return (done.stdout, "") if done.returncode == 0 else (None, done.stderr.strip())


def ask(name, tasks, options, tiers=TIERS):
    """The records of these tasks; they are made the first time."""
    path = options.work / f"{name}.jsonl"
    if not path.exists():
        models = ",".join(f"{tier}={ROOT / 'models' / f'terrace-demo-{tier}'}" for tier in tiers)
        print(f"asking {name} ...", file=sys.stderr, flush=True)
        output, reason = run("calibrate", "--tiers", models, "--compute", "f32", "--tasks", *tasks, "--save-records", path,
                             "--records-only")
        if output is None:
            sys.exit(f"{name}: {reason}")
    return path


def row_of(output, first_word):
    """The cells of the row that begins with this word."""
    line = re.search(rf"^{first_word}  +(.*)$", output, re.MULTILINE).group(1)
    return re.split(r"  +", line.strip())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the records")
    parser.add_argument("--extra", type=pathlib.Path, nargs="*", default=[], help="more task files to tune on")
    parser.add_argument("--seeds", type=int, default=3, help="splits of the validation rows")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    validation = ask("validation", [EVAL / "validation.jsonl", *options.extra], options)
    test = ask("test", [EVAL / f"{task}.jsonl" for task in TESTS], options)

    head = f"{'features':34} {'target':9} {'epsilon':>7} {'seed':>4}   validation: accuracy  cost  bound   test: accuracy  cost"
    print(head)
    output = None
    for features, target, epsilon, seed in itertools.product(FEATURES, TARGETS, EPSILONS, range(options.seeds)):
        setting = f"{features:34} {target:9} {epsilon:7} {seed:4}"
        told, reason = run("calibrate", "--records", validation, "--report", test, "--features", features, "--target",
                           target, "--epsilon", epsilon, "--seed", seed)
        if told is None:
            print(f"{setting}   {reason}")
            continue
        output = told
        # thresholds of all tiers but the last, then accuracy, cost, losses, bound, answered by
        accuracy, cost, _, bound = row_of(told, "chosen")[len(TIERS) - 1:][:4]
        test_accuracy, test_cost = row_of(told, "calibrated")[:2]
        print(f"{setting}   {accuracy:>20} {cost:>5} {bound:>6}   {test_accuracy:>14} {test_cost:>5}", flush=True)
    if output is not None:
        print("\n" + output[output.index("report on"):])


if __name__ == "__main__":
    main()
