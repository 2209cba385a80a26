#!/usr/bin/python3
"""End to end: two groups of ranks under `terrace up`, and a rank of the one that gives an answer is killed or stopped at a random
token of it. The client sees the stream of a quiet day, to the byte; exactly that group goes down, within a bound; `terrace up`
starts it again, no router takes it for ready before all of its ranks are there, and then it gets requests again. How long all that
took is printed.

    TERRACE_RANK_FAULTS=100 tests/e2e/rank_faults_test.py    # so many faults: most of an hour
    TERRACE_RANK_FAULTS=100 TERRACE_RANK_FAULTS_SEED=5 tests/e2e/rank_faults_test.py
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import random
import signal
import statistics
import time
import unittest

from cluster import Cluster, children_of, is_alive, wait_until
from fleet import KINDS, WATCH_TIMEOUT_SECONDS, Stream, long_chat, percentile
from processes import metric_at

FAULTS = int(os.environ.get("TERRACE_RANK_FAULTS") or 3)  # a SIGSTOP takes 20 s
SEED = int(os.environ.get("TERRACE_RANK_FAULTS_SEED") or random.randrange(1 << 32))
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)

# What the two groups of a cluster have in WorkerConfig.group; clusters take turns.
DEGREES = (({"ranks": 4, "pipeline_parallel": 2}, {"ranks": 2}), ({"ranks": 4}, {"ranks": 2, "pipeline_parallel": 2}))
VIRTUAL_SHARDS = 4  # of all groups: the same bits
BREAKS = 5  # as often as `terrace up` starts a group again in ten minutes: then comes another cluster

LAST_POSITION = 64  # of the tokens at which something happens
MAX_TOKENS = 256  # so many more that the answer is not over before its group is
AIMS = 10  # answers that are tried for one that still runs when it happens: the client may be behind what it reads
BODIES = {kind: long_chat(MAX_TOKENS, **fields) for kind, fields in KINDS.items()}
BOUND_SECONDS = 10  # from the loss of a rank to the end of its group
LOST = 69  # exit status of the other ranks


class Group:
    """A worker of several ranks. Its first rank's process has `name`."""

    def __init__(self, name, settings, ports):
        self.name = name
        grpc, self.ops, leader = ports
        self.grpc = f"127.0.0.1:{grpc}"
        self.settings = {**settings, "leader": f"127.0.0.1:{leader}"}
        self.breaks = 0

    @property
    def size(self):
        return self.settings["ranks"]

    def process_name(self, rank):
        return f"{self.name}-rank-{rank}" if rank > 0 else self.name


class Groups(Cluster):
    """`terrace up` with the base model on groups; `degrees` are their settings."""

    def __init__(self, degrees):
        self.degrees = degrees
        super().__init__()

    def adjust(self, config, directory):
        ports = [*self.worker_grpc.values(), *self.worker_ops.values()]  # of three workers, which are not started
        self.groups = [Group(f"worker-base-{i + 1}" if i > 0 else "worker-base", settings, ports[3 * i : 3 * i + 3])
                       for i, settings in enumerate(self.degrees)]
        base = config["router"]["tiers"][2]
        config["router"].update({
            "tiers": [{**base, "workers": [group.grpc for group in self.groups]}],
            "policies": [],
            "balance": {"policy": "round_robin"},
            "cluster": {
                "watch_timeout_seconds": WATCH_TIMEOUT_SECONDS,
                "connect_backoff_seconds": 0.05,
                "slow_start_seconds": 0,
                "ejection": {"consecutive_failures": 0},  # here replicas fail far more often than they should
            },
        })
        engine = {"threads": 1, "compute": "f32", "kernels": "reference", "virtual_shards": VIRTUAL_SHARDS}
        config["workers"] = [
            {"model": config["workers"][2]["model"], "grpc": group.grpc, "ops": f"127.0.0.1:{group.ops}", "engine": engine,
             "group": group.settings}
            for group in self.groups
        ]

    def ranks(self, group):
        """Process ids of those of its ranks that live, by rank."""
        found = {}
        for pid, command in children_of(self.process.pid).items():
            for rank in range(group.size):
                if any(word.endswith(f"/{group.process_name(rank)}.yaml") for word in command):
                    found[rank] = pid
        return found

    def is_new(self, group, old):
        """All of its ranks live, and none of the `old`."""
        ranks = self.ranks(group)
        return len(ranks) == group.size and not set(ranks.values()) & set(old.values())

    def state(self, group):
        """What the router takes it for."""
        return next(each["state"] for each in self.status()["tiers"][0]["replicas"] if each["address"] == group.grpc)

    def started_again(self, group):
        return self.log_text().count(f"{group.name}: its group is started again, with all {group.size} ranks")

    def resumes(self):
        return metric_at(self.ops, "terrace_router_resumes_total", default=0)

    def stream(self, kind):
        return Stream(self.http, BODIES[kind])

    def serving(self):
        """The group that gives the only answer there is, or one of those that do."""
        return wait_until(
            lambda: next((g for g in self.groups if metric_at(g.ops, "terrace_engine_requests_running") > 0), None),
            "a group has a sequence",
        )


