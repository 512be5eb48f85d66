#!/usr/bin/env bash
# scone sweep on tiny runs: a whole sweep and its report in a browser, a sweep that is killed and one that is stopped, a point
# that fails, bad input, and Slurm's commands (stood in for by scripts that take note of what they are called with).
# sweep_test.sh SCONE; ranks run under mpirun
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
sweep=
trap '[ -z "$sweep" ] || kill -9 "$sweep" 2>/dev/null; rm -rf "$folder"' EXIT
export OMPI_MCA_mpi_yield_when_idle=1 # others may be at work on this machine

# waits_for SECONDS COMMAND..: until the command succeeds.
waits_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" 2>/dev/null; do
    [ "$SECONDS" -lt "$deadline" ] || fail "waited in vain for: $*"
    sleep 0.05
  done
}
# no process works in this test's folder, but for what runs the test
children_are_gone() { [ -z "$(processes "--result $1/points")" ]; }
# field FILE NAME: of a JSON object
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"; }
state() { "$scone" sweep status "$1" --json | tail -n 1 |
  python3 -c 'import json, sys; print({p["name"]: p["state"] for p in json.load(sys.stdin)["points"]}[sys.argv[1]])' "$2"; }

documents 11 300 80 >text.jsonl
"$scone" tokenize --input text.jsonl --output shards --train-tokenizer 300 --validation-fraction 0.1 >/dev/null
"$scone" fgrams --data shards/train --output fgrams.h5 --size 300 --min-count 5 >/dev/null 2>&1
cat >base.yaml <<'YAML'
run: {folder: unused}
data: {train: shards/train, validation: shards/validation}
fgrams: {vocabulary: fgrams.h5}
model:
  main: {width: 32, layers: 1, heads: 2, context: 64}
  fgram: {layers: 1, chunk_nodes: 64}
optimizer: {peak_lr: 5.0e-3, warmup_steps: 3}
trainer: {steps: 30, batch_tokens: 512, eval_every: 10}
YAML

# A whole sweep: two jobs at a time, bakes, seeds, settings that follow from others.
cat >whole.yaml <<'YAML'
run: base.yaml
folder: whole
axes:
  size:
    small: {model.main.width: 16}
    large: {model.main.width: 32}
points:
  - name: baseline
    model.fgram.layers: 0
    fgrams.vocabulary: ""
    seeds: [1, 2]
  - name: scone
    axes: {fgrams.size: [100, 300]}
derived:
  optimizer.peak_lr: {from: model.main.width, values: {16: 6.0e-3, 32: 5.0e-3}}
  model.main.ffw: "{model.main.width}"
seeds: [1]
evaluate: {tokens: 1000}
bake: bf16
launcher: {local: {jobs: 2, ranks: 1, threads: 1, oversubscribe: true}}
YAML
ends 0 '8 points, 0 finished; to train: 123K tokens' "$scone" sweep whole.yaml --dry-run
[ ! -e whole ] || fail "--dry-run made the folder"
ends 0 'all 8 points are finished' "$scone" sweep whole.yaml
for name in baseline_small_seed-1 baseline_large_seed-2 scone_small_fgrams.size-100_seed-1 scone_large_fgrams.size-300_seed-1; do
  [ -s "whole/points/$name/evaluation.json" ] || fail "no evaluation of $name"
done
[ -s whole/points/scone_small_fgrams.size-100_seed-1/baked-evaluation.json ] || fail "no evaluation of a bundle"
[ ! -e whole/points/baseline_small_seed-1/bundle ] || fail "a baseline was baked"
python3 - <<'PYTHON'
import json, math
points = "whole/points/"
def result(point, name):
    return json.load(open(points + point + "/" + name + ".json"))
live, baked = (result("scone_large_fgrams.size-300_seed-1", name) for name in ("evaluation", "baked-evaluation"))
assert live["rows"] == "live" and baked["rows"] == "table" and abs(live["loss"] - baked["loss"]) < 0.01, (live, baked)
assert 1000 <= live["tokens"] < 1100, live
config = open(points + "scone_small_fgrams.size-100_seed-1/config.yaml").read()
for line in ("width: 16 ", "ffw: 16 ", "peak_lr: 0.006 ", "size: 100 ", "threads: 1 "):
    assert line in config, (line, config)
