"""Pictures and charts: the right side on the right side, millimetres in proportion, nothing but what was passed in."""

from __future__ import annotations

import io
import itertools
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from COVIDLesionSegLib.errors import GridMismatchError, InputError, OutputError
from COVIDLesionSegLib.imaging import Geometry, Volume
from COVIDLesionSegLib.measurement.report import _figure as style
from COVIDLesionSegLib.measurement.report.charts import change_chart, histogram_picture, zone_chart
from COVIDLesionSegLib.measurement.report.pictures import View, error_map_picture, lesion_pictures, overlay_sheet

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]
SIZE = (40, 50, 30)  # left, posterior, superior
SPACING = (2.0, 1.5, 4.0)


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def colored(image: np.ndarray, color: str, tolerance: int = 40) -> np.ndarray:
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return np.abs(image - rgb).max(axis=2) <= tolerance


def patient(order=(0, 1, 2), signs=(1.0, 1.0, 1.0)) -> tuple[Volume, np.ndarray, np.ndarray]:
    """A block of "lung" with one lesion in the patient's right, anterior, superior part, stored in any orientation.

    Args:
        order: LPS axis of each index axis (i, j, k).
        signs: direction of each index axis along it.
    """
    hu = np.full(SIZE, -1000, np.int16)
    hu[4:-4, 4:-4, 3:-3] = -850
    lungs = np.zeros(SIZE, np.uint8)
    lungs[4:20, 4:-4, 3:-3] = 1
    lungs[20:-4, 4:-4, 3:-3] = 2
    lesion = np.zeros(SIZE, bool)
    lesion[6:14, 8:14, 20:26] = True  # right, anterior, superior
    hu[lesion] = -100
    direction = np.zeros((3, 3))
    for index_axis, axis in enumerate(order):
        direction[axis, index_axis] = signs[index_axis]

    def store(array: np.ndarray) -> np.ndarray:
        array = array.transpose(order)
        array = np.flip(array, [axis for axis in range(3) if signs[axis] < 0])
        return np.ascontiguousarray(array.transpose(2, 1, 0))

    # where the first stored voxel lies when left, posterior and superior count from (0, 0, 0)
    corner = [0.0, 0.0, 0.0]
    for index_axis, axis in enumerate(order):
        if signs[index_axis] < 0:
            corner[axis] = (SIZE[axis] - 1) * SPACING[axis]
    geometry = Geometry(
        tuple(SIZE[a] for a in order), tuple(SPACING[a] for a in order), tuple(corner), tuple(direction.ravel())
    )
    return Volume(store(hu), geometry), store(lesion), store(lungs)


@pytest.fixture
def a_patient():
    return patient()


@pytest.fixture
def two_balls() -> tuple[Volume, np.ndarray]:
    """A ball of radius 30 mm and one of 12 mm on anisotropic voxels."""
    shape, spacing = (40, 100, 120), (4.0, 1.6, 1.0)
    z, y, x = (np.arange(n) * s for n, s in zip(shape, spacing, strict=True))
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    large = (z - 80) ** 2 + (y - 64) ** 2 + (x - 40) ** 2 <= 30**2
    small = (z - 80) ** 2 + (y - 64) ** 2 + (x - 100) ** 2 <= 12**2
    volume = Volume(np.full(shape, -900, np.int16), Geometry(shape[::-1], spacing[::-1]))
    return volume, large | small


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_planes_are_the_same_whatever_the_orientation_of_the_file(order, signs):
    volume, lesion, lungs = patient(order, signs)
    view = View(volume, lesion=lesion, lungs=lungs)
    for name in ("axial", "coronal", "sagittal"):
        plane = view.plane(name, view.richest(view.masks["lesion"], name))
        rows, columns = np.nonzero(plane.masks["lesion"])
        # the lesion lies in the patient's right, anterior, superior part: top left in every picture
        assert rows.mean() < plane.gray.shape[0] / 2
        assert columns.mean() < plane.gray.shape[1] / 2
        assert (plane.gray[plane.masks["lesion"]] > 0.8).all()
    assert view.plane("axial", 20).label == "axial 21/30, S 80 mm"
    assert view.plane("coronal", 10).label == "coronal 11/50, P 15 mm"
    assert view.plane("sagittal", 10).label == "sagittal 11/40, L 20 mm"


