# shellcheck shell=bash
# A Slurm of one node on this machine, for tests; sourced by them.
#   slurm_start    starts munged, slurmctld and slurmd on free ports, and sets SLURM_CONF, by which sbatch and the others find them
#   slurm_stop     ends them, with all jobs
# Jobs have numbers from a random one on: Open MPI names its shared memory by host, user and Slurm's job, and two such Slurms at the same
# time would share it.
# Everything is in a temporary folder, and goes when the test ends, however it ends (keeper.py). Needs root and Debian's slurm-wlm and
# munge; systemd and cgroups it does not need. The node says that it has 4 cores, whatever the machine has. Where the daemons cannot
# be started slurm_start says why and returns 77, which ctest counts as skipped.

slurm_start() {
  local tests program ports
  if [ "$(id -u)" != 0 ]; then
    echo "SKIPPED: Slurm's daemons need root to start jobs, and this is $(id -un); nothing of Slurm was tested" >&2
    return 77
  fi
  for program in munged slurmctld slurmd sbatch srun scancel setsid python3; do
    if ! PATH=$PATH:/usr/sbin command -v "$program" >/dev/null; then
      echo "slurm_start: $program is not installed; launch/setup.sh --tests installs slurm-wlm and munge" >&2
      return 1
    fi
  done
  tests=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  slurm_folder=$(mktemp -d --tmpdir slurm.XXXXXX)
  chmod 755 "$slurm_folder" # munged refuses a socket that others cannot reach
  mkdir "$slurm_folder"/{state,spool,munge,tmp}
  (umask 077 && head -c 1024 /dev/urandom >"$slurm_folder/munge/key")
  ports=$(python3 -c '
import socket
sockets = [socket.socket() for _ in range(2)]
for each in sockets: each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))')
  # Open MPI names its shared memory after the job's number, which two of these that run at once must not have in common.
  cat >"$slurm_folder/slurm.conf" <<CONF
ClusterName=scone
FirstJobId=$((1 + $$ % 30000 * 1000))
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=root
SlurmctldPort=${ports% *}
SlurmdPort=${ports#* }
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$slurm_folder/munge/socket
StateSaveLocation=$slurm_folder/state
SlurmdSpoolDir=$slurm_folder/spool
TmpFS=$slurm_folder/tmp
SlurmctldPidFile=$slurm_folder/slurmctld.pid
SlurmdPidFile=$slurm_folder/slurmd.pid
SlurmctldLogFile=$slurm_folder/slurmctld.log
SlurmdLogFile=$slurm_folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
JobRequeue=1
NodeName=node0 NodeHostname=$(hostname) NodeAddr=127.0.0.1 CPUs=4
PartitionName=all Nodes=node0 Default=YES MaxTime=INFINITE State=UP
CONF
  cat >"$slurm_folder/daemons.sh" <<DAEMONS
export PATH=\$PATH:/usr/sbin SLURM_CONF=$slurm_folder/slurm.conf
cd "$slurm_folder"
munged --foreground --key-file="\$PWD/munge/key" --socket="\$PWD/munge/socket" --pid-file="\$PWD/munge/pid" \
  --log-file="\$PWD/munge/log" --seed-file="\$PWD/munge/seed" &
for _ in \$(seq 100); do
  [ -S munge/socket ] && break
  sleep 0.05
done
slurmctld -D &
slurmd -D &
wait
DAEMONS
  setsid --fork python3 -B "$tests/keeper.py" $$ "$slurm_folder" bash "$slurm_folder/daemons.sh"
  export SLURM_CONF=$slurm_folder/slurm.conf
  for _ in $(seq 600); do
    [ "$(timeout 5 sinfo --noheader --format=%t 2>/dev/null)" = idle ] && return 0
    sleep 0.1
  done
  echo "slurm_start: no idle node after 60 s" >&2
  tail -n 20 "$slurm_folder"/{keeper.log,munge/log,slurmctld.log,slurmd.log} >&2
  slurm_stop
  return 1
}

slurm_stop() {
  local keeper
  keeper=$(cat "$slurm_folder/keeper.pid" 2>/dev/null) || return 0
  kill "$keeper" 2>/dev/null || return 0
  while [ -d "/proc/$keeper" ]; do sleep 0.1; done
}
