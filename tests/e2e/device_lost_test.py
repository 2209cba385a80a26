#!/usr/bin/python3
"""End to end: a worker loses its device in the middle of answers. They go on at a worker on CPUs, token for token; the one that was
lost says why and ends with exit code 69; started again it serves. What becomes of a device that hangs, whose worker ends when it
is told to, and of one that is not there.

The device is one without hardware, which computes with the reference kernels and so has the bits of the other worker:

    bazel build --config=release //tests/chaos:libfake_device.so    # as ./run_tests does, which links it into bin
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import unittest

from cluster import BIN, MODELS, PATIENCE_SECONDS, ROOT, wait_until
from fleet import KINDS, Fleet, long_chat, steady_ports
from processes import http_call, samples_at

WORKER, PLUGIN, BASE = BIN / "terrace-worker", BIN / "libfake_device.so", str(MODELS / "terrace-demo-base")
DEVICE = "cuda Fake without hardware"
LOST = 69  # exit status
STALL_SECONDS = 10  # a step that takes longer hangs (worker_server.cc)
CAUSE = r"^tests/chaos/fake_device\.cc:\d+: cudaEventSynchronize\(\S*\): .* \(cudaErrorIllegalAddress\)$"
ROUTER = {"balance": {"policy": "round_robin"}}

KV = {"dtype": "bf16"}  # of both, as devices have no f32
ON_DEVICE = {"engine": {"threads": 1, "device": "cuda", "numerics": "invariant"}, "kv": KV}
ON_CPUS = {"engine": {"threads": 1, "device": "cpu", "compute": "f32", "kernels": "reference"}, "kv": KV}

WARM_UP_STEPS = 4
MAX_TOKENS = 64
# Of the steps behind the warm-up: the first one, which no token came before, some in the middle, and the last one of an answer alone.
# (What all of them ask for is one prompt, which is suspected of a loss until an answer gets 16 tokens further: but for the last, below 49.)
LOST_AT = (1, 2, 40, MAX_TOKENS)
OTHER = [{"role": "user", "content": "Hello"}]  # the messages of another request
BODIES = [long_chat(MAX_TOKENS, **fields) for fields in KINDS.values()]


def device(behaviour=""):
    """The environment of a worker with such a device (tests/chaos/fake_device.cc)."""
    return {"TERRACE_CUDA_PLUGIN": PLUGIN, "TERRACE_FAKE_DEVICE": behaviour}


def lost_at(step):
    return f"lose@{WARM_UP_STEPS + step}"


def hangs_at(step):
    return f"hang@{WARM_UP_STEPS + step}"


def records(member, event):
    return [record for record in member.process.log_records() if record["event"] == event]


def liveness(ops):
    """What a worker that listens there says of itself; None before it does."""
    try:
        return json.loads(http_call(ops, "GET", "/healthz")[2])["status"]
    except ConnectionError:
        return None


def total(fleet, name, **labels):
    """Of the samples of a metric of the router with these labels."""
    samples = samples_at(fleet.router.port("ops"), name)
    return sum(value for has, value in samples if labels.items() <= has.items())


def moved(fleet):
    """Answers that went to another worker after theirs was lost, with or without a token of it."""
    return sum(total(fleet, f"terrace_router_{name}_total", reason="unavailable") for name in ("resumes", "retries"))


def ask(fleet, **fields):
    """Status, and code of the error, of an answer that is no stream."""
    status, _, body = http_call(fleet.http, "POST", "/v1/chat/completions", {**long_chat(MAX_TOKENS, temperature=0), **fields})
    return status, json.loads(body).get("error", {}).get("code")


def start_worker(environment, config):
    """Exit status and the last line of a worker that does not start."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "config.yaml")
        path.write_text(json.dumps({"model": BASE, "grpc": "127.0.0.1:0", "ops": "", **config}))
        ended = subprocess.run([WORKER, "--config", path], env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                               capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        return ended.returncode, ended.stderr.splitlines()[-1]


class DeviceLost(unittest.TestCase):
    def expect_lost(self, member):
        """It says so once, and ends."""
        self.assertEqual(member.wait(), LOST)
        [lost] = records(member, "worker_device_lost")
        self.assertEqual(lost["device"], DEVICE)
        self.assertRegex(lost["error"], CAUSE)
        self.assertIn(f"terrace-worker: the device is lost: {lost['error']}\n", member.process.log_text())

    def restart(self, fleet, member, behaviour=""):
        member.environment = device(behaviour)
        member.start()
        fleet.await_ready()

    def test_answers_go_on_at_the_other_worker_token_for_token(self):
        with Fleet(2, worker=[ON_DEVICE, ON_CPUS], environment=[device(), {}], router=ROUTER) as fleet:
            on_device = fleet.members[0]
            self.assertEqual([member.process.addresses["device"] for member in fleet.members], [DEVICE, "reference"])
            want = []
            for body in BODIES:
                streams = [fleet.stream(body).read_to_end() for _ in fleet.members]  # by turns
                want.append(streams[0].transcript())
                self.assertEqual(streams[1].transcript(), want[-1], "the device and the CPUs have other bits")
            answers = sum(body.get("n", 1) for body in BODIES)
            wait_until(lambda: all(member.ended() == answers for member in fleet.members), "each has given every answer")

            for step in LOST_AT:
                with self.subTest(step=step):
                    self.restart(fleet, on_device, lost_at(step))
                    before = moved(fleet)
                    with contextlib.ExitStack() as stack:
                        streams = [stack.enter_context(contextlib.closing(fleet.stream(body))) for body in BODIES]
                        for stream, whole in zip(streams, want):
                            self.assertEqual(stream.read_to_end().transcript(), whole)
                    self.expect_lost(on_device)
                    self.assertGreater(moved(fleet), before)
            self.restart(fleet, on_device)
            for body, whole in zip(BODIES, want):
                for _ in fleet.members:
                    self.assertEqual(fleet.stream(body).read_to_end().transcript(), whole)
            requests = len(BODIES) * (2 + len(LOST_AT) + 2)
            self.assertEqual(total(fleet, "terrace_requests_total", outcome="ok"), requests)
            self.assertEqual(total(fleet, "terrace_requests_total"), requests)
            self.assertEqual(total(fleet, "terrace_poison_requests_total"), 0)

    def test_without_another_worker_an_answer_ends_with_an_error_that_says_so(self):
        settings = {**ROUTER, "cluster": {"resume_patience_seconds": 0.2}}
        with Fleet(1, worker=ON_DEVICE, environment=device(lost_at(40)), router=settings) as fleet:
            [worker] = fleet.members
            stream = fleet.stream(BODIES[0]).read_to_end()
            self.assertNotIn("[DONE]", stream.payloads)
            self.assertEqual(json.loads(stream.payloads[-1])["error"]["code"], "worker_lost")
            self.expect_lost(worker)
            self.assertEqual(ask(fleet), (503, "no_capacity"))
            self.restart(fleet, worker, lost_at(40))
            self.assertEqual(ask(fleet, messages=OTHER), (503, "worker_lost"))
            self.expect_lost(worker)
            self.restart(fleet, worker)
            whole = fleet.stream(BODIES[0]).read_to_end()
            self.assertEqual(whole.payloads[-1], "[DONE]")
            shown = [json.loads(payload)["choices"][0]["delta"] for payload in stream.payloads[:-1]]
            self.assertEqual(shown, [json.loads(payload)["choices"][0]["delta"] for payload in whole.payloads[: len(shown)]])
            self.assertEqual(len(shown), 40, "the role, and all tokens of the steps before")

    def test_a_request_that_loses_two_devices_is_quarantined(self):
        with Fleet(2, worker=ON_DEVICE, environment=device(lost_at(1)), router=ROUTER) as fleet:
            self.assertEqual(ask(fleet), (500, "poison_request"))
            self.assertEqual(total(fleet, "terrace_poison_requests_total", event="quarantined"), 1)
            for member in fleet.members:
                self.expect_lost(member)
                member.environment = device()
                member.start()
            fleet.await_ready()
            self.assertEqual(ask(fleet), (500, "poison_request"))
            self.assertEqual(total(fleet, "terrace_poison_requests_total", event="refused"), 1)
            self.assertEqual(ask(fleet, messages=OTHER), (200, None))


class DeviceHangs(unittest.TestCase):
    """A step that never ends: the worker stays as it is until it is told to end, and then does not wait for that step."""

    def expect_hung(self, status, log):
        """It says so once, and has ended without `worker_stopped`."""
        self.assertEqual(status, LOST, log)
        lines = log.splitlines()
        self.assertRegex(lines[-1], rf"^terrace-worker: a step hangs: none has ended for \d+ s, on {DEVICE}$")
        events = [json.loads(line) for line in lines if line.startswith("{")]
        [hung] = [record for record in events if record["event"] == "worker_step_hangs"]
        self.assertEqual((hung["level"], hung["device"]), ("error", DEVICE))
        self.assertGreater(hung["seconds"], STALL_SECONDS)
        self.assertNotIn("worker_stopped", [record["event"] for record in events])

    def test_answers_go_on_at_the_other_worker_and_sigterm_ends_the_one_that_hangs(self):
        with Fleet(2, worker=[ON_DEVICE, ON_CPUS], environment=[device(hangs_at(40)), {}], router=ROUTER) as fleet:
            on_device = fleet.members[0]
            with contextlib.ExitStack() as stack:
                streams = [stack.enter_context(contextlib.closing(fleet.stream(BODIES[0]))) for _ in fleet.members]  # by turns
                transcripts = [stream.read_to_end().transcript() for stream in streams]
            self.assertEqual(transcripts[0], transcripts[1])
            self.assertEqual(liveness(on_device.process.port("ops")), "stalled")
            on_device.send(signal.SIGTERM)
            self.expect_hung(on_device.wait(), on_device.process.log_text())

    def test_a_second_signal_does_not_wait_for_the_drain_limit(self):
        config = {**ON_DEVICE, "drain_seconds": 3600}
        with Fleet(1, worker=config, environment=device(hangs_at(40)), router=ROUTER) as fleet:
            [worker] = fleet.members
            with contextlib.closing(fleet.stream(BODIES[0])) as stream:
                stream.read_pieces(39)  # the last of them was sent when step 40 began
                worker.send(signal.SIGTERM)
                wait_until(lambda: records(worker, "worker_draining"), "it drains")
                worker.send(signal.SIGTERM)
                self.expect_hung(worker.wait(), worker.process.log_text())

    def test_sigterm_ends_one_that_hangs_in_its_warm_up(self):
        [ops] = steady_ports(1)
        with tempfile.TemporaryDirectory() as folder:
            path, log = pathlib.Path(folder, "config.yaml"), pathlib.Path(folder, "log")
            path.write_text(json.dumps({"model": BASE, "grpc": "127.0.0.1:0", "ops": f"127.0.0.1:{ops}", **ON_DEVICE}))
            with open(log, "wb") as output:
                worker = subprocess.Popen([WORKER, "--config", path], env={**os.environ, **device("hang@1")},
                                          stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            try:
                wait_until(lambda: liveness(ops) == "stalled", "its warm-up hangs")
                worker.terminate()
                self.expect_hung(worker.wait(PATIENCE_SECONDS), log.read_text())
            finally:
                worker.kill()
                worker.wait()


class DeviceAtTheStart(unittest.TestCase):
    def test_with_device_cuda_a_worker_without_one_ends_with_the_cause(self):
        for name, environment, config, status, cause in (
            ("no library", {"TERRACE_CUDA_PLUGIN": "/nowhere"}, {}, 69, r"TERRACE_CUDA_PLUGIN: there is no /nowhere"),
            ("no device", device("absent"), {}, 69, "no CUDA device here"),
            ("another version", device("another_version"), {}, 69,
             rf"{re.escape(str(PLUGIN))} is of version 0\.0\.1 of (0\.1\.0 [0-9a-f]{{12}}), this program of \1: build it again"),
            ("heads of 16", device(), {"model": str(ROOT / "tests/families/data/gemma2")}, 78,
             "engine.device: cuda: CUDA: heads of 16 elements; GPU workers take 32, 64, 128 and 256"),
            ("lost in the warm-up", device(f"lose@{WARM_UP_STEPS}"), {}, LOST, r"warm-up: the device, or a rank of the group, is lost: .*fake_device\.cc:.*"),
        ):
            with self.subTest(name):
                ended, line = start_worker(environment, {**ON_DEVICE, **config})
                self.assertEqual(ended, status, line)
                self.assertRegex(line, f"^terrace-worker: {cause}$")

    def test_with_device_auto_it_says_why_in_one_line_and_serves_on_cpus(self):
        environments = [device("absent"), device("another_version"), {"TERRACE_CUDA_PLUGIN": "/nowhere"}]
        causes = ["no CUDA device here", "build it again", "there is no /nowhere"]
        settings = {"engine": {"threads": 1}, "kv": KV}
        with Fleet(len(causes), worker=settings, environment=environments, router=ROUTER) as fleet:
            for member, cause in zip(fleet.members, causes):
                [on_cpus] = records(member, "worker_on_cpu")
                self.assertEqual(on_cpus["level"], "warn")
                self.assertIn(cause, on_cpus["reason"])
                self.assertTrue(member.process.addresses["device"].startswith("cpu "))
            transcripts = [fleet.stream(BODIES[0]).read_to_end().transcript() for _ in fleet.members]
            self.assertEqual(transcripts, transcripts[:1] * len(causes))
            wait_until(lambda: all(member.ended() == 1 for member in fleet.members), "each has given one")


if __name__ == "__main__":
    unittest.main(verbosity=2)
