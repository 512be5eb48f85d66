#!/usr/bin/env bash
# More f-grams after training, and narrower rows: one checkpoint, baked with 1, 2 and 4 times the f-grams that it was
# trained with, and with rows of every type; the loss of each on the same validation tokens.
#   docs/benchmarks/growth.sh SCONE CONFIG FOLDER JSONL..      FOLDER: made; a second call goes on where the first ended
# GROWTH_FGRAMS (200K), GROWTH_TOKENS (3M, of training), GROWTH_FRACTION (0.04, of documents for validation), RANKS (2).
set -euo pipefail
scone=$(realpath "${1:?growth.sh: give the path of scone}")
config=$(realpath "${2:?growth.sh: give a run configuration}")
folder=${3:?growth.sh: give a folder}
launch=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../../launch")
inputs=()
for path in "${@:4}"; do inputs+=("$(realpath "$path")"); done
[ ${#inputs[@]} -gt 0 ] || { echo "growth.sh: give the corpora (JSONL)" >&2; exit 2; }
trained=${GROWTH_FGRAMS:-200K}
count=${trained%K}
ranks=${RANKS:-2}
mkdir -p "$folder"
cd "$folder"
over_ranks() { OMP_NUM_THREADS=1 "$launch/mpirun.sh" -np "$ranks" "$@"; }

[ -e fgrams.h5 ] || {
  "$scone" tokenize --input "${inputs[@]}" --output data --train-tokenizer 4096 \
    --validation-fraction "${GROWTH_FRACTION:-0.04}" --json | tail -1
  "$scone" fgrams --data data/train --output fgrams.h5 --size "$((4 * count))K" --min-count 2
}
over_ranks "$scone" train "$config" run.folder=run data.train=data/train data.validation=data/validation \
  fgrams.vocabulary=fgrams.h5 "fgrams.size=$trained" "trainer.tokens=${GROWTH_TOKENS:-3M}" trainer.eval_every=0
value() { python3 -c 'import json, sys; print(json.loads(sys.stdin.read())[sys.argv[1]])' "$1"; }
printf '%-10s %-6s %12s %12s %12s %14s %10s\n' f-grams rows "table MB" "index MB" loss "against live" matched >growth.txt
live=$(over_ranks "$scone" eval run --data data/validation --json | tail -1)
tokens=$(value tokens <<<"$live")
line() {  # SIZE DTYPE
  local bundle="bundle-$1-$2" baked result
  baked=$(over_ranks "$scone" bake run --out "$bundle" --overwrite --dtype "$2" --fgrams fgrams.h5 --fgrams-size "$1" \
    --json | tail -1)
  result=$(over_ranks "$scone" eval "$bundle" --data data/validation --json | tail -1)
  python3 - "$1" "$2" "$baked" "$result" "$live" >>growth.txt <<'PYTHON'
import json, sys
size, dtype = sys.argv[1:3]
baked, result, live = map(json.loads, sys.argv[3:])
print(f"{size:<10} {dtype:<6} {baked['table_bytes'] / 1e6:12.1f} {baked['index_bytes'] / 1e6:12.2f} {result['loss']:12.7f} "
      f"{result['loss'] / live['loss'] - 1:+14.2e} {result['matched'] / result['tokens']:10.4f}")
PYTHON
  rm -rf "$bundle"
}
for dtype in fp32 bf16 fp16 int8; do line "$trained" $dtype; done
for times in 2 4; do line "$((times * count))K" fp32; done
echo "live loss $(value loss <<<"$live") on $tokens validation tokens; trained with $trained f-grams on ${GROWTH_TOKENS:-3M} tokens" >>growth.txt
cat growth.txt
