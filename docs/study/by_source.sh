#!/usr/bin/env bash
# Evaluates runs on the held-out documents of each of the study's sources: docs/study/by_source.sh RUN.. (folders of finished runs)
# Prints run, source, tokens, perplexity and the share of positions with an f-gram. Tokenizes into corpora/study/sources once.
set -euo pipefail
scone=${SCONE:-build/scone}
[ $# -gt 0 ] || { sed -n '2,3s/^# //p' "$0"; exit 2; }
for text in corpora/study/text/*.jsonl; do
  source=$(basename "$text" .jsonl)
  of_source=corpora/study/sources/$source
  [ -e "$of_source/validation/shards.json" ] ||
    "$scone" tokenize --input "$text" --output "$of_source" --tokenizer corpora/study/tokenizer.model --validation-fraction 0.01 >&2
  for run in "$@"; do
    "$scone" eval "$run" --data "$of_source/validation" --json | tail -n 1 | python3 -c '
import json, sys
result = json.load(sys.stdin)
tokens, perplexity, matched = (result[key] for key in ("tokens", "perplexity", "matched"))
print(*sys.argv[1:], tokens, f"{perplexity:.2f}", f"{matched / tokens:.2f}", sep="\t")
' "$(basename "$run")" "$source"
  done
done
