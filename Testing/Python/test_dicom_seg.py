"""DICOM SEG: what is written says the truth about voxels, place, codes and patient; what is read lands where it was."""

from __future__ import annotations

import json
import sys

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from file_faults import small_disk
from synthetic_dicom import PATIENT, small_chest, write_series

from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.errors import (
    GeometryError,
    GridMismatchError,
    InputError,
    OutputError,
    ReadError,
    SeriesChoiceError,
)
from COVIDLesionSegLib.imaging import (
    PATIENT_NOTICE,
    DicomSegment,
    Geometry,
    LabelVolume,
    SegmentAlgorithm,
    read_dicom_seg,
    read_labels,
    read_seg_source,
    read_volume,
    segment_styles,
    write_dicom_seg,
    write_labels,
    write_volume,
)
from COVIDLesionSegLib.models import ModelCard, save_model
from COVIDLesionSegLib.networks import COPLENet

AI = SegmentAlgorithm("COPLE-Net baseline", "3", parameters={"weights_sha256": "ab" * 32})
FRAME = "1.2.3.4.5.6"
OBLIQUE = [0.98, 0.17, 0.10, -0.18, 0.97, 0.16]


@pytest.fixture
def a_ct(tmp_path):
    """A series whose files stand in another order than its slices, with a frame of reference."""
    write_series(tmp_path / "ct", names="{:d}.dcm".format, change=reversed_numbers, FrameOfReferenceUID=FRAME)
    return tmp_path / "ct"


def reversed_numbers(dataset, k):
    dataset.InstanceNumber = 12 - k


def spotted(shape, seed=0, share=0.1):
    """A mask that differs in every slice; the first and last are empty."""
    mask = np.random.default_rng(seed).random(shape) < share
    mask[[0, -1]] = False
    return mask


def a_segment(mask, name="lesion", algorithm=AI):
    return DicomSegment(name, mask, algorithm)


def written(folder, segments, geometry=None):
    source = read_seg_source(folder)
    path = folder.parent / "out" / "seg.dcm"
    notes = write_dicom_seg(path, segments, geometry or source.geometry, source)
    return path, notes


# What is written


def test_another_reader_finds_the_same_voxels_on_the_same_slices(a_ct):
    volume = read_volume(a_ct)
    mask = spotted(volume.array.shape)
    path, notes = written(a_ct, [a_segment(mask)])
    assert notes == ()

    slices = {str(header.SOPInstanceUID): header for header in map(pydicom.dcmread, a_ct.iterdir())}
    seg = highdicom.seg.segread(path)
    assert seg.NumberOfFrames == mask.any(axis=(1, 2)).sum()
    found = np.zeros_like(mask)
    for plane, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        reference = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert position == slices[reference].ImagePositionPatient
        found[round(position[2] / 2)] = plane
    assert np.array_equal(found, mask)
    assert seg.FrameOfReferenceUID == FRAME
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == len(mask)
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (list(measures.PixelSpacing), measures.SpacingBetweenSlices) == ([0.8, 0.7], 2)

    box = seg.get_volume(combine_segments=True)
    whole = box.array[::-1] if box.affine[2, 0] < 0 else box.array
    assert np.array_equal(whole, mask[1:-1])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)], ids=str)
@pytest.mark.parametrize("flipped", [(), (0,), (1, 2), (0, 1, 2)], ids=str)
def test_masks_whose_axes_run_otherwise_come_to_the_right_place(a_ct, order, flipped):
    geometry = read_volume(a_ct).geometry
    mask = spotted(geometry.shape)
    path, _ = written(a_ct, [a_segment(np.flip(mask, flipped).transpose(order))], rearranged(geometry, order, flipped))
    labels = read_dicom_seg(path, geometry=geometry)
    assert labels.geometry == geometry
    assert np.array_equal(labels.array, mask)
    again = read_dicom_seg(path, geometry=rearranged(geometry, order, flipped))
    assert np.array_equal(again.array, np.flip(mask, flipped).transpose(order))


def rearranged(geometry, order, flipped):
    """The grid of ``np.flip(array, flipped).transpose(order)``."""
    corner = [n - 1 if 2 - axis in flipped else 0 for axis, n in enumerate(geometry.size)]
    signs = [-1 if 2 - axis in flipped else 1 for axis in range(3)]
    axes = [2 - axis for axis in order][::-1]
    return Geometry(
        [geometry.size[a] for a in axes],
        [geometry.spacing[a] for a in axes],
        (geometry.ijk_to_lps @ [*corner, 1])[:3],
        (geometry.matrix * signs)[:, axes].ravel(),
    )