def test_right_anterior_and_superior_are_where_a_radiologist_expects_them(tmp_path):
    # stored upside down, back to front and from left to right
    volume, lesion, lungs = patient((2, 0, 1), (-1.0, -1.0, 1.0))
    image = pixels(overlay_sheet(volume, lesion, tmp_path / "sheet.png", lungs=lungs).read_bytes())
    outline = colored(image, style.LESION)
    outline[:100] = False  # the legend
    rows, columns = np.nonzero(outline)
    height, width = outline.shape
    axial = rows < 0.45 * height
    assert axial.any()
    assert (columns[axial] < width / 2).all()
    coronal = ~axial & (columns < 0.5 * width)
    sagittal = ~axial & (columns >= 0.5 * width)
    assert coronal.any()
    assert sagittal.any()


def test_a_ball_is_round_in_millimetres(two_balls, tmp_path):
    volume, lesion = two_balls
    view = View(volume, lesion=lesion)
    for name, index in (("axial", 20), ("coronal", 40), ("sagittal", 40)):
        assert view.richest(lesion, name) == pytest.approx(index, abs=2)
    image = pixels(overlay_sheet(volume, lesion, tmp_path / "sheet.png").read_bytes())
    outline = colored(image, style.LESION)
    outline[:60] = False
    # the field is 120 mm wide, 160 mm deep and 160 mm high: below the axial picture, coronal and sagittal side by side
    below = 50 + 40 + 160 * 1056 / 120 + 40
    scale = 1044 / (120 + 160)
    rows, columns = np.nonzero(outline[round(below) :, round(24 + 120 * scale) :])
    assert np.ptp(rows) == pytest.approx(60 * scale, rel=0.08)
    assert np.ptp(columns) == pytest.approx(60 * scale, rel=0.08)


def test_the_sheet_shows_prediction_reference_and_lungs_in_their_colors(a_patient, tmp_path):
    volume, lesion, lungs = a_patient
    path = overlay_sheet(volume, lesion, tmp_path / "new" / "sheet.png", lungs, np.roll(lesion, 3, 2), "Case 7")
    assert path == tmp_path / "new" / "sheet.png"
    image = pixels(path.read_bytes())[100:]
    for color in (style.LESION, style.REFERENCE, style.LUNGS):
        assert colored(image, color).sum() > 200
    plain = pixels(overlay_sheet(volume, lesion, tmp_path / "plain.png").read_bytes())[100:]
    assert colored(plain, style.REFERENCE).sum() == 0


def test_the_same_input_gives_the_same_bytes_and_no_metadata(a_patient, tmp_path):
    volume, lesion, lungs = a_patient
    one = overlay_sheet(volume, lesion, tmp_path / "one.png", lungs, title="x").read_bytes()
    two = overlay_sheet(volume, lesion, tmp_path / "two.png", lungs, title="x").read_bytes()
    assert one == two
    kinds, position = [], 8
    while position < len(one):
        (length,) = struct.unpack(">I", one[position : position + 4])
        kinds.append(one[position + 4 : position + 8])
        position += length + 12
    assert set(kinds) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


def test_an_empty_lesion_and_odd_shapes_are_drawn(tmp_path, a_patient):
    volume, lesion, lungs = a_patient
    assert overlay_sheet(volume, np.zeros_like(lesion), tmp_path / "empty.png", lungs).is_file()
    assert overlay_sheet(volume, np.zeros_like(lesion), tmp_path / "no.png", np.zeros_like(lungs)).is_file()
    one_slice = Volume(volume.array[:1], volume.geometry.cropped((slice(0, 1), slice(None), slice(None))))
    assert overlay_sheet(one_slice, lesion[22:23], tmp_path / "slice.png").is_file()
    # a mask that fills the picture has a closed outline at its border
    full = pixels(overlay_sheet(volume, np.ones_like(lesion), tmp_path / "full.png").read_bytes())
    assert colored(full[100:], style.LESION).sum() > 500


