"""A small chest in image files of every format, whole, odd or broken, for the tests that read and write such files."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from synthetic_dicom import small_chest

from COVIDLesionSegLib.imaging import Geometry, LabelVolume

CHEST = small_chest()
GRID = Geometry((20, 24, 12), (0.7, 0.8, 2.5), (-50.5, -60.25, 300.0))
SIZE = (20, 24, 12)
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


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    x, y, z = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def grid(order=(0, 1, 2), signs=(1.0, 1.0, 1.0), degrees=(0.0, 0.0, 0.0)) -> Geometry:
    direction = np.zeros((3, 3))
    for index_axis, lps_axis in enumerate(order):
        direction[lps_axis, index_axis] = signs[index_axis]
    return Geometry(
        SIZE, (0.703125, 0.81, 2.5), (-171.3, 88.25, -1203.7), tuple((rotation(degrees) @ direction).ravel())
    )


def lesion_labels(geometry: Geometry | None = None) -> LabelVolume:
    array = np.zeros(CHEST.shape, np.uint8)
    array[3:6, 4:9, 2:7] = 1
    array[7:9, 10:20, 11:18] = 2
    return LabelVolume(array, geometry or grid(), {1: "lesion", 2: "consolidation"})
