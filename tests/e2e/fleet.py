"""Several workers of one model behind one router, and streams through it that can be compared.

Each worker can be killed, stopped, ended and started again at its address, and have a fault proxy in front of it. They
compute with the reference kernels, slowly enough for things to happen in the middle of an answer.
"""

import contextlib
import http.client
import json
import math
import os
import pathlib
import random
import signal
import socket
import subprocess
import tempfile
import time

from cluster import BIN, MODELS, PATIENCE_SECONDS, events, wait_until
from fault_proxy import FaultProxy
from processes import Process, Router, http_call

WATCH_TIMEOUT_SECONDS = 1.5

# An answer of exactly so many tokens, each with a text: no control token is ever drawn.
QUESTION = {"role": "user", "content": "Intent of the following ticket: i do not want the grey printer any more, please pay me back."}
CONTROL_TOKENS = range(6)


def long_chat(max_tokens, **fields):
    bias = {str(token): -100 for token in CONTROL_TOKENS}
    return {"model": "base", "messages": [QUESTION], "ignore_eos": True, "logit_bias": bias, "max_tokens": max_tokens, **fields}


SEEDED = {"temperature": 0.8, "seed": 7}
KINDS = {  # of requests
    "greedy": {"temperature": 0},
    "seeded": SEEDED,
    "n=2": {**SEEDED, "n": 2},
    "logprobs": {"temperature": 0, "logprobs": True, "top_logprobs": 3},
    "penalties": {**SEEDED, "frequency_penalty": 0.5, "presence_penalty": 0.3, "stop": ["never to be said"]},
}


