"""Model files that are taken into the user's folder: under which id, recorded how, and which are refused."""

from __future__ import annotations

import hashlib

import pytest
from registry_fixtures import CARES, MINE, OTHER, WEIGHTS, in_folder

from COVIDLesionSegLib.errors import ModelError
from COVIDLesionSegLib.models.card import ModelCard
from COVIDLesionSegLib.models.catalog import check_id, id_from_name


def test_an_imported_file_is_copied_and_recorded(registry, a_file):
    entry = registry.import_file(a_file)
    assert entry.id == "my-model-2" and entry.status == "installed" and entry.origin == "imported"
    assert entry.sha256 == hashlib.sha256(MINE).hexdigest() and entry.size_bytes == len(MINE)
    assert "judge" in entry.license_notice, "a file without a license says so"
    assert registry.path("my-model-2").read_bytes() == MINE and registry.verify("my-model-2") == entry
    assert a_file.exists() and in_folder(registry) == ["my-model-2.json", "my-model-2.pt"]
    record = (registry.folder / "my-model-2.json").read_text()
    assert str(a_file.parent) not in record, "a record holds no path of this machine"


def test_importing_the_same_file_twice_changes_nothing(registry, a_file):
    first = registry.import_file(a_file, "mine")
    assert registry.import_file(a_file, "mine") == first


def test_an_id_that_is_taken_is_refused(registry, a_file):
    registry.import_file(a_file, "mine")
    a_file.write_bytes(OTHER)
    with pytest.raises(ModelError, match=r"mine belongs to another model file.*--id.*models remove mine"):
        registry.import_file(a_file, "mine")
    assert registry.path("mine").read_bytes() == MINE


def test_a_file_known_by_its_hash_gets_its_listed_id(registry, a_file):
    a_file.write_bytes(WEIGHTS)
    assert registry.import_file(a_file).id == "hashed"
    assert registry.entry("hashed").license_notice == "No license is stated."


@pytest.mark.parametrize("model_id", ["hashed", "base"])
def test_another_hash_than_the_listed_one_is_refused(registry, a_file, model_id):
    a_file.write_bytes(OTHER)
    with pytest.raises(ModelError, match=r"another file, or damaged.*id of its own"):
        registry.import_file(a_file, model_id)
    assert not registry.folder.exists()


def test_the_first_import_records_the_hash_of_a_listed_model(registry, a_file):
    a_file.write_bytes(OTHER)
    entry = registry.import_file(a_file, "by-hand")
    assert entry.status == "installed" and entry.sha256 == hashlib.sha256(OTHER).hexdigest()
    assert entry.name == "BY-HAND" and entry.license == "none stated"
    registry.path("by-hand").write_bytes(WEIGHTS)
    with pytest.raises(ModelError, match="models remove by-hand"):
        registry.verify("by-hand")


def test_a_model_of_another_network_is_not_the_listed_one(registry, a_file):
    a_file.write_bytes(CARES)
    with pytest.raises(ModelError, match="is a caresunet model; by-hand is a coplenet one"):
        registry.import_file(a_file, "by-hand")


def test_what_does_not_load_is_not_taken_in(registry, a_file):
    a_file.write_bytes(b"a letter to a friend")
    with pytest.raises(ModelError, match="is not a model file"):
        registry.import_file(a_file)
    assert not registry.folder.exists()


def test_files_that_are_none(registry, tmp_path):
    with pytest.raises(ModelError, match="There is no model file"):
        registry.import_file(tmp_path / "nothing.pt")
    with pytest.raises(ModelError, match="could not be read"):
        registry.import_file(tmp_path)


def test_our_own_format_brings_its_id(registry, tmp_path):
    path = tmp_path / "best.safetensors"
    path.write_bytes(OTHER)
    assert registry.import_file(path).id == "from-card"


BAD_IDS = ["", "../up", "a/b", "a\\b", "Upper", "a b", ".hidden", "-a", "a.", "_settings", "a" * 65, "ä", "a\n"]


@pytest.mark.parametrize("model_id", BAD_IDS)
def test_an_id_that_can_not_name_a_file_is_refused(registry, a_file, model_id):
    a_file.write_bytes(OTHER)
    with pytest.raises(ModelError, match="can't be a model's id"):
        check_id(model_id)
    if model_id:
        with pytest.raises(ModelError):
            registry.import_file(a_file, model_id)
        with pytest.raises(ModelError):
            registry.register(a_file, replace_id(model_id))
        with pytest.raises(ModelError):
            registry.remove(model_id)
    assert not registry.folder.exists()


def replace_id(model_id: str) -> ModelCard:
    card = ModelCard(id="x", name="X", network="coplenet")
    object.__setattr__(card, "id", model_id)
    return card


IDS = [
    ("Model (2).pt", "model-2"),
    ("COPLE.Net_v1.safetensors", "cople.net_v1"),
    ("__x__.pt.tar", "x"),
    ("...", ""),
    ("ä.pt", ""),
    ("a" * 90 + ".pt", "a" * 64),
]


@pytest.mark.parametrize(("name", "expected"), IDS)
def test_an_id_is_made_from_a_files_name(name, expected):
    assert id_from_name(name) == expected
    if expected:
        assert check_id(expected) == expected
