#!/usr/bin/python3
"""End to end: a request that kills or hangs whatever worker runs it takes two with it, not more. Then it is refused, by its
fingerprint, with a 500 that says so, also after a reload, and nobody else is: streams that ran beside it are whole.

The workers are of a build with failpoints (base/failpoint.h), in which a prompt with one certain token kills, or stops:

    bazel build --config=failpoints //worker/server:terrace-worker    # as ./run_tests does, which keeps a copy of it as
                                                                      # bin/terrace-worker-failpoints
TERRACE_FAILPOINT_WORKER names another one.
"""

import json
import os
import pathlib
import signal
import subprocess
import unittest

from cluster import BIN, PATIENCE_SECONDS, wait_until
from fleet import Fleet, long_chat
from processes import http_call, metric_at

WORKER = pathlib.Path(os.environ.get("TERRACE_FAILPOINT_WORKER") or BIN / "terrace-worker-failpoints")
POISON = 1021  # a token that is in no other prompt here
WORKERS = 4
# What is stopped sends nothing more, also what it was about to. That it has begun is told before the first step: here the poison
# is in the second one.
SHORT_STEPS = {"engine": {"threads": 1, "compute": "f32", "kernels": "reference", "max_step_tokens": 32}}
LATE_POISON = [0, 2, *[16] * 60, POISON]


def has_failpoints(program):
    """The variable that arms them is named in a binary only when one of them is in it."""
    return program.exists() and b"TERRACE_FAILPOINTS" in program.read_bytes()


def is_stopped(member):
    """By SIGSTOP."""
    return pathlib.Path(f"/proc/{member.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def reload(fleet):
    """The router reads its configuration anew, and has."""
    def reloads():
        return metric_at(fleet.router.port("ops"), "terrace_config_reloads_total", default=0)

    before = reloads()
    os.kill(fleet.router.pid, signal.SIGHUP)
    wait_until(lambda: reloads() > before, "the configuration is read again")
    assert fleet.router.metric("terrace_config_reload_success") == 1


class Poison(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not has_failpoints(WORKER):
            raise AssertionError(f"{WORKER} is no worker with failpoints, which this test needs; ./run_tests makes one:\n{__doc__}")

    def ask(self, fleet, last_token, **fields):
        """Status and text of the answer to a prompt of tokens."""
        body = {"model": "base", "prompt": [0, 2, 16, last_token], "max_tokens": 4, "temperature": 0, **fields}
        status, _, text = http_call(fleet.http, "POST", "/v1/completions", body)
        return status, text.decode()

    def expect_quarantined(self, answer):
        status, text = answer
        self.assertEqual(status, 500, text)
        error = json.loads(text)["error"]
        self.assertIn("quarantine", f"{error['code']} {error['message']}".lower())

    def test_a_request_that_killed_two_workers_is_refused_and_no_third_dies(self):
        with Fleet(WORKERS, program=WORKER, failpoints=f"worker.computes_token:{POISON}=kill") as fleet:
            def dead():
                return [member for member in fleet.members if not member.is_alive()]

            self.assertEqual(self.ask(fleet, last_token=300)[0], 200)
            self.expect_quarantined(self.ask(fleet, POISON))
            wait_until(lambda: len(dead()) == 2, "two workers are dead")
            for more in ({}, {"stream": True}, {}):
                self.expect_quarantined(self.ask(fleet, POISON, **more))
            self.assertEqual(self.ask(fleet, last_token=300)[0], 200, "others are served")
            reload(fleet)
            self.expect_quarantined(self.ask(fleet, POISON))
            self.assertEqual(len(dead()), 2)

            for member in dead():
                self.assertEqual(member.wait(), -9)
                member.start()
            fleet.await_ready()
            self.expect_quarantined(self.ask(fleet, POISON))
            self.assertEqual(self.ask(fleet, last_token=301)[0], 200)
            self.assertEqual(dead(), [])

    def test_a_request_that_hung_two_workers_is_refused_and_no_third_hangs(self):
        with Fleet(WORKERS, worker=SHORT_STEPS, program=WORKER, failpoints=f"worker.computes_token:{POISON}=stop") as fleet:
            def stopped():
                return sum(map(is_stopped, fleet.members))

            def ask_poison(**more):
                return self.ask(fleet, POISON, prompt=LATE_POISON, **more)

            self.assertEqual(self.ask(fleet, last_token=300)[0], 200)
            self.expect_quarantined(ask_poison())
            self.assertEqual(stopped(), 2)
            for more in ({}, {"stream": True}):
                self.expect_quarantined(ask_poison(**more))
            reload(fleet)
            self.expect_quarantined(ask_poison())
            self.assertEqual(self.ask(fleet, last_token=300)[0], 200, "others are served")
            self.assertEqual(stopped(), 2)

            for member in fleet.members:
                member.send(signal.SIGCONT)
            fleet.await_ready()
            self.expect_quarantined(ask_poison())
            self.assertEqual(stopped(), 0)

    def test_a_worker_does_not_start_with_a_fault_that_cannot_happen(self):
        for faults, cause in (("worker.typo=kill", 'no place "worker.typo"'), ("worker.after_step:5=kill", "has no values"),
                              ("worker.after_step=error", "can give no error"), ("worker.after_step", "is not NAME")):
            with self.subTest(faults=faults):
                ended = subprocess.run([WORKER, "--version"], env={**os.environ, "TERRACE_FAILPOINTS": faults}, capture_output=True,
                                       text=True, timeout=PATIENCE_SECONDS, check=False)
                self.assertEqual(ended.returncode, 78, ended.stderr)
                self.assertIn(cause, ended.stderr)

    def test_streams_that_ran_beside_it_are_whole(self):
        bodies = [long_chat(64, temperature=0.8, seed=seed) for seed in range(2 * WORKERS)]
        with Fleet(WORKERS, program=WORKER, failpoints=f"worker.computes_token:{POISON}=kill",
                   router={"balance": {"policy": "round_robin"}}) as fleet:
            want = [fleet.stream(body).read_to_end().transcript() for body in bodies]
            streams = [fleet.stream(body).read_pieces(1) for body in bodies]
            self.expect_quarantined(self.ask(fleet, POISON))
            for stream, whole in zip(streams, want):
                self.assertEqual(stream.read_to_end().transcript(), whole)
            self.assertEqual(sum(not member.is_alive() for member in fleet.members), 2)
            self.assertEqual(fleet.stream(bodies[0]).read_to_end().transcript(), want[0])


if __name__ == "__main__":
    unittest.main(verbosity=2)
