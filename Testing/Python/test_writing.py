"""Written files: exact voxels on the own grid in every format, segments as Slicer shows them, all or nothing."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from file_faults import open_folder, small_disk, without_rights
from pydicom.sr._concepts_dict import concepts
from synthetic_dicom import small_chest, write_series

from COVIDLesionSegLib.errors import GridMismatchError, InputError, OutputError, ReadError
from COVIDLesionSegLib.imaging import (
    Geometry,
    LabelVolume,
    read_labels,
    read_volume,
    require_other_file,
    segment_style,
    segment_styles,
    write_labels,
    write_volume,
)
from COVIDLesionSegLib.resources import load_json

CHEST = small_chest()
SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".mha"]
SIZE = (20, 24, 12)
ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]


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


MANY_LABELS = LabelVolume(np.arange(1, CHEST.size + 1, dtype=np.uint16).reshape(CHEST.shape), grid())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("degrees", [(0, 0, 0), (20, -11, 7)])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation_comes_back_exactly(tmp_path, order, signs, degrees, suffix):
    geometry = grid(order, signs, degrees)
    array = np.random.default_rng(1).integers(-1000, 1000, CHEST.shape).astype(np.int16)
    write_volume(array, tmp_path / f"ct{suffix}", geometry)
    volume = read_volume(tmp_path / f"ct{suffix}")
    assert np.array_equal(volume.array, array)
    assert volume.geometry.difference(geometry) == ""
    # far below what float32 headers lose
    assert np.allclose(volume.geometry.ijk_to_lps, geometry.ijk_to_lps, rtol=1e-6, atol=2e-4)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_segmentations_of_every_orientation_come_back_exactly(tmp_path, order, signs):
    labels = lesion_labels(grid(order, signs, (5, 33, -12)))
    write_labels(labels, tmp_path / "m.seg.nrrd")
    again = read_labels(tmp_path / "m.seg.nrrd")
    assert np.array_equal(again.array, labels.array)
    assert again.geometry.difference(labels.geometry) == ""
    assert dict(again.names) == {1: "lesion", 2: "consolidation"}


def test_other_programs_see_the_same_grid(tmp_path):
    geometry = grid((2, 0, 1), (-1.0, 1.0, 1.0), (20, -11, 7))
    write_volume(CHEST, tmp_path / "ct.nii.gz", geometry)
    image = nibabel.load(tmp_path / "ct.nii.gz")
    for affine in (image.get_sform(), image.get_qform()):
        assert np.allclose(affine, geometry.ijk_to_ras, rtol=1e-5, atol=2e-4)
    assert np.array_equal(np.asarray(image.dataobj).T, CHEST)
    assert image.header.get_xyzt_units()[0] == "mm"
    for suffix in SUFFIXES:
        write_volume(CHEST, tmp_path / f"ct{suffix}", geometry)
        assert Geometry.from_sitk(sitk.ReadImage(str(tmp_path / f"ct{suffix}"))).difference(geometry) == ""


def test_a_dicom_study_comes_back_on_its_own_grid(tmp_path):
    write_series(tmp_path / "ct", CHEST, ImageOrientationPatient=[0.9396926, 0.3420201, 0, 0, 0, -1],
                 positions=[(0.3420201 * -1.5 * k, 0.9396926 * 1.5 * k, 0) for k in range(12)])  # fmt: skip
    volume = read_volume(tmp_path / "ct")
    for suffix in SUFFIXES:
        write_volume(volume, tmp_path / f"ct{suffix}")
        again = read_volume(tmp_path / f"ct{suffix}")
        assert np.array_equal(again.array, volume.array)
        assert again.geometry.difference(volume.geometry) == ""


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_every_type_is_written(tmp_path, suffix, dtype):
    array = (CHEST > 0).astype(dtype) if dtype == "bool" else np.abs(CHEST).astype(dtype)
    write_volume(array, tmp_path / f"a{suffix}", grid())
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"a{suffix}"))), array)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".seg.nrrd"])
def test_masks_are_uint8_and_compressed(tmp_path, suffix):
    labels = LabelVolume(CHEST > 0, grid(), {1: "lesion"})
    path = tmp_path / f"Fall 1 ä{suffix}"
    write_labels(labels, str(path))
    image = sitk.ReadImage(str(path))
    assert image.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(sitk.GetArrayFromImage(image), CHEST > 0)
    assert suffix == ".nii" or path.stat().st_size < CHEST.size / 2
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_views_of_arrays_are_written(tmp_path):
    geometry = grid((1, 0, 2), (1.0, -1.0, -1.0))
    view = geometry.axial_view()
    write_volume(view.apply(CHEST), tmp_path / "axial.nrrd", view.geometry)
    again = read_volume(tmp_path / "axial.nrrd")
    assert np.array_equal(view.restore(again.array), CHEST)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda folder: write_volume(CHEST, folder / "a.nii.gz"), InputError, "geometry"),
        (lambda folder: write_volume(CHEST[1:], folder / "a.nii.gz", grid()), GridMismatchError, "same grid"),
        (lambda folder: write_volume(CHEST, folder / "a.png", grid()), InputError, "no format that is written"),
        (lambda folder: write_volume(CHEST, folder / "a.mhd", grid()), InputError, "no format that is written"),
        (lambda folder: write_volume(CHEST * 1j, folder / "a.nrrd", grid()), InputError, "complex"),
        (
            lambda folder: write_labels(LabelVolume(CHEST, grid()), folder / "a.nrrd"),
            InputError,
            "whole numbers from 0",
        ),
        (lambda folder: write_labels(LabelVolume(CHEST / 2, grid()), folder / "a.nrrd"), InputError, "float64"),
        (lambda folder: write_labels(MANY_LABELS, folder / "a.seg.nrrd"), InputError, "5760 segments"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, call, error, words):
    with pytest.raises(error, match=words):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


# All or nothing


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".seg.nrrd"])
def test_a_full_disk_leaves_nothing_or_the_old_file(suffix):
    array = np.random.default_rng(0).integers(0, 4, (60, 100, 100)).astype(np.uint8)
    labels = LabelVolume(array, Geometry((100, 100, 60)))
    with small_disk(0.1) as disk:
        target = disk / f"mask{suffix}"
        with pytest.raises(OutputError, match="disk is full"):
            write_labels(labels, target)
        assert not list(disk.iterdir())
        target.write_bytes(b"old")
        with pytest.raises(OutputError, match="disk is full"):
            write_labels(labels, target)
        assert [p.name for p in disk.iterdir()] == [target.name]
        assert target.read_bytes() == b"old"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("missing", [1, 4, 200])
def test_the_check_for_incomplete_nifti_files_sees_them(tmp_path, suffix, missing):
    from COVIDLesionSegLib.imaging.writing import _require_complete

    path = tmp_path / f"ct{suffix}"
    write_volume(CHEST, path, grid())
    _require_complete(path, CHEST.nbytes, suffix, path)
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises((OutputError, OSError)):
        _require_complete(path, CHEST.nbytes, suffix, path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".seg.nrrd", ".mha"])
def test_a_read_only_folder_is_told(suffix):
    with open_folder() as folder:
        with without_rights(), pytest.raises(OutputError, match="read-only"):
            write_labels(lesion_labels(), folder / f"m{suffix}")
        assert not list(folder.iterdir())


def test_a_folder_in_the_way_is_told(tmp_path):
    (tmp_path / "m.nii.gz").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_labels(lesion_labels(), tmp_path / "m.nii.gz")


def test_a_missing_folder_is_made(tmp_path):
    write_labels(lesion_labels(), tmp_path / "new" / "er" / "m.nii.gz")
    assert [p.name for p in (tmp_path / "new" / "er").iterdir()] == ["m.nii.gz"]


def test_an_input_is_not_replaced(tmp_path):
    ct = tmp_path / "ct.nii.gz"
    write_volume(CHEST, ct, grid())
    (tmp_path / "link.nii.gz").symlink_to(ct)
    for output in (ct, tmp_path / "." / "sub" / ".." / "ct.nii.gz", tmp_path / "link.nii.gz"):
        with pytest.raises(InputError, match="is an input"):
            require_other_file(output, [tmp_path / "other", ct])
    require_other_file(tmp_path / "new.nii.gz", [ct])


# Segments


def test_names_colors_and_codes_follow_their_schema():
    schema = load_json("Terminologies/segments.schema.json")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(load_json("Terminologies/segments.json"), schema)
    styles = segment_styles()
    assert {style.name for style in styles} == {
        "lesion", "ground-glass opacity", "consolidation", "right lung", "left lung"
    }  # fmt: skip
    for values in ({s.id for s in styles}, {s.color for s in styles}, {s.terminology_entry for s in styles}):
        assert len(values) == len(styles)


@pytest.mark.parametrize("style", segment_styles(), ids=lambda style: style.id)
def test_every_public_code_is_in_the_dicom_dictionary(style):
    private = []
    for code in (style.category, style.type, style.modifier, style.region):
        if code is None:
            continue
        if code.scheme == "99COVIDLESIONSEG":
            private.append(code)
            known = [m for codes in concepts["DCM"].values() for m, _ in codes.values()]
            assert not any("onsolidation" in meaning for meaning in known), "a public code exists now: use it"
            continue
        meanings = [codes[code.value][0] for codes in concepts[code.scheme].values() if code.value in codes]
        assert code.meaning in meanings, f"{code} is not what pydicom {pydicom.__version__} knows: {meanings}"
    assert [code.value for code in private] == (["CONSOLIDATION"] if style.id == "consolidation" else [])


def test_unknown_names_get_a_color_and_no_code():
    style = segment_style("nodule", 7)
    assert (style.name, style.terminology_entry) == ("nodule", "")
    assert all(0 <= part <= 1 for part in style.color)
    assert style.color != segment_style("cyst", 8).color
    assert segment_style("Left Lung") == segment_style("left_lung")


def test_unnamed_values_and_empty_segments_are_written(tmp_path):
    labels = lesion_labels()
    write_labels(LabelVolume(labels.array, grid(), {1: "lesion", 5: "ground-glass opacity"}), tmp_path / "m.seg.nrrd")
    names = read_labels(tmp_path / "m.seg.nrrd").names
    assert dict(names) == {1: "lesion", 2: "label 2", 5: "ground-glass opacity"}
    only = read_labels(tmp_path / "m.seg.nrrd", "lesion")
    assert np.array_equal(only.mask(), labels.mask(1))
    assert dict(only.names) == {1: "lesion"}


# What Slicer itself sees; its MRML runs in a process of its own, so that nothing of it stays behind here

SLICER = """
import json, sys
import numpy as np, slicer, vtk
from vtk.util.numpy_support import vtk_to_numpy

