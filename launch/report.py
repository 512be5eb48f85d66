#!/usr/bin/env python3
"""Makes the report of a quickstart folder: FOLDER/report.html, FOLDER/report.json and a table on stdout.

    python3 launch/report.py FOLDER

FOLDER holds what the steps before it wrote:
    baseline/, scone/                                   run folders: metrics.jsonl and config.yaml
    baseline-eval.json, scone-eval.json, baked-eval.json    of `scone eval --json`
    fgrams.json                                         of `scone fgrams --report --json`
    bake.json                                           of `scone bake --json`
    sample.txt                                          of `scone generate`
    timing.json                                         {"seconds": total, "stages": {name: seconds}}

A .json file may hold other lines before the object, which is the last line (or the whole file). Needs Python 3.9 or
newer and gnuplot. Exit code 1, with a message on stderr, where an input is missing or unreadable.
"""

import html
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BASELINE, SCONE, THIRD = "#c2640c", "#3b76ea", "#12957a"  # told apart on white and on black
STAND_INS = {  # gnuplot draws in these; the page replaces them by its own colours, light or dark
    "#123456": "var(--text)",
    "#123457": "var(--grid)",
}
MOST_POINTS = 400  # of one plotted line


class ReportError(Exception):
    """An input is missing or is not what it should be; the message names it."""


def read_text(path):
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); run the step that writes it") from error


def read_json(path, keys):
    """The JSON object of a file (its last line, where other lines precede it), which must have `keys`."""
    text = read_text(path).strip()
    found = None
    for candidate in (text, text.splitlines()[-1] if text else ""):
        try:
            found = json.loads(candidate)
            break
        except json.JSONDecodeError:
            continue
    if not isinstance(found, dict):
        raise ReportError(f"{path}: expected a JSON object as the last line; run the step that writes it again")
    require_keys(path, found, keys)
    return found


def require_keys(place, found, keys):
    missing = [key for key in keys if found.get(key) is None]
    if missing:
        raise ReportError(f"{place}: expected the key {', '.join(missing)}; found {', '.join(sorted(found))}")


def read_metrics(path):
    """The steps of a metrics.jsonl, ascending. A line cut short by a killed run is passed over if it is the last."""
    lines = read_text(path).splitlines()
    steps = []
    for number, line in enumerate(lines, 1):
        try:
            step = json.loads(line)
            step["step"], step["tokens"], step["loss"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines) and steps:
                break
            raise ReportError(f"{path}:{number}: expected an object with step, tokens and loss") from error
        steps.append(step)
    if not steps:
        raise ReportError(f"{path}: holds no step; has the training run?")
    return steps


@dataclass
class Inputs:
    fgrams: dict
    evaluations: dict  # by "baseline", "scone", "baked"
    bake: dict
    timing: dict
    sample: str
    metrics: dict  # by "baseline", "scone"
    configs: dict  # likewise, text of config.yaml


def read_inputs(folder):
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such folder")
    evaluation_keys = ("loss", "perplexity", "bits_per_byte", "tokens")
    fgrams = read_json(folder / "fgrams.json", ("size", "corpus_tokens", "chosen_by_length", "survivors_by_length",
                                                "coverage", "sharing"))
    require_keys(folder / "fgrams.json: coverage", fgrams["coverage"],
                 ("share", "share_by_length", "fgram_tokens_per_position"))
    return Inputs(
        fgrams=fgrams,
        evaluations={name: read_json(folder / f"{name}-eval.json", evaluation_keys)
                     for name in ("baseline", "scone", "baked")},
        bake=read_json(folder / "bake.json", ("rows", "width", "dtype", "table_bytes", "seconds")),
        timing=read_json(folder / "timing.json", ("seconds", "stages")),
        sample=read_text(folder / "sample.txt").strip(),
        metrics={name: read_metrics(folder / name / "metrics.jsonl") for name in ("baseline", "scone")},
        configs={name: read_text(folder / name / "config.yaml") for name in ("baseline", "scone")},
    )


# Numbers


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else None


def steady_mean(steps, key):
    """Mean of a metric over the steps but the first, which pays for warming up."""
    return mean(step[key] for step in (steps[1:] or steps) if step.get(key) is not None)


