#!/usr/bin/python3
"""What the gate catches: `terrace certify` of honest INT8 builds, which have to pass, and of twelve damaged models, of which at
least eleven must not.

    ./quickstart --once                                  # builds bin/terrace
    tests/bench/gate_study.py --work /tmp/gate [--tier small]

Every model is compared with the tier's F16 folder on the six test files, which the baseline answers once. Eight defects are put
into a copy of that folder, three into an honest Q8_0 file (model_defects.py); the twelfth is INT4 by GPTQ on calibration data that
is noise, beside which the same with good data is shown as a control. A model is caught when certify ends with another exit code
than 0: its manifest says "failed", or it could not even be run. Ends with 1 when too few are caught, or an honest one is.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from model_defects import FOLDER_DEFECTS, GGUF_DEFECTS, Folder, Gguf

ROOT = pathlib.Path(__file__).resolve().parents[2]
TERRACE = ROOT / "bin" / "terrace"
CALIBRATION = ROOT / "models" / "eval" / "calibration.jsonl"
MUST_CATCH = 11


def run(*arguments):
    return subprocess.run([TERRACE, *map(str, arguments)], capture_output=True, text=True)


class Study:
    def __init__(self, options):
        self.options = options
        self.work = options.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.baseline = ROOT / "models" / f"terrace-demo-{options.tier}"
        self.key = self.work / "gate"
        if not self.key.with_suffix(".private.pem").exists():
            self.must("certify", "--make-key", self.key)

    def must(self, *arguments):
        done = run(*arguments)
        if done.returncode != 0:
            sys.exit(f"terrace {' '.join(map(str, arguments))}: {done.stderr.strip()}")

    def quantized(self, name, to, method, calibration=CALIBRATION):
        """A model that `terrace quantize` made; it is made the first time."""
        path = self.work / name
        if not path.exists():
            data = [] if method == "rtn" else ["--calibration", calibration]
            self.must("quantize", "--model", self.baseline, "--to", to, "--method", method, "--out", path, *data)
        return path

    def certify(self, name, model):
        """Whether it passes, and why not."""
        out = self.work / f"{name}.json"
        out.unlink(missing_ok=True)
        done = run("certify", "--model", model, "--baseline", self.baseline, "--baseline-records",
                   self.work / f"{self.options.tier}.answers.jsonl", "--key", self.key.with_suffix(".private.pem"), "--out", out,
                   *self.options.certify)
        if not out.exists():
            return done.returncode == 0, done.stderr.strip(), None
        manifest = json.loads(out.read_text())["manifest"]
        if (manifest["verdict"] == "passed") != (done.returncode == 0):
            sys.exit(f"{name}: verdict {manifest['verdict']}, exit code {done.returncode}: {done.stderr}")
        return done.returncode == 0, "; ".join(manifest["failures"]), manifest["report"]["comparison"]

    def show(self, name, model):
        passed, why, comparison = self.certify(name, model)
        figures = "could not be run"
        if comparison is not None:
            everything, divergence = comparison["all"], comparison["divergence"]
            figures = f"{everything['difference']:+.3f}"
            if divergence is not None:
                figures += f"  {divergence['mean_kl']:8.5f}  {100 * divergence['flip_rate']:6.2f}%"
        print(f"{name:28} {'passed' if passed else 'FAILED'}  {figures}  {why}", flush=True)
        return passed

    def noise(self):
        path = self.work / "noise.jsonl"
        rows = [{"id": f"noise-{i}", "task": "noise", "difficulty": 1, "checker": "exact", "expected": "#" * 40,
                 "messages": [{"role": "user", "content": "~^" * 60}]} for i in range(128)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def damaged(self):
        """(name, model) of the twelve."""
        for defect in FOLDER_DEFECTS:
            path = self.work / f"defect-{defect.__name__}"
            if not path.exists():
                model = Folder(self.baseline, path)
                defect(model)
                model.save()
            yield defect.__name__, path
        honest = self.quantized("honest-q8_0.gguf", "q8_0", "rtn")
        for defect in GGUF_DEFECTS:
            path = self.work / f"defect-{defect.__name__}.gguf"
            if not path.exists():
                model = Gguf(honest, path)
                defect(model)
                model.save()
            yield defect.__name__, path
        yield "bad_calibration_set", self.quantized("defect-int4-noise", "int4-g64", "gptq", self.noise())

    def run(self):
        print(f"{'model':28} verdict  all rows   mean KL    flips  failures")
        honest = [self.show(name, self.quantized(file, to, method)) for name, file, to, method in (
            ("honest q8_0", "honest-q8_0.gguf", "q8_0", "rtn"),
            ("honest int8 rtn", "honest-int8-rtn", "int8", "rtn"),
            ("honest int8 gptq", "honest-int8-gptq", "int8", "gptq"))]
        self.show("control int4 gptq", self.quantized("control-int4", "int4-g64", "gptq"))
        caught = [not self.show(name, model) for name, model in self.damaged()]
        print(f"\n{sum(honest)} of {len(honest)} honest builds passed; {sum(caught)} of {len(caught)} damaged models were caught")
        return all(honest) and sum(caught) >= MUST_CATCH


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for models, answers and manifests")
    parser.add_argument("--tier", choices=("nano", "small", "base"), default="small")
    parser.add_argument("certify", nargs="*", help="more flags of terrace certify, behind --")
    sys.exit(0 if Study(parser.parse_args()).run() else 1)


if __name__ == "__main__":
    main()
