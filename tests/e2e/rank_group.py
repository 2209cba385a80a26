"""A worker of several ranks without `terrace up`: each is a process of the test's own, which can be lost, and is not started again."""

import contextlib
import os
import signal
import time

from cluster import BIN, MODELS, wait_until
from fleet import steady_ports
from processes import Process

ENGINE = {"threads": 1, "compute": "f32", "kernels": "reference"}  # slow enough for things to happen in the middle of an answer


class RankGroup:
    """`group` and `engine` are settings of theirs, `settings` the rest of WorkerConfig. With one rank it is a plain worker."""

    def __init__(self, ranks, group=None, engine=None, **settings):
        self.stack = contextlib.ExitStack()
        leader, grpc, ops = steady_ports(3)
        self.grpc = f"127.0.0.1:{grpc}"
        self.ops = ops
        self.config = {
            "model": str(MODELS / "terrace-demo-base"),
            "grpc": self.grpc,
            "ops": f"127.0.0.1:{ops}",
            "engine": {**ENGINE, **(engine or {})},
            **settings,
        }
        if ranks > 1:
            self.config["group"] = {"ranks": ranks, "leader": f"127.0.0.1:{leader}", **(group or {})}
        with self.stack:  # closes what there is when something fails
            self.followers = [self.start_follower(rank) for rank in range(1, ranks)]
            self.leader = self.stack.enter_context(Process(BIN / "terrace-worker", "worker_ready", config=self.config))
            self.stack = self.stack.pop_all()
        self.processes = [self.leader, *self.followers]

    def start_follower(self, rank):
        """It waits for the leader."""
        config = {**self.config, "group": {**self.config["group"], "rank": rank}}
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
