#!/usr/bin/env bash
# scone::table as another project uses it: the component is installed alone, its headers need nothing else, and the example in docs is
# configured, built and run with it, outside the repository.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
build=$(dirname "$scone")
make_bundle=$build/tests/scone_tiny_bundle

cmake --install "$build" --component table --prefix "$folder/prefix" >install.log || fail "not installed: $(cat install.log)"
unexpected=$(cd prefix && find . -type f | grep -v -E \
  '^\./(include/scone/(checkpoint/table/[a-z_]+|parallel/error)\.h|lib[^/]*(/[^/]+)?/(libscone_table\.a|cmake/scone/scone[A-Za-z-]+\.cmake))$' || true)
[ -z "$unexpected" ] || fail "installed beside the table: $unexpected"

# Each public header stands alone.
for header in fgram_table row_format row_source table_index table_layout; do
  echo "#include \"checkpoint/table/$header.h\"" >header.cpp
  "${CXX:-c++}" -std=c++20 -Wall -Wextra -Werror -fsyntax-only -Iprefix/include/scone header.cpp || fail "$header.h needs more"
done

cp -r "$repository/docs/examples/table_lookup" example
cmake -S example -B lookup -DCMAKE_PREFIX_PATH="$folder/prefix" >cmake.log 2>&1 || fail "not configured: $(cat cmake.log)"
cmake --build lookup >build.log 2>&1 || fail "not built: $(cat build.log)"

for dtype in fp32 bf16 fp16 int8; do
  "$make_bundle" bundle "$dtype" >made
  head -n 1 made >tokens
  tail -n +2 made >expected
  [ "$(grep -c -v -- ' 0 -1$' expected)" -gt 50 ] || fail "few f-grams are expected to be found: $(cat expected)"
  for access in ram mmap direct; do
    lookup/table_lookup bundle "$access" <tokens >found 2>err || fail "$access $dtype: $(cat err)"
    diff expected found || fail "$access $dtype: other rows"
    if [ "$access" != direct ] && [ -s err ]; then fail "$access $dtype: $(cat err)"; fi
  done
done

# What is wrong is said.
says() {
  local message=$1 code=0
  shift
  "$@" >out 2>err <tokens || code=$?
  { [ "$code" = 1 ] && grep -q -- "$message" err; } || fail "expected '$message' and exit code 1 from $*: $code, $(cat err)"
}
says "nowhere/bundle.json: cannot be opened" lookup/table_lookup nowhere
says "expected ram, mmap or direct" lookup/table_lookup bundle disk
truncate -s -1 bundle/table/rows-00001.bin
says "rows-00001.bin: expected .* (cut short)" lookup/table_lookup bundle
rm bundle/table/rows-00001.bin
says "rows-00001.bin: No such file" lookup/table_lookup bundle
# A version that is not installed is not taken.
sed -i 's/scone 0.1/scone 9.9/' example/CMakeLists.txt
if cmake -S example -B other -DCMAKE_PREFIX_PATH="$folder/prefix" >cmake.log 2>&1; then fail "scone 9.9 was found"; fi
echo "installed table: the example finds what a search finds, in 4 types and from 3 sources"
