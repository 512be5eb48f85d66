#!/usr/bin/env bash
# Training in bf16 on the processor, as a user does: bf16_test.sh SCONE. The losses follow fp32's, a resumed run is the same
# as one that went through, ranks agree, live and baked agree; --profile writes its table and a trace of each rank; an unknown
# SCONE_MAX_ISA is refused.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
source "$tests/export_run.sh"
prepare_export_data >/dev/null 2>&1
train() { "$scone" train run.yaml "${scone_keys[@]}" checkpoint.every=0 "$@"; }

train run.folder=fp32 2>/dev/null
train run.folder=bf16 compute.dtype=bf16 --profile 2>profile.txt
train run.folder=parts compute.dtype=bf16 checkpoint.every=8 run.time_limit=0 2>/dev/null
rm -r parts/checkpoints/step-00000020 && cp -r parts resumed
train run.folder=resumed compute.dtype=bf16 checkpoint.every=8 2>/dev/null
"$mpirun" -np 2 "$scone" train run.yaml "${scone_keys[@]}" run.folder=ranks \
  compute.dtype=bf16 parallel.main.tp=2 --profile 2>/dev/null

python3 - <<'PYTHON'
import json

def losses(run):
    by_step = {}
    for line in open(f"{run}/metrics.jsonl"):
        record = json.loads(line)
        if "loss" in record:
            by_step[record["step"]] = record["loss"]
    return [by_step[step] for step in sorted(by_step)]

runs = {run: losses(run) for run in ("fp32", "bf16", "parts", "resumed", "ranks")}
assert all(len(values) == 20 for values in runs.values()), {run: len(values) for run, values in runs.items()}
assert runs["fp32"] != runs["bf16"], "bf16 is fp32"
assert runs["bf16"][-1] < runs["bf16"][0] - 1, runs["bf16"]
for run in ("bf16", "ranks"):
    worst = max(abs(a / b - 1) for a, b in zip(runs[run], runs["fp32"]))
    print(f"{run}: losses within {worst:.1e} of fp32's")
    assert worst < 0.01, (run, worst)
assert runs["parts"] == runs["bf16"] and runs["resumed"] == runs["bf16"]

table = open("profile.txt").read()
for words in ("operation", "linear 32 to 96", "causal_attention_backward", "trie_attention", "adamw", "outside of operations"):
    assert words in table, (words, table)
for rank in range(2):
    events = json.load(open(f"ranks/profile-rank{rank}.json"))["traceEvents"]
    assert len(events) > 100 and all(event["pid"] == rank and event["dur"] >= 0 for event in events)
PYTHON

"$scone" bake bf16 --out bundle 2>/dev/null
for path in bf16 bundle; do "$scone" eval $path --data shards/validation --json 2>/dev/null | tail -n 1 >$path.json; done
python3 -c "
import json
live, baked = (json.load(open(f'{path}.json'))['loss'] for path in ('bf16', 'bundle'))
print(f'live {live:.6f}, baked {baked:.6f}')
assert abs(live / baked - 1) < 1e-6
"

status=0
SCONE_MAX_ISA=avx9 "$scone" train run.yaml run.folder=refused 2>refused.txt || status=$?
sets='sse4, avx2, avx512, avx512_bf16'
[ "$(uname -m)" != aarch64 ] || sets=neon
if [ $status != 2 ] || ! grep -q "SCONE_MAX_ISA is 'avx9'; expected $sets" refused.txt; then
  echo "bf16_test: exit code $status, and:" >&2
  cat refused.txt >&2
  exit 1
fi
