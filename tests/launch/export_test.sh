#!/usr/bin/env bash
# scone export and import as a user runs them: an exported run imported again has the same loss and the same tensors, and trains on
# from there, on other data and another seed too.
set -euo pipefail
scone=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
source "$here/export_run.sh"
fail() {
  echo "$*"
  exit 1
}

prepare_export_data
run_and_export run "${scone_keys[@]}"
"$scone" inspect run.export/fgram_model.safetensors | grep q_proj >/dev/null || fail "no q_proj in the f-gram model's file"
"$scone" import run.export --out new
"$scone" inspect new | grep 'checkpoint of step 0, 0 tokens' >/dev/null || fail "the imported checkpoint was not described"
"$scone" eval new --data shards/validation --json | tail -n 1 >new.json
"$scone" export new --format safetensors --out again
for name in model.safetensors fgram_model.safetensors fgrams.h5; do cmp "run.export/$name" "again/$name"; done
"$scone" train run.yaml "${scone_keys[@]}" run.folder=new run.seed=7 trainer.steps=5 trainer.sequence_length=32 optimizer.warmup_steps=0 2>new.log
grep -q 'resumed from new/checkpoints/step-00000000 at step 0' new.log || fail "training did not begin with the import: $(cat new.log)"
python3 - <<'PYTHON'
import json
old, new = json.load(open("run.json")), json.load(open("new.json"))
assert old["loss"] == new["loss"], (old, new)
trained = [json.loads(line)["loss"] for line in open("run/metrics.jsonl")]
anew = [json.loads(line)["loss"] for line in open("new/metrics.jsonl")]
print(f"loss {old['loss']:.4f} exported and imported; trained on: {trained[0]:.3f} .. {trained[-1]:.3f}, then {anew[0]:.3f} .. {anew[-1]:.3f}")
assert len(anew) == 5 and anew[0] < (trained[0] + trained[-1]) / 2, (trained, anew)
PYTHON
code=0
"$scone" train run.yaml "${scone_keys[@]}" run.folder=new run.seed=8 trainer.steps=6 2>err || code=$?
[ "$code" = 2 ] && grep -q seed err || fail "a later checkpoint of the run was taken with another seed: $code, $(cat err)"
echo "export and import agree"