def test_an_oblique_series_is_read_back_where_it_was(tmp_path):
    rows, columns = np.reshape(OBLIQUE, (2, 3))
    rows /= np.linalg.norm(rows)
    columns -= rows * (rows @ columns)
    columns /= np.linalg.norm(columns)
    normal = np.cross(rows, columns)
    positions = [list(np.round(-60 + 1.5 * k * normal, 6)) for k in range(12)]
    directions = [round(float(value), 8) for value in (*rows, *columns)]
    write_series(tmp_path / "ct", positions=positions, ImageOrientationPatient=directions)
    geometry = read_volume(tmp_path / "ct").geometry
    mask = spotted(geometry.shape)
    path, _ = written(tmp_path / "ct", [a_segment(mask)])
    assert np.array_equal(read_labels(path, geometry=geometry).array, mask)
    alone = read_labels(path)
    assert not alone.geometry.difference(geometry.cropped((slice(1, 11), slice(0, 24), slice(0, 20))))
    assert np.array_equal(alone.array, mask[1:11])


def test_positions_that_the_scanner_rounded_keep_their_slices(tmp_path):
    positions = [(-50.0, -60.0, round(1.25 * k, 1)) for k in range(12)]
    write_series(tmp_path / "ct", positions=positions, spacing=1.25)
    geometry = read_volume(tmp_path / "ct").geometry
    mask = spotted(geometry.shape)
    path, _ = written(tmp_path / "ct", [a_segment(mask)])
    assert np.array_equal(read_labels(path, geometry=geometry).array, mask)
    assert np.array_equal(read_labels(path).array, mask[1:11])


def test_codes_algorithm_and_color_are_those_of_the_resources(a_ct):
    shape = read_volume(a_ct).array.shape
    mask = spotted(shape)
    person = SegmentAlgorithm("COPLE-Net baseline", "3", "SEMIAUTOMATIC")
    names = [style.name for style in segment_styles()]
    segments = [DicomSegment(name, np.roll(mask, k, axis=2), person if k else AI) for k, name in enumerate(names)]
    segments.append(DicomSegment("Läsion links", mask, SegmentAlgorithm("", type="MANUAL")))
    path, _ = written(a_ct, segments)

    seg = highdicom.seg.segread(path)
    for style, item in zip(segment_styles(), seg.SegmentSequence, strict=False):
        assert item.SegmentLabel == style.name
        assert coded(item.SegmentedPropertyCategoryCodeSequence[0]) == style.category
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        assert coded(kind) == style.type
        modifiers = kind.get("SegmentedPropertyTypeModifierCodeSequence", [])
        assert [coded(code) for code in modifiers] == [style.modifier] * bool(style.modifier)
        assert [coded(code) for code in item.get("AnatomicRegionSequence", [])] == [style.region] * bool(style.region)
        color = highdicom.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue).to_rgb()
        assert np.allclose(color, np.multiply(style.color, 255), atol=1)
    first, second, last = seg.SegmentSequence[0], seg.SegmentSequence[1], seg.SegmentSequence[-1]
    assert (first.SegmentAlgorithmType, first.SegmentAlgorithmName) == ("AUTOMATIC", "COPLE-Net baseline")
    identification = first.SegmentationAlgorithmIdentificationSequence[0]
    assert (identification.AlgorithmVersion, identification.AlgorithmFamilyCodeSequence[0].CodeValue) == ("3", "123110")
    assert "weights_sha256=abab" in identification.AlgorithmParameters
    assert second.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert (last.SegmentAlgorithmType, last.SegmentLabel) == ("MANUAL", "Läsion links")
    # nothing is claimed about a segment that has no codes
    assert last.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99COVIDLESIONSEG"
    assert seg.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99COVIDLESIONSEG"
    assert seg.ContentQualification == "RESEARCH"


def coded(item):
    from COVIDLesionSegLib.imaging import Code

    return Code(item.CodingSchemeDesignator, item.CodeValue, item.CodeMeaning)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("Lesion", "52988006"),
        ("lesion 12 (2.1 mL)", "52988006"),
        ("lesion_3", "52988006"),
        ("consolidation (from -150 HU)", "CONSOLIDATION"),
        ("ground-glass opacity (below -150 HU)", "112120"),
        ("right lung nodule", "NAMED"),
        ("lesion-free lung", "NAMED"),
    ],
)
def test_one_of_several_lesions_is_coded_as_a_lesion(a_ct, name, code):
    path, _ = written(a_ct, [a_segment(spotted((12, 24, 20)), name)])
    segment = pydicom.dcmread(path).SegmentSequence[0]
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == code
    assert segment.SegmentLabel == name


