#!/usr/bin/python3
"""Terrace's CPU engine beside llama.cpp and its fork ik_llama.cpp: the same GGUF files, in turns, on this machine.

    rivals.py build --work /tmp/rivals --ik /tmp/ik_llama.cpp    # llama.cpp comes from PyPI, ik_llama.cpp is a checkout
    rivals.py models --out /tmp/rivals/models                    # after ./quickstart, which builds bin/terrace
    bazel build --config=release //tests/bench:engine
    rivals.py run --work /tmp/rivals --models /tmp/rivals/models/*.gguf --threads 1,2 --json rivals.json

In every round each engine runs once, beside the others, in an order that rotates: what one machine does at different
times is not comparable. What fails is shown as "-", with the reason below the table.
"""

import argparse
import atexit
import concurrent.futures
import contextlib
import dataclasses
import datetime
import http.client
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ("llama-bench", "llama-batched-bench", "llama-server")
CMAKE = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
         "-DLLAMA_USE_PREBUILT_UI=OFF")  # the last one would download a web page for the server

# Lengths in tokens. Batches decode behind a prompt of 16, as those of tests/bench/engine.cc.
PREFILL, BATCH, BATCH_PROMPT = (128, 512), (4, 8, 16, 32), 16
CONCURRENCY, REQUESTS, PROMPT, OUTPUT = 8, 32, 128, 64
SPEED, DELAY = f"server, {CONCURRENCY} at a time", "server, first token p50, ms"
WHAT = ("decode", "prefill", "batch", "context", "server")
GROUPS = (("decode", "prefill"), ("batch",), ("context",), ("server",))  # what one process measures
PATIENCE_SECONDS = 3600  # for one run: a large model takes minutes for a prompt of 16,384
SILENCE_SECONDS = 120  # between two events of an answer


# A shape beside those of `terrace synthesize`: of Qwen3 30B-A3B's kind, as large as a machine like this one runs it.
MIXTURE = "moe"
MIXTURE_CONFIG = {"model_type": "qwen3_moe", "hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
                  "num_key_value_heads": 4, "head_dim": 64, "num_experts": 64, "num_experts_per_tok": 8,
                  "moe_intermediate_size": 384, "norm_topk_prob": True, "rope_theta": 1000000.0, "vocab_size": 32000,
                  "max_position_embeddings": 32768, "tie_word_embeddings": True}


class Failed(Exception):
    """A run without figures; the text is the reason."""


@dataclasses.dataclass
class Job:
    """What one process measures: the parts of a group that are wanted, of one model with so many threads."""

    model: pathlib.Path
    threads: int
    kinds: list  # of WHAT
    context: list  # positions
    tokens: int  # that a decode makes

    def figures(self):
        """The names of what has to come out."""
        names = {"decode": ["decode"], "prefill": [f"prefill {n}" for n in PREFILL], "batch": [f"batch {n}" for n in BATCH],
                 "context": [f"{what} {n}" for n in self.context for what in ("context", "attention")],
                 "server": [SPEED, DELAY]}
        return [name for kind in self.kinds for name in names[kind]]


@dataclasses.dataclass
class Found:
    """What one run of an engine says, by figure."""

    values: dict  # tok/s, or ms
    limits: dict = dataclasses.field(default_factory=dict)  # fractions of the machine's limit
    notes: list = dataclasses.field(default_factory=list)


def comma(values):
    return ",".join(map(str, values))


def reason_in(text):
    """The line of a tool's output that says most about why it failed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no output"]
    return ([line for line in lines if "error" in line.lower()] or lines)[-1][:200]


def run_tool(command):
    """stdout and stderr. It runs in a folder of its own: ik_llama.cpp's tools leave a log where they stand."""
    with tempfile.TemporaryDirectory(prefix="rivals-") as folder:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, errors="replace",
                              stdin=subprocess.DEVNULL, cwd=folder, timeout=PATIENCE_SECONDS)
    if done.returncode != 0:
        raise Failed(f"exit code {done.returncode}: {reason_in(done.stdout + done.stderr)}")
    return done.stdout, done.stderr


