#!/usr/bin/env bash
# Fuzzes the scheduler with clang's libFuzzer and AddressSanitizer. clang 14 does not compile all of Terrace, so what the
# target covers is compiled here, without Bazel.
set -euo pipefail

usage() {
  cat <<'END'
usage: tests/fuzz/libfuzzer.sh FOLDER [LIBFUZZER-OPTION...]

Builds the fuzz target of the scheduler with clang++ (Debian's package clang) into FOLDER and runs it from the checked-in
corpus on. New inputs go to FOLDER/found, an input that aborts to FOLDER/crash-...; FOLDER/scheduler_fuzzer FILE runs it
again. An option is libFuzzer's, such as -max_total_time=600.
END
}

if (($# == 0)) || [[ $1 == --help || $1 == -h ]]; then usage && exit "$(($# == 0 ? 64 : 0))"; fi
if ! command -v clang++ >/dev/null; then echo "libfuzzer.sh: no clang++ here; apt-get install clang" >&2 && exit 69; fi
mkdir -p "$1/found"
folder=$(cd "$1" && pwd)
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
clang++ -std=c++20 -I. -O1 -g -fsanitize=fuzzer,address -o "$folder/scheduler_fuzzer" \
  tests/fuzz/scheduler_fuzz.cc worker/engine/{checked_scheduler,scheduler}.cc worker/kv/block_manager.cc \
  worker/sample/{sampling_params,token_counts}.cc text/block_key.cc base/{clock,hash,rng,status}.cc \
  -lxxhash -labsl_status -labsl_statusor -labsl_strings -labsl_cord -lpthread
exec "$folder/scheduler_fuzzer" -max_len=800 -artifact_prefix="$folder/" "$@" "$folder/found" tests/fuzz/corpus/scheduler