scene = slicer.vtkMRMLScene()
logic = slicer.vtkSlicerSegmentationsModuleLogic()
logic.SetMRMLScene(scene)

def load(path):
    node = slicer.vtkMRMLSegmentationNode()
    scene.AddNode(node)
    storage = slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(storage)
    storage.SetFileName(path)
    assert storage.ReadData(node), path
    return node, storage

def masks(node):
    found = {}
    segmentation = node.GetSegmentation()
    for index in range(segmentation.GetNumberOfSegments()):
        key = segmentation.GetNthSegmentID(index)
        segment = segmentation.GetSegment(key)
        image = slicer.vtkOrientedImageData()
        node.GetBinaryLabelmapRepresentation(key, image)
        x0, x1, y0, y1, z0, z1 = image.GetExtent()
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        affine = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
        voxels = []
        if x1 >= x0:
            data = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(z1 - z0 + 1, y1 - y0 + 1, x1 - x0 + 1)
            k, j, i = np.nonzero(data)
            ijk = np.stack([i + x0, j + y0, k + z0, np.ones_like(i)])
            voxels = (affine @ ijk)[:3].T.tolist()
        tag = vtk.reference("")
        segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
        found[key] = dict(name=segment.GetName(), color=list(segment.GetColor()), tag=str(tag), voxels=voxels)
    return found

