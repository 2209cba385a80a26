#!/usr/bin/env bash
# Runs what tests/gpu/bundle.sh put beside this file, on a machine with a GPU: see --help.
set -euo pipefail

usage() {
  cat <<'END'
usage: run_bundle.sh VERB [arguments]

  suite [gtest flags]              the tests of the CUDA backend
  sanitize [TOOL,..] [gtest flags] the tests under compute-sanitizer's tools, memcheck,racecheck by default; without a
                                   --gtest_filter those of small shapes
  bench [flags]                    the benchmark; --help lists its flags
  torch [flags]                    the same figures of PyTorch
  exec PROGRAM [arguments]         another program of bin/

Libraries come from lib/ beside this file and, of CUDA, from CUDA_HOME, /usr/local/cuda or Python's nvidia packages.
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Names the folder that holds a library of CUDA's; nothing when there is none: the loader then says so.
find_cuda() {  # name
  local folder
  for folder in ${CUDA_HOME:+"$CUDA_HOME/lib64"} /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib; do
    if [[ -e $folder/$1 ]]; then echo "$folder" && return; fi
  done
  python3 - "$1" <<'END' 2>/dev/null || true
import glob, os, sys
found = [f for p in sys.path for f in glob.glob(os.path.join(p, "nvidia", "*", "lib", sys.argv[1]))]
print(os.path.dirname(found[0]) if found else "")
END
}

# The machine's C++ library when it is at least as new as ours (newer ones run older programs), else ours.
find_gcc() {
  local system
  system=$(ldconfig -p 2>/dev/null | awk '/libstdc\+\+\.so\.6 .*x86-64/ {print $NF; exit}')
  if [[ -n $system ]] && grep -q GLIBCXX_3.4.30 "$system"; then return; fi
  echo "$here/lib/gcc"
}

libraries() {
  local path=$here/lib folder
  for folder in "$(find_gcc)" "$(find_cuda libcublasLt.so.13)" "$(find_cuda libnccl.so.2)" "${LD_LIBRARY_PATH:-}"; do
    if [[ -n $folder ]]; then path+=:$folder; fi
  done
  echo "$path"
}

find_sanitizer() {
  local file
  if command -v compute-sanitizer; then return; fi
  for file in "${CUDA_HOME:-/usr/local/cuda}"/bin/compute-sanitizer \
    "${CUDA_HOME:-/usr/local/cuda}"/compute-sanitizer/compute-sanitizer \
    /opt/nvidia/*/compute-sanitizer /opt/nvidia/*/*/compute-sanitizer; do
    if [[ -x $file ]]; then echo "$file" && return; fi
  done
}

sanitize() {
  local tools=memcheck,racecheck tool sanitizer status=0 filter
  if (($# > 0)) && [[ $1 != -* ]]; then tools=$1 && shift; fi
  sanitizer=$(find_sanitizer)
  if [[ -z $sanitizer ]]; then echo "run_bundle: there is no compute-sanitizer" >&2 && exit 69; fi
  for tool in ${tools//,/ }; do
    # Every access is checked, up to a hundred times slower: kernels alone, and for memcheck models and engines of small
    # shapes too. Left out are large matrices and long prompts, which are the same kernels for longer, the larger two
    # demo models as they are, and what libraries do: products of cuBLASLt (Cublas*), NCCL (Nccl*). A filter that is
    # given comes last, and the last one counts.
    filter='*Gpu*'
    if [[ $tool == memcheck ]]; then
      filter+=':*nano*:Graphs.*:KvBlocks.*:Invariant.*:RandomModels.*:RewrittenModels.*:CudaEngine.*:RankGroup.*'
    fi
    filter+='-*LargeMatrices*:*Long*:*Speed*'
    echo "== $tool"
    LD_LIBRARY_PATH=$(libraries) "$sanitizer" --tool "$tool" --error-exitcode 99 --report-api-errors no \
      --print-limit 20 "$here/bin/suite" --gtest_brief=1 --gtest_filter="$filter" "$@" || status=$?
  done
  return "$status"
}

verb=${1:---help}
if (($# > 0)); then shift; fi
case $verb in
  --help | -h) usage ;;
  suite) cd "$here" && LD_LIBRARY_PATH=$(libraries) exec bin/suite "$@" ;;  # its models are in ./models
  sanitize) cd "$here" && sanitize "$@" ;;
  bench) LD_LIBRARY_PATH=$(libraries) exec "$here/bin/bench" --commit "$(cat "$here/COMMIT")" "$@" ;;
  exec) LD_LIBRARY_PATH=$(libraries) exec "$here/bin/${1:?exec needs a program}" "${@:2}" ;;
  torch) exec python3 "$here/torch_peer.py" "$@" ;;
  *) echo "run_bundle: unknown verb \"$verb\"; see run_bundle.sh --help" >&2 && exit 64 ;;
esac