# ---- Engines. measure() does a job, or raises.


class Rival:
    def __init__(self, name, folder, is_ik=False):
        self.name, self.folder, self.is_ik = name, folder, is_ik

    def tool(self, name):
        return self.folder / "build/bin" / name

    def is_built(self):
        return all(self.tool(name).exists() for name in TOOLS)

    def version(self):
        if not self.tool("llama-batched-bench").exists():
            return "not built"
        found = re.search(r"version: (.*)", "".join(run_tool([self.tool("llama-batched-bench"), "--version"])))
        return found.group(1).strip() if found else "unknown"

    def measure(self, job):
        common = ("-m", job.model, "-t", job.threads)
        if "server" in job.kinds:
            return self.serve(common)
        if "batch" in job.kinds:
            return self.batch(common, job.tokens)
        if "context" not in job.kinds:
            prompts, tokens = PREFILL if "prefill" in job.kinds else [0], job.tokens if "decode" in job.kinds else 0
            return self.bench(common, "-p", comma(prompts), "-n", tokens)
        if self.is_ik:  # -gp and -d: so many tokens behind others
            behind = [word for n in job.context for word in ("-gp", f"{n},{job.tokens}")]
            return self.bench(common, "-fa", 1, "-p", 0, "-n", 0, *behind)
        return self.bench(common, "-fa", 1, "-p", 0, "-n", job.tokens, "-d", comma(job.context))

    def bench(self, common, *tests):
        repack = ("-rtr", 1) if self.is_ik else ()
        out, _ = run_tool([self.tool("llama-bench"), *common, *tests, *repack, "-r", 1, "-o", "json"])
        values = {}
        for test in json.loads("\n".join(line for line in out.splitlines() if not line[:1].isalpha())):  # "WARNING: ..."
            before = test["n_prompt"] + test.get("n_depth", 0)
            name = f"prefill {before}" if test["n_gen"] == 0 else f"context {before}" if before else "decode"
            values[name] = test["avg_ts"]
        return Found(values)

    def batch(self, common, tokens):
        """From the table, which llama.cpp writes to stdout and ik_llama.cpp to stderr:
        | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | T s | S t/s |"""
        sizes = ("-c", 4096, "-npp", BATCH_PROMPT, "-ntg", tokens, "-npl", comma(BATCH))
        output = run_tool([self.tool("llama-batched-bench"), *common, *sizes, *(("-rtr",) if self.is_ik else ())])
        rows = [line.strip("| ").split("|") for line in "\n".join(output).splitlines() if re.match(r"\|\s*\d", line)]
        return Found({f"batch {int(row[2])}": float(row[7]) for row in rows})

    def serve(self, common):
        [port] = free_ports(1)
        command = [self.tool("llama-server"), *common, "-np", CONCURRENCY, "-c", 4096, "-cram", 0, "--host", "127.0.0.1",
                   "--port", port, *(("-rtr",) if self.is_ik else ())]
        with server(command, port, "/health"):
            return load(port, "/v1/completions", lambda text: {"prompt": text, "cache_prompt": False})


