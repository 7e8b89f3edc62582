"""Downloads that survive broken lines, changed files and lying servers; standard library only.

A file arrives as ``NAME.part`` beside its target and takes its name only when it is complete and its hash is right. A
broken download leaves the part and a note of where it came from, and the next try asks the server for the rest.
"""

from __future__ import annotations

import contextlib
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
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from .. import __version__, locks
from ..documents import read_object
from ..errors import CancelledError, DownloadError, InputError, ModelError, OutputError, ReadError
from ..files import atomic_path, sha256_file, write_json

MIRROR_VARIABLE = "COVIDLESIONSEG_MIRROR"
# OpenSSL itself obeys SSL_CERT_FILE and SSL_CERT_DIR; these two are what other Python programs obey.
CERTIFICATE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_BY_HAND = "You can also fetch the file with a browser and run `covid-lesion-seg models import FILE`."
_FOLDER_HINT = "Choose another folder for models with the environment variable COVIDLESIONSEG_MODELS."
_GO_ON = "What has arrived is kept: the same command goes on from there."
_CHUNK_BYTES = 1 << 18
_LONGEST_PAUSE_S = 30.0
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
_NO_LOGIN = "may not be read without a login"
_REFUSALS = {401: _NO_LOGIN, 403: _NO_LOGIN, 404: "is not there", 410: "is not there"}
_HTML_TYPES = {"text/html", "application/xhtml+xml"}
_HTML_START = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)


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
    named_host = urlsplit(mirror).hostname if mirror.startswith("http:") else None
    _require_safe(address, named_host)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(context=_certificates()),
        _CarefulRedirects(named_host),
    )
    target = Path(target)
    part = target.with_name(target.name + ".part")
    download = _Download(address, part, opener, sha256, size_bytes, by_hand or _BY_HAND, timeout_s, progress, cancelled)
    busy = f"{target.name} is being downloaded by another process; wait until that has finished."
    with exclusive(part.with_name(part.name + ".lock"), busy):
        download.run(attempts, pause_s)
        with atomic_path(target) as temporary:
            part.replace(temporary)
        download.forget()
    return target


class _TransientError(Exception):
    """A failure that another try may cure; the text is a sentence for the user."""


