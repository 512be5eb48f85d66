#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: tests/run.sh [--reference] [ctest options ..]
# --reference also compares with PyTorch (Debian's python3-torch). Ends with ctest's own summary and its exit code.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
setup=(--tests)
if [ "${1:-}" = --reference ]; then
  setup+=(--reference)
  shift
fi
"$repository/launch/setup.sh" "${setup[@]}"
if [ "${#setup[@]}" = 2 ] && ! ctest --test-dir "$repository/build" -N -L '^reference$' | grep 'Test *#' >/dev/null; then
  echo "tests/run.sh: the build holds no test labelled reference, so PyTorch would be compared with nothing" >&2
  exit 1
fi
exec ctest --test-dir "$repository/build" --parallel "$(nproc)" --output-on-failure --no-tests=error "$@"
