#!/usr/bin/env bash
# Builds the fuzz targets over the readers of files (clang 14, libFuzzer, ASan, UBSan) and runs each:
#   tests/fuzz.sh [SECONDS [READER ..]]        600 seconds each by default; readers: those of tests/fuzz/*_fuzz.cpp
# Starts from tests/fuzz/corpus and what earlier runs found (build-fuzz/found). Two run at a time. Prints executions, coverage and
# failures of each; exit code 1 where one failed: its input is build-fuzz/READER/crash-.. (or slow-, leak-, oom-, timeout-), and the
# mended reader's test is that file put into tests/fuzz/corpus/READER.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
seconds=${1:-600}
[[ $seconds =~ ^[0-9]+$ ]] || { echo "usage: tests/fuzz.sh [SECONDS [READER ..]]" >&2 && exit 2; }
shift || true
readers=("$@")
[ ${#readers[@]} -gt 0 ] || readers=(manifest safetensors table index tokenizer shard vocabulary)
command -v clang++-14 >/dev/null || { echo "tests/fuzz.sh: clang++-14 is missing: apt-get install clang-14 libclang-rt-14-dev" >&2 && exit 1; }

build=$repository/build-fuzz
mkdir -p "$build"
{ cmake -S "$repository/tests/fuzz" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=None -DCMAKE_C_COMPILER=clang-14 \
  -DCMAKE_CXX_COMPILER=clang++-14 && cmake --build "$build" --parallel 2; } >"$build/build.log" 2>&1 ||
  { tail -n 40 "$build/build.log" && echo "tests/fuzz.sh: the build failed: $build/build.log" && exit 1; } >&2

run() {
  local reader=$1
  mkdir -p "$build/found/$reader" "$build/$reader" && rm -f "$build/$reader"/{crash,leak,oom,timeout,slow}-*
  cd "$build/$reader"
  "$build/fuzz_$reader" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -max_len=16384 -print_final_stats=1 \
    -artifact_prefix="$build/$reader/" "$build/found/$reader" "$repository/tests/fuzz/corpus/$reader" >log.txt 2>&1
}
export -f run
export build repository seconds
status=0
printf '%s\n' "${readers[@]}" | xargs -P 2 -I{} bash -c 'run "$1" || echo "$?" >"$build/$1/failed"; [ ! -e "$build/$1/failed" ]' _ {} || status=1
for reader in "${readers[@]}"; do
  log=$build/$reader/log.txt
  printf '%-12s %9s executions, %s; ' "$reader" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
    "$(grep -oE 'cov: [0-9]+ ft: [0-9]+' "$log" | tail -n 1)"
  if [ -e "$build/$reader/failed" ]; then
    echo "FAILED: $(grep -m 1 -E 'ERROR|runtime error|SUMMARY|terminate' "$log" || tail -n 1 "$log")"
    rm "$build/$reader/failed"
    status=1
  else
    echo "no failure in $seconds s"
  fi
done
exit $status
