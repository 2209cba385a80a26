"""headers_digest: a header with one constant, a digest of the text of headers: of `hdrs` and of all that `deps` have, this
workspace's only. Two programs that were built of the same ones have the same constant."""

load("@rules_cc//cc:defs.bzl", "CcInfo")

def _headers_digest_impl(ctx):
    headers = depset(ctx.files.hdrs, transitive = [dep[CcInfo].compilation_context.headers for dep in ctx.attr.deps])
    own = {header.short_path: header for header in headers.to_list() if not header.owner.workspace_name}
    files = [own[path] for path in sorted(own)]
    args = ctx.actions.args()
    args.use_param_file("%s", use_always = True)
    args.set_param_file_format("multiline")
    args.add_all(files)
    ctx.actions.run_shell(
        command = """set -o pipefail
digest=$(xargs -a "$1" cat | sha256sum | cut -c1-12)
printf '#pragma once\\nnamespace terrace {\\ninline constexpr char %s[] = "%s";\\n}\\n' "$2" "$digest" >"$3" """,
        arguments = [args, ctx.attr.constant, ctx.outputs.out.path],
        inputs = files,
        outputs = [ctx.outputs.out],
        mnemonic = "HeadersDigest",
    )

headers_digest = rule(implementation = _headers_digest_impl, attrs = {
    "constant": attr.string(mandatory = True),
    "deps": attr.label_list(providers = [CcInfo]),
    "hdrs": attr.label_list(allow_files = [".h"]),
    "out": attr.output(mandatory = True),
})
