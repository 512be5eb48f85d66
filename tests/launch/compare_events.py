"""compare_events.py RUN_FOLDER STARTS: a run's event files say what its metrics.jsonl says, step by step; there are STARTS files."""
import json
import math
import os
import struct
import sys

from read_events import event_files, read_events

folder, starts = sys.argv[1], int(sys.argv[2])
with open(os.path.join(folder, "metrics.jsonl")) as file:
    lines = [json.loads(line) for line in file]
files = event_files(os.path.join(folder, "tensorboard"))
assert len(files) == starts, (starts, files)

seen, last_time = {}, 0
for path in files:
    events = read_events(path)
    assert events[0]["file_version"] == "brain.Event:2", events[0]
    assert events[1]["session_status"] == 1 and events[1]["step"] == len(seen) + 1, (len(seen), events[1])
    for event in events:
        assert last_time <= event["wall_time"] < last_time + 600 or last_time == 0, (last_time, event)
        last_time = event["wall_time"]
    for event in events[2:]:
        assert event["step"] == len(seen) + 1, (path, len(seen), event)
        seen[event["step"]] = event["scalars"]
assert abs(last_time - os.path.getmtime(files[-1])) < 5, (last_time, os.path.getmtime(files[-1]))

numbers = 0
assert list(seen) == [line["step"] for line in lines], (list(seen), len(lines))
for line in lines:
    scalars = seen[line["step"]]
    expected = {name: value for name, value in line.items() if name != "step" and not isinstance(value, str)}
    assert scalars.keys() == expected.keys(), (scalars.keys() ^ expected.keys())
    for name, value in expected.items():
        as_float = struct.unpack("<f", struct.pack("<f", value))[0] if value is not None else math.nan
        assert scalars[name] == as_float or (math.isnan(scalars[name]) and value is None), (line["step"], name, value, scalars[name])
        numbers += 1
names = set().union(*seen.values())
assert {"loss", "lr", "grad_norm", "tokens_per_second", "validation_loss"} <= names, names
print(f"{folder}: {len(files)} event files, {len(seen)} steps, {numbers} numbers as in metrics.jsonl")
