#!/usr/bin/env bash
# A run's folder as its user meets it: a second run in it, and names in it that are taken: run_folder_test.sh SCONE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
job= second=
trap 'kill -9 $job $second 2>/dev/null || true; rm -rf "$folder"' EXIT

documents 13 100 80 >text.jsonl
"$scone" tokenize --input text.jsonl --output shards --train-tokenizer 301 --validation-fraction 0.1
cat >run.yaml <<'YAML'
data: {train: shards/train}
model: {main: {width: 32, layers: 1, heads: 4, context: 64}}
trainer: {steps: 4, batch_tokens: 512}
checkpoint: {every: 2}
run: {folder: run}
YAML

# While a run holds its folder, another on any ranks is refused with its name, and what only reads goes on.
"$scone" train run.yaml trainer.steps=1000000 checkpoint.every=50 >first.log 2>&1 &
job=$!
for _ in $(seq 300); do
  compgen -G 'run/checkpoints/step-????????' >/dev/null && break
  sleep 0.1
done
since=$SECONDS
ends 2 "scone: error: run.folder: run is in use: pid $job on $(hostname) since 20[0-9-]+ [0-9:]+ holds run/.lock; wait for" \
  "$mpirun" -np 2 "$scone" train run.yaml
[ $((SECONDS - since)) -ge 14 ] || fail "refused after $((SECONDS - since)) s, expected 15"
grep -q "run/.lock is held by pid $job on .*; waiting up to 15 s for it to end" out || fail "no word of the wait: $(cat out)"
[ "$(grep -c 'is in use' out)" = 1 ] || fail "expected the message once from two ranks: $(cat out)"
ends 0 '"loss"' "$scone" eval run --data shards/validation --tokens 128 --json
ends 0 '^run:' "$scone" train run.yaml --print-config
kill -0 "$job" || fail "the first run ended: $(cat first.log)"

# A run that ends meanwhile is waited for; one that was killed holds nothing.
"$scone" train run.yaml trainer.steps=1000000 checkpoint.every=50 >second.log 2>&1 &
second=$!
for _ in $(seq 100); do
  grep -q 'waiting up to' second.log && break
  sleep 0.1
done
grep -q 'waiting up to' second.log || fail "the second run does not wait: $(cat second.log)"
kill -TERM "$job"
code=0
wait "$job" || code=$?
job=
[ "$code" = 75 ] || fail "the first run ended with $code: $(cat first.log)"
for _ in $(seq 100); do
  grep -q 'resumed from' second.log && break
  sleep 0.1
done
grep -q "pid $second on " run/.lock || fail "the second run did not take the folder: $(cat second.log)"
kill -KILL "$second"
wait "$second" || true
second=
ends 0 'resumed from' "$scone" train run.yaml trainer.steps=1
grep -q 'waiting' out && fail "a killed run's lock was waited for: $(cat out)"

# A file system that refuses locks: one warning, and shards and checkpoints are read and written as on any other.
cc -shared -fPIC -x c -o refuse.so - <<'C'
#include <errno.h>
int flock(int descriptor, int operation) {
  (void)descriptor, (void)operation;
  errno = ENOLCK;
  return -1;
}
C
ends 0 'run/.lock cannot be locked \(No locks available\); see to it' env LD_PRELOAD="$PWD/refuse.so" \
  "$scone" train run.yaml trainer.steps=1
# Folders where the run writes files, and a name for the metrics that is taken: refused, and nothing is written over.
for name in log.txt config.yaml; do
  mkdir -p "taken-$name/$name"
  ends 2 "scone: error: run.folder: taken-$name/$name is a folder, but the run writes a file of this name; move it away" \
    "$mpirun" -np 2 "$scone" train run.yaml "run.folder=taken-$name"
done
mkdir -p taken-metrics/metrics.jsonl
ends 2 'logging.metrics: taken-metrics/metrics.jsonl cannot be written: it is a folder; give another name' \
  "$scone" train run.yaml run.folder=taken-metrics
cp run/config.yaml before.yaml
ends 2 "logging.metrics: 'config.yaml' is another file of the run's folder" "$scone" train run.yaml logging.metrics=config.yaml
cmp run/config.yaml before.yaml || fail "config.yaml was written over"
echo "run_folder_test: passed"