@dataclasses.dataclass
class Outcome:
    number: signal.Signals
    is_leader: bool
    down: float  # seconds from the signal until the other ranks had ended
    formed: float  # and until the router took the group for ready again
    added_gap: float  # the client's longest wait behind the signal, less the usual one


def faults(count, draw):
    """Which signal, and whether it is for a leader: all four alike often, in a random order."""
    wanted = []
    while len(wanted) < count:
        four = list(itertools.product(SIGNALS, (True, False)))
        draw.shuffle(four)
        wanted += four
    return wanted[:count]


def gaps(times):
    return [after - before for before, after in zip(times, times[1:])]


class RankFaults(unittest.TestCase):
    def setUp(self):
        print(f"\nTERRACE_RANK_FAULTS_SEED={SEED}", flush=True)
        self.random = random.Random(SEED)
        self.want, self.usual_gap = {}, {}
        self.outcomes, self.moved = [], 0

    def test_a_lost_rank_costs_no_token_and_its_group_comes_back(self):
        left = faults(FAULTS, self.random)
        for degrees in itertools.cycle(DEGREES):
            if not left:
                break
            with Groups(degrees) as cluster:
                self.check_quiet(cluster)
                while left and max(group.breaks for group in cluster.groups) < BREAKS:
                    if not self.disturb(cluster, *left.pop()):
                        break  # the next one is for a sound cluster
                else:
                    self.check_log(cluster)
        self.show()
        self.assertGreaterEqual(self.moved, FAULTS - max(1, FAULTS // 10), "answers were over before anything happened")

    def check_quiet(self, cluster):
        """All groups give the answers that the first ones gave."""
        for kind in KINDS:
            for stream in [cluster.stream(kind) for _ in cluster.groups]:  # by turns: at each group, at the same time
                stream.read_to_end()
                self.assertEqual(stream.transcript(), self.want.setdefault(kind, stream.transcript()), kind)
                self.assertGreater(stream.pieces, LAST_POSITION, kind)
                self.usual_gap.setdefault(kind, statistics.median(gaps(stream.times)))

    def check_log(self, cluster):
        """Of `terrace up`: a group broke as often as it lost a rank, and then all others of it, and nobody else, called it lost."""
        for group in cluster.groups:
            self.assertEqual(cluster.started_again(group), group.breaks, group.name)
        others = sum(group.breaks * (group.size - 1) for group in cluster.groups)
        self.assertEqual(cluster.log_text().count(f"ended with exit code {LOST}; its group is lost and is started again"), others)

    def disturb(self, cluster, number, is_leader):
        """False when something of what has to hold did not."""
        kinds = self.random.choices(list(KINDS), k=2)
        position, place = self.random.randint(1, LAST_POSITION), self.random.random()
        is_sound = False
        with self.subTest(fault=number.name, is_leader=is_leader, position=position, kind=kinds[0]), contextlib.ExitStack() as stack:
            before = {group: cluster.ranks(group) for group in cluster.groups}
            resumes = cluster.resumes()
            victim, streams = self.aim(cluster, stack, kinds, position)
            rank = 0 if is_leader else 1 + int(place * (victim.size - 1))
            self.lose(cluster, victim, before, rank, number, list(zip(kinds, streams)))
            self.moved += cluster.resumes() > resumes
            self.await_traffic(cluster, victim)
            is_sound = True
        return is_sound

    def aim(self, cluster, stack, kinds, position):
        """A group that gives an answer of which the client has `position` tokens and more are to come, and the two streams: that one,
        and one of the other group."""
        for _ in range(AIMS):
            streams = [stack.enter_context(contextlib.closing(cluster.stream(kinds[0])))]
            streams[0].read_pieces(1)
            victim = cluster.serving()
            streams.append(stack.enter_context(contextlib.closing(cluster.stream(kinds[1]))))  # by turns, at the other group
            streams[0].read_pieces(position)
            if metric_at(victim.ops, "terrace_engine_requests_running") > 0:
                return victim, streams
            for stream in streams:
                stream.read_to_end()
        self.fail(f"{AIMS} answers were over before the client had {position} tokens of them")

    def lose(self, cluster, victim, before, rank, number, streams):
        """`before`: the ranks of each group; `streams`: each with its kind, the victim's first."""
        old = before[victim]
        self.assertEqual(set(old), set(range(victim.size)))
        kind, stream = streams[0]
        read_before = len(stream.times)
        victim.breaks += 1
        lost_at = time.monotonic()
        os.kill(old[rank], number)
        with concurrent.futures.ThreadPoolExecutor(len(streams)) as pool:
            reads = [(of, pool.submit(each.read_to_end)) for of, each in streams]
            others = [pid for of, pid in old.items() if of != rank]
            wait_until(lambda: not any(map(is_alive, others)), "the group is down")
            down = time.monotonic() - lost_at
            wait_until(lambda: cluster.state(victim) != "ready" or cluster.is_new(victim, old),
                       "the group gets no requests, or is a whole new one already")
            formed = self.await_formed(cluster, victim, old) - lost_at
            for of, read in reads:
                self.assertEqual(read.result().transcript(), self.want[of], of)
        self.assertLess(down, BOUND_SECONDS)
        for group, ranks in before.items():
            if group is not victim:
                self.assertEqual(cluster.ranks(group), ranks, "the other group goes on")
        added = max(0, max(gaps(stream.times[read_before - 1 :])) - self.usual_gap[kind])
        self.outcomes.append(Outcome(number, rank == 0, down, formed, added))

    def await_formed(self, cluster, group, old):
        """When it was seen to be ready. It is not while a rank is missing, or one of the `old` is left."""

        def is_ready():
            if cluster.state(group) != "ready":
                return False
            ranks = cluster.ranks(group)
            self.assertEqual(set(ranks), set(range(group.size)), "ready when half up")
            self.assertFalse(set(ranks.values()) & set(old.values()), "ready with a rank of the lost group")
            return True

        wait_until(is_ready, "the group is back")
        return time.monotonic()

    def await_traffic(self, cluster, group):
        """It answers some of the next requests."""
        ended = metric_at(group.ops, "terrace_engine_sequences_total")

        def has_answered():
            stream = cluster.stream("greedy").read_to_end()
            self.assertEqual(stream.transcript(), self.want["greedy"])
            return metric_at(group.ops, "terrace_engine_sequences_total") > ended

        wait_until(has_answered, "the group answers")

    def show(self):
        print(f"\n{len(self.outcomes)} faults, {self.moved} answers went on at the other group; seconds, of the added gap milliseconds")
        print("| signal | rank | faults | down p50 | down max | ready again p50 | ready again max | added gap p50 | added gap p99 |")
        print("|---|---|---|---|---|---|---|---|---|")
        for number, is_leader in itertools.product(SIGNALS, (True, False)):
            of = [each for each in self.outcomes if (each.number, each.is_leader) == (number, is_leader)]
            if not of:
                continue
            down, formed = [each.down for each in of], [each.formed for each in of]
            added = [each.added_gap * 1e3 for each in of]
            print(f"| {number.name} | {'leader' if is_leader else 'other'} | {len(of)} | {percentile(down, 0.5):.1f} | {max(down):.1f} | "
                  f"{percentile(formed, 0.5):.1f} | {max(formed):.1f} | {percentile(added, 0.5):.0f} | {percentile(added, 0.99):.0f} |")
        print(end="", flush=True)


if __name__ == "__main__":
    unittest.main(verbosity=2)
