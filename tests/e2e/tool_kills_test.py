#!/usr/bin/python3
"""End to end: commands that keep a journal are killed (SIGKILL) at random moments and started again until they are done. What they
have written then is what an undisturbed run writes, to the byte, with one thread and with two; nothing else is left.

A moment is drawn from how long an undisturbed run takes, or from how many bytes its files have on the way: that one is more often in
the middle of writing.

    TERRACE_TOOL_KILLS=20 tests/e2e/tool_kills_test.py    # of each command
    TERRACE_TOOL_KILLS=20 TERRACE_TOOL_KILLS_SEED=5 tests/e2e/tool_kills_test.py ToolKills.test_prune
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from cluster import BIN, MODELS, PATIENCE_SECONDS

KILLS = int(os.environ.get("TERRACE_TOOL_KILLS") or 2)  # of each command
SEED = int(os.environ.get("TERRACE_TOOL_KILLS_SEED") or random.randrange(1 << 32))
MOST_IN_A_ROW = 4  # kills of a job before it may end
TRIES = 20  # jobs for each kill: some end before their moment comes

NANO, SMALL, BASE = (str(MODELS / f"terrace-demo-{tier}") for tier in ("nano", "small", "base"))
TEXT = str(MODELS / "eval" / "calibration.jsonl")
CALIBRATED = ("--calibration", TEXT, "--samples", "16")
TASKS = ("--tasks", str(MODELS / "eval" / "classify.jsonl"), "--tasks", str(MODELS / "eval" / "extract.jsonl"), "--limit", "20", "--compute", "f32")


class Job:
    """A folder for one output: the command's files are in `files`, what it says is beside them."""

    def __init__(self, scratch):
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=scratch))
        self.files = self.folder / "files"
        self.files.mkdir()

    def size(self):
        """Bytes of all files, of which some come and go meanwhile."""
        total = 0
        for root, _, names in os.walk(self.files):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(root, name)).st_size
        return total

    def said(self):
        return (self.folder / "stderr").read_text(errors="replace")


