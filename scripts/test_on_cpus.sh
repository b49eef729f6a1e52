#!/usr/bin/env bash
# Run the tests as on other processors: scripts/test_on_cpus.sh [--list] [--only NAME]... [--slow] [TEST]...
# Each configuration limits the vector instructions that oneDNN, ATen and OpenBLAS use, and sets the number of threads:
#   native-1, native-2   this processor
#   native-busy          this processor, two threads, while two other processes keep the cores busy
#   avx2-1, avx2-2       Intel Haswell (2013): AVX2, no AVX-512, no AMX
#   sse4-1, sse4-2       Intel Nehalem (2008): SSE4, no AVX
# --only NAME runs the configuration NAME, or all configurations that begin with NAME (--only avx2), and may be repeated.
# --list prints the names. --slow includes the slow tests. TEST is a file or a test id; the default is the whole suite.
# The script prints a table (passed, failed, seconds) and the folder with the output of each run. It exits with code 1 if a
# test failed or a run did not finish. It takes as long as seven runs of the suite.
set -euo pipefail
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then sed -n '2,11s/^# //p' "$0"; exit 0; fi
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$home/.venv/bin/python" ]; then python=$home/.venv/bin/python; else python=python3; fi

configurations=(native-1 native-2 native-busy avx2-1 avx2-2 sse4-1 sse4-2)
usage_error() { echo "test_on_cpus.sh: $1: see --help" >&2; exit 2; }

chosen=() tests=() markers=()
while [ $# -gt 0 ]; do
  case $1 in
    --list) printf '%s\n' "${configurations[@]}"; exit 0 ;;
    --slow) markers=(-m "") ;;
    --only)
      [ $# -ge 2 ] || usage_error "--only needs a name"
      shift
      matches=0
      for name in "${configurations[@]}"; do
        case $name in "$1" | "$1"-*) chosen+=("$name"); matches=1 ;; esac
      done
      [ $matches = 1 ] || usage_error "no configuration is called $1 (--list prints them)"
      ;;
    -*) usage_error "unknown option $1" ;;
    *)
      # a test may be named from the current directory or from the repository
      file=${1%%::*}
      if [ -e "$file" ]; then tests+=("$(cd "$(dirname "$file")" && pwd)/$(basename "$file")${1#"$file"}")
      elif [ -e "$home/$file" ]; then tests+=("$home/$1")
      else usage_error "the test file $file does not exist"
      fi
      ;;
  esac
  shift
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${configurations[@]}")

logs=$(mktemp -d "${TMPDIR:-/tmp}/test_on_cpus.XXXXXX")
busy=()
stop_busy() {
  if [ ${#busy[@]} -gt 0 ]; then { kill "${busy[@]}" && wait "${busy[@]}"; } 2>/dev/null || true; fi
  busy=()
}
trap stop_busy EXIT
trap 'exit 130' INT TERM

failed=0
cd "$home"
printf '%-12s  %7s  %7s  %8s\n' configuration passed failed seconds
for name in "${chosen[@]}"; do
  # remove limits that the user's shell may have set: native configurations have no limit
  unset ONEDNN_MAX_CPU_ISA ATEN_CPU_CAPABILITY OPENBLAS_CORETYPE
  case $name in
    avx2-*) export ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 OPENBLAS_CORETYPE=Haswell ;;
    sse4-*) export ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default OPENBLAS_CORETYPE=Nehalem ;;
  esac
  case $name in *-1) threads=1 ;; *) threads=2 ;; esac
  if [ "$name" = native-busy ]; then
    for _ in 1 2; do while :; do :; done & busy+=($!); done
  fi
  code=0 start=$SECONDS
  OMP_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH} "$python" -m pytest \
    -p no:cacheprovider --color=no ${markers[@]+"${markers[@]}"} ${tests[@]+"${tests[@]}"} >"$logs/$name.log" 2>&1 || code=$?
  took=$((SECONDS - start))
  stop_busy
  # the last line of pytest: "2 failed, 951 passed, 12 deselected, 1 error in 300.12s"
  count() { tail -n 1 "$logs/$name.log" | grep -oE "[0-9]+ $1" | grep -oE '[0-9]+' || echo 0; }
  passed=$(count passed)
  wrong=$(($(count failed) + $(count error)))
  # pytest exits with 0 or 1; any other code means that the run did not finish
  if [ $code -gt 1 ]; then wrong="exit $code"; tail -n 5 "$logs/$name.log" >&2; fi
  [ $code -eq 0 ] || failed=1
  printf '%-12s  %7s  %7s  %8s\n' "$name" "$passed" "$wrong" "$took"
done
echo "output of each run: $logs"
if [ $failed = 1 ]; then
  grep -hE '^(FAILED|ERROR) ' "$logs"/*.log | sort | uniq -c >&2 || true
  exit 1
fi
