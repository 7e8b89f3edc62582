"""Process trees: who belongs to a process, killing all of them, and telling a process from a later one of its number.

Standard library only. Linux is read from /proc, other POSIX systems through ``ps``, Windows through its own tools.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputError

_WINDOWS = sys.platform == "win32"
_PROC = Path("/proc")
# programs that kill trees on Windows; nobody waits for them
_killers: list[subprocess.Popen[bytes]] = []


class _Entry(NamedTuple):
    pid: int
    parent: int
    group: int
    session: int
    state: str


class TerminatedError(KeyboardInterrupt):
    """Somebody asked this process to end (SIGTERM); like Ctrl-C it passes whatever handles errors of the work."""


# whether SIGTERM has come since :func:`ending_by_sigterm` listens
_told = False


def asked_to_end() -> bool:
    """Whether SIGTERM has come: an error after that may be what native code has made of :class:`TerminatedError`."""
    return _told


@contextlib.contextmanager
def ending_by_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises :class:`TerminatedError`, so that files that are being written vanish.

    Only the main thread may set handlers; elsewhere nothing changes.
    """

    global _told
    _told = False

    def end(number: int, _: object) -> None:
        global _told
        _told = True
        # whoever sends it twice must not disturb the tidying up
        signal.signal(number, signal.SIG_IGN)
        raise TerminatedError

    before = None
    with contextlib.suppress(ValueError):
        before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Exception as error:
        if _told:
            # native code that it came through has made something else of it
            raise TerminatedError from error
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def launcher_number(name: str, default: int) -> int:
    """A number that ``torchrun`` sets in the environment, e.g. WORLD_SIZE.

    Raises:
        InputError: it is no whole number from 0.
    """
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or len(text) > 9:
        raise InputError(f"The environment variable {name} is {text!r}; a launcher such as torchrun sets a number.")
    return int(text)


def kill_tree(pid: int) -> None:
    """Kill a process, its descendants, and whoever else is in a process group or session that one of them leads.

    Returns at once; a process that is gone already is no error. The process itself comes first, so that it can't start
    more.
    """
    if _WINDOWS:
        _taskkill(pid)
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # it must not start new ones while we look
        os.kill(pid, signal.SIGSTOP)
    victims = tree(pid) | {pid}
    for victim in victims:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(victim, signal.SIGKILL)
    # who was started between looking and killing
    for victim in tree(pid, victims) - victims:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(victim, signal.SIGKILL)


def tree(pid: int, known: set[int] | None = None) -> set[int]:
    """Ids of a process's descendants and of all in the groups and sessions that they lead, without this process.

    Args:
        pid: the process at the top.
        known: further processes whose descendants count.
    """
    if _WINDOWS:
        return set()
    found = {pid} | (known or set())
    entries = [entry for entry in _processes() if entry.pid != os.getpid() and entry.state != "Z"]
    while True:
        new = {e.pid for e in entries if {e.parent, e.group, e.session} & found} - found
        if not new:
            return found - {pid, os.getpid()}
        found |= new


def kill_descendants() -> None:
    """Kill everything that this process started, not the process itself."""
    if _WINDOWS:
        # a process that ends with its job or console takes its children with it only if asked: children first
        for child in _windows_children(os.getpid()):
            _taskkill(child)
        for killer in _killers:
            killer.wait()
        return
    for victim in tree(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(victim, signal.SIGKILL)


def lead_own_group() -> None:
    """Make this process the leader of a session and process group of its own, so that its tree can be found."""
    if not _WINDOWS:
        # a leader already: nothing to do
        with contextlib.suppress(PermissionError):
            os.setsid()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    if _WINDOWS:
        return _windows_start(pid) is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return next((e.state != "Z" for e in _processes(pid) if e.pid == pid), False)


def start_time(pid: int) -> str | None:
    """When a process started, as text that only this process has under this id; None if there is none.

    On Linux the boot's id and clock ticks since then: a process after a restart of the machine is another one.
    """
    if _WINDOWS:
        return _windows_start(pid)
    if _PROC.is_dir():
        try:
            ticks = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
        except (OSError, IndexError):
            return None
        return f"{boot_id()} {ticks}"
    done = subprocess.run(["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def free_memory() -> int | None:
    """Bytes of memory that this process can still take, or None if nobody tells."""
    figures = [f for f in (_system_memory(), _control_group_memory()) if f is not None]
    return min(figures, default=None)


def _system_memory() -> int | None:
    info = _PROC / "meminfo"
    if info.is_file():
        line = re.search(r"^MemAvailable:\s*(\d+) kB", info.read_text(encoding="ascii"), re.MULTILINE)
        return int(line[1]) * 1024 if line else None
    if hasattr(os, "sysconf") and {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _control_group_memory() -> int | None:
    """What a container's limit leaves (control groups, version 2)."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        # pages of files that were read count as used, and are given up when somebody needs them
        cached = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(encoding="ascii"), re.MULTILINE)
        return max(int(limit) - int(used) + (int(cached[1]) if cached else 0), 0)
    except (OSError, ValueError):
        # no such files, or the limit is "max": there is none
        return None


def _processes(only: int | None = None) -> Iterator[_Entry]:
    if _PROC.is_dir():
        for folder in [str(only)] if only is not None else [path.name for path in _PROC.iterdir()]:
            if folder.isdigit():
                # a process may end while we look
                with contextlib.suppress(OSError, IndexError, ValueError):
                    rest = (_PROC / folder / "stat").read_text().rpartition(")")[2].split()
                    yield _Entry(int(folder), int(rest[1]), int(rest[2]), int(rest[3]), rest[0])
        return
    listed = subprocess.run(
        ["/bin/ps", "-A", "-o", "pid=,ppid=,pgid=,stat="], capture_output=True, text=True, check=False
    )
    for line in listed.stdout.splitlines():
        pid, parent, group, state = line.split()
        yield _Entry(int(pid), int(parent), int(group), 0, state[0])


def boot_id() -> str:
    """What tells two computers of one name, and two boots of one computer, apart; "" where the system does not say."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _taskkill(pid: int) -> None:
    command = ["taskkill", "/PID", str(pid), "/T", "/F"]
    flags: Any = getattr(subprocess, "CREATE_NO_WINDOW", 0)
    nowhere = subprocess.DEVNULL
    _killers[:] = [killer for killer in _killers if killer.poll() is None]
    _killers.append(subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, creationflags=flags))


def _windows_start(pid: int) -> str | None:
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009
    handle = kernel.OpenProcess(0x1000, False, pid)
    if not handle:
        return None
    try:
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        times = [ctypes.c_ulonglong() for _ in range(4)]
        kernel.GetProcessTimes(handle, *[ctypes.byref(time) for time in times])
        still_active = 259
        return str(times[0].value) if code.value == still_active else None
    finally:
        kernel.CloseHandle(handle)


def _windows_children(pid: int) -> list[int]:
    query = f"(Get-CimInstance Win32_Process -Filter 'ParentProcessId={pid}').ProcessId"
    command = ["powershell", "-NoProfile", "-Command", query]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split() if line.isdigit() and int(line) != os.getpid()]
