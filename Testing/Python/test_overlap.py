"""Dice and its relatives: the reference vectors, MONAI, empty masks, bad input, and the map of errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import VECTORS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from COVIDLesionSegLib.errors import GeometryError, GridMismatchError, InputError
from COVIDLesionSegLib.measurement import (
    ERROR_LABELS,
    confusion_counts,
    dice,
    error_map,
    error_overlay,
    precision,
    relative_volume_error,
    sensitivity,
    specificity,
    volume_ml,
)

CASES = ("aniso", "iso", "thick", "smooth", "empty_pred", "empty_gt", "both_empty", "identical", "touch_border")
MEASURES = (dice, sensitivity, specificity, precision, relative_volume_error)


@pytest.fixture(scope="module")
def vectors():
    return np.load(VECTORS / "metrics_3d.npz")


@pytest.fixture
def masks_by_hand():
    """2 voxels in both, 4 in the prediction only, 1 in the reference only, 13 in neither."""
    prediction, reference = np.zeros(20, bool), np.zeros(20, bool)
    prediction[:6] = True
    reference[:2] = reference[19] = True
    return prediction.reshape(1, 4, 5), reference.reshape(1, 4, 5)


pair_of_masks = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


@pytest.mark.parametrize("case", CASES)
def test_counts_and_ratios_match_the_vectors(vectors, case):
    prediction, reference = vectors[f"{case}/seg"], vectors[f"{case}/gt"]
    counts = confusion_counts(prediction, reference)
    found = (counts.true_positive, counts.true_negative, counts.false_positive, counts.false_negative)
    assert found == tuple(int(vectors[f"{case}/{name}"]) for name in ("tp", "tn", "fp", "fn"))
    expected = {
        "sen": sensitivity(prediction, reference),
        "spe": specificity(prediction, reference),
        "rve": relative_volume_error(prediction, reference),
        "volume_cc_g": volume_ml(reference, vectors[f"{case}/spacing_zyx"]),
    }
    if f"{case}/dice_medpy" in vectors:
        expected["dice_medpy"] = dice(prediction, reference)
    for name, got in expected.items():
        assert got == pytest.approx(float(vectors[f"{case}/{name}"]), abs=1e-12, nan_ok=True), name


def test_values_made_by_hand(masks_by_hand):
    assert dice(*masks_by_hand) == pytest.approx(4 / 9)
    assert sensitivity(*masks_by_hand) == pytest.approx(2 / 3)
    assert specificity(*masks_by_hand) == pytest.approx(13 / 17)
    assert precision(*masks_by_hand) == pytest.approx(2 / 6)
    assert relative_volume_error(*masks_by_hand) == pytest.approx(1.0)
    assert relative_volume_error(*masks_by_hand, signed=True) == pytest.approx(1.0)
    assert relative_volume_error(*masks_by_hand[::-1], signed=True) == pytest.approx(-0.5)
    assert relative_volume_error(*masks_by_hand[::-1]) == pytest.approx(0.5)
    assert volume_ml(masks_by_hand[0], (8.0, 0.5, 0.25)) == pytest.approx(0.006)


@pytest.mark.parametrize(
    ("filled", "expected", "status"),
    [
        # dice, sensitivity, specificity, precision, relative volume error (absolute, signed)
        ((False, False), (1.0, math.nan, 1.0, math.nan, math.nan, math.nan), "both_empty"),
        ((False, True), (0.0, 0.0, 1.0, math.nan, 1.0, -1.0), "prediction_empty"),
        ((True, False), (0.0, math.nan, 26 / 27, 0.0, math.nan, math.nan), "reference_empty"),
        ((True, True), (1.0, 1.0, 1.0, 1.0, 0.0, 0.0), "ok"),
    ],
)
def test_empty_masks_have_the_agreed_values(filled, expected, status):
    masks = [np.zeros((3, 3, 3), bool) for _ in filled]
    for mask, has_lesion in zip(masks, filled, strict=True):
        mask[1, 1, 1] = has_lesion
    got = [measure(*masks) for measure in MEASURES] + [relative_volume_error(*masks, signed=True)]
    assert got == pytest.approx(expected, nan_ok=True)
    assert all(type(value) is float for value in got)
    assert confusion_counts(*masks).status == status


def test_a_grid_full_of_lesion_has_no_specificity():
    full = np.ones((2, 3, 3), bool)
    assert math.isnan(specificity(full, full))
    assert sensitivity(full, full) == 1.0


@given(pair_of_masks)
@settings(max_examples=30, deadline=None)
def test_symmetry_bounds_and_flips(masks):
    one, other = masks
    assert dice(one, other) == dice(other, one)
    assert 0.0 <= dice(one, other) <= 1.0
    for measure in MEASURES:
        value = measure(one, other)
        assert math.isnan(value) or value >= 0.0
        for axis in range(3):
            assert measure(np.flip(one, axis), np.flip(other, axis)) == pytest.approx(value, nan_ok=True)
        assert measure(one.transpose(2, 0, 1), other.transpose(2, 0, 1)) == pytest.approx(value, nan_ok=True)
    counts = confusion_counts(one, other)
    assert counts.prediction == one.sum() and counts.reference == other.sum()
    assert counts.true_positive + counts.false_positive + counts.false_negative + counts.true_negative == one.size


def test_monai_agrees(vectors):
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    for case in ("aniso", "iso", "thick", "smooth", "identical", "touch_border"):
        one, other = vectors[f"{case}/seg"], vectors[f"{case}/gt"]
        batch = [torch.from_numpy(mask)[None, None].float() for mask in (one, other)]
        assert dice(one, other) == pytest.approx(float(metrics.compute_dice(*batch)), abs=1e-6), case
        table = metrics.get_confusion_matrix(*batch)
        for name, measure in (("sensitivity", sensitivity), ("specificity", specificity), ("precision", precision)):
            oracle = float(metrics.compute_confusion_matrix_metric(name, table))
            assert measure(one, other) == pytest.approx(oracle, abs=1e-6), (case, name)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.int64, np.float32, np.float64])
def test_zeros_and_ones_of_any_type_are_masks(masks_by_hand, kind):
    one, other = masks_by_hand
    assert dice(one.astype(kind), other.astype(kind)) == dice(one, other)
    assert volume_ml(one.astype(kind), (1, 1, 1)) == volume_ml(one, (1, 1, 1))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.array([[[0, 1, 2]]]), "from 0 to 2"),
        (np.array([[[0, 255]]], np.uint8), "--label"),
        (np.array([[[-1, 0]]]), "from -1 to 0"),
        (np.array([[[0.0, 0.3, 1.0]]]), "threshold"),
        (np.array([[[0.0, np.nan]]]), "NaN"),
        (np.array([[[0.0, np.inf]]]), "NaN or infinity"),
        (np.array([[["0", "1"]]]), "bool"),
        (np.zeros((0, 3, 3), bool), "no voxels"),
    ],
)
@pytest.mark.parametrize("measure", [*MEASURES, error_map])
def test_what_is_no_mask_is_refused(measure, values, sentence):
    with pytest.raises(InputError, match=sentence):
        measure(values, values)


@pytest.mark.parametrize("measure", [*MEASURES, error_map])
def test_different_shapes_are_refused_by_both_shapes(measure):
    with pytest.raises(GridMismatchError, match=r"\(2, 3, 4\).*\(2, 3, 5\)"):
        measure(np.zeros((2, 3, 4), bool), np.zeros((2, 3, 5), bool))


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, -1), (1, 1, math.nan), (1, math.inf, 1), (1, 1, 1, 1)])
def test_impossible_spacing_is_refused(spacing):
    with pytest.raises(GeometryError, match="three positive numbers"):
        volume_ml(np.ones((2, 2, 2), bool), spacing)


def test_views_that_are_not_contiguous_count_the_same(vectors):
    one, other = vectors["smooth/seg"], vectors["smooth/gt"]
    assert dice(one[::-1, :, ::2], other[::-1, :, ::2]) == dice(one[::-1, :, ::2].copy(), other[::-1, :, ::2].copy())


def test_the_map_of_errors_has_a_label_a_kind(masks_by_hand):
    labels = error_map(*masks_by_hand)
    assert labels.dtype == np.uint8 and labels.shape == (1, 4, 5)
    assert labels.ravel().tolist() == [1, 1, 2, 2, 2, 2] + [0] * 13 + [3]
    counts = confusion_counts(*masks_by_hand)
    names = {label.name: int((labels == value).sum()) for value, label in ERROR_LABELS.items()}
    assert names == {
        "true positive": counts.true_positive,
        "false positive": counts.false_positive,
        "false negative": counts.false_negative,
    }
    assert len({label.color for label in ERROR_LABELS.values()}) == 3


def test_the_map_of_errors_leaves_its_masks_alone(masks_by_hand):
    before = [mask.copy() for mask in masks_by_hand]
    error_map(masks_by_hand[0].view(np.uint8), masks_by_hand[1].view(np.uint8))
    assert all(np.array_equal(mask, old) for mask, old in zip(masks_by_hand, before, strict=True))


def test_the_overlay_colors_errors_and_leaves_the_rest_gray(masks_by_hand):
    gray = np.full((1, 4, 5), 100, np.uint8)
    shown = error_overlay(gray, *masks_by_hand, opacity=0.25)
    assert shown.shape == (1, 4, 5, 3) and shown.dtype == np.uint8
    labels = error_map(*masks_by_hand)
    assert (shown[labels == 0] == 100).all()
    for value, label in ERROR_LABELS.items():
        expected = np.rint(75 + 0.25 * np.array(label.color))
        assert (shown[labels == value] == expected).all(), label.name
    assert (error_overlay(gray, *masks_by_hand, opacity=0.0) == 100).all()


@pytest.mark.parametrize(
    ("image", "opacity", "sentence"),
    [
        (np.zeros((1, 4, 5), np.int16), 0.5, "8-bit"),
        (np.zeros((1, 4, 5), np.uint8), 1.5, "between 0 and 1"),
        (np.zeros((1, 4, 4), np.uint8), 0.5, "same grid"),
    ],
)
def test_an_overlay_needs_an_8_bit_image_of_the_masks_shape(masks_by_hand, image, opacity, sentence):
    with pytest.raises(InputError, match=sentence):
        error_overlay(image, *masks_by_hand, opacity=opacity)
