"""Keeps what a test starts in the background, and ends all of it when the test ends, however that is.

keeper.py PID FOLDER COMMAND..: runs COMMAND with its output in FOLDER/keeper.log. When process PID is gone, or at SIGTERM, every
process that descends from COMMAND is ended, those whose parents have ended too, and FOLDER is removed. Start it with setsid --fork:
what kills the test and its children, ctest after its time limit for one, then does not reach it. FOLDER/keeper.pid holds its pid.
"""
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36


def descendants():
    """Pids of all processes under this one; an orphan among them is this one's child, as it is their subreaper."""
    parent = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parent[int(name)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            pass  # has ended meanwhile
    found, new = set(), {os.getpid()}
    while new:
        new = {pid for pid, its in parent.items() if its in new} - found
        found |= new
    return found


def reap():
    """Collects the children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        pass


def end_all():
    for number, seconds in ((signal.SIGTERM, 3), (signal.SIGKILL, 30)):
        deadline = time.monotonic() + seconds
        while pids := descendants():
            if number == signal.SIGKILL or deadline - time.monotonic() > seconds - 0.2:  # SIGTERM in the beginning alone
                for pid in pids:
                    try:
                        os.kill(pid, number)
                    except ProcessLookupError:
                        pass
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
            reap()


def main():
    test, folder, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit(f"keeper.py: prctl: {os.strerror(ctypes.get_errno())}")
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.append(True))
    with open(os.path.join(folder, "keeper.log"), "wb") as log:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    with open(os.path.join(folder, "keeper.pid"), "w") as file:
        file.write(f"{os.getpid()}\n")
    while not asked and os.path.exists(f"/proc/{test}"):
        time.sleep(0.2)
        reap()
    end_all()
    shutil.rmtree(folder, ignore_errors=True)


main()
