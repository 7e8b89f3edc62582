"""Downloads into the user's folder of models: checked, recorded, broken off, or only for browsers."""

from __future__ import annotations

import pytest
from file_server import breaking_off, file
from registry_fixtures import SHA256, WEIGHTS, in_folder, states

from COVIDLesionSegLib.errors import CancelledError, DownloadError, ModelError


@pytest.mark.parametrize("model_id", ["hashed", "unhashed"])
def test_a_download_is_checked_and_recorded(registry, a_server, model_id):
    seen = []
    entry = registry.download(model_id, progress=lambda *event: seen.append(event))
    assert entry.status == "installed" and entry.sha256 == SHA256 and entry.origin == "downloaded"
    assert registry.path(model_id).read_bytes() == WEIGHTS and seen[-1] == ("download", len(WEIGHTS), len(WEIGHTS))
    assert in_folder(registry) == [f"{model_id}.json", f"{model_id}.pt"]
    assert registry.download(model_id) == registry.entry(model_id) and len(a_server.requests) == 1


def test_a_download_of_what_is_no_model_is_not_kept(registry, a_server):
    a_server.answers = [file(b"a letter to a friend")]
    with pytest.raises(ModelError, match="is not a model file"):
        registry.download("unhashed")
    assert in_folder(registry) == [] and states(registry)["unhashed"] == "available"


def test_a_download_with_a_wrong_hash_is_not_kept(registry, a_server):
    a_server.answers = [file(WEIGHTS[::-1])]
    with pytest.raises(DownloadError, match="SHA-256"):
        registry.download("hashed")
    assert in_folder(registry) == []


def test_a_failed_download_says_how_to_get_the_file_by_hand(registry, a_server):
    a_server.answers = [file(b"<html>", **{"Content-Type": "text/html"})]
    with pytest.raises(DownloadError, match=r"web page.*models import .* --id hashed"):
        registry.download("hashed")


def test_a_cancelled_download_goes_on_later_and_remove_clears_it(registry, a_server):
    a_server.answers = [breaking_off(WEIGHTS, 5000, etag='"1"')]
    stopped = []
    with pytest.raises(CancelledError):
        registry.download(
            "hashed", progress=lambda phase, done, total: stopped.append(done), cancelled=lambda: 5000 in stopped
        )
    assert in_folder(registry) == ["downloads/hashed.pt.part", "downloads/hashed.pt.part.json"]
    registry.remove("hashed")
    assert in_folder(registry) == []


def test_what_is_only_for_browsers_is_not_downloaded(registry, a_server):
    with pytest.raises(DownloadError, match=r"by-hand can't be fetched by a program.*models import"):
        registry.download("by-hand")
    assert a_server.requests == []


def test_a_mirror_may_hold_what_is_only_for_browsers(registry, a_server):
    entry = registry.download("by-hand", mirror=a_server.url("/models"))
    assert entry.status == "installed" and a_server.requests[0][0] == "/models/weights.pt"


def test_what_is_bundled_is_not_downloaded(registry, a_server):
    assert registry.download("base").status == "bundled" and a_server.requests == []


def test_a_damaged_installed_model_is_not_passed_off_as_downloaded(registry):
    registry.download("hashed")
    registry.path("hashed").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="models remove hashed"):
        registry.download("hashed")
