"""The host as the launcher that ctest starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

MODULE = """
import slicer
from slicer.ScriptedLoadableModule import *
class Tiny(ScriptedLoadableModule):
    pass
class TinyWidget(ScriptedLoadableModuleWidget):
    pass
"""
PASSING = """
import unittest
import slicer
class TinyTest(unittest.TestCase):
    def test_the_module_is_there(self):
        self.assertTrue(slicer.modules.tiny.path.endswith("Tiny.py"))
"""
FAILING = "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.fail('on purpose')\n"


@pytest.fixture
def launch(slicer_gui, tmp_path):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "Tiny.py").write_text(MODULE)
    (tmp_path / "script.py").write_text("import sys\nprint(sys.argv[1:])\nsys.exit(3)\n")

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "Testing")}
        command = [sys.executable, "-m", "host", "--no-splash", "--testing", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(("tests", "status"), [(PASSING, 0), (FAILING, 1), ("", 1)], ids=["pass", "fail", "none"])
def test_unit_tests_decide_the_exit_status(launch, tmp_path, tests, status):
    (tmp_path / "TinyTest.py").write_text(tests)
    code = f"import slicer.testing\\; slicer.testing.runUnitTest(['{tmp_path}'], 'TinyTest')"
    done = launch("--additional-module-paths", str(tmp_path / "modules"), "--python-code", code)
    assert done.returncode == status, done.stdout + done.stderr


def test_a_script_gets_its_arguments(launch, tmp_path):
    done = launch("--python-script", str(tmp_path / "script.py"), "--temp", "x")
    assert (done.returncode, done.stdout) == (3, "['--temp', 'x']\n"), done.stderr


def test_what_is_not_understood_is_an_error(launch):
    done = launch("volume.nrrd")
    assert done.returncode != 0
    assert "volume.nrrd" in done.stderr
