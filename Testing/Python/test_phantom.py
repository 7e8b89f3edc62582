"""The synthetic chest: its anatomy, its lesions, and that what it says of itself is true."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from COVIDLesionSegLib.errors import GeometryError, InputError
from COVIDLesionSegLib.phantom.synthetic import LESIONS, Phantom, synthetic_chest

COARSE = {"size": (72, 84, 108), "spacing": (4.0, 3.5, 3.5)}


@pytest.fixture(scope="module")
def chest() -> Phantom:
    return synthetic_chest(size=(120, 192, 256), spacing=(2.5, 1.5, 1.5))


@pytest.fixture(scope="module")
def coarse_chest() -> Phantom:
    return synthetic_chest(**COARSE)


def hu_at(phantom: Phantom, x: float, y: float, z: float, radius: int = 1) -> float:
    """Mean HU around a position (LPS, mm)."""
    i, j, k = np.rint(np.linalg.inv(phantom.volume.geometry.ijk_to_lps) @ [x, y, z, 1])[:3].astype(int)
    box = tuple(slice(v - radius, v + radius + 1) for v in (k, j, i))
    return float(phantom.volume.array[box].mean())


def centroid(phantom: Phantom, mask: np.ndarray) -> np.ndarray:
    k, j, i = (v.mean() for v in np.nonzero(mask))
    return (phantom.volume.geometry.ijk_to_lps @ [i, j, k, 1])[:3]


def test_same_seed_same_chest_other_seed_another(coarse_chest):
    again = synthetic_chest(seed=0, **COARSE)
    assert np.array_equal(again.volume.array, coarse_chest.volume.array)
    assert np.array_equal(again.lesion, coarse_chest.lesion)
    assert again.truth == coarse_chest.truth

    other = synthetic_chest(seed=1, **COARSE)
    assert not np.array_equal(other.lesion, coarse_chest.lesion)
    assert not np.array_equal(other.volume.array, coarse_chest.volume.array)


def test_masks_fit_together(chest):
    assert not (chest.ggo & chest.consolidation).any()
    assert np.array_equal(chest.lesion, chest.ggo | chest.consolidation)
    assert not (chest.lesion & (chest.lungs == 0)).any()
    assert set(np.unique(chest.lungs)) == {0, 1, 2}
    assert np.array_equal(chest.lobes > 0, chest.lungs > 0)
    assert np.array_equal(np.isin(chest.lobes, [3, 4, 5]), chest.lungs == 1)
    assert np.array_equal(np.isin(chest.lobes, [1, 2]), chest.lungs == 2)


def test_known_volumes_are_the_masks_volumes(chest):
    ml = 2.5 * 1.5 * 1.5 / 1000
    truth = chest.truth
    assert truth["lungs"] == pytest.approx((chest.lungs > 0).sum() * ml)
    assert truth["ggo"] == pytest.approx(chest.ggo.sum() * ml)
    assert truth["consolidation"] == pytest.approx(chest.consolidation.sum() * ml)
    assert truth["lesion"] == pytest.approx(truth["ggo"] + truth["consolidation"])
    regions = truth["regions"]
    assert regions["right_lung"]["lesion"] == pytest.approx((chest.lesion & (chest.lungs == 1)).sum() * ml)
    assert regions["right_middle_lobe"]["region"] == pytest.approx((chest.lobes == 4).sum() * ml)
    for side in ("right", "left"):
        for kind in ("region", "lesion", "ggo", "consolidation"):
            whole = regions[f"{side}_lung"][kind]
            zones = sum(regions[f"{side}_{level}_zone"][kind] for level in ("upper", "middle", "lower"))
            lobes = sum(v[kind] for name, v in regions.items() if name.startswith(side) and name.endswith("lobe"))
            assert zones == pytest.approx(whole)
            assert lobes == pytest.approx(whole)
    json.dumps(truth, allow_nan=False)


def test_zones_are_thirds_of_each_lungs_height(chest):
    view = chest.volume.geometry.axial_view()
    right = view.apply(chest.lungs == 1)
    occupied = np.flatnonzero(right.any(axis=(1, 2)))
    low, high = occupied[0], occupied[-1] + 1
    third = (high - low) / 3
    for level, (start, stop) in {"lower": (0, 1), "middle": (1, 2), "upper": (2, 3)}.items():
        slices = slice(low + int(np.ceil(start * third)), low + int(np.ceil(stop * third)))
        expected = right[slices].sum() * chest.volume.geometry.voxel_ml
        assert chest.truth["regions"][f"right_{level}_zone"]["region"] == pytest.approx(expected)


@pytest.mark.parametrize("shape", [shape for shape in LESIONS if shape.analytic_ml], ids=lambda shape: shape.name)
def test_exact_ellipsoids_have_their_closed_form_volume(chest, shape):
    k, j, i = np.indices(chest.lesion.shape)
    affine = chest.volume.geometry.ijk_to_lps
    square = 0.0
    for axis in range(3):
        place = affine[axis, 0] * i + affine[axis, 1] * j + affine[axis, 2] * k + affine[axis, 3]
        square = square + ((place - shape.center[axis]) / shape.radii[axis]) ** 2
    inside = square <= 1
    # the shape is in the masks wholly: nothing of it lies outside the lungs
    kind = chest.consolidation if shape.kind == "consolidation" else chest.lesion
    assert (kind & inside).sum() == inside.sum()
    counted = inside.sum() * chest.volume.geometry.voxel_ml
    assert counted == pytest.approx(shape.analytic_ml, rel=0.05)
    placed = [s for s in chest.truth["shapes"] if s["name"] == shape.name]
    assert placed[0]["ml"] == pytest.approx(shape.analytic_ml)


def test_volumes_do_not_depend_on_the_grid(chest):
    straight = synthetic_chest(**COARSE, oblique=False)
    for kind in ("lungs", "lesion", "ggo", "consolidation"):
        assert straight.truth[kind] == pytest.approx(chest.truth[kind], rel=0.02)
    assert np.array_equal(straight.volume.geometry.matrix, np.eye(3))


def test_the_grid_is_oblique_and_the_patient_lies_in_it_the_right_way(chest):
    geometry = chest.volume.geometry
    assert np.linalg.det(geometry.matrix) == pytest.approx(1)
    # rows to the right, columns to the front, and no axis along the patient's
    assert (np.diag(geometry.matrix) * [-1, -1, 1] > 0.98).all()
    assert np.abs(geometry.matrix - np.diag([-1, -1, 1])).max() > 0.05

    right, left = centroid(chest, chest.lungs == 1), centroid(chest, chest.lungs == 2)
    assert right[0] < -50 < 50 < left[0]
    assert hu_at(chest, -70, -10, -100) == pytest.approx(58, abs=15)  # liver
    assert hu_at(chest, 25, -30, -30) == pytest.approx(45, abs=15)  # heart
    assert hu_at(chest, 0, 8, 100) < -900  # windpipe
    assert hu_at(chest, 0, 62, 5, radius=3) > 150  # vertebral body
    assert hu_at(chest, 0, -138, 0) == pytest.approx(-1000, abs=30)  # air in front of the chest


def test_lungs_look_like_an_adults_lungs(chest):
    regions = chest.truth["regions"]
    assert 3000 < chest.truth["lungs"] < 6500
    assert 0.50 < regions["right_lung"]["region"] / chest.truth["lungs"] < 0.58
    for label in (1, 2):
        pieces, count = ndimage.label(chest.lungs == label)
        assert np.bincount(pieces.ravel())[1:].max() > 0.999 * (chest.lungs == label).sum(), count
    apart = ndimage.binary_dilation(chest.lungs == 1) & (chest.lungs == 2)
    assert not apart.any()
    # the windpipe and the main bronchi are not lung
    geometry = chest.volume.geometry
    for place in [(0, 8, 110), (1, 13, 60), (-25, 16, 22), (24, 19, 22)]:
        i, j, k = np.rint(np.linalg.inv(geometry.ijk_to_lps) @ [*place, 1])[:3].astype(int)
        assert chest.lungs[k, j, i] == 0
        assert chest.volume.array[k, j, i] < -800


def test_hounsfield_units_are_those_of_the_tissues(chest):
    hu = chest.volume.array
    healthy = (chest.lungs > 0) & ~ndimage.binary_dilation(chest.lesion, iterations=4)
    assert -880 < np.median(hu[healthy]) < -780
    assert -700 < np.median(hu[chest.ggo]) < -450
    assert -30 < np.median(hu[chest.consolidation]) < 60
    # bronchi stay open in consolidated lung
    assert (hu[ndimage.binary_erosion(chest.consolidation, iterations=2)] < -300).sum() > 50
    # the lung is denser at the back of a patient lying on it
    view = chest.volume.geometry.axial_view()
    lung, axial = view.apply(healthy), view.apply(hu)
    middle = lung.shape[1] // 2
    assert np.median(axial[:, middle + 30 :][lung[:, middle + 30 :]]) > 15 + np.median(
        axial[:, : middle - 30][lung[:, : middle - 30]]
    )


def test_noise_is_a_kernels_not_white(chest):
    i, j, k = np.rint(np.linalg.inv(chest.volume.geometry.ijk_to_lps) @ [-75, -15, -100, 1])[:3].astype(int)
    liver = chest.volume.array[k - 3 : k + 4, j - 10 : j + 11, i - 10 : i + 11].astype(float)
    liver -= liver.mean(axis=(1, 2), keepdims=True)
    assert 8 < liver.std() < 40
    # band-pass: neighbors alike, the next but one opposed, slices independent
    beside, further = ((liver[:, :, d:] * liver[:, :, :-d]).mean() / liver.var() for d in (1, 2))
    assert beside > 0.08
    assert further < -0.02
    assert abs((liver[1:] * liver[:-1]).mean() / liver.var()) < 0.1


def test_lesions_touch_the_pleura_and_prefer_the_back(chest):
    outside = ndimage.binary_dilation(chest.lungs == 0)
    assert (chest.consolidation & outside).sum() > 200
    regions = chest.truth["regions"]
    lower = regions["right_lower_lobe"]["lesion"] + regions["left_lower_lobe"]["lesion"]
    assert lower > 0.6 * chest.truth["lesion"]
    assert centroid(chest, chest.lesion)[1] > centroid(chest, chest.lungs > 0)[1] + 20


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"size": (0, 10, 10)}, GeometryError),
        ({"spacing": (1.0, -1.0, 1.0)}, GeometryError),
        ({"seed": -1}, InputError),
        ({"size": (2000, 2000, 2000)}, InputError),
    ],
)
def test_impossible_requests_are_refused(arguments, error):
    with pytest.raises(error):
        synthetic_chest(**arguments)


def test_a_field_of_view_in_the_heart_holds_no_lung():
    empty = synthetic_chest(size=(1, 20, 20), spacing=(1.0, 1.0, 1.0))
    assert empty.volume.array.shape == (1, 20, 20)
    assert empty.truth["lungs"] == empty.truth["lesion"] == 0
