"""terrace_proto_library: .proto files to one cc_library with Debian's protoc (and its gRPC plug-in)."""

load("@rules_cc//cc:defs.bzl", "cc_library")

ProtoSrcs = provider(fields = ["files"])

def _gen_impl(ctx):
    files = depset(ctx.files.srcs, transitive = [dep[ProtoSrcs].files for dep in ctx.attr.deps])
    hdrs, srcs = [], []
    for proto in ctx.files.srcs:
        for extension in [".pb", ".grpc.pb"] if ctx.attr.grpc else [".pb"]:
            stem = proto.basename[:-len(".proto")] + extension
            hdrs.append(ctx.actions.declare_file(stem + ".h", sibling = proto))
            srcs.append(ctx.actions.declare_file(stem + ".cc", sibling = proto))
    args = ctx.actions.args()
    args.add_all(["-I.", "--cpp_out=" + ctx.bin_dir.path])
    if ctx.attr.grpc:
        args.add("--plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin")
        args.add("--grpc_out=" + ctx.bin_dir.path)
    args.add_all(ctx.files.srcs)
    ctx.actions.run(
        executable = "/usr/bin/protoc",
        arguments = [args],
        inputs = files,
        outputs = hdrs + srcs,
        mnemonic = "TerraceProtoc",
    )
    return [
        DefaultInfo(files = depset(hdrs + srcs)),
        OutputGroupInfo(hdrs = depset(hdrs), srcs = depset(srcs)),
        ProtoSrcs(files = files),
    ]

_gen = rule(implementation = _gen_impl, attrs = {
    "deps": attr.label_list(providers = [ProtoSrcs]),
    "grpc": attr.bool(),
    "srcs": attr.label_list(allow_files = [".proto"]),
})

def terrace_proto_library(name, srcs, deps = [], grpc = False, visibility = None):
    """Makes `name` (the C++ library); `deps` are other terrace_proto_library targets."""
    _gen(name = name + "_gen", srcs = srcs, deps = [dep + "_gen" for dep in deps], grpc = grpc, visibility = visibility)
    native.filegroup(name = name + "_hdrs", srcs = [name + "_gen"], output_group = "hdrs")
    native.filegroup(name = name + "_srcs", srcs = [name + "_gen"], output_group = "srcs")
    runtime = "//bazel/system:grpc++" if grpc else "//bazel/system:protobuf"
    cc_library(
        name = name,
        srcs = [name + "_srcs"],
        hdrs = [name + "_hdrs"],
        copts = ["-w"],
        visibility = visibility,
        deps = deps + [runtime],
    )
