#!/usr/bin/env bash
# The ids of `scone tokenize` with GPT-2's vocabulary are those of js-tiktoken, on 1 MB of code,
# emoji, CJK, runs of spaces and the like. Needs node, npm and its registry: without them it fails.
# Usage: gpt2_ids_test.sh SCONE
set -euo pipefail

scone=$(realpath "$1")
source_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Debian's own Python has h5py; another python3 may stand before it in PATH.
python=python3
"$python" -c 'import h5py' 2>/dev/null || python=/usr/bin/python3

# The package stays in the build folder, so that it is fetched once.
folder=$PWD/gpt2_ids
mkdir -p "$folder"
cd "$folder"
version=1.0.21
if [[ ! -f node_modules/js-tiktoken/package.json ]]; then
  echo '{"private": true}' >package.json
  npm install --no-audit --no-fund --save-exact "js-tiktoken@$version"
fi
rm -rf shards tokenizer.json text.txt ids.json
node "$source_folder/gpt2_ids_test.mjs" "$folder"

"$scone" tokenize --input text.txt --output shards --tokenizer tokenizer.json --validation-fraction 0

"$python" - <<'PYTHON'
import glob, json, sys
import h5py

files = sorted(glob.glob("shards/train/*.h5"))
found = [int(i) for f in files for i in h5py.File(f)["tokens"][:]]
expected = json.load(open("ids.json"))
if found[-1:] != [50256]:
    sys.exit(f"the document does not end in <|endoftext|>: {found[-3:]}")
found.pop()
for i, (a, b) in enumerate(zip(found, expected)):
    if a != b:
        sys.exit(f"token {i}: scone {found[i:i + 8]}, js-tiktoken {expected[i:i + 8]}")
if len(found) != len(expected):
    sys.exit(f"scone has {len(found)} ids, js-tiktoken {len(expected)}")
if len(expected) < 300_000:
    sys.exit(f"only {len(expected)} ids: the text is not the one meant")
print(f"{len(found)} ids are equal")
PYTHON
