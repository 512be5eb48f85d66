#!/usr/bin/env bash
# scone sweep in a real Slurm, which this starts and stops: a partition that it refuses, arrays that wait for one another, a task that
# is sent back into the queue, one that fails and is submitted again. sweep_slurm_test.sh SCONE; ranks by srun and mpirun
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
. "$tests/slurm_cluster.sh"
slurm_start || exit $?
trap 'slurm_stop; rm -rf "$folder"' EXIT
export OMPI_MCA_mpi_yield_when_idle=1 # the node says that it has more cores than there may be

fail() {
  echo "sweep_slurm_test: $*"
  squeue --all || true
  tail -n 30 out/slurm/*.log 2>/dev/null || true
  exit 1
}
ends() {  # ends CODE MESSAGE COMMAND..
  local expected=$1 message=$2 code=0
  shift 2
  timeout 240 "$@" >printed 2>&1 || code=$?
  [ "$code" = "$expected" ] || fail "expected exit code $expected, found $code from: $*"$'\n'"$(cat printed)"
  grep -qE -- "$message" printed || fail "expected '$message' from: $*"$'\n'"$(cat printed)"
}
# states: of the points, in order
states() { "$scone" sweep status out --json | tail -n 1 |
  python3 -c 'import json, sys; print(*(p["state"] for p in json.load(sys.stdin)["points"]))'; }
becomes() {  # becomes STATES: within five minutes
  for _ in $(seq 1500); do
    [ "$(states)" = "$1" ] && return 0
    sleep 0.2
  done
  fail "expected '$1', found: $("$scone" sweep status out)"
}
trained() {  # trained POINT STEPS
  for _ in $(seq 900); do
    [ -f "out/points/$1/metrics.jsonl" ] && [ "$(wc -l <"out/points/$1/metrics.jsonl")" -ge "$2" ] && return 0
    sleep 0.1
  done
  fail "$1 has not done $2 steps within 90 s"
}

documents 13 200 80 >text.jsonl
"$scone" tokenize --input text.jsonl --output shards --train-tokenizer 301 --validation-fraction 0.1 >/dev/null
"$scone" fgrams --data shards/train --output fgrams.h5 --size 300 --min-count 5 >/dev/null 2>&1
cat >base.yaml <<'YAML'
run: {folder: unused}
data: {train: shards/train, validation: shards/validation}
fgrams: {vocabulary: fgrams.h5}
model:
  main: {width: 32, layers: 1, heads: 2, context: 64}
  fgram: {layers: 1}
optimizer: {peak_lr: 5.0e-3, warmup_steps: 3}
trainer: {steps: 20, batch_tokens: 512}
YAML
cat >sweep.yaml <<YAML
run: base.yaml
folder: out
points:
  - {name: scone}
  - {name: bad, optimizer.peak_lr: 1.0e+30, trainer.on_bad_step: stop}
  - {name: baseline, model.fgram.layers: 0, fgrams.vocabulary: "", trainer.steps: 6K, optimizer.schedule: constant}
bake: true
launcher: {slurm: {partition: all, time: "10", ntasks_per_node: 2, script: $repository/launch/slurm/array.sbatch}}
YAML
sed 's/partition: all/partition: gone/' sweep.yaml >gone.yaml
echo 'name: sweep' >>gone.yaml
ends 2 'sbatch refused the train jobs, and nothing is submitted: .*[Ii]nvalid partition' "$scone" sweep gone.yaml
[ -z "$(squeue --noheader)" ] || fail "something was submitted"
[ "$(states)" = "waiting waiting waiting" ] || fail "states: $(states)"

# One task, the last one of its array, is signalled, goes back into the queue, and goes on; one fails, and its evaluation goes with it.
ends 0 'submitted train: 3 as job [0-9]+' "$scone" sweep sweep.yaml
ends 0 'nothing to submit' "$scone" sweep sweep.yaml
trained baseline 50
job=$(sed -n 's/.*"id": "\([0-9]*\)".*/\1/p' out/slurm/jobs.json | head -n 1)
scancel --signal=TERM "${job}_3"
for _ in $(seq 900); do
  scontrol show job "${job}_3" | grep -q 'Restarts=1' && break
  sleep 0.1
done
[ "$("$scone" sweep status out --json | tail -n 1 | grep -o '"name":"baseline"[^}]*"state":"[a-z]*"' | tail -c 9)" = '"queued"' ] ||
  fail "the task is not back in the queue: $("$scone" sweep status out)"
scontrol update job="${job}_3" StartTime=now # else Slurm waits for two minutes
for _ in $(seq 900); do
  grep -q 'resumed from' "out/slurm/train-${job}_3.log" && break
  sleep 0.1
done
grep -q 'resumed from' "out/slurm/train-${job}_3.log" || fail "the task did not go on where it was"
sed -i 's/trainer.steps: 6K/trainer.steps: 3K/' sweep.yaml # for the error: a point in the queue whose settings change
ends 2 'trainer.steps: 6000 before, 3000 now' "$scone" sweep sweep.yaml
sed -i 's/trainer.steps: 3K/trainer.steps: 6K/' sweep.yaml
becomes "finished failed finished"
ends 0 '^    \| .*step 2: loss' "$scone" sweep status out
steps=$(python3 -c 'import json; print([json.loads(l)["step"] for l in open("out/points/baseline/metrics.jsonl")] == list(range(1, 6001)))')
[ "$steps" = True ] || fail "the requeued training has not each step once"
for result in training bake evaluation baked-evaluation; do
  [ -s "out/points/scone/$result.json" ] || fail "no $result.json of scone"
done
rm -r out/points/bad
sed -i 's/, optimizer.peak_lr: 1.0e+30, trainer.on_bad_step: stop/, trainer.steps: 21/' sweep.yaml
ends 0 'submitted train: 1 as job [0-9]+' "$scone" sweep sweep.yaml
becomes "finished finished finished"
ends 0 'report.html' "$scone" sweep report out
echo "sweep_slurm_test: passed"
