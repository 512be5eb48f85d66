#!/usr/bin/env bash
# Bakes on 1, 2 and 4 ranks that are killed at random and go on, again and again: the bytes must be those of one that was
# left alone.
#   tests/launch/bake_kill_test.sh SCONE [KILLS [SEED]]        8 kills where KILLS is not given
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
kills=${2:-8}
RANDOM=${3:-1}
export OMP_WAIT_POLICY=passive
python3 - >text.jsonl <<'PYTHON'
import json, random
random.seed(4)
words = ["".join(random.choices("abcdefghij", k=random.randint(2, 6))) for _ in range(300)]
for _ in range(400):
    print(json.dumps({"text": " ".join(random.choices(words, weights=[1 / (i + 1) for i in range(300)], k=300))}))
PYTHON
"$scone" tokenize --input text.jsonl --output data --train-tokenizer 400 --validation-fraction 0.1 2>/dev/null >&2
"$scone" fgrams --data data/train --output fgrams.h5 --size 20K --min-count 2 2>/dev/null >&2
cat >run.yaml <<'YAML'
run: {folder: run}
data: {train: data/train}
fgrams: {vocabulary: fgrams.h5}
model:
  main: {width: 64, layers: 1, heads: 4, ffw: 128, context: 32}
  fgram: {layers: 16}
trainer: {steps: 2, batch_tokens: 512, microbatch_tokens: 512, sequence_length: 32}
YAML
"$scone" train run.yaml 2>/dev/null >&2
bake() { "$mpirun" -np "$1" "$scone" bake run --out "$2" --block-nodes 64 --file-size 1M "${@:3}"; }
seconds() { echo "$1 $2" | awk '{ print $2 - $1 }'; }

begin=$EPOCHREALTIME
bake 1 whole 2>/dev/null >&2
all=$(seconds "$begin" "$EPOCHREALTIME")
left=$kills runs=0 kept=0
while [ "$left" -gt 0 ]; do
  rm -rf killed killed.tmp
  while true; do
    ranks=$((1 << RANDOM % 3))
    # A kill falls anywhere in the time that a whole bake takes; late ones find it done, and start another.
    delay=$(echo "$RANDOM $all" | awk '{ print (0.3 + 0.7 * $1 / 32768) * $2 }')
    bake "$ranks" killed --json >out.json 2>err.log &
    pid=$!
    sleep "$delay"
    # The ranks, and not mpirun, which removes what shared memory they leave.
    ids=$(processes "^$scone bake run --out killed")
    # shellcheck disable=SC2086
    if [ "$left" -gt 0 ] && [ -n "$ids" ] && kill -KILL $ids 2>/dev/null; then left=$((left - 1)); fi
    wait "$pid" 2>/dev/null && failed=0 || failed=$?
    while [ -n "$(processes "$scone bake run --out killed")" ]; do sleep 0.05; done
    [ ! -e killed ] || break  # a kill may have come when all was done
    [ "$failed" -eq 137 ] || { cat err.log >&2; exit 1; }
  done
  kept=$((kept + $(grep -o '"rows_kept":[0-9]*' out.json | cut -d: -f2 || echo 0)))
  diff -r -x bake.json -x 'bake-blocks-*' -x .unfinished whole killed # a kill at the very end leaves these
  [ ! -e killed.tmp ]
  runs=$((runs + 1))
done
[ "$kept" -gt 0 ] || { echo "no bake went on with an earlier one's rows" >&2; exit 1; }
echo "$kills kills over $runs bakes of $(seconds 0 "$all") s: the same bytes; $kept rows were kept"
