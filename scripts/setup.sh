#!/usr/bin/env bash
# Set-up shared by ./quickstart and ./run_tests, which source it: Debian packages, build cache, build, links in bin/.
# Run by itself it installs the packages (with --with-distill also those of terrace distill). Nothing goes over the network when
# nothing is missing.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE_HOME=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/terrace
CACHE_LIMIT_MIB=10240
KINDS=(build)  # of packages
BINARIES=(tools/cli/terrace router/server/terrace-router worker/server/terrace-worker)
BAZEL=/usr/bin/bazel
LOG=$(mktemp "${TMPDIR:-/tmp}/terrace-XXXXXX.log")
trap 'rm -f "$LOG"' EXIT
cd "$ROOT"

die() {
  if [[ -t 1 ]]; then printf '\r\033[K'; fi
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# Each step prints one line: its name, what came out, how long it took.
step() {
  STEP=$1
  STEP_START=$EPOCHREALTIME
  progress "..."
}

progress() {  # shown on a terminal only, and overwritten
  if [[ -t 1 ]]; then printf '\r\033[K%-20s %s' "$STEP" "${1:0:$((${COLUMNS:-80} - 22))}"; fi
}

step_end() {
  local tenths=$(((${EPOCHREALTIME//[.,]/} - ${STEP_START//[.,]/}) / 100000))
  if [[ -t 1 ]]; then printf '\r\033[K'; fi
  printf '%-20s %-46s %6d.%d s\n' "$STEP" "$1" $((tenths / 10)) $((tenths % 10))
}

packages() {  # of the kinds named, from packages.txt
  local kind
  for kind in "$@"; do awk -v kind="$kind" '$1 == kind {print $2}' scripts/packages.txt; done
}

missing_packages() {
  local installed package
  installed=" $(dpkg-query -W -f='${Package}:${db:Status-Status} ' "$@" 2>/dev/null || true)"
  for package in "$@"; do
    if [[ $installed != *" $package:installed "* ]]; then echo "$package"; fi
  done
}

check_debian() {
  local name version
  name=$(. /etc/os-release 2>/dev/null && echo "${ID:-}") || true
  version=$(. /etc/os-release 2>/dev/null && echo "${VERSION_ID:-}") || true
  if [[ $name != debian || $version != 12 ]]; then
    die "needs Debian 12, whose packages it is built with; this is ${name:-unknown} ${version:-}"
  fi
}

as_root() {
  if ((EUID == 0)); then
    "$@"
  elif [[ -t 0 ]]; then
    sudo "$@"
  else
    sudo -n "$@"
  fi
}

apt_get() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 "$@" >>"$LOG" 2>&1 </dev/null
}

setup_packages() {  # kinds of packages...
  local wanted missing
  step packages
  check_debian
  mapfile -t wanted < <(packages "$@")
  mapfile -t missing < <(missing_packages "${wanted[@]}")
  if ((${#missing[@]} == 0)); then
    step_end "${#wanted[@]} present"
    return
  fi
  if ((EUID != 0)) && ! command -v sudo >/dev/null; then
    die "missing Debian packages, install them as root: apt-get install ${missing[*]}"
  fi
  progress "updating the package lists"
  : >"$LOG"
  apt_get update || { tail -n 5 "$LOG" >&2; die "apt-get update failed, and these packages are missing: ${missing[*]}"; }
  progress "installing ${missing[*]}"
  apt_get install --no-install-recommends "${missing[@]}" ||
    { tail -n 15 "$LOG" >&2; die "apt-get could not install: ${missing[*]}"; }
  "$BAZEL" shutdown >/dev/null 2>&1 || true  # it looks for optional libraries when it starts
  step_end "installed: ${#missing[@]} of ${#wanted[@]}"
}

# A program whose package would start a daemon: Debian's, installed or unpacked from its package; on PATH afterwards.
setup_program() {  # its path in the package, package
  local program=${1##*/} path=$1 package=$2 folder
  step "$program"
  if [[ :$PATH: != *:$CACHE_HOME/tools:* ]]; then export PATH=$PATH:/usr/sbin:$CACHE_HOME/tools; fi
  if command -v "$program" >/dev/null; then
    step_end present
    return
  fi
  progress "fetching"
  folder=$(mktemp -d)
  (cd "$folder" && { apt-get -q download "$package" || { apt_get update && apt-get -q download "$package"; }; } && dpkg-deb -x "$package"_*.deb .) >"$LOG" 2>&1 ||
    { tail -n 5 "$LOG" >&2; die "could not fetch the Debian package $package ($program)"; }
  mkdir -p "$CACHE_HOME/tools"
  mv "$folder/$path" "$CACHE_HOME/tools/$program"
  rm -rf "$folder"
  step_end "unpacked"
}

# The compilers and libraries are no inputs to Bazel: its results are kept apart by their versions. Not by that of
# libtorch, which bazel/torch_configure.bzl sees to, and of what comes with it: nothing else would have to be built anew.
setup_cache() {
  local toolchain other
  toolchain=$({
    dpkg-query -W -f='${db:Status-Status} ${Package} ${Version}\n' \
      'lib*-dev' 'g++*' 'gcc*' 'cpp*' 'binutils*' 'protobuf*' 'bazel*' 2>/dev/null | grep '^installed ' |
      grep -vE ' lib(torch|gflags|google-glog|unwind|lzma|expat1|python3[.0-9]*)-dev ' || true
    "${TERRACE_CUDA_HOME:-/usr/local/cuda}/bin/nvcc" --version 2>/dev/null || true
  } | sha256sum | cut -c1-12)
  if [[ -f .build-stamp && $(<.build-stamp) != "$toolchain" ]]; then
    "$BAZEL" clean >/dev/null 2>&1 || true
  fi
  echo "$toolchain" >.build-stamp
  if [[ -n ${TERRACE_BAZEL_CACHE:-} ]]; then
    BAZEL_CACHE=$TERRACE_BAZEL_CACHE
    return
  fi
  BAZEL_CACHE=$CACHE_HOME/bazel-$toolchain
  for other in "$CACHE_HOME"/bazel-*; do
    if [[ -d $other && $other != "$BAZEL_CACHE" ]]; then rm -rf "$other"; fi
  done
  mkdir -p "$BAZEL_CACHE"
  trim_cache
}

# Past the limit, what was not read for the longest time goes, until a quarter is free. To Bazel it then was never there.
trim_cache() {
  local mib
  mib=$(du -sm "$BAZEL_CACHE" | cut -f1)
  if ((mib <= CACHE_LIMIT_MIB)); then return; fi
  find "$BAZEL_CACHE" -type f -printf '%A@ %s %p\n' | sort -n |
    awk -v excess=$(((mib - CACHE_LIMIT_MIB * 3 / 4) << 20)) 'freed < excess {freed += $2; sub(/^[^ ]+ [^ ]+ /, ""); print}' |
    xargs -d '\n' rm -f
}

# Bazel with the shared cache, quiet: its whole output is in $LOG, a terminal shows how far it is.
bazel_quietly() {
  local command=$1 line status
  shift
  set +e
  "$BAZEL" "$command" --disk_cache="$BAZEL_CACHE" --curses=no --color=no --show_progress_rate_limit=0.5 \
    --noverbose_failures "$@" 2>&1 </dev/null | tee "$LOG" | while IFS= read -r line; do
    if [[ $line == \[*/*\]* ]]; then progress "$line"; fi
  done
  status=${PIPESTATUS[0]}
  set -e
  return "$status"
}

bazel_errors() {  # what of $LOG a person needs when it failed
  local noise='^(\[[0-9,]+ / [0-9,]+\]|INFO:|Loading:|Analyzing:|Starting local Bazel|//|Executed |There were tests'
  noise+='|Use --sandbox_debug|FAILED: Build did NOT|  /.*/test\.log$)|^$'
  grep -vE "$noise" "$LOG" | sed 's/: error executing command .*//' >&2 || true
}

# bin/NAME -> Bazel's outputs, by a path that later builds in other configurations leave alone.
build_binaries() {
  local labels=() path outputs
  step build
  for path in "${BINARIES[@]}"; do labels+=("//${path%/*}:${path##*/}"); done
  if ! bazel_quietly build --config=release "${labels[@]}"; then
    step_end FAILED
    bazel_errors
    die "the build failed"
  fi
  outputs=$("$BAZEL" info --config=release bazel-bin 2>/dev/null)
  mkdir -p bin
  for path in "${BINARIES[@]}"; do ln -sfn "$outputs/$path" "bin/${path##*/}"; done
  step_end "bin/$(basename -a "${BINARIES[@]}" | paste -sd, | sed 's/,/, /g')"
}

# `terrace distill` is a program of its own, with packages of its own.
with_distill() {
  KINDS+=(distill)
  BINARIES+=(tools/cli/terrace-distill)
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  if [[ ${1:-} == --with-distill ]]; then with_distill; fi
  setup_packages "${KINDS[@]}" test
fi
