#!/usr/bin/env bash
# 4 ranks with a main model of tp 2 x dp 2 and an f-gram model of tp 1 x dp 4, then the other way round, with every option once:
# the losses of each step agree with one rank's. A rank that is killed, throws or hangs in mid-step ends all in time with a
# message that names it. Impossible grids are refused.
#   grids_test.sh SCONE [QUICKSTART [STEPS]]   QUICKSTART: a folder of launch/quickstart.sh, for its corpus; else a small one is made
set -euo pipefail
quickstart=${2:+$(realpath "$2")}
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
steps=${3:-50}

if [ -n "$quickstart" ]; then
  cp "$repository/configs/quickstart-scone.yaml" run.yaml
  run=(run.yaml "data.train=$quickstart/data/train" "data.validation=$quickstart/data/validation"
    "fgrams.vocabulary=$quickstart/fgrams.h5" trainer.tokens=0 trainer.eval_every=0 trainer.eval_tokens=16Ki checkpoint.every=0
    # At the quickstart's own learning rate AdamW turns rounding into differences of 1e-3 within 40 steps, on one rank with
    # other microbatches too.
    optimizer.warmup_steps=500)
else
  documents 12 200 80 >text.jsonl
  "$scone" tokenize --input text.jsonl --output shards --train-tokenizer 301 --validation-fraction 0.1
  "$scone" fgrams --data shards/train --output fgrams.h5 --size 300 --min-count 5
  cat >run.yaml <<'YAML'
data: {train: shards/train, validation: shards/validation}
fgrams: {vocabulary: fgrams.h5}
model:
  main: {width: 32, layers: 2, heads: 4, context: 64}
  fgram: {layers: 2, chunk_nodes: 64}
optimizer: {peak_lr: 5.0e-3, warmup_steps: 3}
trainer: {batch_tokens: 1Ki, microbatch_tokens: 256}
run: {folder: run}
YAML
  run=(run.yaml)
fi
run+=("trainer.steps=$steps" compute.threads=1)

"$scone" train "${run[@]}" run.folder=one
"$scone" train "${run[@]}" run.folder=microbatches trainer.microbatch_tokens=512
on_grid() {
  local name=$1
  shift
  "$mpirun" -np 4 "$scone" train "${run[@]}" "run.folder=$name" "$@"
}
on_grid main_tp parallel.main.tp=2
on_grid fgram_tp parallel.fgram.tp=2 parallel.main.zero=1 parallel.overlap=false
on_grid all parallel.main.tp=2 parallel.main.zero=1 parallel.main.sequence_parallel=true parallel.fgram.tp=4 \
  parallel.fgram.sequence_parallel=true compute.recompute=attention
python3 - <<'PYTHON'
import json
def lines(name): return [json.loads(line) for line in open(f"{name}/metrics.jsonl")]
one = lines("one")
for name in ("microbatches", "main_tp", "fgram_tp", "all"):
    run = lines(name)
    assert len(run) == len(one), (name, len(run))
    worst = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(run, one))
    ranks = 1 if name == "microbatches" else 4
    print(f"{name}: {len(run)} steps, ranks {ranks}, largest relative difference of a step's loss from one rank's {worst:.1e}")
    assert worst < 1e-4, (name, worst)
    assert abs(run[-1]["validation_loss"] / one[-1]["validation_loss"] - 1) < 1e-4, name
    for a, b in zip(run, one):  # distinct nodes, whatever the grid
        assert a["fgram_nodes_per_token"] == b["fgram_nodes_per_token"], name
PYTHON

# ends CODE "TEXT IN STDERR" ARGUMENTS..: `scone train` on 4 ranks, within 15 seconds
ends() {
  local expected=$1 text=$2 code=0
  shift 2
  timeout --kill-after=5 15 "$mpirun" -np 4 "$scone" train "${run[@]}" run.folder=failing "$@" >out 2>err || code=$?
  if [ "$code" != "$expected" ] || ! grep -qE -- "$text" err out; then
    fail "$* ended with $code (expected $expected), without '$text' (or with it):"$'\n'"$(cat out err)"
  fi
  rm -rf failing
}
ends 1 'scone: error: \[rank 3 of 4, .*\]: step 2: an injected fault' --inject-fault throw:3:2 parallel.main.tp=2
ends 137 'rank 1 .*signal 9' --inject-fault kill:1:2 parallel.fgram.tp=2
ends 1 'rank [0-9] has waited .* s in .*, phase ".*"; parallel.timeout is 2 s' --inject-fault hang:2:2 parallel.timeout=2
ends 2 'parallel.main.tp: 3 does not divide the 4 ranks; the nearest valid values are 2 and 4' parallel.main.tp=3
ends 2 "inject-fault: expected KIND:RANK:STEP .* found 'burn:1:2'" --inject-fault burn:1:2
