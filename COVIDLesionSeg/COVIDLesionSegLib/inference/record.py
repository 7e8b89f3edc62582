"""What a result was made with: the record that stands beside every mask, free of patient data.

Format, frozen as schema 1: an object with the keys of :class:`RunRecord`. A later schema only adds keys.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..documents import parse_json
from ..errors import InputError
from ..imaging.geometry import Geometry
from ..imaging.volume import Volume

SCHEMA = 1
# What a reader may tell about its file; a name, a path, a date or an identifier is not among it.
_SOURCE_FACTS = ("format", "files", "sha256", "rescale", "seed")
# Keys that the first records lack.
_ADDED = ("lung_quality",)
_PACKAGES = ("torch", "openvino", "numpy", "scipy", "SimpleITK", "safetensors")


@dataclass(frozen=True)
class RunRecord:
    """How one result came about.

    Attributes:
        input: the CT: ``voxels_sha256`` (of the array's bytes, z slowest, little-endian), ``dtype``, ``geometry``
            (size, spacing in mm, origin in LPS mm along i, j, k; direction row-major), ``source`` (format, file count,
            hash and the like) and ``warnings`` of the reader.
        model: id, name, version, network, weights_sha256, license.
        device: ``requested``, ``used``, ``name``, ``reason`` (why this one), ``precision`` ("float32", "bfloat16" or
            "float16"), ``engine`` ("torch" or "openvino"; not in the first records), ``batch_size`` (slices),
            ``threads`` of the processor, and ``rungs``: the steps down that lack of memory forced, none if empty.
        parameters: ``probability``, ``tta``, ``uncertainty``, ``lungs`` ("given" or "found"), ``box`` (the crop that
            the network saw: start and stop along z, y, x of the axial view), ``slices``, ``preprocessing`` (of the
            model card).
        postprocessing: threshold as it was applied, and the settings of ``PostProcessing``.
        seconds: duration of each phase, in the order in which they ran.
        warnings: sentences about what was not as it should be.
        versions: of the library, Python and the packages that compute.
        platform: operating system and processor architecture.
        created: UTC, ISO 8601.
        schema: version of this format.
        lung_quality: the verdict on the lungs, ``LungQuality.to_json()``, whose ``engine`` says what made them; None in
            records from before lungs were judged.
    """

    input: Mapping[str, Any]
    model: Mapping[str, Any]
    device: Mapping[str, Any]
    parameters: Mapping[str, Any]
    postprocessing: Mapping[str, Any]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str | None] = field(default_factory=lambda: installed_versions())
    platform: str = field(default_factory=lambda: platform.platform())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema: int = SCHEMA
    lung_quality: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The record as an object of plain JSON values; what is not a finite number becomes null."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json(cls, value: Any) -> RunRecord:
        """A record from its JSON text or the object parsed from it; keys of a newer schema are left out.

        Records that were written before a key was added are read all the same.

        Raises:
            InputError: not a run record.
        """
        if isinstance(value, str | bytes):
            value = parse_json(value, "The run record")
        names = [f.name for f in fields(cls)]
        if not isinstance(value, Mapping) or any(name not in value for name in names if name not in _ADDED):
            raise InputError("This is not a run record of this program: keys are missing.")
        known = {name: value[name] for name in names if name in value}
        texts = known["warnings"]
        objects = ("input", "model", "device", "parameters", "postprocessing", "seconds", "versions")
        if not (isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)) or not all(
            isinstance(known[name], Mapping) for name in objects
        ):
            raise InputError("This is not a run record of this program: its keys hold other values.")
        return cls(**known | {"warnings": tuple(texts)})


def describe_input(volume: Volume) -> dict[str, Any]:
    """What a record says of its CT: hash, type, grid, and of the file only facts that identify nobody."""
    return {
        "voxels_sha256": sha256_array(volume.array),
        "dtype": str(volume.array.dtype),
        "geometry": describe_geometry(volume.geometry),
        "source": {name: volume.source[name] for name in _SOURCE_FACTS if name in volume.source},
        "warnings": list(volume.warnings),
    }


def describe_geometry(geometry: Geometry) -> dict[str, Any]:
    """A grid as JSON values; size, spacing and origin along (i, j, k), mm, LPS."""
    return {name: list(getattr(geometry, name)) for name in ("size", "spacing", "origin", "direction")}


def sha256_array(array: NDArray[Any]) -> str:
    """SHA-256 of an array's values in C order and little-endian, whatever its strides; no copy of the whole is made."""
    digest = hashlib.sha256()
    for part in array if array.ndim > 1 else [array]:
        digest.update(np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def installed_versions() -> dict[str, str | None]:
    """Versions of this library, Python and the packages that compute; None where one is not installed.

    Nothing is imported for it.
    """
    versions: dict[str, str | None] = {"COVIDLesionSeg": __version__, "python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    raise InputError(f"A run record holds numbers, texts and lists of them; {type(value).__name__} is none.")
