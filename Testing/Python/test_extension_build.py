"""The extension is configured, built and installed by cmake, and ctest runs the tests that run inside Slicer.

There is no Slicer here: ``Testing/stub_slicer`` has macros of the same names, and the launcher is the host.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

MODULES = Path("lib/Slicer-5.12/qt-scripted-modules")
STUB = REPOSITORY / "Testing" / "stub_slicer"
IN_SLICER = ["COVIDLesionSeg", *sorted(path.stem for path in (REPOSITORY / "Testing/Python").glob("COVID*Test.py"))]


def tool(name):
    """A program of the environment that runs the tests, or of the system."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    return beside or shutil.which(name)


@pytest.fixture(scope="module")
def cmake():
    """Function that runs cmake or ctest and returns what it said; skips where there is none."""
    if tool("cmake") is None or not (tool("ninja") or tool("make")):
        pytest.skip("cmake, or ninja and make, is not installed (pip install .[test])")

    def run(program, *words, status=0, **variables):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
        done = subprocess.run([tool(program), *map(str, words)], capture_output=True, text=True, env=environment)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def configured(cmake, source, build, **options):
    ninja = tool("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else ["-G", "Unix Makefiles"]
    options = {
        "Slicer_DIR": STUB,
        "STUB_SLICER_PYTHON": sys.executable,
        "CMAKE_TOOLCHAIN_FILE": STUB / "no_compiler.cmake",
    } | options
    return cmake("cmake", "-S", source, "-B", build, *generator, *(f"-D{k}={v}" for k, v in options.items()))


@pytest.fixture(scope="module")
def trees(cmake, tmp_path_factory):
    """Where the extension was built and installed."""
    folder = tmp_path_factory.mktemp("extension")
    configured(cmake, REPOSITORY, folder / "build")
    cmake("cmake", "--build", folder / "build")
    cmake("cmake", "--install", folder / "build", "--prefix", folder / "installed")
    return folder / "build", folder / "installed"


def relative_files(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_everything_is_installed_and_nothing_else(trees):
    library = relative_files(REPOSITORY / "COVIDLesionSeg") - {"CMakeLists.txt"}
    resources = {f"Resources/{name}" for name in relative_files(REPOSITORY / "Resources")}
    wanted = library | {name for name in resources if not name.startswith("Resources/Screenshots/")}
    for tree in trees:
        found = relative_files(tree / MODULES)
        assert found == wanted, f"missing {sorted(wanted - found)}, too many {sorted(found - wanted)}"
    # Slicer takes every .py at the top for a module
    assert [path.name for path in (trees[1] / MODULES).glob("*.py")] == ["COVIDLesionSeg.py"]
    weights = "Resources/Models/coplenet-ctseg.safetensors"
    assert (trees[1] / MODULES / weights).stat().st_size == (REPOSITORY / weights).stat().st_size


def test_the_installed_tree_finds_its_resources_and_runs_alone(trees, tmp_path):
    """Moved elsewhere, as Slicer's extensions manager does, and without the repository."""
    moved = tmp_path / "another place"
    shutil.copytree(trees[1] / MODULES, moved)
    code = (
        "import COVIDLesionSegLib\n"
        "from COVIDLesionSegLib.resources import resource, resources_folder\n"
        "from COVIDLesionSegLib.models import ModelRegistry\n"
        "print(COVIDLesionSegLib.__file__)\n"
        "print(resources_folder())\n"
        "print(ModelRegistry().path('coplenet-ctseg'))\n"
        "print(resource('Icons/COVIDLesionSeg.png').is_file())\n"
    )
    # -S: without site-packages the library of the repository can't be found
    numpy = Path(__import__("numpy").__file__).parent.parent
    script = f"import sys; sys.path[:0] = [{str(moved)!r}]; sys.path.append({str(numpy)!r})\n{code}"
    done = subprocess.run([sys.executable, "-S", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library, resources, weights, icon = done.stdout.splitlines()
    assert Path(library) == moved / "COVIDLesionSegLib" / "__init__.py"
    assert Path(resources) == moved / "Resources"
    assert Path(weights) == moved / "Resources" / "Models" / "coplenet-ctseg.safetensors"
    assert icon == "True"


def test_the_description_that_the_build_writes_is_the_one_in_the_repository(trees):
    built = dict(line.split(" ", 1) for line in (trees[0] / "COVIDLesionSeg.s4ext").read_text().splitlines())
    assert built["depends"] == "PyTorch"
    text = (REPOSITORY / "COVIDLesionSeg.s4ext").read_text()
    written = dict(line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    assert built.items() <= written.items()


@pytest.mark.parametrize("name", IN_SLICER)
def test_ctest_runs_what_runs_inside_slicer(cmake, trees, slicer_gui, name, tmp_path):
    said = cmake(
        "ctest",
        "--test-dir",
        trees[0],
        "--no-tests=error",
        "-V",
        "-R",
        f"^py_{name}$",
        COVIDLESIONSEG_MODELS=str(tmp_path),
    )
    assert re.search(r"100% tests passed.* out of 1\n", said)
    # not an empty success: unittest says how many it ran, and none was left out
    assert int(re.search(r"Ran (\d+) tests? in", said)[1]) > 0
    assert "skipped" not in said


def test_every_file_for_slicer_is_listed(trees, cmake):
    listed = re.findall(r"Test\s+#\d+: py_(\w+)", cmake("ctest", "--test-dir", trees[0], "-N"))
    assert sorted(listed) == sorted(IN_SLICER)


def test_a_file_without_tests_is_a_failure(cmake, slicer_gui, tmp_path):
    (tmp_path / "EmptyTest.py").write_text("import unittest\n")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16.3)\nproject(Empty)\nfind_package(Slicer REQUIRED)\n"
        "include(${Slicer_USE_FILE})\nslicer_add_python_unittest(SCRIPT EmptyTest.py)\n"
    )
    configured(cmake, tmp_path, tmp_path / "build")
    assert "EmptyTest has no tests" in cmake("ctest", "--test-dir", tmp_path / "build", "-V", status=8)


def test_an_older_slicer_is_refused(cmake, tmp_path):
    for name in ("Extension.cmake", "UseSlicer.cmake", "SlicerConfig.cmake"):
        (tmp_path / name).write_text((STUB / name).read_text().replace("Slicer_VERSION 5.12", "Slicer_VERSION 5.10"))
    with pytest.raises(AssertionError, match=r"needs Slicer 5\.12 or newer"):
        configured(cmake, REPOSITORY, tmp_path / "build", Slicer_DIR=tmp_path)
