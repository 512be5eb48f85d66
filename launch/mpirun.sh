#!/usr/bin/env bash
# mpirun for scripts: launch/mpirun.sh -np N PROGRAM [ARGUMENT..]
# Open MPI refuses to run as root unless told to, and to start more ranks than cores; it also pins each rank to one core,
# which would put all of a rank's threads there.
set -euo pipefail
options=(--bind-to none --oversubscribe --use-hwthread-cpus)
[ "$(id -u)" = 0 ] && options+=(--allow-run-as-root)
exec mpirun "${options[@]}" "$@"
