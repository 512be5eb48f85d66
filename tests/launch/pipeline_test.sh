#!/usr/bin/env bash
# The whole way as a user goes it, small: text -> shards -> f-grams -> training on 1, 2 and 4 ranks, a signal and a resumption ->
# bake -> evaluation live and baked -> text; every file is inspected, whole and damaged.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
job=
trap '[ -z "$job" ] || kill -9 "$job" 2>/dev/null; rm -rf "$folder"' EXIT

# refuses MESSAGE COMMAND..: the command must end with exit code 2 and say MESSAGE on stderr.
refuses() {
  local message=$1 code=0
  shift
  "$@" >out 2>err || code=$?
  [ "$code" = 2 ] && grep -qi -- "$message" err ||
    fail "expected exit code 2 and '$message' from: $*"$'\n'"found exit code $code and: $(cat err)"
}

documents 11 300 80 >text.jsonl
"$scone" tokenize --input text.jsonl --output shards --train-tokenizer 300 --validation-fraction 0.1
"$scone" fgrams --data shards/train --output fgrams.h5 --size 300 --min-count 5

cat >run.yaml <<'YAML'
run: {folder: run}
data: {train: shards/train, validation: shards/validation}
fgrams: {vocabulary: fgrams.h5}
model:
  main: {width: 32, layers: 2, heads: 2, context: 64}
  fgram: {layers: 1, chunk_nodes: 64}
optimizer: {peak_lr: 5.0e-3, warmup_steps: 3}
trainer: {steps: 30, batch_tokens: 512, eval_every: 10}
checkpoint: {every: 10}
compute: {threads: 1}
YAML

# Per-step losses on 1, 2 and 4 ranks, and on one rank stopped after 20 steps and resumed on two.
"$scone" train run.yaml run.folder=one
"$mpirun" -np 2 "$scone" train run.yaml run.folder=two
"$mpirun" -np 4 "$scone" train run.yaml run.folder=four
"$scone" train run.yaml run.folder=resumed trainer.steps=30
rm -r resumed/checkpoints/step-00000030
"$mpirun" -np 2 "$scone" train run.yaml run.folder=resumed
python3 - <<'PYTHON'
import json
def losses(run):
    lines = [json.loads(line) for line in open(run + "/metrics.jsonl")]
    assert [line["step"] for line in lines] == list(range(1, 31)), (run, [line["step"] for line in lines])
    return [line["loss"] for line in lines] + [lines[-1]["validation_loss"]]
one = losses("one")
assert one[29] < one[0] - 2, one
for run in ("two", "four", "resumed"):
    worst = max(abs(a / b - 1) for a, b in zip(losses(run), one))
    print(f"{run}: largest relative difference of a loss from one rank's: {worst:.1e}")
    assert worst < 1e-4, run
PYTHON

# SIGTERM: exit code 75 with a checkpoint, and the same command goes on.
"$mpirun" -np 2 "$scone" train run.yaml run.folder=signal trainer.steps=100000 optimizer.schedule=constant checkpoint.every=0 trainer.eval_every=0 \
  2>signal.log &
job=$!
until grep -q '"step":5,' signal/metrics.jsonl 2>/dev/null; do
  sleep 0.1
  kill -0 "$job" 2>/dev/null || fail "the run ended early: $(cat signal.log)"
done
# One rank gets the signal; all agree.
kill -TERM "$(processes "^$scone train run.yaml run.folder=signal" | tail -n 1)"
code=0
wait "$job" || code=$?
job=
[ "$code" = 75 ] || fail "expected exit code 75 after SIGTERM, found $code: $(tail -n 80 signal.log)"
stopped=$(tail -n 1 signal/metrics.jsonl | python3 -c 'import json, sys; print(json.load(sys.stdin)["step"])')
"$mpirun" -np 2 "$scone" train run.yaml run.folder=signal optimizer.schedule=constant trainer.eval_every=0 "trainer.steps=$((stopped + 2))"
[ "$(wc -l <signal/metrics.jsonl)" = "$((stopped + 2))" ] || fail "the resumed run did not continue after step $stopped"

# Bake on 2 ranks, and the same loss from the table.
"$mpirun" -np 2 "$scone" bake one --out bundle
"$scone" bake one --out bundle-alone
cmp bundle/table/rows-00000.bin bundle-alone/table/rows-00000.bin
refuses "exists" "$scone" bake one --out bundle
"$scone" eval one --data shards/validation --json | tail -n 1 >live.json
"$scone" eval one --data shards/validation --tokens 9223372036854775807 --result all.json >/dev/null
"$mpirun" -np 2 "$scone" eval bundle --data shards/validation --json | tail -n 1 >baked.json
python3 - <<'PYTHON'
import json
live, baked = json.load(open("live.json")), json.load(open("baked.json"))
print(f"live {live['loss']:.9f}, baked {baked['loss']:.9f}")
assert json.load(open("all.json"))["tokens"] == live["tokens"], "--tokens beyond all"
assert live["rows"] == "live" and baked["rows"] == "table", (live, baked)
assert live["matched"] == baked["matched"] > live["tokens"] / 2, (live, baked)
assert abs(live["loss"] / baked["loss"] - 1) < 1e-6, (live, baked)
assert 0 < live["bits_per_byte"] < 8, live
PYTHON

