#!/usr/bin/env bash
# Builds with ThreadSanitizer (build-tsan) and runs the tests of what has threads of its own: the asynchronous checkpoint writer, the
# f-gram table's rows and the batch stream. tests/tsan.sh [REPEATS]      Exit code 66 where a race was found. OpenMP runs on one thread:
# its barriers are not seen.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
repeats=${1:-3}
build=$repository/build-tsan
mkdir -p "$build"
{ cmake -S "$repository" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=None -DSCONE_NATIVE=OFF \
  -DCMAKE_CXX_FLAGS="-O1 -g -fsanitize=thread -Wno-tsan" && cmake --build "$build" --parallel 2 --target test_checkpoint test_checkpoint_table test_data; } \
  >"$build/build.log" 2>&1 || { tail -n 40 "$build/build.log" && echo "tests/tsan.sh: the build failed: $build/build.log" && exit 1; } >&2
# Libraries that are not instrumented (MPI, HDF5) synchronise in ways that are not seen.
export OMP_NUM_THREADS=1 TSAN_OPTIONS="halt_on_error=1 exitcode=66 ignore_noninstrumented_modules=1"
# The test that forks runs without: ThreadSanitizer does not follow a fork of a process with threads.
run() { # PROGRAM FILTER
  "$build/tests/$1" --gtest_filter="$2" --gtest_list_tests | grep '^  ' >/dev/null || { echo "tests/tsan.sh: $1 has no test $2" >&2 && exit 1; }
  "$build/tests/$1" --gtest_filter="$2" --gtest_repeat="$repeats" --gtest_brief=1
}
run test_checkpoint 'CheckpointWriter.*'
run test_checkpoint_table 'RowSourceTest.Serve*'
run test_data 'BatchStream*'
echo "no race in $repeats runs of the checkpoint writer's, the table's and the batch stream's tests"
