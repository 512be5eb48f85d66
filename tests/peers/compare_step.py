#!/usr/bin/env python3
"""Training steps on the processor beside PyTorch's and llm.c's: every program in turn, several rounds, medians.

  compare_step.py [--scone build/scone] [--cases 30m,124m-short,124m] [--rounds 5] [--steps 5] [--threads 2]
                  [--python /usr/bin/python3] [--llmc PROGRAM]    tests/peers/llmc_step.c, compiled; without it llm.c is left out

A line a program: tokens/s (median over the rounds), the ratio of our own in the same dtype to it (median of the rounds'
ratios), the share of the measured matrix peak that a step runs at, and the most memory the process held. Where a program
is not there or ends with an error its line says so. The last line is JSON."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = {  # shape of scone bench step, sequences, context, (width, layers, heads)
    "30m": ("gpt2-30m", 4, 256, (384, 6, 6)),
    "124m-short": ("gpt2-124m", 4, 64, (768, 12, 12)),
    "124m": ("gpt2-124m", 4, 1024, (768, 12, 12)),
}


def run(command, environment):
    """(standard output, GB of resident memory at most) of a command, or (None, its last lines)."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            return None, errors.read().decode(errors="replace").strip()[-300:]
        return out.read().decode(), usage.ru_maxrss * 1024 / 1e9


class Program:
    def __init__(self, name, dtype, command, read):
        self.name, self.dtype, self.command, self.read = name, dtype, command, read
        self.rates, self.memory, self.shares, self.failure = [], 0.0, [], None

    def measure(self, environment):
        if self.failure:
            return
        out, memory = run(self.command, environment)
        if out is None:
            self.failure = memory
            return
        result = self.read(json.loads(out.strip().splitlines()[-1]))
        self.rates.append(result["tokens_per_second"])
        if "peak_share" in result:
            self.shares.append(result["peak_share"])
        self.memory = max(self.memory, memory)


def programs_of(case, options):
    shape, sequences, context, (width, layers, heads) = CASES[case]
    tokens = sequences * context
    programs = []
    sizes = ["--shapes", shape, "--context", str(context), "--batch-tokens", str(tokens), "--microbatch-tokens",
             str(tokens), "--rounds", str(options.steps)]
    for dtype in ("fp32", "bf16"):
        programs.append(Program("scone", dtype, [options.scone, "bench", "--json", "step", *sizes, "--dtype", dtype],
                                lambda result: result["rows"][0]))
        programs.append(Program("PyTorch", dtype, [options.python, os.path.join(HERE, "torch_step.py"), "--device", "cpu",
                                                   *sizes, "--dtype", dtype], lambda result: result["rows"][0]))
    if options.llmc:
        programs.append(Program("llm.c", "fp32", [options.llmc, *map(str, (width, layers, heads, context, sequences,
                                                                           options.steps))], lambda result: result))
    return programs


def compare(case, options):
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    programs = programs_of(case, options)
    for _ in range(options.rounds):
        for program in programs:
            program.measure(environment)
    own = {program.dtype: program for program in programs if program.name == "scone"}
    _, sequences, context, _ = CASES[case]
    print(f"{case}: {CASES[case][0]}, {sequences} x {context} tokens a step, {options.threads} threads, medians of "
          f"{options.rounds}")
    print(f"    {'program':<10} {'dtype':<6} {'tokens/s':>10} {'scone is':>9} {'of peak':>8} {'GB':>6}")
    rows = []
    for program in programs:
        if program.failure:
            print(f"    {program.name:<10} {program.dtype:<6} failed: {program.failure}")
            rows.append({"program": program.name, "dtype": program.dtype, "failure": program.failure})
            continue
        rate = statistics.median(program.rates)
        base = own[program.dtype].rates
        ratio = statistics.median([a / b for a, b in zip(base, program.rates)]) if base else float("nan")
        share = f"{100 * statistics.median(program.shares):.1f}%" if program.shares else ""
        print(f"    {program.name:<10} {program.dtype:<6} {rate:10.0f} {ratio:8.2f}x {share:>8} {program.memory:6.2f}",
              flush=True)
        rows.append({"program": program.name, "dtype": program.dtype, "tokens_per_second": program.rates, "ratio": ratio,
                     "peak_shares": program.shares, "memory_gb": program.memory})
    pairs = list(zip(own["bf16"].rates, own["fp32"].rates))
    if pairs:
        print(f"    scone's bf16 is {statistics.median([a / b for a, b in pairs]):.2f}x its fp32")
    return {"case": case, "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scone", default=os.path.join(HERE, "..", "..", "build", "scone"))
    parser.add_argument("--python", default="/usr/bin/python3", help="that has PyTorch")
    parser.add_argument("--llmc", default="")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    unknown = [case for case in options.cases.split(",") if case not in CASES]
    if unknown:
        parser.error(f"--cases: {', '.join(unknown)} is not one of {', '.join(CASES)}")
    print(json.dumps([compare(case, options) for case in options.cases.split(",")]))


if __name__ == "__main__":
    main()
