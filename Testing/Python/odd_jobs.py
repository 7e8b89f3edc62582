"""Tasks of detached jobs that behave as test_jobs asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from COVIDLesionSegLib.errors import CancelledError, ModelError


def count(job):
    """So many steps of so many seconds, with a curve; stops when asked to."""
    steps = job.parameters.get("steps", 5)
    start = int((job.work / "reached").read_text()) if job.parameters.get("resume") else 0
    job.note("Counting.")
    for step in range(start, steps):
        if job.is_cancelled():
            (job.work / "reached").write_text(str(step))
            raise CancelledError(f"Stopped at {step}.")
        time.sleep(job.parameters.get("seconds", 0.01))
        job.point("loss", step, 1 / (step + 1))
        job.progress("training", step + 1, steps)
    (job.work / "result.txt").write_text("made")
    return {"steps": steps, "pid": os.getpid()}


def fail(job):
    print("words of the failing job", flush=True)
    raise ModelError("There is no model 'x'.", "Choose another.")


def crash(job):
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def deaf(job):
    """Never asks whether it is cancelled, and has children."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    job.note(str(child.pid))
    job.progress("training", 0, 1)
    time.sleep(300)


def stopped(job):
    """Can't even look: the whole process is stopped."""
    job.progress("training", 0, 1)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(300)


def fill(job):
    """Writes until the disk is full."""
    with (job.work / "big").open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
