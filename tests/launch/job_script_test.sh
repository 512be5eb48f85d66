#!/usr/bin/env bash
# When launch/slurm/job.sh puts a job back into the queue, without a Slurm, whose commands are played: job_script_test.sh SCONE
set -euo pipefail
job=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../launch" && pwd)/slurm/job.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for variable in $(compgen -e SLURM_) $(compgen -e SCONE_); do unset "$variable"; done

fail() {
  echo "job_script_test: $*"
  exit 1
}
mkdir programs
# A controller that is busy gives its first answers of a start only when asked again.
printf '#!/usr/bin/env bash\n[ -e "%s/asked" ] || { touch "%s/asked"; exit 1; }\necho RUNNING\n' "$folder" "$folder" >programs/squeue
printf '#!/usr/bin/env bash\n[ -e "%s/told" ] || { touch "%s/told"; exit 1; }\necho "$@" >>"%s/requeued"\n' "$folder" "$folder" "$folder" \
  >programs/scontrol
printf '#!/usr/bin/env bash\nexec /bin/sleep 0.05\n' >programs/sleep
# srun's options, then the command of the first task.
printf '#!/usr/bin/env bash\nwhile [[ "$1" == --* ]]; do shift; done\nSLURM_PROCID=0 exec "$@"\n' >programs/srun
# The program: ends with CODE at a signal; `killed` has no handler.
cat >programs/scone <<'PROGRAM'
#!/usr/bin/env bash
[ "$2" = killed ] || trap 'exit "$2"' USR1
echo >running
while :; do sleep 0.05; done
PROGRAM
chmod +x programs/*
export PATH="$folder/programs:$PATH" SCONE="$folder/programs/scone" SLURM_JOB_ID=17 SLURM_JOB_END_TIME=9999999999

# signalled EXPECTED-CODE REQUEUED SUBCOMMAND ARGUMENT: one start of the job, signalled while the program runs.
signalled() {
  local code=0 requeued=no
  rm -f running requeued asked told
  "$job" "$3" "$4" 2>errors &
  for _ in $(seq 200); do [ -e running ] || sleep 0.05; done
  kill -USR1 $!
  wait $! || code=$?
  [ -e requeued ] && requeued=yes
  [ "$code" = "$1" ] && [ "$requeued" = "$2" ] ||
    fail "$3 $4: ended with $code, requeued: $requeued; expected $1, $2: $(cat errors)"
}

signalled 75 yes train 75
signalled 1 no train 1
for _ in 1 2 3; do signalled 138 yes train killed; done
signalled 75 yes train 75 # something was saved: counted anew
for _ in 1 2 3 4 5; do signalled 138 yes train killed; done
signalled 138 no train killed
grep -q 'job.sh: 6 starts in a row were ended by a signal before anything was saved: not requeued; give the job more time' errors ||
  fail "no word of why: $(cat errors)"
for _ in 1 2; do SCONE_MOST_FRUITLESS=0 signalled 138 yes bake killed; done
SCONE_MOST_FRUITLESS=0 signalled 138 no eval killed
# A task of an array, here the last one, whose job has the array's number, by the number that is its own.
SLURM_JOB_ID=30 SLURM_ARRAY_JOB_ID=30 SLURM_ARRAY_TASK_ID=4 signalled 75 yes train 75
[ "$(cat requeued)" = 'requeue 30_4' ] || fail "expected task 30_4 to be requeued, found: $(cat requeued)"
SLURM_JOB_ID=31 SLURM_ARRAY_JOB_ID=30 SLURM_ARRAY_TASK_ID=1 signalled 75 yes train 75
[ "$(cat requeued)" = 'requeue 31' ] || fail "expected job 31 to be requeued, found: $(cat requeued)"
[ -z "$(find . -name '.scone-job-*')" ] || fail "left behind: $(find . -name '.scone-job-*')"
echo "job_script_test: passed"
