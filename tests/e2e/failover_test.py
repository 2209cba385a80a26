#!/usr/bin/python3
"""End to end: a worker is killed, stopped or told to end in the middle of an answer, at each of many tokens. The client sees
the stream that it sees when nothing happens, to the byte, with the same usage; and how long it waited is printed.

    TERRACE_FAILOVER_POSITIONS=all tests/e2e/failover_test.py    # at each of 64 tokens: about 20 minutes
    TERRACE_FAILOVER_POSITIONS=1,2,40 tests/e2e/failover_test.py FailoverTest.test_a_stopped_worker
"""

import contextlib
import os
import signal
import statistics
import unittest

from fleet import KINDS, Fleet, long_chat, percentile

LAST_POSITION = 64
MAX_TOKENS = 128  # so many more than the last position that the answer is not over before the worker is
DRAIN_SECONDS = 0.05  # soon enough for an answer to be handed over

BODIES = {kind: long_chat(MAX_TOKENS, **fields) for kind, fields in KINDS.items()}


def positions(every):
    """The tokens at which something happens: as the environment says, else each `every`-th of eight."""
    wanted = os.environ.get("TERRACE_FAILOVER_POSITIONS", "")
    if wanted == "all":
        return range(1, LAST_POSITION + 1)
    if wanted:
        return [int(word) for word in wanted.split(",")]
    return [1, 2, 10, 19, 28, 37, 50, LAST_POSITION][::every]


class FailoverTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        settings = {"balance": {"policy": "round_robin"}}
        cls.fleet = cls.enterClassContext(Fleet(2, worker={"drain_seconds": DRAIN_SECONDS}, router=settings))
        cls.want, cls.usual_gap = {}, {}
        for kind, body in BODIES.items():
            streams = [cls.fleet.stream(body).read_to_end() for _ in range(3)]  # at both workers, with and without a cached prompt
            cls.want[kind] = streams[0].transcript()
            for stream in streams:
                if stream.transcript() != cls.want[kind]:
                    raise AssertionError(f"{kind}: undisturbed streams differ")
                if stream.pieces <= LAST_POSITION:
                    raise AssertionError(f"{kind}: only {stream.pieces} pieces of text")
            times = streams[0].times
            cls.usual_gap[kind] = statistics.median(after - before for before, after in zip(times, times[1:]))

    def setUp(self):
        self.added_gaps, self.moved, self.streams = [], 0, 0

    def test_a_killed_worker(self):
        self.disturb_all(signal.SIGKILL, every=1)

    def test_a_worker_told_to_end(self):
        self.disturb_all(signal.SIGTERM, every=3)

    def test_a_stopped_worker(self):
        self.disturb_all(signal.SIGSTOP, every=3)

    def disturb_all(self, number, every):
        for kind in KINDS:
            for position in positions(every):
                with self.subTest(kind=kind, position=position):
                    self.disturb(number, kind, position)
        self.assertTrue(self.added_gaps, "no stream was whole")
        name = signal.Signals(number).name
        print(f"\n{name}: {self.streams} streams, {self.moved} went on at another worker; added gap p50 "
              f"{percentile(self.added_gaps, 0.5) * 1e3:.0f} ms, p99 {percentile(self.added_gaps, 0.99) * 1e3:.0f} ms", flush=True)
        self.assertGreater(2 * self.moved, self.streams, "most answers were over before anything happened")

    def disturb(self, number, kind, position):
        ended = {member: member.ended() for member in self.fleet.members}
        with contextlib.closing(self.fleet.stream(BODIES[kind])) as stream:
            stream.read_pieces(1)
            victim = self.fleet.serving()
            stream.read_pieces(position)
            victim.send(number)
            read_before = len(stream.times)
            try:
                stream.read_to_end()
                self.assertEqual(stream.transcript(), self.want[kind])
            finally:
                self.bring_back(victim, number)
        self.streams += 1
        self.moved += any(member.ended() > ended[member] for member in self.fleet.members if member is not victim)
        times = stream.times[read_before - 1 :]
        self.added_gaps.append(max(0, max(after - before for before, after in zip(times, times[1:])) - self.usual_gap[kind]))

    def bring_back(self, victim, number):
        if number == signal.SIGSTOP:
            victim.send(signal.SIGCONT)  # what it still sends of the old answer is nobody's
        else:
            status = victim.wait()
            victim.start()
            self.assertEqual(status, 0 if number == signal.SIGTERM else -number)
        self.fleet.await_ready()
        self.fleet.await_idle()


if __name__ == "__main__":
    unittest.main(verbosity=2)
