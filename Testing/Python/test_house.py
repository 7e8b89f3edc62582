"""The walls of the house: which room may import what, what must load without PyTorch, lint and types."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

LIBRARY = REPOSITORY / "COVIDLesionSeg" / "COVIDLesionSegLib"

# From the ground up; a room imports only from floors below its own. The files beside the rooms are the ground.
FLOORS = [
    {"ground"},
    {"imaging", "networks"},
    {"phantom"},
    {"measurement", "models"},
    {"inference"},
    {"learning"},
    {"cases", "reproduction"},
    {"worker"},
    {"cli"},
    {"__main__"},
    {"mrml"},
    {"panel"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}

# Who may import these at all, even inside a function.
ONLY_IN = {
    "qt": {"panel"},
    "ctk": {"panel"},
    "slicer": {"mrml", "panel"},
    "vtk": {"mrml", "panel"},
}

# Who may import PyTorch at file scope: everything that Slicer's process loads stays free of it.
TORCH_AT_FILE_SCOPE = {"networks", "inference", "learning", "reproduction", "models/checkpoints.py"}
LOADS_WITHOUT_TORCH = [
    "COVIDLesionSegLib",
    "COVIDLesionSegLib.imaging",
    "COVIDLesionSegLib.phantom.samples",
    "COVIDLesionSegLib.measurement",
    "COVIDLesionSegLib.models",
    "COVIDLesionSegLib.models.card",
    "COVIDLesionSegLib.models.registry",
    "COVIDLesionSegLib.inference",
    "COVIDLesionSegLib.inference.record",
    "COVIDLesionSegLib.inference.postprocess",
    "COVIDLesionSegLib.worker",
    "COVIDLesionSegLib.worker.client",
    "COVIDLesionSegLib.worker.jobs",
    "COVIDLesionSegLib.worker.server",
    "COVIDLesionSegLib.worker.measurement_tasks",
    "COVIDLesionSegLib.cases",
    "COVIDLesionSegLib.cases.checking",
    "COVIDLesionSegLib.cases.training",
    "COVIDLesionSegLib.cli",
]
# What Slicer's process loads imports nothing more than this at file scope (and what Slicer itself brings).
LIGHT_ROOMS = {"imaging", "phantom", "measurement", "cases", "worker", "mrml", "panel"}
LIGHT_IMPORTS = {"numpy", "slicer", "vtk", "qt", "ctk"}


def sources() -> list[Path]:
    return sorted(LIBRARY.rglob("*.py"))


def room_of(path: Path) -> str:
    name = path.relative_to(LIBRARY).with_suffix("").parts[0]
    return "ground" if path.parent == LIBRARY and name != "__main__" else name


def imports(path: Path) -> list[tuple[str, bool]]:
    """Absolute module names that a file imports, and whether it does so at file scope."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(node) for outer in ast.walk(tree) if isinstance(outer, ast.FunctionDef) for node in ast.walk(outer)}
    inside |= {id(node) for node in typing_only(tree)}
    package = ["COVIDLesionSegLib", *path.relative_to(LIBRARY).parts[:-1]]
    found = []
    for node in ast.walk(tree):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(f"{module}.{alias.name}", top) for alias in node.names]
    return found


def typing_only(tree: ast.Module) -> list[ast.AST]:
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    return [node for block in blocks for node in ast.walk(block)]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(LIBRARY)))
def test_a_file_imports_only_what_its_room_may(path):
    room = room_of(path)
    assert room in FLOOR, f"{room} is no room of the house (CONTRIBUTING.md)"
    relative = path.relative_to(LIBRARY).as_posix()
    may_have_torch = room in TORCH_AT_FILE_SCOPE or relative in TORCH_AT_FILE_SCOPE
    for name, at_file_scope in imports(path):
        first = name.split(".")[0]
        if first == "COVIDLesionSegLib":
            other = next((part for part in name.split(".")[1:2] if part in FLOOR), "ground")
            assert other == room or FLOOR[other] < FLOOR[room], f"{relative} reaches up or sideways to {name}"
        assert room in ONLY_IN.get(first, {room}), f"{relative} imports {first}"
        if at_file_scope and first in ("torch", "safetensors"):
            assert may_have_torch, f"{relative} imports {first} at file scope"
        if at_file_scope and room in LIGHT_ROOMS:
            light = first in sys.stdlib_module_names | LIGHT_IMPORTS | {"COVIDLesionSegLib"}
            assert light, f"{relative} imports {first} at file scope"


BLOCKER = """
import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is behind a wall")
sys.meta_path.insert(0, Blocked())
importlib.import_module({module!r})
"""


@pytest.mark.parametrize("module", LOADS_WITHOUT_TORCH)
def test_room_loads_without_what_slicers_process_does_not_have(module):
    blocked = {
        "torch",
        "safetensors",
        "scipy",
        "SimpleITK",
        "matplotlib",
        "tqdm",
        "pydicom",
        "highdicom",
        "qt",
        "slicer",
    }
    if module.endswith(".cli"):
        blocked -= {"tqdm"}
    subprocess.run([sys.executable, "-c", BLOCKER.format(blocked=blocked, module=module)], check=True)


def test_the_parents_side_of_the_worker_leaves_out_the_childs():
    """Slicer's process asks; the server and the tasks, with all that they need, are loaded by the child alone."""
    code = "import sys, COVIDLesionSegLib.worker.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.removeprefix("COVIDLesionSegLib.") for name in done.stdout.split()}
    assert "worker.client" in loaded
    rooms = {name.split(".")[0] for name in loaded}
    assert not rooms & {"cases", "learning", "inference", "measurement", "networks"}
    assert {name for name in loaded if name.startswith("worker.")} == {
        *("worker.client", "worker.faults", "worker.process", "worker.protocol", "worker.transport"),
    }


def test_every_floor_has_its_rooms():
    rooms = {path.name for path in LIBRARY.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert rooms <= set(FLOOR)


def test_the_module_folder_holds_one_module_only():
    """Slicer takes every .py directly in a module folder for a module."""
    assert {p.name for p in (REPOSITORY / "COVIDLesionSeg").glob("*.py")} <= {"COVIDLesionSeg.py"}


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_finds_nothing(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_check():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["console_example.py", "console_loop_example.py"])
def test_the_guide_shows_the_examples_that_are_tested(name):
    _, _, code = (REPOSITORY / "Testing" / "Python" / name).read_text(encoding="utf-8").split('"""')
    guide = (REPOSITORY / "docs" / "engineer.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert code.replace("  # noqa: F821", "").strip() in [block.strip() for block in shown]


def test_the_case_store_has_no_circle_and_only_its_facade_knows_the_facade():
    """Imports for types count as well: what a function needs is given to it."""
    room = LIBRARY / "cases"
    known = {path.stem: path for path in room.glob("*.py") if path.stem != "__init__"}
    needs = {
        name: {
            module.split(".")[2]
            for module, _ in imports(path)
            if module.startswith("COVIDLesionSegLib.cases.") and module.split(".")[2] in known
        }
        for name, path in known.items()
    }
    assert {name for name, found in needs.items() if "store" in found} == set()
    # what needs nothing that is left is taken away until nothing is left
    while needs:
        ends = {name for name, found in needs.items() if not found & needs.keys()}
        assert ends, f"a circle of {sorted(needs)}"
        needs = {name: found for name, found in needs.items() if name not in ends}
