#!/usr/bin/env bash
# A rank that fails or hangs ends the whole job in time, with a message that says so: failing_jobs.sh PROGRAM
set -euo pipefail
program=$1
mpirun=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../launch" && pwd)/mpirun.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export OMP_NUM_THREADS=1

# ends CODE "TEXT IN STDERR" WAY: within 15 seconds, on 3 ranks
ends() {
  local expected=$1 text=$2 way=$3 code=0
  timeout --kill-after=5 15 "$mpirun" -np 3 "$program" "$way" >out 2>err || code=$?
  if [ "$code" != "$expected" ] || { [ -n "$text" ] && ! grep -qF -- "$text" err; }; then
    echo "$way ended with $code (expected $expected), without '$text' (or with it):" >&2
    cat out err >&2
    exit 1
  fi
}

for way in all_reduce all_to_all broadcast pending stream; do
  ends 1 "scone: error: [rank 2 of 3, $(hostname)]: the last rank has had enough" "$way"
done
ends 1 "in barrier of world (ranks 0, 1, 2), phase \"failing on purpose\"; parallel.timeout is 1.5 s" hang
# Both ranks that wait say so.
for rank in 0 1; do
  grep -q "scone: error: \[rank $rank of 3, .*\]: rank $rank has waited [0-9.]* s in barrier" err
done
# A rank that comes in time ends nothing.
ends 0 "" late
[ ! -s err ]
