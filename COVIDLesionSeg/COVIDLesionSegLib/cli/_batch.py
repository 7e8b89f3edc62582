"""Batches: many cases, one after the other or in worker processes, resumable, and never ended by one bad case.

What came of each case is kept in a JSON-lines file, one object a case, that is flushed to disk case by case; a run with
``resume`` reads it and does only what is missing, failed before, or has changed since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..cores import THREAD_VARIABLES, usable_cores
from ..documents import parse_object
from ..errors import CancelledError, COVIDLesionSegError, InputError, OutputError, ReadError
from ..files import read_bytes, write_text
from ..manifest import case_id
from ..processes import TerminatedError, asked_to_end, ending_by_sigterm
from ..worker.faults import scrubbed
from ._progress import ProgressBar

T = TypeVar("T")
_log = logging.getLogger(__name__)


# names of files that are words of our messages, and nobody's
_COMMON = {"ct", "image", "label", "lesion", "lesions", "lung", "lungs", "mask", "prediction", "reference", "series"}
_MOST_BYTES = 1 << 30


@dataclass
class BatchOutcome:
    """What came of a batch.

    Attributes:
        done: keys of the cases that were done now.
        failed: (key, message) of those that failed; for the terminal, since messages name files.
        exported: the same for tables and JSON, without names of files, which may be a patient's.
        skipped: keys of those that an earlier run had done.
        results: key -> what ``work`` returned, for done and skipped cases.
    """

    done: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    exported: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """0 if nothing failed, else 3."""
        return 3 if self.failed else 0

    def summary(self) -> str:
        """Counts in one line, then one line for each failed case."""
        parts = [f"{len(self.done)} done"]
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped (done before)")
        parts.append(f"{len(self.failed)} failed")
        return "\n".join([", ".join(parts), *(f"  failed {key}: {message}" for key, message in self.failed)])


def run_batch(
    items: Sequence[T],
    work: Callable[[T], dict[str, Any]],
    *,
    key: Callable[[T], str],
    state_file: Path | None = None,
    fingerprint: Callable[[T], str] | None = None,
    complete: Callable[[T], bool] | None = None,
    resume: bool = False,
    workers: int = 1,
    quiet: bool = False,
    title: str = "",
) -> BatchOutcome:
    """Do the work for every item, go on after a failure, and remember what is done.

    Args:
        items: the cases.
        work: does one case and returns what to remember of it: a dictionary that JSON can hold. With several workers,
            it and the items must be picklable (a function at file scope, a ``functools.partial`` of one).
        key: an item's unique name.
        state_file: where to remember; None remembers nothing. An existing one is continued with ``resume``, else
            replaced.
        fingerprint: what an item's result depends on, see :func:`file_fingerprint`; a done item whose fingerprint has
            changed is done again.
        complete: whether an item's outputs are still there; a done item whose outputs are gone is done again.
        resume: skip what the state file says is done.
        workers: processes; 1 works in this one.
        quiet: no progress bar.
        title: the bar's title.

    Returns:
        The outcome; items keep their order in it.

    Raises:
        InputError: two items with one key, workers below 1, or ``resume`` with a file that is not a state file.
        CancelledError: the work was cancelled.
        KeyboardInterrupt: after the workers have been ended; what was done stays remembered.
    """
    keys = [key(item) for item in items]
    if len(set(keys)) != len(keys):
        raise InputError(f"The case {next(k for k in keys if keys.count(k) > 1)!r} is listed more than once.")
    if workers < 1:
        raise InputError(f"The number of workers is {workers}; it must be 1 or more.")
    fingerprints = {k: fingerprint(item) if fingerprint else "" for k, item in zip(keys, items, strict=True)}
    outcome = BatchOutcome()
    state = _State(state_file, resume)
    todo: list[tuple[str, T]] = []
    for name, item in zip(keys, items, strict=True):
        past = state.done.get(name)
        if past and past["fingerprint"] == fingerprints[name] and (complete is None or complete(item)):
            outcome.skipped.append(name)
            outcome.results[name] = past["result"]
        else:
            todo.append((name, item))

    hidden = {name: _names(item) - {name} for name, item in todo}
    failures: dict[str, str] = {}
    with state, ProgressBar(title, quiet) as bar:
        run = _in_processes(todo, work, workers) if workers > 1 and len(todo) > 1 else _in_turn(todo, work)
        bar("cases", len(outcome.skipped), len(items))
        with contextlib.closing(run):
            for count, (name, result, message) in enumerate(run, len(outcome.skipped) + 1):
                if message is None:
                    outcome.results[name] = result
                else:
                    failures[name] = message
                    _log.info("%s failed: %s", name, message)
                state.add(name, fingerprints[name], result, message and scrubbed(message, hidden[name]))
                bar("cases", count, len(items))
    outcome.done = [name for name, _ in todo if name not in failures]
    outcome.failed = [(name, failures[name]) for name in keys if name in failures]
    outcome.exported = [(name, scrubbed(failures[name], hidden[name])) for name, _ in outcome.failed]
    outcome.results = {name: outcome.results[name] for name in keys if name in outcome.results}
    return outcome


def _names(item: Any) -> set[str]:
    """The names of an item's files and of the folders that they lie in."""
    values = item if isinstance(item, Mapping) else vars(item) if hasattr(item, "__dict__") else {"": item}
    paths = [Path(v) for v in values.values() if isinstance(v, Path) or (isinstance(v, str) and re.search(r"[/\\]", v))]
    names = {name for path in paths for name in (str(path), path.name, path.stem, case_id(path), path.parent.name)}
    return {name for name in names if len(name) > 1} - _COMMON


