#!/usr/bin/env python3
"""The small files of a sweep's points, to keep: what each was to do and did, its evaluation, and every 20th line of its metrics.
  docs/study/collect.py SWEEP_FOLDER TO
Copied back in SWEEP_FOLDER's place, `scone sweep` goes on with the points that had not finished, and `report` shows all."""
import json
import pathlib
import shutil
import sys

EVERY = 20  # steps


def thinned(metrics):
    """Lines of each EVERYth step, and those with a validation loss."""
    kept = [line for line in metrics.read_text().splitlines(keepends=True)
            if (row := json.loads(line)).get("step", 0) % EVERY == 0 or "validation_loss" in row]
    return "".join(kept)


def collect(sweep, to):
    here = f"{pathlib.Path.cwd()}/"  # a bake's result holds the whole path of its checkpoint
    to.mkdir(parents=True, exist_ok=True)
    for path in sorted(sweep.glob("*.json")) + sorted(sweep.glob("results.csv")):
        shutil.copy(path, to)
    for point in sorted((sweep / "points").iterdir()):
        state = point / "state.json"
        if not state.exists() or json.loads(state.read_text())["state"] != "finished":
            continue
        folder = to / "points" / point.name
        folder.mkdir(parents=True, exist_ok=True)
        for path in [*point.glob("*.json"), *point.glob("*.yaml")]:
            (folder / path.name).write_text(path.read_text().replace(here, ""))
        (folder / "metrics.jsonl").write_text(thinned(point / "metrics.jsonl"))
        print(point.name)


if __name__ == "__main__":
    if len(sys.argv) != 3 or not (pathlib.Path(sys.argv[1]) / "sweep.json").exists():
        sys.exit(__doc__)
    collect(*map(pathlib.Path, sys.argv[1:]))
