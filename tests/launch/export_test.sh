#!/usr/bin/env bash
# scone export and import as a user runs them: an exported run imported again has the same loss and the same tensors, and trains on
# from there, on other data and another seed too.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
source "$tests/export_run.sh"

prepare_export_data
run_and_export run "${scone_keys[@]}"
"$scone" inspect run.export/fgram_model.safetensors | grep q_proj >/dev/null || fail "no q_proj in the f-gram model's file"

# inspect's shapes and norms, against a reader written from docs/formats.md.
"$scone" inspect run/checkpoints/step-00000020 --json >inspected.json
"$scone" inspect run.export >out && grep -q 'fgram_model.safetensors: safetensors' out || fail "inspect of the export: $(cat out)"
"$scone" inspect shards/tokenizer.model >out && grep -q '300 tokens' out || fail "inspect of the tokenizer: $(cat out)"
/usr/bin/python3 - <<'PYTHON'
import json, h5py, numpy
checkpoint = "run/checkpoints/step-00000020"
stored = json.load(open(f"{checkpoint}/manifest.json"))["tensors"]
inspected = json.loads(open("inspected.json").read().splitlines()[-1])
def tensor(name):
    whole = numpy.empty(stored[name]["shape"], "<f4")
    for box in stored[name]["boxes"]:
        place = tuple(slice(b, b + e) for b, e in zip(box["begin"], box["extent"]))
        whole[place] = numpy.memmap(f"{checkpoint}/{box['file']}", "<f4", "r", box["offset"], tuple(box["extent"]))
        with h5py.File(f"{checkpoint}/{box['file']}") as file:
            dataset = file[name + "@" + ",".join(map(str, box["begin"]))]
            assert (dataset[()] == whole[place]).all() and dataset.id.get_offset() == box["offset"], name
    return whole
assert {entry["name"] for entry in inspected["tensors"]} == set(stored) and len(stored) > 100, len(stored)
for entry in inspected["tensors"]:
    values = tensor(entry["name"]).astype("f8")
    assert list(values.shape) == entry["shape"], entry
    assert abs(numpy.sqrt((values ** 2).sum()) - entry["norm"]) <= 1e-6 * entry["norm"], entry
print(f"{len(stored)} tensors have the shapes and norms that inspect prints")
PYTHON

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
ends 2 'shards: expected a folder of `scone export`' "$scone" import shards --out newer
ends 2 '--out run.yaml: .* cannot be made' "$scone" import run.export --out run.yaml
code=0
"$scone" train run.yaml "${scone_keys[@]}" run.folder=new run.seed=8 trainer.steps=6 2>err || code=$?
[ "$code" = 2 ] && grep -q seed err || fail "a later checkpoint of the run was taken with another seed: $code, $(cat err)"
echo "export and import agree"