def summarise(inputs):
    """The object of report.json."""
    baseline, scone, baked = (inputs.evaluations[name] for name in ("baseline", "scone", "baked"))
    fgrams, bake = inputs.fgrams, inputs.bake
    result = {
        "baseline_perplexity": baseline["perplexity"],
        "scone_perplexity": scone["perplexity"],
        "baked_perplexity": baked["perplexity"],
        "baseline_loss": baseline["loss"],
        "live_loss": scone["loss"],
        "baked_loss": baked["loss"],
        "live_baked_relative_difference": abs(scone["loss"] - baked["loss"]) / abs(scone["loss"]),
        "perplexity_reduction": 1.0 - scone["perplexity"] / baseline["perplexity"],
        "baseline_bits_per_byte": baseline["bits_per_byte"],
        "scone_bits_per_byte": scone["bits_per_byte"],
        "baked_bits_per_byte": baked["bits_per_byte"],
        "evaluated_tokens": scone["tokens"],
        "fgrams": fgrams["size"],
        "corpus_tokens": fgrams["corpus_tokens"],
        "fgram_coverage": fgrams["coverage"]["share"],
        "fgram_coverage_by_length": fgrams["coverage"]["share_by_length"],
        "fgram_tokens_per_position_unshared": fgrams["coverage"]["fgram_tokens_per_position"],
        "sharing": fgrams["sharing"],
        "table_rows": bake["rows"],
        "table_width": bake["width"],
        "table_dtype": bake["dtype"],
        "table_bytes": bake["table_bytes"],
        "bake_seconds": bake["seconds"],
        "seconds": inputs.timing["seconds"],
        "stages": inputs.timing["stages"],
    }
    for name, steps in inputs.metrics.items():
        result[f"{name}_steps"] = steps[-1]["step"]
        result[f"{name}_training_tokens"] = steps[-1]["tokens"]
        result[f"{name}_tokens_per_second"] = steady_mean(steps, "tokens_per_second")
        result[f"{name}_training_seconds"] = sum(step.get("step_seconds", 0.0) for step in steps)
    result["scone_fgram_nodes_per_token"] = steady_mean(inputs.metrics["scone"], "fgram_nodes_per_token")
    return result


def count_text(count):
    return f"{count:,.0f}"


def bytes_text(count):
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def seconds_text(seconds):
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds + 0.5) // 60} min {int(seconds + 0.5) % 60:02d} s"


# Plots, by gnuplot


def thin(points):
    """At most MOST_POINTS of the points, each the mean of as many neighbours."""
    group = max(1, math.ceil(len(points) / MOST_POINTS))
    return [(mean(x for x, _ in points[i:i + group]), mean(y for _, y in points[i:i + group]))
            for i in range(0, len(points), group)]


def data_block(name, rows):
    """A gnuplot heredoc. Strings are quoted, missing and non-finite numbers become NaN."""
    def field(value):
        if isinstance(value, str):
            return '"' + value.replace('"', "") + '"'
        if value is None or not math.isfinite(value):
            return "NaN"
        return f"{value:.10g}"
    lines = [" ".join(field(value) for value in row) for row in rows]
    return "\n".join([f"${name} << END", *lines, "END"])


def draw(name, commands):
    """The SVG that gnuplot makes of the commands, ready to stand in the page."""
    text, grid = STAND_INS
    script = f"""
set terminal svg size 520,350 font "sans-serif,15" linewidth 1.2 name "{name}"
set border 3 linecolor rgb "{text}"
set tics nomirror out textcolor rgb "{text}"
set grid linecolor rgb "{grid}" linetype 1 linewidth 0.7
set key textcolor rgb "{text}" top right Left reverse samplen 2 spacing 1.1
set xlabel textcolor rgb "{text}"
set ylabel textcolor rgb "{text}"
{commands}
"""
    try:
        done = subprocess.run(["gnuplot"], input=script, capture_output=True, text=True, check=False,
                              env={**os.environ, "LC_ALL": "C.UTF-8"})
    except FileNotFoundError as error:
        raise ReportError("gnuplot is not installed; launch/setup.sh installs it (package gnuplot-nox)") from error
    begin = done.stdout.find("<svg")
    if done.returncode != 0 or begin < 0:
        raise ReportError(f"gnuplot failed on the plot {name}: {done.stderr.strip()}")
    svg = done.stdout[begin:]
    for stand_in, colour in STAND_INS.items():
        components = (str(int(stand_in[i:i + 2], 16)) for i in (1, 3, 5))
        svg = re.sub(r"rgb\(\s*" + r",\s*".join(components) + r"\s*\)|" + stand_in, colour, svg)
    svg = svg.replace("gnuplot_canvas", f"{name}_canvas").replace("gpPt", f"{name}_point")  # ids, one page over
    # The page scales the drawing, so its size in pixels goes and the view box stays.
    head, rest = svg.split(">", 1)
    head = " ".join(part for part in head.split() if not part.startswith(("width=", "height=")))
    return f'{head} role="img">{rest.strip()}'


