"""Downloads against a server that breaks off, lies, changes its mind, redirects, hangs or asks for a login."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from file_faults import small_disk
from file_server import FileServer, breaking_off, file, hanging, hanging_after, send, status, with_length

from COVIDLesionSegLib.errors import CancelledError, DownloadError, InputError, ModelError, OutputError
from COVIDLesionSegLib.models.connection import mirrored
from COVIDLesionSegLib.models.download import download_file
from COVIDLesionSegLib.models.lock import exclusive

CONTENT = bytes(range(256)) * 4000
OTHER = CONTENT[::-1]
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"
FAST = {"pause_s": 0.01, "timeout_s": 5.0}


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch):
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    for name in (*names, "COVIDLESIONSEG_MIRROR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "model.pt"


@pytest.fixture
def an_older_target(target) -> Path:
    target.write_bytes(b"what was there before")
    return target


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def lay_part(target: Path, url: str, content: bytes, validator: str, total: int | None = len(CONTENT)) -> None:
    """What a download that was interrupted earlier leaves."""
    target.with_name("model.pt.part").write_bytes(content)
    note = {"url": url, "validator": validator, "total_bytes": total}
    target.with_name("model.pt.part.json").write_text(json.dumps(note))


# --- it arrives -------------------------------------------------------------------------------------------------------


def test_a_file_arrives_whole_with_progress_and_nothing_else_left(target):
    seen = []
    with FileServer(file(CONTENT)) as server:
        got = download_file(server.url(), target, sha256=SHA256, progress=lambda *event: seen.append(event), **FAST)
    assert got == target and target.read_bytes() == CONTENT
    assert left_in(target.parent) == ["model.pt"]
    assert seen[0] == ("download", 0, len(CONTENT)) and seen[-1] == ("download", len(CONTENT), len(CONTENT))
    assert all(earlier[1] < later[1] for earlier, later in itertools.pairwise(seen))


def test_a_length_that_is_not_stated_is_allowed(target):
    seen = []
    with FileServer(with_length(CONTENT, None)) as server:
        download_file(server.url(), target, progress=lambda *event: seen.append(event), **FAST)
    assert target.read_bytes() == CONTENT
    assert seen[-1] == ("download", len(CONTENT), 0)


def test_a_chunked_answer_is_put_together(target):
    def chunked(handler):
        handler.protocol_version = "HTTP/1.1"
        send(handler, 200, {"Content-Length": None, "Transfer-Encoding": "chunked"}, b"")
        for start in range(0, len(CONTENT), 100_000):
            piece = CONTENT[start : start + 100_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    with FileServer(chunked) as server:
        download_file(server.url(), target, sha256=SHA256, **FAST)
    assert target.read_bytes() == CONTENT


# --- it breaks off ----------------------------------------------------------------------------------------------------


def test_a_download_that_breaks_off_goes_on_where_it_stopped(target):
    with FileServer(breaking_off(CONTENT, 300_000, etag='"1"'), file(CONTENT, etag='"1"')) as server:
        download_file(server.url(), target, sha256=SHA256, **FAST)
    assert target.read_bytes() == CONTENT
    assert server.header("range") == [None, "bytes=300000-"]
    assert server.header("if-range") == [None, '"1"']


def test_a_later_call_goes_on_where_the_last_one_gave_up(target):
    with FileServer(breaking_off(CONTENT, 300_000, etag='"1"'), status(503)) as server:
        with pytest.raises(DownloadError, match=r"503.*2 tries.*goes on from there"):
            download_file(server.url(), target, attempts=2, **FAST)
        assert left_in(target.parent) == ["model.pt.part", "model.pt.part.json"]
        server.answers = [file(CONTENT, etag='"1"')]
        download_file(server.url(), target, **FAST)
    assert server.header("range")[-1] == "bytes=300000-"
    assert target.read_bytes() == CONTENT and left_in(target.parent) == ["model.pt"]


def test_a_server_without_ranges_begins_anew(target):
    with FileServer(breaking_off(CONTENT, 300_000, etag='"1"'), file(CONTENT, etag='"1"', ranges=False)) as server:
        download_file(server.url(), target, **FAST)
    assert target.read_bytes() == CONTENT


def test_a_file_that_changes_between_tries_is_never_mixed(target):
    with FileServer(breaking_off(OTHER, 300_000, etag='"1"'), file(CONTENT, etag='"2"')) as server:
        download_file(server.url(), target, **FAST)
    assert target.read_bytes() == CONTENT


def test_a_changed_file_is_noticed_although_the_server_overlooks_if_range(target):
    def careless(handler):
        del handler.headers["If-Range"]
        file(CONTENT, etag='"2"')(handler)

    with FileServer(breaking_off(OTHER, 300_000, etag='"1"'), careless) as server:
        download_file(server.url(), target, **FAST)
    assert target.read_bytes() == CONTENT
    assert server.header("range") == [None, "bytes=300000-", None]


def test_a_date_serves_where_there_is_no_strong_tag(target):
    date = "Sun, 22 Nov 2026 04:00:00 GMT"
    with FileServer(file(CONTENT, etag='W/"1"', modified=date)) as server:
        lay_part(target, server.url(), CONTENT[:1000], date)
        server.answers = [file(CONTENT, modified=date)]
        download_file(server.url(), target, **FAST)
    assert server.header("if-range") == [date] and target.read_bytes() == CONTENT


def test_without_tag_date_or_hash_nothing_is_continued(target):
    with FileServer(breaking_off(OTHER, 300_000), file(CONTENT)) as server:
        download_file(server.url(), target, **FAST)
    assert server.header("range") == [None, None] and target.read_bytes() == CONTENT


def test_with_a_known_hash_halves_that_do_not_fit_are_fetched_anew(target):
    with FileServer(breaking_off(OTHER, 300_000), file(CONTENT)) as server:
        download_file(server.url(), target, sha256=SHA256, **FAST)
    assert server.header("range") == [None, "bytes=300000-", None]
    assert target.read_bytes() == CONTENT


def test_a_part_of_another_address_is_not_continued(target):
    with FileServer(file(CONTENT, etag='"1"')) as server:
        lay_part(target, "http://127.0.0.1:1/other.pt", OTHER[:1000], '"1"')
        download_file(server.url(), target, **FAST)
    assert server.header("range") == [None] and target.read_bytes() == CONTENT


def test_a_part_that_is_complete_already_is_taken(target):
    with FileServer(file(CONTENT, etag='"1"')) as server:
        lay_part(target, server.url(), CONTENT, '"1"')
        download_file(server.url(), target, sha256=SHA256, **FAST)
    assert target.read_bytes() == CONTENT and len(server.requests) == 1


def test_a_part_longer_than_the_file_is_thrown_away(target):
    with FileServer(file(CONTENT, etag='"1"')) as server:
        lay_part(target, server.url(), CONTENT + b"more", '"1"')
        download_file(server.url(), target, sha256=SHA256, **FAST)
    assert target.read_bytes() == CONTENT


def test_as_long_as_something_new_arrives_it_goes_on_trying(target):
    """Six broken answers in a row with three attempts: each brings a bit more."""

    def a_little_more(handler):
        start = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        end = min(start + 170_000, len(CONTENT))
        headers = {"ETag": '"1"', "Content-Length": str(len(CONTENT) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        send(handler, 206 if start else 200, headers, CONTENT[start:end])

    with FileServer(a_little_more) as server:
        download_file(server.url(), target, sha256=SHA256, attempts=3, **FAST)
    assert len(server.requests) == 7


def test_a_silent_server_is_given_up(target):
    with FileServer(hanging) as server, pytest.raises(DownloadError, match=r"did not answer within 0\.2 s \(2 tries\)"):
        download_file(server.url(), target, attempts=2, pause_s=0.01, timeout_s=0.2)
    assert left_in(target.parent) == []


def test_a_server_that_falls_silent_in_the_middle_is_asked_for_the_rest(target):
    with FileServer(hanging_after(CONTENT, 200_000, '"1"'), file(CONTENT, etag='"1"')) as server:
        download_file(server.url(), target, sha256=SHA256, pause_s=0.01, timeout_s=0.3)
    assert server.header("range") == [None, "bytes=200000-"] and target.read_bytes() == CONTENT


def test_nobody_answers(target):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(DownloadError, match=r"connection to 127\.0\.0\.1 failed.*2 tries.*models import FILE"):
        download_file(f"http://127.0.0.1:{port}/model.pt", target, attempts=2, **FAST)


# --- it lies ----------------------------------------------------------------------------------------------------------


def test_a_length_that_is_too_large_is_a_broken_download(target):
    broke_off = pytest.raises(DownloadError, match=f"broke off after {len(CONTENT)} of {len(CONTENT) + 5000} bytes")
    with FileServer(with_length(CONTENT, len(CONTENT) + 5000)) as server, broke_off:
        download_file(server.url(), target, attempts=2, **FAST)
    assert not target.exists()


@pytest.mark.parametrize(
    "known", [{"sha256": SHA256}, {"size_bytes": len(CONTENT)}], ids=lambda known: next(iter(known))
)
def test_a_length_that_is_too_small_is_noticed(target, known):
    with FileServer(with_length(CONTENT, 5000)) as server, pytest.raises(DownloadError):
        download_file(server.url(), target, **known, **FAST)
    assert left_in(target.parent) == []


@pytest.mark.parametrize("length", [None, len(CONTENT)], ids=["unstated", "stated"])
def test_more_than_the_recorded_size_is_refused(target, length):
    with (
        FileServer(with_length(CONTENT, length)) as server,
        pytest.raises(DownloadError, match="5000 bytes are recorded"),
    ):
        download_file(server.url(), target, size_bytes=5000, **FAST)
    assert left_in(target.parent) == []


def test_less_than_the_recorded_size_is_a_broken_download(target):
    broke_off = pytest.raises(DownloadError, match=f"broke off after 5000 of {len(CONTENT)} bytes")
    with FileServer(with_length(CONTENT[:5000], None)) as server, broke_off:
        download_file(server.url(), target, size_bytes=len(CONTENT), attempts=2, **FAST)


def test_a_length_beyond_the_disk_is_said_before_anything_is_written(an_older_target):
    with (
        FileServer(with_length(CONTENT, 10**15)) as server,
        pytest.raises(OutputError, match="MB free where 1000000000 MB"),
    ):
        download_file(server.url(), an_older_target, **FAST)
    assert an_older_target.read_bytes() == b"what was there before"
    assert left_in(an_older_target.parent) == ["model.pt"]


@pytest.mark.parametrize("length", ["", "-5", "many", "1e6"])
def test_a_length_that_is_no_number_counts_as_none(target, length):
    with FileServer(lambda handler: send(handler, 200, {"Content-Length": length}, CONTENT)) as server:
        download_file(server.url(), target, sha256=SHA256, **FAST)
    assert target.read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_what_was_there_stays(an_older_target):
    with FileServer(file(OTHER)) as server, pytest.raises(DownloadError, match="does not have the SHA-256"):
        download_file(server.url(), an_older_target, sha256=SHA256, **FAST)
    assert an_older_target.read_bytes() == b"what was there before"
    assert left_in(an_older_target.parent) == ["model.pt"] and len(server.requests) == 1


PAGES = {
    "by its type": file(HTML, **{"Content-Type": "text/html; charset=utf-8"}),
    "by its beginning": file(b"\xef\xbb\xbf \r\n" + HTML),
    "after a comment": file(b"<!-- saved -->\n<html><head></head></html>"),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_a_web_page_is_not_taken_for_the_file(an_older_target, page):
    with FileServer(page) as server, pytest.raises(DownloadError, match=r"web page, not the file.*models import FILE"):
        download_file(server.url(), an_older_target, **FAST)
    assert an_older_target.read_bytes() == b"what was there before"
    assert left_in(an_older_target.parent) == ["model.pt"]


def test_a_login_page_in_the_middle_does_not_cost_what_has_arrived(target):
    page = PAGES["by its type"]
    with FileServer(breaking_off(CONTENT, 300_000, etag='"1"'), page) as server, pytest.raises(DownloadError):
        download_file(server.url(), target, **FAST)
    assert target.with_name("model.pt.part").stat().st_size == 300_000


def test_an_empty_file_is_refused(target):
    with FileServer(file(b"")) as server, pytest.raises(DownloadError, match="is empty"):
        download_file(server.url(), target, **FAST)
    assert left_in(target.parent) == []


# --- it refuses -------------------------------------------------------------------------------------------------------

FINAL = [(404, "is not there"), (410, "is not there"), (403, "without a login"), (401, "without a login"), (400, "400")]


@pytest.mark.parametrize(("code", "words"), FINAL)
def test_a_refusal_is_not_tried_again(target, code, words):
    with FileServer(status(code)) as server, pytest.raises(DownloadError, match=words):
        download_file(server.url(), target, **FAST)
    assert len(server.requests) == 1 and left_in(target.parent) == []


@pytest.mark.parametrize("code", [500, 502, 503, 429])
def test_a_server_in_trouble_is_asked_again(target, code):
    with FileServer(status(code), status(code), file(CONTENT)) as server:
        download_file(server.url(), target, **FAST)
    assert len(server.requests) == 3 and target.read_bytes() == CONTENT


def test_a_server_that_stays_in_trouble_is_given_up(target):
    with FileServer(status(500)) as server, pytest.raises(DownloadError, match=r"answered 500 .* \(3 tries\)"):
        download_file(server.url(), target, attempts=3, **FAST)
    assert len(server.requests) == 3


# --- where it leads ---------------------------------------------------------------------------------------------------


def test_a_redirect_is_followed_and_keeps_the_range(target):
    with FileServer(file(CONTENT, etag='"1"')) as there, FileServer(status(302, Location=there.url("/there"))) as here:
        lay_part(target, here.url(), CONTENT[:1000], '"1"')
        download_file(here.url(), target, **FAST)
    assert there.requests[0][0] == "/there" and there.header("range") == ["bytes=1000-"]
    assert target.read_bytes() == CONTENT


def test_a_redirect_in_a_circle_ends(target):
    with (
        FileServer(status(302, Location="/model.pt")) as server,
        pytest.raises(DownloadError, match="could not be fetched"),
    ):
        download_file(server.url(), target, **FAST)


REFUSED = [
    ("http://example.org/model.pt", "plain http"),
    ("ftp://example.org/model.pt", "not an https address"),
    ("file:///etc/passwd", "not an https address"),
    ("https:///model.pt", "not an https address"),
    ("model.pt", "not an https address"),
    ("https://me:secret@example.org/model.pt", "must not carry"),
]


@pytest.mark.parametrize(("url", "words"), REFUSED)
def test_an_unsafe_address_is_refused_before_any_request(target, url, words):
    with pytest.raises(DownloadError, match=words) as caught:
        download_file(url, target, mirror="", **FAST)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", [url for url, _ in REFUSED[:3]])
def test_a_redirect_to_an_unsafe_address_is_refused(target, url):
    refused = pytest.raises(DownloadError, match=r"plain http|not an https address|is not allowed")
    with FileServer(status(302, Location=url)) as server, refused:
        download_file(server.url(), target, **FAST)
    assert left_in(target.parent) == []


MIRRORS = [
    ("https://a.org/x/model.pt", "https://files.b.org", "https://files.b.org/x/model.pt"),
    ("https://a.org/x/model.pt?key=1", "https://files.b.org/models/", "https://files.b.org/models/x/model.pt?key=1"),
    ("/model.pt", "http://10.0.0.1:8080/m", "http://10.0.0.1:8080/m/model.pt"),
]


@pytest.mark.parametrize(("url", "mirror", "expected"), MIRRORS)
def test_a_mirror_replaces_scheme_and_host(url, mirror, expected):
    assert mirrored(url, mirror) == expected


@pytest.mark.parametrize("mirror", ["files.b.org", "ftp://b.org", "https://me:secret@b.org", "https://b.org?x=1"])
def test_a_mirror_that_is_no_address_is_refused(target, mirror):
    with pytest.raises(InputError, match="mirror"):
        download_file("https://a.org/model.pt", target, mirror=mirror, **FAST)


def test_the_mirror_comes_from_the_environment(target, monkeypatch):
    with FileServer(file(CONTENT)) as server:
        monkeypatch.setenv("COVIDLESIONSEG_MIRROR", server.url("/models"))
        download_file("https://a.invalid/x/model.pt", target, sha256=SHA256, **FAST)
    assert server.requests[0][0] == "/models/x/model.pt"


def test_a_mirror_named_with_plain_http_may_speak_it_and_only_it(target, monkeypatch):
    """The proxy stands for the network: host names reach it unresolved."""
    with FileServer(file(CONTENT)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.base)
        download_file("https://a.org/model.pt", target, mirror="http://files.hospital.example", **FAST)
        assert proxy.requests[0][0] == "http://files.hospital.example/model.pt"
        proxy.answers = [status(302, Location="http://elsewhere.example/model.pt")]
        with pytest.raises(DownloadError, match=r"elsewhere\.example is offered over plain http"):
            download_file("https://a.org/model.pt", target, mirror="http://files.hospital.example", **FAST)


# --- proxies and certificates -----------------------------------------------------------------------------------------


def test_a_proxy_of_the_environment_is_used_and_no_proxy_obeyed(target, monkeypatch):
    with FileServer(file(CONTENT)) as server, FileServer(file(OTHER)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.base)
        download_file(server.url(), target, **FAST)
        assert target.read_bytes() == OTHER and proxy.requests[0][0] == server.url()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        download_file(server.url(), target, **FAST)
        assert target.read_bytes() == CONTENT and len(proxy.requests) == 1


@pytest.mark.parametrize(
    ("variable", "url"), [("http_proxy", "http://127.0.0.1:9/m.pt"), ("https_proxy", "https://a.invalid/m.pt")]
)
def test_a_proxy_that_wants_a_password_is_named(target, monkeypatch, variable, url):
    with FileServer(status(407)) as proxy:
        monkeypatch.setenv(variable, proxy.base)
        with pytest.raises(DownloadError, match="proxy asks for a user name and password"):
            download_file(url, target, attempts=1, **FAST)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not here")
    folder = tmp_path_factory.mktemp("certificate")
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "certificate.pem"]
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*new, *names, *files], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "certificate.pem").read_bytes())
    return both


def test_a_certificate_of_nobody_known_is_refused_with_a_hint(target, certificate):
    refused = pytest.raises(DownloadError, match=r"certificate of 127\.0\.0\.1 is not trusted.*SSL_CERT_FILE")
    with FileServer(file(CONTENT), certificate=certificate) as server, refused:
        download_file(server.url(), target, **FAST)
    assert server.requests == []


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_certificates_of_the_network_are_taken_from_the_environment(target, certificate, monkeypatch, variable):
    monkeypatch.setenv(variable, str(certificate.with_name("certificate.pem")))
    with FileServer(file(CONTENT), certificate=certificate) as server:
        download_file(server.url(), target, sha256=SHA256, **FAST)
    assert target.read_bytes() == CONTENT


def test_certificates_that_are_not_there_are_named(target, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/bundle.pem")
    with pytest.raises(DownloadError, match=r"REQUESTS_CA_BUNDLE names /nowhere/bundle\.pem"):
        download_file("https://a.invalid/model.pt", target, **FAST)


def test_https_never_leads_down_to_http(target, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_name("certificate.pem")))
    refused = pytest.raises(DownloadError, match="leads from https to plain http")
    with FileServer(file(CONTENT)) as plain:
        down = status(302, Location=plain.url())
        with FileServer(down, certificate=certificate) as server, refused:
            download_file(server.url(), target, **FAST)
    assert plain.requests == [] and left_in(target.parent) == []


def test_https_goes_through_a_proxys_tunnel(target, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_name("certificate.pem")))

    def tunnel(handler):
        host, port = handler.path.split(":")
        with socket.create_connection((host, int(port))) as far:
            handler.send_response(200)
            handler.end_headers()
            back = threading.Thread(target=pump, args=(far, handler.connection), daemon=True)
            back.start()
            pump(handler.connection, far)
            back.join()

    with FileServer(file(CONTENT), certificate=certificate) as server, FileServer(tunnel) as proxy:
        monkeypatch.setenv("https_proxy", proxy.base)
        download_file(server.url(), target, sha256=SHA256, **FAST)
    assert proxy.requests[0][0] == f"CONNECT 127.0.0.1:{server.port}" and target.read_bytes() == CONTENT


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        # one side hung up first
        pass


# --- disk, cancel, neighbors ------------------------------------------------------------------------------------------


@pytest.fixture
def a_small_disk():
    with small_disk(0.25) as disk:
        yield disk


def test_a_full_disk_leaves_what_was_there_and_nothing_else(a_small_disk):
    target = a_small_disk / "model.pt"
    target.write_bytes(b"what was there before")
    with (
        FileServer(with_length(CONTENT, None)) as server,
        pytest.raises(OutputError, match="is full; nothing was kept"),
    ):
        download_file(server.url(), target, **FAST)
    assert target.read_bytes() == b"what was there before" and left_in(a_small_disk) == ["model.pt"]


def test_a_write_that_fails_is_an_output_error(an_older_target):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with FileServer(file(CONTENT)) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(OutputError, match="could not be written"):
                download_file(server.url(), an_older_target, **FAST)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert an_older_target.read_bytes() == b"what was there before"


def test_a_folder_that_can_not_be_made_is_an_output_error(tmp_path):
    (tmp_path / "folder").write_text("a file, not a folder")
    with pytest.raises(OutputError, match=r"can't be written to.*COVIDLESIONSEG_MODELS"):
        download_file("https://a.invalid/model.pt", tmp_path / "folder" / "model.pt", **FAST)


def test_cancel_keeps_what_has_arrived_for_the_next_time(target):
    arrived = []
    with FileServer(hanging_after(CONTENT, 600_000, '"1"'), file(CONTENT, etag='"1"')) as server:
        with pytest.raises(CancelledError, match="goes on from there"):
            download_file(
                server.url(),
                target,
                progress=lambda phase, done, total: arrived.append(done),
                cancelled=lambda: arrived[-1:] > [0],
                **FAST,
            )
        assert not target.exists() and target.with_name("model.pt.part").stat().st_size == arrived[-1]
        download_file(server.url(), target, sha256=SHA256, **FAST)
    assert server.header("range")[-1] == f"bytes={arrived[-1]}-"


def test_cancel_works_during_a_pause(target):
    with FileServer(status(503)) as server, pytest.raises(CancelledError):
        # without the question in the pause this would take its 30 s and then ask the server again
        download_file(server.url(), target, pause_s=30, cancelled=lambda: bool(server.requests))
    assert len(server.requests) == 1


def test_two_processes_do_not_write_the_same_file(target):
    with FileServer(file(CONTENT)) as server, exclusive(target.with_name("model.pt.part.lock"), "busy"):
        with pytest.raises(ModelError, match="is being downloaded by another process"):
            download_file(server.url(), target, **FAST)
        assert server.requests == []


FETCH = """
import sys
from COVIDLesionSegLib.models.download import download_file
download_file(sys.argv[1], sys.argv[2])
"""


def test_a_download_that_was_killed_goes_on(target):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "COVIDLesionSeg")}
    part = target.with_name("model.pt.part")
    with FileServer(hanging_after(CONTENT, 900_000, '"1"'), file(CONTENT, etag='"1"')) as server:
        command = [sys.executable, "-c", FETCH, server.url(), str(target)]
        with subprocess.Popen(command, env=environment) as owner:
            while not part.is_file() or part.stat().st_size < 500_000:
                assert owner.poll() is None
                time.sleep(0.01)
            owner.kill()
        start = part.stat().st_size
        download_file(server.url(), target, sha256=SHA256, **FAST)
    assert server.header("range") == [None, f"bytes={start}-"] and left_in(target.parent) == ["model.pt"]


HOLD = """
import sys, time
from pathlib import Path
from COVIDLesionSegLib.models.lock import exclusive
with exclusive(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_free_again_when_its_owner_is_killed(tmp_path):
    lock = tmp_path / "lock"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "COVIDLesionSeg")}
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(ModelError, match="busy"), exclusive(lock, "busy"):
            pass
        owner.kill()
        owner.wait()
        with exclusive(lock, "busy", wait_s=5):
            pass


def test_a_lock_admits_one_at_a_time(tmp_path):
    inside, most = [], []

    def enter(number):
        with exclusive(tmp_path / "lock", "busy", wait_s=30):
            inside.append(number)
            most.append(len(inside))
            inside.remove(number)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20 and left_in(tmp_path) == []
