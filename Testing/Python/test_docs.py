"""The documents: every page has its place, every link leads somewhere, and the site builds without a warning."""

from __future__ import annotations

import posixpath
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from test_house import FLOORS

from COVIDLesionSegLib import __version__

DOCS = REPOSITORY / "docs"
PAGES = sorted(path.relative_to(REPOSITORY).as_posix() for path in DOCS.rglob("*.md"))
DOCUMENTS = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", *PAGES]


def prose(name):
    """A document without its blocks of code."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(name):
    """What GitHub and the site call the headings of a document."""
    titles = re.findall(r"^#+ (.+)$", prose(name), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", title).lower()).replace(" ", "-") for title in titles}


def links(name):
    """Relative links of a document: the file of this repository, and the anchor."""
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", prose(name)):
        if "://" not in target:
            yield posixpath.normpath(posixpath.join(posixpath.dirname(name), target)) if target else name, anchor


def test_every_page_stands_once_in_the_navigation():
    _, _, navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")
    rooms = set().union(*FLOORS) - {"ground", "__main__"}
    expected = [name.removeprefix("docs/") for name in PAGES] + [f"api/{room}.md" for room in rooms]
    assert sorted(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)) == sorted(
        [*expected, "changelog.md", "contributing.md"]
    )


def test_every_page_is_linked_from_another():
    linked = {target for name in DOCUMENTS for target, _ in links(name) if target != name}
    assert set(PAGES) - linked - {"docs/index.md"} == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for target, anchor in links(name):
        assert (REPOSITORY / target).exists(), target
        if anchor:
            assert anchor in anchors(target), f"{target}#{anchor}"


def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason="MkDocs is not installed (pip install .[docs])")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api" / "measurement.html").read_text(encoding="utf-8")
    assert "hausdorff_distance_95" in api
    # steps are numbered through, as on GitHub
    assert '<ol start="3">' in (tmp_path / "site" / "tutorial.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_examples_in_python_compile(name):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    for example in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        compile(example, name, "exec")


def test_the_guides_parts_work_together():
    examples = re.findall(r"```python\n(.*?)```", (DOCS / "engineer.md").read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [example for example in examples if example.startswith("import torch")]
    names: dict = {}
    exec(example, names)
    assert names["logits"].shape == (2, 2, 96, 96)


def test_changelog_and_citation_name_the_version_of_the_library():
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", changes, re.MULTILINE)
    assert releases[0] == ("Unreleased", "")
    assert releases[1][0] == __version__ and releases[1][1]
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == __version__
