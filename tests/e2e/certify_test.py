#!/usr/bin/env python3
"""A tier that requires a manifest: what it serves, what it refuses and why, while manifests come and change."""

import base64
import json
import pathlib
import subprocess
import tempfile
import unittest

from cluster import BIN, MODELS, wait_until
from processes import Process, Worker, http_call

NANO, SMALL = (str(MODELS / f"terrace-demo-{tier}") for tier in ("nano", "small"))
NANO_GGUF = str(MODELS / "terrace-demo-nano.f16.gguf")  # the same weights, another digest
TASKS = ("--tasks", str(MODELS / "eval" / "rewrite.jsonl"), "--limit", "60")  # 59 rows show a margin of 0.05
QUESTION = {"model": "gated", "messages": [{"role": "user", "content": "Sort the list Kira, Fiona, Rene"}], "temperature": 0}


def terrace(*arguments):
    return subprocess.run([BIN / "terrace", *arguments], capture_output=True, text=True, timeout=300)


class Gate(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="terrace-e2e-")))
        for name in ("gate", "stranger"):
            made = terrace("certify", "--make-key", str(cls.folder / name))
            assert made.returncode == 0, made.stderr
        cls.passed = cls.certify("passed.json", NANO, NANO_GGUF, "gate")
        cls.failed = cls.certify("failed.json", NANO, SMALL, "gate")
        cls.strange = cls.certify("strange.json", NANO, NANO_GGUF, "stranger")
        cls.worker = cls.enterClassContext(Worker("nano"))
        cls.manifest = cls.folder / "manifest.json"
        cls.config = {
            "listen": {name: "127.0.0.1:0" for name in ("http", "grpc", "ops")},
            "tiers": [
                {
                    "name": "gated",
                    "workers": [cls.worker.grpc],
                    "require_manifest": True,
                    "manifests": [str(cls.manifest)],
                    "manifest_keys": [str(cls.folder / "gate.public.pem")],
                }
            ],
        }
        cls.router = cls.enterClassContext(Process(BIN / "terrace-router", "router_ready", config=cls.config))

    @classmethod
    def certify(cls, name, model, baseline, key):
        """The text of the manifest, which is written whatever its verdict."""
        path = cls.folder / name
        done = terrace("certify", "--model", model, "--baseline", baseline, *TASKS, "--threads", "1", "--compute", "f32",
                       "--key", str(cls.folder / f"{key}.private.pem"), "--out", str(path))
        assert done.returncode == (0 if baseline == NANO_GGUF else 1), (done.returncode, done.stderr)
        return path.read_text()

    def put(self, text):
        new = self.manifest.with_suffix(".new")
        new.write_text(text)
        new.rename(self.manifest)

    def replica(self):
        """As the router shows it; there is none before workers are looked for."""
        replicas = json.loads(http_call(self.router.port("ops"), "GET", "/statusz")[2])["tiers"][0]["replicas"]
        return replicas[0] if replicas else {"state": "", "refusal": ""}

    def ask(self):
        status, _, body = http_call(self.router.port("http"), "POST", "/v1/chat/completions", QUESTION)
        return status, json.loads(body)

    def await_refusal(self, reason):
        wait_until(lambda: self.replica()["refusal"] == reason, reason)
        self.assertEqual(self.replica()["state"], "refused")
        status, body = self.ask()
        self.assertEqual((status, body["error"]["code"]), (503, "model_not_certified"))
        self.assertIn(reason, body["error"]["message"])
        self.assertNotIn(str(self.folder), body["error"]["message"])
        metrics = http_call(self.router.port("ops"), "GET", "/metrics")[2].decode()
        self.assertIn(f'terrace_pool_refused_workers{{reason="{reason}",tier="gated"}} 1', metrics)
        shown = terrace("status", "--once", "--router-ops", f"127.0.0.1:{self.router.port('ops')}")
        self.assertIn("refused", shown.stdout)
        self.assertIn(str(self.manifest), shown.stdout)

    def await_served(self):
        wait_until(lambda: self.replica()["state"] == "ready", "the model is let in")
        self.assertEqual(self.ask()[0], 200)

    def test_what_is_served_follows_the_manifest(self):
        self.manifest.unlink(missing_ok=True)
        self.await_refusal("manifest_unreadable")
        self.put(self.passed)
        self.await_served()
        self.put(self.failed)
        self.await_refusal("manifest_failed")
        self.put(self.strange)
        self.await_refusal("manifest_unknown_key")
        self.put(self.passed.replace('"created": "20', '"created": "21'))
        self.await_refusal("manifest_bad_signature")
        self.put("{}")
        self.await_refusal("manifest_malformed")
        self.put(self.passed)
        self.await_served()
        events = [record["event"] for record in self.router.log_records()]
        self.assertIn("model_refused", events)
        self.assertIn("model_let_in", events)

    def test_validate_says_the_same_beforehand(self):
        manifest = self.folder / "validated.json"
        tier = {**self.config["tiers"][0], "manifests": [str(manifest)]}
        file = self.folder / "router.yaml"
        file.write_text(json.dumps({**self.config, "tiers": [tier]}))
        cluster = self.folder / "cluster.yaml"
        address = "127.0.0.1:8101"
        cluster.write_text(json.dumps({"router": {"tiers": [{**tier, "workers": [address]}]},
                                       "workers": [{"model": SMALL, "grpc": address}]}))
        for text, reason in ((self.failed, "its verdict is failed"), ("", "not a manifest")):
            manifest.write_text(text)
            said = terrace("validate", str(file))
            self.assertEqual(said.returncode, 1, said.stdout)
            self.assertIn(reason, said.stdout)
            self.assertIn("would start, but", said.stderr)
        manifest.write_text(self.passed)
        self.assertEqual(terrace("validate", str(file)).returncode, 0)
        said = terrace("validate", str(cluster))  # its worker has another model
        self.assertEqual(said.returncode, 1, said.stdout)
        self.assertIn("it is of the model", said.stdout)
        self.assertIn("would start, but 1 worker would be refused", said.stderr)

    def test_other_tools_check_the_signature(self):
        path = self.folder / "passed.json"
        payload, signature = self.folder / "payload", self.folder / "signature"
        payload.write_text(terrace("verify-manifest", str(path), "--payload").stdout)
        signature.write_bytes(base64.b64decode(json.loads(self.passed)["signature"]))
        for name, status in (("gate", 0), ("stranger", 1)):
            done = subprocess.run(
                ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", self.folder / f"{name}.public.pem", "-rawin", "-in",
                 payload, "-sigfile", signature], capture_output=True)
            self.assertEqual(done.returncode, status, done.stderr)
        verified = terrace("verify-manifest", str(path), "--keys", str(self.folder / "gate.public.pem"), "--model", NANO)
        self.assertEqual(verified.returncode, 0, verified.stderr)
        refused = terrace("verify-manifest", str(path), "--keys", str(self.folder / "stranger.public.pem"))
        self.assertEqual(refused.returncode, 1)
        self.assertIn("manifest_unknown_key", refused.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
