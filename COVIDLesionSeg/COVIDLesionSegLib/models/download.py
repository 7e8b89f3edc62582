"""Downloads that survive broken lines, changed files and lying servers; standard library only.

A file arrives as ``NAME.part`` beside its target and takes its name only when it is complete and its hash is right. A
broken download leaves the part and a note of where it came from, and the next try asks the server for the rest.
"""

from __future__ import annotations

import contextlib
import email.message
import errno
import http.client
import ipaddress
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import SplitResult, urlsplit, urlunsplit

from .. import __version__, locks
from ..documents import read_object
from ..errors import CancelledError, DownloadError, InputError, ModelError, OutputError, ReadError
from ..files import atomic_path, sha256_file, write_json

MIRROR_VARIABLE = "COVIDLESIONSEG_MIRROR"
# OpenSSL itself obeys SSL_CERT_FILE and SSL_CERT_DIR; these two are what other Python programs obey.
CERTIFICATE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
BY_HAND = "You can also fetch the file with a browser and run `covid-lesion-seg models import FILE`."
_LOCK_HINT = "Choose another folder for models with the environment variable COVIDLESIONSEG_MODELS."
_CHUNK_BYTES = 1 << 18
_LONGEST_PAUSE_S = 30.0
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
_HTML_TYPES = {"text/html", "application/xhtml+xml"}
_HTML_START = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_CHECK_NETWORK = "Check the network, HTTPS_PROXY or the mirror."
_GO_ON = "What has arrived is kept: the same command goes on from there."


