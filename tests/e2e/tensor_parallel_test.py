#!/usr/bin/python3
"""End to end: a model on two and four ranks gives the text of one process with the same virtual shards, to the byte. A rank that
is stopped takes its group down without a request, too, within a bound; rank_faults_test.py does more of that. Ranks that do not fit
are refused, also by how they speak.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
import unittest

from cluster import BIN, MODELS, PATIENCE_SECONDS, ROOT, wait_until
from fleet import KINDS, Stream, long_chat, self_signed, steady_ports
from processes import Process, Router, Worker, http_call
from rank_group import RankGroup

MAX_TOKENS = 96
BOUND_SECONDS = 10  # from the loss of a rank to the end of its group
LOST = 69  # exit status of the others


def body(tier, max_tokens=MAX_TOKENS, **fields):
    return {**long_chat(max_tokens, **fields), "model": tier}


class SameTextTest(unittest.TestCase):
    def test_ranks_give_the_text_of_one_process(self):
        with contextlib.ExitStack() as stack:
            one = stack.enter_context(Worker("base", kernels="reference", engine={"virtual_shards": 4}))
            two, four = (stack.enter_context(RankGroup(ranks, engine={"virtual_shards": 4})) for ranks in (2, 4))
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

    def test_a_rank_is_missed_without_requests(self):
        for rank in (0, 1):
            with self.subTest(rank=rank), RankGroup(2, group=self.DEGREES) as group:
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


class DigestListTest(unittest.TestCase):
    def test_a_rank_verifies_what_it_uses_and_a_damaged_copy_is_refused_where_it_lies(self):
        with tempfile.TemporaryDirectory(prefix="terrace-digest-") as folder:
            whole, damaged = pathlib.Path(folder, "whole"), pathlib.Path(folder, "damaged")
            shutil.copytree(MODELS / "terrace-demo-nano", whole)
            subprocess.run([BIN / "terrace", "digest", "--model", whole], check=True, capture_output=True)
            shutil.copytree(whole, damaged)
            weights = damaged / "model.safetensors"
            weights.chmod(0o644)
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)
            leader, grpc, ops = steady_ports(3)
            config = {"grpc": f"127.0.0.1:{grpc}", "ops": f"127.0.0.1:{ops}", "engine": {"threads": 1}}

            def settings(model, rank):
                return {**config, "model": str(model), "group": {"ranks": 2, "rank": rank, "leader": f"127.0.0.1:{leader}"}}

            path = pathlib.Path(folder, "worker.yaml")
            path.write_text(json.dumps(settings(damaged, 1)))
            refused = subprocess.run([BIN / "terrace-worker", "--config", path], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            self.assertEqual(refused.returncode, 65, refused.stderr)
            self.assertIn(f"{weights}: its bytes from 0 up to {len(content)} have the hash", refused.stderr)
            checked = subprocess.run([BIN / "terrace", "digest", "--model", damaged, "--check"], capture_output=True, text=True)
            self.assertEqual(checked.returncode, 1, checked.stderr)
            with Process(BIN / "terrace-worker", "worker_group_forms", config=settings(whole, 0)) as leads:
                with Process(BIN / "terrace-worker", "worker_group_forms", config=settings(whole, 1)):
                    wait_until(lambda: [r for r in leads.log_records() if r["event"] == "worker_ready"], "the group is ready")
                    (ready,) = [r for r in leads.log_records() if r["event"] == "worker_ready"]
                    self.assertEqual([ready["file_bytes"], ready["hashed_bytes"]], [len(content)] * 2)  # one piece
                    os.kill(leads.pid, signal.SIGTERM)
                    leads.process.wait(PATIENCE_SECONDS)


class TlsTest(unittest.TestCase):
    """Ranks that meet over TLS, as the router and workers speak it."""

    @classmethod
    def setUpClass(cls):
        certificate, key = self_signed(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="terrace-ranks-")))
        own = {"certificate_file": certificate, "key_file": key}
        cls.leaders_side, cls.others_side = {**own, "client_ca_file": certificate}, {**own, "ca_file": certificate}

    def settings(self, ports, rank, has_tls):
        leader, grpc, ops = ports
        group = {"ranks": 2, "rank": rank, "leader": f"127.0.0.1:{leader}"}
        plain = {"model": str(MODELS / "terrace-demo-nano"), "grpc": f"127.0.0.1:{grpc}", "ops": f"127.0.0.1:{ops}", "engine": {"threads": 1}}
        return {**plain, "tls": self.leaders_side, "group": {**group, "tls": self.others_side}} if has_tls else {**plain, "group": group}

    def refused(self, settings):
        """Of a rank that is not let in: what it says."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "worker.yaml")
            path.write_text(json.dumps(settings))
            done = subprocess.run([BIN / "terrace-worker", "--config", path], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            self.assertEqual(done.returncode, 78, done.stderr)
            return done.stderr

    def test_a_rank_that_speaks_otherwise_than_its_leader_is_refused_and_the_right_one_let_in(self):
        for has_tls, said in ((True, "is not set here, but the leader at"), (False, "is set here, but the leader at")):
            ports = steady_ports(3)
            with self.subTest(leader_has_tls=has_tls), Process(
                BIN / "terrace-worker", "worker_group_forms", config=self.settings(ports, 0, has_tls)
            ) as leads:
                self.assertIn(f"group.tls: {said}", self.refused(self.settings(ports, 1, not has_tls)))
                with Process(BIN / "terrace-worker", "worker_group_forms", config=self.settings(ports, 1, has_tls)) as other:
                    wait_until(lambda: [r for r in leads.log_records() if r["event"] == "worker_ready"], "the group is ready")
                    os.kill(leads.pid, signal.SIGTERM)  # before the other, which would wait for that
                    self.assertEqual([each.process.wait(PATIENCE_SECONDS) for each in (leads, other)], [0, 0])


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


if __name__ == "__main__":
    unittest.main(verbosity=2)
