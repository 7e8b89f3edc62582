"""Qt's processes and timers as the worker's client wants them; nothing of ours runs in a thread."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping
from typing import Any

import qt

from ..processes import kill_tree
from ..worker import ProcessListener

# Qt's objects must outlive whoever made them: a process until it has ended, a timer until it has called.
_kept: set[Any] = set()


class QtProcess:
    """A child process on QProcess; see :class:`..worker.Process`.

    Args:
        command: program and arguments.
        environment: its variables.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._command = list(command)
        self._listener: ProcessListener | None = None
        self._pid: int | None = None
        self._process = qt.QProcess()
        variables = qt.QProcessEnvironment()
        for name, value in environment.items():
            variables.insert(name, value)
        self._process.setProcessEnvironment(variables)
        self._process.connect("started()", self._started)
        self._process.connect("readyReadStandardOutput()", self._output)
        self._process.connect("readyReadStandardError()", self._diagnostics)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._finished)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._error)

    @property
    def pid(self) -> int | None:
        """Process id, None before the start."""
        return self._pid

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._listener is not None and self._process.state() != qt.QProcess.NotRunning

    def start(self, listener: ProcessListener) -> None:
        """Start the process."""
        self._listener = listener
        _kept.add(self)
        self._process.start(self._command[0], self._command[1:])

    def write(self, data: bytes | memoryview) -> None:
        """Queue bytes for the standard input."""
        if self.is_running:
            # as a QByteArray: bytes themselves could be taken for a text that ends at the first zero
            self._process.write(qt.QByteArray(bytes(data)))

    def pending(self) -> int:
        """Queued bytes that the process has not taken yet."""
        return int(self._process.bytesToWrite()) if self._listener is not None else 0

    def close_input(self) -> None:
        """End of input, after what is queued."""
        if self.is_running:
            self._process.closeWriteChannel()

    def kill_tree(self) -> None:
        """Kill the process and all its descendants."""
        if self.is_running and self._pid is not None:
            kill_tree(self._pid)

    def abandon(self) -> None:
        """Kill the process and hear no more of it: Python ends."""
        self._process.blockSignals(True)
        self.kill_tree()
        self._listener = None

    def _started(self) -> None:
        self._pid = int(self._process.processId())

    def _output(self) -> None:
        self._tell("output", self._process.readAllStandardOutput())

    def _diagnostics(self) -> None:
        self._tell("diagnostics", self._process.readAllStandardError())

    def _tell(self, what: str, data: Any) -> None:
        content = data.data()
        if content and self._listener is not None:
            getattr(self._listener, what)(content)

    def _finished(self, exit_code: int, status: Any) -> None:
        self._output()
        self._diagnostics()
        crashed = status == qt.QProcess.CrashExit
        self._end(-abs(exit_code) if crashed else exit_code, "")

    def _error(self, error: Any) -> None:
        if error == qt.QProcess.FailedToStart:
            problem = self._process.errorString()
            # Qt may tell it from inside start()
            QtTimer(0, lambda: self._end(None, problem))

    def _end(self, exit_code: int | None, problem: str) -> None:
        listener, self._listener = self._listener, None
        _kept.discard(self)
        if listener is not None:
            # its signals' receivers belong to it and hold this object, which holds it: only Qt can end that circle
            self._process.deleteLater()
            listener.ended(exit_code, problem)


class QtTimer:
    """A timer that calls once; see :class:`..worker.Timer`.

    Args:
        milliseconds: until then.
        callback: what to call.
    """

    def __init__(self, milliseconds: int, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback
        _kept.add(self)
        # Slicer's own QTimer.singleShot keeps each of its timers, and what it calls, until Slicer ends
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self._call)
        self._timer.start(milliseconds)

    def stop(self) -> None:
        """Never call."""
        if self._callback is not None:
            self._callback = None
            _kept.discard(self)
            self._timer.stop()
            # it and its signal's receiver hold each other: only Qt can end that circle
            self._timer.deleteLater()

    def abandon(self) -> None:
        """Never call: Python ends."""
        self.stop()

    def _call(self) -> None:
        callback = self._callback
        self.stop()
        if callback is not None:
            callback()


@atexit.register
def _abandon_all() -> None:
    """Qt's objects go before Python's: nothing may call from one to the other then."""
    for kept in list(_kept):
        kept.abandon()
    _kept.clear()
