#!/usr/bin/env bash
# Puts programs that were built here into a folder that runs on a bare machine with a GPU: see --help.
set -euo pipefail

LIMIT_MB=60

usage() {
  cat <<'END'
usage: tests/gpu/bundle.sh --suite FILE --bench FILE [options]

Makes a folder with bin/, lib/ (every shared library they need but glibc's, the driver's and the CUDA toolkit's), models/,
run_bundle.sh and torch_peer.py. Fails above 60 MB.

  --suite FILE     the test binary, //tests/gpu:suite
  --bench FILE     the benchmark, //tests/gpu:bench
  --plugin FILE    libterrace_cuda.so; goes beside the programs, where they look for it
  --program FILE   another program, such as terrace-worker or terrace; may be given again
  --model PATH     a file or folder for models/; may be given again. Default: the demo models and eval/golden.jsonl of
                   this repository
  --no-models      none
  --out FOLDER     default: dist; replaced if it is a bundle
  --archive FILE   the folder as a .tar.xz too: a third of its size
END
}

die() {
  echo "bundle: $1" >&2
  exit "${2:-1}"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
suite='' bench='' plugin='' out=dist archive='' with_models=1
programs=() models=()
while (($# > 0)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --no-models) with_models=0 && shift && continue ;;
  esac
  (($# > 1)) || die "$1 needs a value; see --help" 64
  case $1 in
    --suite) suite=$2 ;;
    --bench) bench=$2 ;;
    --plugin) plugin=$2 ;;
    --program) programs+=("$2") ;;
    --model) models+=("$2") ;;
    --out) out=$2 ;;
    --archive) archive=$2 ;;
    *) die "unknown argument \"$1\"; see --help" 64 ;;
  esac
  shift 2
done
[[ -n $suite && -n $bench ]] || die "--suite and --bench are needed; see --help" 64
if ((with_models)) && ((${#models[@]} == 0)); then
  for model in "$root"/models/terrace-demo-*; do
    if [[ -d $model ]]; then models+=("$model"); fi  # the .gguf files hold the same
  done
  models+=("$root/models/eval/golden.jsonl")
fi
for file in "$suite" "$bench" "${programs[@]}" ${plugin:+"$plugin"} "${models[@]}"; do
  [[ -e $file ]] || die "there is no $file" 66
done

if [[ -e $out ]]; then
  [[ -e $out/run_bundle.sh ]] || die "$out exists and is no bundle" 64
  rm -rf "$out"
fi
mkdir -p "$out/bin" "$out/lib/gcc" "$out/models"

# `cp` with what it makes writable: Bazel's outputs are not.
take() {  # file, to
  cp -L "$1" "$2"
  chmod u+w "$2"
  strip --strip-debug "$2"
}

take "$suite" "$out/bin/suite"
take "$bench" "$out/bin/bench"
for program in "${programs[@]}"; do take "$program" "$out/bin/$(basename "$program")"; done
if [[ -n $plugin ]]; then take "$plugin" "$out/bin/libterrace_cuda.so"; fi

# The machine's own: glibc's parts belong to its kernel and loader, the driver's to its GPU, and the toolkit's are large.
is_of_target() {
  case $1 in
    linux-vdso.so.* | ld-linux-* | libc.so.* | libm.so.* | libmvec.so.* | libpthread.so.* | libdl.so.* | librt.so.* | \
      libresolv.so.* | libutil.so.* | libanl.so.* | libnss_*) return 0 ;;
    libcuda.so.* | libnvidia-* | libcublas.so.* | libcublasLt.so.* | libcudart.so.* | libnccl.so.* | libnvrtc* | \
      libnvJitLink.so.*) return 0 ;;
  esac
  return 1
}

for file in "$out"/bin/*; do
  while read -r name arrow path _; do
    if is_of_target "$(basename "$name")"; then continue; fi
    [[ $arrow == '=>' ]] || die "$file: cannot tell where $name is"
    [[ $path == /* ]] || die "$file: $name is not found here"
    case $name in
      libstdc++.so.* | libgcc_s.so.*) to=$out/lib/gcc/$name ;;
      *) to=$out/lib/$name ;;
    esac
    [[ -e $to ]] || take "$path" "$to"
  done < <(ldd "$file")
done

for model in "${models[@]}"; do
  to=$out/models
  case $model in */eval/*) to=$out/models/eval && mkdir -p "$to" ;; esac
  cp -rL "$model" "$to/"
done
chmod -R u+w "$out/models"
git -C "$root" describe --always --dirty --abbrev=12 >"$out/COMMIT" 2>/dev/null || echo unknown >"$out/COMMIT"
cp "$root/tests/gpu/run_bundle.sh" "$root/tests/gpu/torch_peer.py" "$out/"

bytes=$(du -sb "$out" | cut -f1)
echo "$out: $((bytes / 1000000)) MB (bin $(du -sb "$out/bin" | cut -f1), lib $(du -sb "$out/lib" | cut -f1)," \
  "models $(du -sb "$out/models" | cut -f1) bytes), $(find "$out/lib" -type f | wc -l) libraries"
if [[ -n $archive ]]; then
  tar -C "$(dirname "$out")" -cf - "$(basename "$out")" | xz -T0 -6 >"$archive"
  echo "$archive: $(($(stat -c %s "$archive") / 1000000)) MB; python3 -m tarfile -e $(basename "$archive") unpacks it"
fi
((bytes <= LIMIT_MB * 1000000)) || die "$((bytes / 1000000)) MB, limit $LIMIT_MB"
