"""What MkDocs cannot know by itself of this project's documents; ``mkdocs.yml`` names this file as its hook.

- The changelog, the guide for contributors and the pictures of the panel stand outside ``docs/`` and are pages, too.
- Every room of the library has a page with its docstrings.
- Links are written so that they work on GitHub; a link to a file that is no page leads to the repository.
- Docstrings name other objects in Sphinx's manner (``:func:`~.dice```) and have one ``Example:``; the site shows the
  names alone, and the example as code.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARY = REPOSITORY / "COVIDLesionSeg" / "COVIDLesionSegLib"
PICTURES = "Resources/Screenshots"
# file of the repository -> its address in the site
OUTSIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"} | {
    f"{PICTURES}/{picture.name}": f"panel/{picture.name}" for picture in (REPOSITORY / PICTURES).glob("*.png")
}
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`([^`]+)`")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and pictures that do not lie in docs/."""
    for name, address in OUTSIDE.items():
        files.append(File.generated(config, address, abs_src_path=str(REPOSITORY / name)))
    for package in sorted(LIBRARY.glob("*/__init__.py")):
        room = package.parent.name
        text = f"# `COVIDLesionSegLib.{room}`\n\n::: COVIDLesionSegLib.{room}\n"
        files.append(File.generated(config, f"api/{room}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Let links that work on GitHub work in the site."""
    if not page.file.abs_src_path:
        return markdown
    folder = Path(page.file.abs_src_path).relative_to(REPOSITORY).parent.as_posix()

    def rewritten(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        if target in OUTSIDE:
            address = OUTSIDE[target]
        elif target.startswith("docs/"):
            address = target.removeprefix("docs/")
        else:
            return f"{link[1]}{config.repo_url}/blob/main/{target}{link[3]}"
        return f"{link[1]}{posixpath.relpath(address, posixpath.dirname(page.file.src_uri))}{link[3]}"

    # a fenced block is no text
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(rewritten, part) for part in parts)


class Docstrings(griffe.Extension):
    """Docstrings as the parser of Google's style wants them."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the text before it is parsed."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = ROLE.sub(self.shown, text)

    @staticmethod
    def shown(role: re.Match[str]) -> str:
        """``x.y`` of a role as code; the last part alone after a tilde or a dot."""
        name = role[1]
        return f"`{name.rpartition('.')[2] if name.startswith(('~', '.')) else name}`"
