#!/usr/bin/python3
"""OpenAI's own client for Python, unchanged, against a real router: what it sends is understood, and what it gets is what
it expects. Needs what ./run_tests puts into bin/, stub_worker too."""

import asyncio
import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import unittest

import pinned_environment

HERE = pathlib.Path(__file__).resolve().parent
if __name__ == "__main__":
    pinned_environment.run_within(HERE / "openai_client.txt")

import openai

sys.path.insert(0, str(HERE.parent / "e2e"))
from cluster import BIN, MODELS, free_ports, wait_until
from processes import Process, Router, Worker, http_call

QUESTION = {"role": "user", "content": "Intent of the following ticket: i do not want the grey printer any more, please pay me back."}
ANSWER = "refund_request"
KEY, SLOW_KEY = "sk-terrace-all", "sk-terrace-once-a-minute"
# A long answer of a model that is slow: there is time to leave in the middle of it.
LONG = {"model": "base", "messages": [QUESTION], "temperature": 0, "max_tokens": 400, "extra_body": {"ignore_eos": True}}
# The demo family's chats with tools beside them, as Hermes and Qwen write them; calls that were made, and what came of them.
TOOLS_TEMPLATE = """{{ bos_token }}{% if tools %}<|system|>
Answer in <tool_call></tool_call> to call one of:{% for tool in tools %} {{ tool | tojson }}{% endfor %}
{% endif %}{% for message in messages %}<|{{ 'user' if message.role == 'tool' else message.role }}|>
{{ message.content or '' }}{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}
{% if message.role == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
TOOLS = [{"type": "function", "function": {"name": name, "description": "of a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}} for name in ("weather", "time")]
CALLS = [("weather", {"city": "Ulm"}), ("time", {"city": "Zürich \"HB\""})]


def client_of(port, kind=openai.OpenAI, **options):
    return kind(base_url=f"http://127.0.0.1:{port}/v1", **{"api_key": "unused", "max_retries": 0, **options})


def written(calls):
    """As a model writes them."""
    return "".join(f"<tool_call>\n{json.dumps({'name': name, 'arguments': given}, ensure_ascii=False)}\n</tool_call>\n" for name, given in calls)


class Stub(Process):
    """A worker without a model, which says `answer`; its chats have tools."""

    def __init__(self, answer):
        with tempfile.TemporaryDirectory() as folder:
            for file in (MODELS / "terrace-demo-nano").glob("*.json"):
                shutil.copy(file, folder)
            path = pathlib.Path(folder, "tokenizer_config.json")
            path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TOOLS_TEMPLATE}))
            super().__init__(BIN / "stub_worker", "stub_ready", ["--text", folder, "--answer", answer])
        self.grpc = self.addresses["grpc"][0]


class Relay:
    """An HTTP server that hands each request to the next of `targets`: a port, to which it is passed on, or a reply as
    (status, headers, body). Keeps the headers of the requests."""

    def __init__(self, *targets):
        self.targets, self.requests = list(targets), []
        relay = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                relay.requests.append(dict(self.headers.items()))
                target = relay.targets.pop(0)
                status, headers, reply = target if isinstance(target, tuple) else http_call(target, "POST", self.path, body)
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() in ("content-type", "retry-after", "x-request-id"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class OpenAiClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            del os.environ[name]  # everything is on this machine
        start = cls.enterClassContext
        cls.nano, cls.base = start(Worker("nano")), start(Worker("base", kernels="reference"))
        policy = {"name": "auto", "cascade": {"steps": [{"tier": "nano", "min_mean_logprob": -0.01}, {"tier": "base"}]}}
        cls.router = start(Router({"nano": [cls.nano.grpc], "base": [cls.base.grpc]}, policies=[policy]))
        cls.client = start(client_of(cls.router.port("http")))

    def chat(self, **more):
        return self.client.chat.completions.create(**{"model": "nano", "messages": [QUESTION], "temperature": 0, **more})

    # ---- Chats.

    def test_a_chat(self):
        chat = self.chat()
        self.assertIsInstance(chat, openai.types.chat.ChatCompletion)
        self.assertEqual((chat.object, chat.model), ("chat.completion", "nano"))
        self.assertEqual(chat.choices[0].message.content, ANSWER)
        self.assertEqual((chat.choices[0].message.role, chat.choices[0].finish_reason), ("assistant", "stop"))
        self.assertEqual(chat.usage.total_tokens, chat.usage.prompt_tokens + chat.usage.completion_tokens)
        self.assertGreater(chat.created, 1_700_000_000)

    def test_what_terrace_adds_is_in_the_extra_fields(self):
        chat = self.chat(model="auto")
        self.assertEqual(chat.terrace["tier"], chat.model_extra["terrace"]["tier"])
        self.assertEqual(chat.terrace["attempts"][-1]["accepted"], True)
        self.assertGreater(chat.terrace["price_usd"], 0)

    def test_fields_beyond_openais_go_in_the_extra_body(self):
        chat = self.chat(temperature=1, extra_body={"top_k": 1, "cache_salt": "a", "priority": 0, "prompt_logprobs": 1})
        self.assertEqual(chat.choices[0].message.content, ANSWER)
        self.assertEqual(len(chat.prompt_logprobs), chat.usage.prompt_tokens)

    def test_roles_and_parts(self):
        messages = [{"role": "developer", "content": "Answer shortly."},
                    {"role": "user", "content": [{"type": "text", "text": QUESTION["content"]}]},
                    {"role": "assistant", "content": ANSWER},
                    {"role": "user", "content": "And now?"}]
        self.assertGreater(self.chat(messages=messages, max_completion_tokens=3).usage.prompt_tokens, 20)

    def test_log_probabilities(self):
        choice = self.chat(logprobs=True, top_logprobs=3).choices[0]
        self.assertEqual(b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode(), ANSWER)
        for token in choice.logprobs.content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.top_logprobs[0].token, token.token)  # greedy
        self.assertIsNone(self.chat().choices[0].logprobs)

    def test_several_answers(self):
        choices = self.chat(n=3, temperature=1.5, seed=7, max_tokens=30).choices
        self.assertEqual([choice.index for choice in choices], [0, 1, 2])
        self.assertGreater(len({choice.message.content for choice in choices}), 1)

    def test_a_seed_gives_the_same_answer_again(self):
        draw = lambda seed: self.chat(temperature=1.5, seed=seed, max_tokens=40).choices[0].message.content
        self.assertEqual(draw(7), draw(7))
        self.assertGreater(len({draw(seed) for seed in range(8)}), 1)

    def test_stops(self):
        chat = self.chat(stop=["_request", "never"])
        self.assertEqual((chat.choices[0].message.content, chat.choices[0].finish_reason), ("refund", "stop"))
        self.assertEqual(self.chat(max_tokens=1).choices[0].finish_reason, "length")

    def test_the_usage_counts_cached_tokens(self):
        messages = [{"role": "user", "content": "unlike any other prompt of this test: " + "seventeen green bottles " * 20}]
        first, second = (self.chat(messages=messages, max_tokens=1).usage for _ in range(2))
        self.assertEqual(first.prompt_tokens, second.prompt_tokens)
        self.assertLess(first.prompt_tokens_details.cached_tokens, 16)
        self.assertGreater(second.prompt_tokens_details.cached_tokens, second.prompt_tokens // 2)

    # ---- Tools.

    def test_calls_of_tools(self):
        with self.tools_client("Let me see. " + written(CALLS)) as client:
            choice = client.chat.completions.create(model="stub", messages=[QUESTION], tools=TOOLS).choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls")
        self.assertEqual(choice.message.content, "Let me see.")
        self.assertEqual([(c.type, c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls],
                         [("function", *call) for call in CALLS])
        self.assertEqual(len({c.id for c in choice.message.tool_calls}), 2)

    def test_one_call_where_several_are_not_wanted(self):
        with self.tools_client(written(CALLS)) as client:
            choice = client.chat.completions.create(model="stub", messages=[QUESTION], tools=TOOLS, parallel_tool_calls=False).choices[0]
        self.assertEqual((choice.finish_reason, choice.message.content), ("tool_calls", None))
        self.assertEqual([(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls], CALLS[:1])

    def test_calls_in_a_stream_are_those_of_the_plain_answer(self):
        with self.tools_client(written(CALLS)) as client:
            ask = {"model": "stub", "messages": [QUESTION], "tools": TOOLS}
            plain = client.chat.completions.create(**ask).choices[0]
            calls, reasons = {}, []
            for chunk in client.chat.completions.create(**ask, stream=True):
                reasons += [chunk.choices[0].finish_reason]
                for delta in chunk.choices[0].delta.tool_calls or []:
                    call = calls.setdefault(delta.index, {"id": delta.id, "type": delta.type, "name": delta.function.name, "arguments": ""})
                    call["arguments"] += delta.function.arguments or ""
            with client.chat.completions.stream(**ask) as helper:
                kinds = {event.type for event in helper}
                built = helper.get_final_completion().choices[0]
        self.assertEqual(reasons[-1], "tool_calls")
        for choice in (plain, built):
            self.assertEqual([(c.type, c.function.name, c.function.arguments) for c in choice.message.tool_calls],
                             [(c["type"], c["name"], c["arguments"]) for c in calls.values()])
        self.assertIn("tool_calls.function.arguments.done", kinds)

    def test_what_tools_answered_is_in_the_next_prompt(self):
        with self.tools_client(written(CALLS)) as client:
            first = client.chat.completions.create(model="stub", messages=[QUESTION], tools=TOOLS)
            said = first.choices[0].message

            def prompt_tokens(answered, calls):
                results = [{"role": "tool", "tool_call_id": call.id, "content": answered} for call in said.tool_calls]
                message = {**said.model_dump(exclude_none=True), **({} if calls else {"tool_calls": None, "content": ""})}
                return client.chat.completions.create(model="stub", messages=[QUESTION, message, *results], tools=TOOLS).usage.prompt_tokens

            self.assertGreaterEqual(prompt_tokens("rain" + ", rain" * 50, True), prompt_tokens("rain", True) + len(CALLS) * 50)
            self.assertGreater(prompt_tokens("rain", True), prompt_tokens("rain", False) + 20)

    def test_without_tools_what_looks_like_a_call_is_text(self):
        with self.tools_client(written(CALLS)) as client:
            for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
                choice = client.chat.completions.create(model="stub", messages=[QUESTION], **more).choices[0]
                self.assertEqual((choice.finish_reason, choice.message.content, choice.message.tool_calls), ("stop", written(CALLS), None))

    def test_what_cannot_be_kept_about_tools_is_refused(self):
        strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
        with self.tools_client(written(CALLS)) as client:
            for more, param in (({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
                                ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "time"}}}, "tool_choice"),
                                ({"tools": strict}, "tools[0].function.strict")):
                with self.assertRaises(openai.BadRequestError) as raised:
                    client.chat.completions.create(model="stub", messages=[QUESTION], **more)
                self.assertEqual((raised.exception.code, raised.exception.param), ("unsupported_parameter", param))
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat(tools=TOOLS)  # the demo family's template has none
        self.assertEqual(raised.exception.param, "tools")

    @contextlib.contextmanager
    def tools_client(self, answer):
        with Stub(answer) as stub, Router({"stub": [stub.grpc]}) as router, client_of(router.port("http")) as client:
            yield client

    # ---- Streams.

    def test_a_stream_says_what_the_plain_answer_says(self):
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), ANSWER)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], "stop")
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.model_dump(), {**self.chat().usage.model_dump(), "prompt_tokens_details": chunks[-1].usage.prompt_tokens_details.model_dump()})
        self.assertEqual({c.id for c in chunks}, {chunks[0].id})
        self.assertTrue(all(c.usage is None for c in chunks[:-1]))
        self.assertEqual(list(self.chat(stream=True))[-1].choices[0].finish_reason, "stop")

    def test_the_streaming_helper_builds_the_whole_answer(self):
        with self.client.chat.completions.stream(model="nano", messages=[QUESTION], temperature=0, logprobs=True) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        self.assertEqual(final.choices[0].message.content, ANSWER)
        for kind in ("chunk", "content.delta", "content.done", "logprobs.content.delta"):
            self.assertIn(kind, kinds)

    def test_a_stream_of_several_answers_keeps_them_apart(self):
        texts = ["", "", ""]
        for chunk in self.chat(n=3, stream=True, temperature=1.5, seed=7, max_tokens=30):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        self.assertEqual(texts, [c.message.content for c in self.chat(n=3, temperature=1.5, seed=7, max_tokens=30).choices])

    def test_a_stream_that_is_closed_early_ends_the_work(self):
        stream = self.client.chat.completions.create(**LONG, stream=True)
        next(stream)
        wait_until(lambda: self.base.metric("terrace_engine_requests_running") == 1, "the sequence runs")
        stream.close()
        wait_until(lambda: self.base.metric("terrace_engine_requests_running") == 0, "the sequence is gone")
        wait_until(lambda: self.outcomes(stream.response.headers["x-request-id"]) == ["cancelled"], "the request is over")

    def test_an_error_in_the_middle_of_a_stream_is_raised(self):
        with Worker("base", kernels="reference") as worker, Router({"base": [worker.grpc]}) as router:
            with client_of(router.port("http")) as client:
                stream = client.chat.completions.create(**LONG, stream=True)
                next(stream), next(stream)
                worker.kill()
                with self.assertRaises(openai.APIError) as raised:
                    list(stream)
        self.assertEqual((raised.exception.code, raised.exception.type), ("worker_lost", "server_error"))

    def outcomes(self, request_id):
        return [r["outcome"] for r in self.router.log_records() if r.get("request_id") == request_id]

    # ---- Completions and models.

    def test_a_completion(self):
        complete = lambda **more: self.client.completions.create(model="nano", prompt="Once upon a time", temperature=0, max_tokens=12, **more)
        plain = complete()
        self.assertEqual((plain.object, plain.usage.completion_tokens), ("text_completion", 12))
        self.assertEqual("".join(chunk.choices[0].text for chunk in complete(stream=True)), plain.choices[0].text)
        echoed = complete(echo=True, logprobs=2).choices[0]
        self.assertEqual(echoed.text, "Once upon a time" + plain.choices[0].text)
        self.assertEqual("".join(echoed.logprobs.tokens), echoed.text)
        self.assertEqual(len(echoed.logprobs.token_logprobs), len(echoed.logprobs.tokens))
        self.assertEqual(len(echoed.logprobs.top_logprobs), len(echoed.logprobs.tokens))
        self.assertEqual(len(complete(n=2, best_of=3).choices), 2)

    def test_several_prompts_say_what_each_says_alone(self):
        prompts = ["Once upon a time", "Sort the list"]
        complete = lambda prompt, **more: self.client.completions.create(
            model="nano", prompt=prompt, temperature=1, seed=7, n=2, max_tokens=8, **more)
        alone = [complete(prompt) for prompt in prompts]
        together = complete(prompts)
        self.assertEqual([choice.index for choice in together.choices], [0, 1, 2, 3])
        self.assertEqual([choice.text for choice in together.choices], [choice.text for one in alone for choice in one.choices])
        self.assertEqual(together.usage.prompt_tokens, sum(one.usage.prompt_tokens for one in alone))
        self.assertEqual(together.usage.completion_tokens, sum(one.usage.completion_tokens for one in alone))
        texts = ["", "", "", ""]
        for chunk in complete(prompts, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        self.assertEqual(texts, [choice.text for choice in together.choices])

    def test_a_prompt_of_tokens(self):
        rows = [json.loads(line) for line in (HERE.parents[1] / "models/eval/golden.jsonl").read_text().splitlines()]
        row = next(row for row in rows if row["model"] == "terrace-demo-nano")
        got = self.client.completions.create(model="nano", prompt=row["prompt_tokens"], temperature=0, max_tokens=4)
        self.assertEqual((got.usage.prompt_tokens, got.usage.completion_tokens), (len(row["prompt_tokens"]), 4))

    def test_models(self):
        self.assertEqual({model.id for model in self.client.models.list()}, {"auto", "nano", "base"})
        model = self.client.models.retrieve("auto")
        self.assertEqual((model.id, model.object, model.terrace["is_policy"]), ("auto", "model", True))
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("gone")

    # ---- Headers, timeouts, connections.

    def test_the_raw_response_has_the_request_id(self):
        raw = self.client.chat.completions.with_raw_response.create(
            model="nano", messages=[QUESTION], temperature=0, extra_headers={"X-Request-Id": "conformance-7"})
        self.assertEqual((raw.status_code, raw.headers["x-request-id"]), (200, "conformance-7"))
        self.assertEqual(raw.parse().choices[0].message.content, ANSWER)
        self.assertTrue(self.chat()._request_id.startswith("req-"))
        with self.client.chat.completions.with_streaming_response.create(model="nano", messages=[QUESTION], temperature=0) as response:
            self.assertIn(ANSWER, response.read().decode())

    def test_the_client_gives_up_in_time(self):
        with self.assertRaises(openai.APITimeoutError):
            self.client.with_options(timeout=0.2).chat.completions.create(**LONG)
        wait_until(lambda: self.base.metric("terrace_engine_requests_running") == 0, "the sequence is gone")

    def test_nobody_there(self):
        with client_of(free_ports(1)[0]) as client, self.assertRaises(openai.APIConnectionError) as raised:
            client.models.list()
        self.assertNotIsInstance(raised.exception, openai.APITimeoutError)

    # ---- Errors.

    def test_a_bad_request_has_code_and_parameter(self):
        for more, code, param in (({"temperature": 9}, "invalid_value", "temperature"),
                                  ({"n": 17}, "invalid_value", "n"),
                                  ({"max_tokens": 100_000}, "context_length_exceeded", "messages"),
                                  ({"reasoning_effort": "low"}, "unsupported_parameter", "reasoning_effort")):
            with self.assertRaises(openai.BadRequestError) as raised:
                self.chat(**more)
            error = raised.exception
            self.assertEqual((error.status_code, error.code, error.param, error.type), (400, code, param, "invalid_request_error"))
            self.assertEqual(error.request_id, error.response.headers["x-request-id"])
            self.assertIn(param, error.message)

    def test_no_such_model_and_no_such_path(self):
        with self.assertRaises(openai.NotFoundError) as raised:
            self.chat(model="gone")
        self.assertEqual((raised.exception.code, raised.exception.param), ("model_not_found", "model"))
        with self.assertRaises(openai.NotFoundError) as raised:
            self.client.embeddings.create(model="nano", input="a")
        self.assertEqual(raised.exception.code, "unknown_url")

    def test_a_deadline_of_the_server_is_an_internal_server_error(self):
        with self.assertRaises(openai.InternalServerError) as raised:
            self.client.chat.completions.create(**LONG, extra_headers={"X-Request-Timeout-Seconds": "0.2"})
        self.assertEqual((raised.exception.status_code, raised.exception.code), (504, "deadline_exceeded"))

    def test_no_worker_is_an_internal_server_error(self):
        with self.router_without_worker() as router, client_of(router.port("http")) as client:
            with self.assertRaises(openai.InternalServerError) as raised:
                client.chat.completions.create(model="nano", messages=[QUESTION])
        error = raised.exception
        self.assertEqual((error.status_code, error.code, error.type), (503, "no_capacity", "server_error"))
        self.assertEqual(error.response.headers["retry-after"], "1")

    def test_a_wrong_key_is_an_authentication_error(self):
        with self.keyed_router() as router:
            with client_of(router.port("http"), api_key=KEY) as client:
                client.chat.completions.create(model="nano", messages=[QUESTION], max_tokens=1)
            with client_of(router.port("http"), api_key="sk-wrong") as client, self.assertRaises(openai.AuthenticationError) as raised:
                client.chat.completions.create(model="nano", messages=[QUESTION], max_tokens=1)
        self.assertEqual((raised.exception.code, raised.exception.type), ("invalid_api_key", "invalid_request_error"))

    def test_a_tenant_over_its_limit_gets_a_rate_limit_error(self):
        with self.keyed_router() as router, client_of(router.port("http"), api_key=SLOW_KEY) as client:
            client.chat.completions.create(model="nano", messages=[QUESTION], max_tokens=1)
            with self.assertRaises(openai.RateLimitError) as raised:
                client.chat.completions.create(model="nano", messages=[QUESTION], max_tokens=1)
        self.assertIn("retry-after", raised.exception.response.headers)

    # ---- Retries.

    def test_a_503_of_the_router_is_tried_again(self):
        with self.router_without_worker() as gone:
            ports = gone.port("http"), gone.port("http"), self.router.port("http")
            with Relay(*ports) as relay, client_of(relay.port, max_retries=2) as client:
                chat = client.chat.completions.create(model="nano", messages=[QUESTION], temperature=0)
        self.assertEqual(chat.choices[0].message.content, ANSWER)
        self.assertEqual([r["x-stainless-retry-count"] for r in relay.requests], ["0", "1", "2"])

    def test_a_429_is_tried_again_when_it_says(self):
        busy = (429, {"Retry-After": "1", "Content-Type": "application/json"}, b'{"error":{"message":"slowly","type":"x","param":null,"code":"y"}}')
        with Relay(busy, self.router.port("http")) as relay, client_of(relay.port, max_retries=1) as client:
            chat = client.chat.completions.create(model="nano", messages=[QUESTION], temperature=0)
        self.assertEqual((chat.choices[0].message.content, len(relay.requests)), (ANSWER, 2))

    def test_a_bad_request_is_not_tried_again(self):
        with Relay(self.router.port("http")) as relay, client_of(relay.port, max_retries=5) as client:
            with self.assertRaises(openai.BadRequestError):
                client.chat.completions.create(model="nano", messages=[QUESTION], temperature=9)
        self.assertEqual(len(relay.requests), 1)

    # ---- The asynchronous client.

    def test_many_at_once(self):
        async def ask_all():
            async with client_of(self.router.port("http"), openai.AsyncOpenAI) as client:
                ask = lambda i: client.chat.completions.create(model="nano", messages=[QUESTION], temperature=0, user=str(i))
                return await asyncio.gather(*(ask(i) for i in range(64)))

        self.assertEqual({chat.choices[0].message.content for chat in asyncio.run(ask_all())}, {ANSWER})

    def test_many_streams_at_once(self):
        async def read(client):
            stream = await client.chat.completions.create(model="nano", messages=[QUESTION], temperature=0, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async def read_all():
            async with client_of(self.router.port("http"), openai.AsyncOpenAI) as client:
                return await asyncio.gather(*(read(client) for _ in range(32)))

        self.assertEqual(set(asyncio.run(read_all())), {ANSWER})

    def test_a_cancelled_task_ends_the_work(self):
        async def leave():
            async with client_of(self.router.port("http"), openai.AsyncOpenAI) as client:
                task = asyncio.create_task(client.chat.completions.create(**LONG))
                runs = lambda: self.base.metric("terrace_engine_requests_running") == 1
                await asyncio.to_thread(wait_until, runs, "the sequence runs")
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task

        asyncio.run(leave())
        wait_until(lambda: self.base.metric("terrace_engine_requests_running") == 0, "the sequence is gone")

    # ---- Other routers.

    def router_without_worker(self):
        """A router whose only worker is gone."""
        worker = Worker("nano")
        with worker:
            router = Router({"nano": [worker.grpc]})
            worker.kill()
        self.addCleanup(router.__exit__)
        wait_until(lambda: http_call(router.port("ops"), "GET", "/readyz")[0] == 503, "the router knows")
        return router

    def keyed_router(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        folder.joinpath("secret").write_bytes(b"s" * 32)
        hashed = lambda key: [hashlib.sha256(key.encode()).hexdigest()]
        tenants = [{"name": "all", "key_sha256": hashed(KEY)},
                   {"name": "few", "key_sha256": hashed(SLOW_KEY), "requests_per_minute": 1}]
        folder.joinpath("keys.yaml").write_text(json.dumps({"tenants": tenants}))
        return Router({"nano": [self.nano.grpc]}, auth={"keys_file": str(folder / "keys.yaml"), "cluster_secret_file": str(folder / "secret")})


if __name__ == "__main__":
    unittest.main(verbosity=2)
