#!/usr/bin/env python3
"""Tenants and reloads on a real router: who may ask what, how much, and how a change of the files gets there."""

import hashlib
import http.client
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import unittest

from cluster import BIN, MODELS, Cluster, children_of, wait_until

QUESTION = {"role": "user", "content": "Sort the list Kira, Fiona, Rene"}
SECRET = "s" * 32


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


class TenantCluster(Cluster):
    """A cluster whose router has a keys file, which a test may rewrite."""

    def adjust(self, config, directory):
        self.keys_path = directory / "keys.yaml"
        (directory / "secret").write_text(SECRET + "\n")
        self.write_keys([{"name": "acme", "key_sha256": [digest("key-of-acme")]}])
        config["router"]["auth"] = {"keys_file": "keys.yaml", "cluster_secret_file": "secret"}

    def write_keys(self, tenants):
        new = self.keys_path.with_suffix(".new")
        new.write_text(json.dumps({"tenants": tenants}))
        new.rename(self.keys_path)  # as a mounted secret changes

    def ask(self, key, body=None, path="/v1/chat/completions", method="POST"):
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=60)
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response.status, dict(response.getheaders()), json.loads(text) if text[:1] == b"{" else text.decode()

    def chat_as(self, key, model="nano", **fields):
        return self.ask(key, {"model": model, "messages": [QUESTION], "temperature": 0, **fields})

    def metric(self, name):
        for line in self.get(self.ops, "/metrics")[1].decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        return None

    def router_pid(self):
        for pid, command in children_of(self.process.pid).items():
            if command[0].endswith("terrace-router"):
                return pid
        raise AssertionError("no router")


