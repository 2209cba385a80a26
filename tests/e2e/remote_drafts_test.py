#!/usr/bin/python3
"""End to end: the worker of nano drafts for the one of base. Its answers are those of a base worker without drafts, to the byte,
also when the drafting worker is killed, stopped or told to end in the middle of one; and drafts come again when it is back."""

import contextlib
import json
import signal
import unittest

from cluster import BIN, MODELS, wait_until
from fleet import Member, Stream, long_chat
from processes import Router, Worker, http_call

MAX_TOKENS = 96
POSITION = 10  # of the token at which something happens

SEEDED = {"temperature": 0.8, "seed": 7}
KINDS = {
    "greedy": {"temperature": 0},
    "seeded": SEEDED,
    "penalties": {**SEEDED, "frequency_penalty": 0.5, "presence_penalty": 0.3, "logprobs": True},
}


def said(stream):
    """What the answer is: not how its text was cut into chunks, nor what its worker had of drafts."""
    transcript = stream.transcript()
    text, logprobs, ends = "", [], []
    for choice in map(json.loads, transcript["choices"][0]):
        text += choice["delta"].get("content") or ""
        logprobs += (choice.get("logprobs") or {}).get("content") or []
        ends.append(choice.get("finish_reason"))
    usage = [{name: value for name, value in usage.items() if name != "completion_tokens_details"} for usage in transcript["usage"]]
    return text, logprobs, ends[-1], usage


class RemoteDraftsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        nano = {"model": str(MODELS / "terrace-demo-nano"), "engine": {"threads": 1, "compute": "f32"}}
        cls.nano = cls.enterClassContext(contextlib.closing(Member(nano)))
        remote = {"speculation": {"drafter": "remote", "remote": {"address": cls.nano.grpc}}}
        cls.base = cls.enterClassContext(Worker("base", kernels="reference", engine=remote))
        plain = cls.enterClassContext(Worker("base", kernels="reference"))
        cls.router = cls.enterClassContext(Router({"base": [cls.base.grpc], "plain": [plain.grpc]}))
        cls.want = {kind: said(cls.ask(kind, "plain").read_to_end()) for kind in KINDS}

    @classmethod
    def ask(cls, kind, tier="base"):
        return Stream(cls.router.port("http"), {**long_chat(MAX_TOKENS, **KINDS[kind]), "model": tier})

    def expect_answers(self):
        for kind in KINDS:
            with self.subTest(kind=kind):
                self.assertEqual(said(self.ask(kind).read_to_end()), self.want[kind])

    def expect_drafts(self):
        """From now on, and that they get to where they are wanted."""
        sent = self.nano.process.metric("terrace_speculation_served_tokens_total")
        came = self.base.metric("terrace_speculation_remote_tokens_total")

        def are_there():
            self.expect_answers()
            return (
                self.nano.process.metric("terrace_speculation_served_tokens_total") > sent
                and self.base.metric("terrace_speculation_remote_tokens_total") > came
            )

        wait_until(are_there, "there are drafts")

    def setUp(self):
        connected = 'terrace_speculation_remote_state{state="connected"}'
        wait_until(lambda: self.base.metric(connected) == 1, "the drafting worker is found")

    def test_the_answers_are_the_same(self):
        self.expect_drafts()

    def test_the_router_tells_who_drafts(self):
        self.expect_drafts()
        tiers = json.loads(http_call(self.router.port("ops"), "GET", "/statusz")[2])["tiers"]
        of = {tier["name"]: tier["replicas"][0] for tier in tiers}
        self.assertEqual(of["base"]["drafter"], f"remote {self.nano.grpc}")
        self.assertLessEqual(of["base"]["accepted_speculated_tokens"], of["base"]["speculated_tokens"])
        self.assertEqual(of["plain"]["drafter"], "")
        self.assertEqual(of["plain"]["speculated_tokens"], 0)

    def test_a_killed_drafter(self):
        self.disturb(signal.SIGKILL)

    def test_a_drafter_told_to_end(self):
        self.disturb(signal.SIGTERM)

    def test_a_stopped_drafter(self):
        self.disturb(signal.SIGSTOP)

    def disturb(self, number):
        self.expect_drafts()
        with contextlib.closing(self.ask("greedy")) as stream:
            stream.read_pieces(POSITION)
            self.nano.send(number)
            self.assertEqual(said(stream.read_to_end()), self.want["greedy"])
        self.expect_answers()  # without it
        if number == signal.SIGSTOP:
            self.nano.send(signal.SIGCONT)
        else:
            self.assertEqual(self.nano.wait(), 0 if number == signal.SIGTERM else -number)
            self.nano.start()
        self.expect_drafts()


if __name__ == "__main__":
    unittest.main(verbosity=2)
