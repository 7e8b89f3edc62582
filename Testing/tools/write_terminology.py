"""Write the terminology that Slicer reads from the one place that has names, colors and codes.

    python Testing/tools/write_terminology.py

Run it after a change of Resources/Terminologies/segments.json; it needs slicer-core.
"""

from __future__ import annotations

from COVIDLesionSegLib.files import write_json
from COVIDLesionSegLib.mrml.terminology import TERMINOLOGY_FILE, terminologyContext
from COVIDLesionSegLib.resources import resource

if __name__ == "__main__":
    write_json(resource(TERMINOLOGY_FILE), terminologyContext())
