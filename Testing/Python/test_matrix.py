"""The script that tries the oldest and newest allowed versions: its rows, what it installs, what it counts."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from conftest import REPOSITORY


@pytest.fixture(scope="module")
def matrix():
    specification = importlib.util.spec_from_file_location("matrix", REPOSITORY / "Testing" / "tools" / "matrix.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["matrix"] = module  # dataclasses look for their module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(matrix):
    return {row.name: row for row in matrix.rows({"3.11": "/py/3.11", "3.12": "/py/3.12"})}


def test_each_library_has_its_edges_and_each_python_a_row(matrix, rows):
    edges = {f"{library}-{edge}" for library in matrix.TOUCHING for edge in ("oldest", "newest")}
    assert set(rows) == edges | {"python-3.11", "python-3.12"}
    assert rows["python-3.12"].python == "/py/3.12"
    assert rows["torch-oldest"].python == "/py/3.11"
    for row in rows.values():
        assert row.tests
        assert all((matrix.TESTS / name).is_file() for name in row.tests)


def test_the_oldest_version_is_the_lower_bound_of_pyproject(matrix, rows):
    for library in set(matrix.TOUCHING) - {"slicer-core"}:
        oldest = rows[f"{library}-oldest"]
        requirement = matrix.requirements()[library]
        assert requirement.specifier.contains(oldest.version)
        assert f">={oldest.version}" in str(requirement.specifier)
        assert rows[f"{library}-newest"].requirement == library
    tested = matrix.requirements()["slicer-core"].specifier
    assert tested.contains(matrix.SLICER["oldest"].replace("*", "0"))
    assert not tested.contains(matrix.SLICER["newest"].replace("*", "0"))
    with pytest.raises(ValueError, match="no oldest version of types-tqdm"):
        matrix.lower_bound(matrix.Requirement("types-tqdm"))


def test_the_rows_own_packages_are_pinned_by_nothing_else(matrix, rows, tmp_path):
    row = rows["slicer-core-newest"]
    matrix.write_pins(tmp_path / "pins.txt", row.own)
    pins = (tmp_path / "pins.txt").read_text(encoding="utf-8").lower()
    assert "slicer-core==" not in pins and "vtk==" not in pins
    assert "numpy==" in pins and "simpleitk==" in pins
    _, install, project = matrix.install_commands(row, tmp_path / "env", tmp_path / "pins.txt")
    assert [word for word in install if word.startswith(("slicer-core", "vtk"))] == ["slicer-core==5.13.*"]
    assert install[install.index("-c") + 1] == str(tmp_path / "pins.txt")
    assert any(word.startswith("numpy>=") for word in install)
    assert project[-3:] == ["--no-deps", "-e", "."]
    assert "-c" not in matrix.install_commands(row, tmp_path / "env", None)[1]


REPORT = """<testsuites><testsuite>
<testcase classname="test_a" name="test_good"/>
<testcase classname="test_a" name="test_other"/>
<testcase classname="test_a" name="test_left"><skipped message="x"/></testcase>
<testcase classname="test_a" name="test_bad[a|b]"><failure message="x"/></testcase>
</testsuite></testsuites>"""


def test_a_report_becomes_a_line_of_the_table(matrix, rows, tmp_path):
    (tmp_path / "report.xml").write_text(REPORT, encoding="utf-8")
    outcome = matrix.Outcome(rows["numpy-oldest"], versions={"numpy": "1.26.0"}, seconds=3.4, loosened=True)
    matrix.count(outcome, tmp_path / "report.xml")
    assert (outcome.passed, outcome.failed, outcome.skipped, outcome.good) == (2, 1, 1, False)
    head, rule, line = matrix.table([outcome]).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == head.count("|") - 1 == rule.count("|") - 1
    assert cells[0] == "numpy-oldest (other versions from their ranges)"
    assert cells[1] == "1.26.0"
    assert cells[-5:] == ["2", "1", "1", "3", "test_a::test_bad[a/b]"]


def test_an_environment_in_which_nothing_passes_is_no_success(matrix, rows):
    row = rows["numpy-oldest"]
    assert not matrix.Outcome(row).good
    assert not matrix.Outcome(row, passed=3, trouble="ERROR: no matching distribution").good
    assert matrix.Outcome(row, passed=3).good


def test_a_dry_run_writes_nothing(matrix, tmp_path, capsys):
    words = [str(tmp_path), "--dry-run", "--over", "--only", "highdicom-oldest"]
    assert matrix.main(words) == 0
    shown = capsys.readouterr().out
    oldest = matrix.lower_bound(matrix.requirements()["highdicom"])
    assert f"highdicom=={oldest}" in shown and "--target" in shown and "test_dicom_seg.py" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_is_none_is_refused(matrix, tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        matrix.main([str(tmp_path), "--dry-run", "--over", "--only", "scipy-oldest"])
    assert status.value.code == 2
    assert "no row scipy-oldest; there are numpy-oldest" in capsys.readouterr().err


def test_a_python_that_does_not_run_is_left_out(matrix, tmp_path):
    assert matrix.interpreters([str(tmp_path / "python9")]) == {}
    (version,) = matrix.interpreters([sys.executable])
    assert version == f"{sys.version_info.major}.{sys.version_info.minor}"
