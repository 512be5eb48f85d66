#!/usr/bin/env bash
# scone bench decode on a tiny model: a line for each batch and way to read rows, which must agree in every logit; bad input.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

"$scone" bench decode --shape tiny --rows 5K --batch 1,3 --access ram,mmap --prompt 8 --tokens 16 --rounds 3 --folder . --json |
  tail -n 1 >result.json
python3 - <<'PYTHON'
import json
lines = json.load(open("result.json"))["decode"]
assert [(line["batch"], line["variant"]) for line in lines] == [
    (batch, variant) for batch in (1, 3) for variant in ("main model alone", "ram", "mmap")], lines
for line in lines:
    assert line["milliseconds_per_token"] > 0 and 0.5 < line["matched_share"] < 1, line
    assert (line["ratio"] == 1) == (line["variant"] == "main model alone"), line
PYTHON
[ "$(ls)" = result.json ] || { echo "files were left: $(ls)"; exit 1; }

for bad in "--shape huge" "--prompt 100 --tokens 100" "--rows 900K --max-length 2" "--dtype fp64"; do
  code=0
  # shellcheck disable=SC2086
  "$scone" bench decode --shape tiny --folder . $bad >out 2>err || code=$?
  [ "$code" = 2 ] || { echo "expected exit code 2 of $bad, found $code: $(cat err)"; exit 1; }
done
