#!/usr/bin/env python3
"""Counting n-grams: `scone fgrams` beside KenLM's count_ngrams (github.com/kpu/kenlm), whole commands in turns.

  kenlm_counts.py SCONE COUNT_NGRAMS SHARDS FOLDER [--rounds 5] [--memory 200M] [--threads 2]

scone counts n = 2..5 in four scans, drops what occurs less than 5 times, ranks the rest and writes the vocabulary.
count_ngrams counts one order and writes sorted records to standard output (here: to /dev/null): it is run for order 5
alone, and for each order from 2 to 5; it neither prunes nor ranks. It reads text, so the token ids are written as words
first, a line a document; that time is not counted. Prints seconds and peak memory (of the process; MB), medians."""
import argparse
import glob
import os
import statistics
import subprocess
import time

import h5py


def write_words(shards, path):
    with open(path, "w") as out:
        for name in sorted(glob.glob(os.path.join(shards, "*.h5"))):
            with h5py.File(name) as shard:
                tokens, offsets = shard["tokens"][:], shard["document_offsets"][:]
            for begin, end in zip(offsets[:-1], offsets[1:]):
                out.write(" ".join(map(str, tokens[begin:end].tolist())) + "\n")


def run(command, environment, stdin=None):
    """Seconds and peak resident memory, MB, of a command."""
    begin = time.monotonic()
    with open(stdin or os.devnull) as source, open(os.devnull, "w") as sink:
        child = subprocess.Popen(command, stdin=source, stdout=sink, stderr=subprocess.PIPE, env=environment)
        errors = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{command}: exit code {child.returncode}: {errors.decode()[-500:]}")
    return time.monotonic() - begin, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("scone", "count_ngrams", "shards", "folder"):
        parser.add_argument(name)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", default="200M")
    parser.add_argument("--peer-memory", default="1G", help="count_ngrams refuses less than four buffers of 64 MB")
    parser.add_argument("--threads", default="2")
    options = parser.parse_args()
    words = os.path.join(options.folder, "words.txt")
    if not os.path.exists(words):
        write_words(options.shards, words)
    environment = dict(os.environ, OMP_NUM_THREADS=options.threads)
    output = os.path.join(options.folder, "fgrams.h5")

    def kenlm(orders):
        command = [options.count_ngrams, "-S", options.peer_memory, "-T", options.folder + "/", "--write_vocab_list",
                   os.path.join(options.folder, "words.list")]
        results = [run(command + ["-o", str(order)], environment, words) for order in orders]
        return sum(seconds for seconds, _ in results), max(memory for _, memory in results)

    runs = {
        "scone fgrams, n = 2..5": lambda: run([options.scone, "fgrams", "--data", options.shards, "--output", output,
                                               "--size", "1M", "--memory", options.memory], environment),
        "count_ngrams, n = 5": lambda: kenlm([5]),
        "count_ngrams, n = 2..5": lambda: kenlm([2, 3, 4, 5]),
    }
    results = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, call in runs.items():
            results[name].append(call())
    first = None
    print(f"{'':<26} {'seconds':>9} {'peak MB':>9} {'over scone':>11}")
    for name, pairs in results.items():
        seconds, memory = (statistics.median(values) for values in zip(*pairs))
        first = first or seconds
        print(f"{name:<26} {seconds:9.2f} {memory:9.0f} {seconds / first:11.2f}")


if __name__ == "__main__":
    main()