def test_a_folder_that_cannot_be_written_leaves_nothing(a_patient, tmp_path):
    volume, lesion, _ = a_patient
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        overlay_sheet(volume, lesion, tmp_path / "file" / "sheet.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_masks_on_another_grid_are_refused(a_patient, tmp_path):
    volume, lesion, _ = a_patient
    with pytest.raises(GridMismatchError, match="reference"):
        overlay_sheet(volume, lesion, tmp_path / "sheet.png", reference=lesion[1:])
    with pytest.raises(GridMismatchError, match="lesion"):
        lesion_pictures(volume, lesion[1:])
    with pytest.raises(GridMismatchError, match="prediction"):
        error_map_picture(volume, lesion[1:], lesion)
    assert not any(tmp_path.iterdir())


def test_lesions_come_largest_first_with_their_volume_and_side(two_balls):
    volume, lesion = two_balls
    lungs = np.where(np.arange(120) < 70, 1, 2).astype(np.uint8) * np.ones(lesion.shape, np.uint8)
    large, small = lesion_pictures(volume, lesion, lungs, count=5)
    assert large.volume_ml == pytest.approx(4 / 3 * np.pi * 3**3, rel=0.03)
    assert small.volume_ml == pytest.approx(4 / 3 * np.pi * 1.2**3, rel=0.05)
    assert large.caption == f"1: {large.volume_ml:.1f} mL, right lung, axial 21/40, S 80 mm"
    assert "left lung" in small.caption
    assert colored(pixels(large.png), style.LESION).sum() > 500
    assert len(lesion_pictures(volume, lesion, lungs, count=1)) == 1
    assert lesion_pictures(volume, np.zeros_like(lesion), lungs) == []
    # lungs with one label don't say which side it is
    assert "lung" not in lesion_pictures(volume, lesion, lungs > 0, count=1)[0].caption


def test_the_error_map_colors_what_agrees_and_what_differs(a_patient):
    volume, lesion, _ = a_patient
    shifted = np.roll(lesion, 4, 2)
    image = pixels(error_map_picture(volume, shifted, lesion))[104:]

    def blended(color: str, hu: float) -> np.ndarray:
        gray = 255 * (hu + 1400) / 1500
        rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
        return np.abs(image - (0.45 * gray + 0.55 * rgb)).max(axis=2) < 6

    right = blended(style.FALSE_POSITIVE, -850)
    missed = blended(style.FALSE_NEGATIVE, -100)
    agree = blended(style.TRUE_POSITIVE, -100)
    assert min(right.sum(), missed.sum(), agree.sum()) > 1000
    # the prediction lies further to the patient's left: false positives on the picture's right
    assert np.nonzero(right)[1].mean() > np.nonzero(agree)[1].mean() > np.nonzero(missed)[1].mean()
    with pytest.raises(InputError, match="slices 0 to 29"):
        error_map_picture(volume, lesion, lesion, index=30)


def test_zone_bars_are_as_long_as_their_values():
    image = pixels(
        zone_chart({"right upper": 10.0, "right lower": 40.0, "left upper": None, "left lower": float("nan")})
    )
    lengths = colored(image, style.LESION, 10).sum(axis=1)
    bars = [
        int(np.median(lengths[group]))
        for group in np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(lengths > 0)) + 1)
        if lengths[group[0]] > 0
    ]
    assert len(bars) == 2
    assert bars[1] / bars[0] == pytest.approx(4, rel=0.03)


def test_change_bars_pair_both_time_points_and_keep_what_one_lacks():
    image = pixels(change_chart({"right lung": 30.0, "gone": 10.0}, {"right lung": 60.0, "new": 5.0}))
    before = colored(image[80:], style.REFERENCE, 10).sum(axis=1)
    after = colored(image[80:], style.LESION, 10).sum(axis=1)
    assert after.max() / before.max() == pytest.approx(2, rel=0.03)


def test_values_outside_the_histogram_count_at_its_ends():
    inside = pixels(histogram_picture(np.full(100, -990.0)))
    outside = pixels(histogram_picture(np.full(100, -3000.0)))
    assert np.array_equal(inside, outside)
    assert not np.array_equal(inside, pixels(histogram_picture(np.full(100, 100.0))))
    both = pixels(histogram_picture({"lesion": [-500.0], "lungs": [-800.0]}, 0.01, {"consolidation from": -200}))
    assert colored(both, style.LESION, 10).any()
    assert colored(both, style.REFERENCE, 10).any()
    assert histogram_picture([]).startswith(b"\x89PNG")


def test_charts_of_nothing_are_refused():
    with pytest.raises(InputError):
        zone_chart({})
    with pytest.raises(InputError):
        change_chart({}, {})
    with pytest.raises(InputError):
        histogram_picture([1.0], bin_width=0)


def test_pictures_leave_pyplot_alone_and_load_without_matplotlib():
    code = (
        "import sys\n"
        "import COVIDLesionSegLib.measurement.report.pictures, COVIDLesionSegLib.measurement.report.charts as charts\n"
        "assert 'matplotlib' not in sys.modules and 'scipy' not in sys.modules\n"
        "charts.zone_chart({'a': 1.0})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_matplotlib_is_said_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="matplotlib"):
        zone_chart({"a": 1.0})
