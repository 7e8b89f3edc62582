"""What Slicer's Extensions Index asks of an extension, as far as it can be tested without the network.

Its automatic checks (names, category, addresses of pictures, license), the questions of its reviewers (what runs or is
imported when a module loads, what is downloaded, what the documentation has), and its limit on size.
"""

from __future__ import annotations

import ast
import json
import re
import struct
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pytest
from conftest import REPOSITORY

NAME = "COVIDLesionSeg"
LIBRARY = REPOSITORY / NAME / f"{NAME}Lib"
CATEGORIES = {"Active Learning", "Analysis", "Chest Imaging Platform", "Quantification", "Segmentation"}
ENTRY_SCHEMA = {
    "type": "object",
    "required": ["$schema", "category", "scm_url"],
    "additionalProperties": False,
    "properties": {
        "$schema": {
            "const": "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/"
            "slicer-extension-catalog-entry-schema-v1.0.2.json#"
        },
        "category": {"enum": sorted(CATEGORIES)},
        "scm_url": {"pattern": r"^(https|git)://"},
        "scm_revision": {"type": "string"},
        "scm_type": {"enum": ["git", "local"]},
        "build_dependencies": {"type": "array", "items": {"type": "string", "pattern": r"^\w+$"}},
        "build_subdirectory": {"type": "string"},
        "enabled": {"type": "boolean"},
        "tier": {"enum": [1, 3, 5]},  # the schema allows 1 to 5; the index knows these
        "dicom_support_rule": {"type": "string"},
    },
}
MEGABYTE = 1024 * 1024


