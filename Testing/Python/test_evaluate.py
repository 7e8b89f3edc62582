"""Everything in one dictionary, lesion by lesion, and the evaluation that follows an edit."""

from __future__ import annotations

import json
import math

import jsonschema
import numpy as np
import pytest
from conftest import REPOSITORY, VECTORS
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from COVIDLesionSegLib.errors import GeometryError, GridMismatchError, InputError
from COVIDLesionSegLib.measurement import (
    HD95_VARIANTS,
    QUANTITIES,
    LiveEvaluation,
    average_surface_distance,
    detect_lesions,
    dice,
    evaluate,
    hausdorff_distance,
    hausdorff_distance_95,
    normalized_surface_dice,
    precision,
    relative_volume_error,
    sensitivity,
    slice_scores,
    specificity,
    volume_ml,
)
from COVIDLesionSegLib.measurement.slices import CONVENTIONS
from COVIDLesionSegLib.resources import load_json

SPACING = (8.0, 0.7, 0.7)


@pytest.fixture(scope="module")
def vectors():
    return np.load(VECTORS / "metrics_3d.npz")


@pytest.fixture
def three_lesions_of_which_one_is_missed():
    """Reference lesions of 60, 12 and 1 voxels; the prediction covers 30, 2 and none of them, and adds one of 4."""
    reference = np.zeros((10, 20, 20), bool)
    reference[1:4, 2:6, 2:7] = True
    reference[6, 10:14, 10:13] = True
    reference[9, 19, 19] = True
    prediction = np.zeros_like(reference)
    prediction[1:4, 2:4, 2:7] = True
    prediction[6, 10, 10:12] = True
    prediction[8, 0:2, 0:2] = True
    return prediction, reference


def values_of(measured):
    return {name: entry["value"] for name, entry in measured.items()}


def assert_same(one, other):
    """Equal to the last digits that different orders of summation leave."""
    assert {name: entry["status"] for name, entry in one.items()} == {n: e["status"] for n, e in other.items()}
    assert values_of(one) == pytest.approx(values_of(other), rel=1e-12, abs=0, nan_ok=True)


@pytest.mark.parametrize("case", ["aniso", "iso", "thick", "smooth", "identical", "touch_border"])
def test_the_dictionary_holds_what_the_single_measures_return(vectors, case):
    one, other, spacing = vectors[f"{case}/seg"], vectors[f"{case}/gt"], vectors[f"{case}/spacing_zyx"]
    measured = evaluate(one, other, spacing, tolerance=2.0)
    expected = {
        "dice": dice(one, other),
        "relative_volume_error": relative_volume_error(one, other),
        "relative_volume_error_signed": relative_volume_error(one, other, signed=True),
        "hausdorff_distance_95": hausdorff_distance_95(one, other, spacing),
        "hausdorff_distance": hausdorff_distance(one, other, spacing),
        "average_surface_distance": average_surface_distance(one, other, spacing),
        "normalized_surface_dice": normalized_surface_dice(one, other, spacing, 2.0),
        "sensitivity": sensitivity(one, other),
        "specificity": specificity(one, other),
        "precision": precision(one, other),
        "prediction_volume": volume_ml(one, spacing),
        "reference_volume": volume_ml(other, spacing),
        "volume_difference": volume_ml(one, spacing) - volume_ml(other, spacing),
    }
    got = values_of(measured)
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert list(measured) == list(QUANTITIES)
    for name, entry in measured.items():
        assert entry["status"] == "ok" and entry["unit"] == QUANTITIES[name].unit and type(entry["value"]) is float
    json.dumps(measured, allow_nan=False)


@pytest.mark.parametrize(
    ("filled", "status"),
    [((False, False), "both_empty"), ((False, True), "prediction_empty"), ((True, False), "reference_empty")],
)
def test_empty_masks_are_told_by_their_status(filled, status):
    masks = [np.full((2, 3, 3), has_lesion) for has_lesion in filled]
    measured = evaluate(*masks, SPACING)
    for name in ("dice", "relative_volume_error", "hausdorff_distance_95", "average_surface_distance", "sensitivity"):
        assert measured[name]["status"] == status
    for name in ("prediction_volume", "reference_volume", "volume_difference", "false_positive_lesions"):
        assert measured[name]["status"] == "ok" and math.isfinite(measured[name]["value"])
    distance = math.nan if status == "both_empty" else math.inf
    got = [measured[name]["value"] for name in ("dice", "hausdorff_distance_95", "normalized_surface_dice")]
    assert got == pytest.approx([float(status == "both_empty"), distance, float(status == "both_empty")], nan_ok=True)


