"""DICOM SEG that others wrote, the commands that write and take it, and a real study."""

from __future__ import annotations

import json

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from dicom_seg_files import FRAME, a_segment, scanned, spotted, written
from synthetic_dicom import PATIENT, small_chest, write_series

from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.errors import (
    GridMismatchError,
    ReadError,
)
from COVIDLesionSegLib.imaging import (
    PATIENT_NOTICE,
    Geometry,
    LabelVolume,
    read_labels,
    read_seg_source,
    read_volume,
    write_dicom_seg,
    write_labels,
    write_volume,
)
from COVIDLesionSegLib.models import ModelCard, save_model
from COVIDLesionSegLib.networks import COPLENet


@pytest.fixture
def a_ct(tmp_path):
    return scanned(tmp_path)


# What others wrote


@pytest.fixture
def of_others(a_ct, tmp_path):
    """A function that writes a SEG as other programs do; returns the CT's geometry and the file."""

    def write(pixels, kind="BINARY", **options):
        headers = read_seg_source(a_ct).headers
        described = [
            highdicom.seg.SegmentDescription(
                n,
                f"thing {n}",
                highdicom.sr.CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure"),
                highdicom.sr.CodedConcept("52988006", "SCT", "Lesion"),
                "MANUAL",
            )
            for n in range(1, int(np.ceil(pixels.max())) + 1)
        ]
        uids = [highdicom.UID() for _ in range(2)]
        seg = highdicom.seg.Segmentation(
            headers, pixels, kind, described, uids[0], 1, uids[1], 1, "other", "other", "1", "1", **options
        )
        seg.save_as(tmp_path / "other.dcm")
        return read_volume(a_ct).geometry, tmp_path / "other.dcm"

    return write


def test_a_label_map_segmentation_is_read(of_others):
    pixels = np.zeros((12, 24, 20), np.uint8)
    pixels[3:6, 4:9, 5:11], pixels[5:8, 12:15, 2:6] = 1, 2
    geometry, path = of_others(pixels, "LABELMAP")
    labels = read_labels(path, geometry=geometry)
    assert np.array_equal(labels.array, pixels)
    assert labels.names == {1: "thing 1", 2: "thing 2"}
    assert np.array_equal(read_labels(path, "thing 2", geometry).array, np.where(pixels == 2, 2, 0))


def test_fractions_are_refused_unless_they_are_all_or_nothing(of_others):
    pixels = np.zeros((12, 24, 20), np.float32)
    pixels[3:6, 4:9, 5:11] = 1
    geometry, path = of_others(pixels, "FRACTIONAL")
    assert np.array_equal(read_labels(path, geometry=geometry).array, pixels)
    pixels[4, 5, 6] = 0.5
    _, path = of_others(pixels, "FRACTIONAL")
    with pytest.raises(ReadError, match="fractions"):
        read_labels(path, geometry=geometry)


def test_frames_with_gaps_find_their_slices_though_the_file_does_not_say_how_far_these_lie_apart(of_others):
    pixels = np.zeros((12, 24, 20), np.uint8)
    pixels[[1, 4, 6, 11], 4:9, 5:11] = 1
    geometry, path = of_others(pixels)
    seg = pydicom.dcmread(path)
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].pop("SpacingBetweenSlices", None)
    del seg.FrameOfReferenceUID, seg.DimensionIndexSequence
    seg.save_as(path)
    assert np.array_equal(read_labels(path, geometry=geometry).array, pixels)


