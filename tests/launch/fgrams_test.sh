#!/usr/bin/env bash
# scone fgrams as a user runs it: text -> shards -> f-gram vocabulary, on 1, 2 and 3 ranks, and bad input.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

# mends MESSAGE COMMAND..: the command must end with exit code 2, say MESSAGE on stderr and leave no output file.
mends() {
  local message=$1 code=0
  shift
  "$@" >out 2>err || code=$?
  if [ "$code" != 2 ] || ! grep -q -- "$message" err || [ -e bad.h5 ] || [ -e bad.h5.partial ]; then
    echo "expected exit code 2, '$message' and no bad.h5 from: $*"
    echo "found exit code $code and:"
    cat err
    exit 1
  fi
}

documents 7 400 60 >text.jsonl
"$scone" tokenize --input text.jsonl --output shards --train-tokenizer 300 --validation-fraction 0.1

fgrams=("$scone" fgrams --data shards/train --size 500 --min-count 5)
"${fgrams[@]}" --output one.h5 --report --json >one.json
for ranks in 2 3; do
  "$mpirun" -np "$ranks" "${fgrams[@]}" --output "$ranks.h5"
  cmp one.h5 "$ranks.h5"
done
"${fgrams[@]}" --output again.h5
cmp one.h5 again.h5

tail -n 1 one.json | python3 -c '
import json, sys
result = json.load(sys.stdin)
assert result["size"] == 500, result
assert result["cutoff_count"] >= 5, result
assert sum(result["chosen_by_length"].values()) == 500, result
coverage = result["coverage"]
assert abs(sum(coverage["share_by_length"].values()) - coverage["share"]) < 1e-12, result
assert 0.5 < coverage["share"] < 1, result
assert coverage["fgram_tokens_per_position"] <= coverage["padded_fgram_tokens_per_position"], result
smallest = result["sharing"][0]
assert smallest["batch_tokens"] == 8192 and 0 < smallest["nodes_per_token"] < 1, result
'

bad=("$scone" fgrams --data shards/train --output bad.h5)
mends "no n-gram" "${bad[@]}" --size 10 --min-count 100000000
mends "--memory" "${bad[@]}" --size 10 --memory 10K
mends "suffix" "${bad[@]}" --size 10Q
mends "--max-length" "${bad[@]}" --size 10 --max-length 1
mends "nowhere" "$scone" fgrams --data shards/train --output nowhere/bad.h5 --size 10
mends "text.jsonl" "$scone" fgrams --data text.jsonl --output bad.h5 --size 10
mends "missing" "$scone" fgrams --data missing --output bad.h5 --size 10
head -c 3000 "$(ls shards/train/*.h5 | head -n 1)" >cut.h5
mends "cut.h5" "$scone" fgrams --data cut.h5 --output bad.h5 --size 10
shard=$(ls shards/train/*.h5 | head -n 1)
mends "not replaced" "$scone" fgrams --data shards/train --output "$shard" --size 10
mends "file name" "$scone" fgrams --data shards/train --output "" --size 10
echo "fgrams: same bytes on 1, 2 and 3 ranks; bad input is refused"
