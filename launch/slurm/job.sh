#!/usr/bin/env bash
# What the sbatch files here have in common: job.sh SUBCOMMAND [ARGUMENT..] runs `scone SUBCOMMAND ..` on all tasks of the Slurm job and
# ends with its exit code. Where it was stopped by a signal with its work saved, the job goes back into the queue.
#   SCONE             the program; default: build/scone of this repository
#   SCONE_LAUNCHER    srun (default) or mpirun: what starts the ranks
#   SCONE_SRUN_MPI    srun's --mpi; default: pmix (srun --mpi=list says what there is)
#   SCONE_MOST_FRUITLESS    starts in a row that a signal may end before anything was saved; default: 5
# SIGTERM and SIGUSR1, which --signal=B:USR1@SECONDS sends before the job's time is over, reach the ranks as SIGUSR1.
set -euo pipefail
launch=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scone=${SCONE:-$launch/../build/scone}
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "job.sh: not in a Slurm job; submit with sbatch: docs/slurm.md" >&2
  exit 2
fi
if [ ! -x "$scone" ]; then
  echo "job.sh: $scone: no such program; build it with launch/setup.sh, or set SCONE to its path" >&2
  exit 2
fi
# The last task of an array has the array's id for its own, by which Slurm would mean all of them.
job=$SLURM_JOB_ID
if [ "${SLURM_ARRAY_JOB_ID:-}" = "$job" ]; then job=${job}_$SLURM_ARRAY_TASK_ID; fi
interrupted='' signalled='' child=''
on_signal() {
  interrupted=1 signalled=1
  if [ -n "$child" ]; then kill -USR1 "$child" 2>/dev/null || true; fi
}
trap on_signal TERM USR1
# A command of Slurm's, up to six times, ten seconds apart: its controller may be too busy to answer.
ask_slurm() {
  local pause
  for pause in 10 10 10 10 10 ''; do
    "$@" && return
    [ -z "$pause" ] || sleep "$pause"
  done
  return 1
}
case ${SCONE_LAUNCHER:-srun} in
  # A rank that was killed leaves the others waiting, so srun ends them a minute after the first has ended; not at once, as the ranks of a
  # run that has saved do not all end in the same moment.
  srun) command=(srun "--mpi=${SCONE_SRUN_MPI:-pmix}" --kill-on-bad-exit=0 --wait=60) ;;
  mpirun) command=("$launch/mpirun.sh" -np "${SLURM_NTASKS:-1}") ;;
  *)
    echo "job.sh: SCONE_LAUNCHER: expected srun or mpirun, found ${SCONE_LAUNCHER}" >&2
    exit 2
    ;;
esac
# Since Slurm 22.05 srun does not take it from the job.
if [ "${command[0]}" = srun ] && [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  command+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
fi
# srun of Slurm 22.05 ends with 0 where it could start no task: the first task leaves a word in a file that it is there.
if [ "${command[0]}" = srun ]; then
  started=$(mktemp "$PWD/.scone-job-$SLURM_JOB_ID.XXXXXX")
  trap 'rm -f "$started"' EXIT
  # shellcheck disable=SC2016
  command+=(sh -c '[ "$SLURM_PROCID" != 0 ] || echo started >"$0"; exec "$@"' "$started")
fi
# Slurm before 23.02 does not tell when the job's time is over.
if [ -z "${SLURM_JOB_END_TIME:-}" ]; then
  end=$(squeue --noheader --job="$job" --format=%e || true) # N/A where it has no limit
  if [ -n "$end" ] && end=$(date --date="$end" +%s 2>/dev/null); then export SLURM_JOB_END_TIME=$end; fi
fi

code=75
if [ -z "$signalled" ]; then
  set -m # in a process group of its own srun or mpirun gets no signal but from here
  "${command[@]}" "$scone" "$@" &
  child=$!
  while
    interrupted=
    wait "$child" && code=0 || code=$?
    [ -n "$interrupted" ]
  do :; done
fi

word=started
if [ -n "${started:-}" ]; then
  word=$(cat "$started")
  rm -f "$started" # not left to the end, which is a kill where the job is requeued
fi
if [ "$code" = 0 ] && [ "$word" != started ]; then
  echo "job.sh: srun ended with 0 but started nothing; see its messages above" >&2
  exit 1
fi

# Also what the signal killed, a run that had not begun or a bake: started again, both go on. But not for ever: where the signal comes
# before anything can be saved, each start is as fruitless as the one before. A bake keeps the rows that it has finished.
again='' fruitless=0 record=$PWD/.scone-job-$SLURM_JOB_ID.fruitless
if [ "$code" = 75 ] || { [ "$code" -gt 128 ] && [ -n "$signalled" ]; }; then again=1; fi
if [ -n "$again" ] && { [ "$code" != 75 ] || [ -z "$child" ]; } && [ "${1:-}" != bake ]; then
  fruitless=$(($(cat "$record" 2>/dev/null || echo 0) + 1))
fi
if [ "$fruitless" -gt "${SCONE_MOST_FRUITLESS:-5}" ]; then
  echo "job.sh: $fruitless starts in a row were ended by a signal before anything was saved: not requeued; give the job more time" \
    "(--time), or let the signal come later (--signal)" >&2
  again=''
fi
if [ -n "$again" ] && [ "$fruitless" -gt 0 ]; then echo "$fruitless" >"$record" || true; else rm -f "$record"; fi
if [ -n "$again" ]; then
  state=$(ask_slurm squeue --noheader --job="$job" --format=%T || true)
  if [ "$state" = RUNNING ]; then # not where it was cancelled
    echo "job.sh: stopped by a signal (exit code $code): back into the queue" >&2
    ask_slurm scontrol requeue "$job"
  else
    echo "job.sh: stopped by a signal (exit code $code), but the job is ${state:-gone}: not requeued" >&2
  fi
fi
exit "$code"
