"""External repositories: none is downloaded. Stubs stand in for what @bazel_tools of Bazel 4 loads."""

load("//bazel:cuda_configure.bzl", "cuda_configure")
load("//bazel:torch_configure.bzl", "torch_configure")

def _stub_impl(rctx):
    rctx.file("WORKSPACE", "")
    for path, content in rctx.attr.files.items():
        rctx.file(path, content, executable = False)

_stub_repository = repository_rule(implementation = _stub_impl, attrs = {"files": attr.string_dict()})

_CC_DEFS = """load(":info.bzl", "CC_INFO")
CcInfo = CC_INFO
cc_binary = native.cc_binary
cc_library = native.cc_library
cc_test = native.cc_test
cc_toolchain = native.cc_toolchain
cc_toolchain_suite = native.cc_toolchain_suite
"""

_JAVA_DEFS = """java_import = native.java_import
java_runtime = native.java_runtime
java_toolchain = native.java_toolchain
"""

_COVERAGE = """package(default_visibility = ["//visibility:public"])
filegroup(name = "coverage_report_generator")
filegroup(name = "lcov_merger")
"""

def terrace_repositories():
    version = native.bazel_version  # "" in Debian's build of 4.2.3
    if version == "" or version.startswith("4."):
        _stub_repository(name = "rules_cc", files = {
            "BUILD": "",
            "cc/BUILD": "",
            "cc/defs.bzl": _CC_DEFS,
            "cc/info.bzl": "CC_INFO = CcInfo\n",
        })
        _stub_repository(name = "rules_java", files = {"BUILD": "", "java/BUILD": "", "java/defs.bzl": _JAVA_DEFS})
        _stub_repository(name = "remote_coverage_tools", files = {"BUILD": _COVERAGE})
    cuda_configure(name = "local_cuda")
    torch_configure(name = "local_torch")
