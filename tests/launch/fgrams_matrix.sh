#!/usr/bin/env bash
# The f-gram vocabulary must not depend on ranks, memory or threads: the whole matrix on one corpus, byte for byte.
#   tests/launch/fgrams_matrix.sh SCONE SHARDS [MEMORY..]      SHARDS: a folder of token shards; default memory: 64M 1G
# Ranks 1, 2 and 4, threads 1 and 2. Prints a line a run; exit code 1 at the first that differs.
set -euo pipefail
scone=$(realpath "${1:?fgrams_matrix.sh: give the path of scone}")
shards=$(realpath "${2:?fgrams_matrix.sh: give a folder of token shards}")
shift 2
memories=("$@")
[ ${#memories[@]} -gt 0 ] || memories=(64M 1G)
size=${SCONE_MATRIX_SIZE:-1M}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for ranks in 1 2 4; do
  for memory in "${memories[@]}"; do
    for threads in 1 2; do
      begin=$EPOCHREALTIME
      OMP_WAIT_POLICY=passive OMP_NUM_THREADS=$threads mpirun --allow-run-as-root --oversubscribe --bind-to none -np "$ranks" \
        "$scone" fgrams --data "$shards" --output found.h5 --size "$size" --memory "$memory" 2>log || { cat log; exit 1; }
      [ -e first.h5 ] || cp found.h5 first.h5
      cmp first.h5 found.h5
      rm found.h5
      left=$(find . -name '*.spill*')
      [ -z "$left" ] || { echo "left behind: $left"; exit 1; }
      spilled=$(grep -o '[0-9.]* MB spilled)' log | awk '{ sum += $1 } END { print sum }')
      echo "ranks $ranks, memory $memory, threads $threads: same bytes, $spilled MB spilled," \
        "$(echo "$begin $EPOCHREALTIME" | awk '{ printf "%.1f", $2 - $1 }') s"
    done
  done
done
head -n 1 log
