"""A small chest in image files of every format, whole, odd or broken, for the tests that read and write such files."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from synthetic_dicom import small_chest

from COVIDLesionSegLib.imaging import Geometry

CHEST = small_chest()
GRID = Geometry((20, 24, 12), (0.7, 0.8, 2.5), (-50.5, -60.25, 300.0))
SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"]
RGB = np.zeros((12, 24, 20, 3), np.uint8)


def save(path: Path, array: np.ndarray = CHEST, grid: Geometry = GRID, compress: bool = True) -> Path:
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    if array.ndim == 3 or array.ndim == 4:
        image.SetSpacing(grid.spacing)
        image.SetOrigin(grid.origin)
        image.SetDirection(grid.direction)
    sitk.WriteImage(image, str(path), compress and not path.name.endswith(".nii"))
    return path


def edited(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert len(re.findall(old, data)) == 1
    path.write_bytes(re.sub(old, new, data))
    return path


def nifti(path: Path, edit=lambda header: None, array: np.ndarray = CHEST, kind=nibabel.Nifti1Image) -> Path:
    """A NIfTI file of nibabel's whose header was changed afterwards."""
    image = kind(np.ascontiguousarray(array.T), np.diag([0.7, 0.8, 2.5, 1.0]))
    image.header.set_qform(image.affine, 1)
    image.header.set_sform(image.affine, 1)
    plain = path.with_name("plain.nii")
    nibabel.save(image, plain)
    data = plain.read_bytes()
    plain.unlink()
    header = type(image.header)(data[: image.header.sizeof_hdr], check=False)
    edit(header)
    data = header.binaryblock + data[len(header.binaryblock) :]
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def cut(suffix: str, share: float, compress: bool = True):
    def make(folder: Path) -> Path:
        path = save(folder / f"ct{suffix}", compress=compress)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return path

    return make


def two_dimensional(name: str):
    def make(folder: Path) -> Path:
        sitk.WriteImage(sitk.GetImageFromArray(CHEST[0]), str(folder / name))
        return folder / name

    return make


def four_dimensional(name: str):
    def make(folder: Path) -> Path:
        image = sitk.JoinSeries([sitk.GetImageFromArray(CHEST)] * 3)
        sitk.WriteImage(image, str(folder / name))
        return folder / name

    return make


def scaled(low: float, high: float, dtype=np.float32) -> np.ndarray:
    unit = (CHEST.astype(np.float64) + 1000) / 1040
    return (low + unit * (high - low)).astype(dtype)


def with_values(*values: float) -> np.ndarray:
    array = CHEST.astype(np.float32)
    array.reshape(-1)[: len(values)] = values
    return array
