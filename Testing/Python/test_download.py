"""Downloads from a server that breaks off, lies and refuses: a file arrives whole and right, or not at all."""

from __future__ import annotations

import itertools
import socket

import pytest
from download_files import CONTENT, FAST, HTML, OTHER, SHA256, lay_part, left_in
from file_server import FileServer, breaking_off, file, hanging, hanging_after, send, status, with_length

from COVIDLesionSegLib.errors import DownloadError, OutputError
from COVIDLesionSegLib.models.download import download_file

pytestmark = pytest.mark.usefixtures("no_settings_of_this_machine")


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
