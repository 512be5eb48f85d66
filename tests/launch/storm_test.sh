#!/usr/bin/env bash
# A short storm of kills and restarts: storm_test.sh SCONE. The long one: python3 tests/launch/storm.py build/scone 60
set -euo pipefail
exec python3 -B "$(dirname "${BASH_SOURCE[0]}")/storm.py" "$1" 6