def download_file(
    url: str,
    target: Path | str,
    *,
    sha256: str | None = None,
    size_bytes: int | None = None,
    mirror: str | None = None,
    by_hand: str = "",
    timeout_s: float = 30.0,
    attempts: int = 4,
    pause_s: float = 1.0,
    progress: Callable[[str, int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Path:
    """Fetch one file; it appears under its name only when it is complete.

    Proxies come from the environment (HTTPS_PROXY, NO_PROXY) or the system, certificate authorities from the system,
    SSL_CERT_FILE, REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE. Plain http is refused unless the host is this machine or the
    mirror was given as http.

    Args:
        url: where the file is; with a mirror, only its path counts.
        target: the file to make or replace.
        sha256: its hash, 64 hexadecimal digits, if known.
        size_bytes: its size, if known.
        mirror: base address that replaces the scheme and host; None takes COVIDLESIONSEG_MIRROR, "" takes none.
        by_hand: sentence for errors: how else to get the file; "" takes a general one.
        timeout_s: how long a silent server is waited for, s.
        attempts: tries in a row that bring nothing new before giving up.
        pause_s: pause before the second try, s; it doubles each time, up to 30 s.
        progress: called as progress("download", bytes done, bytes in all); 0 in all: the server did not say.
        cancelled: asked between chunks and during pauses; what has arrived is kept for the next time.

    Returns:
        The target.

    Raises:
        DownloadError: the server or the network failed, or what came is not the file (wrong hash or size, a web page).
        OutputError: the disk is full or the folder read-only; an existing target is untouched.
        CancelledError: ``cancelled`` said so.
        InputError: the mirror is not an address.
        ModelError: another process is downloading the same file.
    """
    mirror = configured_mirror() if mirror is None else mirror
    address = mirrored(url, mirror) if mirror else url
    named_host = urlsplit(mirror).hostname if mirror and urlsplit(mirror).scheme == "http" else None
    check_address(address, named_host)
    target = Path(target)
    part = _Part(target.with_name(target.name + ".part"))
    job = _Job(
        url=address,
        part=part,
        opener=make_opener(named_host),
        sha256=sha256,
        size_bytes=size_bytes,
        by_hand=by_hand or BY_HAND,
        timeout_s=timeout_s,
        progress=progress,
        cancelled=cancelled,
    )
    busy = f"{target.name} is being downloaded by another process; wait until that has finished."
    with exclusive(part.path.with_name(part.path.name + ".lock"), busy):
        _fetch_and_check(job, attempts, pause_s)
        with atomic_path(target) as temporary:
            part.path.replace(temporary)
        part.remove()
    return target


@dataclass
class _Part:
    """The unfinished file, and beside it a note of where it comes from."""

    path: Path

    @property
    def note_path(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def note(self) -> dict[str, Any]:
        """What the server said about the file when the part was begun; empty without a readable note."""
        try:
            return read_object(self.note_path)
        except (FileNotFoundError, ReadError):
            # no note or a torn one means only that the download begins anew
            return {}

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note_path.unlink(missing_ok=True)


@dataclass
class _Job:
    url: str
    part: _Part
    opener: urllib.request.OpenerDirector
    sha256: str | None
    size_bytes: int | None
    by_hand: str
    timeout_s: float
    progress: Callable[[str, int, int], None] | None
    cancelled: Callable[[], bool] | None
    was_continued: bool = False

    @property
    def place(self) -> str:
        """Where the file comes from, for messages: without a query, which may hold a key."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))

    def report(self, done: int, total: int | None) -> None:
        if self.progress:
            self.progress("download", done, total or 0)

    def stop_if_cancelled(self) -> None:
        if self.cancelled and self.cancelled():
            raise CancelledError(f"The download of {self.place} was stopped.", _GO_ON)


def _fetch_and_check(job: _Job, attempts: int, pause_s: float) -> None:
    _fetch_with_retries(job, attempts, pause_s)
    if job.sha256 is None or _has_hash(job):
        return
    job.part.remove()
    if job.was_continued:
        # its pieces may come from two versions of the file
        _fetch_with_retries(job, attempts, pause_s)
        if _has_hash(job):
            return
        job.part.remove()
    raise DownloadError(
        f"The file from {job.place} does not have the SHA-256 that is recorded for it ({job.sha256[:12]}...): "
        "it was changed or damaged, and was not kept.",
        "Try again later or from another place; tell the maintainers if it stays so.",
    )


def _has_hash(job: _Job) -> bool:
    return job.sha256 is not None and sha256_file(job.part.path) == job.sha256.lower()


def _fetch_with_retries(job: _Job, attempts: int, pause_s: float) -> None:
    failures, furthest = 0, job.part.size_bytes
    while True:
        job.stop_if_cancelled()
        try:
            _fetch(job)
            return
        except TransientError as failure:
            arrived = job.part.size_bytes
            failures = 1 if arrived > furthest else failures + 1
            furthest = max(furthest, arrived)
            if failures >= attempts:
                hint = _GO_ON if arrived else f"{_CHECK_NETWORK} {job.by_hand}"
                raise DownloadError(f"{failure} ({attempts} tries).", hint) from failure
        _pause(min(pause_s * 2 ** (failures - 1), _LONGEST_PAUSE_S), job)


def _pause(seconds: float, job: _Job) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        job.stop_if_cancelled()
        time.sleep(min(left, 0.1))


def _fetch(job: _Job) -> None:
    """One request: the whole file, or what is missing of it."""
    start, headers = _resume_from(job)
    # the scheme was checked: http(s) only
    request = urllib.request.Request(job.url, headers=headers)  # noqa: S310
    try:
        with network_errors(job.url, job.timeout_s):
            response = job.opener.open(request, timeout=job.timeout_s)
    except urllib.error.HTTPError as answer:
        with answer:
            if answer.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                if _total_of(answer.headers) == start and _is_same_file(answer.headers, job):
                    return
                job.part.remove()
                raise TransientError(f"{job.place} has another size than before") from answer
            _refuse(answer, job)
    with response:
        _check_is_no_page(response.headers, b"", job)
        if response.status == http.client.PARTIAL_CONTENT:
            if not start or not _continues(response.headers, start, job):
                job.part.remove()
                raise TransientError(f"{job.place} was changed while it was being downloaded")
            job.was_continued = True
        else:
            # the server knows no ranges, or the file is another one now: all of it comes anew
            start = 0
        _receive(response, start, job)


def _resume_from(job: _Job) -> tuple[int, dict[str, str]]:
    """How many bytes are here already, and the headers that ask for the rest."""
    headers = {"User-Agent": f"COVIDLesionSeg/{__version__}", "Accept-Encoding": "identity"}
    note, start = job.part.note(), job.part.size_bytes
    validator = note.get("validator")
    # without a validator only a known hash can tell whether both halves belong together
    if not start or note.get("url") != job.url or not (validator or job.sha256):
        return 0, headers
    headers["Range"] = f"bytes={start}-"
    if validator:
        headers["If-Range"] = validator
    return start, headers


def _continues(headers: email.message.Message, start: int, job: _Job) -> bool:
    note = job.part.note()
    given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", "").strip())
    if not given or int(given[1]) != start:
        return False
    return note.get("total_bytes") in (None, _total_of(headers)) and _is_same_file(headers, job)


def _is_same_file(headers: email.message.Message, job: _Job) -> bool:
    return _validator(headers) in ("", job.part.note().get("validator"))


def _validator(headers: email.message.Message) -> str:
    """What a server may compare in If-Range: a strong entity tag, else a date."""
    tag = headers.get("ETag", "").strip()
    return tag if tag.startswith('"') else headers.get("Last-Modified", "").strip()


def _total_of(headers: email.message.Message) -> int | None:
    """Size of the whole file as the server states it; None when it doesn't."""
    span = headers.get("Content-Range", "").strip()
    text = span.rpartition("/")[2] if span else headers.get("Content-Length", "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _receive(response: http.client.HTTPResponse, start: int, job: _Job) -> None:
    total = _total_of(response.headers)
    if None not in (job.size_bytes, total) and total != job.size_bytes:
        job.part.remove()
        raise _wrong_size(f"{total} bytes", job)
    _check_space(start, total, job)
    if not start:
        # in this order: a note never describes another file's part
        job.part.remove()
        note = {"url": job.url, "validator": _validator(response.headers), "total_bytes": total}
        write_json(job.part.note_path, note)
    with _write_errors(job), job.part.path.open("ab") as file:
        done = _copy(response, file, start, total, job)
    expected = job.size_bytes if total is None else total
    if expected is not None and done < expected:
        raise TransientError(f"{job.place} broke off after {done} of {expected} bytes")
    if done == 0:
        job.part.remove()
        raise DownloadError(f"{job.place} is empty.", job.by_hand)


def _copy(response: http.client.HTTPResponse, file: IO[bytes], done: int, total: int | None, job: _Job) -> int:
    limit = job.size_bytes if total is None else total
    job.report(done, limit)
    while total is None or done < total:
        job.stop_if_cancelled()
        with network_errors(job.url, job.timeout_s):
            chunk = response.read1(_CHUNK_BYTES if total is None else min(_CHUNK_BYTES, total - done))
        if not chunk:
            break
        if done == 0:
            _check_is_no_page(response.headers, chunk, job)
        if limit is not None and done + len(chunk) > limit:
            job.part.remove()
            raise _wrong_size(f"more than {limit} bytes", job)
        file.write(chunk)
        done += len(chunk)
        job.report(done, limit)
    return done


def _wrong_size(got: str, job: _Job) -> DownloadError:
    return DownloadError(
        f"{job.place} sends {got} where {job.size_bytes} bytes are recorded: it is not the file it was.", job.by_hand
    )


def _check_is_no_page(headers: email.message.Message, beginning: bytes, job: _Job) -> None:
    if headers.get_content_type() in _HTML_TYPES or _HTML_START.match(beginning):
        if beginning:
            job.part.remove()
        raise DownloadError(
            f"{job.place} sent a web page, not the file (a login or a confirmation is asked for, "
            "or the network shows a page of its own).",
            job.by_hand,
        )


def _check_space(start: int, total: int | None, job: _Job) -> None:
    if total is None:
        return
    free = shutil.disk_usage(job.part.path.parent).free
    # when all comes anew, the old part makes room
    free += 0 if start else job.part.size_bytes
    if total - start > free:
        raise OutputError(
            f"{job.part.path.parent} has {free / 1e6:.0f} MB free where {(total - start) / 1e6:.0f} MB are needed.",
            "Free some space or choose another folder with the environment variable COVIDLESIONSEG_MODELS.",
        )


@contextlib.contextmanager
def _write_errors(job: _Job) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = job.part.path.parent
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            # a full disk hurts everything else on it, so the part doesn't stay
            job.part.remove()
            raise OutputError(f"The disk that holds {folder} is full; nothing was kept. Free some space.") from error
        raise OutputError(f"{job.part.path} could not be written: {error.strerror or error}.") from error


def _refuse(answer: urllib.error.HTTPError, job: _Job) -> NoReturn:
    # urllib's own reasons can have several lines
    said = " ".join(f"{answer.code} {answer.reason}".split())
    if answer.code in _TRANSIENT_STATUS:
        raise TransientError(f"{job.place} answered {said}") from answer
    if answer.code in (404, 410):
        raise DownloadError(f"{job.place} is not there: the server answered {said}.", job.by_hand) from answer
    if answer.code in (401, 403):
        raise DownloadError(f"{job.place} may not be read without a login: {said}.", job.by_hand) from answer
    if answer.code == 407:
        raise DownloadError("The proxy asks for a user name and password.", "Give them in HTTPS_PROXY.") from answer
    raise DownloadError(f"{job.place} could not be fetched: the server answered {said}.", job.by_hand) from answer


# --- whom a download may talk to, and how ----------------------------------------------------------------------------


class TransientError(Exception):
    """A failure that another try may cure; the text is a sentence for the user."""


def mirrored(url: str, mirror: str) -> str:
    """The address of a file on a mirror: the mirror's base, then the path of the original address.

    Args:
        url: the original address, or only a path on the mirror ("/file.pt").
        mirror: http(s) base, e.g. "https://files.example.org/models".

    Raises:
        InputError: the mirror is not an http(s) address, or carries a user name and password.
    """
    base = urlsplit(mirror)
    if base.scheme not in ("http", "https") or not base.hostname or base.query or base.fragment:
        raise InputError(f"The mirror {mirror!r} is not an address such as https://files.example.org/models.")
    if "@" in base.netloc:
        raise InputError("The mirror's address must not carry a user name or password.")
    original = urlsplit(url)
    path = base.path.rstrip("/") + "/" + original.path.lstrip("/")
    return urlunsplit((base.scheme, base.netloc, path, original.query, ""))


def configured_mirror() -> str:
    """The mirror that the environment variable COVIDLESIONSEG_MIRROR names, or ""."""
    return os.environ.get(MIRROR_VARIABLE, "").strip()


def check_address(url: str, named_host: str | None, came_from: str = "") -> None:
    """Refuse what is not safe to fetch from.

    Args:
        url: the address.
        named_host: the one host that may speak plain http, because the user named it as the mirror.
        came_from: the address that redirects to this one, or "".

    Raises:
        DownloadError: neither http nor https, a password in the address, or plain http where https is needed.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DownloadError(f"{url!r} is not an https address.")
    if "@" in parts.netloc:
        raise DownloadError(f"The address of {parts.hostname} must not carry a user name or password.")
    if parts.scheme == "https":
        return
    if came_from.startswith("https:"):
        raise DownloadError(
            f"{urlsplit(came_from).hostname} leads from https to plain http ({parts.hostname}), which is not safe.",
            BY_HAND,
        )
    if parts.hostname != named_host and not _is_this_machine(parts):
        raise DownloadError(f"{parts.hostname} is offered over plain http, which is not safe.", BY_HAND)


@contextlib.contextmanager
def network_errors(url: str, timeout_s: float) -> Iterator[None]:
    """Turn what the network can raise inside the block into our errors; answers with an HTTP status pass through.

    Args:
        url: the address that is asked.
        timeout_s: how long it is waited for, s.

    Raises:
        TransientError: another try may help.
        DownloadError: it would not.
    """
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        host = urlsplit(url).hostname
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"The certificate of {host} is not trusted ({cause.verify_message}).",
                "If your network has a certificate authority of its own, name its file in SSL_CERT_FILE.",
            ) from error
        if isinstance(cause, TimeoutError):
            raise TransientError(f"{host} did not answer within {timeout_s:g} s") from error
        if "Tunnel connection failed: 407" in str(cause):
            raise DownloadError(
                "The proxy asks for a user name and password.", "Give them in HTTPS_PROXY or ask your administrator."
            ) from error
        raise TransientError(f"The connection to {host} failed: {_words(cause)}") from error


def _words(cause: Any) -> str:
    return str(getattr(cause, "strerror", None) or cause or type(cause).__name__).removesuffix(".")


def _is_this_machine(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _CarefulRedirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, named_host: str | None) -> None:
        self._named_host = named_host

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        try:
            check_address(newurl, self._named_host, came_from=req.full_url)
        except DownloadError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def make_opener(named_host: str | None) -> urllib.request.OpenerDirector:
    """What opens an address: through the environment's or system's proxy, with its certificates and careful redirects.

    Args:
        named_host: see :func:`check_address`.

    Raises:
        DownloadError: an environment variable names certificates that can't be read.
    """
    return urllib.request.build_opener(
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(context=_certificates()),
        _CarefulRedirects(named_host),
    )


def _certificates() -> ssl.SSLContext:
    context = ssl.create_default_context()
    for variable in CERTIFICATE_VARIABLES:
        bundle = os.environ.get(variable, "")
        if not bundle:
            continue
        try:
            if Path(bundle).is_dir():
                context.load_verify_locations(capath=bundle)
            else:
                context.load_verify_locations(cafile=bundle)
        except OSError as error:
            raise DownloadError(
                f"{variable} names {bundle}, which can't be read as a file of certificates.",
                "Correct or unset the variable.",
            ) from error
    return context


@contextlib.contextmanager
def exclusive(path: Path, busy: str, wait_s: float = 0.0) -> Iterator[None]:
    """Be the only process (and thread) inside the block that names this lock file, see :func:`~..locks.exclusive`.

    Args:
        path: the lock file; made if absent, with its folder.
        busy: sentence for the error when somebody else holds the lock.
        wait_s: how long to wait for it, s.

    Raises:
        ModelError: somebody else still holds the lock; the message is ``busy``.
        OutputError: the lock file can't be made or locked here.
    """
    with locks.exclusive(path, ModelError(busy), wait_s, _LOCK_HINT):
        yield
