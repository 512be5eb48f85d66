#!/usr/bin/env bash
# What a run does about its checkpoints, as its user sees it: signals and the time limit, a full disk, damaged files, other grids,
# an f-gram model more or less: checkpoints_test.sh SCONE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
job=
trap '[ -z "$job" ] || kill -9 "$job" 2>/dev/null; rm -rf "$folder"' EXIT

steps_of() { python3 -c 'import json, sys; print(*(json.loads(line)["step"] for line in open(sys.argv[1])))' "$1/metrics.jsonl"; }
newest() { basename "$(printf '%s\n' "$1"/checkpoints/step-???????? | tail -n 1)"; }

documents 13 200 80 >text.jsonl
"$scone" tokenize --input text.jsonl --output shards --train-tokenizer 301 --validation-fraction 0.1
"$scone" fgrams --data shards/train --output fgrams.h5 --size 300 --min-count 5
cat >run.yaml <<'YAML'
data: {train: shards/train}
fgrams: {vocabulary: fgrams.h5}
model:
  main: {width: 64, layers: 2, heads: 4, context: 64}
  fgram: {layers: 2, chunk_nodes: 64}
optimizer: {peak_lr: 1.0e-3, warmup_steps: 3}
trainer: {steps: 20, batch_tokens: 1Ki, microbatch_tokens: 256}
checkpoint: {every: 5, keep: 3}
run: {folder: run}
YAML

# A signal, to a rank or to mpirun: saved within a step, exit 75, and the next start goes on with the step after it. A rank that is
# held for two seconds stands for a long step: mpirun by itself leaves a rank one.
for target in rank mpirun; do
  "$mpirun" -np 4 "$scone" train run.yaml "run.folder=signal-$target" trainer.steps=1000000 checkpoint.every=0 parallel.main.tp=2 \
    >signal.log 2>&1 &
  job=$!
  for _ in $(seq 300); do
    [ -s "signal-$target/metrics.jsonl" ] && [ "$(wc -l <"signal-$target/metrics.jsonl")" -gt 20 ] && break
    sleep 0.1
  done
  rank=$(processes "^$scone train run.yaml run.folder=signal-$target" | tail -n 1)
  if [ "$target" = rank ]; then
    kill -TERM "$rank"
  else
    kill -STOP "$rank"
    kill -TERM "$job"
    sleep 2
    kill -CONT "$rank"
  fi
  code=0
  wait "$job" || code=$?
  job=
  [ "$code" = 75 ] || fail "a run whose $target got SIGTERM ended with $code, expected 75: $(tail -n 20 signal.log)"
  stopped=$(tail -n 1 "signal-$target/metrics.jsonl" | sed 's/.*"step":\([0-9]*\).*/\1/')
  [ "$(newest "signal-$target")" = "$(printf 'step-%08d' "$stopped")" ] || fail "stopped after step $stopped, saved $(newest "signal-$target")"
done
ends 0 "resumed from .*/$(newest signal-rank) at step $(($(steps_of signal-rank | wc -w)))" \
  "$mpirun" -np 2 "$scone" train run.yaml run.folder=signal-rank "trainer.steps=$(($(steps_of signal-rank | wc -w) + 2))"
stopped=$(steps_of signal-rank | wc -w)
[ "$(steps_of signal-rank)" = "$(seq -s ' ' "$stopped")" ] || fail "not every step once: $(steps_of signal-rank)"

# Ctrl-C, which a job of a script ignores until it is told not to.
in_foreground=(python3 -c 'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])')
for start in "" "$mpirun -np 2"; do
  rm -rf interrupted
  # shellcheck disable=SC2086
  "${in_foreground[@]}" $start "$scone" train run.yaml run.folder=interrupted trainer.steps=1000000 checkpoint.every=0 >signal.log 2>&1 &
  job=$!
  for _ in $(seq 300); do
    [ -s interrupted/metrics.jsonl ] && break
    sleep 0.1
  done
  kill -INT "$job"
  code=0
  wait "$job" || code=$?
  job=
  [ "$code" = 75 ] || fail "ctrl-C of '$start' ended with $code, expected 75: $(tail -n 20 signal.log)"
  newest interrupted | grep step >/dev/null || fail "ctrl-C of '$start' saved nothing: $(tail -n 20 signal.log)"
done

# What mpirun.sh hands on as it is: the program's input, its exit code, and a second SIGTERM.
printf 'echo "in: $(cat)"; exit 7' >program.sh
ends 7 'in: text' "$mpirun" -np 1 bash program.sh <<<text
"$mpirun" -np 2 bash -c 'trap "" USR1; touch "ready.$$"; exec sleep 60' >second.log 2>&1 &
job=$!
for _ in $(seq 100); do
  [ "$(find . -name 'ready.*' | wc -l)" = 2 ] && break
  sleep 0.1
