#!/usr/bin/env python3
"""Thresholds from shadow traffic: a router records what every tier of a policy answers to its requests, and `terrace calibrate`
takes the file."""

import json
import pathlib
import subprocess
import tempfile
import unittest

from cluster import BIN, MODELS, wait_until
from processes import Process, Worker, http_call

TIERS = ("nano", "base")
ROWS = 10  # of each task


def questions():
    for task in ("classify", "rewrite", "compute"):
        with open(MODELS / "eval" / f"{task}.jsonl", encoding="utf-8") as rows:
            yield from (json.loads(next(rows))["messages"] for _ in range(ROWS))


class ShadowRecords(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="terrace-e2e-")))
        cls.file = cls.folder / "auto.jsonl"
        workers = {tier: cls.enterClassContext(Worker(tier)) for tier in TIERS}
        cls.config = {
            "listen": {name: "127.0.0.1:0" for name in ("http", "grpc", "ops")},
            "tiers": [{"name": tier, "workers": [worker.grpc]} for tier, worker in workers.items()],
            "policies": [{
                "name": "auto",
                "cascade": {"steps": [{"tier": "nano", "min_mean_logprob": -0.05}, {"tier": "base"}]},
                "shadow": {"share": 1, "records_file": str(cls.file)},
            }],
        }
        cls.router = cls.enterClassContext(Process(BIN / "terrace-router", "router_ready", config=cls.config))
        wait_until(lambda: http_call(cls.router.port("ops"), "GET", "/readyz")[0] == 200, "the router is ready")
        wait_until(lambda: cls.status() == [1, 1], "both tiers are ready")

    @classmethod
    def status(cls):
        return [tier["ready_replicas"] for tier in json.loads(http_call(cls.router.port("ops"), "GET", "/statusz")[2])["tiers"]]

    def answer(self, model, messages):
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 64}
        status, _, reply = http_call(self.router.port("http"), "POST", "/v1/chat/completions", body)
        self.assertEqual(status, 200, reply)
        return json.loads(reply)["choices"][0]["message"]["content"].strip()

    def rows(self):
        text = self.file.read_text() if self.file.exists() else ""
        return [json.loads(line) for line in text.split("\n")[1:-1]]  # behind the last newline is what is still being written

    def test_a_calibration_is_made_of_what_a_router_saw(self):
        expected = []
        for number, messages in enumerate(questions(), 1):
            self.answer("auto", messages)
            wait_until(lambda: len(self.rows()) == number, f"record {number}")  # one after the other: none is left out
            small, large = (self.answer(tier, messages) for tier in TIERS)
            expected.append(small == large)
        rows = self.rows()
        self.assertEqual([row["answers"][0]["right"] for row in rows], expected)
        self.assertIn(False, expected)
        self.assertTrue(all(row["answers"][1]["right"] for row in rows))
        self.assertEqual({row["task"] for row in rows}, {"shadow"})

        made = self.folder / "auto.json"
        done = subprocess.run([BIN / "terrace", "calibrate", "--records", self.file, "--epsilon", "0.5", "--out", made],
                              capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr)
        policy = {"name": "auto", "calibration": str(made)}
        with Process(BIN / "terrace-router", "router_ready", config={**self.config, "policies": [policy]}) as router:
            body = {"model": "auto", "messages": next(questions()), "temperature": 0}
            wait_until(lambda: http_call(router.port("http"), "POST", "/v1/chat/completions", body)[0] == 200, "an answer")
            reply = json.loads(http_call(router.port("http"), "POST", "/v1/chat/completions", body)[2])
            self.assertRegex(reply["terrace"]["reason"], "^cascade: accepted at step")


if __name__ == "__main__":
    unittest.main()
