#!/usr/bin/env bash
# scone doctor: what it prints alone and under mpirun, and that it finds what is made wrong here: doctor_test.sh SCONE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
for variable in $(compgen -e | grep -E '^(SLURM_|OMP_|OPENBLAS_|MKL_)'); do unset "$variable"; done

has() { grep -qE -- "$1" out || fail "no '$1' in:"$'\n'"$(cat out)"; }
has_not() { if grep -qE -- "$1" out; then fail "'$1' in:"$'\n'"$(cat out)"; fi; }
first_cpu=$(python3 -c 'import os; print(min(os.sched_getaffinity(0)))')

# Alone: nothing is seriously wrong; the versions are those that other programs tell.
begin=$SECONDS
ends 0 '^scone +0\.[0-9]+\.[0-9]+; revision ([0-9a-f]{12}|unknown)$' "$scone" doctor
[ $((SECONDS - begin)) -lt 30 ] || fail "took $((SECONDS - begin)) s"
has '^compiler +[A-Za-z]+ [0-9.]+; -O[0-9]'
has '^HDF5 +1\.[0-9]+\.[0-9]+$'
has '^started by +none: a single rank$'
has '^all-reduce +one rank: nothing to reduce$'
has "^node +$(hostname): 1 of 1 ranks; .*, $(getconf _NPROCESSORS_ONLN) CPUs"
has "a process may open ($(ulimit -n)|unlimited) files"
has '^disk +\.: written with fsync at [0-9]+ MB/s, read at [0-9]+ MB/s; [0-9.]+ of [0-9.]+ GB free$'
has_not '^ +WRONG'
[ "$(ls -A)" = out ] || fail "left behind: $(ls -A)"
if command -v mpirun >/dev/null; then
  has "^MPI +Open MPI v$(mpirun --version | sed -n 's/.*) //p'); MPI_THREAD_MULTIPLE$"
fi

# As an object; ranks that share the CPUs as they should: not more threads than those.
OMP_NUM_THREADS=1 taskset --cpu-list "$first_cpu" "$scone" doctor --json >out 2>errors || fail "doctor --json: $(cat out errors)"
python3 - "$first_cpu" <<'PYTHON'
import json, os, sys
report = json.load(open("out"))
rank, = report["ranks"]
assert rank["cpus"] == [int(sys.argv[1])] and rank["threads"] == 1, rank
assert rank["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rank
assert rank["thread_counts"] == [["OMP_NUM_THREADS", "1"]], rank
disk, system = report["disk"], os.statvfs(".")
assert disk["capacity_bytes"] == system.f_blocks * system.f_frsize, disk
assert disk["write_megabytes_per_second"] > 0 and disk["read_megabytes_per_second"] > 0 and disk["bytes"] > 0, disk
assert not [finding for finding in report["findings"] if finding["serious"]], report["findings"]
assert report["versions"].keys() == {"scone", "compiler", "MPI", "HDF5", "CUDA", "NCCL"}
PYTHON

# More threads than CPUs; thread counts that are none; a folder that cannot be written (as root all can be: /proc cannot).
OMP_NUM_THREADS=2 ends 1 "WRONG +$(hostname): rank 0 computes with 2 threads on 1 CPUs \($first_cpu\)" taskset --cpu-list "$first_cpu" "$scone" doctor
OPENBLAS_NUM_THREADS=many ends 0 "warning +OPENBLAS_NUM_THREADS='many' is no number of threads" "$scone" doctor
ends 1 'WRONG +/proc cannot be written: ' "$scone" doctor --folder /proc
ends 2 'no-such-folder' "$scone" doctor --folder no-such-folder
(ulimit -n 200 && ends 0 "warning +$(hostname): a process may open 200 files" "$scone" doctor)

# In a job of several tasks, but alone; as one of several processes that do not know of one another.
SLURM_JOB_ID=7 SLURM_NTASKS=2 ends 1 'WRONG +Slurm gives this job 2 tasks, but this is the only rank' "$scone" doctor
has '^ +-> start scone with `srun --mpi=pmix` or `mpirun -np \$SLURM_NTASKS`$'
has '^Slurm +.*; Slurm job 7: 1 node, 2 tasks'
step=(SLURM_JOB_ID=7 SLURM_NTASKS=2 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_MPI_TYPE=none)
ends 1 'WRONG +(srun started this process as one of 2 \(--mpi=none\) without PMIx|started as one of 2 ranks|srun started 2 processes)' \
  env "${step[@]}" SLURM_PROCID=0 "$scone" doctor
code=0
env "${step[@]}" SLURM_PROCID=1 "$scone" doctor >out 2>&1 || code=$?
[ "$code" = 1 ] && [ ! -s out ] || fail "the second process ended with $code, expected 1, and reports too: $(cat out)"

# Threads as Slurm gives them to a task, where there are CPUs enough.
SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_CPUS_PER_TASK=1 ends 0 'rank 0: 1 thread, CPUs' "$scone" doctor

# Two ranks: on CPUs of their own or sharing several, and bound to the same one.
if command -v mpirun >/dev/null; then
  if [ "$(nproc)" -ge 2 ]; then
    ends 0 "^node +$(hostname): 2 of 2 ranks" "$mpirun" -np 2 "$scone" doctor
    has_not '^ +WRONG'
    has '^all-reduce +64 MiB: [0-9.]+ ms, [0-9.]+ GB/s$'
    has '^clocks +within [0-9.]+ ms of one another$'
    [ "$(grep -c '^all-reduce' out)" = 3 ] || fail "not three sizes: $(cat out)"
    [ "$(id -u)" != 0 ] || has 'warning +mpirun runs as root'
    OMP_PROC_BIND=true ends 1 "WRONG .* ranks 0-1 share CPUs .*, and OMP_PROC_BIND=true binds" "$mpirun" -np 2 "$scone" doctor
  fi
  OMP_NUM_THREADS=1 ends 1 "WRONG +$(hostname): ranks 0-1 compute with 2 threads together on the same 1 CPUs \($first_cpu\)" \
    taskset --cpu-list "$first_cpu" "$mpirun" -np 2 "$scone" doctor
  has '^started by +mpirun \(PMIx'
  cat >threads.sh <<'SCRIPT'
[ "$OMPI_COMM_WORLD_RANK" = 0 ] || export OMP_NUM_THREADS=3
exec "$@"
SCRIPT
  OMP_NUM_THREADS=1 ends 1 'warning +ranks compute with 1 to 3 threads' "$mpirun" -np 2 bash threads.sh "$scone" doctor
  ends 1 '"serious":true' taskset --cpu-list "$first_cpu" "$mpirun" -np 2 "$scone" doctor --json
fi
[ -z "$(find . -name '.scone-doctor*')" ] || fail "left behind: $(ls -A)"
echo "doctor_test: passed"
