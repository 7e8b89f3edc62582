"""DICOM folders: the right slices in the right place, and a clear sentence for each that cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_dicom import (
    MR,
    PATIENT,
    SECONDARY_CAPTURE,
    WITHOUT_IMAGE,
    small_chest,
    write_enhanced,
    write_report,
    write_series,
)

from COVIDLesionSegLib.errors import GeometryError, InputError, IntensityError, ReadError, SeriesChoiceError
from COVIDLesionSegLib.imaging import Geometry, Volume, dicom_files, read_volume

CHEST = small_chest()


def heights(*values: float) -> list[tuple[float, float, float]]:
    return [(-50.0, -60.0, value) for value in values]


def even(count: int = 12, gap: float = 2.0, start: float = 0.0) -> list[float]:
    return [start + gap * k for k in range(count)]


# What is read


def test_series_has_its_voxels_and_grid(tmp_path):
    write_series(tmp_path / "ct", CHEST)
    volume = read_volume(tmp_path / "ct")
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, CHEST)
    assert volume.geometry == Geometry((20, 24, 12), (0.7, 0.8, 2.0), (-50.0, -60.0, 0.0))
    assert (volume.name, volume.warnings) == ("ct", ())
    assert volume.source["format"] == "DICOM"
    assert volume.source["files"] == 12
    assert volume.source["rescale"] is None
    assert re.fullmatch("[0-9a-f]{64}", volume.source["sha256"])


@pytest.mark.parametrize(
    "orientation",
    [
        [1, 0, 0, 0, 1, 0],
        [-1, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, -1],
        [0.9396926, 0.3420201, 0, -0.3213938, 0.8830222, 0.3420201],
    ],
)
def test_grid_is_that_of_simpleitk_whatever_the_order_of_files(tmp_path, orientation):
    normal = np.cross(orientation[:3], orientation[3:])
    order = np.random.default_rng(3).permutation(12)
    positions = [np.array([5.0, 6.0, 7.0]) + 1.25 * k * normal for k in order]
    write_series(tmp_path, CHEST[order], positions, ImageOrientationPatient=orientation)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, CHEST)

    uid = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(tmp_path))[0]
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path), uid)
    expected = sitk.ReadImage(names)
    assert volume.geometry.difference(Geometry.from_sitk(expected)) == ""
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(expected))
    assert dicom_files(tmp_path) == [Path(name) for name in names]


def test_shared_study_with_jpeg_lossless_is_what_simpleitk_reads(shared):
    folder = shared("data/covid-ct-md/dicom/covid_P001")
    volume = read_volume(folder)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    expected = sitk.ReadImage(names)
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(expected))
    assert volume.geometry.difference(Geometry.from_sitk(expected)) == ""
    assert volume.warnings == ()
    assert volume.geometry.size == (512, 512, 148)


def test_a_single_file_stands_for_its_series(tmp_path):
    write_series(tmp_path, CHEST)
    write_series(tmp_path, CHEST + np.int16(1), names="other{}.dcm".format)
    volume = read_volume(tmp_path / "IM0003.dcm")
    assert np.array_equal(volume.array, CHEST)
    assert any("12 slices" in warning for warning in volume.warnings)


def test_files_without_extension_and_preamble_in_subfolders_are_found(tmp_path):
    def strip(dataset, k):
        dataset.SeriesInstanceUID = "1.2.3"

    write_series(tmp_path / "A" / "B", CHEST[:6], heights(*even(6)), names="{}".format, change=strip)
    write_series(tmp_path / "A" / "C", CHEST[6:], heights(*even(6, start=12)), names="{}".format, change=strip)
    for path in (tmp_path / "A" / "C").iterdir():
        path.write_bytes(path.read_bytes()[132:])  # neither preamble nor magic word
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, CHEST)


def test_what_lies_beside_the_ct_is_left_out_and_mentioned(tmp_path):
    uid = write_series(tmp_path, CHEST)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    write_series(tmp_path, CHEST[:1], uid=uid, names="scout{}.dcm".format, **scout)
    write_series(tmp_path, CHEST[:2], names="sc{}.dcm".format, SOPClassUID=SECONDARY_CAPTURE)
    write_series(tmp_path, CHEST[:3], names="mr{}.dcm".format, SOPClassUID=MR, Modality="MR")
    write_report(tmp_path / "report.dcm")
    (tmp_path / "readme.txt").write_text("nothing to see")
    (tmp_path / "._IM0001.dcm").write_bytes(b"\0\5\x16\7")
    for name, kind in WITHOUT_IMAGE.items():
        write_report(tmp_path / name, kind)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, CHEST)
    text = " ".join(volume.warnings)
    for words in ("3 MR images", "2 x secondary capture", "1 x localizer", "5 files without a DICOM image"):
        assert words in text


def test_copies_of_slices_are_read_once(tmp_path):
    write_series(tmp_path, CHEST)
    for path in list(tmp_path.iterdir())[:2]:
        (tmp_path / f"copy of {path.name}").write_bytes(path.read_bytes())
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, CHEST)
    assert "2 copies of slices left out." in volume.warnings


def test_slices_that_share_a_uid_are_no_copies(tmp_path):
    write_series(tmp_path, CHEST, change=lambda dataset, k: setattr(dataset, "SOPInstanceUID", f"1.2.{max(k, 8)}"))
    (tmp_path / "copy").write_bytes((tmp_path / "IM0011.dcm").read_bytes())
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, CHEST)
    shared = "9 of 12 slices share a SOPInstanceUID with a slice at another position; all are kept."
    assert volume.warnings == ("1 copy of slices left out.", shared)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [("1", "-1024", np.int16), ("0.5", "-1024", np.float32), ("1", "-1024.5", np.float32)],
)
def test_rescale_of_each_slice_is_applied(tmp_path, slope, intercept, dtype):
    stored = CHEST.astype(np.int32) + 1024

    def rescale(dataset, k):
        if k == 5:
            dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept

    write_series(tmp_path, CHEST, change=rescale)
    volume = read_volume(tmp_path)
    assert volume.array.dtype == dtype
    assert np.array_equal(volume.array[4], CHEST[4])
    assert np.array_equal(volume.array[5], stored[5] * float(slope) + float(intercept))


def test_one_slice_is_read_with_a_warning(tmp_path):
    write_series(tmp_path, CHEST[:1], spacing=2.5)
    volume = read_volume(tmp_path)
    assert volume.geometry.spacing == (0.7, 0.8, 2.5)
    assert "one slice" in volume.warnings[0]


def test_rounded_positions_are_even_and_a_small_jitter_is_mentioned(tmp_path):
    write_series(tmp_path / "rounded", CHEST, heights(*(round(1.25 * k, 1) for k in range(12))))
    volume = read_volume(tmp_path / "rounded")
    assert volume.geometry.spacing[2] == pytest.approx(1.25, abs=0.01)
    assert volume.warnings == ()
    write_series(tmp_path / "jitter", CHEST, heights(*even(6), *even(6, start=12.3)))
    assert "even spacing" in read_volume(tmp_path / "jitter").warnings[0]


def test_gaps_between_thin_slices_are_mentioned(tmp_path):
    write_series(tmp_path, CHEST, spacing=10.0, SliceThickness=1.25)
    assert read_volume(tmp_path).warnings == ("Slices are 1.25 mm thick but 10 mm apart; the rest is not seen.",)
    write_series(tmp_path / "three quarters", CHEST, spacing=2.0, SliceThickness=1.5)
    assert read_volume(tmp_path / "three quarters").warnings == ()


def test_nothing_of_the_patient_leaves_the_reader(tmp_path):
    uid = write_series(tmp_path / "Mustermann_Erika", CHEST)
    write_series(tmp_path / "Mustermann_Erika", CHEST[:1], names="sc{}".format, SOPClassUID=SECONDARY_CAPTURE)
    volume = read_volume(tmp_path / "Mustermann_Erika")
    told = json.dumps([dict(volume.source), volume.warnings])
    for secret in ("Mustermann", "Erika", "MRN-4711", "1960", uid, "IM0001", str(tmp_path)):
        assert secret not in told


def test_sha256_depends_on_the_slices_and_not_on_their_names(tmp_path):
    def fixed(dataset, k):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"

    for folder, names, array in (
        ("a", "{}".format, CHEST),
        ("b", "x{}.dcm".format, CHEST),
        ("c", "{}".format, CHEST + 1),
    ):
        write_series(tmp_path / folder, array.astype(np.int16), uid="1.2.3", names=names, change=fixed)
    a, b, c = (read_volume(tmp_path / folder).source["sha256"] for folder in "abc")
    assert a == b != c


# Which series


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path):
    first = write_series(tmp_path / "1", CHEST)
    second = write_series(tmp_path / "2", CHEST[:5] + np.int16(3))
    with pytest.raises(SeriesChoiceError) as caught:
        read_volume(tmp_path)
    message = str(caught.value)
    assert first in message
    assert f"{second} (CT, 5 slices of 20 x 24, 0.7 x 0.8 mm" in message
    assert "--series" in message
    assert PATIENT.split("^")[0] not in message
    assert np.array_equal(read_volume(tmp_path, series=second).array, CHEST[:5] + 3)
    assert len(dicom_files(tmp_path, series=first)) == 12


def test_a_series_that_is_not_there_or_no_ct_is_refused(tmp_path):
    uid = write_series(tmp_path, CHEST)
    mr = write_series(tmp_path, CHEST, names="mr{}".format, SOPClassUID=MR, Modality="MR")
    with pytest.raises(SeriesChoiceError, match=re.escape(uid)):
        read_volume(tmp_path, series="1.2.3")
    with pytest.raises(ReadError, match="12 MR images"):
        read_volume(tmp_path, series=mr)
    sitk.WriteImage(sitk.GetImageFromArray(CHEST), str(tmp_path / "ct.nii.gz"))
    with pytest.raises(InputError, match="DICOM folder only"):
        read_volume(tmp_path / "ct.nii.gz", series=uid)


# What cannot be used, each with its sentence


def missing_two(folder):
    keep = [k for k in range(12) if k not in (4, 7)]
    write_series(folder, CHEST[keep], heights(*(2.0 * k - 100 for k in keep)))


def missing_many(folder):
    write_series(folder, CHEST, heights(*even(6), *even(6, start=60)))


def every_second_missing_in_one_half(folder):
    write_series(folder, CHEST, heights(*even(4), *even(8, gap=4.0, start=10.0)))


def uneven(folder):
    write_series(folder, CHEST, heights(*even(6), *even(6, gap=3.3, start=13.0)))


def gantry_tilt(folder):
    shift = np.tan(np.radians(15))
    positions = [(-50.0, -60.0 - 2.0 * k * shift, 2.0 * k) for k in range(12)]
    write_series(folder, CHEST, positions, GantryDetectorTilt=15)


def tilted_orientation(folder):
    c, s = np.cos(np.radians(12)), np.sin(np.radians(12))
    write_series(folder, CHEST, ImageOrientationPatient=[1, 0, 0, 0, c, s])


def sideways(folder):
    positions = [(-50.0 + (5.0 if k == 6 else 0.0), -60.0, 2.0 * k) for k in range(12)]
    write_series(folder, CHEST, positions)


def two_phases(folder):
    write_series(folder, CHEST, heights(*(2.0 * (k // 2) for k in range(12))))


def mixed_sizes(folder):
    uid = write_series(folder, CHEST)
    write_series(folder, CHEST[:2, :10, :10], heights(30, 32), uid=uid, names="small{}".format)


def mixed_orientations(folder):
    uid = write_series(folder, CHEST)
    write_series(folder, CHEST[:2], uid=uid, names="cor{}".format, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])


def mixed_spacing(folder):
    uid = write_series(folder, CHEST)
    write_series(folder, CHEST[:2], heights(30, 32), uid=uid, names="zoom{}".format, PixelSpacing=[0.4, 0.4])


def no_positions(folder):
    write_series(folder, CHEST, ImagePositionPatient=None)


def no_pixel_spacing(folder):
    write_series(folder, CHEST, PixelSpacing=None)


def zero_pixel_spacing(folder):
    write_series(folder, CHEST, PixelSpacing=[0, 0])


def singular_orientation(folder):
    write_series(folder, CHEST, ImageOrientationPatient=[1, 0, 0, 1, 0, 0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing_two, "2 slices are missing at z = -92, -86 mm"),
        (missing_many, "24 slices are missing at z = 12, 14, 16, 18, 20, 22 and 18 more mm"),
        (every_second_missing_in_one_half, "missing at z = 8"),
        (uneven, "unevenly spaced: gaps from 2 to 3.3 mm, mostly"),
        (gantry_tilt, "gantry tilt of 15 degrees?; the header says 15 degrees"),
        (tilted_orientation, "gantry tilt of 12 degrees?"),
        (sideways, "shift sideways by up to 5 mm over 22 mm (slices displaced?)"),
        (two_phases, "At 6 positions (z = 0, 2, 4, 6, 8, 10 mm) there is more than one slice"),
        (mixed_sizes, "slices of different size (12 of 20 x 24, 2 of 10 x 10)"),
        (mixed_orientations, "slices of different orientation (2 of 14"),
        (mixed_spacing, "slices of different pixel spacing (2 of 14"),
        (no_positions, "12 of 12 slices have no position"),
        (no_pixel_spacing, "do not say their pixel spacing"),
        (zero_pixel_spacing, "must be positive"),
        (singular_orientation, "perpendicular"),
    ],
)
def test_a_stack_that_is_no_regular_grid_is_refused(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(GeometryError) as caught:
        read_volume(tmp_path)
    assert words in str(caught.value)
    assert PATIENT.split("^")[0] not in str(caught.value)


def test_an_mr_series_is_refused(tmp_path):
    write_series(tmp_path, CHEST, SOPClassUID=MR, Modality="MR")
    with pytest.raises(ReadError, match="no CT series, only 12 MR images"):
        read_volume(tmp_path)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(ReadError, match="it is empty"):
        read_volume(tmp_path)
    (tmp_path / "notes.txt").write_text("text")
    write_report(tmp_path / "report.dcm")
    with pytest.raises(ReadError, match="no DICOM image, only 2 other files"):
        read_volume(tmp_path)
    with pytest.raises(ReadError, match="DICOM file without an image"):
        read_volume(tmp_path / "report.dcm")
    sitk.WriteImage(sitk.GetImageFromArray(CHEST), str(tmp_path / "ct.nii.gz"))
    with pytest.raises(ReadError, match="Give the file itself"):
        read_volume(tmp_path)


@pytest.mark.parametrize("kept", [0, 600, -100])
def test_a_damaged_slice_is_told_even_at_the_end_of_the_stack(tmp_path, kept):
    write_series(tmp_path, CHEST)
    last = tmp_path / "IM0011.dcm"
    last.write_bytes(last.read_bytes()[:kept])
    with pytest.raises(ReadError, match="1 of 12 files in the folder is a damaged DICOM image"):
        read_volume(tmp_path)


def test_a_damaged_jpeg_slice_is_told(tmp_path, shared):
    source = shared("data/covid-ct-md/dicom/covid_P001")
    for path in dicom_files(source)[:5]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = path.read_bytes()
    # the end of the sequence of its pieces stays: without it the file would not even pass for DICOM
    half = len(data) // 2
    (tmp_path / path.name).write_bytes(data[:half] + np.random.default_rng(0).bytes(len(data) - half - 8) + data[-8:])
    with pytest.raises(ReadError, match="can't be decoded"):
        read_volume(tmp_path)


def test_values_that_the_series_calls_something_else_are_refused(tmp_path):
    write_series(tmp_path, CHEST, RescaleType="Z_EFF")
    with pytest.raises(IntensityError, match="Z_EFF"):
        read_volume(tmp_path)


def mixed(keyword, value):
    """Slices of which the upper half says something else."""

    def change(dataset, k):
        if k >= 6:
            setattr(dataset, keyword, value)

    return change


@pytest.mark.parametrize(
    ("keyword", "what"),
    [("PatientID", "ID"), ("PatientName", "name"), ("PatientBirthDate", "birth date")],
)
def test_a_series_of_two_patients_is_refused(tmp_path, keyword, what):
    write_series(tmp_path, change=mixed(keyword, "19700101"))
    with pytest.raises(ReadError, match=f"slices of 2 patients: they differ in the patient's {what}") as caught:
        read_volume(tmp_path)
    assert not any(word in str(caught.value) for word in ("MRN-4711", "19700101", "Mustermann"))


def test_another_patients_copy_of_a_slice_is_no_copy(tmp_path):
    uid = write_series(tmp_path / "a", SOPInstanceUID="1.2.3")
    write_series(tmp_path / "b", uid=uid, SOPInstanceUID="1.2.3", PatientID="4712")
    with pytest.raises(ReadError, match="2 patients"):
        read_volume(tmp_path)


def test_patients_who_are_left_out_of_some_slices_are_none(tmp_path):
    write_series(tmp_path, change=mixed("PatientName", ""))
    assert read_volume(tmp_path).patient_id == "MRN-4711"
    write_series(tmp_path / "anonymous", PatientID=None, PatientName="", PatientBirthDate=None)
    assert read_volume(tmp_path / "anonymous").patient_id == ""


def test_a_series_in_two_frames_of_reference_is_refused(tmp_path):
    write_series(tmp_path, FrameOfReferenceUID="1.2.3", change=mixed("FrameOfReferenceUID", "1.2.4"))
    with pytest.raises(GeometryError, match="2 frames of reference"):
        read_volume(tmp_path)


@pytest.mark.parametrize("part", ["all", "some"])
def test_a_rescale_slope_of_0_is_refused(tmp_path, part):
    write_series(tmp_path, **({"RescaleSlope": 0} if part == "all" else {"change": mixed("RescaleSlope", 0)}))
    with pytest.raises(IntensityError, match=f"{12 if part == 'all' else 6} of 12 slices have a rescale slope of 0"):
        read_volume(tmp_path)


def test_values_without_rescale_need_the_user(tmp_path):
    write_series(tmp_path, CHEST, RescaleSlope=None, RescaleIntercept=None)
    with pytest.raises(IntensityError, match="--rescale 1 -1024"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, rescale=(1, -1024))
    assert isinstance(volume, Volume)
    assert np.array_equal(volume.array, CHEST)
    assert volume.source["rescale"] == [1.0, -1024.0]


def test_a_multi_frame_file_is_refused(tmp_path):
    write_enhanced(tmp_path / "enhanced.dcm", CHEST, even())
    with pytest.raises(ReadError, match="multi-frame"):
        read_volume(tmp_path)


def test_a_path_with_spaces_and_other_letters_works(tmp_path):
    folder = tmp_path / "Größe é 肺 CT"
    write_series(folder, CHEST, names="schicht ä {}.dcm".format)
    assert np.array_equal(read_volume(str(folder)).array, CHEST)