def plot_loss(metrics):
    blocks, plots = [], []
    highest = lowest = None
    for name, title, colour in (("baseline", "baseline", BASELINE), ("scone", "SCONE", SCONE)):
        steps = metrics[name]
        training = [(step["tokens"] / 1e6, step["loss"]) for step in steps if step["loss"] is not None]
        validation = [(step["tokens"] / 1e6, step["validation_loss"]) for step in steps
                      if step.get("validation_loss") is not None]
        blocks.append(data_block(f"{name}_training", thin(training)))
        plots.append(f'${name}_training using 1:2 with lines lw 1.2 lc rgb "{colour}" title "{title}, training"')
        if validation:
            blocks.append(data_block(f"{name}_validation", validation))
            plots.append(f'${name}_validation using 1:2 with linespoints lw 2 pt 7 ps 0.6 dt 2 lc rgb "{colour}" '
                         f'title "{title}, validation"')
        # The first steps' fall from ln(vocabulary) would squeeze all that matters into the lowest part.
        settled = sorted(loss for _, loss in training[len(training) // 20:])
        values = settled + [loss for _, loss in validation]
        if not values:
            raise ReportError(f"{name}/metrics.jsonl: no step has a finite loss; the run has diverged")
        highest = max(values + ([highest] if highest is not None else []))
        lowest = min(values + ([lowest] if lowest is not None else []))
    margin = 0.05 * (highest - lowest) or 0.1
    return draw("loss", "\n".join(blocks + [
        'set xlabel "training tokens, millions"', 'set ylabel "loss, nats a token"',
        f"set yrange [{lowest - margin:.6g}:{highest + margin:.6g}]", "plot " + ", ".join(plots)]))


def plot_perplexity(evaluations):
    names = (("baseline", "baseline", BASELINE), ("scone", "SCONE, live", SCONE), ("baked", "SCONE, baked", THIRD))
    block = data_block("perplexity", [(i, evaluations[key]["perplexity"], title)
                                      for i, (key, title, _) in enumerate(names)])
    bars = ", ".join(f'$perplexity every ::{i}::{i} using 1:2 with boxes fs solid lc rgb "{colour}"'
                     for i, (_, _, colour) in enumerate(names))
    text = next(iter(STAND_INS))
    return draw("perplexity", f"""{block}
set style fill solid noborder
set boxwidth 0.6
set xrange [-0.6:2.6]
set yrange [0:{1.15 * max(e["perplexity"] for e in evaluations.values()):.6g}]
set grid noxtics
set key off
set ylabel "validation perplexity"
plot {bars}, $perplexity using 1:2:xticlabel(3) with points ps 0, \\
  '' using 1:2:(sprintf("%.2f", $2)) with labels offset 0,0.8 textcolor rgb "{text}\"""")


def plot_coverage(fgrams):
    lengths = sorted(fgrams["coverage"]["share_by_length"], key=int)
    rows = [(int(n), 100 * fgrams["coverage"]["share_by_length"][n],
             100 * fgrams["chosen_by_length"].get(n, 0) / fgrams["size"]) for n in lengths]
    return draw("coverage", data_block("coverage", rows) + f"""
set style fill solid noborder
set boxwidth 0.36
set xrange [{int(lengths[0]) - 0.6}:{int(lengths[-1]) + 0.6}]
set xtics {lengths[0]},1,{lengths[-1]}
set yrange [0:*]
set grid noxtics
set format y "%g %%"
set key above left Left reverse maxcols 1
set xlabel "length of the f-gram, tokens"
plot $coverage using ($1-0.2):2 with boxes lc rgb "{SCONE}" title "share of text matched", \\
  '' using ($1+0.2):3 with boxes lc rgb "{THIRD}" title "share of the vocabulary\"""")


def plot_sharing(fgrams):
    unshared = fgrams["coverage"]["fgram_tokens_per_position"]
    padded = fgrams["coverage"].get("padded_fgram_tokens_per_position", unshared)
    rows = [(row["batch_tokens"] / 1024, row["nodes_per_token"]) for row in fgrams["sharing"]
            if row.get("nodes_per_token") is not None]
    if not rows:
        raise ReportError("fgrams.json: \"sharing\" has no measured batch size; the corpus is too small for a report")
    ticks = ", ".join(f'"{x:g}K" {x:g}' for x, _ in rows)
    return draw("sharing", data_block("sharing", rows) + f"""
set logscale x 2
set xrange [{rows[0][0] / 1.5:g}:{rows[-1][0] * 1.5:g}]
set xtics ({ticks})
set yrange [0:{1.1 * padded:g}]
set key above left Left reverse maxcols 1
set xlabel "tokens of a batch"
set ylabel "positions a token"
plot {padded:g} with lines lw 2 dt 3 lc rgb "{BASELINE}" title "each match alone, padded", \\
  {unshared:g} with lines lw 2 dt 2 lc rgb "{BASELINE}" title "each match alone", \\
  $sharing using 1:2 with linespoints lw 2 pt 7 ps 0.8 lc rgb "{SCONE}" title "trie nodes (computed once)\"""")


# The page

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --grid: #d8dde3; --page: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ed; --soft: #9aa4af; --grid: #3a424b; --page: #14171b; --card: #1d2126; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.2rem 1rem 3rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.soft { color: var(--soft); }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 0; padding: .8rem; background: var(--card); border-radius: .5rem; min-width: 0; }
figcaption { font-size: .95rem; margin-bottom: .5rem; }
figure svg { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: min(100%, 30rem); font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--grid); }
th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
pre { background: var(--card); border-radius: .5rem; padding: .8rem; margin: .5rem 0; overflow-x: auto;
  font-size: .85rem; line-height: 1.45; }
pre.sample { white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; }
"""


def table(header, rows):
    def line(tag, cells):
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
    return ('<div class="scroll"><table>' + line("th", header) + "".join(line("td", row) for row in rows) +
            "</table></div>")


def figure(caption, svg):
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg}</figure>"


def perplexity_rows(inputs):
    names = {"baseline": "baseline", "scone": "SCONE, f-gram model live", "baked": "SCONE, from the baked table"}
    return [(title, f"{inputs.evaluations[key]['perplexity']:.3f}", f"{inputs.evaluations[key]['loss']:.6f}",
             f"{inputs.evaluations[key]['bits_per_byte']:.4f}") for key, title in names.items()]


def training_rows(summary):
    return [(title, count_text(summary[f"{key}_steps"]), count_text(summary[f"{key}_training_tokens"]),
             count_text(summary[f"{key}_tokens_per_second"] or 0),
             seconds_text(summary[f"{key}_training_seconds"]))
            for key, title in (("baseline", "baseline"), ("scone", "SCONE"))]


def length_rows(fgrams):
    share = fgrams["coverage"]["share_by_length"]
    rows = [(n, count_text(fgrams["survivors_by_length"].get(n, 0)), count_text(fgrams["chosen_by_length"].get(n, 0)),
             f"{100 * share[n]:.2f} %") for n in sorted(share, key=int)]
    rows.append(("all", count_text(sum(fgrams["survivors_by_length"].values())), count_text(fgrams["size"]),
                 f"{100 * fgrams['coverage']['share']:.2f} %"))
    return rows


def make_page(inputs, summary):
    better = summary["perplexity_reduction"]
    comparison = f"{abs(100 * better):.1f} % {'lower' if better > 0 else 'higher'}"
    plots = [
        figure("Loss during training", plot_loss(inputs.metrics)),
        figure("Validation perplexity (lower is better)", plot_perplexity(inputs.evaluations)),
        figure("F-grams by length, and how much text they cover", plot_coverage(inputs.fgrams)),
        figure("What sharing saves in the f-gram model", plot_sharing(inputs.fgrams)),
    ]
    stages = [(name, seconds_text(seconds)) for name, seconds in summary["stages"].items()]
    stages.append(("all", seconds_text(summary["seconds"])))
    configs = "".join(f"<details><summary>Configuration of the {title} run</summary><pre>{html.escape(text)}</pre>"
                      f"</details>" for title, text in (("baseline", inputs.configs["baseline"]),
                                                        ("SCONE", inputs.configs["scone"])))
    nodes = summary["scone_fgram_nodes_per_token"]
    nodes_text = f" A training step computed {nodes:.3f} nodes a token." if nodes is not None else ""
    sharing = [(count_text(row["batch_tokens"]),
                "corpus too small" if row.get("nodes_per_token") is None else f"{row['nodes_per_token']:.4f}")
               for row in inputs.fgrams["sharing"]]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>scone quickstart report</title>
<style>{STYLE}</style>
</head>
<body>
<h1>SCONE {summary["scone_perplexity"]:.2f}, baseline {summary["baseline_perplexity"]:.2f}</h1>
<p>Validation perplexity of two runs with the same main model on the same text: SCONE's is {comparison}. From the baked
table its loss differs from the live f-gram model's by {summary["live_baked_relative_difference"]:.1e}, relative.</p>
<p class="soft">{count_text(summary["corpus_tokens"])} training tokens in the corpus,
{count_text(summary["evaluated_tokens"])} validation tokens, {count_text(summary["fgrams"])} f-grams,
{seconds_text(summary["seconds"])} in all.</p>
<div class="plots">
{chr(10).join(plots)}
</div>
<h2>Validation</h2>
{table(("model", "perplexity", "loss", "bits a byte"), perplexity_rows(inputs))}
<h2>Training</h2>
{table(("model", "steps", "tokens", "tokens/s", "time"), training_rows(summary))}
<h2>F-gram vocabulary</h2>
{table(("length", "survivors", "chosen", "positions"), length_rows(inputs.fgrams))}
<p class="soft">Positions: share of the corpus whose longest match has this length.</p>
<h2>Distinct trie nodes a token</h2>
{table(("tokens of a batch", "nodes a token"), sharing)}
<p class="soft">Each match by itself would cost {summary["fgram_tokens_per_position_unshared"]:.3f} positions of the
f-gram model a token.{nodes_text}</p>
<h2>F-gram table</h2>
{table(("rows", "width", "type", "size", "bake"),
       [(count_text(summary["table_rows"]), summary["table_width"], summary["table_dtype"],
         bytes_text(summary["table_bytes"]), seconds_text(summary["bake_seconds"]))])}
<h2>Sample from the bundle</h2>
<pre class="sample">{html.escape(inputs.sample)}</pre>
<h2>Time</h2>
{table(("stage", "time"), stages)}
<h2>Configurations</h2>
{configs}
</body>
</html>
"""


def print_table(inputs, summary, page):
    print(f"{'model':<30} {'perplexity':>11} {'loss':>10} {'bits/byte':>10}")
    for title, perplexity, loss, bits in perplexity_rows(inputs):
        print(f"{title:<30} {perplexity:>11} {loss:>10} {bits:>10}")
    print(f"live against baked loss: {summary['live_baked_relative_difference']:.2e} relative")
    print(f"f-gram table: {count_text(summary['table_rows'])} rows of width {summary['table_width']} in "
          f"{summary['table_dtype']}, {bytes_text(summary['table_bytes'])}; "
          f"{100 * summary['fgram_coverage']:.1f} % of positions matched")
    print(f"time: {seconds_text(summary['seconds'])}; report: {page}")


def write_whole(path, text):
    """Writes beside the target and renames, so that no half-written file is ever seen."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written ({error.strerror})") from error


def main(arguments):
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(__doc__, file=sys.stdout if arguments in (["-h"], ["--help"]) else sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    folder = Path(arguments[0])
    try:
        inputs = read_inputs(folder)
        summary = summarise(inputs)
        page = make_page(inputs, summary)
        write_whole(folder / "report.html", page)
        write_whole(folder / "report.json", json.dumps(summary, indent=2) + "\n")
    except ReportError as error:
        print(f"report: error: {error}", file=sys.stderr)
        return 1
    print_table(inputs, summary, folder / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
