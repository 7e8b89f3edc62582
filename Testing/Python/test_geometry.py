"""Any orientation becomes axial slices and comes back voxel for voxel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from COVIDLesionSegLib.errors import GeometryError, GridMismatchError
from COVIDLesionSegLib.imaging import Geometry

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        c, s = np.cos(angle), np.sin(angle)
        turn = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
        matrix = turn @ matrix
    return matrix


def oriented(order, signs, degrees=(0.0, 0.0, 0.0)) -> Geometry:
    direction = np.zeros((3, 3))
    for index_axis, lps_axis in enumerate(order):
        direction[lps_axis, index_axis] = signs[index_axis]
    direction = rotation(degrees) @ direction
    return Geometry((4, 5, 6), (0.7, 0.8, 2.5), (11.0, -22.0, 33.0), tuple(direction.ravel()))


@pytest.mark.parametrize("degrees", [(0, 0, 0), (20, -11, 7), (-30, 25, 14)])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_axial_view_round_trip_is_exact(order, signs, degrees):
    geometry = oriented(order, signs, degrees)
    array = np.arange(120, dtype=np.int16).reshape(geometry.shape)
    view = geometry.axial_view()

    seen = view.apply(array)
    assert seen.shape == view.geometry.shape
    assert np.array_equal(view.restore(seen), array)

    # every voxel keeps its place in the patient
    for k, j, i in [(0, 0, 0), (1, 2, 3), tuple(n - 1 for n in seen.shape)]:
        value = int(seen[k, j, i])
        sk, sj, si = np.unravel_index(value, array.shape)
        here = view.geometry.ijk_to_lps @ [i, j, k, 1]
        there = geometry.ijk_to_lps @ [si, sj, sk, 1]
        assert np.allclose(here, there, atol=1e-9)

    # rows to posterior, columns to left, slices to superior: each the nearest of its axis
    assert (np.diag(view.geometry.matrix) > 0.7).all()


def test_axial_view_of_an_lps_image_is_the_image():
    geometry = Geometry((4, 5, 6))
    array = np.zeros(geometry.shape)
    assert np.shares_memory(geometry.axial_view().apply(array), array)
    assert geometry.axial_view().geometry == geometry


def test_ijk_to_ras_round_trip():
    geometry = oriented((1, 0, 2), (1.0, -1.0, 1.0), (20, -11, 7))
    again = Geometry.from_ijk_to_ras(geometry.ijk_to_ras, geometry.size)
    assert geometry.difference(again) == ""


def test_sitk_round_trip():
    geometry = oriented((2, 0, 1), (-1.0, 1.0, 1.0), (5, 0, 9))
    image = geometry.to_sitk(np.zeros(geometry.shape, dtype=bool))
    assert Geometry.from_sitk(image) == geometry


def test_cropped_grid_keeps_its_place():
    geometry = oriented((1, 0, 2), (1.0, -1.0, 1.0), (20, -11, 7))
    cropped = geometry.cropped((slice(2, 5), slice(1, 4), slice(0, 2)))
    assert cropped.shape == (3, 3, 2)
    assert np.allclose(cropped.ijk_to_lps @ [0, 0, 0, 1], geometry.ijk_to_lps @ [0, 1, 2, 1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": (4, 5, 7)}, "size"),
        ({"spacing": (0.7, 0.8, 2.6)}, "spacing"),
        ({"origin": (11.0, -22.0, 34.0)}, "origin 1 mm"),
        ({"direction": tuple(rotation((0, 0, 5)).ravel())}, "axes turned by up to 5"),
    ],
)
def test_difference_names_what_differs(change, words):
    values = {"size": (4, 5, 6), "spacing": (0.7, 0.8, 2.5), "origin": (11.0, -22.0, 33.0)}
    one, other = Geometry(**values), Geometry(**{**values, **change})
    assert words in one.difference(other)
    with pytest.raises(GridMismatchError, match="mask is not on the grid of the CT"):
        one.require_same(other, "mask", "CT")


def test_rounding_is_no_difference():
    one = Geometry((512, 512, 300), (0.7480469, 0.7480469, 1.0), (-190.123456, -180.0, -700.0))
    other = Geometry((512, 512, 300), (0.748047, 0.748047, 1.0), (-190.12346, -180.0, -700.0))
    assert one.difference(other) == ""


@pytest.mark.parametrize(
    "bad",
    [
        {"spacing": (1, 0, 1)},
        {"spacing": (1, -1, 1)},
        {"spacing": (1, float("nan"), 1)},
        {"size": (0, 5, 5)},
        {"direction": (1, 0, 0, 0, 1, 0, 0, 0, 0)},
        {"direction": (1, 0, 0.3, 0, 1, 0, 0, 0, 0.954)},
    ],
)
def test_impossible_grids_are_refused(bad):
    with pytest.raises(GeometryError):
        Geometry(**{"size": (5, 5, 5), **bad})
