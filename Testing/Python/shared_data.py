"""The shared data, for tests and benchmarks: where they are, and the whole CTs of COVID-19-CT-Seg, unpacked once.

The folder is read-only and holds a zip a patient. What is unpacked stays in the user's cache, under the hash of the zip
and of the script that unpacks it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

SHARED = Path(os.environ.get("COVIDLESIONSEG_SHARED", Path(__file__).resolve().parents[3] / "shared"))
DATA = SHARED / "data"
CT_SEG = DATA / "covid19-ct-seg"
LCTSC = DATA / "lctsc"
# chests without COVID, of which every voxel is known to be free of its lesions
NEGATIVES = {
    "normal001": DATA / "covid-ct-md" / "normal001_ct.nii.gz",
    "lctsc_006": LCTSC / "case_006_ct.nii.gz",
    "lctsc_011": LCTSC / "case_011_ct.nii.gz",
}


class Case(NamedTuple):
    """A whole CT of COVID-19-CT-Seg; the masks are 0 or 1 on its grid.

    The experts drew the lungs in the axial slices ``expert_slices`` only, left and right as one label: elsewhere the
    mask is 0, lungs or not. The lesions were drawn in all slices.
    """

    ct: Path
    lesion: Path
    lungs: Path
    expert_slices: slice


def ct_seg_names() -> list[str]:
    """Patients of COVID-19-CT-Seg, as ``coronacases_001``; none where the shared data are not here."""
    return sorted(path.stem for path in CT_SEG.glob("coronacases_*.zip"))


@cache
def ct_seg(name: str) -> Case:
    """A patient of COVID-19-CT-Seg, unpacked where it isn't yet.

    Several processes may ask at once: each unpacks into a folder of its own, and the first to end gives it its name.
    """
    packed, script = CT_SEG / f"{name}.zip", CT_SEG / "unpack.py"
    digest = hashlib.sha256(packed.read_bytes() + script.read_bytes()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "covid-lesion-seg" / "shared-data"
    folder = home / f"{name}-{digest}"
    if not folder.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(dir=home, prefix=".part-"))
        try:
            subprocess.run([sys.executable, str(script), str(own), name[-3:]], check=True, stdout=subprocess.DEVNULL)
            own.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(own, ignore_errors=True)
    files = (folder / f"{name}_{role}.nii.gz" for role in ("ct", "lesion", "lungs"))
    slices = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["expert_lungs_slices"]
    return Case(*files, slice(*slices))