def file_fingerprint(paths: Sequence[Path | str | None], parameters: Mapping[str, Any] | None = None) -> str:
    """Name, size and modification time of files (and of the files in folders), and parameters, as one short hash.

    Args:
        paths: files or folders; None is allowed and counts as such. What is missing counts as missing.
        parameters: whatever else the result depends on; JSON must be able to hold it.
    """
    facts: list[Any] = [dict(parameters or {})]
    for path in paths:
        if path is None:
            facts.append(None)
            continue
        facts.append([_facts(file) for file in _files(Path(path))])
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    try:
        return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    except OSError:
        # what can't be looked at fails its own case, when that is worked on
        return [path]


def _facts(file: Path) -> list[Any]:
    try:
        status = file.stat()
    except OSError:
        return [str(file), None]
    return [str(file), status.st_size, status.st_mtime_ns]


class _State:
    """The journal of a batch: read whole, written line by line."""

    def __init__(self, path: Path | None, resume: bool) -> None:
        self._path = path
        self.done: dict[str, dict[str, Any]] = {}
        self._file: Any = None
        if path is None:
            return
        if resume and path.exists():
            self._read(path)
        # what is kept is written anew: a line torn by a crash must not run into the next one
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in self.done.values()))

    def _read(self, path: Path) -> None:
        lines = read_bytes(path, _MOST_BYTES).splitlines()
        for number, line in enumerate(lines, 1):
            try:
                entry = parse_object(line.decode("utf-8", "replace"), path.name)
                name, status = str(entry["key"]), entry["status"]
            except (ReadError, KeyError) as error:
                if number == len(lines):
                    continue
                raise InputError(
                    f"{path.name} is not the state file of a batch (line {number}); delete it or run without --resume."
                ) from error
            # an entry that somebody has changed, or an older version has written, is done again
            if status == "done" and entry.get("digest") == _digest(entry):
                self.done[name] = entry
            else:
                self.done.pop(name, None)

    def __enter__(self) -> _State:
        if self._path is not None:
            self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, name: str, fingerprint: str, result: dict[str, Any], message: str | None) -> None:
        if self._file is None:
            return
        entry: dict[str, Any] = {"key": name, "status": "failed" if message else "done", "fingerprint": fingerprint}
        entry |= {"message": message} if message else {"result": result}
        try:
            entry["digest"] = _digest(entry)
            self._file.write(json.dumps(entry, allow_nan=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"{self._path} could not be written: {error.strerror}.") from error


def _digest(entry: Mapping[str, Any]) -> str:
    """What tells an entry that a batch has written from one that was damaged or edited."""
    content = {name: value for name, value in entry.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


# key, result, and the message if it failed
_Event = tuple[str, dict[str, Any], str | None]


def _in_turn(todo: Sequence[tuple[str, T]], work: Callable[[T], dict[str, Any]]) -> Generator[_Event, None, None]:
    for name, item in todo:
        yield name, *_attempt(work, item)


def _attempt(work: Callable[[T], dict[str, Any]], item: T) -> tuple[dict[str, Any], str | None]:
    try:
        return work(item), None
    except (CancelledError, BrokenPipeError):
        # not of this case: the user has stopped the batch, or the reader of its output has left
        raise
    except COVIDLesionSegError as error:
        return {}, str(error)
    except Exception as error:
        if asked_to_end():
            raise TerminatedError from error
        # one odd case must not take a night's work with it; the traceback goes to the log, the sentence to the list
        _log.exception("unexpected error")
        return {}, f"unexpected {type(error).__name__}: {error}" if str(error) else f"unexpected {type(error).__name__}"


@dataclass
class _Worker(Generic[T]):
    process: Any
    pipe: Connection
    name: str


def _in_processes(
    todo: Sequence[tuple[str, T]], work: Callable[[T], dict[str, Any]], count: int
) -> Generator[_Event, None, None]:
    """One process each, fed one case at a time, so that a process that dies names the case it died of."""
    waiting = deque(todo)
    workers: dict[Connection, _Worker[T]] = {}
    threads = max(1, usable_cores() // count)
    try:
        while waiting or workers:
            while waiting and len(workers) < count:
                worker = _start(work, threads)
                workers[worker.pipe] = worker
                _feed(worker, waiting)
            for pipe in wait(list(workers)):
                worker = workers[pipe]  # type: ignore[index]
                try:
                    event = (worker.name, *worker.pipe.recv())
                except (EOFError, ConnectionError):
                    worker.process.join()
                    status = worker.process.exitcode
                    event = (worker.name, {}, f"its worker process ended with status {status}; out of memory?")
                    del workers[worker.pipe]
                    yield event
                    continue
                if waiting:
                    _feed(worker, waiting)
                else:
                    del workers[worker.pipe]
                    worker.pipe.close()
                    worker.process.join()
                yield event
    finally:
        for worker in workers.values():
            worker.process.terminate()
        for worker in workers.values():
            worker.process.join()


def _feed(worker: _Worker[T], waiting: deque[tuple[str, T]]) -> None:
    worker.name, item = waiting.popleft()
    # a worker that died before it was fed shows at the next read of its pipe
    with contextlib.suppress(ConnectionError):
        worker.pipe.send(item)


def _start(work: Callable[[T], dict[str, Any]], threads: int) -> _Worker[T]:
    # fork would copy the locks of threads that libraries have started here; spawn starts clean on every system
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs, _log.getEffectiveLevel()), daemon=True)
    with _environment({name: os.environ.get(name, str(threads)) for name in THREAD_VARIABLES}):
        process.start()
    theirs.close()
    return _Worker(process, ours, "")


def _serve(work: Callable[[T], dict[str, Any]], pipe: Connection, level: int) -> None:
    # Ctrl+C reaches the whole process group: only the parent answers it, and ends us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s: %(message)s")
    try:
        with ending_by_sigterm():
            while True:
                try:
                    item = pipe.recv()
                except EOFError:
                    return
                pipe.send(_attempt(work, item))
    except TerminatedError:
        sys.exit(128 + signal.SIGTERM)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