def steady_ports(count):
    """Ports below the range that the system gives to outgoing connections: while a worker is down none of those, not even the
    router's own that looks for it, gets its port."""
    end = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = set()
    while len(ports) < count:
        port = random.randrange(end // 2, end)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.add(port)
    return list(ports)


class Member:
    """A worker at an address of its own, whichever process has it at the time. `environment` may be changed between two."""

    def __init__(self, settings, program=BIN / "terrace-worker", environment=None):
        self.folder = tempfile.TemporaryDirectory(prefix="terrace-member-")
        grpc, ops = steady_ports(2)
        self.grpc = f"127.0.0.1:{grpc}"
        path = pathlib.Path(self.folder.name, "config.yaml")
        path.write_text(json.dumps({
            "model": str(MODELS / "terrace-demo-base"),
            "grpc": self.grpc,
            "ops": f"127.0.0.1:{ops}",
            "engine": {"threads": 1, "compute": "f32", "kernels": "reference"},
            **settings,
        }))
        self.command = [program, "--config", path]
        self.environment = dict(environment or {})
        self.process = None
        self.proxy = None
        self.start()

    def start(self):
        """Again: the one before has ended."""
        if self.process is not None:
            self.process.__exit__()
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        self.process = Process("/usr/bin/env", "worker_ready", [*variables, *self.command])  # which becomes the worker

    def send(self, number):
        os.kill(self.process.pid, number)

    def wait(self):
        """The exit status; below 0 the signal that ended it."""
        return self.process.process.wait(PATIENCE_SECONDS)

    def is_alive(self):
        return self.process.process.poll() is None

    def running(self):
        """Sequences that it has, also those that wait."""
        return sum(self.process.metric(f"terrace_engine_requests_{state}") for state in ("running", "waiting"))

    def ended(self):
        """Sequences that ended, however they did."""
        return self.process.metric("terrace_engine_sequences_total")

    def close(self):
        if self.proxy is not None:
            self.proxy.close()
        if self.process is not None:
            if self.is_alive():
                self.send(signal.SIGCONT)  # one that is stopped could not end
            self.process.__exit__()
        self.folder.cleanup()


class Fleet:
    """`count` workers; `worker` are settings of theirs and `environment` their variables, or a list of those of each; `router` are
    settings of the router. `failpoints` needs a `program` that has them (base/failpoint.h)."""

    def __init__(self, count, worker=None, router=None, program=BIN / "terrace-worker", environment=None, failpoints="",
                 with_proxies=False, seed=1):
        def of_each(values):
            return values if isinstance(values, list) else [values or {}] * count

        self.stack = contextlib.ExitStack()
        with self.stack:  # closes what there is when something fails
            self.members = []
            for number, (own, variables) in enumerate(zip(of_each(worker), of_each(environment), strict=True)):
                member = Member(own, program, {"TERRACE_FAILPOINTS": failpoints, **variables})
                self.members.append(self.stack.enter_context(contextlib.closing(member)))
                if with_proxies:
                    self.members[-1].proxy = FaultProxy(self.members[-1].grpc, seed + number)
            addresses = [member.proxy.address if with_proxies else member.grpc for member in self.members]
            settings = {
                "watch_timeout_seconds": WATCH_TIMEOUT_SECONDS,
                "connect_backoff_seconds": 0.05,
                "slow_start_seconds": 0,
                "ejection": {"consecutive_failures": 0},  # here replicas fail far more often than they should
            }
            more = router or {}
            self.router = self.stack.enter_context(
                Router({"base": addresses}, **{**more, "cluster": {**settings, **more.get("cluster", {})}})
            )
            self.http = self.router.port("http")
            self.await_ready()
            self.stack = self.stack.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()

    def ready(self):
        """How many replicas get requests."""
        status = json.loads(http_call(self.router.port("ops"), "GET", "/statusz")[2])
        return status["tiers"][0]["ready_replicas"]

    def await_ready(self):
        wait_until(lambda: self.ready() == len(self.members), "all replicas are ready")

    def await_idle(self):
        wait_until(lambda: all(member.running() == 0 for member in self.members), "no worker has a sequence")

    def serving(self):
        """The member that has a sequence now, when there is one request."""
        for member in self.members:
            if member.running() > 0:
                return member
        raise AssertionError("no worker has a sequence: the answer was over too soon")

    def stream(self, body, headers=None):
        return Stream(self.http, body, headers)


class Stream:
    """One streamed chat. Every payload with the time at which it was read."""

    def __init__(self, port, body, headers=None):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        self.connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode(),
            {"Content-Type": "application/json", **(headers or {})},
        )
        self.response = self.connection.getresponse()
        if self.response.status != 200:
            raise AssertionError(f"{self.response.status}: {self.response.read().decode(errors='replace')}")
        self.events = events(self.response)
        self.payloads, self.times = [], []
        self.pieces = 0  # of text, of the first choice: a token each

    def _read(self):
        """False at the end."""
        payload = next(self.events, None)
        if payload is None:
            return False
        self.payloads.append(payload)
        self.times.append(time.monotonic())
        choices = json.loads(payload).get("choices") if payload != "[DONE]" else None
        self.pieces += bool(choices and choices[0]["index"] == 0 and choices[0]["delta"].get("content"))
        return True

    def read_pieces(self, count):
        """Until so many have come in all."""
        while self.pieces < count:
            if not self._read():
                raise AssertionError(f"it ended after {self.pieces} pieces of text: {self.payloads[-1:]}")
        return self

    def read_to_end(self):
        with contextlib.closing(self):
            while self._read():
                pass
        return self

    def close(self):
        self.connection.close()

    def transcript(self):
        """What a client is promised of the whole stream: each choice's chunks in order, and the usage. Not the ids, the times,
        who answered, and what that one had in its cache."""
        if self.payloads[-1:] != ["[DONE]"]:
            raise AssertionError(f"the stream is not whole, it ends with {self.payloads[-1:]}")
        choices, usage = {}, []
        for chunk in map(json.loads, self.payloads[:-1]):
            for choice in chunk["choices"]:
                choices.setdefault(choice["index"], []).append(json.dumps(choice, sort_keys=True))
            if chunk.get("usage") is not None:
                usage.append({name: count for name, count in chunk["usage"].items() if name != "prompt_tokens_details"})
        return {"choices": choices, "usage": usage}


def self_signed(folder):
    """Certificate and key for 127.0.0.1, as paths of PEM files; the certificate is its own authority."""
    certificate, key = pathlib.Path(folder, "worker.pem"), pathlib.Path(folder, "worker.key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
               "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    return str(certificate), str(key)


def percentile(values, share):
    """Of values of which there is at least one: the least that `share` of them do not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]
