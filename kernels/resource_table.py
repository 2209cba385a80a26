#!/usr/bin/env python3
"""What each CUDA kernel takes of a multiprocessor, from the .ptxas files of a build.

usage: resource_table.py [--check] [--document FILE] FILE...

Prints a Markdown table: registers, static shared memory, bytes of stack and of spills, of sm_90a and sm_80. With --check
it fails when a kernel spills more than ALLOWED says, and when ptxas lets the wgmma of one wait for each other; with a
document it fails when the table in there is another one, unless that one is not of the nvcc here.
"""
import argparse
import os
import re
import subprocess
import sys

# Bytes spilled, in no loop over the elements of a tile: (part of the kernel's name, most bytes stored and loaded).
ALLOWED = [
    ("DecodeAttentionKernel", 16),
    ("DecodeAttentionKernel<BF16Rows, 128, 2, false, true>", 20),
    ("RunAttentionKernel", 204),  # some of it once for each tile, of 64 mma
    ("OrderedGemmKernel", 184),  # once for each stage
    ("PrefillAttentionKernel", 16),
    ("StreamGemmKernel", 24),  # sm_80 only
    ("GroupedGemmKernel", 64),  # of 32 and 128 tokens
]


def kernels(path):
    """Yields (mangled name, architecture, {what: number})."""
    name = arch = None
    numbers = {}
    for line in open(path, encoding="utf-8"):
        if found := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            name, arch = found.groups()
            numbers = {}
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            numbers["stack"] = int(found[1])
            numbers["spills"] = int(found[2]) + int(found[3])
        elif (found := re.search(r"Used (\d+) registers", line)) and name:
            shared = re.search(r"(\d+) bytes smem", line)
            numbers["registers"] = int(found[1])
            numbers["shared"] = int(shared[1]) if shared else 0
            yield name, arch, numbers
            name = None


def demangled(names):
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = []
    for line in text.splitlines():
        line = re.sub(r"terrace::|decode_attention::|run_attention::|\(anonymous namespace\)::", "", line)
        line = re.sub(r"^void ", "", line)
        line = re.sub(r"\((unsigned int|bool|int)\)", "", line)
        line = re.sub(r"(\d)u\b", r"\1", line)
        short.append(line[: line.rindex("(")] if "(" in line else line)
    return short


def nvcc_version():
    nvcc = os.path.join(os.environ.get("TERRACE_CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", text)[1]


def difference(document, lines):
    """What of the document's table is not so, or None."""
    text = open(document, encoding="utf-8").read()
    if f"nvcc {nvcc_version()}" not in text:
        return None
    table = text.split("\n## ")[0]  # what follows is of what kernels ask for at launch
    known = [line for line in table.splitlines() if line.startswith("| `")]
    gone, new = [line for line in known if line not in lines], [line for line in lines if line not in known]
    if not gone and not new:
        return None
    return "\n  ".join([f"the table of {document} is not this build's:"] + ["- " + x for x in gone] + ["+ " + x for x in new])


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--document", metavar="FILE")
    parser.add_argument("files", nargs="+", metavar="FILE")
    arguments = parser.parse_args()
    check, files = arguments.check, arguments.files
    found = [k for path in files for k in kernels(path)]
    if not found:
        sys.exit("resource_table: no kernel in these files")
    table = {}
    for name, (_, arch, numbers) in zip(demangled([k[0] for k in found]), found):
        table.setdefault(name, {})[arch] = numbers
    print("| kernel | registers sm_90a / sm_80 | shared bytes | stack | spills sm_90a / sm_80 |")
    print("|---|---|---|---|---|")
    bad, lines = [], []
    for name, by_arch in sorted(table.items()):
        hopper, ampere = by_arch.get("sm_90a", {}), by_arch.get("sm_80", {})
        both = lambda what: f"{hopper.get(what, '-')} / {ampere.get(what, '-')}"
        lines.append(f"| `{name}` | {both('registers')} | {hopper.get('shared', '-')} | {hopper.get('stack', '-')} | {both('spills')} |")
        print(lines[-1])
        most = max(hopper.get("spills", 0), ampere.get("spills", 0))
        if most > max((m for part, m in ALLOWED if part in name), default=0):
            bad.append(f"{name} spills {most} bytes")
    for path in files:
        text = open(path, encoding="utf-8").read()
        serialized = re.findall(r"wgmma\.mma_async instructions are serialized .* in the function '(\w+)'", text)
        bad += [f"{name} waits for each of its wgmma" for name in demangled(serialized)]
    if not check:
        bad = []
    if arguments.document and (other := difference(arguments.document, lines)):
        bad.append(other)
    if bad:
        sys.exit("resource_table: " + "; ".join(bad))


if __name__ == "__main__":
    main()
