"""The command `covid-lesion-seg models`, on a folder of its own and a server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from file_server import FileServer, file

from COVIDLesionSegLib import cli
from COVIDLesionSegLib.errors import ModelError
from COVIDLesionSegLib.models import registry
from COVIDLesionSegLib.models.card import ModelCard

WEIGHTS = b"coplenet " + bytes(range(256)) * 100
LOAD_CARD = registry.load_card
MIRRORED = "/assets/Clara/monai/research/coplenet_pretrained_monai_dict.pt"


@pytest.fixture(autouse=True)
def a_folder_of_its_own(tmp_path, monkeypatch):
    """The models' folder of the test; a file counts as a model when it begins with a network's name."""

    def check(path):
        network = path.read_bytes().partition(b" ")[0].decode(errors="replace")
        if network != "coplenet":
            raise ModelError(f"{path.name} is not a model file.")
        return ModelCard(id="any", name="Any", network=network)

    monkeypatch.setattr(cli, "COMMANDS", {"models": "models"})
    monkeypatch.setattr(registry, "load_card", check)
    monkeypatch.setenv("COVIDLESIONSEG_MODELS", str(tmp_path / "models"))
    for name in ("COVIDLESIONSEG_MIRROR", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "models"


@pytest.fixture
def models(capsys):
    """Runs the command; returns its exit status, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(["models", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def a_file(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(WEIGHTS)
    return str(path)


def test_the_list_is_a_table_of_80_columns(models, a_file, a_folder_of_its_own):
    models("import", a_file, "--id", "a-rather-long-id-that-somebody-chose-for-a-model")
    status, out, err = models("list")
    assert status == 0 and err == ""
    lines = out.partition("\n\n")[0].splitlines()
    assert max(map(len, lines)) <= 80, out
    assert lines[0].split() == ["ID", "NETWORK", "STATUS", "SIZE", "LICENSE"]
    (baseline,) = [line for line in lines if "coplenet-ctseg" in line]
    assert baseline.startswith("*") and "bundled" in baseline and "research only" in baseline
    (by_hand,) = [line for line in lines if "coplenet-uestc " in line]
    assert "manual" in by_hand and "none stated" in by_hand
    assert "  a-rather-long-id-that-somebody-chose-for-a-model" in lines
    assert str(a_folder_of_its_own) in out


def test_the_list_as_json_holds_everything(models):
    status, out, _ = models("list", "--json")
    entries = {entry["id"]: entry for entry in json.loads(out)}
    assert status == 0
    assert entries["coplenet-ctseg"]["is_default"] is True
    assert entries["coplenet-uestc"]["status"] == "manual" and entries["coplenet-uestc"]["license_notice"]


def test_a_download_prints_the_notice_first_and_installs(models, a_folder_of_its_own):
    with FileServer(file(WEIGHTS)) as server:
        status, out, _ = models("download", "coplenet-uestc-monai", "--mirror", server.base)
    assert status == 0 and server.requests[0][0] == MIRRORED
    assert out.index("no license is stated") < out.index("Installed coplenet-uestc-monai")
    assert hashlib.sha256(WEIGHTS).hexdigest() in out
    assert (a_folder_of_its_own / "coplenet-uestc-monai.pt").read_bytes() == WEIGHTS
    status, out, _ = models("download", "coplenet-uestc-monai")
    assert status == 0 and "is installed already" in out


def test_the_notice_comes_even_when_the_download_fails(models, a_folder_of_its_own):
    with FileServer(file(b"<html>log in</html>", **{"Content-Type": "text/html"})) as server:
        status, out, err = models("download", "coplenet-uestc-monai", "--mirror", server.base)
    assert status == 2 and "no license is stated" in out
    assert err.startswith("error: ") and err.count("\n") == 1 and "models import" in err
    assert not list(a_folder_of_its_own.rglob("*.pt*"))


def test_a_model_only_for_browsers_says_what_to_do(models):
    status, _, err = models("download", "coplenet-uestc")
    assert status == 2 and "https://drive.google.com/" in err and "--id coplenet-uestc" in err


def test_import_verify_default_and_remove(models, a_file):
    status, out, _ = models("import", a_file, "--id", "mine")
    assert status == 0 and "Installed as mine" in out and "judge" in out
    status, out, _ = models("verify", "mine")
    assert status == 0 and out == f"mine: right, SHA-256 {hashlib.sha256(WEIGHTS).hexdigest()}\n"
    assert models("default", "mine")[:2] == (0, "mine\n")
    assert models("default")[:2] == (0, "mine\n")
    status, out, _ = models("remove", "mine")
    assert status == 0 and out == "Removed mine.\nThe default model is coplenet-ctseg again.\n"
    assert "mine" not in models("list")[1].split()


def test_verify_goes_through_all_and_says_which_is_wrong(models, a_file, a_folder_of_its_own):
    models("import", a_file, "--id", "good")
    models("import", a_file, "--id", "bad")
    (a_folder_of_its_own / "bad.pt").write_bytes(b"damaged")
    status, out, err = models("verify")
    assert status == 3 and "good: right" in out and "bad: WRONG. bad.pt has the SHA-256" in out
    assert err == "1 of the models can't be used.\n"
    status, _, err = models("verify", "bad")
    assert status == 2 and "models remove bad" in err


RUNS_CODE = """
import pickle, sys
class Evil:
    def __reduce__(self):
        return (open, (sys.argv[1], "w"))
pickle.dump({"model_state_dict": Evil()}, open(sys.argv[2], "wb"))
"""


def test_the_real_check_takes_a_model_and_refuses_the_rest(models, monkeypatch, shared, tmp_path, a_folder_of_its_own):
    """With PyTorch: the authors' form is taken in; a file cut short and a pickle that runs code are not."""
    monkeypatch.setattr(registry, "load_card", LOAD_CARD)
    weights = shared("weights/coplenet_baseline.pt")
    status, out, _ = models("import", str(weights), "--id", "coplenet-uestc")
    assert status == 0 and models("verify", "coplenet-uestc")[0] == 0
    assert "no license is stated" in out, "a listed id brings its notice"
    status, _, err = models("import", str(weights), "--id", "caresunet-semiseg")
    assert status == 2 and "is a coplenet model; caresunet-semiseg is a caresunet one" in err
    cut = tmp_path / "cut.pt"
    cut.write_bytes(weights.read_bytes()[:1_000_000])
    evil, trace = tmp_path / "evil.pt", tmp_path / "trace"
    subprocess.run([sys.executable, "-c", RUNS_CODE, str(trace), str(evil)], check=True)
    for file_ in (cut, evil):
        status, _, err = models("import", str(file_))
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert not trace.exists()
    assert sorted(path.name for path in a_folder_of_its_own.iterdir()) == ["coplenet-uestc.json", "coplenet-uestc.pt"]


ERRORS = [
    (("verify", "coplenet-ctsg"), "Did you mean coplenet-ctseg"),
    (("download", "nothing"), "There is no model 'nothing'"),
    (("remove", "coplenet-uestc"), "nothing to remove"),
    (("default", "coplenet-uestc"), "is not installed"),
    (("import", "no-such-file.pt"), "There is no model file no-such-file.pt"),
    (("download", "coplenet-uestc-monai", "--mirror", "nonsense"), "The mirror 'nonsense' is not an address"),
]


@pytest.mark.parametrize(("arguments", "words"), ERRORS, ids=[" ".join(arguments[:2]) for arguments, _ in ERRORS])
def test_an_error_is_one_line_and_status_2(models, arguments, words):
    status, _, err = models(*arguments)
    assert status == 2 and words in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("destroy",), ("download",)], ids=["nothing", "unknown", "no id"])
def test_wrong_usage_is_status_2(models, arguments):
    with pytest.raises(SystemExit) as caught:
        models(*arguments)
    assert caught.value.code == 2


ALONE = """
import socket, sys
sys.modules["torch"] = None
def refuse(*_, **__):
    raise AssertionError("the network was used")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from COVIDLesionSegLib import cli
cli.COMMANDS = {"models": "models"}
for action in ("list", "verify", "default"):
    assert cli.main(["models", action]) == 0, action
"""


def test_only_a_download_uses_the_network_and_pytorch_is_not_needed(tmp_path):
    environment = {**os.environ, "COVIDLESIONSEG_MODELS": str(tmp_path / "models")}
    command = [sys.executable, "-c", ALONE]
    subprocess.run(command, cwd=REPOSITORY / "COVIDLesionSeg", env=environment, check=True, capture_output=True)
    assert not (tmp_path / "models").exists()
