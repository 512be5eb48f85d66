#!/usr/bin/env bash
# docs/read_bundle.py, a reader of bundles in Python, finds what a map of all f-grams finds: ids and rows of n-grams, f-grams and others,
# in bundles of all types of rows, several row files, ids without f-grams, and indices by starts and by degrees.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
build=$(dirname "$scone")
make_bundle=$build/tests/scone_tiny_bundle
find_python

reader=$repository/docs/read_bundle.py
[ "$(wc -l <"$reader")" -le 100 ] || fail "$reader has more than 100 lines"
cat >compare.py <<'PYTHON'
import importlib.util, sys
import numpy as np

reader = importlib.util.spec_from_file_location("read_bundle", sys.argv[1])
module = importlib.util.module_from_spec(reader)
reader.loader.exec_module(module)
table = module.FgramTable(sys.argv[2])
ids, rows, others = [], [], 0
for line in open(f"{sys.argv[2]}/ngrams.txt"):
    key, row = line.split(":")
    expected, *ngram = map(int, key.split())
    found = table.index.find(ngram)
    if found != expected:
        sys.exit(f"{ngram}: expected id {expected}, found {found}")
    others += expected < 0
    if expected >= 0:
        ids.append(expected)
        rows.append(np.array(row.split(), "<f4"))
found = table.lookup(ids)
if found.dtype != np.float32 or not np.array_equal(found, rows):
    sys.exit(f"other rows: {found}, expected {np.array(rows)}")
if len(table.files) < 3 or others < len(ids) // 2 or len(set(ids)) < 20:
    sys.exit(f"compared too little: {len(table.files)} files, {len(ids)} f-grams, {others} others")
if table.lookup([]).shape != (0, table.width):
    sys.exit("no ids are not no rows")
for wrong in -1, table.rows:
    try:
        table.lookup([wrong])
        sys.exit(f"row {wrong} was found")
    except IndexError:
        pass
PYTHON

for dtype in fp32 bf16 fp16 int8; do
  for seed in "" 1 2 3 4 5 6; do
    rm -rf bundle
    "$make_bundle" bundle "$dtype" $seed >made
    head -n 1 made >tokens
    tail -n +2 made >expected
    "$python" -B "$reader" bundle <tokens >found || fail "$dtype, seed '$seed'"
    cmp expected found || fail "$dtype, seed '$seed': other matches: $(diff expected found | head -n 10)"
    if [ -n "$seed" ]; then "$python" -B compare.py "$reader" bundle || fail "$dtype, seed $seed"; fi
  done
done

# What is wrong is said.
says() {
  if "$python" -B "$reader" bundle <tokens >out 2>err; then fail "expected '$1'"; fi
  grep -q -- "$1" err || fail "expected '$1', found $(cat err)"
}
sed -i 's/"format_version": 2/"format_version": 1/' bundle/bundle.json
says "bundle.json: expected a bundle of version 2"
sed -i 's/"format_version": 1/"format_version": 2/' bundle/bundle.json
mv bundle/table/rows-00001.bin other.bin
says "No such file.*rows-00001.bin"
cp bundle/table/rows-00000.bin bundle/table/rows-00001.bin
says "rows-00001.bin: first_row: expected [0-9]*, found 0"
head -c -1 other.bin >bundle/table/rows-00001.bin
says "rows-00001.bin: bytes: expected"
cp other.bin bundle/table/rows-00001.bin
"$make_bundle" other int8 9 >/dev/null
cp other/table/index.bin bundle/table/index.bin
says "index.bin: fgrams: expected 'fingerprint-6', found 'fingerprint-9'"
echo "read bundle: 28 bundles of 4 types, the same ids and rows"