def test_a_value_that_does_not_exist_says_so():
    full = np.ones((2, 3, 3), bool)
    assert evaluate(full, full, SPACING)["specificity"] == {
        "value": pytest.approx(math.nan, nan_ok=True),
        "unit": "1",
        "status": "undefined",
    }


def test_lesions_are_compared_one_by_one(three_lesions_of_which_one_is_missed):
    found = detect_lesions(*three_lesions_of_which_one_is_missed, (1.0, 1.0, 1.0))
    assert found.reference_voxels.tolist() == [60, 12, 1] and found.reference_overlap.tolist() == [30, 2, 0]
    assert found.prediction_voxels.tolist() == [30, 4, 2] and found.prediction_overlap.tolist() == [30, 0, 2]
    assert found.detected.tolist() == [True, True, False] and found.false_positive.tolist() == [False, True, False]
    assert found.sensitivity == pytest.approx(2 / 3) and found.false_positives == 1
    assert found.missed_ml.tolist() == [0.001]
    measured = values_of(evaluate(*three_lesions_of_which_one_is_missed, (1.0, 1.0, 1.0)))
    names = ("lesion_sensitivity", "reference_lesions", "detected_lesions", "prediction_lesions")
    assert [measured[name] for name in names] == pytest.approx([2 / 3, 3, 2, 3])
    assert measured["false_positive_lesions"] == 1


@pytest.mark.parametrize(("share", "detected"), [(0.0, 2), (1 / 6, 2), (0.17, 1), (0.5, 1), (0.51, 0), (1.0, 0)])
def test_a_lesion_counts_as_found_from_the_stated_share_on(three_lesions_of_which_one_is_missed, share, detected):
    found = detect_lesions(*three_lesions_of_which_one_is_missed, (1.0, 1.0, 1.0), minimum_overlap=share)
    assert int(found.detected.sum()) == detected


