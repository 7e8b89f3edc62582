"""Taking out of diagnostic texts what may tell about a patient: names, dates and identifiers, and paths of data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# settings whose texts are the program's own words; a model may also be a file, which is taken out like all paths
_PUBLIC = frozenset({"device", "precision", "model", "uncertainty", "variant", "registration", "kinds", "drop"})
_QUOTED = re.compile(r"(['\"])(?P<path>(?:[A-Za-z]:|~)?[^'\"\n]{0,200}?[/\\][^'\"\n]*)\1")
# a blank belongs to a path if another part of it, or the ending of a file of ours, follows
_BLANK = r"\ (?=[^/\\\n'\":;,]{0,60}(?:[/\\]|\.(?:nii|gz|nrrd|dcm|mha|mhd|csv|json|html|png|toml|pth|safetensors)\b))"
_PLAIN = re.compile(rf"(?<![\w.~>])(?P<path>(?:[A-Za-z]:|~)?[/\\](?:[^\s'\",;:()<>\[\]{{}}]|{_BLANK})+)")
# what DICOM packages quote in their warnings: names of persons, dates, unique identifiers
_DICOM = [
    (re.compile(r"[^\s'\"=]*\w\^[^\n'\"]*"), "<name>"),
    (re.compile(r"(?<![\w.])(?:19|20)\d\d[-./]?[01]\d[-./]?[0-3]\d(?![\w.])"), "<date>"),
    (re.compile(r"(?<![\w.])[0-2](?:\.\d+){5,}"), "<identifier>"),
]


def secrets(parameters: Any, public: bool = False) -> set[str]:
    """The texts in a request's parameters that may not be shown."""
    if isinstance(parameters, Mapping):
        return set().union(*(secrets(value, str(key) in _PUBLIC) for key, value in parameters.items()))
    if isinstance(parameters, list | tuple):
        return set().union(*(secrets(value, public) for value in parameters))
    if not isinstance(parameters, str) or len(parameters) < 2:
        return set()
    if "/" in parameters or "\\" in parameters:
        return {parameters, Path(parameters).name, Path(parameters).stem}
    return set() if public else {parameters}


def scrubbed(text: str, hidden: Iterable[str]) -> str:
    """A text without the hidden words, DICOM's kinds of names, dates and identifiers, and paths.

    Of paths the last two parts of Python files stay, for tracebacks.
    """
    for word in sorted(filter(None, hidden), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "<text>", text)
    for pattern, instead in _DICOM:
        text = pattern.sub(instead, text)
    text = _QUOTED.sub(lambda found: f"{found[1]}{_shortened(found['path'])}{found[1]}", text)
    return _PLAIN.sub(lambda found: _shortened(found["path"]), text)


def _shortened(path: str) -> str:
    parts = re.split(r"[/\\]+", path.rstrip("/\\"))
    return f"<path>/{'/'.join(parts[-2:])}" if parts[-1].endswith(".py") else "<path>"