assert result("baseline_small_seed-1", "evaluation")["loss"] != result("baseline_small_seed-2", "evaluation")["loss"]
PYTHON
find whole/points -name '*.json' -newer whole/sweep.json | sort >before
ends 0 '8 points, 8 finished; to train: 0 tokens, 0 FLOPs of main models, time 0' "$scone" sweep whole.yaml
find whole/points -name '*.json' -newer whole/sweep.json >after
[ ! -s after ] || fail "finished points were run again: $(cat after)"
# A larger sweep keeps what is there, and knows how long the new points will take.
sed 's/seeds: \[1\]/seeds: [1, 2]/' whole.yaml >larger.yaml
ends 2 "folder: whole belongs to the sweep 'whole', and this one is 'larger'; .* set name: whole" "$scone" sweep larger.yaml
echo 'name: whole' >>larger.yaml
ends 0 '12 points, 8 finished; to train: 61.4K tokens, .* time [0-9.]+s' "$scone" sweep larger.yaml --dry-run
ends 0 '8 finished' "$scone" sweep status whole --watch
# Run with fewer points for a while, it still knows the others as finished.
sed 's/size: \[100, 300\]/size: [100]/' whole.yaml >smaller.yaml
echo 'name: whole' >>smaller.yaml
ends 0 'holds points that the sweep has no more' "$scone" sweep smaller.yaml
ends 0 '8 points, 8 finished; to train: 0 tokens' "$scone" sweep whole.yaml

# The report, in a browser at the width of a phone and of a desk.
ends 0 'whole/report.html' "$scone" sweep report whole
python3 - <<'PYTHON'
import csv, json, re, math
rows = list(csv.DictReader(open("whole/results.csv")))
results = json.load(open("whole/results.json"))
assert len(rows) == len(results["points"]) == 8, rows
assert [row["name"] for row in rows] == [point["name"] for point in results["points"]]
by_name = {row["name"]: row for row in rows}
scone, baseline = by_name["scone_large_fgrams.size-300_seed-1"], by_name["baseline_large_seed-2"]
assert scone["size"] == "large" and scone["fgrams.size"] == "300" and baseline["fgrams.size"] == "", (scone, baseline)
assert scone["fgrams"] == "300" and baseline["fgrams"] == "0" and baseline["fgram_parameters"] == "0"
for row in rows:
    evaluation = json.load(open(f"whole/points/{row['name']}/evaluation.json"))
    assert float(row["loss"]) == evaluation["loss"], row
    assert math.isclose(float(row["perplexity"]), math.exp(evaluation["loss"])), row
    assert row["steps"] == "30" and row["training_tokens"] == "15360", row
# Counted by hand. One block: attention 4dd + 4d, feed-forward 2df + f + d, two norms 4d; a last norm 2d; positions 64d.
d = f = 32
vocabulary = (int(baseline["main_parameters"]) - int(baseline["non_embedding_parameters"])) // d
assert int(baseline["non_embedding_parameters"]) == 4*d*d + 4*d + 2*d*f + f + d + 4*d + 2*d + 64*d, baseline
flops = 2 * (4*d*d + 2*d*f) + 4 * 32.5 * d + 2 * d * vocabulary  # 32.5 keys at the mean of 64 positions
assert math.isclose(float(baseline["inference_flops_per_token"]), flops), (baseline, flops)
assert math.isclose(float(baseline["training_flops"]), 3 * 15360 * flops), baseline
assert float(scone["training_flops_ratio"]) > 1.05 and float(baseline["training_flops_ratio"]) == 1, scone
assert math.isclose(float(scone["training_flops"]), float(scone["training_flops_ratio"]) * 3 * 15360 * flops), scone
for row in rows:
    if row["fgrams"] == "0":
        assert row["table_bytes"] == "", row
        continue
    table = json.load(open(f"whole/points/{row['name']}/bake.json"))
    assert float(row["table_bytes"]) == table["table_bytes"] + table["index_bytes"], (row, table)
