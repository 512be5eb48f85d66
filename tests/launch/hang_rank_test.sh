#!/usr/bin/env bash
# --hang-rank: a rank waits for a debugger, and the others for it: hang_rank_test.sh SCONE
set -euo pipefail
scone=$(realpath "$1")
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mpirun=$tests/../../launch/mpirun.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export OMP_NUM_THREADS=1

# ends CODE "TEXT IN STDERR" COMMAND ..
ends() {
  local expected=$1 text=$2 code=0
  shift 2
  timeout --kill-after=5 60 "$@" >out 2>err || code=$?
  if [ "$code" != "$expected" ] || ! grep -qF -- "$text" err; then
    echo "$* ended with $code (expected $expected), without '$text' (or with it):" >&2
    cat out err >&2
    exit 1
  fi
}

# Before or after the subcommand; what the command does afterwards is what it does without.
for rank in 0 2; do
  ends 2 "rank $rank waits for a debugger" python3 -B "$tests/hang_rank.py" "$scone" -- \
    "$mpirun" -np 3 "$scone" --hang-rank "$rank" inspect absent
  grep -q "scone: error: .*absent" err
done
ends 2 "rank 1 waits for a debugger" python3 -B "$tests/hang_rank.py" "$scone" -- \
  "$mpirun" -np 2 "$scone" inspect absent --hang-rank 1
ends 2 "rank 0 waits for a debugger" python3 -B "$tests/hang_rank.py" "$scone" -- "$scone" inspect absent --hang-rank 0

ends 2 "scone: error: --hang-rank 2: there is no such rank; expected 0 to 1" "$mpirun" -np 2 "$scone" --hang-rank 2 inspect absent
ends 2 "scone: error: --hang-rank -1: there is no such rank; expected 0 to 0" "$scone" --hang-rank -1 inspect absent
