"""``run.py``: the virtual environment that its commands work in."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The script with a .venv in an empty folder; ``calls`` holds what it made and installed."""
    specification = importlib.util.spec_from_file_location("run", REPOSITORY / "run.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    script.VENV = tmp_path / ".venv"
    script.PYTHON = script.VENV / "python"
    script.calls, script.pip_runs = [], False

    def create(folder, with_pip, clear):
        assert with_pip and clear
        make_python(script)
        script.calls.append("venv")
        script.pip_runs = True

    def execute(command, **_):
        if not script.PYTHON.exists():
            raise FileNotFoundError(script.PYTHON)
        script.calls += ["install"] if "install" in command else []
        script.calls += [command[2:]] if "mkdocs" in command else []
        return SimpleNamespace(returncode=0 if script.pip_runs else 1)

    monkeypatch.setattr(script.venv, "create", create)
    monkeypatch.setattr(script.subprocess, "run", execute)
    return script


def make_python(script):
    script.VENV.mkdir(exist_ok=True)
    script.PYTHON.touch()


def test_the_environment_is_made_once(run):
    run.install("test")
    run.install("test")
    run.install("report")
    assert run.calls == ["venv", "install", "install"]


def test_an_environment_without_pip_is_made_anew(run):
    make_python(run)
    run.install("test")
    assert run.calls == ["venv", "install"]


def test_an_environment_whose_python_is_gone_is_made_anew(run):
    run.install("test")
    run.PYTHON.unlink()
    run.calls.clear()
    run.install("test")
    assert run.calls == ["venv", "install"]


def test_docs_builds_the_site_strictly(run):
    assert run.main(["docs", "--site-dir", "elsewhere"]) == 0
    assert run.calls == ["venv", "install", ["mkdocs", "build", "--strict", "--site-dir", "elsewhere"]]