def test_one_slice_is_put_on_the_grid(of_others):
    pixels = np.zeros((12, 24, 20), np.uint8)
    pixels[7, 4:9, 5:11] = 1
    geometry, path = of_others(pixels)
    assert np.array_equal(read_labels(path, geometry=geometry).array, pixels)
    assert read_labels(path).array.shape == (1, 24, 20)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Geometry((20, 24, 12), (0.7, 0.8, 2.0), (-49.65, -60.0, 0.0)), "between the voxels"),
        (Geometry((20, 24, 5), (0.7, 0.8, 2.0), (-50.0, -60.0, 0.0)), "outside"),
        (Geometry((20, 24, 12), (0.75, 0.8, 2.0), (-50.0, -60.0, 0.0)), "0.7 x 0.8 mm, not 0.75 x 0.8 mm"),
        (Geometry((20, 24, 12), (0.7, 0.8, 3.0), (-50.0, -60.0, 0.0)), "between the voxels"),
        (
            Geometry((20, 24, 12), (0.7, 0.8, 2.0), (-50.0, -60.0, 0.0), (0.995, -0.1, 0, 0.1, 0.995, 0, 0, 0, 1)),
            "turned",
        ),
    ],
)
def test_a_grid_that_it_was_not_drawn_on_is_refused(a_ct, other, words):
    path, _ = written(a_ct, [a_segment(spotted((12, 24, 20)))])
    with pytest.raises(GridMismatchError, match=words):
        read_labels(path, geometry=other)


@pytest.mark.parametrize("height", [float("nan"), float("inf"), 1e300, 4e8])
@pytest.mark.parametrize("on_the_grid", [True, False])
def test_a_frame_that_lies_nowhere_is_refused(a_ct, tmp_path, height, on_the_grid):
    path, _ = written(a_ct, [a_segment(spotted((12, 24, 20)))])
    seg = pydicom.dcmread(path)
    place = seg.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    # pydicom checks what is assigned
    place["ImagePositionPatient"]._value = [-50.0, -60.0, height]
    seg.save_as(tmp_path / "far.dcm")
    geometry = read_volume(a_ct).geometry if on_the_grid else None
    with pytest.raises(ReadError, match="a frame lies nowhere"):
        read_labels(tmp_path / "far.dcm", geometry=geometry)


def test_what_is_no_segmentation_or_damaged_is_refused(a_ct, tmp_path):
    with pytest.raises(ReadError, match="CT Image Storage; a segmentation is needed"):
        read_labels(a_ct / "0.dcm")
    path, _ = written(a_ct, [a_segment(spotted((12, 24, 20)))])
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ReadError):
            read_labels(path)


@pytest.mark.parametrize("packing", ["1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.90"], ids=["MPEG-2", "JPEG 2000"])
def test_pixels_that_cannot_be_decoded_are_told(a_ct, packing):
    path, _ = written(a_ct, [a_segment(spotted((12, 24, 20)))])
    seg = pydicom.dcmread(path)
    seg.file_meta.TransferSyntaxUID = packing
    seg.PixelData = pydicom.encaps.encapsulate([bytes(8)] * seg.NumberOfFrames)
    seg["PixelData"].is_undefined_length = True
    seg.save_as(path)
    with pytest.raises(ReadError, match=r"The pixels of seg\.dcm are packed in a way that can't be read, or damaged"):
        read_labels(path)


# The commands


@pytest.fixture(scope="module")
def a_tiny_model(tmp_path_factory):
    torch.manual_seed(1)
    network = COPLENet(channels=(2, 4, 8, 16, 32)).eval()
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(network, ModelCard("tiny", "Tiny net", "coplenet", network.arguments, version="7"), path)
    return path


@pytest.fixture
def a_study(tmp_path):
    """A CT in DICOM large enough for the network, and its lungs."""
    array = small_chest((6, 48, 40))
    write_series(tmp_path / "one", array, spacing=5.0, FrameOfReferenceUID=FRAME)
    geometry = read_volume(tmp_path / "one").geometry
    lungs = np.zeros(array.shape, np.uint8)
    lungs[array == -850], lungs[array == -870] = 1, 2
    write_volume(lungs, tmp_path / "lungs.nii.gz", geometry)
    return tmp_path / "one", tmp_path / "lungs.nii.gz"


