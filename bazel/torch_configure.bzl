"""Finds Debian's libtorch-dev; without it only the targets that are linked with it fail."""

_HEADERS = "/usr/include/torch/csrc/api/include"  # beside those in /usr/include itself

_BUILD = """load("@rules_cc//cc:defs.bzl", "cc_library")
package(default_visibility = ["//visibility:public"])
cc_library(name = "torch", linkopts = ["-Wl,--as-needed", "-ltorch_cpu", "-lc10", "-ldl"])
"""

_BUILD_WITHOUT = """load(":version.bzl", "missing")
package(default_visibility = ["//visibility:public"])
missing(name = "torch", tags = ["manual"])
"""

# The version is on every command line that sees the headers: Bazel knows nothing of files in /usr/include.
_VERSION = """TORCH_COPTS = ["-isystem%s", '-DTERRACE_TORCH_PACKAGE=\\\\"%s\\\\"']
def _missing_impl(ctx):
    fail("Debian's libtorch-dev is not installed: scripts/setup.sh --with-distill installs it")
missing = rule(implementation = _missing_impl)
"""

def _impl(rctx):
    found = rctx.path(_HEADERS + "/torch/types.h").exists
    version = rctx.execute(["dpkg-query", "-W", "-f", "${Version}", "libtorch-dev"]).stdout if found else ""
    rctx.file("BUILD", _BUILD if found else _BUILD_WITHOUT)
    rctx.file("version.bzl", _VERSION % (_HEADERS, version))

torch_configure = repository_rule(implementation = _impl, configure = True, local = True)
