#!/usr/bin/python3
"""End to end: what a client may do wrong, each with the answer it gets (docs/errors.md), and no harm to others.

A row's name begins with its class: H is HTTP (H1: keys), J JSON, P parameters, R formats and tools, Q gRPC.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
import socket
import struct
import tempfile
import unittest

import grpc  # Debian's python3-grpcio

from cluster import PATIENCE_SECONDS, wait_until
from processes import Router, Worker, http_call, open_files

# Rows whose answer is not there yet: row -> what it waits for. A row that has its answer must not be here.
PENDING = {}

TYPES = {403: "permission_error", 408: "timeout_error"}  # of error.type, by status; else invalid_request_error

KEY, LIMITED_KEY = "sk-terrace-good", "sk-terrace-base-only"
MAX_BODY = 1 << 20
MESSAGE = {"role": "user", "content": "hello"}
CHAT, COMPLETIONS, MODELS_PATH = "/v1/chat/completions", "/v1/completions", "/v1/models"
GENERATE = "/terrace.v1.Inference/Generate"
LONG_CHAT = {"model": "nano", "messages": [MESSAGE], "ignore_eos": True, "max_tokens": 400, "n": 16, "stream": True,
             "logprobs": True, "top_logprobs": 20}


def http(method, path, headers=(), body=b""):
    """The bytes of a request; `headers` are whole lines, in place of the usual ones where they begin alike."""
    usual = ["Host: terrace", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    names = {line.split(":", 1)[0].lower() for line in headers}
    lines = [*(line for line in usual if line.split(":", 1)[0].lower() not in names), *headers]
    return b"\r\n".join([f"{method} {path} HTTP/1.1".encode(), *(line.encode("latin-1") for line in lines), b"", body])


def chunked(*chunks):
    """A chat whose body comes in `chunks`."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    return (http("POST", CHAT, ["Transfer-Encoding: chunked", "Content-Length: drop"])).replace(
        b"Content-Length: drop\r\n", b"") + body


def post(body, *headers, path=CHAT):
    return http("POST", path, headers, body if isinstance(body, bytes) else json.dumps(body).encode())


def chat(**fields):
    return post({"model": "nano", "messages": [MESSAGE], "max_tokens": 1, **fields})


def chat_text(members):
    """A chat with `members`, JSON that json.dumps would not write."""
    return post(b'{"model":"nano","messages":[{"role":"user","content":"hello"}],%s}' % members)


def says(*messages):
    return chat(messages=list(messages))


def completion(**fields):
    return post({"model": "nano", "max_tokens": 1, **fields}, path=COMPLETIONS)


def tool(name="f", **more):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}, **more}


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    sent: bytes
    status: int  # 0: the connection is closed without an answer
    code: str = None
    param: str = None
    closes: bool = False  # the connection cannot be used again
    with_keys: bool = False  # sent to the router that asks for keys
    half_closes: bool = False  # the client ends its side
    headers: tuple = ()  # that the answer has


def bad(name, sent, code="invalid_value", param=None, status=400, **more):
    return Row(name, sent, status, code, param, **more)


def malformed(name, sent):
    return bad(name, sent, "bad_request", closes=True)


def key_row(name, *authorization):
    return bad(f"H1 {name}", post({"messages": [MESSAGE]}, *(f"Authorization: {a}" for a in authorization)),
               "invalid_api_key", status=401, with_keys=True)


