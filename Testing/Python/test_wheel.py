"""The wheel carries everything: installed in an empty environment, it segments with the bundled model."""

from __future__ import annotations

import email
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement

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


def metadata_of(wheel):
    """What the wheel says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_says_what_an_index_of_packages_shows(a_wheel):
    found = metadata_of(a_wheel)
    assert found["Description-Content-Type"] == "text/markdown"
    description = found.get_payload(decode=True).decode("utf-8")
    assert description.startswith("# COVIDLesionSeg")
    targets = re.findall(r"\]\(([^)]+)\)", description)
    home = "https://github.com/COVIDLesionSeg/SlicerCOVIDLesionSeg"
    assert [target for target in targets if not target.startswith("https://")] == []
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", description)
    assert pictures and all(re.fullmatch(rf"{home}/raw/main/Resources/\S+\.png", picture) for picture in pictures)
    for target in targets:
        if target.startswith(home):
            assert (REPOSITORY / re.sub(rf"^{home}/(raw|blob)/main/|#.*", "", target)).exists(), target
    assert f"Homepage, {home}" in found.get_all("Project-URL")
    assert found["Requires-Python"] == ">=3.11"
    weights = {path.name for path in (REPOSITORY / "Resources/Models").glob("*.LICENSE.txt")}
    assert {name.rpartition("/")[2] for name in found.get_all("License-File")} == {"LICENSE", *weights}
    assert found["License-Expression"] == "Apache-2.0 AND LicenseRef-Bundled-Weights"


def test_the_wheel_the_index_and_the_citation_say_the_same(a_wheel):
    found = metadata_of(a_wheel)
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == found["Version"]
    keywords = json.loads(re.search(r"^keywords: (\[.*\])$", citation, re.MULTILINE)[1])
    assert sorted(keywords) == sorted(found["Keywords"].split(","))
    description = (REPOSITORY / "COVIDLesionSeg.s4ext").read_text(encoding="utf-8")
    homepage = re.search(r"^homepage (\S+)$", description, re.MULTILINE)[1]
    status = re.search(r"^status (\S+)$", description, re.MULTILINE)[1]
    assert f"Homepage, {homepage}" in found.get_all("Project-URL")
    assert any(re.fullmatch(rf"Development Status :: \d - {status}", text) for text in found.get_all("Classifier"))


@pytest.fixture(scope="module")
def licenses():
    """The script that follows the requirements of packages."""
    path = REPOSITORY / "Testing" / "tools" / "licenses.py"
    specification = importlib.util.spec_from_file_location("licenses", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def link_requirements(licenses, wheel, environment):
    """Link what a wheel's requirements lead to, and nothing else that is installed here, into an empty environment."""
    stated = metadata_of(wheel).get_all("Requires-Dist")
    found, absent = licenses.needed(map(Requirement, stated), set())
    assert found and not absent
    (folder,) = environment.glob("Lib/site-packages") if os.name == "nt" else environment.glob("lib/*/site-packages")
    for package in found:
        distribution = metadata.distribution(package)
        tops = {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}
        for top in tops:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))


def test_installed_in_an_environment_of_its_requirements_alone_it_segments(a_wheel, licenses, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    link_requirements(licenses, a_wheel, tmp_path / "venv")
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COVIDLESIONSEG"))}
    pip = [sys.executable, "-m", "pip", "--python", binaries / "python", "install", "-q", "--no-deps"]
    done = subprocess.run([*pip, a_wheel], capture_output=True, text=True, env=environment)
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
    absent = subprocess.run([binaries / "python", "-c", "import pydicom"], capture_output=True, env=environment)
    assert absent.returncode == 1


def test_the_page_of_dependencies_names_each_requirement_in_the_version_that_is_tested(licenses):
    page = licenses.PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\S+) \| ([^+ ]+)\S* \| [^|]+ \| `[0-9a-f]{64}` \|$", page, re.MULTILINE))
    named = set(rows) | set(
        re.findall(r"[\w-]+", " ".join(re.findall(r"^Not installed .*: (.*)\.$", page, re.MULTILINE)))
    )
    wanted = {requirement.name.lower() for group in licenses.declared().values() for requirement in group}
    assert wanted - {"covid-lesion-seg"} <= named
    pinned = re.findall(r"^([\w-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert {name.lower(): version for name, version in pinned if name.lower() in rows}.items() <= rows.items()