def run(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize("output", ["out", "out/one_lesions.dcm"])
def test_the_command_writes_it_and_says_first_that_it_names_the_patient(
    a_study, a_tiny_model, tmp_path, capsys, output
):
    ct, lungs = a_study
    words = ["--lungs", lungs, "--model", a_tiny_model, "--quiet"]
    assert run("segment", ct, "-o", tmp_path / "plain", *words) == 0
    capsys.readouterr()
    assert run("segment", ct, "-o", tmp_path / output, "--format", "dicom-seg", *words) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"note: {PATIENT_NOTICE}")
    assert PATIENT not in said.out + said.err

    geometry = read_volume(ct).geometry
    plain = read_labels(tmp_path / "plain" / "one_lesions.nii.gz")
    labels = read_labels(tmp_path / "out" / "one_lesions.dcm", geometry=geometry)
    assert np.array_equal(labels.array, plain.array)
    seg = pydicom.dcmread(tmp_path / "out" / "one_lesions.dcm")
    assert seg.SegmentSequence[0].SegmentAlgorithmName == "Tiny net"
    assert seg.PatientName == PATIENT
    record = (tmp_path / "out" / "one_lesions.json").read_text()
    assert json.loads(record)["model"]["id"] == "tiny"
    assert "MRN-4711" not in record


def test_the_command_refuses_it_for_a_ct_that_is_not_dicom(a_study, a_tiny_model, tmp_path, capsys):
    ct, lungs = a_study
    write_volume(read_volume(ct), tmp_path / "ct.nii.gz")
    words = ["-o", tmp_path / "m.dcm", "--lungs", lungs, "--model", a_tiny_model, "--quiet"]
    assert run("segment", tmp_path / "ct.nii.gz", *words) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[1] == (
        "error: A DICOM SEG can be written for a CT in DICOM only; ct.nii.gz is NIfTI. "
        "Choose --format seg.nrrd or nii.gz."
    )
    assert not (tmp_path / "m.dcm").exists()


def test_other_commands_take_it_where_they_take_a_mask(a_study, tmp_path, capsys):
    ct, lungs = a_study
    volume = read_volume(ct)
    lesion, reference = (spotted(volume.array.shape, seed) for seed in (4, 5))
    reference[1] = False
    seg, _ = written(ct, [a_segment(lesion)])
    seg = seg.rename(tmp_path / "a.dcm")
    other, _ = written(ct, [a_segment(reference)])
    for name, mask in (("a", lesion), ("b", reference)):
        write_labels(LabelVolume(mask.astype(np.uint8), volume.geometry), tmp_path / f"{name}.nii.gz")

    def dice(prediction, judged_by):
        assert run("evaluate", prediction, judged_by, "--json") == 0
        return json.loads(capsys.readouterr().out)["quantities"]["dice"]["value"]

    expected = dice(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert dice(seg, tmp_path / "b.nii.gz") == expected
    assert dice(tmp_path / "a.nii.gz", other) == expected
    assert dice(seg, other) == expected
    assert dice(other, seg) == expected
    assert run("report", ct, seg, "--lungs", lungs, "--reference", other, "-o", tmp_path / "r.html", "--json") == 0
    measured = json.loads(capsys.readouterr().out)["quantities"]
    assert measured["lesion_volume"]["value"] == pytest.approx(lesion.sum() * volume.geometry.voxel_ml)


# Real data


def test_a_real_study_is_read_back_voxel_for_voxel(shared, tmp_path):
    folder = shared("data/covid-ct-md/dicom/covid_P001")
    volume = read_volume(folder)
    mask = (volume.array > -700) & (volume.array < -300)
    source = read_seg_source(folder)
    notes = write_dicom_seg(tmp_path / "seg.dcm", [a_segment(mask)], volume.geometry, source)
    assert notes == ()
    assert np.array_equal(read_labels(tmp_path / "seg.dcm", geometry=volume.geometry).array, mask)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    headers = [str(header.SOPInstanceUID) for header in source.headers]
    again = seg.get_pixels_by_source_instance(headers, combine_segments=True, assert_missing_frames_are_empty=True)
    assert np.array_equal(again, mask)