# Another type and fewer f-grams: from the bundle as from the checkpoint.
"$scone" bundle convert bundle --out int8 --dtype int8
"$scone" bake one --out baked-int8 --dtype int8
diff -r int8 baked-int8
"$scone" bundle convert bundle --out converted --dtype int8 --size 200
"$scone" bake one --out baked-200 --dtype int8 --fgrams fgrams.h5 --fgrams-size 200
cmp converted/table/index.bin baked-200/table/index.bin
refuses "exists" "$scone" bundle convert bundle --out converted
refuses "300 f-grams" "$scone" bundle convert bundle --out more --size 301
"$scone" bundle convert converted --out wide --dtype fp32 2>err
[ "$(grep -c "were rounded to int8" err)" = 1 ] || fail "nothing was said of rows that were rounded before: $(cat err)"
"$scone" bundle verify wide | grep "every checksum verified" >/dev/null || fail "wide is not whole"
"$scone" bundle stat bundle --data shards/validation --json | tail -n 1 >stat.json
"$scone" bundle stat bundle --data shards/validation --tokens 100 | grep "of 100 positions" >/dev/null || fail "--tokens was not kept"
python3 - <<'PYTHON'
import json
stat = json.load(open("stat.json"))
assert stat["rows"] == 300 == sum(stat["fgrams_by_length"].values()), stat
assert 0 < stat["norms"]["min"] <= stat["norms"]["median"] <= stat["norms"]["max"], stat
coverage = stat["coverage"]
assert 0.5 < coverage["share"] < 1, coverage
assert abs(sum(coverage["share_by_length"].values()) - coverage["share"]) < 1e-12, coverage
PYTHON

# The reader in docs finds each f-gram that was counted by its id in the bundle, with a row, and no other n-gram.
find_python
PYTHONPATH=$repository/docs "$python" -B - <<'PYTHON'
import h5py, numpy as np
from read_bundle import FgramTable
file, table = h5py.File("fgrams.h5"), FgramTable("bundle")
tokens, fgrams = int(file.attrs["vocabulary_size"]), []
for prefix, last in zip(file["prefix"][:].tolist(), file["last_token"][:].tolist()):
    fgrams.append(([prefix] if prefix < tokens else fgrams[prefix - tokens]) + [last])
assert len(fgrams) == table.rows > 100, (len(fgrams), table.rows)
assert [table.index.find(fgram) for fgram in fgrams] == list(range(table.rows))
known = set(map(tuple, fgrams))
others = [fgram + [token] for fgram in fgrams for token in (0, 5, tokens - 1) if (*fgram, token) not in known]
assert others and {table.index.find(other) for other in others} == {-1}
rows = table.lookup(range(table.rows))
assert np.isfinite(rows).all() and len(np.unique(rows, axis=0)) == table.rows, rows
PYTHON

# Text: the same for the same seed, another for another, and from a checkpoint as from its bundle.
text() { "$scone" generate "$1" --prompt "the model of" --max-tokens 20 --seed "$2"; }
[ "$(text bundle 1)" = "$(text bundle 1)" ] || fail "the same seed gave two texts"
[ "$(text bundle 1)" = "$(text one 1)" ] || fail "bundle and checkpoint gave two texts"
[ "$(text bundle 1)" != "$(text bundle 2)" ] || fail "two seeds gave one text"
# A batch: each text as it is alone with its seed, by --prompt as from a file.
printf '%s\n' "the model of" "a token" "rank rank the" >prompts.txt
"$scone" generate bundle --prompt-file prompts.txt --max-tokens 20 --seed 1 --prefill-chunk 2 --json | tail -n 1 >batch.json
"$scone" generate bundle --prompt "the model of" --prompt "a token" --prompt "rank rank the" --max-tokens 20 --seed 1 --batch 2 \
  --table-access ram --json | tail -n 1 >given.json
for i in 1 2 3; do
  "$scone" generate bundle --prompt "$(sed -n "${i}p" prompts.txt)" --max-tokens 20 --seed "$i" --json | tail -n 1 >"alone$i.json"
done
python3 - <<'PYTHON'
import json
batch, given = json.load(open("batch.json")), json.load(open("given.json"))
assert batch["sequences"] == given["sequences"], (batch, given)
for i, sequence in enumerate(batch["sequences"]):
    alone = json.load(open(f"alone{i + 1}.json"))
    assert {key: alone[key] for key in sequence} == sequence, (alone, sequence)
assert batch["new_tokens"] == sum(len(s["tokens"]) for s in batch["sequences"]) > 40, batch
assert batch["seconds"] >= batch["prefill_seconds"] > 0 and batch["milliseconds_per_token"] > 0, batch
assert batch["tokens_per_second"] > 0, batch
PYTHON
refuses "no prompt" "$scone" generate bundle
refuses "nowhere.txt" "$scone" generate bundle --prompt-file nowhere.txt
printf 'a\n\nb\n' >gap.txt
refuses "line 2 is empty" "$scone" generate bundle --prompt-file gap.txt
refuses "context" "$scone" generate bundle --prompt "$(yes the | head -n 500 | tr '\n' ' ')"
refuses "no such" "$scone" generate nowhere --prompt a

