"""The list of models and the user's folder of models, without PyTorch: the check of a file is stood in for."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from conftest import REPOSITORY
from file_server import FileServer, breaking_off, file

from COVIDLesionSegLib.errors import CancelledError, DownloadError, ModelError, OutputError
from COVIDLesionSegLib.files import sha256_file
from COVIDLesionSegLib.models.card import ModelCard, read_card
from COVIDLesionSegLib.models.catalog import check_id, default_folder, id_from_name
from COVIDLesionSegLib.models.registry import ModelRegistry
from COVIDLesionSegLib.resources import load_json, resource, resources_folder

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


# --- the list that ships ----------------------------------------------------------------------------------------------


def test_the_list_that_ships_follows_its_schema():
    schema = load_json("Models.schema.json")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(load_json("Models.json"), schema)


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
    listed = {model["bundled_file"] for model in load_json("Models.json")["models"]}
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


# --- import -----------------------------------------------------------------------------------------------------------


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


# --- download ---------------------------------------------------------------------------------------------------------


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


def test_resources_hold_the_schema_beside_the_list():
    assert resource("Models.schema.json").is_file()
