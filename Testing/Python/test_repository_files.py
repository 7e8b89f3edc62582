"""The files around the code: workflows, templates, the pre-commit hook. What they run or name exists in this tree."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import tomllib

import pytest
from conftest import REPOSITORY

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (pip install .[test])")

GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# programs that a runner has, and what a workflow installs itself before it runs it
ON_A_RUNNER = {"docker", "sudo"}
PYTHON_MODULES = {"pip", "pip_audit", "build", "twine"}


@pytest.fixture(scope="module")
def run_py():
    specification = importlib.util.spec_from_file_location("run", REPOSITORY / "run.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return script


def workflow(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path):
    return [step for job in workflow(path)["jobs"].values() for step in job["steps"]]


def commands(path):
    """Each command line of a workflow as words."""
    for step in steps(path):
        for line in step.get("run", "").splitlines():
            if line.strip():
                yield shlex.split(line)


def test_there_is_a_workflow_for_each_promise():
    assert [path.stem for path in WORKFLOWS] == ["audit", "docs", "slicer", "tests"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_whole(path):
    found = workflow(path)
    assert set(found[True]) <= {"push", "pull_request", "schedule", "workflow_dispatch"}  # YAML reads `on` as true
    assert found["permissions"] == {"contents": "read"}
    for job in found["jobs"].values():
        assert job["timeout-minutes"]
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_runs_is_here(path, run_py):
    for words in commands(path):
        if words[0] in ("python", ".venv/bin/python") and words[1] == "-m":
            assert words[2] in PYTHON_MODULES
        elif words[0] == "python":
            assert (REPOSITORY / words[1]).is_file()
            assert words[1] != "run.py" or words[2] in run_py.EXTRAS
        else:
            assert words[0] in ON_A_RUNNER, words
        for word in words:
            inside = word.removeprefix("/usr/src/COVIDLesionSeg/")
            if inside != word or word.endswith((".txt", ".toml")):
                assert (REPOSITORY / inside).is_file(), word


def test_run_py_installs_extras_that_exist(run_py):
    extras = {extra for value in run_py.EXTRAS.values() for extra in value.split(",")}
    assert extras <= set(PROJECT["optional-dependencies"])


def test_files_that_start_a_workflow_or_a_cache_exist():
    for path in WORKFLOWS:
        found = workflow(path)
        patterns = [
            name
            for event in found[True].values()
            for name in (event or {} if type(event) is dict else {}).get("paths", [])
        ]
        patterns += [
            name for step in steps(path) for name in step.get("with", {}).get("cache-dependency-path", "").split()
        ]
        for pattern in patterns:
            assert list(REPOSITORY.glob(pattern)), f"{path.name}: {pattern}"


def test_the_tests_run_on_three_systems_and_on_each_python_that_the_project_names():
    (job,) = workflow(GITHUB / "workflows" / "tests.yml")["jobs"].values()
    matrix = job["strategy"]["matrix"]
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "windows", "macos"}
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert matrix["python"] == named


def test_the_system_libraries_are_the_same_everywhere():
    """In the workflow, in the script of continuous integration, and on the page about installing."""
    (install,) = [
        words for words in commands(GITHUB / "workflows" / "tests.yml") if "apt-get" in words and "install" in words
    ]
    named = [word for word in install[install.index("install") + 1 :] if not word.startswith("-")]
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert named == re.search(r'^libraries="([^"]+)"', script, re.MULTILINE)[1].split()
    page = (REPOSITORY / "docs" / "install.md").read_text(encoding="utf-8")
    assert f"`{' '.join(named)}`" in page


def test_the_slicer_workflow_does_each_step_of_its_script():
    script = REPOSITORY / ".ci" / "slicer-extension"
    subprocess.run(["bash", "-n", script], check=True)
    branches = re.findall(r"^(\w+)\)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    done = [words[-1] for words in commands(GITHUB / "workflows" / "slicer.yml") if words[:2] == ["docker", "exec"]]
    assert done == branches == ["slicer", "package", "test"]
    refused = subprocess.run(["bash", script], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("usage:")


# Templates, policies, pre-commit


def test_the_hook_before_a_commit_runs_the_ruff_that_is_tested():
    (repository,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    pinned = re.search(r"^ruff==(\S+)$", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert repository["rev"] == f"v{pinned[1]}"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format"]


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_a_form_for_an_issue_is_as_github_reads_it(name):
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert any(field.get("validations", {}).get("required") for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    for command in re.findall(r"`covid-lesion-seg (\w+)`", str(form)):
        from COVIDLesionSegLib.cli import COMMANDS

        assert command in COMMANDS


POLICIES = [
    *("SECURITY.md", "CODE_OF_CONDUCT.md", ".github/PULL_REQUEST_TEMPLATE.md", ".github/ISSUE_TEMPLATE/config.yml"),
    *(".github/ISSUE_TEMPLATE/bug.yml", ".github/ISSUE_TEMPLATE/feature.yml"),
]


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_names_no_person_and_leads_to_places_that_exist(name):
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert "@" not in text
    assert not re.search(r"TODO|example\.(com|org)|\[insert|your[- ]name", text, re.IGNORECASE)
    repository = PROJECT["urls"]["Homepage"]
    for target in re.findall(r"(?<=\]\()[^)]+|https://[^\s)]+", text):
        if "://" not in target:
            assert (REPOSITORY / target).is_file(), target
        elif target.startswith(f"{repository}/blob/main/"):
            assert (REPOSITORY / target.removeprefix(f"{repository}/blob/main/")).is_file(), target
        else:
            assert target in (f"{repository}/security/advisories/new", "https://discourse.slicer.org"), target