done
kill -TERM "$job"
sleep 0.5
kill -0 "$job" || fail "the first SIGTERM was not handed on as SIGUSR1: $(cat second.log)"
kill -TERM "$job"
begin=$SECONDS
wait "$job" && fail "a killed job ended with 0"
job=
[ $((SECONDS - begin)) -lt 20 ] || fail "the second SIGTERM ended the job after $((SECONDS - begin)) s"

# The time limit is a signal that the run gives itself.
ends 75 'stopped by run.time_limit' "$scone" train run.yaml run.folder=limit run.time_limit=0.3 trainer.steps=1000000

# A disk that is full: the run goes on, warns, keeps what it had, and says at the end what is missing. The limit on files stands for
# the disk; Open MPI's own shared-memory files must not meet it.
"$mpirun" -np 2 "$scone" train run.yaml run.folder=full trainer.steps=10 >/dev/null 2>&1
for async in true false; do
  ends 1 'checkpoint of step 15 was not saved, the ones before it stay: .*rank-0000[01]' bash -c \
    "ulimit -f 300; OMPI_MCA_btl=self,tcp PMIX_MCA_gds=hash exec timeout 60 '$mpirun' -np 2 '$scone' train run.yaml run.folder=full checkpoint.async=$async"
  grep -q 'the last checkpoint was not saved' out
  grep -q 'step 20/20' out
  [ "$(newest full)" = step-00000010 ] || fail "a full disk left $(ls full/checkpoints)"
done
[ -z "$(find full/checkpoints -name '*.tmp')" ] || fail "left behind: $(ls full/checkpoints)"
ends 0 'resumed from .*step-00000010' "$mpirun" -np 2 "$scone" train run.yaml run.folder=full

# Damaged files: the checkpoint before is taken, and the file named; where there is none, exit 2.
"$mpirun" -np 2 "$scone" train run.yaml run.folder=damage trainer.steps=15 checkpoint.async=true >/dev/null 2>&1
python3 - <<'PYTHON'
import os
path = "damage/checkpoints/step-00000015/rank-00001.h5"
with open(path, "r+b") as file:
    file.seek(os.path.getsize(path) // 2)
    byte = file.read(1)
    file.seek(-1, 1)
    file.write(bytes([byte[0] ^ 1]))
PYTHON
truncate -s -1 damage/checkpoints/step-00000010/manifest.json
ends 0 'skipped .*step-00000015.*rank-00001.h5' "$mpirun" -np 2 "$scone" train run.yaml run.folder=damage trainer.steps=6
grep -q 'skipped .*step-00000010.*manifest.json' out
grep -q 'resumed from .*step-00000005 at step 5' out
for checkpoint in damage/checkpoints/step-*; do rm "$checkpoint/manifest.json"; done
mkdir -p damage/checkpoints/step-00000007
ends 2 'no valid checkpoint among' "$mpirun" -np 2 "$scone" train run.yaml run.folder=damage

# Other ranks and grids, and a model more or less.
legs=0
for grid in "1" "2 parallel.main.tp=2 parallel.fgram.zero=1" "4 parallel.main.tp=2 parallel.fgram.tp=4 parallel.main.zero=1" "3" "1"; do
  read -r ranks options <<<"$grid"
  legs=$((legs + 4))
  # shellcheck disable=SC2086
  "$mpirun" -np "$ranks" "$scone" train run.yaml run.folder=legs "trainer.steps=$legs" optimizer.schedule=constant $options \
    >legs.log 2>&1 || fail "$grid: $(cat legs.log)"
done
"$scone" train run.yaml run.folder=whole optimizer.schedule=constant >/dev/null 2>&1
python3 - <<'PYTHON'
import json
legs, whole = ([json.loads(line)["loss"] for line in open(f"{name}/metrics.jsonl")] for name in ("legs", "whole"))
assert len(legs) == len(whole) == 20, (len(legs), len(whole))
worst = max(abs(a / b - 1) for a, b in zip(legs, whole))
print(f"1 -> 2 -> 4 -> 3 -> 1 ranks with other grids: losses within {worst:.1e} of one rank's")
assert worst < 1e-4, worst
PYTHON
ends 0 'its f-gram model is dropped' "$scone" train run.yaml run.folder=legs trainer.steps=21 model.fgram.layers=0 fgrams.vocabulary="''"
ends 0 "holds no f-gram model; this run's begins anew" "$scone" train run.yaml run.folder=legs trainer.steps=22

# Settings that are not the checkpoint's: the key that was changed is named, on all ranks at once.
"$scone" train run.yaml run.folder=keys trainer.steps=2 >/dev/null 2>&1
for change in "model.main.width=32 model.main.width: 64 in the checkpoint, 32 in this run" \
  "fgrams.size=200 fgrams.size: 300 in the checkpoint, 200 in this run" \
  "fgrams.max_length=3 fgrams.max_length: 5 in the checkpoint, 3 in this run"; do
  ends 2 "^  ${change#* }$" "$mpirun" -np 2 "$scone" train run.yaml run.folder=keys "${change%% *}"
  [ "$(grep -c 'in the checkpoint' out)" = 1 ] || fail "more keys than the one are named: $(cat out)"
done