printf 'the\n' >one.txt
"$scone" generate bundle --prompt-file one.txt --max-tokens 1000 --temperature 0 >out 2>err
grep -q "1 of 1 texts ended at the model's context of 64 tokens" err || fail "nothing was said of a text cut at the context: $(cat out err)"
refuses "shards: cannot be read" "$scone" generate bundle --prompt-file shards

# What a checkpoint or a baseline has no use for.
refuses "--table-access: is about a bundle's table" "$scone" eval one --data shards/validation --table-access ram
"$scone" train run.yaml run.folder=base model.fgram.layers=0 'fgrams.vocabulary=""' trainer.steps=2 2>err
grep -q "optimizer.warmup_steps 3 are more than the run's 2 steps" err || fail "nothing was said of a warm-up that is too long: $(cat err)"
refuses "--fgrams fgrams.h5: .* is a baseline" "$scone" eval base --data shards/validation --fgrams fgrams.h5

# Other people's data, and a folder that cannot be written.
"$scone" tokenize --input text.jsonl --output other --train-tokenizer 290 --validation-fraction 0.1
refuses "tokenizer" "$scone" eval one --data other/validation
refuses "tokenizer" "$scone" bundle stat bundle --data other/validation
refuses "tokenizer" "$scone" train run.yaml run.folder=bad data.train=other/train data.validation=other/validation
refuses "tokenizer" "$scone" train run.yaml run.folder=bad data.validation=other/validation
refuses "give shards/train or shards/validation" "$scone" eval one --data shards
refuses "model.main.layers: " "$scone" train run.yaml run.folder=one model.main.layers=3
refuses "run.folder" "$scone" train run.yaml run.folder=/proc/nowhere
head -c 200 text.jsonl >short.txt
"$scone" tokenize --input short.txt --output short --tokenizer shards --validation-fraction 0
refuses "sequence" "$scone" train run.yaml run.folder=bad data.train=short/train trainer.sequence_length=64 \
  model.main.context=4096 trainer.sequence_length=4096 trainer.batch_tokens=4096

# Every file is what it is, until a byte in its middle changes.
shard=$(ls shards/train/*.h5)
checkpoint=one/checkpoints/step-00000030
for path in "$shard" fgrams.h5 "$checkpoint" bundle bundle/model.safetensors; do
  "$scone" inspect "$path" >out || fail "inspect refused $path: $(cat out)"
done
# A folder of several things: each is verified as what it is.
"$scone" fgrams --data shards/train --vocabulary fgrams.h5 --annotate
mkdir -p several/runs
cp -r converted several/bundle
cp -r "$checkpoint" several/runs/
cp -r shards several/
mkdir several/other
echo '{}' >several/other/manifest.json
ln -s nowhere several/dangling.h5
"$scone" inspect several >out || fail "inspect refused a folder of several things: $(cat out)"
for kind in "several/bundle: bundle of step 30" "several/runs/step-00000030: checkpoint of step 30" "h5: token shard" \
  "matches: match lengths"; do
  grep -q "$kind" out || fail "inspect passed over '$kind': $(cat out)"
done
matches=$(ls shards/train/*.h5.matches)
truncate -s -100 "$matches"
refuses "matches: .*; remove it, or make it again with .scone fgrams --annotate" "$scone" train run.yaml run.folder=annotated
rm "$matches"
damage() {
  python3 - "$1" <<'PYTHON'
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(0, 2)
    file.seek(file.tell() // 2)
    byte = file.read(1)[0]
    file.seek(-1, 1)
    file.write(bytes([byte ^ 0x55]))
PYTHON
}
damage "$shard"
refuses "$(basename "$shard")" "$scone" inspect "$shard"
damage "$checkpoint/rank-00000.h5"
refuses "rank-00000.h5" "$scone" inspect "$checkpoint"
damage bundle/table/rows-00000.bin
refuses "rows-00000.bin" "$scone" inspect bundle
damage several/bundle/table/index.bin
damage several/runs/step-00000030/rank-00000.h5
damage several/shards/train/*.matches
refuses "several/bundle/table/index.bin" "$scone" inspect several
grep -q "rank-00000.h5: expected checksum" err && grep -q "matches: expected checksum" err ||
  fail "inspect did not name all that was damaged: $(cat err)"
refuses "rows-00000.bin" "$scone" bundle verify bundle
refuses "rows-00000.bin" "$scone" bundle convert bundle --out from-damaged
[ ! -e from-damaged ] || fail "a damaged bundle was converted"
refuses "text.jsonl" "$scone" inspect text.jsonl
# The damaged checkpoint is passed over for the one before.
"$scone" eval one --data shards/validation 2>err >out
grep -q 'step-00000020' out || fail "the checkpoint before the damaged one was not taken: $(cat out err)"
grep -q 'step-00000030' err || fail "the damaged checkpoint was not named: $(cat err)"
echo "pipeline: one, two and four ranks, resumption, signal, bake, text and inspection agree"
