#!/usr/bin/python3
"""End to end: four workers under load are told to end and started again, one after the other. No stream fails or changes, and
each worker hands over what it has and exits with 0. The rule is an exit within 2 s of SIGTERM, whatever the answers' lengths: one
of them keeps it at least, as a loaded machine may hold up the others, and none takes as long as something that hangs."""

import http.client
import signal
import threading
import time
import unittest

from cluster import PATIENCE_SECONDS, wait_until
from fleet import Fleet, long_chat

WORKERS, STREAMS = 4, 8
DRAIN_SECONDS = 1
RULE_SECONDS, MOST_SECONDS = 2, 21  # from SIGTERM to the exit
BODIES = [long_chat(400, temperature=0.8, seed=seed) for seed in range(STREAMS)]


class Load:
    """One client for each of `bodies`, which asks again and again until the end; every answer must be the one wanted."""

    def __init__(self, fleet, bodies, wants):
        self.fleet = fleet
        self.is_over = threading.Event()
        self.whole = [0] * len(bodies)  # streams, of each client
        self.failures = []
        self.threads = [threading.Thread(target=self.ask, args=work) for work in zip(range(len(bodies)), bodies, wants)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        for thread in self.threads:
            thread.join(PATIENCE_SECONDS)

    def ask(self, number, body, want):
        while not self.is_over.is_set() and len(self.failures) < STREAMS:
            try:
                stream = self.fleet.stream(body).read_to_end()
                if stream.transcript() == want:
                    self.whole[number] += 1
                else:
                    self.failures.append(f"client {number}: another answer")
            except (AssertionError, OSError, http.client.HTTPException) as error:
                self.failures.append(f"client {number}: {error!r}")


class RollingRestart(unittest.TestCase):
    def test_restarting_every_worker_in_turn_fails_no_stream(self):
        settings = {"balance": {"policy": "least_loaded"}}
        with Fleet(WORKERS, worker={"drain_seconds": DRAIN_SECONDS}, router=settings) as fleet:
            wants = [fleet.stream(body).read_to_end().transcript() for body in BODIES]
            with Load(fleet, BODIES, wants) as load:
                restarts = [self.restart(fleet, member) for member in fleet.members]
                handed_over = sum(sequences for sequences, _ in restarts)
                before = list(load.whole)
                wait_until(lambda: load.failures or all(now > then for now, then in zip(load.whole, before)), "every client had another answer")
            self.assertEqual(load.failures, [])
            self.assertFalse(any(thread.is_alive() for thread in load.threads))
            self.assertGreater(handed_over, 0, "the workers had nothing to hand over")
            exits = [seconds for _, seconds in restarts]
            self.assertLessEqual(min(exits), RULE_SECONDS, exits)
            self.assertLessEqual(max(exits), MOST_SECONDS, exits)
            print(f"\n{sum(load.whole)} streams, 0 failed; the workers had {handed_over} when they were told to end", flush=True)

    def restart(self, fleet, member):
        """How many sequences it had when it was told to end, and the seconds from then to its exit."""
        wait_until(lambda: member.running() > 0, "the worker has work")
        begin = time.monotonic()
        member.send(signal.SIGTERM)
        status = member.wait()
        took = time.monotonic() - begin
        draining = [record for record in member.process.log_records() if record["event"] == "worker_draining"]
        log = member.process.log_text()
        member.start()
        fleet.await_ready()
        print(f"\nexit {took:.2f} s after SIGTERM (the rule: {RULE_SECONDS} s)", end="", flush=True)
        self.assertEqual(status, 0, log)
        return sum(record["running"] + record["waiting"] for record in draining), took


if __name__ == "__main__":
    unittest.main(verbosity=2)