def test_a_run_record_names_the_algorithm():
    record = {
        "model": {"name": "COPLE-Net", "version": "2", "weights_sha256": "ff"},
        "postprocessing": {"threshold": 0.4},
    }
    found = SegmentAlgorithm.from_record(record, edited=True)
    parameters = {"weights_sha256": "ff", "threshold": "0.4"}
    assert found == SegmentAlgorithm("COPLE-Net", "2", "SEMIAUTOMATIC", parameters)
    assert SegmentAlgorithm.from_record(record).type == "AUTOMATIC"


def test_overlapping_segments_are_all_there(a_ct):
    shape = read_volume(a_ct).array.shape
    first, second = spotted(shape, 1, 0.4), spotted(shape, 2, 0.4)
    assert (first & second).any()
    path, _ = written(a_ct, [a_segment(first), a_segment(second, "right lung")])
    assert highdicom.seg.segread(path).SegmentsOverlap == "YES"
    geometry = read_volume(a_ct).geometry
    with pytest.raises(ReadError, match="lesion and right lung overlap"):
        read_labels(path, geometry=geometry)
    assert np.array_equal(read_labels(path, "lesion", geometry).array == 1, first)
    assert np.array_equal(read_labels(path, 2, geometry).array == 2, second)
    with pytest.raises(InputError, match="no segment named liver; its names are: lesion, right lung"):
        read_labels(path, "liver", geometry)


def test_nothing_segmented_is_a_small_file_that_can_be_read(a_ct, caplog):
    volume = read_volume(a_ct)
    path, notes = written(a_ct, [a_segment(np.zeros(volume.array.shape, bool))])
    assert notes == ("Nothing is segmented: the DICOM SEG holds one empty frame.",)
    assert not caplog.records
    seg = highdicom.seg.segread(path)
    assert seg.NumberOfFrames == 1
    assert not seg.pixel_array.any()
    assert not read_labels(path, geometry=volume.geometry).array.any()
    _, notes = written(a_ct, [a_segment(spotted(volume.array.shape)), a_segment(volume.array > 9999, "consolidation")])
    assert notes == ("Segments without a voxel in the DICOM SEG: consolidation.",)


# The patient and the study


def test_the_patient_and_study_of_the_ct_are_carried(a_ct):
    path, _ = written(a_ct, [a_segment(spotted((12, 24, 20)))])
    seg, ct = pydicom.dcmread(path), pydicom.dcmread(a_ct / "0.dcm")
    assert (seg.PatientName, seg.PatientID, seg.PatientBirthDate) == (PATIENT, "4711", "19600102")
    assert seg.StudyInstanceUID == ct.StudyInstanceUID
    assert seg.SeriesInstanceUID != ct.SeriesInstanceUID
    assert (seg.Modality, seg.SeriesDescription) == ("SEG", "COVID-19 lesions (COVIDLesionSeg)")


@pytest.mark.parametrize(
    ("character_set", "name"),
    [("ISO_IR 100", "Müller^Jörg"), ("\\ISO 2022 IR 87", "Yamada^Tarou=山田^太郎"), ("ISO_IR 144", "Фомин^Юлия")],
)
def test_names_in_other_letters_stay_readable(tmp_path, character_set, name):
    write_series(tmp_path / "ct", SpecificCharacterSet=character_set.split("\\"), PatientName=name)
    path, _ = written(tmp_path / "ct", [a_segment(spotted((12, 24, 20)))])
    assert pydicom.dcmread(path).PatientName == name


def test_headers_from_an_anonymizer_are_completed_with_empty_values(tmp_path):
    gone = dict.fromkeys(["PatientName", "PatientID", "PatientBirthDate", "SeriesDescription", "SliceThickness"])
    write_series(tmp_path / "ct", **gone)
    path, notes = written(tmp_path / "ct", [a_segment(spotted((12, 24, 20)))])
    seg = pydicom.dcmread(path)
    assert (seg.PatientName, seg.PatientID, seg.PatientBirthDate, seg.AccessionNumber) == ("", "", "", "")
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 2
    # two SEGs of one series must lie over each other
    assert notes == ("The CT names no frame of reference; the DICOM SEG has one of its own.",)
    again, _ = written(tmp_path / "ct", [a_segment(spotted((12, 24, 20), 3))])
    assert pydicom.dcmread(again).FrameOfReferenceUID == seg.FrameOfReferenceUID