class Terrace:
    name = "Terrace"

    def __init__(self, engine, cli):
        self.engine, self.cli = engine, cli
        self.shares, self.kernels = [], "unknown"

    def version(self):
        git = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
        return git.stdout.strip() or "unknown"

    def measure(self, job):
        if "server" in job.kinds:
            return self.serve(job)
        prefill = PREFILL if "prefill" in job.kinds else [16]  # these two cannot be left out, only be short
        batch = BATCH if "batch" in job.kinds else [2]
        command = [self.engine, "--model", job.model, "--threads", job.threads, "--rounds", 1, "--decode-tokens", job.tokens,
                   "--kv", "f16", "--prefill", comma(prefill), "--batch", comma(batch)]
        command += ["--context", comma(job.context)] if "context" in job.kinds else []
        with tempfile.NamedTemporaryFile(prefix="rivals-") as file:
            run_tool([*command, "--json", file.name])
            report = json.loads(pathlib.Path(file.name).read_text())
        self.kernels = report["kernels"]
        self.shares += report["cpu_share"]
        figures = report["figures"].items()
        return Found({name: figure["tokens_per_second"][0] for name, figure in figures},
                     {name: figure["fraction_of_limit"][0] for name, figure in figures})

    def serve(self, job):
        ports = free_ports(5)
        http_address, ops, grpc, worker, worker_ops = (f"127.0.0.1:{port}" for port in ports)
        config = {
            "router": {"listen": {"http": http_address, "grpc": grpc, "ops": ops},
                       "tiers": [{"name": "model", "workers": [worker]}]},
            "workers": [{"model": str(job.model), "grpc": worker, "ops": worker_ops,
                         "engine": {"threads": job.threads}, "kv": {"dtype": "f16"}}],
        }
        with tempfile.NamedTemporaryFile("w", prefix="rivals-", suffix=".yaml") as file:
            json.dump(config, file)  # JSON is YAML
            file.flush()
            with server([self.cli, "up", "-f", file.name], ports[1], "/readyz"):
                return load(ports[0], "/v1/chat/completions", lambda text: {"messages": [{"role": "user", "content": text}]})


# ---- Servers and the load on them.


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def is_ready(port, path):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