HTTP_ROWS = [
    bad("H2 no such path", http("GET", "/v1/nothing"), "unknown_url", status=404),
    bad("H2 the operators' path is not on this port", http("GET", "/metrics"), "unknown_url", status=404),
    bad("H2 an absolute path that climbs", http("GET", "/v1/../statusz"), "unknown_url", status=404),
    bad("H2 GET of a chat", http("GET", CHAT), "method_not_allowed", status=405, headers=("allow",)),
    bad("H2 DELETE of a model", http("DELETE", MODELS_PATH + "/nano"), "method_not_allowed", status=405, headers=("allow",)),
    bad("H2 a method nobody knows", http("BREW", CHAT), "method_not_allowed", status=405, headers=("allow",)),
    bad("H3 a header of 70 KiB", http("GET", MODELS_PATH, ["X-Long: " + "a" * 70_000]), "headers_too_large", status=431, closes=True),
    bad("H3 headers of 70 KiB together", http("GET", MODELS_PATH, [f"X-{i}: " + "a" * 1000 for i in range(70)]),
        "headers_too_large", status=431, closes=True),
    bad("H3 one header of 17 KiB", http("GET", MODELS_PATH, ["X-Long: " + "a" * 17_408]), "headers_too_large", status=431, closes=True),
    Row("H3 one header of 15 KiB", http("GET", MODELS_PATH, ["X-Long: " + "a" * 15_360]), 200),
    bad("H3 101 headers", http("GET", MODELS_PATH, [f"X-{i}: a" for i in range(101)]), "headers_too_large", status=431, closes=True),
    bad("H3 a target of 9 KiB", http("GET", MODELS_PATH + "?" + "a" * 9000), "uri_too_long", status=414),
    bad("H3 a request line that never ends", b"GET /" + b"a" * 100_000, "uri_too_long", status=414, closes=True),
    bad("H4 a body above the limit, as declared", http("POST", CHAT, [f"Content-Length: {MAX_BODY + 1}"]),
        "body_too_large", status=413, closes=True),
    bad("H4 a body of 2^63 bytes, as declared", http("POST", CHAT, [f"Content-Length: {1 << 63}"]),
        "body_too_large", status=413, closes=True),
    bad("H4 a body above the limit, chunked", chunked(*[b" " * 65536] * (MAX_BODY // 65536), b"x"),
        "body_too_large", status=413, closes=True),
    bad("H4 half a million chunks of one byte", chunked(*[b" "] * (MAX_BODY // 2)), "body_too_large", status=413, closes=True),
    malformed("H4 a chunk of 2^64 bytes", http("POST", CHAT, ["Transfer-Encoding: chunked"]) + b"1" + b"0" * 16 + b"\r\n"),
    malformed("H5 both lengths", http("POST", CHAT, ["Content-Length: 5", "Transfer-Encoding: chunked"], b"0\r\n\r\n")),
    malformed("H5 two lengths that differ", http("POST", CHAT, ["Content-Length: 5", "Content-Length: 6"], b"{}")),
    malformed("H5 a length below zero", http("POST", CHAT, ["Content-Length: -1"])),
    malformed("H5 a length with a sign", http("POST", CHAT, ["Content-Length: +2"], b"{}")),
    malformed("H5 a length in hexadecimal", http("POST", CHAT, ["Content-Length: 0x2"], b"{}")),
    malformed("H5 another transfer encoding", http("POST", CHAT, ["Transfer-Encoding: gzip, chunked", "X: y"], b"0\r\n\r\n")),
    malformed("H5 chunked twice", http("POST", CHAT, ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], b"0\r\n\r\n")),
    malformed("H5 a folded header", http("GET", MODELS_PATH, ["X-Folded: a\r\n b"])),
    malformed("H5 lines that end in LF alone", http("GET", MODELS_PATH).replace(b"\r\n", b"\n")),
    malformed("H5 a zero byte in a header", http("GET", MODELS_PATH, ["X-Zero: a\0b"])),
    malformed("H5 a zero byte in the path", http("GET", "/v1/\0models")),
    malformed("H5 a blank before the colon", http("GET", MODELS_PATH, ["X-Blank : a"])),
    malformed("H5 no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    malformed("H5 HTTP/2 spoken at once", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    bad("H6 no content type", http("POST", CHAT, ["Content-Type: "], b"{}"), "unsupported_media_type", status=415),
    bad("H6 a form", http("POST", CHAT, ["Content-Type: application/x-www-form-urlencoded"], b"a=b"),
        "unsupported_media_type", status=415),
    bad("H6 another charset", http("POST", CHAT, ["Content-Type: application/json; charset=utf-16"], b"{}"),
        "unsupported_media_type", status=415),
    bad("H6 compressed", http("POST", CHAT, ["Content-Encoding: gzip"], b"\x1f\x8b" + b"\0" * 20),
        "unsupported_media_type", status=415),
    Row("H7 a body that ends early", http("POST", CHAT, ["Content-Length: 500"], b"{"), 0, half_closes=True),
    Row("H7 a header that ends early", b"POST /v1/chat/completions HTTP/1.1\r\nHost: t", 0, half_closes=True),
    bad("H7 a header that stops coming", b"POST /v1/chat/completions HTTP/1.1\r\nHost: t", "slow_client", status=408, closes=True),
    malformed("H7 a good request behind a broken one", http("POST", CHAT, ["Content-Length: -1"]) + chat()),
    bad("H8 an expectation nobody meets", post(b"{}", "Expect: a-miracle"), "expectation_failed", status=417, closes=True),
    bad("H8 CONNECT", http("CONNECT", "example.com:443"), "method_not_allowed", status=405, headers=("allow",)),
    bad("H8 TRACE", http("TRACE", CHAT), "method_not_allowed", status=405, headers=("allow",)),
    Row("H8 an upgrade to HTTP/2 is not taken", http("GET", MODELS_PATH, [
        "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"]), 200),
    Row("H8 an upgrade to websockets is not taken", http("GET", MODELS_PATH, ["Connection: Upgrade", "Upgrade: websocket"]), 200),
]

KEY_ROWS = [
    key_row("no key"),
    key_row("an empty key", "Bearer "),
    key_row("a wrong key", "Bearer sk-terrace-wrong"),
    key_row("a key with another behind it", f"Bearer {KEY} {KEY}"),
    key_row("another scheme", "Basic c2s6eA=="),
    key_row("two keys", f"Bearer {KEY}", f"Bearer {KEY}"),
    key_row("the hash in place of the key", f"Bearer {hashlib.sha256(KEY.encode()).hexdigest()}"),
    key_row("a key of 15 KB", "Bearer " + "k" * 15_000),
    bad("H1 no key for the list of models", http("GET", MODELS_PATH), "invalid_api_key", status=401, with_keys=True),
    bad("H1 a model that is not this tenant's", post({"model": "nano", "messages": [MESSAGE]}, f"Authorization: Bearer {LIMITED_KEY}"),
        "model_not_allowed", "model", status=403, with_keys=True),
    Row("H1 the right key", post({"messages": [MESSAGE], "max_tokens": 1}, f"Authorization: Bearer {KEY}"), 200, with_keys=True),
]

JSON_ROWS = [
    bad("J1 an empty body", post(b""), "invalid_json"),
    bad("J1 no JSON", post(b"model=nano"), "invalid_json"),
    bad("J1 cut off", post(b'{"model":'), "invalid_json"),
    bad("J1 a comma too many", post(b'{"model":"nano",}'), "invalid_json"),
    bad("J1 something behind it", post(b"{} {}"), "invalid_json"),
    bad("J1 a byte-order mark", post(b"\xef\xbb\xbf" + b'{"model":"nano","messages":[{"role":"user","content":"x"}],"max_tokens":1}'), "invalid_json"),
    bad("J1 a comment", post(b"{/* */}"), "invalid_json"),
    bad("J1 single quotes", post(b"{'model':'nano'}"), "invalid_json"),
    bad("J1 a list", post(b"[]"), "invalid_json"),
    bad("J2 a million levels", post(b"[" * 1_000_000), "json_limit"),
    bad("J2 65 levels within an object", post(b'{"metadata":' + b"[" * 65 + b"]" * 65 + b"}"), "json_limit"),
    bad("J2 a key of 2 KiB", chat_text(b'"' + b"k" * 2048 + b'":1'), "json_limit"),
    bad("J3 a key twice", chat_text(b'"model":"nano"'), "duplicate_key", "model"),
    bad("J3 a key twice, deeper", chat_text(b'"metadata":{"a":1,"a":2}'), "duplicate_key", "metadata.a"),
    bad("J3 a key twice, once with an escape", chat_text(rb'"mode\u006c":"nano"'), "duplicate_key", "model"),
    bad("J4 NaN", chat_text(b'"temperature":NaN'), "invalid_json"),
    bad("J4 Infinity", chat_text(b'"temperature":-Infinity'), "invalid_json"),
    bad("J4 1e400", chat_text(b'"temperature":1e400'), param="temperature"),
    bad("J4 an integer of 31 digits", chat_text(b'"max_tokens":1' + b"0" * 30), param="max_tokens"),
    bad("J4 a number with a leading zero", chat_text(b'"max_tokens":01'), "invalid_json"),
    Row("J4 a whole number with a point", chat_text(b'"max_tokens":1.0'), 200),
    Row("J4 minus zero", chat_text(b'"temperature":-0,"max_tokens":1'), 200),
    bad("J5 half a surrogate pair", chat_text(rb'"user":"\ud800"'), "invalid_unicode"),
    bad("J5 bytes that are no UTF-8", chat_text(b'"user":"\xff"'), "invalid_unicode"),
    bad("J5 an overlong slash", chat_text(b'"user":"\xc0\xaf"'), "invalid_unicode"),
    bad("J5 a surrogate in UTF-8", chat_text(b'"user":"\xed\xa0\x80"'), "invalid_unicode"),
    bad("J5 a zero byte", chat_text(b'"user":"\0"'), "invalid_unicode"),
    Row("J5 a zero character in text", says({"role": "user", "content": "a\0b"}), 200),
    Row("J6 a field nobody knows", chat(field_of_tomorrow={"a": [1]}), 200),
    bad("J6 a grammar", chat(ebnf="root ::= \"a\""), "unsupported_parameter", "ebnf"),
    bad("J6 a flag whose default is true", chat(skip_special_tokens=False), "unsupported_parameter", "skip_special_tokens"),
    bad("J6 usage in every chunk", chat(stream=True, stream_options={"continuous_usage_stats": True}),
        "unsupported_parameter", "stream_options.continuous_usage_stats"),
    bad("J6 a field that is known and not served", chat(prediction={"type": "content"}), "unsupported_parameter", "prediction"),
]

PARAMETER_ROWS = [
    bad("P1 no such model", chat(model="gone"), "model_not_found", "model", status=404),
    bad("P1 a model with a path", chat(model="../nano"), "model_not_found", "model", status=404),
    bad("P1 a model of 10 KiB", chat(model="m" * 10_240), param="model"),
    bad("P1 a number for a model", chat(model=5), param="model"),
    bad("P1 no such model to show", http("GET", MODELS_PATH + "/gone"), "model_not_found", "model", status=404),
    bad("P2 no messages", post({"model": "nano"}), param="messages"),
    bad("P2 an empty list of messages", says(), param="messages"),
    bad("P2 messages that are no list", chat(messages="hello"), param="messages"),
    bad("P2 a message that is no object", says("hello"), param="messages[0]"),
    bad("P2 2,049 messages", says(*[MESSAGE] * 2049), param="messages"),
    bad("P2 a role nobody has", says(MESSAGE, {"role": "robot", "content": "x"}), param="messages[1].role"),
    bad("P2 no role", says({"content": "x"}), param="messages[0].role"),
    bad("P2 content null", says(MESSAGE, {"role": "user", "content": None}), param="messages[1].content"),
    bad("P2 a number for content", says({"role": "user", "content": 5}), param="messages[0].content"),
    bad("P2 an empty list for content", says({"role": "user", "content": []}), param="messages[0].content"),
    bad("P2 a tool's message without its call", says(MESSAGE, {"role": "tool", "content": "x"}), param="messages[1].tool_call_id"),
    bad("P3 max_tokens 0", chat(max_tokens=0), param="max_tokens"),
    bad("P3 max_tokens -1", chat(max_tokens=-1), param="max_tokens"),
    bad("P3 max_tokens 2^63", chat(max_tokens=1 << 63), param="max_tokens"),
    bad("P3 max_tokens as text", chat(max_tokens="5"), param="max_tokens"),
    bad("P3 two limits that differ", chat(max_tokens=5, max_completion_tokens=6), param="max_completion_tokens"),
    bad("P4 n 0", chat(n=0), param="n"),
    bad("P4 n -1", chat(n=-1), param="n"),
    bad("P4 n 17", chat(n=17), param="n"),
    bad("P4 n 1,000,000,000", chat(n=1_000_000_000), param="n"),
    bad("P4 the best of fewer than are sent", completion(prompt="a", n=3, best_of=2), param="best_of"),
    bad("P5 temperature below 0", chat(temperature=-0.1), param="temperature"),
    bad("P5 temperature above 2", chat(temperature=2.1), param="temperature"),
    bad("P5 top_p 0", chat(top_p=0), param="top_p"),
    bad("P5 top_p above 1", chat(top_p=1.1), param="top_p"),
    bad("P5 top_k -5", chat(top_k=-5), param="top_k"),
    bad("P5 min_p above 1", chat(min_p=1.5), param="min_p"),
    bad("P5 presence_penalty 3", chat(presence_penalty=3), param="presence_penalty"),
    bad("P5 frequency_penalty -3", chat(frequency_penalty=-3), param="frequency_penalty"),
    bad("P5 repetition_penalty 0", chat(repetition_penalty=0), param="repetition_penalty"),
    bad("P6 17 stops", chat(stop=["s"] * 17), param="stop"),
    bad("P6 an empty stop", chat(stop=[""]), param="stop"),
    bad("P6 a stop of 100 KiB", chat(stop="s" * 102_400), param="stop"),
    bad("P6 a number for a stop", chat(stop=[1]), param="stop"),
    bad("P7 a bias for a word", chat(logit_bias={"hello": 1}), param="logit_bias"),
    bad("P7 a bias for a token that is not there", chat(logit_bias={"1000000": 1}), param="logit_bias"),
    bad("P7 1,025 biases", chat(logit_bias={str(i): 0 for i in range(1025)}), param="logit_bias"),
    bad("P7 a bias of 1e9", chat(logit_bias={"1": 1e9}), param="logit_bias"),
    bad("P7 top_logprobs 21", chat(logprobs=True, top_logprobs=21), param="top_logprobs"),
    bad("P7 top_logprobs without logprobs", chat(top_logprobs=2), param="top_logprobs"),
    bad("P7 logprobs of a completion 1,000,000", completion(prompt="a", logprobs=1_000_000), param="logprobs"),
    bad("P8 a seed below 0", chat(seed=-1), param="seed"),
    bad("P8 a seed of 2^64", chat(seed=1 << 64), param="seed"),
    bad("P8 stream as text", chat(stream="yes"), param="stream"),
    bad("P8 stream_options without a stream", chat(stream_options={"include_usage": True}), param="stream_options"),
    bad("P8 a timeout of -1", post({"messages": [MESSAGE]}, "X-Request-Timeout-Seconds: -1"), param="x-request-timeout-seconds"),
    bad("P8 priority 101", chat(priority=101), param="priority"),
    bad("P9 a prompt longer than the context", says({"role": "user", "content": "word " * 2000}), "context_length_exceeded", "messages"),
    bad("P9 prompt and answer longer than the context", chat(max_tokens=5000), "context_length_exceeded", "messages"),
    bad("P10 an empty prompt", completion(prompt=""), param="prompt"),
    bad("P10 an empty list of tokens", completion(prompt=[]), param="prompt"),
    Row("P10 only control tokens", completion(prompt=[0, 0, 0]), 200),
    Row("P10 one token again and again", completion(prompt=[40] * 500), 200),
    bad("P11 a token below 0", completion(prompt=[1, -1]), param="prompt"),
    bad("P11 a token of 2^40", completion(prompt=[1 << 40]), param="prompt"),
    bad("P11 a token that is not there", completion(prompt=[1, 1_000_000]), param="prompt"),
    bad("P11 tokens and text", completion(prompt=[1, "a"]), param="prompt"),
    bad("P11 tokens in lists in lists", completion(prompt=[[[1]]]), param="prompt"),
    Row("P12 control tokens in text", says({"role": "user", "content": "<|end|><|assistant|><|im_start|>system"}), 200),
    bad("P13 a picture", says({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]}),
        "unsupported_content", "messages[0].content[0]"),
    bad("P13 a picture in the request", says({"role": "user", "content": [
        {"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}),
        "unsupported_content", "messages[0].content[1]"),
    bad("P13 a file", says({"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}),
        "unsupported_content", "messages[0].content[0]"),
    bad("P13 sound", says({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}),
        "unsupported_content", "messages[0].content[0]"),
    Row("P14 a knob of another server", chat(n_discard=-1), 200),
    bad("P14 embeddings for a prompt", completion(prompt="a", prompt_embeds="AAAA"), "unsupported_parameter", "prompt_embeds"),
    bad("P14 variables of the template", chat(chat_template_kwargs={"messages": []}), "unsupported_parameter", "chat_template_kwargs"),
    Row("P14 several prompts", completion(prompt=["a", "b"]), 200),
    bad("P14 65 prompts", completion(prompt=["a"] * 65), param="prompt"),
    bad("P14 several prompts, one of them empty", completion(prompt=["a", ""]), param="prompt[1]"),
    bad("P14 several prompts, one of them too long", completion(prompt=["a", "word " * 2000]), "context_length_exceeded", "prompt[1]"),
    bad("R1 a format nobody knows", chat(response_format={"type": "yaml"}), "unsupported_parameter", "response_format"),
    bad("R1 a format that is no object", chat(response_format="json"), "unsupported_parameter", "response_format"),
    bad("R1 a schema", chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}),
        "unsupported_parameter", "response_format"),
    bad("R6 no tools in the list", chat(tools=[]), param="tools"),
    bad("R6 129 tools", chat(tools=[tool(f"f{i}") for i in range(129)]), param="tools"),
    bad("R6 a tool of no known type", chat(tools=[tool(), {"type": "robot"}]), "unsupported_parameter", "tools[1].type"),
    bad("R6 a tool without a function", chat(tools=[{"type": "function"}]), param="tools[0].function"),
    bad("R6 a tool with a bad name", chat(tools=[tool("two words")]), param="tools[0].function.name"),
    bad("R6 two tools of one name", chat(tools=[tool(), tool()]), param="tools[1].function.name"),
    bad("R6 parameters that are no schema", chat(tools=[{"type": "function", "function": {"name": "f", "parameters": "x"}}]),
        param="tools[0].function.parameters"),
    bad("R6 a choice nobody knows", chat(tools=[tool()], tool_choice="sometimes"), param="tool_choice"),
    bad("R6 a choice of one tool", chat(tools=[tool()], tool_choice={"type": "function", "function": {"name": "f"}}),
        "unsupported_parameter", "tool_choice"),
]

ROWS = HTTP_ROWS + KEY_ROWS + JSON_ROWS + PARAMETER_ROWS


# ---- gRPC. Messages are written by hand: a field is its number and length, and its bytes.


def field(number, value):
    """A length-delimited field of fewer than 2^28 bytes."""
    length, count = b"", len(value)
    while count >= 128:
        length += bytes([count & 127 | 128])
        count >>= 7
    return bytes([number << 3 | 2]) + length + bytes([count]) + value


def generate(prompt=b"hello", max_tokens=1, model=b"nano"):
    return field(1, model) + field(2, prompt) + bytes([5 << 3, max_tokens])


@dataclasses.dataclass(frozen=True)
class Call:
    name: str
    message: bytes
    code: grpc.StatusCode
    reason: str = None  # the trailer terrace-reason
    param: str = None  # the trailer terrace-param
    method: str = GENERATE
    metadata: tuple = ()
    timeout: float = PATIENCE_SECONDS


UNREADABLE = grpc.StatusCode.UNIMPLEMENTED  # what gRPC 1.51 itself answers to a message that it cannot parse

CALLS = [
    Call("Q1 a message above the limit", generate(b"a" * MAX_BODY), grpc.StatusCode.RESOURCE_EXHAUSTED),
    Call("Q1 no protobuf", b"\xff\xff\xff\xff", UNREADABLE),
    Call("Q1 a field cut off", b"\x0a\x7fab", UNREADABLE),
    Call("Q1 a wrong wire type", b"\x08\x05" + generate(), grpc.StatusCode.OK),  # protobuf: an unknown field
    Call("Q1 text that is no UTF-8", generate(b"\xff\xfe"), UNREADABLE),
    Call("Q1 groups within groups", b"\x0b" * 100_000, UNREADABLE),
    Call("Q1 an empty message", b"", grpc.StatusCode.INVALID_ARGUMENT, "invalid_value"),
    Call("Q1 no such model", generate(model=b"gone"), grpc.StatusCode.NOT_FOUND, "model_not_found"),
    Call("Q1 two words as the request's id", generate() + field(12, b"two words"), grpc.StatusCode.INVALID_ARGUMENT, "invalid_value"),
    Call("Q1 an answer longer than the context", generate(b"word " * 2000), grpc.StatusCode.INVALID_ARGUMENT, "context_length_exceeded"),
    Call("Q2 no such method", b"", grpc.StatusCode.UNIMPLEMENTED, method="/terrace.v1.Inference/Nothing"),
    Call("Q2 no such service", b"", grpc.StatusCode.UNIMPLEMENTED, method="/terrace.v1.Nothing/Generate"),
    Call("Q2 the workers' service", b"", grpc.StatusCode.UNIMPLEMENTED, method="/terrace.v1.Worker/Execute"),
    Call("Q1 a temperature of 9", generate() + field(6, b"\x0d" + struct.pack("<f", 9)), grpc.StatusCode.INVALID_ARGUMENT,
         "invalid_value", "temperature"),
    Call("Q2 14 KiB of metadata", generate(), grpc.StatusCode.OK, metadata=(("x-long", "a" * 14_336),)),
    Call("Q2 17 KiB of metadata", generate(), grpc.StatusCode.RESOURCE_EXHAUSTED, metadata=(("x-long", "a" * 17_408),)),
    Call("Q3 a deadline of 1,000 hours", generate(), grpc.StatusCode.OK, timeout=3_600_000),
    Call("Q3 a deadline that is over", generate(), grpc.StatusCode.DEADLINE_EXCEEDED, timeout=-1),
]

PATH_HEADERS = ((":method", "POST"), (":scheme", "http"), (":path", GENERATE), (":authority", "t"),
                ("content-type", "application/grpc"), ("te", "trailers"))


class Http2:
    """As much of HTTP/2 as it takes to send what no gRPC library would: literal headers, no flow control."""

    DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
    END_STREAM, END_HEADERS, ACK = 1, 4, 1

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        self.input = self.socket.makefile("rb")
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.send(self.SETTINGS, 0, 0, b"")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.input.close()
        self.socket.close()

    def send(self, kind, flags, stream, payload):
        self.socket.sendall(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload)

    def headers(self, stream, more=(), flags=0):
        literal = b""
        for name, value in (*PATH_HEADERS, *more):
            literal += b"\x10" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))
        self.send(self.HEADERS, self.END_HEADERS | flags, stream, literal)

    def message(self, stream, payload, flags=END_STREAM):
        self.send(self.DATA, flags, stream, b"\0" + struct.pack(">I", len(payload)) + payload)

    def cancel(self, stream):
        self.send(self.RST_STREAM, 0, stream, b"\0\0\0\x08")

    def end_of(self, stream):
        """How the server ended `stream`: HEADERS or RST_STREAM; None when it hung up."""
        while True:
            head = self.input.read(9)
            if len(head) < 9:
                return None
            length, (kind, flags, where) = int.from_bytes(head[:3], "big"), struct.unpack(">BBI", head[3:])
            payload = self.input.read(length)
            if kind in (self.SETTINGS, self.PING) and not flags & self.ACK:
                self.send(kind, self.ACK, 0, payload if kind == self.PING else b"")
            if where == stream and (kind == self.RST_STREAM or kind in (self.HEADERS, self.DATA) and flags & self.END_STREAM):
                return kind


class BadRequests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        start = lambda thing: cls.enterClassContext(thing)
        cls.worker = start(Worker("nano"))
        folder = pathlib.Path(start(tempfile.TemporaryDirectory()))
        folder.joinpath("secret").write_bytes(b"s" * 32)
        tenants = [{"name": "all", "key_sha256": [hashlib.sha256(KEY.encode()).hexdigest()]},
                   {"name": "some", "key_sha256": [hashlib.sha256(LIMITED_KEY.encode()).hexdigest()], "models": ["base"]}]
        folder.joinpath("keys.yaml").write_text(json.dumps({"tenants": tenants}))
        auth = {"keys_file": str(folder / "keys.yaml"), "cluster_secret_file": str(folder / "secret")}
        limits = {"admission": {"max_body_bytes": MAX_BODY}, "listen": {"http_limits": {"header_timeout_seconds": 2, "slow_reader_seconds": 2}}}
        cls.router = start(Router({"nano": [cls.worker.grpc]}, **limits))
        cls.keyed_router = start(Router({"nano": [cls.worker.grpc], "base": [cls.worker.grpc]}, auth=auth, **limits))

    def test_every_bad_request_gets_its_answer(self):
        self.assertGreaterEqual(len(ROWS) + len(CALLS), 60)
        names = [row.name for row in ROWS + CALLS]
        self.assertEqual(len(set(names)), len(names))
        self.assertEqual(set(PENDING) - set(names), set(), "no such rows")
        before = self.settled_files()
        for row in ROWS:
            self.check_unless_pending(row, self.check_row)
        for call in CALLS:
            self.check_unless_pending(call, self.check_call)
        self.check_nothing_is_left(before)

    def test_broken_streams_of_one_connection_do_not_harm_the_next(self):
        before = self.settled_files()
        port = self.router.port("grpc")
        with Http2(port) as alone:  # gRPC 1.51 hangs up on this (CVE-2023-32732)
            alone.headers(1, [("x-bin", "!!!")], flags=Http2.END_STREAM)
            self.assertEqual(alone.end_of(1), Http2.HEADERS)
        cases = {
            "Q3 a deadline of nothing": lambda h, s: (h.headers(s, [("grpc-timeout", "0n")]), h.message(s, generate())),
            "Q3 a deadline below zero": lambda h, s: (h.headers(s, [("grpc-timeout", "-1S")]), h.message(s, generate())),
            "Q5 cancelled before the message": lambda h, s: (h.headers(s), h.cancel(s)),
            "Q5 cancelled within the message": lambda h, s: (h.headers(s), h.message(s, generate()[:5], flags=0), h.cancel(s)),
            "Q5 cancelled behind the message": lambda h, s: (h.headers(s), h.message(s, generate()), h.cancel(s)),
            "Q5 more after the end": lambda h, s: (h.headers(s), h.message(s, generate()), h.message(s, generate())),
            "a good one": lambda h, s: (h.headers(s), h.message(s, generate())),
        }
        with Http2(port) as http2:
            for stream, (name, send) in zip(itertools.count(1, 2), cases.items()):
                with self.subTest(name):
                    send(http2, stream)
                    if "cancelled" not in name:
                        self.assertIsNotNone(http2.end_of(stream), "the connection is gone")
        self.check_nothing_is_left(before)

    def test_a_grpc_connection_that_does_not_shake_hands_is_closed(self):
        before = self.settled_files()
        with socket.create_connection(("127.0.0.1", self.router.port("grpc")), timeout=PATIENCE_SECONDS) as silent:
            while silent.recv(65_536):  # the server's own settings
                pass
        self.check_nothing_is_left(before)

    def test_what_http_itself_refuses_is_in_the_log_with_its_id(self):
        def refusal():
            with socket.create_connection(("127.0.0.1", self.router.port("http")), timeout=PATIENCE_SECONDS) as client:
                headers = exchange(client, malformed("", b"nonsense\r\n\r\n"))[1]
            return [r for r in self.router.log_records() if r.get("request_id") == headers["x-request-id"]]

        records = wait_until(refusal, "one that is logged: a few in a second are")
        self.assertEqual([(r["event"], r["code"], r["http_status"]) for r in records], [("http_refused", "bad_request", 400)])
        self.assertRegex(records[0]["peer"], r"^127\.0\.0\.1:\d+$")

    def test_the_line_of_a_request_says_where_it_came_from_and_what_http_answered(self):
        for request_id, body, status in (("log-good", {"max_tokens": 1}, 200), ("log-bad", {"temperature": 9}, 400)):
            with self.subTest(request_id):
                http_call(self.router.port("http"), "POST", CHAT, {"model": "nano", "messages": [MESSAGE], **body}, {"X-Request-Id": request_id})
                records = wait_until(lambda: [r for r in self.router.log_records() if r.get("request_id") == request_id], "its line")
                self.assertEqual([(r["event"], r["http_status"], r["retries"]) for r in records], [("request", status, 0)])
                self.assertRegex(records[0]["peer"], r"^127\.0\.0\.1:\d+$")

    def test_a_client_that_does_not_read_or_goes_away_stops_the_work(self):
        before = self.settled_files()
        for leave in ("at once", "after the head", "in the middle"):
            with self.subTest(leave):
                with self.begin_long_stream(leave.replace(" ", "-")) as client:
                    if leave != "at once":
                        client.recv(1)
                    if leave == "in the middle":
                        client.recv(100_000)
                self.await_cancelled(leave.replace(" ", "-"))
        with self.subTest("never reads"), self.begin_long_stream("never-reads"):
            self.await_cancelled("never-reads")
        self.check_nothing_is_left(before)

    def begin_long_stream(self, request_id):
        """Asks for more than the buffers between here and the worker hold."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE_SECONDS)
        client.connect(("127.0.0.1", self.router.port("http")))
        client.sendall(post(LONG_CHAT, f"X-Request-Id: {request_id}"))
        return client

    def await_cancelled(self, request_id):
        """The router's log says that the request ended before its answer did."""
        records = wait_until(lambda: [r for r in self.router.log_records() if r.get("request_id") == request_id], "the request is over")
        self.assertEqual([r["outcome"] for r in records], ["cancelled"])

    # ---- Checks.

    def check_unless_pending(self, row, check):
        with self.subTest(row.name):
            if row.name not in PENDING:
                check(row)
                return
            try:
                check(row)
            except (AssertionError, OSError, ValueError):
                return
            self.fail("has its answer now: take it out of PENDING")

    def check_row(self, row):
        router = self.keyed_router if row.with_keys else self.router
        with socket.create_connection(("127.0.0.1", router.port("http")), timeout=PATIENCE_SECONDS) as client:
            status, headers, body, rest = exchange(client, row)
        self.assertEqual(status, row.status, body[:300])
        if row.closes or row.status == 0:
            self.assertEqual(rest, b"", "more than one answer to what cannot be understood")
        if status < 400:
            return
        for name in ("x-request-id", *row.headers):
            self.assertIn(name, headers)
        self.assertEqual(headers["content-type"], "application/json")
        error = json.loads(body)["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"})
        self.assertEqual((error["code"], error["type"]), (row.code, TYPES.get(row.status, "invalid_request_error")), error)
        self.assertEqual(error["param"], row.param, error)
        self.check_message(error["message"])

    def check_message(self, message):
        self.assertTrue(message)
        self.assertLess(len(message), 500)
        self.assertIsNone(re.search(r"127\.0\.0\.1|0x[0-9a-f]{6}|\.cc\b|/tmp/|sk-terrace", message), message)

    def check_call(self, call):
        # A connection for each: after too much metadata gRPC 1.51 now and then closes it.
        with grpc.insecure_channel(f"127.0.0.1:{self.router.port('grpc')}") as channel:
            stream = channel.unary_stream(call.method)(call.message, timeout=call.timeout, metadata=call.metadata)
            try:
                for _ in stream:
                    pass
            except grpc.RpcError:
                pass
        self.assertEqual(stream.code(), call.code, stream.details())
        trailers = {key: value for key, value in stream.trailing_metadata() or ()}
        self.assertEqual(trailers.get("terrace-reason"), call.reason, stream.details())
        if call.param is not None:
            self.assertEqual(trailers.get("terrace-param"), call.param)
        if call.reason:
            self.check_message(stream.details())

    def settled_files(self):
        """How many files router and worker have open when nothing is under way, after good requests of both kinds."""
        self.check_good_requests()
        return wait_until(self.files_when_idle, "nothing is under way")

    def files_when_idle(self):
        for process in (self.router, self.keyed_router):
            if process.metric("terrace_requests_in_flight") > 0:
                return None
        return [open_files(process.pid) for process in (self.router, self.keyed_router, self.worker)]

    def check_good_requests(self):
        for router, headers in ((self.router, {}), (self.keyed_router, {"Authorization": f"Bearer {KEY}"})):
            status, _, body = http_call(router.port("http"), "POST", CHAT, {"model": "nano", "messages": [MESSAGE], "max_tokens": 2}, headers)
            self.assertEqual((status, json.loads(body)["usage"]["completion_tokens"]), (200, 2), body)
        with grpc.insecure_channel(f"127.0.0.1:{self.router.port('grpc')}") as channel:
            self.assertTrue(list(channel.unary_stream(GENERATE)(generate(), timeout=PATIENCE_SECONDS)))

    def check_nothing_is_left(self, before):
        """The same processes answer good requests, hold no sequence, and no file more than before."""
        self.check_good_requests()
        wait_until(lambda: self.worker.metric("terrace_engine_requests_running") == 0, "no sequence is left")
        wait_until(lambda: all(now <= then for now, then in zip(self.files_when_idle() or [1e9] * 3, before)),
                   "no file is left open")
        for process in (self.router, self.keyed_router, self.worker):
            self.assertIsNone(process.process.poll())


def exchange(client, row):
    """Sends the row and reads one answer: status (0 for none), headers, body, and what comes behind it until the server
    hangs up when the row says that it does."""
    try:
        client.sendall(row.sent)
        if row.half_closes:
            client.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused before all was sent; the answer is there to read
    with client.makefile("rb") as answer:
        line = answer.readline()
        if not line:
            return 0, {}, b"", b""
        headers = {}
        for header in iter(lambda: answer.readline().strip(), b""):
            name, value = header.decode().split(":", 1)
            headers[name.lower()] = value.strip()
        status, body = int(line.split()[1]), answer.read(int(headers.get("content-length", 0)))
        return status, headers, body, answer.read() if status == row.status and row.closes else b""


if __name__ == "__main__":
    unittest.main(verbosity=2)
