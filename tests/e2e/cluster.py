"""A Terrace cluster of real processes on free loopback ports, for the end-to-end tests.

Waiting is polling with a deadline, never a fixed sleep that a result depends on.
"""

import contextlib
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = ROOT / "bin"
MODELS = ROOT / "models"
TIERS = ("nano", "small", "base")
PATIENCE_SECONDS = 120  # for one condition, on a loaded machine


def free_ports(count):
    """Below the range that systems give to outgoing connections, so that none of those takes one meanwhile."""
    ports = set()
    while len(ports) < count:
        port = random.randrange(12000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.add(port)
    return list(ports)


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE_SECONDS} s: {what}")


def children_of(pid):
    """Process ids of the live children of `pid`, by name."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = pathlib.Path("/proc", entry, "stat").read_text()
            command = pathlib.Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        state, parent = stat.rsplit(")", 1)[1].split()[:2]
        if int(parent) == pid and state != "Z":
            found[int(entry)] = [word.decode() for word in command if word]
    return found


def is_alive(pid):
    try:
        return pathlib.Path("/proc", str(pid), "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Cluster:
    """`terrace up` over the demo family. `kernels` maps a tier to its engine.kernels setting."""

    def __init__(self, kernels=None):
        self.directory = tempfile.TemporaryDirectory(prefix="terrace-e2e-")
        ports = free_ports(3 + 2 * len(TIERS))
        self.http, self.grpc, self.ops = ports[:3]
        self.worker_grpc = dict(zip(TIERS, ports[3:6]))
        self.worker_ops = dict(zip(TIERS, ports[6:9]))
        config = {
            "router": {
                "listen": {name: f"127.0.0.1:{port}" for name, port in zip(("http", "grpc", "ops"), ports)},
                "tiers": [
                    {
                        "name": tier,
                        "workers": [f"127.0.0.1:{self.worker_grpc[tier]}"],
                        "usd_per_million_prompt_tokens": price,
                        "usd_per_million_completion_tokens": price,
                    }
                    for tier, price in zip(TIERS, (1.0, 2.0, 4.0))
                ],
                "policies": [
                    {
                        "name": "auto",
                        "cascade": {
                            "steps": [
                                {"tier": "nano", "min_mean_logprob": -0.01},
                                {"tier": "small", "min_mean_logprob": -0.01},
                                {"tier": "base"},
                            ]
                        },
                    }
                ],
            },
            "workers": [
                {
                    "model": str(MODELS / f"terrace-demo-{tier}"),
                    "grpc": f"127.0.0.1:{self.worker_grpc[tier]}",
                    "ops": f"127.0.0.1:{self.worker_ops[tier]}",
                    "engine": {"threads": 1, "compute": "f32", "kernels": (kernels or {}).get(tier, "auto")},
                }
                for tier in TIERS
            ],
        }
        self.adjust(config, pathlib.Path(self.directory.name))
        path = pathlib.Path(self.directory.name, "cluster.yaml")
        path.write_text(json.dumps(config))  # JSON is YAML
        self.log_path = pathlib.Path(self.directory.name, "up.log")
        self.log = open(self.log_path, "wb")
        self.process = subprocess.Popen(
            [BIN / "terrace", "up", "-f", path],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": self.directory.name},  # a killed one cannot clean up after itself
        )

    def adjust(self, config, directory):
        """For subclasses: changes the cluster file before it is written into `directory`."""

    def __enter__(self):
        try:
            wait_until(self._ready_or_dead, "cluster ready")
            if self.process.poll() is not None:
                raise AssertionError(f"terrace up ended with {self.process.returncode}:\n{self.log_text()}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.log.close()
        self.directory.cleanup()

    def _ready_or_dead(self):
        if self.process.poll() is not None:
            return True
        try:
            tiers = self.status()["tiers"]
        except (OSError, http.client.HTTPException):
            return False
        return all(t["replicas"] and all(r["state"] == "ready" for r in t["replicas"]) for t in tiers)

    def log_text(self):
        self.log.flush()
        return self.log_path.read_text(errors="replace")

    def log_lines(self):
        """The whole lines of the log: a line that is being written may be read in part."""
        return self.log_text().split("\n")[:-1]

    def get(self, port, path):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, body

    def status(self):
        return json.loads(self.get(self.ops, "/statusz")[1])

    def running(self, tier):
        """Sequences the worker of `tier` says it holds."""
        for line in self.get(self.worker_ops[tier], "/metrics")[1].decode().splitlines():
            if line.startswith("terrace_engine_requests_running"):
                return float(line.split()[-1])
        raise AssertionError("no terrace_engine_requests_running in the worker's metrics")

    def chat(self, body, headers=None):
        """Status, headers and parsed JSON of one non-streaming completion."""
        return self.post("/v1/chat/completions", body, headers)

    def post(self, path, body, headers=None):
        """Status, headers and parsed JSON of the reply."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=PATIENCE_SECONDS)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response.status, dict((k.lower(), v) for k, v in response.getheaders()), json.loads(text)

    def chat_stream(self, body):
        """Opens a stream; yields each `data:` payload as text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=PATIENCE_SECONDS)
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps({**body, "stream": True}).encode(),
            {"Content-Type": "application/json"},
        )
        response = connection.getresponse()
        return connection, response

    def worker_pid(self, tier):
        port = f"127.0.0.1:{self.worker_grpc[tier]}"
        for pid, command in children_of(self.process.pid).items():
            if not command or "terrace-worker" not in command[0]:
                continue
            configs = [pathlib.Path(word).read_text() for word in command if word.endswith(".yaml")]
            if any(port in text for text in [" ".join(command), *configs]):
                return pid
        raise AssertionError(f"no child serves {port}: {children_of(self.process.pid)}")


def events(response):
    """`data:` payloads of a server-sent event stream, until it ends."""
    for line in response:
        line = line.strip()
        if line.startswith(b"data: "):
            yield line[len(b"data: ") :].decode()
