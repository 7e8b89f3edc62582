"""Written segments: names, colors, codes and voxels as Slicer shows them, and back from Slicer."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import jsonschema
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from image_files import grid, lesion_labels
from pydicom.sr._concepts_dict import concepts

from COVIDLesionSegLib.errors import InputError, ReadError
from COVIDLesionSegLib.imaging import Geometry, LabelVolume, read_labels, segment_style, segment_styles, write_labels
from COVIDLesionSegLib.resources import load_json


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


@pytest.mark.parametrize("absent", ["", "Layer", "LabelValue", "Layer LabelValue"])
def test_layers_without_overlap_become_one_label_map(tmp_path, absent):
    labels = lesion_labels()
    image = sitk.GetImageFromArray(np.stack([labels.mask(1), labels.mask(2)], -1).astype(np.uint8), isVector=True)
    for index, name in enumerate(("ground-glass opacity", "consolidation")):
        fields = {"ID": f"s{index}", "Name": name, "LabelValue": "1", "Layer": str(index)}
        for key in fields.keys() - set(absent.split()):
            image.SetMetaData(f"Segment{index}_{key}", fields[key])
    sitk.WriteImage(image, str(tmp_path / "m.seg.nrrd"), True)
    merged = read_labels(tmp_path / "m.seg.nrrd")
    assert np.array_equal(merged.array, labels.array)
    assert dict(merged.names) == {1: "ground-glass opacity", 2: "consolidation"}

    # other writers count the layers last
    head, _, data = (tmp_path / "m.seg.nrrd").read_bytes().partition(b"\n\n")
    stored = np.frombuffer(zlib.decompress(data, 31), np.uint8).reshape(*labels.array.shape, 2)
    kinds, sizes = (re.search(rb"\n" + name + rb": (\S+) ([^\n]*)", head) for name in (b"kinds", b"sizes"))
    assert kinds is not None and sizes is not None
    for found in (kinds, sizes):
        head = head.replace(found[0], found[0].replace(found[1] + b" " + found[2], found[2] + b" " + found[1]))
    head = head.replace(b"encoding: gzip", b"encoding: raw").replace(b"none (", b"(")
    head = re.sub(rb"(space directions: [^\n]*)", rb"\1 none", head)
    (tmp_path / "last.seg.nrrd").write_bytes(head + b"\n\n" + np.moveaxis(stored, -1, 0).tobytes())
    assert np.array_equal(read_labels(tmp_path / "last.seg.nrrd").array, labels.array)

    for layer in ("2", "-1"):
        image.SetMetaData("Segment1_Layer", layer)
        sitk.WriteImage(image, str(tmp_path / "m.seg.nrrd"), True)
        with pytest.raises(ReadError, match=f"consolidation is in layer {layer}, but the file has the layers 0 to 1"):
            read_labels(tmp_path / "m.seg.nrrd")


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
