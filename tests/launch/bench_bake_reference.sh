#!/usr/bin/env bash
# scone bench bake with its PyTorch peer, on a tiny model, and what the peer promises: bench_bake_reference.sh SCONE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
peers=$tests/../peers
source "$tests/export_run.sh"
prepare_export_data
bake=("$scone" bench bake fgrams.h5 --size 300 --alone-size 100 --width 32 --layers 2 --heads 4 --rounds 2 --folder . --json)

"${bake[@]}" --peer "OPENBLAS_CORETYPE=Prescott /usr/bin/python3 -B $peers/torch_bake.py --batch 64" 2>err | tail -n 1 >result.json
python3 - <<'PYTHON'
import json
result = json.load(open("result.json"))
assert min(result["bake"], result["padded"], result["peer"]) > 0, result
said = open("err").read()
assert said.count("without OPENBLAS_CORETYPE=Prescott") == 2, said
assert said.count("batches of 64") == 2, said
PYTHON

# Both ways to write attention agree, what stands behind an f-gram does not change its row, and a slow BLAS is refused.
/usr/bin/python3 -B - "$peers" <<'PYTHON'
import sys

sys.path.insert(0, sys.argv[1])
import torch
import torch_bake
import torch_environment

torch.manual_seed(1)
model = torch_bake.FgramModel(width=64, layers=2, heads=4, length=5, vocabulary=100).eval()
tokens, lengths = torch.randint(100, (50, 5)), torch.randint(2, 6, (50,))
padded = torch.where(torch.arange(5) < lengths[:, None], tokens, (tokens + 1) % 100)
with torch.inference_mode():
    rows = model(tokens, lengths, torch_bake.ATTENTIONS["products"])
    others = {name: model(padded, lengths, attention) for name, attention in torch_bake.ATTENTIONS.items()}
for name, other in others.items():
    error = (rows - other).abs().max().item()
    print(f"attention by {name}: largest difference {error:.1e} of rows of about 1")
    assert error < 64 * torch.finfo(torch.float32).eps * 4, name  # sums of up to 64 x 4 numbers

reference, openblas = "/usr/lib/blas/libblas.so.3.11.0", "/usr/lib/openblas-openmp/libopenblasp-r0.3.21.so"
for libraries, refused in ([reference], True), ([openblas, reference], True), ([openblas], False):
    torch_environment.blas_libraries = lambda: libraries
    try:
        torch_environment.refuse_reference_blas()
        assert not refused, libraries
    except SystemExit as error:
        assert refused and "libopenblas0-openmp" in str(error) and reference in str(error), error
PYTHON

code=0
"${bake[@]}" --peer false >out 2>err || code=$?
[ "$code" = 2 ] && grep -q "expected a rate on its last line" err || { echo "a peer that fails: code $code, $(cat err)"; exit 1; }
