"""Does what a debugger does for `scone --hang-rank`: hang_rank.py SCONE -- COMMAND ..

Starts the command (mpirun, so that its ranks are this process's descendants, whose memory it may write), waits for the
line in which a rank says that it waits, checks that the job then stands still, sets scone_debugger_attached in that rank,
and exits with the command's exit code.
"""
import re
import struct
import subprocess
import sys
import time


def address_of(symbol, program):
    for line in subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout.splitlines():
        if line.endswith(f" {symbol}"):
            return int(line.split()[0], 16)
    sys.exit(f"{program} has no symbol {symbol}")


def load_address(pid, program):
    """Where the program's first page lies; 0 for a program that is not relocated."""
    with open(program, "rb") as file:
        header = file.read(20)
    if struct.unpack_from("<H", header, 16)[0] == 2:  # ET_EXEC
        return 0
    with open(f"/proc/{pid}/maps") as maps:
        return int(next(line for line in maps if line.rstrip().endswith(program)).split("-")[0], 16)


program = sys.argv[1]
job = subprocess.Popen(sys.argv[sys.argv.index("--") + 1:], stderr=subprocess.PIPE, text=True)
for line in job.stderr:
    print(line, end="", file=sys.stderr)
    found = re.fullmatch(r"rank \d+ waits for a debugger: host \S+, pid (\d+): gdb -p \1, then `set var "
                         r"scone_debugger_attached = 1` and `continue`\n", line)
    if found:
        break
else:
    sys.exit(f"no rank waits for a debugger; the job ended with {job.wait()}")
pid = int(found[1])
time.sleep(1)
if job.poll() is not None:
    sys.exit(f"the job did not wait, but ended with {job.poll()}")
with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
    memory.seek(load_address(pid, program) + address_of("scone_debugger_attached", program))
    memory.write(struct.pack("<i", 1))
for line in job.stderr:
    print(line, end="", file=sys.stderr)
sys.exit(job.wait())
