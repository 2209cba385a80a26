#!/usr/bin/python3
"""The router's edge under load, with workers that have no model (stub_worker): what it adds beside nginx, many open
streams, overload.

    ./quickstart --once && bazel build --config=release //tests/bench:edge
    tests/bench/edge.py proxy      # latency and CPU beside nginx's grpc_pass and a bare gRPC relay, in turns (needs nginx: apt-get install nginx-light)
    tests/bench/edge.py streams    # 10,000 open event streams: errors, memory of each; of their tokens with --logged 0,100,1000
    tests/bench/edge.py overload   # 2, 5 and 10 times what the workers can do: goodput over time

Everything runs on this machine and shares its cores: only what ran in turns can be compared.
"""

import argparse
import asyncio
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))
from cluster import ROOT, children_of, free_ports, wait_until
from processes import Process, Router, http_call

BUILT = (ROOT / "bin" / "terrace").resolve().parents[2] / "tests" / "bench"  # beside the binaries that bin/ links to
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Stub(Process):
    """Workers without a model; `options` are the flags of stub_worker."""

    def __init__(self, **options):
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in {"text": ROOT / "models/terrace-demo-nano", **options}.items()]
        super().__init__(BUILT / "stub_worker", "stub_ready", flags)
        self.grpc = self.addresses["grpc"]


class Relay(Process):
    """grpc_relay to `backends`: a proxy of gRPC's C++ library that looks at nothing."""

    def __init__(self, backends):
        super().__init__(BUILT / "grpc_relay", "relay_ready", [f"--workers={','.join(backends)}"])


def load(target, **options):
    """The report of edge_load."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in {"target": target, **options}.items()]
    done = subprocess.run([BUILT / "edge_load", *flags], capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        sys.exit(f"edge_load {' '.join(flags)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def cpu_seconds(pid):
    """Of a process and its children."""
    total = 0
    for each in (pid, *children_of(pid)):
        fields = pathlib.Path("/proc", str(each), "stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def resident_bytes(pid):
    return int(pathlib.Path("/proc", str(pid), "statm").read_text().split()[1]) * PAGE


def spread(values, digits=0):
    """Median (least to greatest)."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


# ---- Beside nginx.


