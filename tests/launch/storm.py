"""Kills runs at random moments and starts them again, on random grids: storm.py SCONE ROUNDS [SEED]

A round starts a run on 2 to 4 ranks and kills -9 one of its ranks, or all, at a random moment, in half of the rounds while a
checkpoint is being written. Every few rounds the run may end, and its losses are compared with those of an uninterrupted run: bit
for bit where all rounds had its grid, else to 1e-4. Prints a line a run, and the counts.
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

scone, rounds = os.path.abspath(sys.argv[1]), int(sys.argv[2])
seed = int(sys.argv[3]) if len(sys.argv) > 3 else 4
print(f"storm: {rounds} rounds, seed {seed}")
draw = random.Random(seed)
mpirun = str(pathlib.Path(__file__).resolve().parents[2] / "launch" / "mpirun.sh")
environment = dict(os.environ, OMP_NUM_THREADS="1")
steps = 60
RUN = """
data: {train: shards/train, validation: shards/validation}
fgrams: {vocabulary: fgrams.h5}
model:
  main: {width: 96, layers: 4, heads: 12, context: 64}
  fgram: {layers: 2, heads: 12, chunk_nodes: 256}
optimizer: {peak_lr: 1.0e-3, warmup_steps: 20}
trainer: {steps: %d, batch_tokens: 4Ki, microbatch_tokens: 512}
checkpoint: {every: 3, keep: 2}
run: {folder: run}
""" % steps


def prepare():
    words = "the of a model token corpus rank frequent gram table row page vector layer".split()
    text = random.Random(1)
    with open("text.jsonl", "w") as out:
        for _ in range(400):
            line = " ".join(words[int(text.random() * text.random() * len(words))] for _ in range(80))
            out.write(json.dumps({"text": line}) + "\n")
    for command in (["tokenize", "--input", "text.jsonl", "--output", "shards", "--train-tokenizer", "301",
                     "--validation-fraction", "0.1"],
                    ["fgrams", "--data", "shards/train", "--output", "fgrams.h5", "--size", "300", "--min-count", "5"]):
        subprocess.run([scone, *command], check=True, capture_output=True, env=environment)
    pathlib.Path("run.yaml").write_text(RUN)


def random_grid():
    ranks = draw.choice((2, 3, 4))
    divisors = [d for d in range(1, ranks + 1) if ranks % d == 0]
    return ranks, [f"parallel.main.tp={draw.choice(divisors)}", f"parallel.fgram.tp={draw.choice(divisors)}",
                   f"parallel.main.zero={draw.randrange(2)}", f"parallel.fgram.zero={draw.randrange(2)}"]


def command(folder, grid, extra=()):
    ranks, options = grid
    return [mpirun, "-np", str(ranks), scone, "train", "run.yaml", f"run.folder={folder}", *options, *extra]


def losses(folder):
    lines = [json.loads(line) for line in open(f"{folder}/metrics.jsonl")]
    assert [line["step"] for line in lines] == list(range(1, steps + 1)), f"{folder}: not every step once"
    return [line["loss"] for line in lines]


def rank_processes(folder):
    """Process ids of the ranks that train in a folder."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if arguments[0] == scone.encode() and f"run.folder={folder}".encode() in arguments:
            found.append(int(entry.name))
    return found


def kill_at_random(process, folder, during_write):
    """Returns whether ranks were killed, and not the run at its end already."""
    checkpoints = pathlib.Path(folder, "checkpoints")
    deadline = time.monotonic() + draw.uniform(0.2, 4.0)
    while process.poll() is None:
        writing = checkpoints.is_dir() and any(path.name.endswith(".tmp") for path in checkpoints.iterdir())
        if time.monotonic() > deadline and (writing or not during_write):
            break
        time.sleep(0.0005 if during_write else 0.02)
    ranks = rank_processes(folder)
    if process.poll() is not None or not ranks:
        return False
    for rank in ranks if draw.random() < 0.5 else [draw.choice(ranks)]:
        try:
            os.kill(rank, signal.SIGKILL)
        except ProcessLookupError:
            pass
    begin = time.monotonic()
    process.wait(timeout=60)
    assert time.monotonic() - begin < 15, "the other ranks did not end within 15 s"
    return True


def run_storm(number, left):
    """One run through some rounds to its end; returns how many rounds killed it."""
    folder = f"storm{number}"
    fixed = draw.random() < 0.5
    extra = [f"checkpoint.async={'true' if number % 2 == 0 else 'false'}"]
    grid = random_grid()
    first_grid, killed, during = grid, 0, 0
    while killed < min(left, 6):
        during_write = draw.random() < 0.5
        with open(f"{folder}.log", "ab") as log:
            process = subprocess.Popen(command(folder, grid, extra), stdout=log, stderr=log, env=environment)
            if not kill_at_random(process, folder, during_write):
                process.wait(timeout=120)
                assert process.returncode == 0, f"{folder}: a round ended by itself with {process.returncode}"
                break
        killed += 1
        during += during_write
        if not fixed:
            grid = random_grid()
    result = subprocess.run(command(folder, grid, extra), capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, f"{folder}: the last start failed:\n{result.stderr}"
    found = losses(folder)
    if fixed:
        reference = command(f"{folder}-whole", first_grid)
        subprocess.run(reference, check=True, capture_output=True, env=environment)
        assert found == losses(f"{folder}-whole"), f"{folder}: losses differ from an uninterrupted run's on {first_grid}"
        outcome = "bit for bit as uninterrupted"
    else:
        worst = max(abs(a / b - 1) for a, b in zip(found, losses("alone")))
        assert worst < 1e-4, f"{folder}: losses differ by {worst:.1e}"
        outcome = f"within {worst:.1e} of one rank"
    print(f"{folder}: killed {killed} times, {during} of them in a write, {extra[0]}, "
          f"{'one grid' if fixed else 'random grids'}: {outcome}", flush=True)
    return killed


with tempfile.TemporaryDirectory() as scratch:
    os.chdir(scratch)
    prepare()
    subprocess.run([scone, "train", "run.yaml", "run.folder=alone"], check=True, capture_output=True, env=environment)
    done = number = 0
    while done < rounds:
        done += run_storm(number, rounds - done)
        number += 1
print(f"{done} rounds over {number} runs, none failed to start")