class Tenants(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = cls.enterClassContext(TenantCluster())

    def setUp(self):
        before = self.reloads()
        self.cluster.write_keys([{"name": "acme", "key_sha256": [digest("key-of-acme")]}])
        wait_until(lambda: self.reloads() > before, "the keys are read")

    def reloads(self):
        return self.cluster.metric('terrace_config_reloads_total{result="ok"}') or 0

    def await_status(self, key, status):
        wait_until(lambda: self.cluster.ask(key, path="/v1/models", method="GET")[0] == status, f"{status} for {key}")

    def test_without_a_key_only_the_probes_answer(self):
        for path, method in (("/v1/models", "GET"), ("/v1/chat/completions", "POST"), ("/nonsense", "GET")):
            status, headers, body = self.cluster.ask(None, path=path, method=method)
            self.assertEqual((status, body["error"]["code"]), (401, "invalid_api_key"), path)
            self.assertIn("x-request-id", headers)
        self.assertEqual(self.cluster.ask(None, path="/healthz", method="GET")[0], 200)
        self.assertEqual(self.cluster.ask(None, path="/readyz", method="GET")[0], 200)
        self.assertEqual(self.cluster.chat_as("key-of-nobody")[0], 401)
        self.assertEqual(self.cluster.chat_as("key-of-acme")[0], 200)

    def test_new_keys_count_soon_and_old_ones_end(self):
        self.cluster.write_keys([{"name": "acme", "key_sha256": [digest("second-key")]}])
        self.await_status("second-key", 200)
        self.await_status("key-of-acme", 401)

    def test_a_wrong_file_changes_nothing_and_is_told(self):
        self.cluster.keys_path.write_text("tenants: [{name: acme, models: [absent]}]")
        wait_until(lambda: self.cluster.metric("terrace_config_reload_success") == 0, "the refusal is told")
        self.assertEqual(self.cluster.chat_as("key-of-acme")[0], 200)
        wait_until(lambda: any("config_refused" in l for l in self.cluster.log_lines()), "the refusal is logged")
        self.cluster.write_keys([{"name": "acme", "key_sha256": [digest("key-of-acme")], "weight": 2}])
        wait_until(lambda: self.cluster.metric("terrace_config_reload_success") == 1, "the repair is seen")

    def test_sighup_reloads(self):
        before = self.reloads()
        os.kill(self.cluster.router_pid(), signal.SIGHUP)
        wait_until(lambda: self.reloads() > before, "a reload")
        self.assertEqual(self.cluster.chat_as("key-of-acme")[0], 200)

    def test_models_and_limits_are_the_tenants(self):
        self.cluster.write_keys(
            [
                {"name": "acme", "key_sha256": [digest("key-of-acme")]},
                {"name": "small", "key_sha256": [digest("key-of-small")], "models": ["nano"], "requests_per_minute": 2},
            ]
        )
        self.await_status("key-of-small", 200)
        models = self.cluster.ask("key-of-small", path="/v1/models", method="GET")[2]["data"]
        self.assertEqual([m["id"] for m in models], ["nano"])
        status, _, body = self.cluster.chat_as("key-of-small", model="base")
        self.assertEqual((status, body["error"]["code"]), (403, "model_not_allowed"))
        self.assertEqual(self.cluster.chat_as("key-of-small")[0], 200)
        self.assertEqual(self.cluster.chat_as("key-of-small")[0], 200)
        status, headers, body = self.cluster.chat_as("key-of-small")
        self.assertEqual((status, body["error"]["code"]), (429, "rate_limit_exceeded"))
        self.assertTrue(1 <= int(headers["retry-after"]) <= 30, headers)
        self.assertEqual(self.cluster.chat_as("key-of-acme")[0], 200)

    def test_no_tenant_finds_anothers_prefix(self):
        self.cluster.write_keys(
            [{"name": name, "key_sha256": [digest(f"key-of-{name}")]} for name in ("acme", "other")]
        )
        self.await_status("key-of-other", 200)
        messages = [{"role": "user", "content": "Sort the list " + ", ".join(["Kira", "Fiona", "Rene", "Yara"] * 12)}]
        def cached(key):
            reply = self.cluster.ask(key, {"model": "base", "messages": messages, "max_tokens": 1})[2]
            return reply["usage"]["prompt_tokens_details"]["cached_tokens"]
        self.assertEqual(cached("key-of-acme"), 0)
        self.assertGreater(cached("key-of-acme"), 0)
        self.assertEqual(cached("key-of-other"), 0)

    def test_the_cli_shows_its_key_from_a_file(self):
        file = self.cluster.keys_path.with_name("acme.key")
        file.write_text("key-of-acme\n")
        command = [BIN / "terrace", "generate", "--router", f"127.0.0.1:{self.cluster.grpc}", "--model", "nano", "--prompt", "x"]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(refused.returncode, 77)
        self.assertIn("--api-key-file", refused.stderr)
        allowed = subprocess.run([*command, "--api-key-file", file], capture_output=True, text=True, timeout=60)
        self.assertEqual(allowed.returncode, 0, allowed.stderr)

    def test_no_secret_is_in_the_log(self):
        self.cluster.chat_as("key-of-acme")
        self.cluster.chat_as("key-of-nobody")
        log = self.cluster.log_text()
        for secret in ("key-of-acme", "key-of-nobody", SECRET, digest("key-of-acme")):
            self.assertNotIn(secret, log)


class Validate(unittest.TestCase):
    def validate(self, text, *flags):
        with tempfile.TemporaryDirectory(prefix="terrace-e2e-") as directory:
            file = pathlib.Path(directory, "file.yaml")
            file.write_text(text)
            return subprocess.run([BIN / "terrace", "validate", file, *flags], capture_output=True, text=True, timeout=60)

    def test_the_verdict_is_the_exit_status_and_the_reason_is_printed(self):
        router = 'tiers: [{name: nano, workers: ["127.0.0.1:1"]}]'
        self.assertEqual(self.validate(router).returncode, 0)
        wrong = self.validate(router + "\nadmission: {max_in_flight: 0}")
        self.assertEqual(wrong.returncode, 78)
        self.assertIn("admission.max_in_flight", wrong.stdout)
        unknown = self.validate(router + "\nadmision: {}")
        self.assertEqual(unknown.returncode, 78)
        self.assertIn("admision", unknown.stdout)
        absent = self.validate("model: /absent")  # a worker's
        self.assertEqual(absent.returncode, 78)
        self.assertIn("no model folder or file /absent", absent.stdout)
        self.assertEqual(self.validate(f"model: {MODELS}").returncode, 0)  # it is not read

    def test_the_demo_cluster_is_valid(self):
        demo = BIN.parent / "deploy" / "demo" / "cluster.yaml"
        result = subprocess.run([BIN / "terrace", "validate", demo], capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        for line in result.stdout.splitlines():  # one a process: of this file, not of those made of it
            self.assertTrue(line.endswith(f": {demo}: can be used"), line)


if __name__ == "__main__":
    unittest.main(verbosity=2)
