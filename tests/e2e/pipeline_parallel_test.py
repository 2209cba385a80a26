#!/usr/bin/python3
"""End to end: a model in stages of layers gives the text of one process, to the byte, and in stages of two ranks that of two
ranks. A rank of either stage that stops is missed, within a bound. rank_faults_test.py has such groups too.
"""

import contextlib
import json
import pathlib
import subprocess
import tempfile
import unittest

import tensor_parallel_test as tensor
from cluster import BIN, MODELS, PATIENCE_SECONDS
from fleet import KINDS, Stream
from processes import Router, Worker, http_call
from rank_group import RankGroup


class SameTextTest(unittest.TestCase):
    def test_stages_give_the_text_of_one_process(self):
        with contextlib.ExitStack() as stack:
            one, shards = (
                stack.enter_context(Worker("base", kernels="reference", engine={"virtual_shards": count})) for count in (1, 2)
            )
            two = stack.enter_context(RankGroup(2, group={"pipeline_parallel": 2}))
            four = stack.enter_context(RankGroup(4, group={"tensor_parallel": 2, "pipeline_parallel": 2}))
            tiers = {"one": one, "two": two, "shards": shards, "four": four}
            router = stack.enter_context(Router({name: [worker.grpc] for name, worker in tiers.items()}))

            def transcript(tier, fields):
                return Stream(router.port("http"), tensor.body(tier, **fields)).read_to_end().transcript()

            for kind, fields in KINDS.items():
                for alone, group in (("one", "two"), ("shards", "four")):
                    with self.subTest(kind=kind, group=group):
                        self.assertEqual(transcript(group, fields), transcript(alone, fields))
            status = json.loads(http_call(router.port("ops"), "GET", "/statusz")[2])
            replicas = {tier["name"]: tier["replicas"][0] for tier in status["tiers"]}
            degrees = {
                name: (len(replica["rank_bytes"]), replica["tensor_parallel"], replica["pipeline_parallel"])
                for name, replica in replicas.items()
            }
            self.assertEqual(degrees, {"one": (0, 1, 1), "two": (2, 1, 2), "shards": (0, 1, 1), "four": (4, 2, 2)})
            self.assertEqual(two.leader.metric("terrace_group_ranks"), 2)


class LossTest(tensor.LossTest):
    DEGREES = {"pipeline_parallel": 2}


class RefusalTest(unittest.TestCase):
    def test_degrees_that_do_not_suit_the_model_are_told_before_anything_is_loaded(self):
        for degrees, refusal in (
            ({"pipeline_parallel": 6}, "group.pipeline_parallel is 6, and the model has 5 layers"),
            ({"ranks": 4, "pipeline_parallel": 3}, "group.ranks is 4, not a multiple of group.pipeline_parallel, 3"),
        ):
            with self.subTest(degrees=degrees), tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder, "worker.yaml")
                path.write_text(json.dumps({
                    "model": str(MODELS / "terrace-demo-base"), "group": {**degrees, "leader": "127.0.0.1:1"},
                }))
                for more in ([], ["--validate"]):
                    command = [BIN / "terrace-worker", "--config", path, *more]
                    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
                    self.assertEqual(ended.returncode, 78, ended.stderr)
                    self.assertIn(refusal, ended.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
