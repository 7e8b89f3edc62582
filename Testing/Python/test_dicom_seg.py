"""DICOM SEG: what is written says the truth about voxels, place, codes and patient; what is read lands where it was."""

from __future__ import annotations

import sys

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_seg_files import AI, FRAME, a_segment, scanned, spotted, written
from file_faults import small_disk
from synthetic_dicom import PATIENT, write_series

from COVIDLesionSegLib.errors import (
    GeometryError,
    GridMismatchError,
    InputError,
    OutputError,
    ReadError,
    SeriesChoiceError,
)
from COVIDLesionSegLib.imaging import (
    DicomSegment,
    Geometry,
    SegmentAlgorithm,
    read_dicom_seg,
    read_labels,
    read_seg_source,
    read_volume,
    segment_styles,
    write_dicom_seg,
)

OBLIQUE = [0.98, 0.17, 0.10, -0.18, 0.97, 0.16]


@pytest.fixture
def a_ct(tmp_path):
    return scanned(tmp_path)


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
    assert (seg.PatientName, seg.PatientID, seg.PatientBirthDate) == (PATIENT, "MRN-4711", "19600102")
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


# highdicom keeps a database in memory and never closes it, which Python tells from 3.13 on; the library has none
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
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


def half_a_frame(folder):
    write_series(folder, change=lambda dataset, k: setattr(dataset, "FrameOfReferenceUID", "1.2" if k % 2 else ""))


def no_identifiers(folder):
    write_series(folder, StudyInstanceUID=None)


def one_uid(folder):
    write_series(folder, SOPInstanceUID="1.2.3")


def no_dicom(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (drop_slice, GeometryError, "missing at z = 14"),
        (uneven, GeometryError, "unevenly spaced"),
        (two_series, SeriesChoiceError, "2 CT series"),
        (two_frames, GeometryError, "2 frames of reference"),
        (half_a_frame, GeometryError, "2 different values of FrameOfReferenceUID"),
        (no_identifiers, ReadError, "12 of 12 slices have no StudyInstanceUID"),
        (one_uid, ReadError, "12 slices have only 1 different SOPInstanceUID"),
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
