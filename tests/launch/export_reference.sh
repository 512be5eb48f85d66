#!/usr/bin/env bash
# Exports small runs of several kinds of model and compares scone's loss with PyTorch's of the exported files: export_reference.sh SCONE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
source "$tests/export_run.sh"
prepare_export_data
run_and_export scone "${scone_keys[@]}"
run_and_export baseline model.fgram.layers=0
run_and_export llama "${scone_keys[@]}" model.main.norm=rmsnorm model.main.position=rope model.main.activation=swiglu model.main.tie_embeddings=false \
  model.main.bias=false model.fgram.combine=add data.attention_across_documents=true
for name in scone baseline llama; do
  /usr/bin/python3 -B "$tests/export_reference.py" "$name.export" shards/validation "$name.json"
done