@contextlib.contextmanager
def server(command, port, ready_path):
    """Runs a server, from when it is ready until the block ends. Nothing is left running."""
    with tempfile.TemporaryDirectory(prefix="rivals-") as folder, open(pathlib.Path(folder, "log"), "w+") as log:
        process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
        try:
            deadline = time.monotonic() + 300
            while not is_ready(port, ready_path):
                if process.poll() is not None:
                    log.seek(0)
                    raise Failed(f"the server ended with {process.returncode}: {reason_in(log.read())}")
                if time.monotonic() > deadline:
                    raise Failed("the server was not ready within 300 s")
                time.sleep(0.05)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ask(port, path, body):
    """One streamed answer: seconds to its first event, prompt and output tokens as the server counts them. All servers send
    the first event when the first token is there, but its text may be empty: llama.cpp shows nothing of an unused token."""
    body = {**body, "max_tokens": OUTPUT, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}
    start, first, usage = time.monotonic(), None, None
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SILENCE_SECONDS)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise Failed(f"HTTP {response.status}: {response.read()[:200].decode(errors='replace')}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[len(b"data: "):])
            if first is None and event.get("choices"):
                first = time.monotonic() - start
            usage = event.get("usage")
            if usage:  # it comes last; ik_llama.cpp's server sometimes forgets to end the stream behind it
                break
    if first is None or not usage:
        raise Failed(f"an answer without {'choices' if first is None else 'usage'}")
    return first, usage["prompt_tokens"], usage["completion_tokens"]


def load(port, path, body_of):
    """REQUESTS different prompts, CONCURRENCY at a time. Synthesized models have a token for each byte: a first request,
    which also warms up, tells how many tokens come on top of the letters of a prompt."""
    draw = random.Random()

    def body(letters):
        return body_of("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=letters)))

    on_top = ask(port, path, body(PROMPT // 2))[1] - PROMPT // 2
    bodies = [body(PROMPT - on_top) for _ in range(REQUESTS)]
    with concurrent.futures.ThreadPoolExecutor(CONCURRENCY) as pool:
        start = time.monotonic()
        answers = list(pool.map(lambda one: ask(port, path, one), bodies))
        seconds = time.monotonic() - start
    delays, prompts, outputs = zip(*answers)
    notes = [f"{min(tokens)} to {max(tokens)} {kind} tokens a request, not {wanted}"
             for kind, tokens, wanted in (("prompt", prompts, PROMPT), ("output", outputs, OUTPUT)) if set(tokens) != {wanted}]
    return Found({SPEED: sum(outputs) / seconds, DELAY: statistics.median(delays) * 1000}, notes=notes)


# ---- Rounds and the report.


def is_own(figure):
    """Figures that only Terrace's engine tells: the time that attention adds to a decode, as a rate."""
    return figure.startswith("attention")


class Results:
    """Every figure of every round. A row is (model, threads, figure)."""

    def __init__(self):
        self.rows, self.limits, self.notes = {}, {}, {}

    def measure(self, engine, job):
        """Adds one run: a figure to each row that it is for, or None and a note why."""
        kinds = "+".join(job.kinds)
        try:
            found = engine.measure(job)
            missing = [name for name in job.figures() if name not in found.values and not is_own(name)]
            found.notes += [f"{name}: not in the output" for name in missing]
        except (Failed, OSError, subprocess.TimeoutExpired, http.client.HTTPException) as error:
            found = Found({}, notes=[f"{kinds}: {error}"])
        except (LookupError, ValueError) as error:
            found = Found({}, notes=[f"{kinds}: its output was not understood: {error!r}"])
        for name in job.figures():
            row = (job.model.stem, job.threads, name)
            self.rows.setdefault(row, {}).setdefault(engine.name, []).append(found.values.get(name))
            if name in found.limits:
                self.limits.setdefault(row, []).append(found.limits[name])
        for note in found.notes:
            key = f"{engine.name}, {job.model.stem}, threads {job.threads}: {note}"
            self.notes[key] = self.notes.get(key, 0) + 1

    def ratios(self, row):
        """Of each round that all engines finished: Terrace beside the better rival of that round, above 1 where it is
        ahead. A rival without a single figure does not count."""
        own = self.rows[row][Terrace.name]
        others = [values for name, values in self.rows[row].items() if name != Terrace.name and any(values)]
        rounds = [values for values in zip(own, *others) if others and all(values)]
        return [min(rest) / mine if row[-1] == DELAY else mine / max(rest) for mine, *rest in rounds]

    def as_json(self):
        figures = [{"model": row[0], "threads": row[1], "what": row[2], "rounds": series,
                    "fraction_of_limit": self.limits.get(row, [])} for row, series in self.rows.items()]
        return {"figures": figures, "notes": self.notes}


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values):
    values = [value for value in values if value is not None]
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})" if values else "-"


def machine():
    """"AMD EPYC, family 25 model 1, AVX2, 2 cores": a virtual machine's model name may say little."""
    info = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M))
    wide = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16")
    has = [name for name in wide if name in info.get("flags", "").split()]
    return (f"{info.get('model name', 'unknown CPU')}, family {info.get('cpu family')} model {info.get('model')}, "
            f"{' '.join(has) or 'no avx2'}, {len(os.sched_getaffinity(0))} cores")


