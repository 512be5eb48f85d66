#!/usr/bin/env bash
# logging.tensorboard: event files that say what metrics.jsonl says, over kills, resumed steps and damage, read by a reader that shares
# no code with their writer: tensorboard_test.sh SCONE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

compare() { python3 -B "$tests/compare_events.py" "$@" || fail "events of $1: $(ls -l "$1/tensorboard")"; }

for i in $(seq 200); do echo "{\"text\": \"the model of a token $i in the corpus of $i frequent grams and $((i * i)) rows\"}"; done >text.jsonl
"$scone" tokenize --input text.jsonl --output shards --train-tokenizer 290 --validation-fraction 0.1
cat >run.yaml <<'YAML'
data: {train: shards/train, validation: shards/validation}
model: {main: {width: 32, layers: 1, heads: 4, context: 32}}
trainer: {steps: 40, batch_tokens: 128, eval_every: 4, eval_tokens: 128}
checkpoint: {every: 10}
run: {folder: run}
logging: {tensorboard: true}
YAML

# One start; two in the same second, of which each repeats nothing.
ends 0 'done: step 12' "$scone" train run.yaml trainer.steps=12
compare run 1
ends 0 'done: step 13' "$scone" train run.yaml trainer.steps=13
ends 0 'done: step 14' "$mpirun" -np 2 "$scone" train run.yaml trainer.steps=14
compare run 3

# Killed after steps that no checkpoint has: the next start cuts them off, with a half record at the end, and goes on.
code=0
"$scone" train run.yaml trainer.steps=1000000 checkpoint.every=30 --inject-fault kill:0:50 >killed.log 2>&1 || code=$?
[ $code = 137 ] && [ "$(wc -l <run/metrics.jsonl)" = 49 ] || fail "ended with $code: $(cat killed.log)"
newest=$(printf '%s\n' run/tensorboard/* | sort | tail -n 1)
truncate -s -7 "$newest"
ends 0 'done: step' "$scone" train run.yaml "trainer.steps=$(($(wc -l <run/metrics.jsonl) + 5))"
compare run 5
# A byte that changed: the reader sees it, the next start warns, and cuts from there.
python3 - "$newest" <<'PYTHON'
import os, sys
with open(sys.argv[1], "r+b") as file:
    file.seek(os.path.getsize(sys.argv[1]) - 40)
    byte = file.read(1)
    file.seek(-1, 1)
    file.write(bytes([byte[0] ^ 4]))
PYTHON
if python3 -B "$tests/read_events.py" run/tensorboard >events 2>errors; then fail "a changed byte was not seen"; fi
grep -q 'wrong checksum of an event' errors
ends 0 "$(basename "$newest").*: byte [0-9]*: the record's checksum is not its own; what follows is cut off" \
  "$scone" train run.yaml "trainer.steps=$(($(wc -l <run/metrics.jsonl) + 1))"
python3 -B "$tests/read_events.py" run/tensorboard >events || fail "what was cut off cannot be read"

# A run that begins anew in the folder has no steps of the one before. Without the key there is no such folder.
rm -r run/checkpoints
ends 0 'done: step 8' "$scone" train run.yaml trainer.steps=8
compare run 1
ends 0 'done: step 4' "$scone" train run.yaml trainer.steps=4 run.folder=without logging.tensorboard=false
[ ! -e without/tensorboard ] || fail "a folder that was not asked for"

# A folder that cannot be made or written: refused by one message of all ranks, before the first step.
mkdir taken
echo text >taken/tensorboard
ends 2 'scone: error: logging.tensorboard: taken/tensorboard cannot be written \(.*\); make room for it, or use false' \
  "$mpirun" -np 2 "$scone" train run.yaml run.folder=taken
[ "$(grep -c 'logging.tensorboard: ' out)" = 1 ] || fail "expected the message once: $(cat out)"
if grep -qE 'step +1/' out; then fail "a step was taken: $(cat out)"; fi
ends 2 "logging.metrics: 'tensorboard' is another file of the run's folder" "$scone" train run.yaml logging.metrics=tensorboard
echo "tensorboard_test: passed"
