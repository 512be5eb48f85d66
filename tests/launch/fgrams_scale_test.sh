#!/usr/bin/env bash
# scone fgrams out of core: the matrix of ranks, memory and threads on a small corpus, a kill in the third scan, disks that
# fill, annotations and the report.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
mounted=
trap '[ -z "$mounted" ] || umount "$mounted"; rm -rf "$folder"' EXIT
fail() {
  echo "$*"
  cat err 2>/dev/null || true
  exit 1
}

# Words with a long tail, so that the least memory spills.
awk 'BEGIN {
  srand(11)
  split("ba ce di fo gu ha je ki lo mu na pe qui ro su ta ve wi xo zu", part, " ")
  for (w = 0; w < 1500; ++w)
    word[w] = part[1 + int(20 * rand())] part[1 + int(20 * rand())] part[1 + int(20 * rand())]
  for (d = 0; d < 4000; ++d) {
    line = ""
    for (i = 0; i < 100; ++i) line = line word[int(1500 * rand() * rand() * rand())] " "
    printf "{\"text\": \"%s\"}\n", line
  }
}' >text.jsonl
"$scone" tokenize --input text.jsonl --output shards --train-tokenizer 600 --validation-fraction 0.02 2>err ||
  fail "tokenize"
fgrams=("$scone" fgrams --data shards/train --size 20K --min-count 3)

# The least memory: what the message asks for, and a little for what the program holds by then.
code=0
"${fgrams[@]}" --output few.h5 --memory 1M 2>err || code=$?
[ "$code" = 2 ] || fail "--memory 1M: expected exit code 2, found $code"
least=$(grep -o 'give --memory [0-9]*M' err | grep -o '[0-9]*') || fail "no figure that would do"
least=$((least + 2))M
"${fgrams[@]}" --output few.h5 --memory "$least" 2>err || fail "--memory $least: is too little after all"
grep -q ' [1-9][0-9.]* MB spilled)' err || fail "nothing was spilled with $least"
SCONE_MATRIX_SIZE=20K bash "$tests/fgrams_matrix.sh" "$scone" shards/train 20M 1G >matrix || fail "$(cat matrix)"
"${fgrams[@]}" --output whole.h5 2>err
cmp few.h5 whole.h5

# Killed in the third scan: the second is not counted again, and the bytes are the same.
python3 - "${fgrams[@]}" --output killed.h5 --memory "$least" <<'PYTHON' || fail "the kill came too late"
import signal, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stderr=subprocess.PIPE, text=True)
for line in process.stderr:
    if line.startswith("scan 2 of 4:") and "n-grams of" in line:
        process.send_signal(signal.SIGKILL)
        break
sys.exit(0 if process.wait() == -signal.SIGKILL else 1)
PYTHON
[ -d killed.h5.spill ] && [ ! -e killed.h5 ] || fail "the kill left no spill folder, or a vocabulary"
"${fgrams[@]}" --output killed.h5 --memory "$least" 2>err
grep -q "scan 2 of 4: .* (counted before the interruption)" err || fail "scan 2 was counted again"
grep -q "scan 3 of 4: .*MB spilled)" err || fail "scan 3 was not counted"
cmp killed.h5 whole.h5
[ ! -e killed.h5.spill ] || fail "the spill folder was left behind"

# A spill folder with too little room, told before anything is counted; and one that fills on the way.
nothing_left() {
  [ ! -e full.h5 ] && [ ! -e full.h5.partial ] && [ ! -e full.h5.spill ] && [ -z "$(ls small)" ] ||
    fail "files were left behind: $(ls . small)"
}
mkdir small
if mount -t tmpfs -o size=1m tmpfs small 2>/dev/null; then
  mounted=$folder/small
  code=0
  "$mpirun" -np 2 "${fgrams[@]}" --output full.h5 --memory "$least" --spill small/spill 2>err || code=$?
  [ "$code" = 2 ] || fail "little room: expected exit code 2, found $code"
  grep -q "counting may need .* MB are free" err || fail "the little room was not seen beforehand"
  nothing_left
  mount -o remount,size=24m small
  for ranks in 1 2; do
    python3 - "$mpirun" -np "$ranks" "${fgrams[@]}" --output full.h5 --memory 1G --spill small/spill <<'PYTHON' || fail "a disk that fills: exit code $?, expected 2"
import errno, os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stderr=subprocess.PIPE, text=True)
text = ""
for line in process.stderr:
    text += line
    if line.startswith("scan 1 of 4:") and "n-grams of" in line:
        with open("small/filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(65536))
            except OSError as error:
                assert error.errno == errno.ENOSPC
open("err", "w").write(text)
code = process.wait()
os.remove("small/filler")
sys.exit(0 if code == 2 else code or 100)
PYTHON
    grep -q "MB more were needed at this point, .* MB are free" err || fail "a disk that fills: no figures"
    nothing_left
  done
  umount small
  mounted=
  survived="a kill and full disks are survived"
else
  survived="a kill is survived; full disks NOT TESTED: this user may not mount a tmpfs"
fi

# Annotations: the same loss with and without.
cat >run.yaml <<'YAML'
run: {folder: run}
data: {train: shards/train, validation: shards/validation}
fgrams: {vocabulary: whole.h5, size: 5K}
model:
  main: {width: 16, layers: 1, heads: 2, context: 64}
  fgram: {layers: 1, chunk_nodes: 64}
trainer: {steps: 4, batch_tokens: 1Ki, eval_every: 0}
checkpoint: {every: 0}
compute: {threads: 1}
YAML
losses() { python3 -c 'import json, sys; print([json.loads(line)["loss"] for line in open(sys.argv[1])])' "$1"; }
"$scone" train run.yaml run.folder=live 2>err || fail "training"
"$mpirun" -np 2 "$scone" fgrams --data shards/train --vocabulary whole.h5 \
  --size 5K --annotate 2>err || fail "--annotate"
ls shards/train/*.h5.matches >/dev/null
"$scone" inspect "$(ls shards/train/*.h5.matches | head -n 1)" >inspected && grep -q "match lengths" inspected ||
  fail "inspect does not know the annotation"
"$scone" train run.yaml run.folder=annotated 2>err || fail "training with annotations"
[ "$(losses live/metrics.jsonl)" = "$(losses annotated/metrics.jsonl)" ] || fail "annotations change the loss"

# The report.
"$scone" fgrams --data shards/train --vocabulary whole.h5 --report --batch-tokens 8Ki,64Ki --json >out 2>err || fail "--report"
python3 - <<'PYTHON'
import json
report = json.load(open("whole-report.json"))
assert report["size"] == 20000, report["size"]
assert len(report["sharing"]) == 2 and report["sharing"][0]["nodes_per_token"] > report["sharing"][1]["nodes_per_token"]
counts = [row["count"] for row in report["cutoffs"]]
assert counts == sorted(counts, reverse=True) and report["cutoffs"][-1]["size"] == 20000
examples = report["examples"]["2"]["first"]
assert examples[0]["id"] == 0 and examples[0]["text"], examples
svg = open("whole-report.svg").read()
assert svg.count("<svg") == 1 and "cut-off count" in svg and "trie of a batch" in svg
PYTHON
echo "fgrams at scale: same bytes whatever the ranks, memory and threads; $survived"