settings = {(s["group"], s["labels"]["size"], s["labels"].get("fgrams.size")): s for s in results["settings"]}
assert len(settings) == 6, settings
two = [float(by_name[f"baseline_small_seed-{seed}"]["perplexity"]) for seed in (1, 2)]
spread = settings["baseline", "small", None]["perplexity"]
assert math.isclose(spread["mean"], sum(two) / 2) and math.isclose(spread["half_range"], abs(two[0] - two[1]) / 2), spread
page = open("whole/report.html").read()
assert not re.search(r"""(src|href)=|https?://|url\(|@import|<script|<link""", page), "the page loads something"
PYTHON
browser=$(command -v chromium || command -v chromium-browser || true)
[ -n "$browser" ] || fail "chromium is not installed; tests/run.sh installs it"
# In a frame, for a browser's window has a least width.
python3 - <<'PYTHON'
import html
page = open("whole/report.html").read()
frames = "".join(f'<iframe id="w{w}" width="{w}" height="900" style="border:0" srcdoc="{html.escape(page)}"></iframe>' for w in (390, 1280))
open("probe.html", "w").write("<!doctype html><body>" + frames + """<pre id="found"></pre><script>
onload = () => { document.getElementById("found").textContent = JSON.stringify([390, 1280].map(width => {
  const frame = document.getElementById("w" + width), page = frame.contentDocument, view = frame.contentWindow;
  const plots = [...page.querySelectorAll("figure > svg")];
  return {
    width, inner: view.innerWidth, scroll: page.documentElement.scrollWidth,
    marks: Object.fromEntries(plots.map(p => [p.id, p.querySelectorAll(".mark").length])),
    lines: Object.fromEntries(plots.map(p => [p.id, p.querySelectorAll(".line").length])),
    outside: plots.flatMap(p => [...p.querySelectorAll(".mark, text")].filter(e => {
      const box = e.getBoundingClientRect(), of = p.getBoundingClientRect();
      return box.width == 0 || box.left < of.left - 1 || box.right > of.right + 1 || box.top < of.top - 1 || box.bottom > of.bottom + 1;
    }).map(e => p.id + ": " + e.outerHTML)),
    columns: getComputedStyle(page.querySelector(".plots")).gridTemplateColumns.split(" ").length,
    smallest: Math.min(...plots.map(p => p.getBoundingClientRect().width)) / 420 * 12,
    rows: page.querySelectorAll("#points tr").length - 1, settings: page.querySelectorAll("#settings tr").length - 1,
  };
})); };
</script>""")
PYTHON
timeout 60 "$browser" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
  --disable-component-update --disable-sync --user-data-dir="$folder/browser" --window-size=1800,1000 --dump-dom \
  "file://$folder/probe.html" >dom 2>browser.log || fail "the browser failed: $(cat browser.log)"
python3 - <<'PYTHON'
import html, json, re
found = re.search(r'<pre id="found">(.*?)</pre>', open("dom").read(), re.S)
assert found and found[1], "the browser ran no script"
for view in json.loads(html.unescape(found[1])):
    print("page:", {key: value for key, value in view.items() if key != "outside"})
    assert view["inner"] == view["width"] and view["scroll"] <= view["inner"], "the page is wider than its window"
    assert view["marks"] == {"fgrams": 8, "fgram-parameters": 8, "training-flops": 8, "inference-flops": 8,
                             "training-loss": 0, "validation-loss": 0}, view["marks"]
    assert view["lines"] == {"fgrams": 4, "fgram-parameters": 2, "training-flops": 3, "inference-flops": 3,
                             "training-loss": 8, "validation-loss": 8}, view["lines"]
    assert not view["outside"], view["outside"]
    assert view["columns"] == (1 if view["width"] == 390 else 2), view
    assert view["smallest"] > 9, "letters in plots are too small"
    assert view["rows"] == 8 and view["settings"] == 6, view
PYTHON

# Killed in the middle: what ran saves and ends, what was finished is kept, and the rest goes on where it was.
sed -e 's/eval_every: 10/eval_every: 0/' base.yaml >long.yaml
cat >>long.yaml <<'YAML'
checkpoint: {every: 500}
YAML
cat >killed.yaml <<'YAML'
run: long.yaml
folder: killed
points:
  - {name: short, trainer.steps: 20}
  - {name: long, trainer.steps: 4000, optimizer.schedule: constant}
