#!/usr/bin/env bash
# --hang-rank: a rank waits for a debugger, and the others for it: hang_rank_test.sh SCONE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

# Before or after the subcommand; what the command does afterwards is what it does without.
for rank in 0 2; do
  ends 2 "rank $rank waits for a debugger" python3 -B "$tests/hang_rank.py" "$scone" -- \
    "$mpirun" -np 3 "$scone" --hang-rank "$rank" inspect absent
  grep -q "scone: error: .*absent" out
done
ends 2 "rank 1 waits for a debugger" python3 -B "$tests/hang_rank.py" "$scone" -- \
  "$mpirun" -np 2 "$scone" inspect absent --hang-rank 1
ends 2 "rank 0 waits for a debugger" python3 -B "$tests/hang_rank.py" "$scone" -- "$scone" inspect absent --hang-rank 0

ends 2 "scone: error: --hang-rank 2: there is no such rank; expected 0 to 1" "$mpirun" -np 2 "$scone" --hang-rank 2 inspect absent
ends 2 "scone: error: --hang-rank -1: there is no such rank; expected 0 to 0" "$scone" --hang-rank -1 inspect absent
