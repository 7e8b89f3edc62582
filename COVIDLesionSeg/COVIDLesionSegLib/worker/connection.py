"""One child process and the conversation with it, from its start to its end."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from . import protocol as p
from . import troubles
from .exchange import make_folder, read_array, remove_folder
from .sending import Job, through_files, through_pipe
from .troubles import CANCELLED
from .values import Process, Reply, Timer, WorkerError, WorkerSettings

# work of one turn of the event loop while arrays are sent, seconds
_TURN = 0.01
# bytes that may wait in the pipe's queue
_QUEUE = 8 << 20
# what the login scripts of a far machine may print before the child speaks
_NOISE = 16 << 10
# lines of the child's standard error that are kept, and their bytes
_LINES = 40
_TAIL = 32 << 10
_CLOSE_SECONDS = 2.0


class Owner(Protocol):
    """Who is told what becomes of the connection; called on the thread that runs the process."""

    def connected(self, connection: Connection) -> None:
        """The child is ready for a request."""

    def answered(self, connection: Connection, outcome: Reply | WorkerError) -> None:
        """The request is done, and the child is ready for the next one."""

    def lost(self, connection: Connection, error: WorkerError | None) -> None:
        """The child is gone or given up, with the request; None where it ended before it took one."""


class Connection:
    """A child process: started, spoken to, watched, ended.

    Args:
        owner: is told what happens.
        process: the child, not started.
        timer: starts a timer.
        clock: seconds that never run backwards.
        settings: time limits, transport.
        kind: of worker that the child must be.
    """

    def __init__(
        self,
        owner: Owner,
        process: Process,
        timer: Callable[[int, Callable[[], None]], Timer],
        clock: Callable[[], float],
        settings: WorkerSettings,
        kind: str,
    ) -> None:
        self.state = "new"
        self.hello: p.Hello | None = None
        self._owner = owner
        self._process = process
        self._timer = timer
        self._clock = clock
        self._settings = settings
        self._kind = kind
        self._decoder = p.Decoder(_NOISE if settings.prefix else 0)
        self._tail = b""
        self._job: Job | None = None
        self._taken = False
        self._phase = ""
        self._upload: Iterator[None] | None = None
        # hashes of the files that the other machine has
        self._held: set[str] = set()
        self._sent_again = False
        self._folder: Path | None = None
        self._remove_folder: Callable[[], object] = lambda: None
        self._limit: Timer | None = None
        self._pause: Timer | None = None
        self._heard = clock()
        self._looked = False

    # ---- what the client asks for -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the child."""
        self.state = "starting"
        self._within(self._settings.start_seconds, self._too_late)
        self._process.start(self)

    def send(self, job: Job) -> None:
        """Give the child, which must be ready, a request."""
        self._sent_again = False
        self._begin(job)

    def _begin(self, job: Job) -> None:
        self.state = "sending"
        self._job, self._taken, self._phase = job, False, ""
        if self._settings.uses_pipe:
            self._upload = through_pipe(job, self._held, self._settings.compress, self._process.write)
        else:
            self._upload = self._through_files(job)
        self._heard, self._looked = self._clock(), False
        self._within(self._settings.silence_seconds, self._listen)
        self._turn()

    def cancel(self) -> None:
        """Stop working on the request: ``owner`` hears of it in time, whatever the child does."""
        if self.state == "sending" and not self._settings.uses_pipe:
            # the child knows nothing of it yet
            self._answer(CANCELLED)
        elif self.state == "sending":
            # the pipe is in the middle of an array
            self._give_up(CANCELLED)
        elif self.state == "working" and self._job is not None:
            self.state = "cancelling"
            self._process.write(p.encode(p.Cancel(self._job.number)))
            self._within(self._settings.cancel_seconds, self._still_working)

    def close(self) -> None:
        """Ask the child to end; it is killed if it does not. The owner hears no more."""
        self._leave("closing")
        self._process.write(p.encode(p.Close()))
        self._process.close_input()
        self._within(_CLOSE_SECONDS, self.kill)

    def kill(self) -> None:
        """Kill the child's process tree. The owner hears no more."""
        self._leave("ended")
        if self._process.is_running:
            self._process.kill_tree()
        self._clean()

    def lines(self) -> list[str]:
        """Last lines of the child's standard error, and what it printed before it spoke."""
        text = bytes(self._decoder.noise) + self._tail
        return text.decode("utf-8", "replace").splitlines()[-_LINES:]

    # ---- what the process tells ---------------------------------------------------------------------------------

    def output(self, data: bytes) -> None:
        """Bytes of the child's standard output."""
        self._heard, self._looked = self._clock(), False
        if self.state in ("closing", "ended"):
            return
        try:
            frames = self._decoder.feed(data)
        except p.VersionError as error:
            self._give_up(WorkerError("version", Exception.__str__(error), error.hint, action="copy_report"))
            return
        except p.ProtocolError as error:
            self._complain(error)
            return
        for frame in frames:
            if self.state not in ("closing", "ended"):
                self._handle(frame)

    def diagnostics(self, data: bytes) -> None:
        """Bytes of the child's standard error."""
        self._tail = (self._tail + data)[-_TAIL:]

    def ended(self, exit_code: int | None, problem: str) -> None:
        """The child is gone."""
        before = self.state
        self._leave("ended")
        self._clean()
        if before in ("closing", "ended"):
            return
        if before == "cancelling":
            self._owner.lost(self, CANCELLED)
        elif exit_code is None:
            self._owner.lost(self, self._not_started(problem or "the system gave no reason"))
        elif self.hello is None:
            self._owner.lost(self, self._not_started(f"it ended at once, {troubles.ending(exit_code)}"))
        elif self._job is None:
            self._owner.lost(self, None)
        else:
            self._owner.lost(self, self._death(exit_code))

    # ---- messages -----------------------------------------------------------------------------------------------

    def _handle(self, frame: p.Frame) -> None:
        message, job = frame.message, self._job
        if isinstance(message, p.Hello):
            self._greet(message)
        elif self.hello is None:
            self._complain("it did not begin with a greeting")
        elif isinstance(message, p.Bye):
            self._part()
        elif isinstance(message, p.Failure) and message.id == 0:
            self._give_up(troubles.told(message))
        elif job is None or getattr(message, "id", job.number) != job.number:
            # late words about a request that is over
            return
        elif isinstance(message, p.Started):
            self._taken = True
        elif isinstance(message, p.ProgressMessage):
            self._phase = message.phase
            job.tell(message.phase, message.done, message.total, message.message)
        elif isinstance(message, p.Note):
            job.note(message.text)
        elif isinstance(message, p.Failure):
            self._fail(message, job)
        elif isinstance(message, p.Result):
            self._receive(message, frame)
        elif not isinstance(message, p.Heartbeat):
            self._complain(f"it sent a {type(message).__name__}, which only a parent sends")

    def _greet(self, hello: p.Hello) -> None:
        if self.hello is not None or hello.kind != self._kind:
            self._complain(f"it greeted as a worker of kind {hello.kind!r}")
            return
        self.hello = hello
        files = hello.capabilities.get("files", ())
        self._held = {str(digest) for digest in files} if isinstance(files, list) else set()
        self._stop_timers()
        self.state = "ready"
        self._owner.connected(self)

    def _part(self) -> None:
        """The child ends by itself, after its idle time."""
        taken = self._taken and self._job is not None
        self.close()
        self._owner.lost(self, self._death(0) if taken else None)

    def _fail(self, message: p.Failure, job: Job) -> None:
        if message.kind == "file_missing" and self.state == "working" and not self._sent_again:
            # somebody has removed it there meanwhile: once more, with all files
            self._sent_again = True
            self._held.clear()
            self._begin(job)
        else:
            self._answer(troubles.told(message))

    def _receive(self, message: p.Result, frame: p.Frame) -> None:
        arrays = frame.arrays
        try:
            for header in message.arrays:
                if header.file:
                    if self._folder is None:
                        raise p.ProtocolError("Files were announced where none were asked for.")
                    arrays[header.name] = read_array(self._folder, header)
        except p.ProtocolError as error:
            self._complain(error)
            return
        self._answer(Reply(message.values, arrays))

    def _answer(self, outcome: Reply | WorkerError) -> None:
        if self.state == "cancelling" and isinstance(outcome, Reply):
            outcome = CANCELLED
        self._stop_timers()
        self._job, self._upload = None, None
        self._empty_folder()
        self.state = "ready"
        self._owner.answered(self, outcome)

    # ---- sending ------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Send for a moment, then let the event loop run."""
        if self.state != "sending" or self._upload is None:
            return
        end = self._clock() + _TURN
        try:
            while self._clock() < end:
                if self._process.pending() > _QUEUE:
                    self._pause = self._timer(5, self._turn)
                    return
                next(self._upload)
                self._heard, self._looked = self._clock(), False
        except StopIteration:
            self._upload, self.state = None, "working"
            return
        except OSError as error:
            self._answer(troubles.not_sent(error))
            return
        self._pause = self._timer(0, self._turn)

    def _through_files(self, job: Job) -> Iterator[None]:
        if self._folder is None:
            self._folder = make_folder()
            # also where this program ends without closing its client
            self._remove_folder = weakref.finalize(self, remove_folder, self._folder)
        yield from through_files(job, self._folder, self._process.write)

    # ---- time limits --------------------------------------------------------------------------------------------

    def _too_late(self) -> None:
        seconds = self._settings.start_seconds
        self._give_up(self._not_started(f"it did not report within {seconds:g} seconds"))

    def _listen(self) -> None:
        """Give the child up after silence, but not before what came in the meantime was read."""
        if self.state not in ("sending", "working"):
            return
        limit = self._settings.silence_seconds
        quiet = self._clock() - self._heard
        if quiet < limit:
            self._within(limit - quiet, self._listen)
        elif not self._looked:
            # if this process itself was busy, the child's words wait to be read
            self._looked = True
            self._within(min(1.0, limit / 4), self._listen)
        else:
            self._give_up(troubles.silent(limit, self._details()))

    def _still_working(self) -> None:
        if self.state == "cancelling":
            self._give_up(CANCELLED)

    def _within(self, seconds: float, call: Callable[[], None]) -> None:
        """Call after so many seconds, unless another limit is set before."""
        if self._limit is not None:
            self._limit.stop()
        self._limit = self._timer(max(1, round(seconds * 1000)), call)

    def _stop_timers(self) -> None:
        for timer in (self._limit, self._pause):
            if timer is not None:
                timer.stop()
        self._limit = self._pause = None

    # ---- the end ------------------------------------------------------------------------------------------------

    def _give_up(self, error: WorkerError) -> None:
        self.kill()
        self._owner.lost(self, error)

    def _leave(self, state: str) -> None:
        self._stop_timers()
        self.state = state
        self._upload = None

    def _clean(self) -> None:
        self._remove_folder()
        self._folder = None

    def _empty_folder(self) -> None:
        if self._folder is not None:
            for file in self._folder.iterdir():
                file.unlink(missing_ok=True)

    def _details(self) -> str:
        return "\n".join(self.lines())

    def _complain(self, why: object) -> None:
        self._give_up(troubles.garbage(why, self._details(), bool(self._settings.prefix)))

    def _not_started(self, why: str) -> WorkerError:
        return troubles.not_started(why, self._details(), bool(self._settings.prefix))

    def _death(self, exit_code: int) -> WorkerError:
        return troubles.died(exit_code, self._details(), self._phase)
