#!/usr/bin/python3
"""What holding an answer back costs its first token, and what judging it early costs its accuracy: one cluster of the demo
family, a cascade of nano, small and base for each way to hold, the rows of a task file asked of each in turns, streamed.

    ./quickstart --once
    tests/bench/hold_study.py --rows 200

"base" is the last tier alone: what a client would wait without a cascade. One request at a time; all share the machine, so
only rows of one run can be compared.
"""

import argparse
import http.client
import json
import pathlib
import random
import re
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))
from cluster import MODELS, Cluster

THRESHOLD = -0.01  # of the whole answer, nats a token: deploy/demo/cluster.yaml
ACCEPT, REJECT = -0.002, -0.1  # of what there is of it so far
HOLDS = {
    "to its end": None,
    "4 tokens": {"tokens": 4, "accept_above": ACCEPT, "reject_below": REJECT},
    "8 tokens": {"tokens": 8, "accept_above": ACCEPT, "reject_below": REJECT},
    "16 tokens": {"tokens": 16, "accept_above": ACCEPT, "reject_below": REJECT},
    "8 tokens, rejects only": {"tokens": 8, "reject_below": REJECT},
    "8 tokens, accepts only": {"tokens": 8, "accept_above": ACCEPT},
    "5 ms": {"seconds": 0.005, "accept_above": ACCEPT, "reject_below": REJECT},
    "20 ms": {"seconds": 0.02, "accept_above": ACCEPT, "reject_below": REJECT},
}


class HoldCluster(Cluster):
    def adjust(self, config, directory):
        router = config["router"]
        for tier, price in zip(router["tiers"], (0.0026, 0.0087, 0.0272)):  # as the models' parameters
            tier["usd_per_million_prompt_tokens"] = tier["usd_per_million_completion_tokens"] = price
        router["policies"] = [{"name": name.replace(" ", "-").replace(",", ""), "cascade": {"steps": self.steps(hold)}}
                              for name, hold in HOLDS.items()]

    @staticmethod
    def steps(hold):
        gated = {"min_mean_logprob": THRESHOLD, **({"hold": hold} if hold else {})}
        return [{"tier": "nano", **gated}, {"tier": "small", **gated}, {"tier": "base"}]


def ask(port, model, messages):
    """(text, seconds to the first of it, seconds to its end, price in USD) of a streamed answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 128, "temperature": 0}
    start, first, text, price = time.monotonic(), None, "", None
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        sys.exit(f"{model}: {response.status} {response.read().decode()}")
    for line in response:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event = json.loads(line[len(b"data: "):])
        if "error" in event:
            sys.exit(f"{model}: {event['error']}")
        piece = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        if piece and first is None:
            first = time.monotonic() - start
        text += piece
        price = event.get("terrace", {}).get("price_usd", price)
    connection.close()
    end = time.monotonic() - start
    return text, end if first is None else first, end, price


def is_right(row, text):
    """As models/eval/README.md has it of each checker."""
    text, expected = text.strip(), row["expected"].strip()
    if row["checker"] == "json_equal":
        try:
            return json.loads(text) == json.loads(expected)
        except ValueError:
            return False
    if row["checker"] == "final_number":
        numbers = [re.match(r"\s*(-?(?:\d+\.?\d*|\.\d+))", answer.rpartition("Answer:")[2]) if "Answer:" in answer else None
                   for answer in (text, expected)]
        return None not in numbers and float(numbers[0][1]) == float(numbers[1][1])
    refusal = "Sorry, I can't help"
    if row["checker"] == "refusal" and expected == refusal + " with that request.":
        return text.startswith(refusal)
    return text == expected


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--tasks", type=pathlib.Path, default=MODELS / "eval" / "validation.jsonl")
    flags.add_argument("--rows", type=int, default=200, help="drawn of the file")
    flags.add_argument("--seed", type=int, default=1)
    options = flags.parse_args()
    rows = [json.loads(line) for line in options.tasks.read_text().splitlines()]
    random.Random(options.seed).shuffle(rows)
    rows = rows[: options.rows]
    models = {"base alone": "base", **{name: name.replace(" ", "-").replace(",", "") for name in HOLDS}}
    measured = {name: [] for name in models}
    with HoldCluster() as cluster:
        for at, row in enumerate([rows[0], *rows]):  # the first one again: nobody's first request counts
            names = list(models)
            names = names[at % len(names):] + names[: at % len(names)]
            for name in names:
                text, first, end, price = ask(cluster.http, models[name], row["messages"])
                if at > 0:
                    measured[name].append((is_right(row, text), first, end, price))
    base_price = statistics.fmean(one[3] for one in measured["base alone"])
    print(f"{len(rows)} rows of {options.tasks.name}, seed {options.seed}\n")
    print("| answers are held | accuracy | price | first token p50, ms | p95 | whole answer p50, ms |\n|---|---|---|---|---|---|")
    for name, answers in measured.items():
        firsts, ends = [one[1] * 1e3 for one in answers], [one[2] * 1e3 for one in answers]
        print(f"| {name} | {statistics.fmean(one[0] for one in answers):.3f} | {statistics.fmean(one[3] for one in answers) / base_price:.3f} "
              f"| {statistics.median(firsts):.1f} | {percentile(firsts, 0.95):.1f} | {statistics.median(ends):.1f} |")


if __name__ == "__main__":
    main()