@dataclass
class _Download:
    """A file on its way: the unfinished part, and beside it a note of where that comes from."""

    url: str
    part: Path
    opener: urllib.request.OpenerDirector
    sha256: str | None
    size_bytes: int | None
    by_hand: str
    timeout_s: float
    progress: Callable[[str, int, int], None] | None
    cancelled: Callable[[], bool] | None
    was_continued: bool = False

    def __post_init__(self) -> None:
        self.note = self.part.with_name(self.part.name + ".json")
        # for messages: without the query, which may hold a key
        self.place = urlunsplit((*urlsplit(self.url)[:3], "", ""))

    def forget(self) -> None:
        """Remove the part and its note."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def run(self, attempts: int, pause_s: float) -> None:
        """Make the part the whole file, with the right hash."""
        self._fetch(attempts, pause_s)
        if not self._is_right() and self.was_continued:
            # its pieces may come from two versions of the file
            self.forget()
            self._fetch(attempts, pause_s)
        if not self._is_right():
            self.forget()
            raise DownloadError(
                f"The file from {self.place} does not have the SHA-256 that is recorded for it "
                f"({str(self.sha256)[:12]}...): it was changed or damaged, and was not kept.",
                "Try again later or from another place; tell the maintainers if it stays so.",
            )

    def _is_right(self) -> bool:
        return self.sha256 is None or sha256_file(self.part) == self.sha256.lower()

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _stop_if_cancelled(self) -> None:
        if self.cancelled and self.cancelled():
            raise CancelledError(f"The download of {self.place} was stopped.", _GO_ON)

    def _fetch(self, attempts: int, pause_s: float) -> None:
        failures, furthest = 0, self._arrived()
        while True:
            self._stop_if_cancelled()
            try:
                return self._request()
            except _TransientError as failure:
                arrived = self._arrived()
                failures = 1 if arrived > furthest else failures + 1
                furthest = max(furthest, arrived)
                if failures >= attempts:
                    hint = _GO_ON if arrived else f"Check the network, HTTPS_PROXY or the mirror. {self.by_hand}"
                    raise DownloadError(f"{failure} ({attempts} tries).", hint) from failure
            deadline = time.monotonic() + min(pause_s * 2 ** (failures - 1), _LONGEST_PAUSE_S)
            while (left := deadline - time.monotonic()) > 0:
                self._stop_if_cancelled()
                time.sleep(min(left, 0.1))

    def _request(self) -> None:
        """Ask for the whole file, or for what is missing of it, and receive it."""
        headers = {"User-Agent": f"COVIDLesionSeg/{__version__}", "Accept-Encoding": "identity"}
        start, validator = self._begun()
        if start:
            headers["Range"] = f"bytes={start}-"
        if start and validator:
            headers["If-Range"] = validator
        # the scheme was checked: http(s) only
        request = urllib.request.Request(self.url, headers=headers)  # noqa: S310
        try:
            with self._network_errors():
                response = self.opener.open(request, timeout=self.timeout_s)
        except urllib.error.HTTPError as answer:
            response = answer
        with response:
            is_same = _validator(response.headers) in ("", validator)
            if response.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                if is_same and _total(response.headers) == start:
                    return
                self.forget()
                raise _TransientError(f"{self.place} has another size than before")
            if isinstance(response, urllib.error.HTTPError):
                self._refuse(response)
            self._require_no_page(response.headers)
            if response.status == http.client.PARTIAL_CONTENT:
                span = response.headers.get("Content-Range", "").strip()
                if not (start and is_same and span.startswith(f"bytes {start}-")):
                    self.forget()
                    raise _TransientError(f"{self.place} was changed while it was being downloaded")
                self.was_continued = True
            else:
                # the server knows no ranges, or the file is another one now: all of it comes anew
                start = 0
            self._receive(response, start)

    def _begun(self) -> tuple[int, str]:
        """Bytes that are here already, and what the server is to compare; (0, "") when all must come anew."""
        try:
            note = read_object(self.note)
        except (FileNotFoundError, ReadError):
            # no note or a torn one means only that the download begins anew
            return 0, ""
        validator = str(note.get("validator") or "")
        # without a validator only a known hash can tell whether both halves belong together
        goes_on = note.get("url") == self.url and (validator or self.sha256) and self._arrived()
        return (self._arrived(), validator) if goes_on else (0, "")

    def _receive(self, response: Any, done: int) -> None:
        total = _total(response.headers)
        limit = self.size_bytes if total is None else total
        if None not in (self.size_bytes, total) and total != self.size_bytes:
            raise self._wrong_size(f"{total} bytes")
        if total is not None:
            # when all comes anew, the old part makes room
            free = shutil.disk_usage(self.part.parent).free + (0 if done else self._arrived())
            if total - done > free:
                raise OutputError(
                    f"{self.part.parent} has {free / 1e6:.0f} MB free where {(total - done) / 1e6:.0f} MB are needed.",
                    f"Free some space. {_FOLDER_HINT}",
                )
        if not done:
            # in this order: a note never describes another file's part
            self.forget()
            write_json(self.note, {"url": self.url, "validator": _validator(response.headers)})
        with self._write_errors(), self.part.open("ab") as file:
            self._report(done, limit)
            while total is None or done < total:
                self._stop_if_cancelled()
                with self._network_errors():
                    chunk = response.read1(_CHUNK_BYTES if total is None else min(_CHUNK_BYTES, total - done))
                if not chunk:
                    break
                if not done:
                    self._require_no_page(response.headers, chunk)
                done += len(chunk)
                if limit is not None and done > limit:
                    raise self._wrong_size(f"more than {limit} bytes")
                file.write(chunk)
                self._report(done, limit)
        if limit is not None and done < limit:
            raise _TransientError(f"{self.place} broke off after {done} of {limit} bytes")
        if not done:
            self.forget()
            raise DownloadError(f"{self.place} is empty.", self.by_hand)

    def _report(self, done: int, total: int | None) -> None:
        if self.progress:
            self.progress("download", done, total or 0)

    def _wrong_size(self, got: str) -> DownloadError:
        self.forget()
        return DownloadError(
            f"{self.place} sends {got} where {self.size_bytes} bytes are recorded: it is not the file it was.",
            self.by_hand,
        )

    def _require_no_page(self, headers: Message, beginning: bytes = b"") -> None:
        if headers.get_content_type() in _HTML_TYPES or _HTML_START.match(beginning):
            if beginning:
                self.forget()
            raise DownloadError(
                f"{self.place} sent a web page, not the file (a login or a confirmation is asked for, "
                "or the network shows a page of its own).",
                self.by_hand,
            )

    def _refuse(self, answer: urllib.error.HTTPError) -> None:
        # urllib's own reasons can have several lines
        said = " ".join(f"{answer.code} {answer.reason}".split())
        if answer.code in _TRANSIENT_STATUS:
            raise _TransientError(f"{self.place} answered {said}") from answer
        if answer.code == http.client.PROXY_AUTHENTICATION_REQUIRED:
            raise _proxy_error() from answer
        what = _REFUSALS.get(answer.code, "could not be fetched")
        raise DownloadError(f"{self.place} {what}: the server answered {said}.", self.by_hand) from answer

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                # a full disk hurts everything else on it, so the part doesn't stay
                self.forget()
                disk = f"The disk that holds {self.part.parent}"
                raise OutputError(f"{disk} is full; nothing was kept. Free some space.") from error
            raise OutputError(f"{self.part} could not be written: {error.strerror or error}.") from error

    @contextlib.contextmanager
    def _network_errors(self) -> Iterator[None]:
        """Turn what the network can raise inside the block into our errors; answers with a status pass through."""
        try:
            yield
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            cause: Any = error.reason if isinstance(error, urllib.error.URLError) else error
            host = urlsplit(self.url).hostname
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise DownloadError(
                    f"The certificate of {host} is not trusted ({cause.verify_message}).",
                    "If your network has a certificate authority of its own, name its file in SSL_CERT_FILE.",
                ) from error
            if isinstance(cause, TimeoutError):
                raise _TransientError(f"{host} did not answer within {self.timeout_s:g} s") from error
            if "Tunnel connection failed: 407" in str(cause):
                raise _proxy_error() from error
            words = str(getattr(cause, "strerror", None) or cause or type(cause).__name__).removesuffix(".")
            raise _TransientError(f"The connection to {host} failed: {words}") from error


def _validator(headers: Message) -> str:
    """What a server may compare in If-Range: a strong entity tag, else a date."""
    tag: str = headers.get("ETag", "").strip()
    return tag if tag.startswith('"') else headers.get("Last-Modified", "").strip()


def _total(headers: Message) -> int | None:
    """Size of the whole file as the server states it; None when it doesn't."""
    span = headers.get("Content-Range", "").strip()
    text = span.rpartition("/")[2] if span else headers.get("Content-Length", "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


# --- whom a download may talk to --------------------------------------------------------------------------------------


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


def _require_safe(url: str, named_host: str | None, came_from: str = "") -> None:
    """Refuse an address with a password, of another scheme than http(s), or with plain http where https is needed.

    ``named_host`` may speak plain http, because the user named it as the mirror; ``came_from`` redirects here.
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
            _BY_HAND,
        )
    is_this_machine = parts.hostname == "localhost"
    with contextlib.suppress(ValueError):
        is_this_machine = ipaddress.ip_address(parts.hostname).is_loopback
    if parts.hostname != named_host and not is_this_machine:
        raise DownloadError(f"{parts.hostname} is offered over plain http, which is not safe.", _BY_HAND)


class _CarefulRedirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, named_host: str | None) -> None:
        self._named_host = named_host

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            _require_safe(newurl, self._named_host, came_from=req.full_url)
        except DownloadError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _proxy_error() -> DownloadError:
    return DownloadError(
        "The proxy asks for a user name and password.", "Give them in HTTPS_PROXY or ask your administrator."
    )


def _certificates() -> ssl.SSLContext:
    """The system's certificate authorities, and those that the environment names."""
    context = ssl.create_default_context()
    for variable in CERTIFICATE_VARIABLES:
        if not (bundle := os.environ.get(variable, "")):
            continue
        try:
            context.load_verify_locations(**{"capath" if Path(bundle).is_dir() else "cafile": bundle})
        except OSError as error:
            raise DownloadError(
                f"{variable} names {bundle}, which can't be read as a file of certificates.",
                "Correct or unset the variable.",
            ) from error
    return context


@contextlib.contextmanager
def exclusive(path: Path, busy: str, wait_s: float = 0.0) -> Iterator[None]:
    """:func:`..locks.exclusive` beside the models: a ModelError that says ``busy`` when somebody else holds it."""
    with locks.exclusive(path, ModelError(busy), wait_s, _FOLDER_HINT):
        yield
