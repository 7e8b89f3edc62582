"""Where a download may lead: redirects, mirrors, proxies, certificates."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from download_files import CONTENT, FAST, OTHER, SHA256, lay_part, left_in
from file_server import FileServer, file, status

from COVIDLesionSegLib.errors import DownloadError, InputError
from COVIDLesionSegLib.models.download import download_file, mirrored

pytestmark = pytest.mark.usefixtures("no_settings_of_this_machine")


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