action, path = sys.argv[1:3]
if action == "read":
    print("RESULT" + json.dumps(masks(load(path)[0])))
else:
    node, storage = load(path)
    segmentation = node.GetSegmentation()
    other = slicer.vtkSegment()
    other.SetName("overlapping")
    image = slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation(segmentation.GetNthSegmentID(0), image)
    other.AddRepresentation("Binary labelmap", image)
    segmentation.AddSegment(other, "other")
    storage.SetFileName(sys.argv[3])
    assert storage.WriteData(node)
    print("RESULT{}")
"""


def in_slicer(*arguments: str | Path) -> dict:
    if importlib.util.find_spec("slicer") is None:
        pytest.skip("slicer-core is not installed")
    command = [sys.executable, "-c", SLICER, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, result.stdout + result.stderr
    return json.loads(lines[0].removeprefix("RESULT"))


@pytest.mark.parametrize(
    ("order", "signs", "degrees", "crop"),
    [
        ((0, 1, 2), (1.0, 1.0, 1.0), (0, 0, 0), False),
        ((0, 1, 2), (1.0, 1.0, -1.0), (20, -11, 7), False),  # left-handed
        ((2, 0, 1), (-1.0, 1.0, 1.0), (5, 33, -12), False),
        ((2, 0, 1), (-1.0, 1.0, 1.0), (5, 33, -12), True),
    ],
)
def test_slicer_shows_names_colors_codes_and_voxels(tmp_path, order, signs, degrees, crop):
    labels = lesion_labels(grid(order, signs, degrees))
    labels = LabelVolume(labels.array, labels.geometry, {**labels.names, 3: "left lung"})
    write_labels(labels, tmp_path / "m.seg.nrrd", crop)
    segments = in_slicer("read", tmp_path / "m.seg.nrrd")
    assert list(segments) == ["lesion", "consolidation", "left_lung"]
    for value, name in labels.names.items():
        style = segment_style(name)
        segment = segments[style.id]
        assert segment["name"] == name
        assert np.allclose(segment["color"], style.color, atol=1e-5)
        assert segment["tag"] == style.terminology_entry
        k, j, i = np.nonzero(labels.array == value)
        expected = (labels.geometry.ijk_to_ras @ np.stack([i, j, k, np.ones_like(i)]))[:3].T
        shown = np.array(segment["voxels"]).reshape(-1, 3)
        assert shown.shape == expected.shape
        if len(expected):
            # slicer keeps right-handed grids and flips the others, so the order may differ
            assert np.allclose(np.array(sorted(shown.round(3).tolist())), sorted(expected.round(3).tolist()), atol=2e-3)


def test_layers_that_slicer_wrote_are_read(tmp_path):
    labels = lesion_labels()
    write_labels(labels, tmp_path / "m.seg.nrrd")
    in_slicer("overlap", tmp_path / "m.seg.nrrd", tmp_path / "layers.seg.nrrd")
    layered = sitk.ReadImage(str(tmp_path / "layers.seg.nrrd"))
    assert layered.GetNumberOfComponentsPerPixel() == 2
    # Slicer keeps the grid of the CT, not only the box around the segments
    assert Geometry.from_sitk(layered).difference(labels.geometry) == ""

    with pytest.raises(ReadError, match="segments lesion and overlapping overlap"):
        read_labels(tmp_path / "layers.seg.nrrd")
    for name, value in (("lesion", 1), ("consolidation", 2), ("overlapping", 1)):
        chosen = read_labels(tmp_path / "layers.seg.nrrd", name)
        assert np.array_equal(chosen.mask(), labels.mask(value))
        assert list(chosen.names.values()) == [name]
    assert read_labels(tmp_path / "layers.seg.nrrd", 2).names == {2: "consolidation"}


def test_layers_without_overlap_become_one_label_map(tmp_path):
    labels = lesion_labels()
    image = sitk.GetImageFromArray(np.stack([labels.mask(1), labels.mask(2)], -1).astype(np.uint8), isVector=True)
    for index, name in enumerate(("ground-glass opacity", "consolidation")):
        fields = {"ID": f"s{index}", "Name": name, "LabelValue": "1", "Layer": str(index)}
        for key, text in fields.items():
            image.SetMetaData(f"Segment{index}_{key}", text)
    sitk.WriteImage(image, str(tmp_path / "m.seg.nrrd"), True)
    merged = read_labels(tmp_path / "m.seg.nrrd")
    assert np.array_equal(merged.array, labels.array)
    assert dict(merged.names) == {1: "ground-glass opacity", 2: "consolidation"}


def test_a_box_around_the_segments_is_put_back_on_the_grid_of_the_ct(tmp_path):
    labels = lesion_labels(grid((1, 0, 2), (1.0, -1.0, 1.0), (5, 33, -12)))
    write_labels(labels, tmp_path / "m.seg.nrrd")
    whole = sitk.ReadImage(str(tmp_path / "m.seg.nrrd"))
    cropped = whole[2:18, 4:20, 3:9]
    for key in whole.GetMetaDataKeys():
        cropped.SetMetaData(key, whole.GetMetaData(key))
    sitk.WriteImage(cropped, str(tmp_path / "box.seg.nrrd"), True)
    again = read_labels(tmp_path / "box.seg.nrrd")
    assert again.geometry.difference(labels.geometry) == ""
    assert np.array_equal(again.array, labels.array)

    # a segmentation that is not on the voxels of the CT stays as it is
    cropped.SetOrigin([value + 0.3 for value in cropped.GetOrigin()])
    sitk.WriteImage(cropped, str(tmp_path / "shifted.seg.nrrd"), True)
    assert read_labels(tmp_path / "shifted.seg.nrrd").geometry.size == (16, 16, 6)


def test_a_damaged_description_of_segments_is_told(tmp_path):
    write_labels(lesion_labels(), tmp_path / "m.seg.nrrd")
    path = tmp_path / "m.seg.nrrd"
    path.write_bytes(path.read_bytes().replace(b"Segment0_LabelValue:=1", b"Segment0_LabelValue:=x"))
    with pytest.raises(ReadError, match="Segment0_LabelValue is 'x'"):
        read_labels(path)


@pytest.mark.parametrize("empty", [False, True], ids=["lesion", "no lesion"])
def test_a_cropped_segmentation_is_small_and_comes_back_on_the_whole_grid(tmp_path, empty):
    labels = lesion_labels(grid((2, 0, 1), (-1.0, 1.0, 1.0), (5, 33, -12)))
    if empty:
        labels = LabelVolume(np.zeros_like(labels.array), labels.geometry, labels.names)
    write_labels(labels, tmp_path / "m.seg.nrrd", crop=True)
    assert np.prod(sitk.ReadImage(str(tmp_path / "m.seg.nrrd")).GetSize()) < labels.array.size
    again = read_labels(tmp_path / "m.seg.nrrd")
    assert again.geometry.difference(labels.geometry) == ""
    assert np.array_equal(again.array, labels.array)
    assert again.names == labels.names


def test_only_a_segmentation_is_cropped(tmp_path):
    with pytest.raises(InputError, match="can hold a part of the grid"):
        write_labels(lesion_labels(grid()), tmp_path / "m.nii.gz", crop=True)
