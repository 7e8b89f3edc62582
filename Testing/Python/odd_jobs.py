"""Tasks of detached jobs that behave as test_jobs asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from COVIDLesionSegLib.errors import CancelledError, ModelError
from COVIDLesionSegLib.worker.jobs import JobContext


def count(job: JobContext, steps: int = 5, seconds: float = 0.01):
    """So many steps of so many seconds, with a curve; stops when asked to."""
    start = int((job.work / "reached").read_text()) if job.is_resumed else 0
    job.note("Counting.")
    for step in range(start, steps):
        if job.is_cancelled():
            (job.work / "reached").write_text(str(step))
            raise CancelledError(f"Stopped at {step}.")
        time.sleep(seconds)
        job.point("loss", step, 1 / (step + 1))
        job.progress("training", step + 1, steps)
    (job.work / "result.txt").write_text("made")
    return {"steps": steps, "pid": os.getpid()}


def fail(job: JobContext):
    print("words of the failing job", flush=True)
    raise ModelError("There is no model 'x'.", "Choose another.")


def crash(job: JobContext):
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def deaf(job: JobContext):
    """Never asks whether it is cancelled, and has children."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    job.note(str(child.pid))
    job.progress("training", 0, 1)
    time.sleep(300)


def stopped(job: JobContext):
    """Can't even look: the whole process is stopped."""
    job.progress("training", 0, 1)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(300)


def fill(job: JobContext):
    """Writes until the disk is full."""
    with (job.work / "big").open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
