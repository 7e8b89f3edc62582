"""Runs commands in forked processes with limits of time and memory; a process of its own, spoken to in JSON lines.

It imports what is heavy once; a fork then costs milliseconds. No thread pool has run in it, so that forks are safe. One
line in: ``argv``, ``cwd``, ``environment``, ``seconds``, ``megabytes``, ``terminate_after`` (None, or seconds until
SIGTERM). One line out: ``status`` (negative: of the signal), ``late``, ``seconds``, ``megabytes``, ``out``, ``error``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

_PAGE = resource.getpagesize()


def serve() -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = "1"
    import highdicom  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pydicom  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import SimpleITK  # noqa: F401

    import COVIDLesionSegLib.inference.predictor
    import COVIDLesionSegLib.learning.trainer
    import COVIDLesionSegLib.measurement.report.document
    import COVIDLesionSegLib.models.checkpoints  # noqa: F401
    from COVIDLesionSegLib.cli import COMMANDS, main

    for name in COMMANDS.values():
        importlib.import_module(f"COVIDLesionSegLib.cli.{name}")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        # a training that ends at once: PyTorch loads half of itself not before that
        config = Path(folder, "x.toml")
        config.touch()
        main(["train", str(config), "-o", folder, "--quiet"])
    for line in sys.stdin:
        print(json.dumps(attempt(main, json.loads(line))), flush=True)


def attempt(main: Any, ask: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        start = time.monotonic()
        child = os.fork()
        if not child:
            _run(main, ask, out.fileno(), error.fileno())
        status, usage, late, told = None, None, False, False
        while status is None:
            done, code, usage = os.wait4(child, os.WNOHANG)
            spent = time.monotonic() - start
            if done:
                status = os.waitstatus_to_exitcode(code)
            elif spent > ask["seconds"]:
                late = True
                os.killpg(child, signal.SIGKILL)
            elif ask["terminate_after"] is not None and not told and spent > ask["terminate_after"]:
                told = True
                os.kill(child, signal.SIGTERM)
            if not done:
                time.sleep(0.002)
        texts = []
        for file in (out, error):
            file.seek(0)
            texts.append(file.read(200_000).decode("utf-8", "replace"))
    return {
        "status": status,
        "late": late,
        "seconds": round(time.monotonic() - start, 3),
        "megabytes": usage.ru_maxrss >> 10 if usage else 0,
        "out": texts[0],
        "error": texts[1],
    }


def _run(main: Any, ask: dict[str, Any], out: int, error: int) -> None:
    """The child: never returns."""
    status = 99
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(error, 2)
        os.chdir(ask["cwd"])
        os.environ.update(ask["environment"])
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
        limit = taken + (ask["megabytes"] << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = main(ask["argv"])
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
