"""Run quick tests with the oldest and newest versions that pyproject.toml allows, and print a Markdown table.

    python Testing/tools/matrix.py FOLDER [--only ROW ...] [--python PATH ...] [--dry-run] [--over]

A row is a Python with everything as it was tested, or one library at the edge of its range and the rest as tested. Each
row gets a virtual environment in FOLDER, which goes when its tests have run (1 to 2 GB). Where the versions of
constraints.txt do not go together with the row's, pip chooses the others from pyproject.toml's ranges, and the table
says so. With --over, nothing but the row's library is installed, in front of the packages of the Python that runs this
script: a few seconds instead of minutes. Ends with 1 if a row failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = REPOSITORY / "Testing" / "Python"
PYTHONS = ("3.11", "3.12", "3.13")
# Test files that touch a library most for their time.
TOUCHING = {
    "numpy": ("test_codec.py", "test_geometry.py", "test_masks.py", "test_overlap.py", "test_surface.py"),
    "SimpleITK": ("test_dicom.py", "test_reading.py", "test_reading_labels.py", "test_writing.py"),
    "highdicom": ("test_dicom_seg.py", "test_dicom_seg_reading.py"),
    "torch": ("test_coplenet.py", "test_losses.py", "test_predictor.py", "test_saved_models.py"),
    "slicer-core": ("test_mrml_records.py", "test_mrml_segmentations.py", "test_mrml_volumes.py"),
}
# Slicer's numbers are two, the rest counts builds. Its newest is beyond the range on purpose: the next release.
SLICER = {"oldest": "5.12.*", "newest": "5.13.*"}
# What a library brings in a version of its own.
WITH_ITS_OWN = {"slicer-core": ("vtk",)}
# Extras of the tests that these test files do without.
NOT_NEEDED = {"mypy", "ruff", "scipy-stubs", "types-tqdm", "build", "cmake", "ninja", "hatchling", "monai"}


@dataclass(frozen=True)
class Row:
    """One environment and the tests that run in it.

    Attributes:
        name: of the row and of its folder.
        python: path of the interpreter.
        tests: names of test files.
        library: the one at the edge of its range; "" where a Python is tried.
        version: of that library, as after ``==``; "" for the newest.
    """

    name: str
    python: str
    tests: tuple[str, ...]
    library: str = ""
    version: str = ""

    @property
    def requirement(self) -> str:
        """The row's library for pip."""
        return f"{self.library}=={self.version}" if self.version else self.library

    @property
    def own(self) -> set[str]:
        """The packages whose version is the row's."""
        return {self.library, *WITH_ITS_OWN.get(self.library, ())}


@dataclass
class Outcome:
    """What came of a row: versions in the environment, counts of tests, and what went wrong first."""

    row: Row
    versions: dict[str, str] = field(default_factory=dict)
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    trouble: str = ""
    loosened: bool = False

    @property
    def good(self) -> bool:
        """Whether tests ran and none failed."""
        return not self.trouble and not self.failed and self.passed > 0


def requirements() -> dict[str, Requirement]:
    """What the library and these tests need, by name as pyproject.toml writes it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *extras["dicom"], *extras["report"]]]
    wanted += [Requirement(text) for text in extras["test"] if not text.startswith("covid-lesion-seg")]
    return {each.name: each for each in wanted if each.name not in NOT_NEEDED}


def lower_bound(requirement: Requirement) -> str:
    """The oldest version that a requirement allows.

    Raises:
        ValueError: it names none.
    """
    for part in requirement.specifier:
        if part.operator == ">=":
            return part.version
    raise ValueError(f"pyproject.toml names no oldest version of {requirement.name}.")


def interpreters(paths: Iterable[str]) -> dict[str, str]:
    """Which of these Pythons run: version of two numbers -> path. Without paths, those of PYTHONS that are found."""
    found = {}
    for path in paths or [f"python{version}" for version in PYTHONS]:
        try:
            command = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"]
            asked = subprocess.run(command, capture_output=True, text=True)
        except OSError:
            continue
        if asked.returncode == 0:
            version, executable = asked.stdout.split(maxsplit=1)
            found[version] = executable.strip()
    return found


def rows(pythons: dict[str, str]) -> list[Row]:
    """All rows: each Python, then each library's edges on the oldest of the Pythons."""
    everything = tuple(sorted({name for names in TOUCHING.values() for name in names}))
    found = [Row(f"python-{version}", path, everything) for version, path in pythons.items()]
    wanted = requirements()
    base = next(iter(pythons.values()))
    for library, tests in TOUCHING.items():
        edges = SLICER if library == "slicer-core" else {"oldest": lower_bound(wanted[library]), "newest": ""}
        found += [Row(f"{library}-{edge}", base, tests, library, version) for edge, version in edges.items()]
    return found


