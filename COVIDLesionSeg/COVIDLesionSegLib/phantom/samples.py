"""Sample data, from ``Resources/SampleData.json``: made on this computer when it is asked for, not downloaded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..imaging.volume import LabelVolume
from ..imaging.writing import write_labels, write_volume
from ..resources import load_json, resource
from .synthetic import synthetic_chest

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SampleFile:
    """One file of a sample.

    Attributes:
        content: "ct" or "reference" (the lesions that were put into it).
        file_name: name of the file.
        node_name: name of its node in Slicer's scene.
        file_type: Slicer's name of the kind of file, "VolumeFile" or "SegmentationFile".
        url: where it will be published.
        sha256: hash of the published file; None until then.
    """

    content: str
    file_name: str
    node_name: str
    file_type: str
    url: str
    sha256: str | None


@dataclass(frozen=True)
class Sample:
    """A set of sample data.

    Attributes:
        id: short name.
        name: name in Slicer's Sample Data module.
        description: what it is.
        thumbnail: picture of it.
        license: its license.
        seed: of the synthetic chest.
        files: what belongs to it.
        published: whether the files' addresses answer.
    """

    id: str
    name: str
    description: str
    thumbnail: Path
    license: str
    seed: int
    files: tuple[SampleFile, ...]
    published: bool

    def are_there(self, folder: Path) -> bool:
        """Whether all its files are in a folder."""
        return all((folder / file.file_name).is_file() for file in self.files)


def sample_category() -> str:
    """The section of Slicer's Sample Data module that the samples stand in."""
    return str(load_json("SampleData.json")["category"])


@functools.cache
def samples() -> tuple[Sample, ...]:
    """All samples of the resource file."""
    return tuple(
        Sample(
            **entry
            | {
                "thumbnail": resource(entry["thumbnail"]),
                "files": tuple(SampleFile(**file) for file in entry["files"]),
            }
        )
        for entry in load_json("SampleData.json")["samples"]
    )


def sample(name: str) -> Sample:
    """A sample by id or name.

    Raises:
        InputError: there is none of this name.
    """
    for entry in samples():
        if name in (entry.id, entry.name):
            return entry
    raise InputError(f"There is no sample {name!r}; choose one of {', '.join(entry.id for entry in samples())}.")


def make_sample(sample: Sample, folder: Path | str, progress: Progress | None = None) -> list[Path]:
    """Make a sample's files in a folder; the same bytes of voxels every time.

    Args:
        sample: which one.
        folder: made if absent.
        progress: called as progress(phase, done, total).

    Returns:
        The files, in the sample's order.

    Raises:
        OutputError: a file can't be written; nothing half-written stays.
    """
    report = progress or (lambda *_: None)
    report("making the chest", 0, 1 + len(sample.files))
    chest = synthetic_chest(sample.seed)
    paths = []
    for index, file in enumerate(sample.files, start=1):
        report("writing", index, 1 + len(sample.files))
        paths.append(Path(folder) / file.file_name)
        if file.content == "ct":
            write_volume(chest.volume, paths[-1])
        else:
            lesion = LabelVolume(chest.lesion.astype(np.uint8), chest.volume.geometry, {1: "lesion"})
            write_labels(lesion, paths[-1])
    report("writing", 1 + len(sample.files), 1 + len(sample.files))
    return paths
