"""The child's side of a worker: reads requests from its standard input, answers on its standard output.

It never outlives its parent: end of input, another parent process and the idle time end it, with everything that it
started. What libraries print goes to the standard error, so that the protocol's stream stays clean.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import platform
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..cores import usable_cores
from ..errors import InputError
from ..files import remove_unfinished
from ..processes import kill_descendants, lead_own_group
from . import protocol as p
from .faults import failure_of
from .process import Kind
from .tasks import Answer, Context, Worker, perform
from .transport import ReceivedFiles, read_array, remove_folder, write_array

_HEARTBEAT_SECONDS = 2.0
_LOOK_SECONDS = 0.25
_PIECE = 1 << 20
# progress of a fast loop is told this often
_PROGRESS_SECONDS = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until the parent has no more use for this process."""
    parser = argparse.ArgumentParser(prog="python -m COVIDLesionSegLib.worker", description=__doc__.split("\n")[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the child's arguments."""
    parser.add_argument("--kind", choices=("lesions", "measurement"), default="lesions", help="which tasks to offer")
    parser.add_argument("--idle", type=float, default=900.0, metavar="SECONDS", help="end after so long without work")
    parser.add_argument("--job", type=Path, metavar="FOLDER", help="run the detached job in this folder instead")


def run(arguments: argparse.Namespace) -> int:
    """Serve until the parent has no more use for this process, or run a job."""
    if arguments.job is not None:
        from .jobs import run_job

        return run_job(arguments.job)
    serve(arguments.kind, arguments.idle)
    return 0


def serve(kind: Kind, idle: float) -> None:
    """Take over this process's standard streams and serve; does not return."""
    channel = Channel()
    faulthandler.enable(sys.stderr)
    lead_own_group()
    _limit_threads()
    server = Server(channel, kind, idle)
    # a polite kill takes the children with it, too
    signal.signal(signal.SIGTERM, lambda *_: server.end(128 + signal.SIGTERM))
    server.run()


class Channel:
    """The protocol's two streams, taken away from everybody else in this process.

    Descriptor 1 is the standard error from now on, so that a print, from Python or from native code, disturbs nothing;
    descriptor 0 is empty. Children of this process inherit these.
    """

    def __init__(self) -> None:
        self._input = os.dup(0)
        self._output = os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        if sys.platform == "win32":
            import msvcrt

            for descriptor in (self._input, self._output):
                msvcrt.setmode(descriptor, os.O_BINARY)
        self._lock = threading.Lock()

    def read(self) -> bytes:
        """Bytes from the parent; b"" at the end of input."""
        return os.read(self._input, _PIECE)

    def send(self, message: p.Message, arrays: Mapping[str, Any] | None = None) -> None:
        """Send a message, with arrays that travel in the pipe; whole, whoever else sends at the same time.

        Raises:
            OSError: the parent is gone.
        """
        line = p.encode(message)
        compressed = {header.name: header.encoding == "zlib" for header in getattr(message, "arrays", [])}
        with self._lock:
            self._write(line)
            for name, array in (arrays or {}).items():
                for block, _ in p.blocks(array, compressed[name]):
                    self._write(block)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._output, view) :]


