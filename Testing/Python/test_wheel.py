"""The wheel carries everything: installed in an empty environment, it segments with the bundled model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import pytest
from conftest import REPOSITORY

MAKE_CT = """
from COVIDLesionSegLib.imaging import write_volume
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest
chest = synthetic_chest(size=(24, 96, 128), spacing=(12.0, 3.0, 3.0))
write_volume(chest.volume, "ct.nii.gz")
write_volume(chest.lungs, "lungs.nii.gz", chest.volume.geometry)
"""


@pytest.fixture(scope="module")
def a_wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_the_resources_and_no_tests(a_wheel):
    names = zipfile.ZipFile(a_wheel).namelist()
    shipped = {
        path.relative_to(REPOSITORY / "Resources").as_posix()
        for path in (REPOSITORY / "Resources").rglob("*")
        if path.is_file()
    }
    assert {f"COVIDLesionSegLib/Resources/{name}" for name in shipped} <= set(names)
    assert not [name for name in names if "test" in name.lower()]


def test_installed_in_an_empty_environment_it_segments(a_wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COVIDLESIONSEG"))}
    install = [binaries / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run(
        [*install, "-c", REPOSITORY / "constraints.txt", a_wheel], capture_output=True, text=True, env=environment
    )
    if done.returncode and ("connection" in done.stderr.lower() or "No matching distribution" in done.stderr):
        pytest.skip("no package registry can be reached to fill an empty environment")
    assert done.returncode == 0, done.stderr

    def run(*words):
        found = subprocess.run(list(words), cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert found.returncode == 0, found.stderr
        return found.stdout

    run(binaries / "python", "-c", MAKE_CT)
    words = ["segment", "ct.nii.gz", "-o", "out", "--lungs", "lungs.nii.gz", "--json", "--quiet"]
    result = json.loads(run(binaries / "covid-lesion-seg", *words))
    assert result["lesion_ml"] > 0
    assert (tmp_path / "out" / "ct_lesions.nii.gz").is_file()
    assert "bundled" in run(binaries / "covid-lesion-seg", "models", "list")
    assert run(binaries / "python", "-m", "COVIDLesionSegLib", "--version").startswith("covid-lesion-seg")
