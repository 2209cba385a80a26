"""Python packages of exact versions and hashes for a test, in a virtual environment of the cache folder.

Made from PyPI when it is not there yet. A test that cannot have its packages fails: it is never skipped.
"""

import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "terrace")


def run_within(requirements):
    """Returns at once in an interpreter that has the packages of the file `requirements`, else starts this program again in
    one; ends it, with the reason, when there cannot be one."""
    folder = _folder(requirements)
    if pathlib.Path(sys.prefix).resolve() == folder.resolve():
        return
    try:
        python = _make(folder, requirements)
    except subprocess.CalledProcessError as error:
        print(f"{requirements.stem}: pip could not install what is pinned in {requirements.name} (is PyPI reachable?):\n"
              f"{(error.stderr or error.output or '').strip()}", file=sys.stderr)
        sys.exit(1)
    os.execv(python, [python, *sys.argv])


def _folder(requirements):
    key = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    return CACHE / f"{requirements.stem}-{key}"


def _make(folder, requirements):
    """The interpreter of `folder`, which is whole when `complete` is in it."""
    python, complete = folder / "bin" / "python", folder / "complete"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{requirements.stem}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            for old in CACHE.glob(f"{requirements.stem}-*"):
                shutil.rmtree(old)
            _run(sys.executable, "-m", "venv", folder)
            _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:",
                 "--require-hashes", "--requirement", requirements)
            complete.touch()
    return str(python)


def _run(*command):
    subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
