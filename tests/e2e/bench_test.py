#!/usr/bin/python3
"""End to end: terrace bench against real processes."""

import json
import pathlib
import signal
import subprocess
import tempfile
import unittest

from cluster import BIN, MODELS, Cluster, free_ports, wait_until

PERCENTILES = {"count", "mean", "p50", "p90", "p95", "p99", "max"}


def bench(*arguments, **options):
    return subprocess.run(
        [str(word) for word in (BIN / "terrace", "bench", *arguments)], capture_output=True, text=True, timeout=300, **options
    )


class Bench(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        cls.cluster.__enter__()
        cls.addClassCleanup(cls.cluster.__exit__)
        cls.router = ("--router", f"127.0.0.1:{cls.cluster.grpc}")
        cls.worker = ("--worker", f"127.0.0.1:{cls.cluster.worker_grpc['nano']}")
        cls.targets = {
            "router": (*cls.router, "--model", "nano"),
            "worker": cls.worker,
            "model": ("--model", MODELS / "terrace-demo-nano", "--threads", 1),
        }

    def report(self, *arguments):
        result = bench(*arguments, "--json", "-")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return json.loads(result.stdout)

    def test_every_target_gives_exactly_the_tokens_that_were_asked_for(self):
        for kind, target in self.targets.items():
            report = self.report(*target, "--concurrency", "1,4", "--requests", 12, "--prompt-tokens", 40, "--output-tokens", 10)
            self.assertEqual(report["format"], "terrace-bench-1")
            self.assertEqual(report["target"]["kind"], kind)
            self.assertEqual(report["target"]["context_length"], 512)
            self.assertEqual([level["load"]["concurrency"] for level in report["levels"]], [1, 4])
            for level in report["levels"]:
                self.assertEqual(level["requests"]["ok"], 12, level)
                self.assertEqual(level["failures"], [])
                self.assertEqual(level["tokens"]["output"], 12 * 10)
                self.assertEqual(level["tokens"]["prompt"], 12 * 40)
                self.assertEqual(level["output_tokens_per_request"], {"min": 10, "max": 10})
                self.assertEqual(level["short_answers"]["count"], 0)
                self.assertGreaterEqual(level["tokens"]["cached_share"], 0)
                self.assertLessEqual(level["tokens"]["cached_share"], 1)
                self.assertEqual(level["speculation"], {"verified": 0, "accepted": 0, "acceptance": None, "engine": None})
                latency = level["latency_seconds"]
                for name, count in (("first_token", 12), ("inter_token", 12 * 9), ("end_to_end", 12)):
                    self.assertEqual(set(latency[name]), PERCENTILES)
                    self.assertEqual(latency[name]["count"], count, name)
                self.assertLessEqual(latency["first_token"]["max"], latency["end_to_end"]["max"])
                self.assertLessEqual(latency["end_to_end"]["max"], level["seconds"])
            self.assertAlmostEqual(
                report["levels"][1]["output_ratio_to_first_level"],
                report["levels"][1]["output_tokens_per_second"] / report["levels"][0]["output_tokens_per_second"],
            )

    def test_a_worker_says_what_it_is(self):
        target = self.report(*self.worker, "--requests", 1)["target"]
        self.assertEqual(target["model"], "terrace-demo-nano")
        for key in ("version", "device", "weight_dtype", "parameters", "max_sequences"):
            self.assertTrue(target[key], key)

    def test_an_open_loop_accounts_for_every_request(self):
        for target in self.targets.values():
            report = self.report(
                *target, "--rate", 300, "--max-in-flight", 4, "--requests", 60, "--prompt-tokens", "uniform:20-90",
                "--output-tokens", 30, "--shared-prefix-tokens", 16, "--prefix-groups", 3, "--cancel-fraction", 0.3,
                "--deadline", "30s", "--warmup", 3,
            )
            requests = report["levels"][0]["requests"]
            self.assertEqual(requests["planned"], 60)
            self.assertEqual(requests["failed"], 0, report["levels"][0]["failures"])
            self.assertEqual(requests["ok"] + requests["cancelled"] + requests["dropped"], 60)
            self.assertGreater(requests["cancelled"] + requests["dropped"], 0)

    def test_cancelled_requests_leave_the_worker(self):
        self.report(*self.worker, "--concurrency", 8, "--requests", 40, "--output-tokens", 100, "--cancel-fraction", 1)
        wait_until(lambda: self.cluster.running("nano") == 0, "every sequence is gone")

    def test_a_policy_is_measured_through_all_its_tiers(self):
        report = self.report(*self.router, "--model", "auto", "--requests", 5, "--output-tokens", 8)
        self.assertEqual(report["levels"][0]["requests"]["ok"], 5)
        self.assertEqual(report["levels"][0]["output_tokens_per_request"], {"min": 8, "max": 8})

    def test_failures_are_counted_by_reason_and_no_answer_at_all_is_an_exit_code(self):
        result = bench(*self.worker, "--requests", 3, "--deadline", "0.001ms", "--json", "-")
        self.assertEqual(result.returncode, 69)
        self.assertEqual(len(result.stderr.strip().splitlines()), 1, result.stderr)
        level = json.loads(result.stdout)["levels"][0]
        self.assertEqual([(f["reason"], f["count"]) for f in level["failures"]], [("deadline_exceeded", 3)])

    def test_ctrl_c_prints_what_was_measured(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "report.json")
            command = [BIN / "terrace", "bench", *self.worker, "--duration", "10m", "--output-tokens", "20", "--json", path]
            process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            wait_until(lambda: self.cluster.running("nano") > 0, "the load has begun")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 130, err)
            self.assertIn("interrupted after", out)
            level = json.loads(path.read_text())["levels"][0]
            self.assertTrue(level["interrupted"])
            requests = level["requests"]
            self.assertEqual(requests["planned"], requests["ok"] + requests["cancelled"])
        wait_until(lambda: self.cluster.running("nano") == 0, "nothing was left behind")

    def test_nobody_there_is_one_clear_line(self):
        (port,) = free_ports(1)
        for flag in ("--router", "--worker"):
            result = bench(flag, f"127.0.0.1:{port}")
            self.assertEqual(result.returncode, 69)
            self.assertEqual(len(result.stderr.strip().splitlines()), 1, result.stderr)
            self.assertIn(str(port), result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