class Nginx:
    """grpc_pass to `backends`, on a free port; like the router it writes a line about every request."""

    def __init__(self, backends):
        self.folder = tempfile.TemporaryDirectory(prefix="nginx-")
        self.port = free_ports(1)[0]
        self.address = f"127.0.0.1:{self.port}"
        folder = self.folder.name
        temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        path = pathlib.Path(folder, "nginx.conf")
        path.write_text(f"""
{"user root;" if os.geteuid() == 0 else ""}
daemon off; worker_processes {os.cpu_count()}; pid {folder}/pid; error_log {folder}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log {folder}/access.log; {temporary}
  client_max_body_size 0; client_body_buffer_size 512k; http2_max_concurrent_streams 4096; keepalive_requests 1000000000;
  upstream workers {{
    {" ".join(f"server {backend};" for backend in backends)}
    keepalive 256; keepalive_requests 1000000000;
  }}
  server {{
    listen {self.address} http2;
    location / {{ grpc_pass grpc://workers; grpc_read_timeout 600s; }}
  }}
}}
""")
        try:
            self.process = subprocess.Popen(["nginx", "-c", path, "-e", f"{folder}/error.log"], env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin"})
        except FileNotFoundError:
            sys.exit("there is no nginx: apt-get install nginx-light")
        self.pid = self.process.pid

    def __enter__(self):
        wait_until(lambda: len(children_of(self.pid)) == os.cpu_count() or self.process.poll() is not None, "nginx is up")
        if self.process.poll() is not None:
            sys.exit("nginx ended: " + pathlib.Path(self.folder.name, "error.log").read_text())
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


def measure(name, target, pid, load_options, key, value):
    """One level: latencies in microseconds, requests a second, CPU of the proxy in microseconds a request."""
    before = cpu_seconds(pid) if pid else 0
    level = load(target, **load_options, **{key: value})["levels"][0]
    cpu = cpu_seconds(pid) - before if pid else 0
    ok = level["requests"]["ok"]
    if ok == 0 or level["requests"]["failed"] or level["requests"]["dropped"]:
        print(f"    {name}: {level['requests']} {level['failures'][:2]}", file=sys.stderr)
    latency = level["latency_seconds"]["end_to_end"]
    # The warm-up's CPU is in `cpu`, and so are its requests.
    return {"mean": latency["mean"] * 1e6, "p50": latency["p50"] * 1e6, "p99": latency["p99"] * 1e6, "rate": level["requests_per_second"],
            "cpu": cpu * 1e6 / max(1, ok + load_options["warmup"])}


def proxy(options):
    cases = [(2048, 1), (2048, 64), (220 * 1024, 1)]
    found = []
    with Stub(workers=options.workers, cache_blocks=4096, inter_token_ms=options.token_ms) as stub, Nginx(stub.grpc) as nginx, \
            Relay(stub.grpc) as relay, Router({"stub": stub.grpc}, balance={"policy": "prefix"}) as router:
        targets = {"direct": (stub.grpc[0], None), "nginx": (nginx.address, nginx.pid),
                   "relay": (relay.addresses["grpc"], relay.pid), "router": (router.addresses["grpc"], router.pid)}
        idle = cpu_seconds(router.pid)
        time.sleep(3)
        print(f"router, idle beside {options.workers} workers: {(cpu_seconds(router.pid) - idle) / 3 * 100:.1f}% of a core\n")
        for size, tokens in cases:
            if options.sizes and size not in options.sizes:
                continue
            shape = {"prompt_bytes": size, "shared_bytes": size // 2, "prefix_groups": 16, "output_tokens": tokens,
                     "duration": options.seconds, "warmup": 100 if size < 100_000 else 20}
            capacity = statistics.median(load(nginx.address, **{**shape, "seed": seed}, concurrency=32)["levels"][0]["requests_per_second"] for seed in (97, 98, 99))
            print(f"prompts of {size:,} bytes, answers of {tokens} tokens; nginx at 32 at a time: {capacity:,.0f} requests/s", flush=True)
            levels = [("rate", round(capacity * share, 1)) for share in (0.3, 0.7)]
            levels += [("concurrency", n) for n in ((20, 100) if size > 100_000 else (20,))]
            for key, value in levels:
                rows = {name: [] for name in targets}
                for turn in range(options.rounds):
                    order = list(targets)[turn % len(targets) :] + list(targets)[: turn % len(targets)]
                    for name in order:
                        rows[name].append(measure(name, *targets[name], {**shape, "seed": turn + 1}, key, value))
                report_level(f"{key} {value:g}", rows)
                found.append({"prompt_bytes": size, "tokens": tokens, key: value, "rows": rows})
    return found


def report_level(title, rows):
    print(f"  {title}")
    for name, values in rows.items():
        line = f"    {name:7} p50 {spread([v['p50'] for v in values])} us, p99 {spread([v['p99'] for v in values])} us, {spread([v['rate'] for v in values])} requests/s"
        print(line + (f", CPU {spread([v['cpu'] for v in values])} us" if name != "direct" else ""))
    rounds = len(rows["direct"])

    def told(what, values):
        if len(values) == rounds:
            return f"{what} {spread(values, 2)}"
        return f"{what} of {len(values)} of {rounds} rounds {spread(values, 2) if values else '-'}"  # in the others it took nothing

    for over, name in (("nginx", "relay"), ("nginx", "router"), ("relay", "router")):
        ratios = {}
        for what in ("mean", "p50", "p99"):  # a percentile is good to 0.4%: of an answer of 64 ms, to 0.13 ms
            added = [[v[what] - direct[what] for v, direct in zip(rows[each], rows["direct"])] for each in (over, name)]
            ratios[f"added {what}"] = [mine / its for its, mine in zip(*added) if its > 0]
        for what in ("cpu", "rate"):
            ratios[what] = [mine[what] / its[what] for its, mine in zip(rows[over], rows[name]) if its[what] > 0]
        print(f"    {name} over {over}: " + ", ".join(told(what, values) for what, values in ratios.items()), flush=True)


# ---- Many open streams.


class EventStream(asyncio.Protocol):
    """One chat, streamed; `run` keeps the counts of all. It is open once its first `run.logged` tokens have come."""

    def __init__(self, run):
        self.run, self.tail, self.tokens = run, b"", 0
        self.has_head, self.is_open, self.is_over = False, False, False

    def connection_made(self, transport):
        transport.write(self.run.request)

    def data_received(self, data):
        if self.is_over:
            return
        if not self.has_head:
            if not data.startswith(b"HTTP/1.1 200"):
                self.run.fail(data[:200].decode(errors="replace"))
                self.is_over = True
                return
            self.has_head = True
        data = self.tail + data
        if not self.is_open:
            if self.run.logged:
                self.tokens += data.count(self.run.word) - self.tail.count(self.run.word)
            self.is_open = self.tokens >= self.run.logged
            self.run.open += self.is_open
        if b"data: [DONE]" in data:
            self.is_over = True
            self.run.done += 1
        elif b'"error":' in data:
            self.is_over = True
            self.run.fail(data[-200:].decode(errors="replace"))
        self.tail = data[-20:]

    def connection_lost(self, error):
        if not self.is_over and not self.run.is_closing:
            self.run.fail(f"cut off: {error}")


def chat(tokens, stream=True):
    return {"model": "stub", "stream": stream, "max_tokens": tokens, "ignore_eos": True,
            "messages": [{"role": "user", "content": "The printer is grey, and I want my money back. " * 20}]}


class Streams:
    """`count` chats of `tokens` tokens each, of which `logged` come at once; `word` is what each token stands for."""

    def __init__(self, port, count, tokens, logged=0, word=b""):
        body = json.dumps(chat(tokens)).encode()
        self.request = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)) + body
        self.port, self.count, self.logged, self.word = port, count, logged, word
        self.open = self.done = self.failed = 0
        self.is_closing, self.reasons = False, {}

    def fail(self, reason):
        self.failed += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    async def run(self, when_all_are_open):
        loop, transports = asyncio.get_running_loop(), []
        for i in range(self.count):
            transports.append((await loop.create_connection(lambda: EventStream(self), "127.0.0.1", self.port))[0])
            while i - self.open - self.failed > 500:  # no more requests wait for their first tokens at a time
                await asyncio.sleep(0.01)
        while self.open + self.failed < self.count:
            await asyncio.sleep(0.05)
        when_all_are_open()
        while not self.logged and self.done + self.failed < self.count:
            await asyncio.sleep(0.05)
        self.is_closing = True
        for transport in transports:
            transport.close()


