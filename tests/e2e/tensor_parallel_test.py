#!/usr/bin/python3
"""End to end: a model on two and four ranks gives the text of one process with the same virtual shards, to the byte. A rank that
is killed or stopped takes its group down, within a bound, and nothing else: another replica goes on with the answer. Ranks that do
not fit are refused. `terrace up` starts groups, and starts one that broke again.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import textwrap
import time
import unittest

from cluster import BIN, MODELS, ROOT, Cluster, children_of, free_ports, wait_until
from fleet import Stream, long_chat, steady_ports
from processes import Process, Router, Worker, http_call

MAX_TOKENS = 96
POSITION = 10  # of the token at which something happens
BOUND_SECONDS = 10  # from the loss of a rank to the end of its group
LOST = 69  # exit status of the others

SEEDED = {"temperature": 0.8, "seed": 7}
KINDS = {
    "greedy": {"temperature": 0},
    "seeded": SEEDED,
    "logprobs": {"temperature": 0, "logprobs": True, "top_logprobs": 3},
    "penalties": {**SEEDED, "frequency_penalty": 0.5, "presence_penalty": 0.3},
}


def body(tier, max_tokens=MAX_TOKENS, **fields):
    return {**long_chat(max_tokens, **fields), "model": tier}


class Group:
    """A worker of several ranks, each a process. `models` are those of ranks with another one than the leader's, `degrees` more of
    GroupConfig."""

    def __init__(self, ranks, models=None, degrees=None, **engine):
        self.stack = contextlib.ExitStack()
        leader, grpc, ops = steady_ports(3)
        self.grpc = f"127.0.0.1:{grpc}"
        self.config = {
            "model": str(MODELS / "terrace-demo-base"),
            "grpc": self.grpc,
            "ops": f"127.0.0.1:{ops}",
            "engine": {"threads": 1, "compute": "f32", "kernels": "reference", **engine},
            "group": {"ranks": ranks, "leader": f"127.0.0.1:{leader}", **(degrees or {})},
        }
        with self.stack:  # closes what there is when something fails
            self.followers = [self.start_follower(rank, (models or {}).get(rank)) for rank in range(1, ranks)]
            self.leader = self.stack.enter_context(Process(BIN / "terrace-worker", "worker_ready", config=self.config))
            self.stack = self.stack.pop_all()
        self.processes = [self.leader, *self.followers]

    def start_follower(self, rank, model=None):
        """It waits for the leader."""
        config = {**self.config, "group": {**self.config["group"], "rank": rank}}
        config["model"] = model or self.config["model"]
        return self.stack.enter_context(Process(BIN / "terrace-worker", "worker_group_forms", config=config))

    def is_running(self, process):
        return process.process.poll() is None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if self.is_running(process):
                os.kill(process.pid, signal.SIGCONT)  # one that is stopped could not end
        self.stack.close()

    def lose(self, rank, number):
        os.kill(self.processes[rank].pid, number)
        return time.monotonic()

    def await_end(self, lost_rank):
        """Of all ranks but the lost one: their exit statuses."""
        others = [process for rank, process in enumerate(self.processes) if rank != lost_rank]
        wait_until(lambda: not any(map(self.is_running, others)), "the group is down")
        return [process.process.returncode for process in others]


class SameTextTest(unittest.TestCase):
    def test_ranks_give_the_text_of_one_process(self):
        with contextlib.ExitStack() as stack:
            one = stack.enter_context(Worker("base", kernels="reference", engine={"virtual_shards": 4}))
            two, four = (stack.enter_context(Group(ranks, virtual_shards=4)) for ranks in (2, 4))
            router = stack.enter_context(Router({"one": [one.grpc], "two": [two.grpc], "four": [four.grpc]}))
            for kind, fields in KINDS.items():
                want = Stream(router.port("http"), body("one", **fields)).read_to_end().transcript()
                for tier in ("two", "four"):
                    with self.subTest(kind=kind, tier=tier):
                        stream = Stream(router.port("http"), body(tier, **fields)).read_to_end()
                        self.assertEqual(stream.transcript(), want)
            status = json.loads(http_call(router.port("ops"), "GET", "/statusz")[2])
            ranks = {tier["name"]: len(tier["replicas"][0]["rank_bytes"]) for tier in status["tiers"]}
            self.assertEqual(ranks, {"one": 0, "two": 2, "four": 4})
            self.assertEqual(four.leader.metric("terrace_group_ranks"), 4)
            # Told to end, all ranks do, and none calls it a loss.
            for process in four.processes:
                os.kill(process.pid, signal.SIGTERM)
            self.assertEqual([process.process.wait() for process in four.processes], [0] * 4)


class LossTest(unittest.TestCase):
    DEGREES = {"tensor_parallel": 2}  # of two ranks
    VIRTUAL_SHARDS = 2  # that these have

    @classmethod
    def setUpClass(cls):
        engine = {"virtual_shards": cls.VIRTUAL_SHARDS}
        cls.alone = cls.enterClassContext(Worker("base", kernels="reference", engine=engine))

    def test_a_lost_rank_takes_its_group_down_and_the_answer_goes_on_elsewhere(self):
        for number in (signal.SIGKILL, signal.SIGSTOP):
            for rank in (0, 1):
                with self.subTest(signal=number.name, rank=rank):
                    self.lose_in_an_answer(rank, number)

    def lose_in_an_answer(self, rank, number):
        asked = body("base", temperature=0)
        with Group(2, degrees=self.DEGREES) as group, Router(
            {"base": [group.grpc, self.alone.grpc]},
            balance={"policy": "round_robin"},
            cluster={"watch_timeout_seconds": 1.5, "slow_start_seconds": 0},
        ) as router:
            wait_until(lambda: self.ready(router) == 2, "both replicas are ready")
            want = Stream(router.port("http"), asked).read_to_end().transcript()
            stream = self.stream_at(group, router, asked)
            lost_at = group.lose(rank, number)
            stream.read_to_end()
            self.assertEqual(stream.transcript(), want)
            self.assertEqual(group.await_end(rank), [LOST])
            self.assertLess(time.monotonic() - lost_at, BOUND_SECONDS)
            wait_until(lambda: self.ready(router) == 1, "the group gets no requests")
            self.assertTrue(Stream(router.port("http"), asked).read_to_end().transcript())

    def ready(self, router):
        return json.loads(http_call(router.port("ops"), "GET", "/statusz")[2])["tiers"][0]["ready_replicas"]

    def stream_at(self, group, router, asked):
        """An answer that the group is giving."""
        while True:
            stream = Stream(router.port("http"), asked).read_pieces(POSITION)
            if group.leader.metric("terrace_engine_requests_running") > 0:
                return stream
            stream.read_to_end()

    def test_a_rank_is_missed_without_requests(self):
        for rank in (0, 1):
            with self.subTest(rank=rank), Group(2, degrees=self.DEGREES) as group:
                lost_at = group.lose(rank, signal.SIGSTOP)
                self.assertEqual(group.await_end(rank), [LOST])
                self.assertLess(time.monotonic() - lost_at, BOUND_SECONDS)
                other = group.processes[1 - rank]
                self.assertIn(f"the group is lost: rank {rank} did not take part", other.log_text())


class JoinTest(unittest.TestCase):
    def test_a_rank_with_another_model_is_refused_and_the_right_one_let_in(self):
        leader, grpc, ops = steady_ports(3)
        config = {"grpc": f"127.0.0.1:{grpc}", "ops": f"127.0.0.1:{ops}", "engine": {"threads": 1}}

        def settings(model, rank):
            return {
                **config,
                "model": str(MODELS / f"terrace-demo-{model}"),
                "group": {"ranks": 2, "rank": rank, "leader": f"127.0.0.1:{leader}"},
            }

        def start(model, rank):
            return Process(BIN / "terrace-worker", "worker_group_forms", config=settings(model, rank))

        with start("base", 0) as leads, start("small", 1) as wrong:
            self.assertEqual(wrong.process.wait(), 78)
            self.assertIn("the model's digest is", wrong.log_text())
            self.assertFalse([r for r in leads.log_records() if r["event"] == "worker_ready"])
            with start("base", 1):
                wait_until(lambda: [r for r in leads.log_records() if r["event"] == "worker_ready"], "the group is ready")


class ManifestsTest(unittest.TestCase):
    def test_the_configurations_of_the_manifests_can_be_used(self):
        told = {"LWS_LEADER_ADDRESS": "terrace-base-0.terrace-base", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}
        for name in ("leaderworkerset", "statefulset"):
            with self.subTest(name=name), tempfile.TemporaryDirectory() as folder:
                manifest = (ROOT / "deploy" / "kubernetes" / f"{name}.yaml").read_text()
                indented = re.search(r"^  worker\.yaml: \|\n((?:    .*\n)+)", manifest, re.MULTILINE).group(1)
                # This host's name has no rank, and its models lie elsewhere.
                config = textwrap.dedent(indented).replace("environment: statefulset", "rank: 1")
                config = config.replace("model: /models/base", f"model: {MODELS / 'terrace-demo-base'}")
                path = pathlib.Path(folder, "worker.yaml")
                path.write_text(config)
                command = [BIN / "terrace-worker", "--config", path, "--set", "group.host=10.0.0.2", "--validate"]
                subprocess.run(command, check=True, env={**os.environ, **told}, capture_output=True)


class GroupOfUp(Cluster):
    """`terrace up` with base on two ranks."""

    DEGREES = {"ranks": 2}

    def adjust(self, config, directory):
        config["workers"][2]["group"] = {**self.DEGREES, "leader": f"127.0.0.1:{free_ports(1)[0]}"}

    def ranks(self):
        """Process ids of base, by rank."""
        found = {}
        for pid, command in children_of(self.process.pid).items():
            for rank, name in enumerate(("worker-base.yaml", "worker-base-rank-1.yaml")):
                if any(word.endswith("/" + name) for word in command):
                    found[rank] = pid
        return found

    def is_base_ready(self):
        base = [tier for tier in self.status()["tiers"] if tier["name"] == "base"][0]
        return base["replicas"][0]["state"] == "ready"


class UpTest(unittest.TestCase):
    CLUSTER = GroupOfUp

    def test_up_starts_a_group_that_broke_again(self):
        chat = {"model": "base", "messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 8}
        with self.CLUSTER() as cluster:
            want = cluster.chat(chat)[2]["choices"]
            for rank in (1, 0):
                before = cluster.ranks()
                self.assertEqual(set(before), {0, 1})
                os.kill(before[rank], signal.SIGKILL)
                wait_until(lambda: not set(before.values()) & set(cluster.ranks().values()), "both processes have ended")
                wait_until(lambda: len(cluster.ranks()) == 2 and cluster.is_base_ready(), "the group is back")
                self.assertEqual(cluster.chat(chat)[2]["choices"], want)
            self.assertEqual(cluster.log_text().count("its group is started again, with all 2 ranks"), 2)
            self.assertEqual(cluster.log_text().count("killed by signal 9 (Killed); its group is lost and is started again"), 2)


if __name__ == "__main__":
    unittest.main(verbosity=2)
