#!/usr/bin/env bash
# The whole way once, on real text: builds scone, takes a corpus out of Debian packages, makes token shards and an f-gram
# vocabulary, trains a baseline and a SCONE model on equally many tokens (2 ranks), bakes the f-gram table, evaluates live
# and baked, generates a sample and writes a report. At most 15 minutes on 2 cores.
#   launch/quickstart.sh [--output DIR] [--fresh] [key=value ..]
# --output DIR  where everything goes (default: runs/quickstart)
# --fresh       first removes what an earlier quickstart left in DIR
# key=value     overrides of both run configurations, such as trainer.tokens=20M
# Run again after an interruption, it keeps the finished stages, and training resumes.
set -euo pipefail
export LC_ALL=C.UTF-8  # EPOCHREALTIME has a decimal comma in some languages
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
launch=$repository/launch
scone=$repository/build/scone

corpora=(python3.11-doc perl-doc linux-doc-6.1 dict-gcide)
vocabulary_size=4096
fgram_count=200K
ranks=2
prompt="The function returns a list of"

folder=$repository/runs/quickstart
fresh=false
overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    --output)
      folder=${2:?quickstart.sh: --output needs a folder}
      shift
      ;;
    --fresh) fresh=true ;;
    *=*) overrides+=("$1") ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *)
      echo "quickstart.sh: unknown argument $1; expected --output DIR, --fresh or key=value" >&2
      exit 2
      ;;
  esac
  shift
done
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$folder"
# Stages write into, and --fresh removes, folders with plain names such as data/: never those of somebody else.
if [ ! -d stages ] && [ -n "$(ls -A)" ]; then
  echo "quickstart.sh: $folder is not empty and no earlier quickstart's; give --output a new or empty folder" >&2
  exit 2
fi
if $fresh; then
  rm -rf stages corpus data fgrams.h5 baseline scone bundle ./*.json ./*.svg ./*.partial ./*.object sample.txt report.html
fi
mkdir -p stages

# stage NAME COMMAND..: runs the command, unless an earlier quickstart finished it; its seconds go into stages/NAME.
stage() {
  local stage_name=$1 begin=$EPOCHREALTIME
  shift
  if [ -f "stages/$stage_name" ]; then
    echo "== $stage_name: done earlier"
    return
  fi
  echo "== $stage_name"
  "$@"
  echo "$begin $EPOCHREALTIME" | awk '{ printf "%.1f\n", $2 - $1 }' >"$stage_name.partial"
  mv "$stage_name.partial" "stages/$stage_name"
}

# json FILE COMMAND..: the command's last line, one JSON object, goes into FILE; the lines before it to the terminal.
json() {
  local file=$1
  shift
  "$@" --json >"$file.partial"
  head -n -1 "$file.partial"
  tail -n 1 "$file.partial" | python3 -c 'import json, sys; json.dump(json.load(sys.stdin), sys.stdout)' >"$file.object"
  rm "$file.partial"
  mv "$file.object" "$file"
}

over_ranks() { OMP_NUM_THREADS=1 "$launch/mpirun.sh" -np "$ranks" "$@"; }

tokenize() {
  local name inputs=()
  for name in "${corpora[@]}"; do inputs+=("corpus/$name.jsonl"); done
  json tokenize.json "$scone" tokenize --input "${inputs[@]}" --output data --train-tokenizer "$vocabulary_size" \
    --validation-fraction 0.01
}

train() {
  local name=$1
  over_ranks "$scone" train "$repository/configs/quickstart-$name.yaml" "run.folder=$name" data.train=data/train \
    data.validation=data/validation "${@:2}" "${overrides[@]}"
}

evaluate() {
  json baseline-eval.json over_ranks "$scone" eval baseline --data data/validation
  json scone-eval.json over_ranks "$scone" eval scone --data data/validation
  json baked-eval.json over_ranks "$scone" eval bundle --data data/validation
}

generate() {
  "$scone" generate bundle --prompt "$prompt" --max-tokens 200 --temperature 0.8 --top-k 50 --seed 1 | tee sample.partial
  mv sample.partial sample.txt
}

# The seconds of every stage, whether it ran now or earlier.
write_timing() {
  python3 - <<'PYTHON'
import json, pathlib
stages = {p.name: float(p.read_text()) for p in sorted(pathlib.Path("stages").iterdir(), key=lambda p: p.stat().st_mtime)}
json.dump({"seconds": round(sum(stages.values()), 1), "stages": stages}, open("timing.json", "w"))
PYTHON
}

# The program must be there, whatever an earlier quickstart did; a build that has nothing to do takes no time.
begin=$SECONDS
"$launch/setup.sh"
[ -f stages/setup ] || echo $((SECONDS - begin)) >stages/setup
stage corpus "$launch/corpus.sh" "${corpora[@]}" --output corpus
stage tokenize tokenize
stage fgrams json fgrams.json over_ranks "$scone" fgrams --data data/train --output fgrams.h5 --size "$fgram_count" \
  --report
stage baseline train baseline
stage scone train scone fgrams.vocabulary=fgrams.h5
stage bake json bake.json over_ranks "$scone" bake scone --out bundle --dtype fp32 --overwrite
stage eval evaluate
stage generate generate
write_timing
python3 "$launch/report.py" "$folder"
echo "report: $folder/report.html"
