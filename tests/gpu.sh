#!/usr/bin/env bash
# Builds scone with CUDA and runs all that needs a GPU, in one call: the tests labelled gpu, compute-sanitizer on the small
# ones, and the benchmarks.
#   tests/gpu.sh OUTDIR [--packages DIR|ARCHIVE] [--build DIR] [--seconds N] [--quick]
# OUTDIR      gets log.txt (everything), table.txt (the last thing printed), and one log and result a step
# --packages  libraries from a folder that tests/gpu_packages.sh made, or from its archive, where nothing is installed
# --build     the build folder (default: build-gpu)
# --seconds   when to stop (default 570); steps that do not fit fail
# --quick     no benchmarks
# Needs: an NVIDIA GPU with a driver no older than the CUDA toolkit, the toolkit (nvcc in PATH, CUDA_HOME or
# /usr/local/cuda; with cuBLASLt; NCCL and compute-sanitizer where they are), g++ with C++20, CMake 3.22, ninja or make.
# Open MPI is used where it is. Exit code 0 only if every step was run and passed, but for those of what is absent, which is said.
set -uo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

out= packages= build=$repository/build-gpu seconds=570 quick=0
value() { [ $# -ge 2 ] || { echo "gpu.sh: $1 needs a value" >&2 && exit 2; }; }
while [ $# -gt 0 ]; do
  case $1 in
    --packages) value "$@" && packages=$(realpath "$2") && shift ;;
    --build) value "$@" && build=$(realpath -m "$2") && shift ;;
    --seconds) value "$@" && seconds=$2 && shift ;;
    --quick) quick=1 ;;
    -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0" && exit 0 ;;
    -*) echo "gpu.sh: unknown option $1" >&2 && exit 2 ;;
    *) out=$(realpath -m "$1") ;;
  esac
  shift
done
[ -n "$out" ] || { echo "gpu.sh: give the folder for the logs" >&2 && exit 2; }
mkdir -p "$out" || exit 2
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
log=$out/log.txt
: >"$log"

rows=() failed=0 absent=
row() { rows+=("$(printf '%-34s %-8s %7s s  %s' "$1" "$2" "$3" "$4")"); }

# step NAME LIMIT COMMAND..: runs it within LIMIT seconds and the time that is left; its output goes to NAME.log and the
# whole log. $detail of the row is what detail_of prints of NAME.log.
step() {
  local name=$1 limit=$2 left=$((seconds - SECONDS)) begin=$SECONDS code
  shift 2
  if [ "$left" -lt 5 ]; then
    row "$name" "NOT RUN" 0 "out of time"
    failed=1
    return 1
  fi
  [ "$limit" -lt "$left" ] || limit=$left
  echo "== $name: $*" | tee -a "$log"
  timeout -k 10 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  cat "$out/$name.log" >>"$log"
  if [ $code = 0 ]; then
    row "$name" passed $((SECONDS - begin)) "$(detail_of "$name")"
  else
    failed=1
    tail -n 25 "$out/$name.log"
    [ $code = 124 ] || [ $code = 137 ] && row "$name" "TIMEOUT" $((SECONDS - begin)) "after $limit s" ||
      row "$name" FAILED $((SECONDS - begin)) "exit code $code: $(detail_of "$name")"
  fi
  return $code
}

detail_of() {
  case $1 in
    tests) grep -E 'tests passed|tests failed' "$out/$1.log" | tail -n 1 ;;
    memcheck-* | racecheck-*) grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/$1.log" | tail -n 1 | sed 's/=* *//' ;;
    *) grep -v '^ *$' "$out/$1.log" | tail -n 1 | cut -c 1-140 ;;
  esac
}

finish() {
  {
    echo
    echo "$(date -u +'%Y-%m-%d %H:%M') UTC, commit $(git -C "$repository" rev-parse --short HEAD 2>/dev/null || echo unknown)"
    echo "${device:-no device}"
    printf '%s\n' "${rows[@]}"
    [ "$failed" = 0 ] && echo "gpu.sh: all passed in $SECONDS s$absent" || echo "gpu.sh: FAILED, $SECONDS s; logs: $out"
  } | tee "$out/table.txt" | tee -a "$log"
  exit "$failed"
}

