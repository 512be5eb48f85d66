#!/usr/bin/env bash
# The sbatch files of launch/slurm in a real Slurm, which this starts and stops: slurm_test.sh SCONE. The runs' ranks are started by
# srun --mpi=pmix and by mpirun.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
. "$tests/slurm_cluster.sh"
slurm_start || exit $?
trap 'slurm_stop; rm -rf "$folder"' EXIT
export SCONE=$scone SCONE_REPOSITORY=$repository

fail() {
  echo "slurm_test: $*"
  tail -n 30 ./*.log
  exit 1
}
# submit TEMPLATE [OPTION OF SBATCH..] -- ARGUMENT..: prints the job's number
submit() {
  local template=$1 options=(--parsable --ntasks=2 --cpus-per-task=1 --time=10)
  shift
  while [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  sbatch "${options[@]}" "$repository/launch/slurm/$template.sbatch" "${@:2}"
}
# of JOB FIELD: such as JobState, Restarts, ExitCode
of() { scontrol show job --oneliner "$1" | sed -n "s/.* $2=\([^ ]*\).*/\1/p" | sort -u | tr '\n' ' ' | sed 's/ $//'; }
# becomes JOB FIELD VALUE: within three minutes
becomes() {
  for _ in $(seq 900); do
    [ "$(of "$1" "$2")" = "$3" ] && return 0
    sleep 0.2
  done
  fail "job $1 has $2 $(of "$1" "$2") after three minutes, expected $3"
}
# trained RUN STEPS: waits until the run has done so many steps
trained() {
  for _ in $(seq 1200); do
    [ -f "$1/metrics.jsonl" ] && [ "$(wc -l <"$1/metrics.jsonl")" -ge "$2" ] && return 0
    sleep 0.1
  done
  fail "$1 has not done $2 steps within two minutes"
}
losses_of() { python3 -c 'import json, sys; print(*((m["step"], m["loss"]) for m in map(json.loads, open(sys.argv[1]))))' "$1/metrics.jsonl"; }

documents 13 200 80 >text.jsonl
"$scone" tokenize --input text.jsonl --output shards --train-tokenizer 301 --validation-fraction 0.1
"$scone" fgrams --data shards/train --output fgrams.h5 --size 300 --min-count 5
cat >run.yaml <<'YAML'
data: {train: shards/train}
fgrams: {vocabulary: fgrams.h5}
model:
  main: {width: 64, layers: 2, heads: 4, context: 64}
  fgram: {layers: 2}
optimizer: {peak_lr: 1.0e-3, warmup_steps: 3}
trainer: {steps: 80, batch_tokens: 2Ki, microbatch_tokens: 512}
checkpoint: {every: 0}
run: {folder: run}
YAML
"$repository/launch/mpirun.sh" -np 2 "$scone" train run.yaml run.folder=whole >whole.log 2>&1 || fail "the run outside Slurm"

# A run on each launcher, and a bake that waits for it: a signal saves the run and sends it back into the queue, where the next start goes
# on; in the end every loss is that of the run that was left alone. scancel signals the ranks (as preemption does), the batch script, or
# all of the job's processes, ranks, script and srun alike.
declare -A jobs bakes
for run in srun-ranks srun-batch srun-full mpirun-batch; do
  export SCONE_LAUNCHER=${run%-*}
  jobs[$run]=$(submit train --output="$run.log" -- run.yaml "run.folder=$run")
  bakes[$run]=$(submit bake --output="bake-$run.log" "--dependency=afterok:${jobs[$run]}" -- "$run" --out "bundle-$run")
  trained "$run" 10
  [ "$(of "${bakes[$run]}" JobState) $(of "${bakes[$run]}" Reason)" = "PENDING Dependency" ] || fail "the bake did not wait"
  case $run in
    *-ranks) scancel --signal=TERM "${jobs[$run]}" ;;
    *-batch) scancel --signal=TERM --batch "${jobs[$run]}" ;;
    *-full) scancel --signal=TERM --full "${jobs[$run]}" ;;
  esac
done
for run in "${!jobs[@]}"; do
  becomes "${jobs[$run]}" Restarts 1
  scontrol update job="${jobs[$run]}" StartTime=now # else Slurm waits for two minutes
done
for run in "${!jobs[@]}"; do
  becomes "${jobs[$run]}" JobState COMPLETED
  [ "$(of "${jobs[$run]}" Restarts) $(of "${jobs[$run]}" ExitCode)" = "1 0:0" ] ||
    fail "$run: restarts, exit code: $(of "${jobs[$run]}" Restarts) $(of "${jobs[$run]}" ExitCode); expected 1 0:0"
  grep -q 'stopped by a signal (exit code 75): back into the queue' "$run.log" || fail "$run: no word of the queue"
  stopped=$(sed -n 's/.*resumed from .* at step \([0-9]*\)$/\1/p' "$run.log")
  [ "${stopped:-0}" -ge 10 ] && [ "$stopped" -lt 80 ] || fail "$run: resumed at step '$stopped'"
  [ "$(losses_of "$run")" = "$(losses_of whole)" ] || fail "$run: losses are not those of the run that was left alone"
  expected="Slurm job ${jobs[$run]}, restart 1, in all: 1 node, 2 tasks, 1 CPU each, (9|10)m left; rank 0, 0 on its node, by "
  case $run in
    srun*) expected+='srun --mpi=pmix' ;;
    mpirun*) expected+=mpirun ;;
  esac
  grep -qE "$expected" "$run.log" || fail "$run: expected the line: $expected"
