"""A TCP fault proxy (tests/chaos/fault-proxy) as a process of its own."""

import json
import subprocess

from cluster import BIN, PATIENCE_SECONDS

PROGRAM = (BIN / "terrace").resolve().parents[2] / "tests" / "chaos" / "fault-proxy"  # beside the binaries that bin/ links to


class FaultProxy:
    """In front of `upstream`; `run` makes it do what `fault-proxy --help` lists."""

    def __init__(self, upstream, seed=1):
        if not PROGRAM.exists():
            raise AssertionError("there is no fault-proxy: bazel build --config=release //tests/chaos:fault-proxy")
        self.process = subprocess.Popen(
            [PROGRAM, "--upstream", upstream, "--seed", str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            raise AssertionError(f"fault-proxy ended with {self.process.wait(PATIENCE_SECONDS)}")

    def run(self, command):
        """Has taken effect when it returns: what there is to tell, or None."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        verdict, _, told = self.process.stdout.readline().strip().partition(" ")
        if verdict != "ok":
            raise AssertionError(f"fault-proxy, {command!r}: {told or 'it has ended'}")
        return json.loads(told) if told else None

    def close(self):
        self.process.stdin.close()  # it ends with its input
        self.process.wait(PATIENCE_SECONDS)
        self.process.stdout.close()