fail() { # MESSAGE
  echo "gpu.sh: $1" >&2
  rows+=("$1")
  failed=1
  finish
}

# The device, before anything takes time.
command -v nvidia-smi >/dev/null || fail "no NVIDIA driver here (no nvidia-smi): these tests need a GPU"
device=$(nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version,clocks.max.sm --format=csv,noheader 2>&1 | tee -a "$log") ||
  fail "no CUDA device: nvidia-smi says: $device"
capability=$(head -n 1 <<<"$device" | awk -F', *' '{print $2}' | tr -d .)
[[ $capability =~ ^[0-9]+$ ]] || fail "no CUDA device: nvidia-smi says: $device"
command -v nvcc >/dev/null || fail "no nvcc in PATH, CUDA_HOME or /usr/local/cuda: install the CUDA toolkit"
nvidia-smi >>"$log" 2>&1
nvcc --version >>"$log" 2>&1

if [ -n "$packages" ] && [ ! -d "$packages" ]; then
  mkdir -p "$build/packages"
  step unpack 60 tar -x -C "$build/packages" -f "$packages" || finish
  packages=$build/packages
fi
configure=(cmake -S "$repository" -B "$build" -DCMAKE_BUILD_TYPE=Release -DSCONE_CUDA=ON -DSCONE_MPI=AUTO -DSCONE_TESTS=ON
  -DSCONE_WARNINGS_AS_ERRORS=OFF -DCMAKE_CUDA_ARCHITECTURES="$capability" -DSCONE_PACKAGES="$packages")
command -v ninja >/dev/null && configure+=(-G Ninja)
step configure 120 "${configure[@]}" || finish
step build 420 cmake --build "$build" --target gpu_programs --parallel "$(nproc)" || finish

# Tests. Without a device they would be skipped; here that is an error.
export SCONE_REQUIRE_GPU=1
step tests 300 ctest --test-dir "$build" -L '^gpu$' --no-tests=error --output-on-failure --parallel 4

# compute-sanitizer on tests of small shapes: the operation registry's, and suites called Small*.
small='*CudaOpTest*:Small*'
sanitized=0
if command -v compute-sanitizer >/dev/null; then
  for program in "$build"/tests/test_*_gpu; do
    name=$(basename "$program")
    listed=$("$program" --gtest_list_tests --gtest_filter="$small" 2>>"$log") || fail "$program --gtest_list_tests: exit code $?"
    [ -n "$listed" ] || continue
    sanitized=$((sanitized + 1))
    for tool in memcheck racecheck; do
      step "$tool-${name#test_}" 90 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
        "$program" --gtest_filter="$small"
    done
  done
  [ "$sanitized" -gt 0 ] || fail "no test is called $small: nothing for compute-sanitizer"
else
  rows+=("compute-sanitizer: absent, not part of this toolkit")
  absent=", without compute-sanitizer"
fi

# Benchmarks: NAME, seconds at most, and the command, whose last line goes into the table. PyTorch, where it is, takes the
# same shapes and batches.
if [ "$quick" = 0 ]; then
  scone=$build/scone peer="$repository/tests/peers/torch_step.py"
  gpt2() { # SHAPE MICROBATCH
    step "bench-$1" 90 "$scone" bench step --device cuda --dtype bf16 --shapes "$1" --batch-tokens 64Ki --microbatch-tokens "$2Ki"
    if python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>>"$log"; then
      step "torch-$1" 150 python3 "$peer" --shapes "$1" --batch-tokens 65536 --microbatch-tokens $(($2 * 1024))
    else
      rows+=("torch-$1: no PyTorch with CUDA here")
    fi
  }
  gpt2 gpt2-124m 32
  gpt2 gpt2-1.5b 8
  step bench-scone 90 "$scone" bench step --device cuda --dtype bf16 --shapes main-128m,scone-128m --batch-tokens 256Ki --microbatch-tokens 32Ki
fi
finish
