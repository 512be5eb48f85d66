#!/usr/bin/env bash
# Each part of scone bench, as small as it goes: it ends well and its JSON holds what its table shows. bench_test.sh SCONE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

documents 3 600 80 >text.jsonl
"$scone" tokenize --input text.jsonl --output shards --train-tokenizer 301 --validation-fraction 0.1 >/dev/null
"$scone" fgrams --data shards/train --output fgrams.h5 --size 400 --min-count 2 >/dev/null 2>&1
cat >run.yaml <<'YAML'
data: {train: shards/train}
fgrams: {vocabulary: fgrams.h5}
model: {main: {width: 32, layers: 1, heads: 4, context: 64}, fgram: {layers: 1}}
trainer: {steps: 4, batch_tokens: 512}
run: {folder: run}
YAML

# bench CHECK COMMAND..: CHECK, a Python expression, holds of its result.
bench() {
  local check=$1
  shift
  ends 0 '^\{.*\}$' "$@"
  python3 -c 'import json, sys
result = json.loads(open("out").readlines()[-1])
positive = lambda value: isinstance(value, (int, float)) and 0 < value < float("inf")
assert eval(f"({sys.argv[1]})"), result' "$check" || fail "$*: not so: $check"
}

bench '[row["shape"] for row in result["rows"]] == ["tiny", "tiny-scone"] and all(positive(row["tokens_per_second"])
  and 5 < row["loss"] < 8 and len(row["step_seconds"]) == 2 for row in result["rows"])
  and [row["fgram_rows_per_second"] > 0 for row in result["rows"]] == [False, True]' \
  "$scone" bench step --shapes tiny,tiny-scone --batch-tokens 256 --microbatch-tokens 128 --rounds 2 --json
bench 'result["dtype"] == "bf16" and positive(result["rows"][0]["tokens_per_second"])' \
  "$scone" bench step --shapes tiny --dtype bf16 --batch-tokens 256 --microbatch-tokens 128 --rounds 1 --profile --json
bench 'result["ranks"] == 2 and all(positive(result[key]) for key in ("write_gb_per_second", "read_gb_per_second"))' \
  "$mpirun" -np 2 "$scone" bench checkpoint --size 4M --rounds 1 --json
bench 'set(result) >= {"collectives", "memory", "layouts", "sharing"} and all(result.values())' \
  "$mpirun" -np 2 "$scone" bench parallel run.yaml --batch-tokens 512 --rounds 1 --json
bench 'result["fgrams"] == 400 and set(result["lookups"]) >= {"ram", "mmap"}
  and all(positive(speed) for speed in result["lookups"]["ram"]["warm"].values())' \
  "$scone" bench table fgrams.h5 --data shards/train --size 400 --width 16 --lookups 500 --cold-lookups 100 --rounds 1 --json
# Counting wants 10M tokens.
bench 'set(result) == {"matching", "reading"} and all(positive(row["tokens_per_second"]) for row in result["matching"]["rows"])' \
  "$scone" bench data shards/train --parts matching,reading --fgrams 400 --rounds 1 --json
bench 'result["tokenizing"]["documents"] == 600 and result["tokenizing"]["scone_threads"]["same_ids"]' \
  "$scone" bench data --text text.jsonl --tokenizer shards/tokenizer.model --rounds 1 --json
ends 2 "give token shards, or --text with --tokenizer" "$scone" bench data
[ -z "$(find . -newer run.yaml -name '*.partial')" ] || fail "files were left behind: $(find . -newer run.yaml)"
echo "every part of scone bench runs"
