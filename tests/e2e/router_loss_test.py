#!/usr/bin/python3
"""End to end: routers share nothing. Of three behind a balancer (haproxy) one is killed under load: the connections through
it notice, nobody else does. One that is told to end lets its answers end for a while, and tells the clients of the others."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest

from cluster import PATIENCE_SECONDS, events, free_ports, wait_until
from processes import Router, Worker

QUESTION = {"role": "user", "content": "Intent of the following ticket: i do not want the grey printer any more, please pay me back."}
LONG = {"model": "base", "messages": [QUESTION], "temperature": 0, "ignore_eos": True, "max_tokens": 400, "stream": True}
SHORT = {"model": "nano", "messages": [QUESTION], "temperature": 0}
STREAMS = 9


class Haproxy:
    """Balances `ports` by turns, and says in a header which one answered (r0, r1, ...). A connection that cannot be made is
    tried elsewhere; a request that was sent is not repeated."""

    def __init__(self, ports):
        self.folder = tempfile.TemporaryDirectory(prefix="haproxy-")
        self.port = free_ports(1)[0]
        servers = "\n".join(f"  server r{i} 127.0.0.1:{port} check inter 200ms" for i, port in enumerate(ports))
        path = pathlib.Path(self.folder.name, "haproxy.cfg")
        path.write_text(f"""
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  retries 3
  retry-on conn-failure
  option redispatch 1
listen routers
  bind 127.0.0.1:{self.port}
  balance roundrobin
  http-response set-header x-router %s
{servers}
""")
        program = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")
        self.process = subprocess.Popen([program, "-f", path, "-db"], stdin=subprocess.DEVNULL)

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.callback(self.__exit__)
            wait_until(self._listens_or_dead, "haproxy is up")
            if self.process.poll() is not None:
                raise AssertionError(f"haproxy ended with {self.process.returncode}")
            stack.pop_all()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def _listens_or_dead(self):
        with contextlib.suppress(OSError):
            open_request(self.port, "GET", "/v1/models")[0].close()
            return True
        return self.process.poll() is not None


def open_request(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    connection.request(method, path, body and json.dumps(body).encode(), {"Content-Type": "application/json"})
    return connection, connection.getresponse()


class Stream:
    """A long answer, read on a thread of its own once it has begun."""

    def __init__(self, port):
        self.connection, self.response = open_request(port, "POST", "/v1/chat/completions", LONG)
        self.router = self.response.getheader("x-router")
        self.payloads = []
        self.events = events(self.response)
        self.payloads += [next(self.events), next(self.events)]  # the role, and the first text
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self):
        with contextlib.suppress(http.client.IncompleteRead, ConnectionError):
            self.payloads += self.events
        self.connection.close()

    def is_whole(self):
        return self.payloads[-1] == "[DONE]"

    def text(self):
        chunks = [json.loads(payload) for payload in self.payloads if payload != "[DONE]"]
        return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", []))


class RouterLoss(unittest.TestCase):
    def test_a_killed_router_takes_only_its_own_connections_with_it(self):
        with contextlib.ExitStack() as stack:
            workers = {tier: stack.enter_context(Worker(tier, kernels)) for tier, kernels in (("nano", "auto"), ("base", "reference"))}
            tiers = {tier: [worker.grpc] for tier, worker in workers.items()}
            routers = [stack.enter_context(Router(tiers)) for _ in range(3)]
            balancer = stack.enter_context(Haproxy([router.port("http") for router in routers]))
            with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:  # all have begun long before one of them ends
                streams = list(pool.map(lambda _: Stream(balancer.port), range(STREAMS)))
            self.assertEqual({stream.router for stream in streams}, {"r0", "r1", "r2"})

            routers[1].kill()
            # Nobody who asks now is told of it: not while the balancer still believes in r1, nor later.
            for _ in range(30):
                connection, response = open_request(balancer.port, "POST", "/v1/chat/completions", SHORT)
                body = json.loads(response.read())
                connection.close()
                self.assertEqual((response.status, body["choices"][0]["message"]["content"]), (200, "refund_request"), body)
                self.assertIn(response.getheader("x-router"), ("r0", "r2"))

            for stream in streams:
                stream.thread.join(PATIENCE_SECONDS)
                self.assertFalse(stream.thread.is_alive())
            others = [stream for stream in streams if stream.router != "r1"]
            self.assertTrue(all(stream.is_whole() for stream in others), [stream.payloads[-1] for stream in others])
            self.assertEqual(len({stream.text() for stream in others}), 1)
            for stream in streams:
                if stream.router == "r1":
                    self.assertFalse(stream.is_whole(), "it was over before the router was killed")
                    self.assertTrue(others[0].text().startswith(stream.text()), "what came of it is not the beginning of the answer")
            wait_until(lambda: workers["base"].metric("terrace_engine_requests_running") == 0, "the worker gave up what the dead router had asked for")


class RouterEnd(unittest.TestCase):
    def end(self, drain_seconds, last_payload):
        """What a router that is told to end while it has an answer logs of that; `last_payload` checks the end of the stream."""
        with Worker("base", "reference") as worker, Router({"base": [worker.grpc]}, drain_seconds=drain_seconds) as router:
            stream = Stream(router.port("http"))
            os.kill(router.pid, signal.SIGTERM)
            stream.thread.join(PATIENCE_SECONDS)
            self.assertFalse(stream.thread.is_alive())
            last_payload(stream.payloads)
            self.assertEqual(router.process.wait(PATIENCE_SECONDS), 0, router.log_text())
            wait_until(lambda: worker.metric("terrace_engine_requests_running") == 0, "the worker is done with it")
            records = router.log_records()
            stopped = next(record for record in records if record["event"] == "router_stopped")
            return stopped["cut_off"], next(record for record in records if record["event"] == "request")

    def test_an_answer_that_ends_in_time_is_whole(self):
        def is_whole(payloads):
            self.assertEqual(payloads[-1], "[DONE]")

        cut_off, record = self.end(600, is_whole)
        self.assertEqual((cut_off, record["outcome"]), (0, "ok"))

    def test_an_answer_that_does_not_ends_with_an_error_that_says_why_and_is_billed_to_nobody(self):
        def is_told(payloads):
            self.assertEqual(json.loads(payloads[-1])["error"]["code"], "draining")
            self.assertNotIn("[DONE]", payloads)

        cut_off, record = self.end(0, is_told)
        self.assertEqual((cut_off, record["outcome"], record["code"], record["price_usd"]), (1, "unavailable", "draining", 0))


if __name__ == "__main__":
    unittest.main(verbosity=2)