def test_lesions_that_touch_at_a_corner_are_one():
    mask = np.zeros((2, 2, 2), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert detect_lesions(mask, mask, SPACING).reference_voxels.tolist() == [2]


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_an_impossible_share_is_refused(share):
    mask = np.ones((2, 2, 2), bool)
    for compare in (detect_lesions, evaluate):
        with pytest.raises(InputError, match="minimum overlap"):
            compare(mask, mask, SPACING, minimum_overlap=share)


def test_no_lesion_means_no_sensitivity():
    empty, full = np.zeros((2, 3, 3), bool), np.ones((2, 3, 3), bool)
    assert math.isnan(detect_lesions(full, empty, SPACING).sensitivity)
    assert detect_lesions(full, empty, SPACING).false_positives == 1
    assert detect_lesions(empty, full, SPACING).sensitivity == 0.0


def test_components_agree_with_scipy(vectors):
    one, other = vectors["aniso/seg"], vectors["aniso/gt"]
    found = detect_lesions(one, other, SPACING)
    labels, count = ndimage.label(other, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    covered = np.bincount(labels[one], minlength=count + 1)[1:]
    assert sorted(zip(sizes, covered, strict=True)) == sorted(
        zip(found.reference_voxels, found.reference_overlap, strict=True)
    )


@pytest.mark.parametrize(
    ("masks", "spacing", "error"),
    [
        ((np.zeros((2, 3, 4), bool), np.zeros((2, 3, 5), bool)), SPACING, GridMismatchError),
        ((np.zeros((3, 4), bool), np.zeros((3, 4), bool)), SPACING, InputError),
        ((np.full((2, 2, 2), 0.5), np.zeros((2, 2, 2), bool)), SPACING, InputError),
        ((np.full((2, 2, 2), 2), np.zeros((2, 2, 2), bool)), SPACING, InputError),
        ((np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool)), (0, 1, 1), GeometryError),
    ],
)
def test_bad_input_is_refused(masks, spacing, error):
    with pytest.raises(error):
        evaluate(*masks, spacing)
    with pytest.raises(error):
        LiveEvaluation(masks[1], spacing).update(masks[0])


def brush(random, mask):
    """Paint or erase a box of at most a few slices; the box."""
    low = [int(random.integers(n)) for n in mask.shape]
    box = tuple(slice(a, a + 1 + int(random.integers(k))) for a, k in zip(low, (3, 8, 8), strict=True))
    mask[box] = random.random() < 0.5
    return box


@pytest.fixture(scope="module")
def a_case_to_edit():
    random = np.random.default_rng(5)
    noise = ndimage.gaussian_filter(random.normal(size=(24, 30, 28)), (1, 3, 3))
    other = ndimage.gaussian_filter(random.normal(size=(24, 30, 28)), (1, 3, 3))
    return (noise + 0.5 * other) > 0.12, noise > 0.1


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_edits_are_followed_with_the_numbers_of_a_fresh_evaluation(a_case_to_edit, seed):
    random = np.random.default_rng(seed)
    prediction, reference = a_case_to_edit[0].copy(), a_case_to_edit[1]
    live = LiveEvaluation(reference, SPACING)
    assert_same(live.update(prediction), evaluate(prediction, reference, SPACING))
    for _ in range(6):
        box = brush(random, prediction)
        assert_same(live.update(prediction, box), evaluate(prediction, reference, SPACING))


@pytest.mark.parametrize("empty_reference", [False, True])
def test_a_prediction_painted_from_nothing_and_erased_again(empty_reference):
    reference = np.zeros((8, 9, 10), bool)
    reference[2:5, 2:6, 2:6] = not empty_reference
    prediction = np.zeros_like(reference)
    live = LiveEvaluation(reference, SPACING)
    assert_same(live.update(prediction), evaluate(prediction, reference, SPACING))
    for value, box in ((True, np.s_[3:4, 3:5, 3:8]), (True, np.s_[0:1, 0:1, 0:1]), (False, np.s_[:, :, :])):
        prediction[box] = value
        assert_same(live.update(prediction, box), evaluate(prediction, reference, SPACING))


def test_an_update_without_a_box_measures_everything(a_case_to_edit):
    prediction, reference = a_case_to_edit
    live = LiveEvaluation(reference, SPACING)
    live.update(prediction)
    assert_same(live.update(reference), evaluate(reference, reference, SPACING))
    assert_same(live.update(prediction), evaluate(prediction, reference, SPACING))


def test_an_update_may_use_8_bit_masks_and_settings_of_its_own(a_case_to_edit):
    prediction, reference = (mask.astype(np.uint8) for mask in a_case_to_edit)
    live = LiveEvaluation(reference, SPACING, tolerance=0.7, minimum_overlap=0.5)
    assert_same(live.update(prediction), evaluate(prediction, reference, SPACING, tolerance=0.7, minimum_overlap=0.5))


def test_a_box_that_is_none_is_refused(a_case_to_edit):
    live = LiveEvaluation(a_case_to_edit[1], SPACING)
    live.update(a_case_to_edit[0])
    with pytest.raises(InputError, match="three slices"):
        live.update(a_case_to_edit[0], (slice(0, 1), slice(0, 1)))
    with pytest.raises(GridMismatchError):
        live.update(a_case_to_edit[0][1:])


def test_the_quantities_follow_their_schema():
    schema = load_json("Evaluation.schema.json")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(load_json("Evaluation.json"), schema)


def test_the_page_of_definitions_names_every_quantity_variant_and_convention():
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    scores = slice_scores(np.zeros((2, 2)), np.zeros((2, 2), bool))
    names = [*QUANTITIES, *HD95_VARIANTS, *CONVENTIONS, *(n for n in scores if not n.endswith(("_max", "_at_0.5")))]
    missing = [name for name in names if f"`{name}`" not in page]
    assert not missing
