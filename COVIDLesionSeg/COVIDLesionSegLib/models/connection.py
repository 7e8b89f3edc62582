"""Whom a download may talk to, and how: addresses, mirrors, redirects, proxies, certificates."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from ..errors import DownloadError, InputError

MIRROR_VARIABLE = "COVIDLESIONSEG_MIRROR"
# OpenSSL itself obeys SSL_CERT_FILE and SSL_CERT_DIR; these two are what other Python programs obey.
CERTIFICATE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
BY_HAND = "You can also fetch the file with a browser and run `covid-lesion-seg models import FILE`."


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
