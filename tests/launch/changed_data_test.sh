#!/usr/bin/env bash
# What a run does about training data that are mixed, missing, changed or new: changed_data_test.sh SCONE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
find_python
job=
trap '[ -z "$job" ] || kill -9 "$job" 2>/dev/null; rm -rf "$folder"' EXIT

documents 13 300 80 >text.jsonl
head -n 200 text.jsonl >a.jsonl
tail -n 100 text.jsonl >b.jsonl
"$scone" tokenize --input a.jsonl --output a --train-tokenizer 301 --validation-fraction 0 --shard-tokens 3K >/dev/null
"$scone" tokenize --input b.jsonl --output b --tokenizer a/tokenizer.model --validation-fraction 0 >/dev/null
cat >run.yaml <<'YAML'
data:
  train:
    - {path: a/train, weight: 0.25}
    - {path: b/train, weight: 0.75}
model: {main: {width: 32, layers: 1, heads: 2, context: 32}}
optimizer: {schedule: constant}
trainer: {steps: 8, batch_tokens: 512, microbatch_tokens: 128}
checkpoint: {every: 2}
run: {folder: run}
YAML
losses() { "$python" -c 'import json, sys; print(*(json.loads(line)["loss"] for line in open(sys.argv[1])))' "$1/metrics.jsonl"; }

# A mixture resumes exactly; another one is other data.
"$scone" train run.yaml run.folder=whole >/dev/null 2>&1
"$scone" train run.yaml trainer.steps=4 >/dev/null 2>&1
"$scone" train run.yaml >/dev/null 2>&1
[ "$(losses run)" = "$(losses whole)" ] || fail "resumed: $(losses run), in one go: $(losses whole)"
ends 2 "data.train is not what the run began with" "$scone" train run.yaml trainer.steps=9 \
  'data.train=[{path: a/train, weight: 0.5}, {path: b/train, weight: 0.5}]'
ends 2 "never be drawn" "$scone" train run.yaml run.folder=bad \
  'data.train=[{path: a/train, weight: 1}, {path: b/train, weight: 1000000}]'

# A shard that is cut short while a run reads it, which stands for a disk that fails: the bus error names it.
cp -r b cut
"$scone" train run.yaml run.folder=cut-run data.train=cut/train trainer.steps=1000000 >cut.log 2>&1 &
job=$!
for _ in $(seq 300); do
  [ -s cut-run/metrics.jsonl ] && break
  sleep 0.1
done
truncate -s 4096 cut/train/shard-00000.h5
code=0
wait "$job" || code=$?
job=
[ "$code" = 135 ] || fail "a run whose shard was cut ended with $code, expected 135: $(cat cut.log)"
grep -qE "^scone: error: $folder/cut/train/shard-00000.h5: cannot be read at byte [0-9]+ \(bus error\): the file was cut" cut.log ||
  fail "the cut shard is not named: $(cat cut.log)"

ends 0 "a/train/shards.json: list of shards, all .* are as listed" "$scone" inspect a

# A shard is missing and one has changed under its own attributes: both are named, by every command that opens the folder.
cp -r a kept
mv a/train/shard-00001.h5 moved.h5
"$python" - <<'PYTHON'
import h5py
with h5py.File("a/train/shard-00002.h5", "r+") as shard:
    shard["tokens"][5] = (int(shard["tokens"][5]) + 1) % 301
PYTHON
ends 2 "shard-00001.h5: missing" "$scone" train run.yaml trainer.steps=10
grep -q "shard-00002.h5: changed" out || fail "the changed shard is not named: $(cat out)"
! grep -q "shard-00000.h5" out || fail "a shard is named that is as it was: $(cat out)"
ends 2 "shard-00001.h5: missing" "$scone" inspect a
ends 2 "shard-00001.h5: missing" "$scone" fgrams --data a/train --output f.h5 --size 100
ends 0 "shard-00001.h5: missing" "$scone" train run.yaml trainer.steps=10 --allow-changed-data
grep -q "resumed from .* at step 8" out || fail "it did not go on: $(cat out)"
grep -q "data.train is not what the run began with, which is allowed" out || fail "no warning: $(cat out)"
# What it went on with is now what it knows, for two ranks too; what was there before is the change.
ends 0 "resumed from" "$mpirun" -np 2 "$scone" train run.yaml trainer.steps=12 --allow-changed-data
rm -r a && mv kept a
ends 2 "shard-00001.h5: not among them before" "$scone" train run.yaml trainer.steps=14
# Other files under the same names.
"$scone" tokenize --input b.jsonl --output a --tokenizer b/tokenizer.model --validation-fraction 0 >/dev/null
ends 2 "shard-00000.h5: changed: expected checksum" "$scone" train run.yaml run.folder=whole trainer.steps=10
# Another tokenizer.
"$scone" tokenize --input a.jsonl --output c --train-tokenizer 310 --validation-fraction 0 >/dev/null
ends 2 "c/train: tokenized with tokenizer" "$scone" train run.yaml run.folder=other \
  'data.train=[{path: b/train, weight: 1}, {path: c/train, weight: 1}]'
echo "changed data: mixtures resume exactly; missing, changed and new shards are named, and allowed where asked"
