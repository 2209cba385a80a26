"""Finds a CUDA toolkit (TERRACE_CUDA_HOME, else /usr/local/cuda); without one only CUDA targets fail."""

_BUILD = """load("@rules_cc//cc:defs.bzl", "cc_library")
package(default_visibility = ["//visibility:public"])
cc_library(  # for host-only .cc files; a short list, because the sandbox links every file for every action
    name = "headers",
    hdrs = glob(["include/*.h", "include/*.hpp", "include/crt/**", "include/cccl/nv/**"], allow_empty = True),
    includes = ["include", "include/cccl"],
)
cc_library(name = "cudart", linkopts = ["-L{lib}", "-lcudart_static", "-lpthread", "-ldl", "-lrt"])
cc_library(name = "cublaslt", linkopts = ["-L{lib}", "-Wl,-rpath,{lib}", "-lcublasLt"])
"""

def _impl(rctx):
    home = rctx.os.environ.get("TERRACE_CUDA_HOME", "/usr/local/cuda")
    found = rctx.path(home + "/bin/nvcc").exists
    if found:
        rctx.symlink(home + "/include", "include")
    rctx.file("BUILD", _BUILD.format(lib = home + "/lib64"))
    rctx.file("cuda.bzl", "CUDA_FOUND = %s\nCUDA_HOME = %r\n" % (found, home))

cuda_configure = repository_rule(
    implementation = _impl,
    environ = ["TERRACE_CUDA_HOME"],
    configure = True,
    local = True,
)
