"""The list of models that ships and what it says is here, without PyTorch: the check of a file is stood in for."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from registry_fixtures import states

from COVIDLesionSegLib.errors import ModelError
from COVIDLesionSegLib.files import sha256_file
from COVIDLesionSegLib.models.card import read_card
from COVIDLesionSegLib.models.registry import ModelRegistry
from COVIDLesionSegLib.networks import NETWORKS
from COVIDLesionSegLib.resources import load_json, resource, resources_folder

# --- the list that ships ----------------------------------------------------------------------------------------------


def test_the_list_that_ships_follows_its_schema():
    schema = load_json("Models.schema.json")
    jsonschema.Draft202012Validator.check_schema(schema)
    for name in ("Models.json", "LungModels.json"):
        jsonschema.validate(load_json(name), schema)
        assert {model["network"] for model in load_json(name)["models"]} <= set(NETWORKS)


def test_ids_and_addresses_of_the_list_are_unique():
    models = load_json("Models.json")["models"]
    for key in ("id", "bundled_file", "download_page", "file_name"):
        given = [model[key] for model in models if model[key]]
        assert len(given) == len(set(given)), key


def test_the_list_names_what_the_authors_published():
    entries = {entry.id: entry for entry in ModelRegistry("/nowhere").list()}
    assert {"coplenet-ctseg", "coplenet-uestc", "coplenet-uestc-monai", "caresunet-semiseg"} <= set(entries)
    assert entries["caresunet-semiseg"].network == "caresunet"
    assert all(entry.license and entry.license_notice and entry.citation for entry in entries.values())
    published = [entry for entry in entries.values() if entry.download_page]
    assert all(f"--id {entry.id}`" in entry.manual_instruction for entry in published)


def test_bundled_models_have_the_recorded_hash_and_a_card_that_agrees():
    registry = ModelRegistry("/nowhere")
    bundled = [entry for entry in registry.list() if entry.origin == "registry" and not entry.download_page]
    assert bundled and registry.default() in [entry.id for entry in bundled]
    for entry in bundled:
        path = resources_folder() / "Models" / entry.file_name
        recorded = (entry.size_bytes, entry.sha256)
        assert (path.stat().st_size, sha256_file(path)) == recorded, "write these two into Resources/Models.json"
        assert registry.verify(entry.id).path == path
        card = read_card(path)
        for key in ("id", "name", "network", "license", "license_notice", "citation"):
            assert getattr(card, key) == getattr(entry, key), key


def test_every_bundled_file_is_listed():
    lists = ("Models.json", "LungModels.json")
    listed = {model["bundled_file"] for name in lists for model in load_json(name)["models"]}
    assert {f"Models/{path.name}" for path in (resources_folder() / "Models").glob("*.safetensors")} <= listed


BROKEN = [
    ("not JSON", "{"),
    ("no models", "{}"),
    ("a key missing", '{"models": [{"id": "a"}]}'),
    ("not an object", "[]"),
]


@pytest.mark.parametrize("text", [text for _, text in BROKEN], ids=[name for name, _ in BROKEN])
def test_a_damaged_list_is_said(tmp_path, text):
    (tmp_path / "Models.json").write_text(text)
    with pytest.raises(ModelError, match="missing or damaged"):
        ModelRegistry(tmp_path, catalog=tmp_path / "Models.json")


def test_resources_hold_the_schema_beside_the_list():
    assert resource("Models.schema.json").is_file()


# --- looking ----------------------------------------------------------------------------------------------------------


def test_the_list_says_what_is_here(registry):
    assert states(registry) == {"base": "bundled", "hashed": "available", "unhashed": "available", "by-hand": "manual"}
    assert [entry.id for entry in registry.list() if entry.is_default] == ["base"]
    assert not registry.folder.exists(), "looking must not make the folder"
    json.dumps([entry.to_json() for entry in registry.list()])


def test_an_unknown_id_names_the_nearest(registry):
    with pytest.raises(ModelError, match=r"no model 'hashd'\. Did you mean hashed or unhashed\?.*models list"):
        registry.entry("hashd")
    with pytest.raises(ModelError, match="Did you mean base"):
        registry.path("BASE")
    with pytest.raises(ModelError, match=r"^There is no model 'zzz'\. `covid-lesion-seg models list` shows all\.$"):
        registry.path("zzz")


def test_a_path_is_taken_as_it_is(registry, a_file, monkeypatch):
    assert registry.path(a_file) == a_file and registry.path(str(a_file)) == a_file
    monkeypatch.chdir(a_file.parent)
    assert registry.path(a_file.name) == Path(a_file.name)
    Path("base").write_bytes(b"a file with a model's id for a name")
    assert registry.path("base").name == "base.safetensors"


@pytest.mark.parametrize("name", ["there/is.none", "none.pt", "none.safetensors"])
def test_a_file_that_is_not_there_is_said(registry, name):
    with pytest.raises(ModelError, match="There is no model file"):
        registry.path(name)


def test_what_is_not_installed_says_how_to_get_it(registry):
    with pytest.raises(ModelError, match=r"hashed is not installed.*models download hashed"):
        registry.path("hashed")
    with pytest.raises(ModelError, match=r"by-hand is not installed.*models import .* --id by-hand"):
        registry.path("by-hand")


def test_a_bundled_file_that_was_changed_or_lost_is_not_used(registry, a_list):
    path = registry.path("base")
    path.write_bytes(b"coplenet tampered")
    with pytest.raises(ModelError, match=r"changed or damaged and is not used.*Install the extension again"):
        registry.path("base")
    path.unlink()
    with pytest.raises(ModelError, match=r"could not be read|no model file"):
        registry.verify("base")
    again = ModelRegistry(registry.folder, catalog=a_list)
    assert states(again)["base"] == "damaged"
    with pytest.raises(ModelError, match="missing; install the extension again"):
        again.path("base")
