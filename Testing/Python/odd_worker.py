"""A real child with some tasks that real ones never have: it misbehaves as the test asks. Run by worker_children."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time

from COVIDLesionSegLib.errors import LungsNotFoundError
from COVIDLesionSegLib.worker import server
from COVIDLesionSegLib.worker.tasks import Answer, Array, Context, tasks_of

SLEEP = [sys.executable, "-c", "import time; time.sleep(300)"]
# a child that starts a child and ends: the grandchild belongs to nobody, but to our process group
ORPHAN = "import subprocess; print(subprocess.Popen({sleep!r}, stdout=subprocess.DEVNULL).pid, flush=True)"


class Odd:
    device = "cuda:0"

    def __init__(self):
        self.tasks, self.makers = tasks_of(self), {}

    def echo(self, **arrays: Array):
        return Answer({"pid": os.getpid()}, arrays)

    def scribble(self, volume: Array, add: int = 1):
        """Changes what it was sent."""
        volume += add
        return Answer({"sum": int(volume.sum())})

    def talk(self):
        """Everything that could end up on the standard output."""
        print("a print", flush=True)
        sys.stdout.write("a write\n")
        os.write(1, b"native words\n")
        ctypes.CDLL(None).puts(b"words of a C library")
        ctypes.CDLL(None).fflush(None)
        subprocess.run([sys.executable, "-c", "print('words of a child')"], check=True)
        nothing = sys.stdin.read() if sys.stdin else ""
        return Answer({"stdin": nothing, "child_stdin": subprocess.run(["cat"], capture_output=True).stdout.decode()})

    def polite(self, context: Context):
        """Looks at Cancel as a predictor does between batches."""
        for step in range(6000):
            context.progress("network", step, 6000)
            context.check()
            time.sleep(0.01)
        return Answer()

    def deaf(self, context: Context):
        """In native code that never looks, holding Python's lock."""
        context.progress("network", 0, 1)
        ctypes.PyDLL(None).sleep(60)
        return Answer()

    def family(self, context: Context):
        """Starts a child, a grandchild of a child that is gone, then works on."""
        child = subprocess.Popen(SLEEP)
        orphan = subprocess.run(
            [sys.executable, "-c", ORPHAN.format(sleep=SLEEP)], stdout=subprocess.PIPE, check=True, text=True
        )
        context.note(f"{child.pid} {int(orphan.stdout)}")
        context.progress("network", 0, 1)
        while True:
            time.sleep(0.1)

    def stopped(self, context: Context):
        context.progress("network", 0, 1)
        os.kill(os.getpid(), signal.SIGSTOP)
        return Answer()

    def killed(self):
        print("about to be killed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def crash(self):
        ctypes.string_at(0)

    def leave(self):
        os._exit(3)

    def disk_full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    def no_memory(self):
        raise MemoryError

    def no_gpu_memory(self):
        raise RuntimeError("CUDA error: out of memory")

    def unexpected(self):
        raise ZeroDivisionError("division by zero")

    def no_lungs(self):
        raise LungsNotFoundError("No lungs were found in CT.", "Give a lung mask.")


server._worker = lambda kind: Odd()
if __name__ == "__main__":
    server.main()