class Server:
    """Works on requests one after the other.

    The main thread works. One thread reads, so that Cancel and the end of input are seen during work, and one sends
    the heartbeat and looks after the parent.

    Args:
        channel: to the parent.
        kind: which tasks it offers.
        idle: seconds without a request after which it ends.
    """

    def __init__(self, channel: Channel, kind: Kind, idle: float) -> None:
        self._channel = channel
        self._kind = kind
        self._idle = idle
        self._requests: queue.Queue[p.Frame | None] = queue.Queue()
        self._cancelled: set[int] = set()
        self._working = 0
        self._receiving = False
        self._parent = os.getppid()
        self._folders: set[Path] = set()
        self._received = ReceivedFiles()
        self._ending = threading.Lock()

    def run(self) -> None:
        """Serve; returns when the parent asks to end, or after the idle time."""
        worker = _worker(self._kind)
        self._send(
            p.Hello(
                self._kind,
                __version__,
                platform.python_version(),
                platform.platform(),
                os.getpid(),
                {
                    "tasks": sorted(worker.tasks),
                    "transports": ["file", "pipe"],
                    "encodings": ["raw", "zlib"],
                    "files": self._received.hashes(),
                },
            )
        )
        for loop in (self._read, self._watch):
            threading.Thread(target=loop, daemon=True).start()
        while True:
            try:
                frame = self._requests.get(timeout=self._idle)
            except queue.Empty:
                if self._receiving:
                    continue
                self._send(p.Bye("idle"))
                break
            if frame is None:
                self._send(p.Bye("close"))
                break
            if isinstance(frame.message, p.Ask):
                self._answer(worker, frame.message, frame)
            # a CT need not lie in memory until the next request comes
            del frame
        self.end(0)

    def end(self, status: int) -> None:
        """End now, whatever the main thread does, with all that this process started."""
        # whoever comes second waits for the end
        self._ending.acquire()
        for folder in self._folders:
            remove_folder(folder)
        remove_unfinished()
        kill_descendants()
        sys.stderr.flush()
        os._exit(status)

    # ---- the work -----------------------------------------------------------------------------------------------

    def _answer(self, worker: Worker, ask: p.Ask, frame: p.Frame) -> None:
        self._working = ask.id
        self._send(p.Started(ask.id))
        try:
            result, arrays = self._result(worker, ask, frame)
        except Exception as error:
            self._send(failure_of(error, ask.id, worker.device))
        else:
            self._send(result, arrays)
        finally:
            self._working = 0

    def _result(self, worker: Worker, ask: p.Ask, frame: p.Frame) -> tuple[p.Result, Mapping[str, Any]]:
        folder = self._folder(ask)
        arrays = dict(frame.arrays)
        for header in ask.arrays:
            if header.file:
                if folder is None:
                    raise InputError("Arrays in files need the folder that they are in.")
                arrays[header.name] = read_array(folder, header)
        answer = self._work(worker, ask, arrays)
        if folder is None:
            headers = [p.ArrayHeader.of(n, a, compress=ask.compress) for n, a in answer.arrays.items()]
            return p.Result(ask.id, answer.values, headers), answer.arrays
        headers = []
        for index, (name, array) in enumerate(answer.arrays.items()):
            header = p.ArrayHeader.of(name, array, f"{ask.id}-reply-{index}.npy")
            for _ in write_array(folder / header.file, array):
                pass
            headers.append(header)
        return p.Result(ask.id, answer.values, headers), {}

    def _work(self, worker: Worker, ask: p.Ask, arrays: dict[str, Any]) -> Answer:
        last = ("", 0.0)

        def report(phase: str, done: int, total: int, message: str) -> None:
            nonlocal last
            now = time.monotonic()
            if phase != last[0] or done >= total or message or now - last[1] >= _PROGRESS_SECONDS:
                last = (phase, now)
                self._send(p.ProgressMessage(ask.id, phase, int(done), int(total), message))

        context = Context(report, lambda text: self._send(p.Note(ask.id, text)), lambda: ask.id in self._cancelled)
        parameters = self._received.resolve(ask.parameters, arrays)
        context.check()
        answer = perform(worker, ask.task, parameters, arrays, context)
        context.check()
        return answer

    def _folder(self, ask: p.Ask) -> Path | None:
        if not ask.folder:
            return None
        folder = Path(ask.folder)
        # where it is gone with its parent nothing of it stays: also not by our hand
        self._folders.add(folder)
        return folder

    def _send(self, message: p.Message, arrays: Mapping[str, Any] | None = None) -> None:
        try:
            self._channel.send(message, arrays)
        except OSError:
            # nobody reads any more
            self.end(1)

    # ---- the other threads --------------------------------------------------------------------------------------

    def _read(self) -> None:
        decoder = p.Decoder()
        while True:
            try:
                data = self._channel.read()
            except OSError:
                data = b""
            if not data:
                self.end(0)
            try:
                frames = decoder.feed(data)
            except p.ProtocolError as error:
                kind = "version" if isinstance(error, p.VersionError) else "garbage"
                self._send(p.Failure(0, kind, Exception.__str__(error), error.hint, "", "copy_report"))
                self.end(1)
            self._receiving = decoder.in_frame
            for frame in frames:
                self._take(frame)

    def _take(self, frame: p.Frame) -> None:
        message = frame.message
        if isinstance(message, p.Ask):
            self._requests.put(frame)
        elif isinstance(message, p.Cancel):
            self._cancelled.add(message.id)
        elif isinstance(message, p.Close):
            if self._working:
                self.end(0)
            self._requests.put(None)

    def _watch(self) -> None:
        beat = time.monotonic()
        while True:
            time.sleep(_LOOK_SECONDS)
            if os.getppid() != self._parent:
                self.end(0)
            if (self._working or self._receiving) and time.monotonic() - beat >= _HEARTBEAT_SECONDS:
                self._send(p.Heartbeat())
                beat = time.monotonic()


def _worker(kind: Kind) -> Worker:
    if kind == "lesions":
        from .lesion_tasks import Lesions

        return Lesions()
    from .measurement_tasks import Measurements

    return Measurements()


def _limit_threads() -> None:
    """No more threads than this process has processors, also in a container whose quota libraries do not know of."""
    count = usable_cores()
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", str(count))
    if count < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(count))
