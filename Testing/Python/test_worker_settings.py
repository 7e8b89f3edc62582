"""Settings of the worker, and the command and the environment that come of them."""

from __future__ import annotations

import pytest

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.worker import Client, WorkerSettings
from COVIDLesionSegLib.worker.process import child_environment, command_line, split_prefix

pytestmark = pytest.mark.usefixtures("nothing_lies_about_afterwards")


@pytest.mark.parametrize(
    "wrong",
    [
        {"idle_seconds": 0},
        {"silence_seconds": float("inf")},
        {"start_seconds": "60"},
        {"cancel_seconds": True},
        {"transport": "carrier pigeon"},
        {"prefix": "ssh gpu-box"},
        {"prefix": ("ssh", "x"), "transport": "file"},
    ],
)
def test_settings_that_are_not_allowed(wrong):
    with pytest.raises(InputError):
        WorkerSettings(**wrong)


def test_a_kind_that_does_not_exist():
    with pytest.raises(InputError, match="lesions or measurement"):
        Client(lambda *_: None, lambda *_: None, WorkerSettings(), "coffee")


@pytest.mark.parametrize(
    ("settings", "begin", "end"),
    [
        ({"python": "/usr/bin/python3.12"}, ["/usr/bin/python3.12", "-P"], ["--kind", "lesions"]),
        ({"python": "/opt/bin/covid-lesion-seg"}, ["/opt/bin/covid-lesion-seg", "worker"], ["--kind", "lesions"]),
        (
            {"prefix": ("ssh", "gpu")},
            ["ssh", "gpu", "python3", "-P", "-m", "COVIDLesionSegLib.worker"],
            ["--kind", "lesions"],
        ),
        ({"prefix": ("ssh", "gpu"), "python": "covid-lesion-seg"}, ["ssh", "gpu", "covid-lesion-seg", "worker"], []),
    ],
)
def test_the_command(settings, begin, end):
    found = command_line(WorkerSettings(**settings), ["--kind", "lesions"])
    assert found[: len(begin)] == begin and found[len(found) - len(end) :] == end


def test_the_library_is_found_without_putting_others_on_the_path(monkeypatch, tmp_path):
    from COVIDLesionSegLib.worker import process

    given = {"PYTHONPATH": "/mine", "HOME": "/home/me"}
    monkeypatch.setattr(process, "_PACKAGE", tmp_path / "source" / "COVIDLesionSegLib")
    found = child_environment(WorkerSettings(environment=given))
    assert found["PYTHONPATH"].split(":") == [str(tmp_path / "source"), "/mine"] and found["HOME"] == "/home/me"
    for shared in ("site-packages", "qt-scripted-modules"):
        monkeypatch.setattr(process, "_PACKAGE", tmp_path / shared / "COVIDLesionSegLib")
        assert child_environment(WorkerSettings(environment=given))["PYTHONPATH"] == "/mine"
        assert str(tmp_path / shared / "COVIDLesionSegLib" / "worker") in command_line(WorkerSettings(), [])[2]
    assert given == {"PYTHONPATH": "/mine", "HOME": "/home/me"}


def test_a_prefix_is_split_as_a_shell_would():
    assert split_prefix("ssh -i 'my key' gpu-box") == ("ssh", "-i", "my key", "gpu-box")
    with pytest.raises(InputError, match="prefix"):
        split_prefix("ssh 'gpu")