def table(results, names):
    lines = [f"| model | threads | what | {names[0]} | of limit | {' | '.join(names[1:])} | ratio (least) |",
             "|" + "---|" * (5 + len(names))]
    for row, series in results.rows.items():
        ratios, limits = results.ratios(row), results.limits.get(row)
        own, *others = (spread(series[name]) for name in names)
        cells = [row[0], str(row[1]), row[2], own, f"{statistics.median(limits):.2f}" if limits else "-", *others,
                 f"{statistics.median(ratios):.2f} ({min(ratios):.2f})" if ratios else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def caption(facts, terrace):
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    share = f", Terrace's runs had {min(terrace.shares):.2f} of their processors or more" if terrace.shares else ""
    busy = f", {facts['busy']} busy processes beside" if facts["busy"] else ""
    load_average = f"load average at the start {facts['load_average']:.1f}, nice {facts['nice']}{busy}{share}"
    return f"""{facts['date']}, {facts['machine']}; {load_average}.
{versions}; Terrace's kernels: {terrace.kernels}.
Medians of {facts['rounds']} rounds (least to most), tok/s unless said. Ratio: beside the better rival of the same round, median
and least; above 1 Terrace is ahead, in ms too. KV in f16, ik_llama.cpp with -rtr, else the rivals' defaults; decodes of
{facts['decode_tokens']} tokens, context: behind so many, the rivals with -fa 1. Server: {REQUESTS} requests, {PROMPT} tokens in, {OUTPUT} out, the
client on the same cores; the rivals with -np {CONCURRENCY} -c 4096 -cram 0; first token: the first event of the stream."""


def set_priority(nice):
    """Of this process and its children. Linux may share the cores between sessions first: then the session's counts."""
    try:
        os.nice(nice)
        with contextlib.suppress(FileNotFoundError):
            session = pathlib.Path("/proc/self/autogroup")
            session.write_text(str(nice))
            atexit.register(session.write_text, "0")
    except PermissionError:
        sys.exit("rivals.py: a negative --nice needs root")


@contextlib.contextmanager
def busy_processes(count):
    """Others that want a core each, at the same priority, as long as the block runs."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(args):
    for model in args.models:
        if not model.exists():
            sys.exit(f"rivals.py: no such model: {model}")
    terrace = Terrace(args.terrace_engine.absolute(), args.terrace.absolute())
    engines = [terrace, *rivals_in(args.work)]
    facts = {"date": datetime.date.today().isoformat(), "machine": machine(), "load_average": os.getloadavg()[0],
             "nice": args.nice, "busy": args.busy, "decode_tokens": args.decode_tokens, "rounds": args.rounds,
             "versions": {engine.name: engine.version() for engine in engines}}
    if args.nice:
        set_priority(args.nice)
    results = Results()
    groups = [[kind for kind in group if kind in args.what] for group in GROUPS]
    jobs = [[Job(model.absolute(), threads, kinds, args.context, args.decode_tokens) for kinds in groups if kinds]
            for model in args.models for threads in args.threads]
    for of_model, i in itertools.product(jobs, range(args.rounds)):
        turn = i % len(engines)
        for job, engine in itertools.product(of_model, engines[turn:] + engines[:turn]):
            start = time.monotonic()
            with busy_processes(args.busy):
                results.measure(engine, job)
            print(f"{job.model.stem}, threads {job.threads}, round {i + 1} of {args.rounds}, {'+'.join(job.kinds)}: "
                  f"{engine.name} {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
        if args.json:  # after each round: an interrupted run keeps what it measured
            args.json.write_text(json.dumps({**facts, **results.as_json()}, indent=1) + "\n")
    notes = [f"- {text}" + (f" ({count} times)" if count > 1 else "") for text, count in results.notes.items()]
    print("\n\n".join([table(results, [engine.name for engine in engines]), caption(facts, terrace), "\n".join(notes)]).rstrip())


# ---- What has to be there first.


def rivals_in(work):
    return [Rival("ik_llama.cpp", work.absolute() / "ik", is_ik=True), Rival("llama.cpp", work.absolute() / "main")]


def build(args):
    missing = " ".join(tool for tool in ("cmake", "g++") if shutil.which(tool) is None)
    if missing:
        sys.exit(f"rivals.py: missing: {missing} (Debian: apt-get install {missing})")
    if args.work.absolute().is_relative_to(ROOT):
        sys.exit(f"rivals.py: --work {args.work} is inside the repository")
    for rival in rivals_in(args.work):
        if not rival.is_built() and not rival.is_ik:
            cmake_build(llama_cpp_source(args.work.absolute() / "sdist"), rival.folder)
        elif not rival.is_built() and args.ik:
            cmake_build(args.ik.absolute(), rival.folder)
        print(rival.name, rival.version())


def llama_cpp_source(folder):
    """llama.cpp as PyPI's llama-cpp-python carries it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("llama_cpp_python-*/vendor/llama.cpp")):
        step([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", folder,
              "llama-cpp-python"], folder / "download.log")
        with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
    return next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))


def cmake_build(source, folder):
    folder.mkdir(parents=True, exist_ok=True)
    step(["cmake", "-S", source, "-B", folder / "build", *CMAKE], folder / "cmake.log")
    step(["cmake", "--build", folder / "build", "-j", len(os.sched_getaffinity(0)), "--target", *TOOLS], folder / "build.log")


