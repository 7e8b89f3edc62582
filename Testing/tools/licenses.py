"""Write docs/dependencies.md: version, license and hash of each package that the project needs, itself or by others.

    python Testing/tools/licenses.py

Versions and licenses are those of the packages installed here, as their metadata say. Hashes are what pip would check:
SHA-256 of the file that it takes for each version on this platform, from a dry run that installs nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "dependencies.md"
SECTIONS = {
    "": "Always",
    "dicom": "DICOM SEG outside Slicer (extra `dicom`)",
    "report": "Figures (extra `report`)",
    "lungs": "Lobes (extra `lungs`)",
    "openvino": "Faster networks on processors (extra `openvino`)",
    "baselines": "Networks to compare with (extra `baselines`)",
    "docs": "This site (extra `docs`)",
    "test": "Tests (extra `test`)",
}
HEAD = """# Dependencies

What pip installs for Python {python} on {platform}, with licenses as the packages' metadata state them. A package
stands where it is needed first. Inside Slicer, numpy, SimpleITK, pydicom, highdicom and vtk are Slicer's own.
`Testing/tools/licenses.py` wrote this page.

Hashes are SHA-256 of the files that pip takes on that platform; `pip hash FILE` gives the same.
"""


def declared() -> dict[str, list[Requirement]]:
    """The project's own requirements by extra; "" for those that are always needed."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    by_extra = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(text) for text in by_extra[extra]] for extra in SECTIONS}


def needed(requirements: Iterable[Requirement], known: set[str]) -> tuple[dict[str, str], list[str]]:
    """Packages that these requirements lead to and that are not known yet: name -> version; names of absent ones."""
    found: dict[str, str] = {}
    absent: list[str] = []
    waiting = [(requirement, "") for requirement in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name == "covid-lesion-seg" or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
            continue
        fresh = name not in known | found.keys()
        if fresh:
            found[name] = distribution.version
        # an extra leads further, though the package itself is known
        for wanted in ["", *requirement.extras] if fresh else requirement.extras:
            waiting += [(Requirement(text), wanted) for text in distribution.requires or []]
    return found, sorted(set(absent))


def license_of(name: str) -> str:
    """The license as the package's metadata state it: expression, classifiers, or a short text.

    Raises:
        ValueError: it states none.
    """
    stated = metadata.metadata(name)
    if expression := stated.get("License-Expression"):
        return str(expression)
    classes = [text.split(" :: ") for text in stated.get_all("Classifier") or [] if text.startswith("License ::")]
    names = [parts[-1] for parts in classes if parts[-1] != "OSI Approved"]
    text = (stated.get("License") or "").strip()
    if names:
        return ", ".join(names)
    if text:
        return text.splitlines()[0]
    raise ValueError(f"{name} states no license.")


def hashes(versions: dict[str, str]) -> dict[str, str]:
    """SHA-256 of the file that pip would install for each."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
        wanted = [f"{name}=={version}" for name, version in versions.items()]
        subprocess.run([*command, "--report", str(report), *wanted], check=True)
        entries = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        canonicalize_name(entry["metadata"]["name"]): entry["download_info"]["archive_info"]["hashes"]["sha256"]
        for entry in entries
    }


def main() -> None:
    parts: dict[str, tuple[dict[str, str], list[str]]] = {}
    known: dict[str, str] = {}
    for extra, requirements in declared().items():
        parts[extra] = needed(requirements, set(known))
        known |= parts[extra][0]
    digests = hashes(known)
    python = ".".join(map(str, sys.version_info[:2]))
    lines = [HEAD.format(python=python, platform=sys.platform.capitalize())]
    for extra, (found, absent) in parts.items():
        lines += [f"## {SECTIONS[extra]}", ""]
        if found:
            lines += ["| package | version | license | SHA-256 |", "| --- | --- | --- | --- |"]
            for name, version in sorted(found.items()):
                lines.append(f"| {name} | {version} | {license_of(name)} | `{digests[name]}` |")
            lines.append("")
        if absent:
            lines += [f"Not installed where this page was written: {', '.join(absent)}.", ""]
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
