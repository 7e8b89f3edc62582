"""One resolver for the files in ``Resources/``: in a wheel, in Slicer (built or installed), and in the source tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def resources_folder() -> Path:
    """The folder that holds ``Models.json``, ``UI/``, ``Icons/`` and the bundled weights.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    # wheel: inside the package; Slicer: beside the module file; source tree: at the repository's top.
    places = [package / "Resources", package.parent / "Resources", package.parent.parent / "Resources"]
    for place in places:
        if (place / "Models.json").is_file():
            return place
    raise FileNotFoundError("Resources/ was not found beside COVIDLesionSegLib; install the extension or wheel again.")


def resource(name: str) -> Path:
    """Path of one file in ``Resources/``, e.g. ``resource("Models.json")``; it need not exist."""
    return resources_folder() / name


def load_json(name: str) -> Any:
    """Parsed content of a JSON file in ``Resources/``."""
    return json.loads(resource(name).read_text(encoding="utf-8"))
