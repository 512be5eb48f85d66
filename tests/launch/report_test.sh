#!/usr/bin/env bash
# launch/report.py on made-up inputs: its json, its table, every plot in the page, the page as a browser draws it, and
# missing or damaged inputs.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
report=$repository/launch/report.py
export PYTHONDONTWRITEBYTECODE=1

mkdir "$folder/run"
python3 "$tests/fake_report_inputs.py" "$folder/run"
# A run that was killed while it wrote its last line.
printf '{"step": 601, "tok' >>"$folder/run/scone/metrics.jsonl"
python3 "$report" "$folder/run" | tee "$folder/table"
grep -q '^SCONE, from the baked table  *57.783  *4.056700' "$folder/table"

python3 - "$folder/run" <<'CHECK'
import json, math, re, sys
from pathlib import Path
from xml.etree import ElementTree
folder = Path(sys.argv[1])
result = json.loads((folder / "report.json").read_text())
expected = {"baseline_perplexity": math.exp(4.2345), "scone_perplexity": math.exp(4.0567),
            "baked_perplexity": math.exp(4.0567 + 8e-8), "live_loss": 4.0567, "baked_loss": 4.0567 + 8e-8,
            "seconds": 812.4, "fgrams": 200000, "fgram_coverage": 0.72, "scone_steps": 600,
            "baseline_training_tokens": 600 * 16384, "scone_fgram_nodes_per_token": 0.5,
            "perplexity_reduction": 1 - math.exp(4.0567 - 4.2345)}
for key, value in expected.items():
    assert math.isclose(result[key], value, rel_tol=1e-12), (key, result[key], value)
assert math.isclose(result["live_baked_relative_difference"], 8e-8 / 4.0567, rel_tol=1e-6), result

page = (folder / "report.html").read_text()
assert not re.search(r"""(src|href)=["']?(https?:|//)""", page), "the page loads something from elsewhere"
assert "&lt;module&gt; is &amp; was" in page and "&lt;escaped&gt; &amp; shown" in page, "text is not escaped"
plots = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", page, re.S)]
drawn = [" ".join(" ".join(plot.itertext()).split()) for plot in plots]
words = [("baseline, training", "SCONE, validation", "training tokens"), ("69.03", "57.78", "SCONE, baked"),
         ("share of text matched", "share of the vocabulary"), ("each match alone", "trie nodes", "8K", "64K")]
assert len(plots) == len(words), f"{len(plots)} plots, expected {len(words)}"
for text, needed in zip(drawn, words):
    missing = [word for word in needed if word not in text]
    assert not missing, f"a plot lacks {missing}: {text}"
colours = [len(re.findall("var\\(--(?:text|grid)\\)", ElementTree.tostring(plot, "unicode"))) for plot in plots]
assert min(colours) > 10, f"axes do not follow the page's colours: {colours}"
longest = max(len(d.get("d", "")) for d in plots[0].iter("{http://www.w3.org/2000/svg}path"))
assert longest > 2000, f"the loss curve has a path of {longest} characters only"
CHECK

# refuses MESSAGE FOLDER: exit code 1, MESSAGE on stderr, and no page.
refuses() {
  local code=0
  rm -f "$2/report.html" "$2/report.json"
  python3 "$report" "$2" >"$folder/out" 2>"$folder/err" || code=$?
  if [ "$code" != 1 ] || ! grep -q -- "$1" "$folder/err" || [ -e "$2/report.html" ] || [ -e "$2/report.json" ]; then
    echo "expected exit code 1, '$1' and no report; found exit code $code and:"
    cat "$folder/err"
    exit 1
  fi
}
inputs=(fgrams.json baseline-eval.json scone-eval.json baked-eval.json bake.json sample.txt timing.json
        baseline/metrics.jsonl scone/metrics.jsonl baseline/config.yaml scone/config.yaml)
for input in "${inputs[@]}"; do
  rm -rf "$folder/bad"
  cp -r "$folder/run" "$folder/bad"
  rm "$folder/bad/$input"
  refuses "$input" "$folder/bad"