@pytest.mark.filterwarnings("error")
def test_values_that_dicom_does_not_allow_are_left_empty_and_mentioned(tmp_path):
    def spoil(dataset, k):
        dataset.PatientSex, dataset.PatientBirthDate, dataset.StudyTime = "male", "1960-13-77", "noon"
        dataset.PatientID = "4711 " + 70 * "x"

    with pydicom.config.disable_value_validation():
        write_series(tmp_path / "ct", change=spoil, FrameOfReferenceUID=FRAME)
    path, notes = written(tmp_path / "ct", [a_segment(spotted((12, 24, 20)))])
    seg = pydicom.dcmread(path)
    assert (seg.PatientSex, seg.PatientBirthDate, seg.StudyTime) == ("", "", "")
    with pydicom.config.disable_value_validation():
        assert seg.PatientID == "4711 " + 70 * "x"
    assert [note.split()[2] for note in notes] == ["PatientBirthDate", "PatientSex", "StudyTime"]
    assert "1960" not in " ".join(notes)


def test_a_wrong_distance_of_slices_in_the_headers_is_not_carried(tmp_path):
    write_series(tmp_path / "ct", SpacingBetweenSlices=-7, FrameOfReferenceUID=FRAME)
    path, _ = written(tmp_path / "ct", [a_segment(spotted((12, 24, 20)))])
    assert pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices == 2


# What is refused


def drop_slice(folder):
    write_series(folder, positions=[(-50.0, -60.0, 2.0 * k + 2 * (k > 6)) for k in range(12)])


def uneven(folder):
    write_series(folder, positions=[(-50.0, -60.0, 2.0 * k + 0.9 * (k > 6)) for k in range(12)])


def two_series(folder):
    write_series(folder)
    write_series(folder, names="B{:d}.dcm".format)


def two_frames(folder):
    write_series(folder, change=lambda dataset, k: setattr(dataset, "FrameOfReferenceUID", f"1.2.{k % 2}"))


def no_identifiers(folder):
    write_series(folder, StudyInstanceUID=None)


def no_dicom(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (drop_slice, GeometryError, "missing at z = 14"),
        (uneven, GeometryError, "unevenly spaced"),
        (two_series, SeriesChoiceError, "2 CT series"),
        (two_frames, GeometryError, "2 different values of FrameOfReferenceUID"),
        (no_identifiers, ReadError, "12 of 12 slices have no StudyInstanceUID"),
        (no_dicom, ReadError, "no DICOM image"),
    ],
)
def test_a_series_that_can_not_be_referred_to_is_refused(tmp_path, make, error, words):
    make(tmp_path / "ct")
    with pytest.raises(error, match=words):
        read_seg_source(tmp_path / "ct")


def test_the_files_can_be_listed_as_slicers_database_lists_them(a_ct, tmp_path):
    files = sorted(map(str, a_ct.iterdir()))
    source = read_seg_source(files)
    assert source.geometry == read_volume(a_ct).geometry
    assert sorted(map(str, source.files)) == files
    with pytest.raises(GeometryError, match="missing"):
        read_seg_source([file for file in files if not file.endswith("5.dcm")])
    with pytest.raises(ReadError, match="can't be read"):
        read_seg_source([*files, tmp_path / "gone.dcm"])
    with pytest.raises(ReadError, match="None of the 0 files"):
        read_seg_source([])


def test_masks_of_another_ct_are_refused(a_ct):
    geometry = read_volume(a_ct).geometry
    moved = Geometry(geometry.size, geometry.spacing, (-49.0, -60.0, 0.0), geometry.direction)
    with pytest.raises(GridMismatchError, match="origin 1 mm apart"):
        written(a_ct, [a_segment(spotted(geometry.shape))], moved)
    with pytest.raises(GridMismatchError, match="shape"):
        written(a_ct, [a_segment(spotted((3, 24, 20)))])


def test_an_input_or_an_unwritable_file_is_refused_and_nothing_is_left(a_ct, tmp_path):
    source = read_seg_source(a_ct)
    segments = [a_segment(spotted((12, 24, 20)))]
    with pytest.raises(InputError, match="is an input"):
        write_dicom_seg(a_ct / "3.dcm", segments, source.geometry, source)
    with pytest.raises(InputError, match="no segment"):
        write_dicom_seg(tmp_path / "seg.dcm", [], source.geometry, source)
    with small_disk(0.008) as disk:
        with pytest.raises(OutputError, match="disk is full"):
            write_dicom_seg(disk / "seg.dcm", segments, source.geometry, source)
        assert not list(disk.iterdir())


def test_a_missing_package_is_named(a_ct, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match="highdicom is not installed"):
        read_seg_source(a_ct)


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


def test_what_is_no_segmentation_or_damaged_is_refused(a_ct, tmp_path):
    with pytest.raises(ReadError, match="CT Image Storage; a segmentation is needed"):
        read_labels(a_ct / "0.dcm")
    path, _ = written(a_ct, [a_segment(spotted((12, 24, 20)))])
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ReadError):
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
    assert "4711" not in record


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