def step(command, log):
    print(*command, file=sys.stderr, flush=True)
    with open(log, "w") as file:
        code = subprocess.run([str(word) for word in command], stdout=file, stderr=file).returncode
    if code != 0:
        sys.exit(f"rivals.py: {command[0]}: exit code {code}: {reason_in(log.read_text(errors='replace'))} (see {log})")


def models(args):
    """A small vocabulary, so that the layers are most of the work, and room for the longest context."""
    args.out.mkdir(parents=True, exist_ok=True)
    for path, shape, dtype in ((args.out / f"{s}-{d}.gguf", s, d) for s in args.shapes for d in args.dtypes):
        if path.exists():
            print(f"{path}: present", flush=True)
            continue
        command = [args.terrace, "synthesize", "--out", path, "--dtype", dtype]
        if shape == MIXTURE:
            config = args.out / f"{MIXTURE}.json"
            config.write_text(json.dumps(MIXTURE_CONFIG))
            command += ["--config", config]
        else:
            command += ["--shape", shape, "--vocab", "32000", "--tied", "--context", "32768"]
        if not args.terrace.exists() or subprocess.run(command).returncode != 0:
            sys.exit(f"rivals.py: failed: {' '.join(map(str, command))}")


def main():
    def words(text):
        return text.split(",")

    def counts(text):
        return [int(word) for word in words(text)]

    path = pathlib.Path
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("build", help="llama.cpp and ik_llama.cpp, where they are not built yet")
    command.set_defaults(does=build)
    command.add_argument("--work", type=path, required=True, help="folder for all of it, outside the repository")
    command.add_argument("--ik", type=path, metavar="SRC", help="a checkout of ik_llama.cpp")
    command = commands.add_parser("models", help="random models, where they are not there yet")
    command.set_defaults(does=models)
    command.add_argument("--out", type=path, required=True, help="folder")
    command.add_argument("--shapes", type=words, default="135m,0.5b,1b", help=f"those of synthesize, or {MIXTURE}, a mixture of "
                         "experts; default: %(default)s")
    command.add_argument("--dtypes", type=words, default="q8_0,q4_0,q4_k_m,f16", help="default: %(default)s")
    command.add_argument("--terrace", type=path, default=ROOT / "bin/terrace", help="default: bin/terrace")
    command = commands.add_parser("run", help="measure, and print a table in Markdown")
    command.set_defaults(does=run)
    command.add_argument("--work", type=path, required=True, help="that of build")
    command.add_argument("--models", type=path, nargs="+", required=True, help="GGUF files")
    command.add_argument("--threads", type=counts, default="1,2", help="one after the other; default: %(default)s")
    command.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    command.add_argument("--what", type=words, default=comma(WHAT), help="default: %(default)s")
    command.add_argument("--context", type=counts, default="4096,16384", help="for --what context; the rivals compute such a "
                         "prompt in each round, a large model for minutes; default: %(default)s")
    command.add_argument("--decode-tokens", type=int, default=64, help="of a decode, alone or in a batch; default: %(default)s")
    command.add_argument("--nice", type=int, default=0, help="of all engines; -10 (as root) beside other work: there the rivals' "
                         "threads spin for each other and their figures collapse")
    command.add_argument("--busy", type=int, default=0, help="other processes beside each run that want a core each, to see what "
                         "a busy machine does; default: %(default)s")
    command.add_argument("--json", type=path, help="file for every figure of every round")
    command.add_argument("--terrace-engine", type=path, default=ROOT / ".bazel/bin/tests/bench/engine", help="Bazel's, if absent")
    command.add_argument("--terrace", type=path, default=ROOT / "bin/terrace", help="for the server; default: bin/terrace")
    args = parser.parse_args()
    unknown = set(getattr(args, "what", ())) - set(WHAT)
    if unknown:
        parser.error(f"--what {comma(unknown)}: there are {comma(WHAT)}")
    args.does(args)


if __name__ == "__main__":
    main()
