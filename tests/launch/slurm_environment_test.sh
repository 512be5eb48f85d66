#!/usr/bin/env bash
# What scone makes of the environment that Slurm gives a job, without a Slurm: slurm_environment_test.sh SCONE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
for variable in $(compgen -e SLURM_); do unset "$variable"; done

for i in $(seq 50); do echo "{\"text\": \"the model of a token $i in the corpus of $i frequent grams\"}"; done >text.jsonl
"$scone" tokenize --input text.jsonl --output shards --train-tokenizer 280
cat >run.yaml <<'YAML'
data: {train: shards/train}
model: {main: {width: 32, layers: 1, heads: 4, context: 32}}
trainer: {steps: 1, batch_tokens: 64}
run: {folder: run}
YAML
ends 0 'computing on' "$scone" train run.yaml run.folder=alone
if grep -q Slurm out; then echo "a run outside Slurm speaks of it: $(cat out)" && exit 1; fi

job=(SLURM_JOB_ID=17 SLURM_ARRAY_JOB_ID=10 SLURM_ARRAY_TASK_ID=2 SLURM_RESTART_COUNT=3 SLURM_JOB_NUM_NODES=2 SLURM_NTASKS=8
  SLURM_CPUS_PER_TASK=1 SLURM_CPUS_ON_NODE=4 SLURM_JOB_PARTITION=long)
ends 0 'Slurm job 10_2, restart 3, in long: 2 nodes, 8 tasks, 1 CPU each, 2h 59m left$' \
  env "${job[@]}" SLURM_JOB_END_TIME=$(($(date +%s) + 3 * 3600 - 5)) "$scone" train run.yaml run.folder=batch
ends 0 'run.time_limit 90000 is more than the [0-9]+ s that the Slurm job has left; set it lower' \
  env "${job[@]}" SLURM_JOB_END_TIME=$(($(date +%s) + 3600)) "$scone" train run.yaml run.folder=limit run.time_limit=90000
ends 0 'Slurm job 17: 1 node, 1 task, time left unknown$' \
  env SLURM_JOB_ID=17 SLURM_JOB_NUM_NODES=x SLURM_CPUS_PER_TASK=2x SLURM_JOB_END_TIME= "$scone" train run.yaml run.folder=odd

# Several processes of a step of which each would take itself for the only rank.
ends 2 '^scone: error: .*started .*one of 2|^scone: error: srun started this process as one of 2 .*srun --mpi=pmix' \
  env "${job[@]}" SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_MPI_TYPE=none "$scone" train run.yaml run.folder=step
[ ! -e step ] || { echo "a run began although its ranks do not know of one another" && exit 1; }
# Under an mpirun that a batch script starts the step is not srun's.
ends 0 'Slurm job 10_2' env "${job[@]}" SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 OMPI_COMM_WORLD_SIZE=1 OMPI_MCA_ess=singleton \
  "$scone" train run.yaml run.folder=mpirun
echo "slurm_environment_test: passed"
