#!/usr/bin/env bash
# Six runs of different grids beside what `scone plan` says of them beforehand: bytes and calls of all collectives exactly, peak
# memory of a rank within 10 %, step time printed. Then a run whose data are not there, and bad input.
#   plan_test.sh SCONE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

documents 5 400 80 'step grid plan node' >text.jsonl
"$scone" tokenize --input text.jsonl --output shards --train-tokenizer 301 --validation-fraction 0.1 2>/dev/null
"$scone" fgrams --data shards/train --output fgrams.h5 --size 400 --min-count 5 2>/dev/null
# Wide, so that the state of a rank is some hundred MB and the program's own memory counts little.
cat >run.yaml <<'YAML'
data: {train: shards/train}
fgrams: {vocabulary: fgrams.h5}
model:
  main: {width: 1024, layers: 1, heads: 8, context: 32}
  fgram: {layers: 1, chunk_nodes: 64}
trainer: {steps: 2, batch_tokens: 128, microbatch_tokens: 32}
compute: {threads: 1}
run: {folder: run}
YAML

run=0
compare() { # RANKS [key=value ..]
  local ranks=$1
  shift
  run=$((run + 1))
  local keys=(run.yaml "run.folder=run-$run" "$@")
  "$mpirun" -np "$ranks" "$scone" plan "${keys[@]}" --ranks "$ranks" --batches 2 --json | tail -1 >plan.json || fail "plan $*: failed"
  "$mpirun" -np "$ranks" "$scone" train "${keys[@]}" --json 2>log.txt | tail -1 >train.json || {
    cat log.txt
    fail "train $*: failed"
  }
  /usr/bin/python3 - "$ranks" "run-$run/metrics.jsonl" "$@" <<'PYTHON' || fail "the plan of $ranks ranks $* is wrong"
import json, sys
plan, train = (json.load(open(name)) for name in ("plan.json", "train.json"))
def counts(run):
    return {(row["group"], row["kind"]): (row["calls"], row["bytes"]) for row in run["traffic"]}
planned, measured = counts(plan), counts(train)
seconds = [json.loads(line)["step_seconds"] for line in open(sys.argv[2])]
memory = train["peak_memory_bytes"] / plan["rank_bytes"]
total = sum(size for _, size in measured.values())
print(f"{sys.argv[1]} ranks {' '.join(sys.argv[3:]):<60} memory: plan {plan['rank_bytes'] / 2**20:6.1f} MiB "
      f"({plan['program_bytes'] / 2**20:.0f} of it the program's), found {train['peak_memory_bytes'] / 2**20:6.1f}, ratio {memory:.3f}; "
      f"collectives: {sum(size for _, size in planned.values())} bytes planned, {total} found; "
      f"step: plan {plan['step_seconds']:.3f} s, found {min(seconds):.3f}")
sys.exit(not (planned == measured and 0.9 < memory < 1.1 and (total > 0) == (sys.argv[1] != "1")
              and 0.005 < plan["step_seconds"] / min(seconds) < 200))
PYTHON
}
compare 1
compare 1 model.fgram.layers=0 'fgrams.vocabulary=""' model.main.layers=2 compute.recompute=block
compare 2 parallel.main.tp=2
compare 2 parallel.fgram.tp=2 parallel.main.zero=1
compare 4 parallel.main.tp=2 parallel.fgram.zero=1 parallel.main.sequence_parallel=true
compare 4 model.fgram.layers=0 'fgrams.vocabulary=""' model.main.layers=2 parallel.main.zero=1 compute.recompute=attention

# The largest configuration, whose data are not there: in a second, within little memory.
large=("$repository/configs/scone-1b.yaml" --ranks 256 --device h100 --vocabulary-size 50280)
(ulimit -v 4000000 && timeout 20 "$scone" plan "${large[@]}" --nodes-per-token 1.5 --json) | tail -1 >large.json
/usr/bin/python3 - <<'PYTHON' || fail "the plan of 256 ranks is wrong"
import json, sys
plan = json.load(open("large.json"))
steps = [grid["step_seconds"] for grid in plan["grids"]]
sys.exit(not (plan["estimated"] and plan["fits"] and 9e8 < plan["main_parameters"] < 1.1e9
              and 1.7e9 < plan["fgram_parameters"] < 1.9e9 and len(steps) > 10 and steps == sorted(steps)))
PYTHON

# More f-grams than ids can name: said, and planned all the same.
"$scone" plan "${large[@]}" --nodes-per-token 1.5 --fgrams 10G >many.txt
grep -q "CANNOT RUN: 10000000000 f-grams are more than the 2147483646 that an id of 31 bits can name" many.txt ||
  fail "nothing is said of too many f-grams: $(cat many.txt)"
"$scone" plan "${large[@]}" --nodes-per-token 1.5 --fgrams 2G --json | tail -1 >most.json
/usr/bin/python3 -c 'import json; assert json.load(open("most.json"))["obstacles"] == []' || fail "2G f-grams are refused"

# Nodes a token from the vocabulary's report, of batches of the nearest size, where the corpus has gone.
"$scone" fgrams --data shards/train --vocabulary fgrams.h5 --report --batch-tokens 128,16Ki >/dev/null 2>&1
"$scone" plan run.yaml data.train=nowhere --ranks 2 --vocabulary-size 301 --fgrams 400 --json | tail -1 >reported.json
/usr/bin/python3 - <<'PYTHON' || fail "the report's nodes a token are not used"
import json, sys
report = {row["batch_tokens"]: row["nodes_per_token"] for row in json.load(open("fgrams-report.json"))["sharing"]}
plan = json.load(open("reported.json"))
sys.exit(not (report[128] > report[16384] and abs(plan["nodes_per_token"] - report[128]) < 1e-9))
PYTHON

refused() { # TEXT ARGUMENT..
  local text=$1 code=0
  shift
  "$scone" plan "$@" >refused.txt 2>&1 || code=$?
  [ "$code" = 2 ] && grep -qF -- "$text" refused.txt || {
    cat refused.txt
    fail "plan $*: exit code $code, expected 2 with '$text'"
  }
}
refused "parallel.main.tp" run.yaml parallel.main.tp=2 --ranks 3
refused "--ranks: expected 1 to" run.yaml --ranks 0
refused "expected h100, a100 or measured" run.yaml --ranks 1 --device v100
refused "compute.device is cpu" run.yaml --ranks 1 --device h100
refused "give --vocabulary-size" run.yaml data.train=nowhere --ranks 1
refused "give --nodes-per-token" run.yaml fgrams.vocabulary=nowhere.h5 --ranks 1 --vocabulary-size 301
refused "give --fgrams" run.yaml fgrams.vocabulary=nowhere.h5 --ranks 1 --vocabulary-size 301 --nodes-per-token 1
refused "leave them out" run.yaml --ranks 1 --vocabulary-size 301
refused "--nodes-per-token: expected" run.yaml --ranks 1 --nodes-per-token 0
refused "--nodes-per-token: expected a number above 0 and at most 100" run.yaml --ranks 1 --nodes-per-token 1e300
refused "model.fgram.chunk_nodes is 2; expected at least the longest f-gram" run.yaml --ranks 1 model.fgram.chunk_nodes=2
refused "model.fgram.chunk_nodes is 2; expected at least the longest f-gram" run.yaml --ranks 1 model.fgram.chunk_nodes=2 \
  data.train=nowhere --vocabulary-size 301 --nodes-per-token 1 --fgrams 400
echo "scone plan: predicted and measured agree"
