"""A list of four models, a server of their files and a user's folder, without PyTorch; a pytest plug-in."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from file_server import FileServer, file

from COVIDLesionSegLib.errors import ModelError
from COVIDLesionSegLib.models.card import ModelCard
from COVIDLesionSegLib.models.catalog import id_from_name
from COVIDLesionSegLib.models.registry import ModelRegistry

WEIGHTS = b"coplenet " + bytes(range(256)) * 100
MINE = b"coplenet " + bytes(range(255, -1, -1)) * 100
OTHER = b"coplenet " + bytes(range(256)) * 101
CARES = b"caresunet " + bytes(100)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def check_by_first_word(path: Path) -> ModelCard:
    """Stands in for loading with PyTorch: the file's first word is its network, anything else is no model."""
    network = path.read_bytes().partition(b" ")[0].decode(errors="replace")
    if network not in ("coplenet", "caresunet"):
        raise ModelError(f"{path.name} is not a model file.")
    model_id = "from-card" if path.suffix == ".safetensors" else id_from_name(path.name)
    return ModelCard(id=model_id, name=f"A {network}", network=network)


def a_listed_model(model_id: str, **more: object) -> dict[str, object]:
    nothing = {"seconds_per_slice": None, "seconds_per_ct": None, "memory_megabytes": None, "measured_on": ""}
    return {
        "id": model_id,
        "name": model_id.upper(),
        "network": "coplenet",
        "default": False,
        "description": "A model.",
        "bundled_file": None,
        "file_name": "weights.pt",
        "source_page": "https://example.org/code",
        "download_page": "https://example.org/files",
        "download_url": None,
        "manual_instruction": f"Open the page, then run `covid-lesion-seg models import weights.pt --id {model_id}`.",
        "code_license": "MIT",
        "license": "none stated",
        "license_notice": "No license is stated.",
        "citation": "Somebody, somewhere.",
        "size_bytes": None,
        "sha256": None,
        "preprocessing": "None.",
        "expected": {"cpu": nothing, "gpu": nothing},
        **more,
    }


@pytest.fixture
def a_server():
    with FileServer(file(WEIGHTS, etag='"1"')) as server:
        yield server


@pytest.fixture
def a_list(tmp_path, monkeypatch, a_server) -> Path:
    """A bundled model, one that can be downloaded with and one without a known hash, and one that can't."""
    for name in ("http_proxy", "HTTP_PROXY", "COVIDLESIONSEG_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    resources = tmp_path / "Resources"
    (resources / "Models").mkdir(parents=True)
    bundled = b"coplenet bundled"
    (resources / "Models" / "base.safetensors").write_bytes(bundled)
    models = [
        a_listed_model(
            "base",
            default=True,
            bundled_file="Models/base.safetensors",
            size_bytes=len(bundled),
            sha256=hashlib.sha256(bundled).hexdigest(),
        ),
        a_listed_model("hashed", download_url=a_server.url(), sha256=SHA256, size_bytes=len(WEIGHTS)),
        a_listed_model("unhashed", download_url=a_server.url()),
        a_listed_model("by-hand"),
    ]
    path = resources / "Models.json"
    path.write_text(json.dumps({"schema_version": 1, "models": models}))
    return path


@pytest.fixture
def registry(tmp_path, a_list) -> ModelRegistry:
    return ModelRegistry(tmp_path / "models", catalog=a_list, check=check_by_first_word)


@pytest.fixture
def a_file(tmp_path) -> Path:
    path = tmp_path / "My Model (2).pt"
    path.write_bytes(MINE)
    return path


def states(registry: ModelRegistry) -> dict[str, str]:
    return {entry.id: entry.status for entry in registry.list()}


def in_folder(registry: ModelRegistry) -> list[str]:
    return sorted(p.relative_to(registry.folder).as_posix() for p in registry.folder.rglob("*") if p.is_file())