def streams(options):
    files = options.count + 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), max(hard, files)))
    except ValueError:
        sys.exit(f"{files} open files are needed, {hard} are allowed: run as root, or with a smaller --count")
    found = [open_streams(options, logged, files) for logged in options.logged]
    for run in found[1:]:
        more = run["logged"] - found[0]["logged"]
        if more > 0:
            print(f"{run['logged']:,} tokens rather than {found[0]['logged']:,}: {(run['bytes_each'] - found[0]['bytes_each']) / more:.1f} bytes of router memory a token")
    return found


def open_streams(options, logged, files):
    """With `logged` 0 the streams go on to their ends; else they stand still behind so many tokens, and are then closed."""
    found = {"logged": logged}
    pace = {"inter_token_ms": 3600 * 1000, "burst_tokens": logged} if logged else {"inter_token_ms": options.interval * 1000}
    with Stub(**pace) as stub, \
            Router({"stub": stub.grpc}, admission={"max_in_flight": options.count + 100},
                   listen={"http_limits": {"max_connections": files}}) as router:
        answer = json.loads(http_call(router.port("http"), "POST", "/v1/chat/completions", chat(1, stream=False))[2])
        word = answer["choices"][0]["message"]["content"].encode()
        asyncio.run(Streams(router.port("http"), 200, 1 if logged else 2).run(lambda: None))
        before, begin = resident_bytes(router.pid), time.monotonic()

        def all_are_open():
            found.update(bytes_each=(resident_bytes(router.pid) - before) / options.count, seconds_to_open=time.monotonic() - begin,
                         in_flight=router.metric("terrace_requests_in_flight"))
            print(f"{options.count:,} streams with {logged:,} tokens behind them are open after {found['seconds_to_open']:.1f} s ({found['in_flight']:,.0f} in flight), "
                  f"{found['bytes_each'] / 1024:.1f} KiB of router memory each (from {before / 2**20:.1f} MiB)", flush=True)

        tokens = logged + 1 if logged else options.tokens
        run = Streams(router.port("http"), options.count, tokens, logged, word)
        cpu = cpu_seconds(router.pid)
        asyncio.run(run.run(all_are_open))
        found.update(done=run.done, failed=run.failed, reasons=run.reasons, router_cpu_seconds=cpu_seconds(router.pid) - cpu)
        ends = f"{run.done:,} ended with [DONE], " if not logged else ""
        print(f"{ends}{run.failed:,} failed {run.reasons or ''}; the router used {found['router_cpu_seconds']:.1f} s of CPU "
              f"for {options.count * tokens:,} tokens and has {resident_bytes(router.pid) / 2**20:.1f} MiB now")
    return found