def install_commands(row: Row, folder: Path, pins: Path | None) -> list[list[str]]:
    """Commands that make the environment of a row, with the other versions from a file for pip or from their ranges."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    others = [str(each) for name, each in requirements().items() if name not in row.own]
    words = [*(["-c", str(pins)] if pins else []), *([row.requirement] if row.library else [])]
    return [
        [row.python, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words, *others],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-e", "."],
    ]


def write_pins(path: Path, without: set[str]) -> None:
    """Write the versions of constraints.txt, but for these packages, as a file for pip."""
    left_out = {canonicalize_name(name) for name in without}
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if canonicalize_name(re.split("[=#]", line)[0].strip()) not in left_out]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")


def over_commands(row: Row, folder: Path) -> list[list[str]]:
    """The command that installs the row's library alone into a folder."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    return [[*pip, "--target", str(folder), row.requirement]]


def last_line(text: str) -> str:
    """The last line that says something, for a cell of a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "no message").replace("|", "/")[:160]


def install(commands: Sequence[Sequence[str]]) -> str:
    """Run commands until one fails; what the failing one said at its end, or ""."""
    for command in commands:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        if done.returncode:
            return last_line(done.stderr or done.stdout)
    return ""


def test(outcome: Outcome, python: str, environment: dict[str, str], report: Path) -> None:
    """Run a row's test files and count."""
    names = [*TOUCHING, "vtk"]
    code = "import importlib.metadata as m, sys; [print(n, m.version(n)) for n in sys.argv[1:]]"
    asked = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, env=environment)
    outcome.versions = dict(line.split() for line in asked.stdout.splitlines())
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    files = [str(TESTS / name) for name in outcome.row.tests]
    started = time.monotonic()
    done = subprocess.run([*command, *files], cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    outcome.seconds = time.monotonic() - started
    if not report.is_file():
        outcome.trouble = last_line(done.stderr or done.stdout)
        return
    count(outcome, report)
    if done.returncode and not outcome.failed:
        outcome.trouble = last_line(done.stdout)


def count(outcome: Outcome, report: Path) -> None:
    """Take the counts, and the name of the first test that failed, from a JUnit report."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    outcome.skipped = sum(case.find("skipped") is not None for case in cases)
    outcome.failed = len(failed)
    outcome.passed = len(cases) - outcome.failed - outcome.skipped
    if failed:
        outcome.trouble = f"{failed[0].get('classname')}::{failed[0].get('name')}".replace("|", "/")


def run(row: Row, folder: Path, over: bool) -> Outcome:
    """Make the environment of a row, run its tests, and remove the environment."""
    outcome = Outcome(row)
    place = folder / row.name
    report = folder / f"{row.name}.xml"
    report.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CI")}
    if over:
        python = sys.executable
        environment["PYTHONPATH"] = str(place)
        outcome.trouble = install(over_commands(row, place))
    else:
        pins = folder / f"{row.name}.txt"
        write_pins(pins, row.own)
        commands = install_commands(row, place, pins)
        python = commands[1][0]
        if install(commands):
            outcome.loosened = True
            outcome.trouble = install(install_commands(row, place, None))
    if not outcome.trouble:
        test(outcome, python, environment, report)
    shutil.rmtree(place, ignore_errors=True)
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    names = [*TOUCHING, "vtk"]
    lines = [
        f"| row | {' | '.join(names)} | passed | failed | skipped | seconds | first failure |",
        "| --- |" + " --- |" * (len(names) + 5),
    ]
    for each in outcomes:
        versions = " | ".join(each.versions.get(name, "") for name in names)
        note = " (other versions from their ranges)" if each.loosened else ""
        counts = f"{each.passed} | {each.failed} | {each.skipped} | {each.seconds:.0f} | {each.trouble}"
        lines.append(f"| {each.row.name}{note} | {versions} | {counts} |".replace("  |", " |"))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the environments are made")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="run these rows")
    parser.add_argument("--python", nargs="+", default=[], metavar="PATH", help="these interpreters")
    parser.add_argument("--over", action="store_true", help="install over the packages of this Python")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    arguments = parser.parse_args(argv)
    pythons = interpreters([sys.executable] if arguments.over else arguments.python)
    if not pythons:
        parser.error(f"none of these Pythons runs: {', '.join(arguments.python or PYTHONS)}.")
    chosen = [row for row in rows(pythons) if row.library or not arguments.over]
    unknown = set(arguments.only or ()) - {row.name for row in chosen}
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in chosen)}.")
    folder = arguments.folder.resolve()
    outcomes = []
    for row in chosen:
        if arguments.only and row.name not in arguments.only:
            continue
        if arguments.dry_run:
            place, pins = folder / row.name, folder / f"{row.name}.txt"
            commands = over_commands(row, place) if arguments.over else install_commands(row, place, pins)
            print(f"# {row.name}: {' '.join(row.tests)}")
            print("\n".join(shlex.join(command) for command in commands))
            continue
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        outcomes.append(run(row, folder, arguments.over))
    if outcomes:
        print(table(outcomes))
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
