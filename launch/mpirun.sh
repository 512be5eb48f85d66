#!/usr/bin/env bash
# mpirun for scripts: launch/mpirun.sh -np N PROGRAM [ARGUMENT..]
# Open MPI refuses to run as root unless told to, and to start more ranks than cores; it also pins each rank to one core,
# which would put all of a rank's threads there. At SIGTERM or ctrl-C it kills the ranks after a second; here the first of them becomes
# a SIGUSR1 to all ranks, at which `scone train` saves and leaves with 75, and the second goes to mpirun as it is.
set -euo pipefail
options=(--bind-to none --oversubscribe --use-hwthread-cpus)
[ "$(id -u)" = 0 ] && options+=(--allow-run-as-root)

interrupted=
on_signal() {
  interrupted=1
  kill -s "$1" "$job" 2>/dev/null || true
}
on_stop() {
  trap 'on_signal TERM' TERM
  trap 'on_signal INT' INT
  on_signal USR1
}
# In a process group of its own mpirun gets no signal but from here, whether one is sent to this script or to its group. Where
# this script is killed, mpirun gets SIGTERM.
set -m
setpriv --pdeathsig TERM mpirun "${options[@]}" "$@" <&0 &
job=$!
trap on_stop TERM INT
for signal in HUP QUIT USR1 USR2; do
  # shellcheck disable=SC2064
  trap "on_signal $signal" "$signal"
done
code=0
while
  interrupted=
  wait "$job" && code=0 || code=$?
  [ -n "$interrupted" ]
do :; done
exit "$code"
