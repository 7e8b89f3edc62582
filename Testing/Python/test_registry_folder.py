"""The user's folder of models: trained ones, the default, removing, damage, where it lies, many at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY
from registry_fixtures import MINE, WEIGHTS, check_by_first_word, in_folder, states

from COVIDLesionSegLib.errors import ModelError, OutputError
from COVIDLesionSegLib.models.card import ModelCard
from COVIDLesionSegLib.models.catalog import default_folder
from COVIDLesionSegLib.models.registry import ModelRegistry

# --- trained models, default, remove ----------------------------------------------------------------------------------


def test_a_trained_model_is_registered_under_its_cards_id(registry, a_file):
    card = ModelCard(id="tuned", name="Tuned", network="coplenet", license="CC-BY-NC-4.0", license_notice="Mind it.")
    entry = registry.register(a_file, card)
    assert (entry.id, entry.origin, entry.license, entry.license_notice) == (
        "tuned",
        "trained",
        "CC-BY-NC-4.0",
        "Mind it.",
    )
    assert registry.path("tuned").read_bytes() == MINE
    with pytest.raises(ModelError, match="belongs to another"):
        registry.register(a_file, replace(card, id="by-hand"))


def test_a_default_is_chosen_kept_and_given_up_with_its_model(registry, a_file, a_list):
    registry.import_file(a_file, "mine")
    registry.set_default("mine")
    again = ModelRegistry(registry.folder, catalog=a_list)
    assert again.default() == "mine" and [entry.id for entry in again.list() if entry.is_default] == ["mine"]
    registry.remove("mine")
    assert again.default() == "base"


def test_a_default_that_vanished_is_said_not_replaced(registry, a_file):
    registry.import_file(a_file, "mine")
    registry.set_default("mine")
    registry.path("mine").unlink()
    with pytest.raises(ModelError, match=r"mine is not installed any more.*models default base"):
        registry.default()
    registry.set_default("base")
    assert registry.default() == "base"


def test_only_a_usable_model_becomes_the_default(registry):
    with pytest.raises(ModelError, match="not installed"):
        registry.set_default("hashed")
    with pytest.raises(ModelError, match="There is no model"):
        registry.set_default("nothing")


def test_damaged_settings_are_said(registry):
    registry.folder.mkdir()
    (registry.folder / "_settings.json").write_text("{")
    with pytest.raises(ModelError, match=r"_settings\.json is damaged.*Delete it"):
        registry.default()


def test_remove_takes_only_what_belongs_to_the_model(registry, a_file):
    registry.import_file(a_file, "mine")
    registry.import_file(a_file, "mine-2")
    (registry.folder / "notes.txt").write_text("the user's own")
    registry.remove("mine")
    assert in_folder(registry) == ["mine-2.json", "mine-2.pt", "notes.txt"]
    assert "mine" not in states(registry)


def test_remove_refuses_what_is_bundled_or_not_here(registry):
    with pytest.raises(ModelError, match="comes with the extension and can't be removed"):
        registry.remove("base")
    with pytest.raises(ModelError, match="nothing to remove"):
        registry.remove("hashed")
    assert registry.path("base").is_file()


def test_remove_never_follows_a_record_or_link_out_of_the_folder(registry, a_file, tmp_path):
    precious = tmp_path / "precious.pt"
    precious.write_bytes(b"not yours")
    registry.import_file(a_file, "mine")
    record = json.loads((registry.folder / "mine.json").read_text())
    (registry.folder / "mine.json").write_text(json.dumps({**record, "file": "../precious.pt"}))
    (registry.folder / "mine.pt").unlink()
    (registry.folder / "mine.pt").symlink_to(precious)
    assert states(registry)["mine"] == "damaged"
    registry.remove("mine")
    assert precious.read_bytes() == b"not yours" and in_folder(registry) == []


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"file": "mine.pt"}', '{"id": "other", "file": "mine.pt"}'])
def test_a_damaged_record_does_not_hide_the_other_models(registry, a_file, record):
    registry.import_file(a_file, "mine")
    (registry.folder / "mine.json").write_text(record)
    assert states(registry)["mine"] == "damaged" and states(registry)["base"] == "bundled"
    with pytest.raises(ModelError, match="mine can't be used: its record"):
        registry.path("mine")
    registry.remove("mine")
    assert in_folder(registry) == []


def test_a_model_whose_file_is_gone_can_be_had_again(registry, a_file):
    registry.import_file(a_file, "by-hand")
    registry.path("by-hand").unlink()
    assert states(registry)["by-hand"] == "damaged"
    with pytest.raises(ModelError, match=r"its file by-hand\.pt is gone\. Open the page"):
        registry.path("by-hand")
    assert registry.import_file(a_file, "by-hand").status == "installed"


def test_a_damaged_copy_is_mended_by_importing_the_same_file_again(registry, a_file):
    registry.import_file(a_file, "mine")
    registry.path("mine").write_bytes(b"damaged")
    registry.import_file(a_file, "mine")
    assert registry.path("mine").read_bytes() == MINE


# --- folders and neighbors --------------------------------------------------------------------------------------------


def test_the_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("COVIDLESIONSEG_MODELS", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"


FOLDERS = [
    ("linux", {"XDG_DATA_HOME": "/data"}, "/data/covid-lesion-seg/models"),
    ("linux", {"XDG_DATA_HOME": "relative"}, "/home/me/.local/share/covid-lesion-seg/models"),
    ("darwin", {}, "/home/me/Library/Application Support/covid-lesion-seg/models"),
    ("win32", {"LOCALAPPDATA": "/local"}, "/local/covid-lesion-seg/models"),
    ("win32", {}, "/home/me/AppData/Local/covid-lesion-seg/models"),
]


@pytest.mark.parametrize(("system", "environment", "expected"), FOLDERS)
def test_the_folder_is_where_the_system_keeps_a_programs_data(monkeypatch, system, environment, expected):
    for name in ("COVIDLESIONSEG_MODELS", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("COVIDLesionSegLib.models.catalog.sys.platform", system)
    assert default_folder() == Path(expected)


def test_a_folder_that_can_not_be_made_is_an_output_error(tmp_path, a_list, a_file):
    (tmp_path / "in-the-way").write_text("a file")
    registry = ModelRegistry(tmp_path / "in-the-way" / "models", catalog=a_list, check=check_by_first_word)
    with pytest.raises(OutputError, match="COVIDLESIONSEG_MODELS"):
        registry.import_file(a_file)


def test_many_at_once_leave_one_whole_model(tmp_path, a_list):
    """Twelve threads with registries of their own import two different files under one id."""
    sources = []
    for number, content in enumerate((WEIGHTS + b"1", WEIGHTS + b"2")):
        sources.append(tmp_path / f"{number}.pt")
        sources[-1].write_bytes(content)
    outcomes = []

    def take_in(source):
        registry = ModelRegistry(tmp_path / "models", catalog=a_list, check=check_by_first_word)
        try:
            outcomes.append(registry.import_file(source, "shared").sha256)
        except ModelError as error:
            assert "belongs to another" in str(error)

    threads = [threading.Thread(target=take_in, args=(sources[number % 2],)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(outcomes)) == 1 and len(outcomes) == 6
    registry = ModelRegistry(tmp_path / "models", catalog=a_list)
    assert registry.verify("shared").sha256 == outcomes[0] and in_folder(registry) == ["shared.json", "shared.pt"]


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from COVIDLesionSegLib.models.registry import ModelRegistry
registry = ModelRegistry(sys.argv[1])
print(len(registry.list()), registry.default())
try:
    registry.import_file(sys.argv[2])
except Exception as error:
    print(type(error).__name__, error)
"""


def test_without_pytorch_everything_works_but_the_check(tmp_path, a_file):
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "models"), str(a_file)]
    done = subprocess.run(command, cwd=REPOSITORY / "COVIDLesionSeg", capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.endswith("coplenet-ctseg")
    assert second.startswith("ModelError To check a model file PyTorch is needed")
    assert not (tmp_path / "models").exists()