class Rewrites:
    """A command that writes a model to --out, beside it a report, and keeps its journal in OUT.work."""

    def __init__(self, *words, is_decided_by_threads=False):
        self.words = words
        self.is_decided_by_threads = is_decided_by_threads

    def command(self, job):
        return [*self.words, "--out", job.files / "out"]

    def is_written(self, job):
        """Then all that a killed run may have left undone is to tidy up, and the command cannot be given again."""
        return (job.files / "out").exists()

    def result(self, job):
        files = sorted(path for path in job.files.rglob("*") if path.is_file())
        return {str(path.relative_to(job.files)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Asks:
    """A command that keeps answers as they come, in a file for each flag of `records`."""

    is_decided_by_threads = False

    def __init__(self, *words, records):
        self.words, self.records = words, records

    def path(self, job, flag):
        return job.files / f"{flag.lstrip('-')}.jsonl"

    def command(self, job):
        return [*self.words, *(word for flag in self.records for word in (flag, self.path(job, flag)))]

    def is_written(self, job):
        return False

    def figures(self, job):
        """Of what it says at the end: all but times."""
        return {task: score["right"] for task, score in json.loads((job.folder / "stdout").read_text())["tasks"].items()}

    def result(self, job):
        answers = {}
        for flag in self.records:
            head, *lines = map(json.loads, self.path(job, flag).read_text().splitlines())
            rows = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
            answers[flag] = (head, sorted(rows, key=lambda row: row["row"]))  # they may come in another order
        return {"answers": answers, "figures": self.figures(job)}


class Certifies(Asks):
    def command(self, job):
        return [*super().command(job), "--out", job.folder / "manifest.json"]

    def figures(self, job):
        manifest = json.loads((job.folder / "manifest.json").read_text())["manifest"]
        return {"comparison": manifest["report"]["comparison"], "verdict": manifest["verdict"], "failures": manifest["failures"]}


@dataclasses.dataclass
class Whole:
    """An undisturbed run."""

    status: int
    result: dict
    seconds: float
    most_bytes: int  # that its files had at once


class ToolKills(unittest.TestCase):
    def setUp(self):
        self.scratch = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(prefix="terrace-kills-")))
        self.random = random.Random(f"{SEED} {self.id()}")
        print(f"\nTERRACE_TOOL_KILLS_SEED={SEED}", flush=True)

    def test_quantize(self):
        for to, method, *more in (("int8", "rtn"), ("q8_0", "rtn"), ("int4-g64", "gptq", *CALIBRATED), ("int4-g64", "awq", *CALIBRATED),
                                  ("q4_k", "gptq", *CALIBRATED)):
            self.check(f"quantize {to} {method}", Rewrites("quantize", "--model", BASE, "--to", to, "--method", method, *more))

    def test_prune(self):
        for what in (("--pattern", "2:4"), ("--remove-ffn", "0.2")):
            self.check(" ".join(("prune", *what)), Rewrites("prune", "--model", BASE, *what, "--no-step-times", *CALIBRATED))

    def test_distill(self):
        if not (BIN / "terrace-distill").exists():
            self.skipTest("terrace-distill is not built")
        training = ("--tokens", "8000", "--batch-tokens", "1000", "--memory-tokens", "1000", "--validation-rows", "8", "--checkpoint-steps", "1")
        self.check("distill", Rewrites("distill", "--teacher", NANO, "--layers", "1", "--data", TEXT, *training, is_decided_by_threads=True))

    def test_evaluate(self):
        self.check("evaluate", Asks("evaluate", "--model", BASE, "--json", *TASKS, records=("--save-records",)))

    def test_certify(self):
        key = self.scratch / "key"
        subprocess.run([BIN / "terrace", "certify", "--make-key", key], check=True, capture_output=True)
        words = ("certify", "--model", NANO, "--baseline", SMALL, "--key", f"{key}.private.pem", *TASKS)
        self.check("certify", Certifies(*words, records=("--save-records", "--baseline-records")))

    def check(self, name, tool):
        """`KILLS` kills of it, over as many jobs as that takes."""
        whole = {threads: self.run_whole(tool, threads) for threads in (1, 2)}
        if not tool.is_decided_by_threads:
            self.assertEqual(whole[1].result, whole[2].result, f"{name}: threads change nothing")
        kills = jobs = 0
        while kills < KILLS:
            self.assertLess(jobs, TRIES * KILLS, f"{name}: only {kills} runs were killed before they ended")
            kills += self.run_killed(name, tool, whole, self.random.randint(1, min(MOST_IN_A_ROW, KILLS - kills)))
            jobs += 1
        print(f"{name}: {kills} kills in {jobs} jobs; undisturbed it takes {whole[1].seconds:.2f} s", flush=True)

    def run_whole(self, tool, threads):
        job, most_bytes = Job(self.scratch), 0

        def look(_):
            nonlocal most_bytes
            most_bytes = max(most_bytes, job.size())
            return False

        begin = time.monotonic()
        status = self.run_tool(tool, job, threads, look)
        seconds = time.monotonic() - begin
        self.assertIn(status, (0, 1), job.said())  # 1: a verdict
        self.assertGreater(most_bytes, 0)
        return Whole(status, tool.result(job), seconds, most_bytes)

    def run_killed(self, name, tool, whole, wanted):
        """A job with up to `wanted` kills: how many there were."""
        job, kills, status = Job(self.scratch), 0, -signal.SIGKILL
        threads = self.random.choice((1, 2))
        while status == -signal.SIGKILL and not tool.is_written(job):
            if not tool.is_decided_by_threads:
                threads = self.random.choice((1, 2))
            status = self.run_tool(tool, job, threads, self.draw_moment(whole[threads], job) if kills < wanted else None)
            kills += status == -signal.SIGKILL
        if status == -signal.SIGKILL:
            self.tidy_up(tool, job, threads)
        else:
            self.assertEqual(status, whole[threads].status, job.said())
        self.assertEqual(tool.result(job), whole[threads].result, f"{name}, killed {kills} times")
        return kills

    def draw_moment(self, whole, job):
        """Says of the seconds of a run whether it has come."""
        if self.random.random() < 0.5:
            end = self.random.uniform(0, whole.seconds)
            return lambda seconds: seconds >= end
        least = self.random.uniform(job.size(), whole.most_bytes)
        return lambda _: job.size() > least

    def run_tool(self, tool, job, threads, is_over=None):
        """Its exit status; below 0 when it was killed, as `is_over` said."""
        command = [BIN / "terrace", *tool.command(job), "--threads", str(threads)]
        begin = time.monotonic()
        with open(job.folder / "stdout", "wb") as out, open(job.folder / "stderr", "wb") as err, subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        ) as process:
            while process.poll() is None:
                seconds = time.monotonic() - begin
                if seconds > PATIENCE_SECONDS or (is_over is not None and is_over(seconds)):
                    process.kill()
                    process.wait()
                self.assertLess(seconds, PATIENCE_SECONDS, command)
                time.sleep(0.001)
            return process.returncode

    def tidy_up(self, tool, job, threads):
        """Of a job that was killed behind the last name of its output: the command says that it is there, and what may go."""
        work = job.files / "out.work"
        if work.exists():
            self.assertEqual(self.run_tool(tool, job, threads), 64)
            self.assertIn(f"{work} is left of a job and may be removed", job.said())
            shutil.rmtree(work)


if __name__ == "__main__":
    unittest.main(verbosity=2)
