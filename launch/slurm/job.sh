#!/usr/bin/env bash
# What the sbatch files here have in common: job.sh SUBCOMMAND [ARGUMENT..] runs `scone SUBCOMMAND ..` on all tasks of the Slurm job and
# ends with its exit code. Where it was stopped by a signal with its work saved, the job goes back into the queue.
#   SCONE             the program; default: build/scone of this repository
#   SCONE_LAUNCHER    srun (default) or mpirun: what starts the ranks
#   SCONE_SRUN_MPI    srun's --mpi; default: pmix (srun --mpi=list says what there is)
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
# Slurm before 23.02 does not tell when the job's time is over.
if [ -z "${SLURM_JOB_END_TIME:-}" ]; then
  end=$(squeue --noheader --job="$SLURM_JOB_ID" --format=%e || true) # N/A where it has no limit
  if [ -n "$end" ] && end=$(date --date="$end" +%s 2>/dev/null); then export SLURM_JOB_END_TIME=$end; fi
fi

interrupted= signalled=
on_signal() {
  interrupted=1 signalled=1
  kill -USR1 "$child" 2>/dev/null || true
}
set -m # in a process group of its own srun or mpirun gets no signal but from here
"${command[@]}" "$scone" "$@" &
child=$!
trap on_signal TERM USR1
code=0
while
  interrupted=
  wait "$child" && code=0 || code=$?
  [ -n "$interrupted" ]
do :; done

# A bake has no need to save: it goes on where it was ended.
if [ "$code" = 75 ] || { [ "$code" != 0 ] && [ -n "$signalled" ] && [ "${1:-}" = bake ]; }; then
  state=$(squeue --noheader --job="$SLURM_JOB_ID" --format=%T || true)
  if [ "$state" = RUNNING ]; then # not where it was cancelled
    echo "job.sh: stopped by a signal (exit code $code): back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "job.sh: stopped by a signal (exit code $code), but the job is ${state:-gone}: not requeued" >&2
  fi
fi
exit "$code"
