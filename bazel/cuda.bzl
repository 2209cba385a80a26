"""cuda_library: compiles .cu files with nvcc. Targets are tagged manual: they build where they are named.

Beside each object lies what ptxas says of its kernels (.ptxas): kernels/resource_table.py makes a table of it.
"""

load("@local_cuda//:cuda.bzl", "CUDA_FOUND", "CUDA_HOME")
load("@rules_cc//cc:defs.bzl", "CcInfo", "cc_library")

def _nvcc_impl(ctx):
    if not CUDA_FOUND:
        fail("no nvcc under %s: CUDA targets need it; TERRACE_CUDA_HOME says where it is" % CUDA_HOME)
    contexts = [dep[CcInfo].compilation_context for dep in ctx.attr.deps]
    outs = []
    for src in ctx.files.srcs:
        out = ctx.actions.declare_file("_nvcc/%s/%s.pic.o" % (ctx.label.name, src.basename))
        args = ctx.actions.args()
        resources = ctx.actions.declare_file("_nvcc/%s/%s.ptxas" % (ctx.label.name, src.basename))
        args.add(resources)
        args.add(CUDA_HOME + "/bin/nvcc")
        args.add_all(["-c", "-x", "cu", "-std=c++20", "-O3", "-Werror", "all-warnings", "-Xcompiler=-fPIC,-Wall", "-ccbin", "/usr/bin/g++"])
        args.add_all(["--compress-mode=size", "-Xptxas=-v"])
        if ctx.var.get("cuda_lineinfo"):  # half of an object: --define=cuda_lineinfo=1 is for profilers
            args.add("-lineinfo")
        args.add_all(["-gencode=arch=compute_%s,code=sm_%s" % (arch, arch) for arch in ctx.attr.archs])
        args.add("-gencode=arch=compute_90,code=compute_90")  # PTX for anything newer
        args.add_all(["-I.", "-I" + ctx.bin_dir.path])
        for context in contexts:
            args.add_all(context.includes, before_each = "-I")
            args.add_all(context.system_includes, before_each = "-isystem")
            args.add_all(context.defines, before_each = "-D")
        args.add_all(ctx.attr.copts)
        args.add_all(["-o", out, src])
        ctx.actions.run_shell(
            command = 'log=$1; shift; "$@" 2>"$log" || { cat "$log" >&2; exit 1; }',
            arguments = [args],
            inputs = depset(ctx.files.srcs + ctx.files.hdrs, transitive = [context.headers for context in contexts]),
            outputs = [out, resources],
            env = {"PATH": "/usr/bin:/bin:" + CUDA_HOME + "/bin"},
            mnemonic = "NvccCompile",
        )
        outs.append(out)
    return [DefaultInfo(files = depset(outs))]

_nvcc_objects = rule(implementation = _nvcc_impl, attrs = {
    "archs": attr.string_list(default = ["80", "90a"]),
    "copts": attr.string_list(),
    "deps": attr.label_list(providers = [CcInfo]),
    "hdrs": attr.label_list(allow_files = [".h", ".cuh"]),
    "srcs": attr.label_list(allow_files = [".cu", ".cc"]),
})

def cuda_library(name, srcs, hdrs = [], deps = [], copts = [], **kwargs):
    _nvcc_objects(name = name + "_nvcc", srcs = srcs, hdrs = hdrs, deps = deps, copts = copts, tags = ["manual"])
    cc_library(
        name = name,
        srcs = [name + "_nvcc"],
        hdrs = hdrs,
        deps = deps + ["@local_cuda//:cudart"],
        tags = ["manual"],
        **kwargs
    )