done
for run in "${!bakes[@]}"; do
  becomes "${bakes[$run]}" JobState COMPLETED
  "$scone" inspect "bundle-$run" >inspect.log || fail "the bundle of $run"
  grep -q 'bundle of step 80' inspect.log || fail "the bundle of $run is of another step"
done
export SCONE_LAUNCHER=srun

# An array: each task is a line of the file, its arguments quoted; two ranks each.
mkdir 'a run'
cat >commands <<'COMMANDS'
train run.yaml 'run.folder=a run/1' trainer.steps=2
train run.yaml run.folder=run-2 trainer.steps=3 "data.train=[shards/train]"
train run.yaml run.folder=run-3 trainer.steps=0
doctor
COMMANDS
array=$(submit array --array=1-4%2 --output='array-%a.log' -- commands)

# Cancelled, a run is saved but not started again.
cancelled=$(submit train --output=cancelled.log -- run.yaml run.folder=cancelled trainer.steps=1000000)
trained cancelled 5
scancel "$cancelled"
becomes "$cancelled" JobState CANCELLED
for _ in $(seq 100); do
  grep -q 'not requeued' cancelled.log && break
  sleep 0.1
done
grep -q 'stopped by a signal (exit code 75), but the job is .*: not requeued' cancelled.log || fail "a cancelled job"
[ "$(of "$cancelled" Restarts) $(of "$cancelled" JobState)" = "0 CANCELLED" ] || fail "a cancelled job was started again"

becomes "$array" JobState "COMPLETED FAILED"
[ "$(wc -l <'a run/1/metrics.jsonl') $(wc -l <run-2/metrics.jsonl)" = "2 3" ] || fail "the array's runs have other steps"
grep -q 'trainer.steps: expected one of' array-3.log || fail "the array's third task, whose command is wrong"
[ "$(of "${array}_3" ExitCode)" = 2:0 ] || fail "the array's third task ended with $(of "${array}_3" ExitCode), expected 2:0"

# What the signal kills goes back into the queue too, but not what fails by itself: a program in scone's place shows it.
cat >program <<'PROGRAM'
#!/bin/sh
echo "$*" >>program.log
[ "$1" = train ] && exit 137
exec sleep 100
PROGRAM
chmod +x program
killed=$(SCONE=$PWD/program submit bake --output=killed.log -- bundle)
failed=$(SCONE=$PWD/program SCONE_LAUNCHER=mpirun submit train --output=failed.log -- run.yaml)
for _ in $(seq 300); do
  [ "$(sort program.log 2>/dev/null | uniq -c | tr -s ' \n' ' ')" = " 2 bake bundle 2 train run.yaml " ] && break
  sleep 0.1
done
scancel --signal=TERM --batch "$killed"
becomes "$killed" Restarts 1
scancel "$killed"
becomes "$failed" JobState FAILED
[ "$(of "$failed" Restarts)" = 0 ] || fail "a job that failed was requeued"

has_of_doctor() { grep -qE -- "$2" "$1" || fail "no '$2' of the doctor in $1"; }
has_of_doctor array-4.log '^started by +srun --mpi=pmix \(PMIx'
has_of_doctor array-4.log "^Slurm +[0-9.]+; Slurm job ${array}_4, in all: 1 node, 2 tasks, 1 CPU each, (9|10)m left; rank 0, 0 on its node, by srun"
has_of_doctor array-4.log '^node .*: 2 of 2 ranks'
has_of_doctor array-4.log '^all-reduce +64 MiB: '

# srun without PMIx: refused by a message that says what to do, not by processes that each take themselves for rank 0.
SCONE_SRUN_MPI=none submit train --wait --output=none.log -- run.yaml run.folder=none >/dev/null && fail "srun --mpi=none ended with 0"
grep -q 'srun started this process as one of 2 (--mpi=none) without PMIx.*start it with `srun --mpi=pmix`' none.log || fail "srun --mpi=none"
[ ! -e none ] || fail "srun --mpi=none began a run"
# srun whose tasks cannot be launched, because a folder of PMIx is taken: srun itself ends with 0.
taken=$(submit train --hold --output=taken.log -- run.yaml run.folder=taken)
mkdir "$slurm_folder/tmp/spmix_appdir_0_$taken.0"
scontrol release "$taken"
becomes "$taken" JobState FAILED
grep -q 'job.sh: srun ended with 0 but started nothing' taken.log || fail "srun that started nothing"
[ -z "$(find . -name '.scone-job-*')" ] || fail "left behind: $(find . -name '.scone-job-*')"
echo doctor >commands
SCONE_SRUN_MPI=none submit array --array=1 --wait --output=none-doctor.log -- commands >/dev/null && fail "the doctor finds nothing wrong with srun --mpi=none"
has_of_doctor none-doctor.log '^ +WRONG +srun started this process as one of 2 \(--mpi=none\) without PMIx'
[ "$(grep -c '^compiler' none-doctor.log)" = 1 ] || fail "several processes report"
echo "slurm_test: passed"