launcher: {local: {ranks: 1, threads: 1}}
YAML
"$scone" sweep killed.yaml >killed.log 2>&1 &
sweep=$!
waits_for 90 grep -q '"step":300,' killed/points/long/metrics.jsonl
[ "$(state killed long)" = running ] || fail "expected long to be running: $("$scone" sweep status killed)"
ends 2 "scone: error: folder: killed is in use: pid $sweep on " "$scone" sweep killed.yaml
kill -KILL "$sweep"
wait "$sweep" 2>/dev/null || true
sweep=
waits_for 20 children_are_gone killed
[ "$(state killed long)" = interrupted ] || fail "expected long to be interrupted: $("$scone" sweep status killed)"
[ "$(state killed short)" = finished ] || fail "expected short to be finished: $("$scone" sweep status killed)"
stat -c '%Y.%y' killed/points/short/*.json killed/points/short/metrics.jsonl >before
ends 0 'all 2 points are finished' "$scone" sweep killed.yaml
stat -c '%Y.%y' killed/points/short/*.json killed/points/short/metrics.jsonl >after
cmp -s before after || fail "a finished point was run again"
grep -q 'resumed from' killed/points/long/sweep.log || fail "long did not go on where it was"
python3 - <<'PYTHON'
import json
steps = [json.loads(line)["step"] for line in open("killed/points/long/metrics.jsonl")]
assert steps == list(range(1, 4001)), (len(steps), steps[:3], steps[-3:])
PYTHON

# ctrl-C, with ranks under mpirun: they save and end, exit code 75; a second one kills.
cat >stopped.yaml <<'YAML'
run: long.yaml
folder: stopped
points:
  - {name: a, trainer.steps: 600, optimizer.schedule: constant}
launcher: {local: {ranks: 2, threads: 1, oversubscribe: true}}
YAML
for signals in "INT" "TERM INT HUP"; do # several at once are one stop
  rm -f stopped/points/a/metrics.jsonl
  "$scone" sweep stopped.yaml >stopped.log 2>&1 &
  sweep=$!
  waits_for 90 test -s stopped/points/a/metrics.jsonl
  for signal in $signals; do kill -s "$signal" "$sweep"; done
  code=0
  wait "$sweep" || code=$?
  sweep=
  [ "$code" = 75 ] || fail "expected exit code 75 after $signals, found $code: $(cat stopped.log)"
  waits_for 5 children_are_gone stopped
  [ "$(state stopped a)" = interrupted ] || fail "expected a to be interrupted after $signals: $(cat stopped.log)"
  compgen -G 'stopped/points/a/checkpoints/step-*' >/dev/null || fail "no checkpoint after $signals: $(cat stopped/points/a/sweep.log)"
  [ "$(field stopped/points/a/training.json stopped_early)" = True ] || fail "the run did not end by itself after $signals"
done
ends 0 'all 1 points are finished' "$scone" sweep stopped.yaml
grep -q 'mpirun .* -np 2 .*scone train stopped/points/a/point.yaml' stopped/points/a/sweep.log || fail "no mpirun: $(cat stopped/points/a/sweep.log)"

# What mpirun gets is SIGUSR1, for at SIGTERM it would kill its ranks a second later; `mpirun` names another and its options.
cat >mpirun-stand-in <<'SH'
#!/usr/bin/env bash
echo "$*" >mpirun-arguments
if [ "$1" = --stubborn ]; then
  trap '' USR1 TERM INT
  setsid sleep 300 &
  echo "$$ $!" >mpirun-processes
  wait
fi
for signal in USR1 TERM INT; do trap "echo $signal >mpirun-signal; exit 75" "$signal"; done
while :; do sleep 0.1; done
SH
chmod +x mpirun-stand-in
sed -e 's/folder: stopped/folder: other/' -e 's/oversubscribe: true/oversubscribe: true, mpirun: .\/mpirun-stand-in --option/' stopped.yaml >other.yaml
"$scone" sweep other.yaml >other.log 2>&1 &
sweep=$!
waits_for 90 test -s mpirun-arguments
kill -TERM "$sweep"
code=0
wait "$sweep" || code=$?
sweep=
[ "$code $(cat mpirun-signal)" = "75 USR1" ] || fail "expected exit code 75 and SIGUSR1, found $code $(cat mpirun-signal)"
grep -q '^--option -np 2 .*scone train other/points/a/point.yaml' mpirun-arguments || fail "mpirun got $(cat mpirun-arguments)"

# A second signal ends what ignores the first, and what it started in a process group of its own.
sed -i -e 's/folder: other/folder: stubborn/' -e 's/--option/--stubborn/' other.yaml
"$scone" sweep other.yaml >other.log 2>&1 &
sweep=$!
waits_for 90 test -s mpirun-processes
kill -TERM "$sweep"
sleep 2.3
kill -0 "$sweep" || fail "the sweep did not wait for its child: $(cat other.log)"
kill -INT "$sweep"
code=0
wait "$sweep" || code=$?
sweep=
[ "$code" = 75 ] || fail "expected exit code 75 after a second signal, found $code: $(cat other.log)"
for process in $(cat mpirun-processes); do
  if grep -q '^State:.[^Z]' "/proc/$process/status" 2>/dev/null; then # Z: killed, and not yet waited for
    kill -KILL "$process"
    fail "a process outlived the second signal: $(cat other.log)"
  fi
done

# A training that ends itself by run.time_limit is gone on with as long as it comes further; one that does not ends the point.
cat >limited.yaml <<'YAML'
run: long.yaml
folder: limited
points:
  - {name: far, trainer.steps: 3000, run.time_limit: 1}
launcher: {local: {ranks: 1, threads: 1}}
YAML
ends 0 'all 1 points are finished' "$scone" sweep limited.yaml
[ "$(grep -c 'stopped by run.time_limit' limited/points/far/sweep.log)" -ge 1 ] || fail "the limit never came: $(cat limited/points/far/sweep.log)"
[ "$(grep -c '^== .* train, attempt 1' limited/points/far/sweep.log)" -ge 2 ] || fail "the training was not gone on with: $(cat limited/points/far/sweep.log)"

# A point that fails is tried again, shown, and keeps no other from its end.
cat >failing.yaml <<'YAML'
run: base.yaml
folder: failing
points:
  - {name: bad, optimizer.peak_lr: 1.0e+30, trainer.on_bad_step: stop}
  - {name: good}
launcher: {local: {threads: 1}}
YAML
ends 1 'failed: bad; scone sweep status failing' "$scone" sweep failing.yaml
[ "$(grep -c '^== .* train, attempt' failing/points/bad/sweep.log)" = 2 ] || fail "expected two attempts: $(cat failing/points/bad/sweep.log)"
ends 0 '^bad +failed +train' "$scone" sweep status failing
grep -q '^    | .*error' out || fail "the status shows no end of the log: $(cat out)"
grep -qE '^good +finished' out || fail "the other point is not finished: $(cat out)"
ends 0 report.html "$scone" sweep report failing
grep -q '<h2>Failed runs</h2>' failing/report.html || fail "the report does not show the failed run"
echo 'retries: 0' >>failing.yaml
ends 1 'bad: train ended with exit code 1, and was the last attempt' "$scone" sweep failing.yaml
[ "$(grep -c '^== .* train, attempt' failing/points/bad/sweep.log)" = 3 ] || fail "expected one more attempt"
# Settings that changed: refused with the keys, until the point's folder is removed.
sed -e 's/peak_lr: 1.0e+30/peak_lr: 1.0e-3/' -e 's/trainer.on_bad_step: stop/trainer.steps: 9/' -i failing.yaml
ends 2 'failing.yaml: changed since failing was begun' "$scone" sweep failing.yaml
grep -q '    optimizer.peak_lr: 1e+30 before, 0.001 now' out || fail "the key is not named: $(cat out)"
grep -q '    set them back, or remove failing/points/bad to run it anew' out || fail "no word of what to do: $(cat out)"
grep -q 'point good' out && fail "a point that did not change is named: $(cat out)"
rm -r failing/points/bad
ends 0 'all 2 points are finished' "$scone" sweep failing.yaml
echo 'evaluate: {tokens: 500}' >>failing.yaml
ends 2 'evaluate.tokens: 0 before, 500 now; remove failing/points/good/evaluation.json to do it again' "$scone" sweep failing.yaml

# The study that is committed: its report comes from the small files alone.
cp -r "$repository/docs/study/main" study
finished=$(find study -name evaluation.json | wc -l)
ends 0 'study/report.html' "$scone" sweep report study
python3 - "$finished" <<'PYTHON'
import csv, json, sys
rows = [row for row in csv.DictReader(open("study/results.csv")) if row["perplexity"]]
assert len(rows) == int(sys.argv[1]) >= 13, len(rows)
for row in rows:
    assert float(row["loss"]) == json.load(open(f"study/points/{row['name']}/evaluation.json"))["loss"], row
    assert row["steps"] == "1832" and 1 <= float(row["training_flops_ratio"]) < 3, row
PYTHON

# Bad input, of which nothing may come.
refused() {  # refused MESSAGE LINES: of a sweep with these lines
  printf 'run: base.yaml\nfolder: refused\n%s\n' "$2" >refused.yaml
  ends 2 "$1" "$scone" sweep refused.yaml
  [ ! -e refused ] || fail "a refused sweep made its folder: $2"
}
refused 'refused.yaml:3: model.main.widht: names no key of a run; the nearest is model.main.width' 'axes: {model.main.widht: [16]}'
refused 'point main.layers-1: two points have this name' 'axes: {model.main.layers: [1, 1]}'
refused 'has the same settings as' 'axes: {fgrams.size: [100, "100.0"]}'
refused 'point main.heads-5: refused.yaml:3: model.main.heads: 5 heads do not divide' 'axes: {model.main.heads: [2, 5]}'
refused 'point fgrams.size-9K: .*fgrams.h5' 'axes: {fgrams.size: [100, 9K]}'
refused 'launcher.local: 4096 jobs x 1 ranks x 1 threads are 4096, but there are [0-9]+ cores; .*oversubscribe: true' \
  'launcher: {local: {jobs: 4096, threads: 1}}'
refused 'compute.threads is set, but launcher.local.threads says it' 'axes: {compute.threads: [1]}'
refused 'evaluate.data: point run has no data.validation' 'derived: {data.validation: []}'
refused 'unknown key; the nearest valid key is seeds' 'seed: [1]'
mkdir mine && touch mine/thesis.txt
sed 's/folder: killed/folder: mine/' killed.yaml >mine.yaml
ends 2 'folder: mine is not empty and no sweep.s \(thesis.txt is in it\)' "$scone" sweep mine.yaml
ends 2 'mine: no folder of a sweep' "$scone" sweep status mine
ends 2 'mine: no folder of a sweep' "$scone" sweep report mine
ends 2 'nowhere.yaml: cannot be read' "$scone" sweep nowhere.yaml
ends 2 'a YAML file, status or report' "$scone" sweep
ends 2 'scone sweep starts mpirun itself' "$repository/launch/mpirun.sh" -np 1 "$scone" sweep whole.yaml

# Slurm, stood in for by scripts: sbatch numbers its jobs from 101 and refuses partition "gone", or its call number $refuse.
mkdir slurm-programs
cat >slurm-programs/sbatch <<'SH'
#!/usr/bin/env bash
echo "$*" >>"$FAKE/sbatch.log"
case " $* " in *" --partition=gone "*)
  echo "sbatch: error: invalid partition specified: gone" >&2
  echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
  exit 1 ;;
esac
case " $* " in *" --test-only "*) exit 0 ;; esac
calls=$(($(cat "$FAKE/calls" 2>/dev/null || echo 0) + 1))
echo "$calls" >"$FAKE/calls"
if [ "$calls" = "${refuse:-}" ]; then
  echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
  exit 1
fi
echo "$((100 + calls));cluster"
SH
printf '#!/usr/bin/env bash\necho "$*" >>"$FAKE/scancel.log"\n' >slurm-programs/scancel
printf '#!/usr/bin/env bash\ncat "$FAKE/queue"\n' >slurm-programs/squeue
chmod +x slurm-programs/*
export FAKE=$folder/slurm-programs PATH=$folder/slurm-programs:$PATH
touch array.sbatch slurm-programs/queue
cat >slurm.yaml <<'YAML'
run: base.yaml
folder: in slurm
points:
  - {name: baseline, model.fgram.layers: 0, fgrams.vocabulary: ""}
  - {name: scone}
bake: true
launcher:
  slurm: {account: lab, partition: cpu, time: "01:00:00", nodes: 1, ntasks_per_node: 2, gpus_per_node: 4, max_running: 3,
    options: [--exclusive], script: array.sbatch}
YAML
sed 's/partition: cpu/partition: gone/' slurm.yaml >gone.yaml
sed -i 's/folder: .*/folder: gone/' gone.yaml
ends 2 'sbatch refused the train jobs, and nothing is submitted: sbatch: error: invalid partition specified: gone' "$scone" sweep gone.yaml
[ "$(wc -l <slurm-programs/sbatch.log)" = 1 ] || fail "expected --test-only alone: $(cat slurm-programs/sbatch.log)"
[ ! -e gone/slurm/jobs.json ] && [ ! -e slurm-programs/calls ] || fail "something was submitted to a partition that is not there"
sed 's/folder: .*/folder: half/' slurm.yaml >half.yaml
ends 2 'sbatch refused the eval jobs, and nothing is submitted: sbatch: error: AssocMaxSubmitJobLimit' env refuse=3 "$scone" sweep half.yaml
[ "$(cat slurm-programs/scancel.log)" = "101 102" ] || fail "what was submitted is not cancelled: $(cat slurm-programs/scancel.log)"
[ "$(cat half/slurm/jobs.json)" = "[]" ] || fail "cancelled jobs are kept: $(cat half/slurm/jobs.json)"
rm slurm-programs/{calls,sbatch.log}
ends 0 'submitted eval-baked: 1 as job 104' "$scone" sweep slurm.yaml
common='--nodes=1 --ntasks=2 --ntasks-per-node=2 --cpus-per-task=1 --account=lab --partition=cpu --time=01:00:00 --gpus-per-node=4 --exclusive'
cat >expected <<TEXT
--test-only --parsable $common --array=1-2%3 --job-name=slurm-train --output=in slurm/slurm/train-%A_%a.log array.sbatch in slurm/slurm/0001-train.commands
--parsable $common --array=1-2%3 --job-name=slurm-train --output=in slurm/slurm/train-%A_%a.log array.sbatch in slurm/slurm/0001-train.commands
--parsable $common --array=2%3 --job-name=slurm-bake --output=in slurm/slurm/bake-%A_%a.log --dependency=aftercorr:101 --kill-on-invalid-dep=yes array.sbatch in slurm/slurm/0002-bake.commands
--parsable $common --array=1-2%3 --job-name=slurm-eval --output=in slurm/slurm/eval-%A_%a.log --dependency=aftercorr:101 --kill-on-invalid-dep=yes array.sbatch in slurm/slurm/0003-eval.commands
--parsable $common --array=2%3 --job-name=slurm-eval-baked --output=in slurm/slurm/eval-baked-%A_%a.log --dependency=aftercorr:102 --kill-on-invalid-dep=yes array.sbatch in slurm/slurm/0004-eval-baked.commands
TEXT
diff expected slurm-programs/sbatch.log || fail "sbatch was called otherwise"
printf '101_1 RUNNING\n101_2 PENDING\n102_2 PENDING\n103_1 PENDING\n103_2 PENDING\n104_2 PENDING\n7_1 RUNNING\n' >slurm-programs/queue
[ "$(state "in slurm" baseline) $(state "in slurm" scone)" = "running queued" ] || fail "status: $("$scone" sweep status "in slurm")"
ends 0 'nothing to submit' "$scone" sweep slurm.yaml
# The first point's tasks run, the second's fail; the sweep submits the second's anew.
task() { eval "\"$scone\" $(sed -n "$2p" "in slurm/slurm/$1.commands")" >task.log 2>&1 || fail "task $*: $(cat task.log)"; }
task 0001-train 1
printf '101_2 RUNNING\n102_2 PENDING\n103_1 PENDING\n103_2 PENDING\n104_2 PENDING\n' >slurm-programs/queue
[ "$(state "in slurm" baseline) $(state "in slurm" scone)" = "queued running" ] || fail "status: $("$scone" sweep status "in slurm")"
task 0003-eval 1
echo "out of memory" >"in slurm/slurm/train-101_2.log"
: >slurm-programs/queue
[ "$(state "in slurm" baseline)" = finished ] || fail "status: $("$scone" sweep status "in slurm")"
ends 0 '^scone +failed +train' "$scone" sweep status "in slurm"
grep -q '^    | out of memory' out || fail "the task's log is not shown: $(cat out)"
rm slurm-programs/sbatch.log
ends 0 'submitted train: 1 as job 105' "$scone" sweep slurm.yaml
grep -o -e '--array=[^ ]*' slurm-programs/sbatch.log | sort -u >arrays
[ "$(cat arrays)" = "--array=2%3" ] || fail "expected the second task alone: $(cat slurm-programs/sbatch.log)"
for job in 0005-train 0006-bake 0007-eval 0008-eval-baked; do task "$job" 2; done
ends 0 '2 points: 2 finished' "$scone" sweep status "in slurm"
echo "sweep_test: passed"