done
rm -rf "$folder/bad"
cp -r "$folder/run" "$folder/bad"
echo 'no object' >"$folder/bad/bake.json"
refuses 'bake.json: expected a JSON object' "$folder/bad"
echo '{"loss": 4.0}' >"$folder/bad/bake.json"
refuses 'bake.json: expected the key rows' "$folder/bad"
cp "$folder/run/bake.json" "$folder/bad/bake.json"
sed -i '3s/.*/{"step": 3}/' "$folder/bad/baseline/metrics.jsonl"
refuses 'metrics.jsonl:3' "$folder/bad"
refuses 'no such folder' "$folder/nowhere"

# The browser must draw the plots: their three colours, which appear nowhere else, in many pixels; and no sideways
# scrolling of the page on a phone.
browser=$(command -v chromium || command -v chromium-browser || true)
if [ -z "$browser" ]; then
  echo "chromium is not installed; tests/run.sh installs it"
  exit 1
fi
draw() {  # draw WIDTH,HEIGHT OUTPUT-OPTION
  timeout 60 "$browser" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
    --disable-background-networking --disable-component-update --disable-sync --hide-scrollbars \
    --user-data-dir="$folder/browser" --window-size="$1" "${@:2}" 2>"$folder/browser.log"
}
python3 "$report" "$folder/run" >/dev/null
draw 1280,1000 "--screenshot=$folder/page.png" "file://$folder/run/report.html" || { cat "$folder/browser.log"; exit 1; }
python3 - "$folder/page.png" <<'CHECK'
import struct, sys, zlib
data = open(sys.argv[1], "rb").read()
assert data[:8] == b"\x89PNG\r\n\x1a\n", "no PNG"
position, packed = 8, b""
while position < len(data):
    length, kind = struct.unpack(">I4s", data[position:position + 8])
    body = data[position + 8:position + 8 + length]
    if kind == b"IHDR":
        width, height, depth, colour_type = struct.unpack(">IIBB", body[:10])
    elif kind == b"IDAT":
        packed += body
    position += 12 + length
channels = {2: 3, 6: 4}[colour_type]
assert depth == 8 and (width, height) == (1280, 1000), (depth, width, height)
raw, stride = zlib.decompress(packed), width * channels
previous, seen = bytearray(stride), {}
for row in range(height):
    kind, line = raw[row * (stride + 1)], bytearray(raw[row * (stride + 1) + 1:(row + 1) * (stride + 1)])
    for i in range(stride):  # the five filters of PNG
        left = line[i - channels] if i >= channels else 0
        up = previous[i]
        if kind == 1:
            line[i] = (line[i] + left) & 255
        elif kind == 2:
            line[i] = (line[i] + up) & 255
        elif kind == 3:
            line[i] = (line[i] + (left + up) // 2) & 255
        elif kind == 4:
            corner = previous[i - channels] if i >= channels else 0
            a, b, c = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
            line[i] = (line[i] + (left if a <= b and a <= c else up if b <= c else corner)) & 255
    for i in range(0, stride, channels):
        pixel = bytes(line[i:i + 3])
        seen[pixel] = seen.get(pixel, 0) + 1
    previous = line
for name, colour in (("baseline", "c2640c"), ("SCONE", "3b76ea"), ("baked", "12957a")):
    pixels = seen.get(bytes.fromhex(colour), 0)
    print(f"{name}: {pixels} pixels of #{colour}")
    assert pixels > 5000, f"the browser drew {pixels} pixels of {name}'s colour, expected over 5000"
CHECK
sed 's#</body>#<script>document.title = "wide " + (document.documentElement.scrollWidth - innerWidth)</script></body>#' \
  "$folder/run/report.html" >"$folder/probe.html"
draw 500,900 --dump-dom "file://$folder/probe.html" >"$folder/dom"
if ! grep -q '<title>wide 0</title>' "$folder/dom"; then
  echo "the page is wider than a window of 500 pixels: $(grep -o '<title>[^<]*' "$folder/dom")"
  exit 1
fi
echo "report: json, table and four plots are right, the browser draws them, bad input is refused"
