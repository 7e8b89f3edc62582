"""What the tests of downloads share: a file's content, what an interrupted download leaves, a clean environment."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

CONTENT = bytes(range(256)) * 4000
OTHER = CONTENT[::-1]
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"
FAST = {"pause_s": 0.01, "timeout_s": 5.0}


@pytest.fixture
def no_settings_of_this_machine(monkeypatch):
    """No proxy, certificate or mirror from the environment."""
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