# ---- Overload.


def overload(options):
    """Workers with a fixed capacity; the rate is 1x, then so many times it, then 1x again."""
    workers, places, tokens, interval = 4, 8, 8, 0.04
    capacity = workers * places / (tokens * interval)
    found = []
    for times in options.times:
        with Stub(workers=workers, places=places, first_token_ms=interval * 1e3, inter_token_ms=interval * 1e3) as stub, \
                Router({"stub": stub.grpc}, admission={"max_first_token_seconds": options.bound, "max_in_flight": 4096}) as router:
            phases = [(capacity, options.before), (capacity * times, options.during), (capacity, options.after)]
            report = load(router.addresses["grpc"], output_tokens=tokens, prompt_bytes=500, bound=options.bound, patience=options.patience,
                          phases=",".join(f"{rate:g}:{seconds:g}" for rate, seconds in phases))
        good = [second["good"] for second in report["seconds"]]
        asked = [second["asked"] for second in report["seconds"]]
        start, end = int(options.before), int(options.before + options.during)
        peak = statistics.mean(good[start // 4 : start])
        under = good[start + 1 : end - 1]
        windows = [statistics.mean(under[i : i + 5]) for i in range(len(under) - 4)]
        recovered = next((i - end for i in range(end, len(good) - 5) if sum(good[i : i + 5]) >= 0.95 * sum(asked[i : i + 5])), None)
        found.append({"times": times, "capacity": capacity, "peak": peak, "report": report})
        print(f"{times:g} x {capacity:g} requests/s: first token within {options.bound:g} s for {peak:.0f} requests/s at 1x; overloaded "
              f"{statistics.mean(under) / peak:.2f} of that (worst 5 s: {min(windows) / peak:.2f}); "
              + (f"whole again {recovered} s after" if recovered is not None else "NOT whole again"))
        print(f"    first token of the admitted p50 {report['first_token_seconds']['p50']:.3f} s, p99 {report['first_token_seconds']['p99']:.3f} s; "
              f"refusals p50 {report['refusal_seconds']['p50'] * 1e3:.1f} ms, p99 {report['refusal_seconds']['p99'] * 1e3:.1f} ms; {report['reasons']}", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="also write what was found to this file")
    commands = parser.add_subparsers(required=True, metavar="{proxy,streams,overload}")
    one = commands.add_parser("proxy", help="latency and CPU beside nginx and a bare gRPC relay")
    one.set_defaults(run=proxy)
    one.add_argument("--rounds", type=int, default=8, help="in turns (default 8: each target is first, second, third and last twice)")
    one.add_argument("--seconds", type=float, default=5, help="of each level of a round")
    one.add_argument("--workers", type=int, default=64)
    one.add_argument("--token-ms", type=float, default=1, help="between two tokens of an answer: a step of the workers")
    one.add_argument("--sizes", type=lambda text: [int(n) for n in text.split(",")], help="only prompts of so many bytes: 2048,225280")
    one = commands.add_parser("streams", help="many open event streams")
    one.set_defaults(run=streams)
    one.add_argument("--count", type=int, default=10_000)
    one.add_argument("--tokens", type=int, default=20, help="of each answer")
    one.add_argument("--interval", type=float, default=5, help="seconds between two tokens of one stream")
    one.add_argument("--logged", type=lambda text: [int(n) for n in text.split(",")], default=[0],
                     help="tokens that each stream has had when memory is looked at, several by commas: 0,100,1000")
    one = commands.add_parser("overload", help="more than the workers can do")
    one.set_defaults(run=overload)
    one.add_argument("--times", type=lambda text: [float(n) for n in text.split(",")], default=[2, 5, 10])
    one.add_argument("--bound", type=float, default=1, help="seconds in which a first token is good")
    one.add_argument("--patience", type=float, default=30, help="seconds after which a client gives up")
    one.add_argument("--before", type=float, default=20, help="seconds at 1x")
    one.add_argument("--during", type=float, default=60)
    one.add_argument("--after", type=float, default=60)
    options = parser.parse_args()
    found = options.run(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
