"""The one way to wait: coroutines that run piece by piece on Qt's event loop, so that Slicer answers meanwhile.

There is no asyncio loop and no thread. A coroutine stops where it awaits :func:`turn` or a worker's
:class:`..worker.Request`, and is resumed by a timer or by the reply::

    async def measure(self):
        volume = mrml.volumeFromNode(self._node)  # some milliseconds
        await turn()  # Slicer paints, and takes clicks
        reply = await client.request("quantify", ...)
        self._show(reply)
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from ..worker import Client, Timer

_log = logging.getLogger(__name__)
T = TypeVar("T")
_PUMP_S = 0.5


class Signal:
    """Calls whoever listens, in the order in which they came; PythonQt can't declare Qt's own."""

    def __init__(self) -> None:
        self._listeners: list[Callable[..., Any]] = []

    def connect(self, listener: Callable[..., Any]) -> None:
        """Call this from now on."""
        self._listeners.append(listener)

    def disconnect(self, listener: Callable[..., Any]) -> None:
        """Never call this again; nothing happens if it was not connected."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def emit(self, *arguments: Any) -> None:
        """Call all listeners."""
        for listener in list(self._listeners):
            listener(*arguments)


class turn:  # noqa: N801  # read as a word: ``await turn()``
    """Let Slicer handle what has come meanwhile, then go on.

    Args:
        milliseconds: wait at least so long.
    """

    def __init__(self, milliseconds: int = 0) -> None:
        self._milliseconds = milliseconds

    def __await__(self) -> Generator[int, None, None]:
        yield self._milliseconds


class Tasks:
    """The coroutines of one owner: a page, a session, a run.

    Args:
        timer: starts a timer: (milliseconds, callback).
        failed: called with the error that ended a coroutine, whatever it is: the user must hear of it.
    """

    def __init__(self, timer: Callable[[int, Callable[[], None]], Timer], failed: Callable[[Exception], None]) -> None:
        self._timer, self._failed = timer, failed
        self._running: list[Task] = []
        self._isClosed = False

    @property
    def busy(self) -> bool:
        """Whether a coroutine is not done."""
        return bool(self._running)

    def start(self, coroutine: Coroutine[Any, Any, Any], failed: Callable[[Exception], None] | None = None) -> Task:
        """Run a coroutine, from the next turn of the event loop on.

        Args:
            coroutine: what to run; it is closed at once if the owner is.
            failed: called in place of the owner's.
        """
        task = Task(coroutine, self._timer, failed or self._failed, self._running.remove)
        self._running.append(task)
        if self._isClosed:
            task.cancel()
        return task

    def cancel(self) -> None:
        """End all coroutines where they wait; their ``finally`` runs, and requests on their way are cancelled."""
        for task in list(self._running):
            task.cancel()

    def close(self) -> None:
        """The owner is gone: end all, and start no more."""
        self._isClosed = True
        self.cancel()


class Task:
    """One coroutine on its way; made by :meth:`Tasks.start`."""

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        timer: Callable[[int, Callable[[], None]], Timer],
        failed: Callable[[Exception], None],
        ended: Callable[[Task], None],
    ) -> None:
        self._coroutine, self._startTimer = coroutine, timer
        self._failed, self._ended = failed, ended
        self._timer: Timer | None = None
        self._isRunning = self._isCancelled = False
        # a reply that comes after its wait was given up resumes nothing
        self._wait = 0
        self.done = False
        self._suspend(0)

    def cancel(self) -> None:
        """End it where it waits, now; one that runs this moment ends at its next wait. No error is told."""
        if self.done:
            return
        self._isCancelled = True
        if not self._isRunning:
            self._end()

    def _suspend(self, until: int | Callable[[Callable[[], None]], None]) -> None:
        self._wait += 1
        wait = self._wait

        def resume() -> None:
            if wait == self._wait and not self.done:
                self._resume()

        if callable(until):
            until(resume)
        else:
            self._timer = self._startTimer(until, resume)

    def _resume(self) -> None:
        self._timer = None
        self._isRunning = True
        try:
            until = self._coroutine.send(None)
        except StopIteration:
            self._finish()
            return
        except Exception as error:
            _log.debug("a task failed", exc_info=True)
            self._finish()
            if not self._isCancelled:
                self._failed(error)
            return
        finally:
            self._isRunning = False
        if self._isCancelled:
            self._end()
        else:
            self._suspend(until)

    def _end(self) -> None:
        self._finish()
        try:
            self._coroutine.close()
        except Exception:
            _log.exception("a cancelled task failed while it ended")

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        if not self.done:
            self.done = True
            self._ended(self)


@types.coroutine
def until(signal: Any) -> Generator[Callable[[Callable[[], None]], None], None, None]:
    """Wait until a :class:`.task.Signal` is emitted.

    Args:
        signal: whose next emission ends the wait.
    """
    resumed: list[Callable[[], None]] = []

    def listener(*_arguments: Any) -> None:
        signal.disconnect(listener)
        resumed[0]()

    def subscribe(resume: Callable[[], None]) -> None:
        resumed.append(resume)
        signal.connect(listener)

    try:
        yield subscribe
    finally:
        signal.disconnect(listener)


def complete(coroutine: Coroutine[Any, Any, T], client: Client) -> T:
    """Run a coroutine to its end, here and now; Slicer does not answer meanwhile.

    Args:
        coroutine: to run.
        client: with a ``pump``; all requests of the coroutine go to it.

    Raises:
        KeyboardInterrupt: the coroutine and its request are cancelled.
    """
    if client.pump is None:
        raise ValueError("the client has no pump")
    try:
        while True:
            until = coroutine.send(None)
            if not callable(until):
                continue
            resumed: list[bool] = []
            until(lambda done=resumed: done.append(True))
            while not resumed:
                client.pump(_PUMP_S)
    except StopIteration as end:
        result: T = end.value
        return result
    except KeyboardInterrupt:
        coroutine.close()
        raise
