"""Single processes of Terrace, for tests that need other settings or other numbers of them than `terrace up` has.

Each takes free loopback ports (port 0) and says in its log which; `with` ends it, by SIGTERM and after a while by force.
"""

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile

from cluster import BIN, MODELS, PATIENCE_SECONDS, wait_until


def http_call(port, method, path, body=None, headers=None):
    """Status, headers (names in lower case) and body of one request over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    with contextlib.closing(connection):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        json_type = {"Content-Type": "application/json"} if data is not None else {}
        connection.request(method, path, data, {**json_type, **(headers or {})})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def samples_at(port, name):
    """The samples of one metric of the process with that ops port: labels and value of each."""
    lines = http_call(port, "GET", "/metrics")[2].decode().splitlines()
    return [(dict(re.findall(r'(\w+)="([^"]*)"', line)), float(line.split()[-1]))
            for line in lines if line.startswith((name + " ", name + "{"))]


def metric_at(port, name, default=None):
    """Their sum; `default` when there is none yet."""
    samples = samples_at(port, name)
    if not samples and default is None:
        raise AssertionError(f"no metric {name}")
    return sum(value for _, value in samples) if samples else default


def open_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


class Process:
    """One program that logs JSON lines; `ready_event` is the one that has its addresses. `config` are its settings."""

    def __init__(self, binary, ready_event, arguments=(), config=None):
        name = pathlib.Path(binary).name
        self.folder = tempfile.TemporaryDirectory(prefix=f"{name}-")
        self.log_path = pathlib.Path(self.folder.name, "log")
        self.ready_event = ready_event
        if config is not None:
            path = pathlib.Path(self.folder.name, "config.yaml")
            path.write_text(json.dumps(config))  # JSON is YAML
            arguments = ["--config", path, *arguments]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [binary, *arguments], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
        try:
            self.addresses = wait_until(self._addresses_or_dead, f"{name} is up")
            if self.addresses is True:
                raise AssertionError(f"{name} ended with {self.process.returncode}:\n{self.log_text()}")
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.folder.cleanup()

    def _addresses_or_dead(self):
        """The record of the ready event, of a process that has ended since too; True when it ended without."""
        ended = self.process.poll() is not None  # asked first: what it logged before its end is then all there
        ready = [r for r in self.log_records() if r["event"] == self.ready_event]
        return ready[0] if ready else ended

    @property
    def pid(self):
        return self.process.pid

    def port(self, listener):
        return int(self.addresses[listener].rsplit(":", 1)[1])

    def log_text(self):
        return self.log_path.read_text(errors="replace")

    def log_records(self):
        """Of the whole lines: one that is being written may be read in part."""
        return [json.loads(line) for line in self.log_text().split("\n")[:-1] if line.startswith("{")]

    def metric(self, name):
        """Sum of the samples of one metric, over its labels."""
        return metric_at(self.port("ops"), name)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()


class Worker(Process):
    """A worker of one model of the demo family."""

    def __init__(self, tier, kernels="auto", engine=None):
        config = {
            "model": str(MODELS / f"terrace-demo-{tier}"),
            "grpc": "127.0.0.1:0",
            "ops": "127.0.0.1:0",
            "engine": {"threads": 1, "compute": "f32", "kernels": kernels, **(engine or {})},
        }
        super().__init__(BIN / "terrace-worker", "worker_ready", config=config)
        self.grpc = self.addresses["grpc"]


class Router(Process):
    """A router of `tiers` (name -> addresses of workers), ready when each has a worker that is; `settings` are more of
    RouterConfig."""

    def __init__(self, tiers, **settings):
        config = {
            "listen": {name: "127.0.0.1:0" for name in ("http", "grpc", "ops")},
            "tiers": [
                {"name": name, "workers": workers, "usd_per_million_prompt_tokens": 1.0,
                 "usd_per_million_completion_tokens": 1.0}
                for name, workers in tiers.items()
            ],
        }
        for name, value in settings.items():
            config[name] = {**config[name], **value} if name in config else value
        super().__init__(BIN / "terrace-router", "router_ready", config=config)
        try:
            wait_until(lambda: http_call(self.port("ops"), "GET", "/readyz")[0] == 200, "the router is ready")
        except BaseException:
            self.__exit__()
            raise
