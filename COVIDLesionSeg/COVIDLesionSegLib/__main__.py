"""``python -m COVIDLesionSegLib`` is the same as ``covid-lesion-seg``; so is this file, started by its path.

By path, as Slicer starts it, the library is taken from where this file lies, and nothing beside it comes onto the
interpreter's path.
"""

import sys

if not __package__:
    import importlib.util
    from pathlib import Path

    _folder = Path(__file__).resolve().parent
    _spec = importlib.util.spec_from_file_location(
        _folder.name, _folder / "__init__.py", submodule_search_locations=[str(_folder)]
    )
    if _spec is None or _spec.loader is None:
        sys.exit(f"The library {_folder} is damaged; install it again.")
    _package = importlib.util.module_from_spec(_spec)
    sys.modules[_folder.name] = _package
    _spec.loader.exec_module(_package)

from COVIDLesionSegLib.cli import main

if __name__ == "__main__":
    sys.exit(main())
