#!/usr/bin/env bash
# Registers, shared memory, stack and spills of each kernel, as ptxas reports them, in a table:
#   tests/cuda_on_host/kernel_resources.sh [--spills] [architecture ..]      default: 80 90
# --spills: fails where a kernel spills, and lists only those. Needs nvcc and no GPU.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
only_spills=no architectures=()
for argument in "$@"; do
  case $argument in
    --spills) only_spills=yes ;;
    -h | --help) sed -n '2,4s/^# \{0,1\}//p' "$0" && exit 0 ;;
    [0-9]*) architectures+=("$argument") ;;
    *)
      echo "kernel_resources.sh: unknown argument $argument; expected --spills or architectures such as 80 90a" >&2
      exit 2
      ;;
  esac
done
[ ${#architectures[@]} = 0 ] && architectures=(80 90)
nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
if [ ! -x "$nvcc" ]; then
  echo "kernel_resources.sh: no nvcc in PATH or ${CUDA_HOME:-/usr/local/cuda}/bin; install the CUDA toolkit or set CUDA_HOME" >&2
  exit 2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() {  # source architecture
  local log=$work/$(basename "$1" .cu).$2
  if ! "$nvcc" -std=c++20 -O3 --expt-relaxed-constexpr -Xptxas -v -arch="sm_$2" -I"$repository" -cubin -o "$log.cubin" \
    "$1" >"$log.log" 2>&1; then
    echo "kernel_resources.sh: $1 does not compile for sm_$2:" >&2
    grep -m 5 -A 2 error "$log.log" >&2
    return 1
  fi
}
export -f compile
export nvcc work repository
find "$repository"/{model/ops,parallel}/cuda -name '*.cu' | sort |
  while read -r source; do for a in "${architectures[@]}"; do printf '%s %s\n' "$source" "$a"; done; done |
  xargs -P "$(nproc)" -n 2 bash -c 'compile "$@"' _

# One line a kernel: file, architecture, mangled name, registers, static shared memory, stack, spilled bytes.
for log in "$work"/*.log; do
  name=$(basename "$log" .log)
  awk -v file="${name%.*}" -v architecture="${name##*.}" '
    /Compiling entry function/ { split($0, quoted, "\047"); kernel = quoted[2]; shared = 0 }
    /bytes stack frame/ { stack = $1; spilled = $5 + $9 }
    /: Used [0-9]+ registers/ && kernel != "" {
      for (i = 2; i <= NF; ++i) {
        if ($i == "registers,") registers = $(i - 1)
        if ($i ~ /^smem/) shared = $(i - 2)
      }
      print file, architecture, kernel, registers, shared, stack, spilled
      kernel = ""
    }' "$log"
done | grep -v 'cub[0-9_]*' | c++filt | sed -E 's/scone::cuda::|\(anonymous namespace\)::|_GLOBAL__N__[A-Za-z0-9_]+:://g; s/ void / /; s/__nv_bfloat16/bf16/g' \
  >"$work/all"
awk -v only="$only_spills" '
  {
    spilled = $NF; stack = $(NF - 1); shared = $(NF - 2); registers = $(NF - 3)
    kernel = $3
    for (i = 4; i < NF - 3; ++i) kernel = kernel " " $i
    # Without the list of parameters.
    depth = 0
    for (i = length(kernel); i > 0; --i) {
      c = substr(kernel, i, 1)
      if (c == ")") ++depth
      if (c == "(" && --depth == 0) { kernel = substr(kernel, 1, i - 1); break }
    }
    ++kernels
    if (spilled > 0) ++spilling
    if (only == "no" || spilled > 0)
      printf "%-28s sm_%-4s %9s %7s %6s %7s  %s\n", $1, $2, registers, shared, stack, spilled, kernel
  }
  BEGIN { printf "%-28s %-7s %9s %7s %6s %7s  %s\n", "file", "arch", "registers", "shared", "stack", "spilled", "kernel" }
  END {
    printf "%d kernels, %d of them spill\n", kernels, spilling
    exit kernels == 0 || (only == "yes" && spilling > 0)
  }' "$work/all"