def text(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


def cmake_variables():
    """EXTENSION_* as the index's own regular expressions find them: one string, closed on the same line."""
    return dict(re.findall(r'^set\s*\(EXTENSION_(\w+)\s*"([^"]+)"[ ]*\)', text("CMakeLists.txt"), re.MULTILINE))


def description_file():
    lines = [line for line in text(f"{NAME}.s4ext").splitlines() if line and not line.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


def entry():
    return json.loads(text(f"{NAME}.json"))


def image_size(path):
    """Columns and rows of a PNG."""
    start = path.read_bytes()[:24]
    assert start.startswith(b"\x89PNG\r\n\x1a\n"), f"{path} is no PNG"
    return struct.unpack(">II", start[16:24])


def file_of(url):
    """The file of this repository that a raw address of its main branch stands for."""
    repository = urlsplit(entry()["scm_url"]).path.removesuffix(".git")
    prefix = f"https://raw.githubusercontent.com{repository}/{entry()['scm_revision']}/"
    assert url.startswith(prefix), f"{url} is not in {prefix}"
    return REPOSITORY / url.removeprefix(prefix)


# The entry and its twins


def test_the_entry_follows_the_schema_and_the_form_of_the_index():
    jsonschema.validate(entry(), ENTRY_SCHEMA)
    raw = (REPOSITORY / f"{NAME}.json").read_bytes()
    assert b"\r" not in raw
    assert b"\t" not in raw
    assert raw.endswith(b"}\n")
    # as the index's prettier writes it: two spaces, each item of a list on a line of its own
    assert raw.decode() == json.dumps(entry(), indent=2) + "\n"


def broken(**changes):
    return {name: value for name, value in (entry() | changes).items() if value is not None}


@pytest.mark.parametrize(
    "wrong",
    [
        broken(category=None),
        broken(category="Lungs"),
        broken(scm_url="git@github.com:owner/SlicerName.git"),
        broken(scmurl="https://github.com/owner/SlicerName.git"),
        broken(tier="1"),
        broken(tier=2),
        broken(build_dependencies="PyTorch"),
        broken(scm_type="svn"),
    ],
)
def test_the_schema_refuses_what_the_index_refuses(wrong):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, ENTRY_SCHEMA)


def test_names_are_as_the_index_wants_them():
    assert not NAME.lower().startswith("slicer")
    assert re.fullmatch(rf"Slicer[-_]?{NAME}", urlsplit(entry()["scm_url"]).path.rsplit("/", 1)[1].removesuffix(".git"))
    project = re.search(r"project\s*\(\s*([^\s\)]+)", text("CMakeLists.txt"), re.IGNORECASE)
    assert project[1] == NAME


def test_cmake_entry_and_description_file_say_the_same():
    variables, description = cmake_variables(), description_file()
    twins = {key.lower(): value for key, value in variables.items() if key not in ("DEPENDS",)} | {
        "depends": variables["DEPENDS"]
    }
    assert {key: description[key] for key in twins} == twins
    assert description["scm"] == "git"
    assert description["scmurl"] == entry()["scm_url"]
    assert description["scmrevision"] == entry()["scm_revision"]
    assert description["category"] == entry()["category"]
    assert description["depends"].split() == entry()["build_dependencies"]
    assert description["build_subdirectory"] == entry()["build_subdirectory"]
    assert description["homepage"] + ".git" == entry()["scm_url"]
    known = {"scm", "scmurl", "scmrevision", "build_subdirectory", "enabled"}
    assert set(description) == set(twins) | known


def test_the_description_is_short_and_says_what_it_is_not():
    description = cmake_variables()["DESCRIPTION"]
    assert len(description) < 400
    assert len(re.findall(r"\.(?:\s|$)", description)) <= 2
    for word in ("COVID-19", "chest CT", "segments", "research only", "not a medical device"):
        assert word in description


# Pictures, license, size


def test_the_icon_is_square_and_of_the_size_that_is_shown():
    assert image_size(file_of(cmake_variables()["ICONURL"])) == (128, 128)
    # Qt paints SVG Tiny only: no clipping, masks, filters, styles
    drawn = text(f"Resources/Icons/{NAME}.svg")
    assert not re.search(r"<(clipPath|mask|filter|style|image)", drawn)


def test_screenshots_are_there():
    urls = cmake_variables()["SCREENSHOTURLS"].split()
    assert urls
    for url in urls:
        columns, rows = image_size(file_of(url))
        assert columns >= 400
        assert rows >= 300


def test_the_license_is_in_the_root_and_named():
    assert "Apache License" in text("LICENSE")
    assert "Version 2.0" in text("LICENSE")
    assert re.search(r"Apache-2\.0\]\(LICENSE\)", text("README.md"))
    # weights have their own terms, and they stand beside them
    for weights in (REPOSITORY / "Resources" / "Models").glob("*.safetensors"):
        assert (
            weights.with_suffix(".LICENSE.txt").is_file() or weights.with_name(f"{weights.stem}.LICENSE.txt").is_file()
        )


def git(*words):
    done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is not a git checkout")
    return done.stdout


def test_the_repository_is_small():
    names = git("ls-files", "-z").split("\0")[:-1]
    sizes = {name: (REPOSITORY / name).stat().st_size for name in names if (REPOSITORY / name).is_file()}
    largest = max(sizes, key=sizes.get)
    assert sizes[largest] < 25 * MEGABYTE, largest
    assert sum(sizes.values()) < 70 * MEGABYTE
    # packed as for a stranger's clone: this checkout may hold objects twice, or loose and so without deltas
    clone = subprocess.run(
        ["git", "pack-objects", "--revs", "--stdout", "-q"], cwd=REPOSITORY, input=b"HEAD\n", capture_output=True
    )
    assert clone.returncode == 0, clone.stderr
    assert sum(sizes.values()) // 10 < len(clone.stdout) < 100 * MEGABYTE


def test_one_commit_fits_into_the_size_that_the_index_allows():
    """It adds up all files of a clone, those of .git as well, and allows 100 MB."""
    listed = git("ls-tree", "-r", "-l", "HEAD").splitlines()
    files = sum(int(line.split()[3]) for line in listed)
    tree = git("rev-parse", "HEAD^{tree}")
    packed = subprocess.run(
        ["git", "pack-objects", "--revs", "--stdout", "-q"], cwd=REPOSITORY, input=tree.encode(), capture_output=True
    )
    assert packed.returncode == 0, packed.stderr
    assert files > 10 * MEGABYTE
    assert len(packed.stdout) > files // 10
    assert files + len(packed.stdout) < 100 * MEGABYTE


def test_nothing_that_could_be_run_or_hold_a_patient_is_in_it():
    names = git("ls-files").splitlines()
    suffixes = {Path(name).suffix for name in names}
    assert not suffixes & {".exe", ".dll", ".so", ".dylib", ".whl", ".pyc", ".pt", ".pth", ".ckpt", ".pkl", ".zip"}
    assert not suffixes & {".dcm", ".nii", ".gz", ".nrrd", ".mha", ".mrb"}


# What happens when a module loads


def python_files():
    return [REPOSITORY / NAME / f"{NAME}.py", *sorted(LIBRARY.rglob("*.py"))]


def is_definition(node):
    """Whether a statement at file scope only defines or imports something."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef):
        return True
    if isinstance(node, ast.ClassDef | ast.Assign | ast.AnnAssign):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.If | ast.Try):
        inner = [*node.body, *node.orelse, *(n for h in getattr(node, "handlers", []) for n in h.body)]
        return all(is_definition(child) for child in inner)
    return False


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(REPOSITORY / NAME)))
def test_no_code_runs_at_file_scope(path):
    if path.name == "__main__.py":
        return  # not imported by Slicer: what is started as a program
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        assert is_definition(node), f"line {node.lineno}: {ast.unparse(node)[:80]}"


def calls(name_end):
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name_end):
                yield path.name, ast.unparse(node)


def test_pytorch_is_never_installed_with_pip_inside_slicer():
    for name in ("pip_install", "pip_ensure", "packaging.pip"):
        for file, call in calls(name):
            assert "torch" not in call, f"{file}: {call}"
    assert not re.search(r"^torch\b", text("Resources/requirements.txt"), re.MULTILINE)


def test_only_the_models_room_reaches_for_the_network():
    # socket is used for the computer's name only, see the next test
    network = {"urllib.request", "http.client", "requests", "httpx", "ftplib", "smtplib", "xmlrpc.client"}
    found = set()
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if network & set(names):
                found.add(path.parent.name)
    assert found <= {"models"}


def test_sockets_are_not_opened():
    for path in python_files():
        used = set(re.findall(r"\bsocket\.(\w+)", path.read_text(encoding="utf-8")))
        assert used <= {"gethostname"}, path.name


# What the documentation has


def test_the_readme_has_a_picture_and_says_how_to_cite():
    readme = text("README.md")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)\s]+)\)", readme)
    assert pictures
    assert all((REPOSITORY / picture).is_file() for picture in pictures if "://" not in picture)
    assert re.search(r"^## .*[Cc]it", readme, re.MULTILINE)
    for doi in ("10.1109/TMI.2020.3000314", "10.1002/mp.15231"):
        assert f"](https://doi.org/{doi})" in readme
    assert re.search(r"research only", readme, re.IGNORECASE)


def test_the_readme_has_the_name_a_short_description_and_a_sentence_on_each_module():
    readme = text("README.md")
    title, _, rest = readme.partition("\n\n")
    assert title == f"# {NAME}"
    description, _, _ = rest.partition("\n\n")
    assert "3D Slicer extension" in description
    assert len(re.findall(r"\.(?:\s|$)", description)) <= 2
    modules = {path.stem for path in (REPOSITORY / NAME).glob("*.py")}
    assert modules
    assert all(re.search(rf"module {module}\b[^.]*\.", readme) for module in modules)
    assert "](docs/tutorial.md)" in readme


def test_the_tutorial_goes_step_by_step_and_says_where_data_come_from():
    tutorial = text("docs/tutorial.md")
    assert len(re.findall(r"^\d+\. ", tutorial, re.MULTILINE)) >= 8
    for word in ("Sample Data", "COVIDLesionSegChest", "CTChest", "PyTorch", "Segment Editor", "not a medical device"):
        assert word in tutorial
    links = re.findall(r"\]\(([^)#\s]+)", tutorial)
    assert all((REPOSITORY / "docs" / link).exists() for link in links if "://" not in link)


def test_downloads_can_be_removed():
    from COVIDLesionSegLib.models import ModelRegistry

    assert callable(ModelRegistry.remove)
    assert "remove" in text("docs/tutorial.md").lower()
