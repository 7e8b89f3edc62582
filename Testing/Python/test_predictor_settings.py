"""What the card and the caller ask of the predictor: window, threshold, flips, lungs, progress, cancelling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from predictor_fixtures import a_chest, a_model, some_lungs, the_plain_loop
from scipy.ndimage import distance_transform_edt, gaussian_filter1d
from torch import nn

from COVIDLesionSegLib.errors import CancelledError, GridMismatchError, InputError, IntensityError, LungsNotFoundError
from COVIDLesionSegLib.imaging import Geometry, LabelVolume, LocatedLungs, LungQuality, Volume, apply_window
from COVIDLesionSegLib.inference import PostProcessing, Predictor
from COVIDLesionSegLib.inference import predictor as predictor_module

# --- what the card and the caller ask for -----------------------------------------------------------------------------


def test_the_card_s_window_resize_and_activation_are_obeyed(a_small_network):
    volume, lungs = a_chest((2, 45, 50)), np.ones((2, 45, 50), dtype=bool)
    settings = {"window_width": 1000, "window_level": -500, "resize": (32, 40), "activation": "sigmoid"}
    result = Predictor(a_model(a_small_network, **settings), "cpu", "float32").segment(volume, lungs, probability=True)

    image = torch.from_numpy(apply_window(volume.array, 1000, -500))[:, None]
    # Pillow averages where a picture shrinks
    planes = [Image.fromarray(plane) for plane in image[:, 0].numpy()]
    small = [np.asarray(plane.resize((40, 32), Image.Resampling.BILINEAR)) for plane in planes]
    padded = np.pad(np.stack(small)[:, None], [(0, 0), (0, 0), (0, 0), (4, 4)], mode="reflect")
    with torch.no_grad():
        logits = a_small_network(torch.from_numpy(padded))[:, 1:, :, 4:44]
    expected = nn.functional.interpolate(logits.sigmoid(), size=(45, 50), mode="bilinear", align_corners=False)[:, 0]
    np.testing.assert_allclose(result.probability, expected.numpy(), atol=2e-5)


class Even(nn.Module):
    """Logits that make every probability exactly one half."""

    def forward(self, x):
        return torch.zeros(x.shape[0], 2, *x.shape[2:])


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, False), (0.499, True), (0.501, False)])
def test_lesion_is_strictly_above_the_threshold(threshold, expected):
    volume, lungs = a_chest((1, 16, 16)), np.ones((1, 16, 16), dtype=bool)
    by_card = Predictor(a_model(Even(), threshold), "cpu", "float32").segment(volume, lungs)
    by_caller = Predictor(a_model(Even(), 0.9), "cpu", "float32").segment(
        volume, lungs, postprocessing=PostProcessing(threshold=threshold)
    )
    assert by_card.mask.all() == by_caller.mask.all() == expected
    assert by_card.record.postprocessing["threshold"] == by_caller.record.postprocessing["threshold"] == threshold


def test_post_processing_is_done_on_the_mask_alone(a_small_network):
    volume, lungs = a_chest(), some_lungs((5, 40, 52))
    predictor = Predictor(a_model(a_small_network), "cpu", "float32")
    plain = predictor.segment(volume, lungs, probability=True)
    settings = PostProcessing(keep_inside_lungs_mm=0, minimum_volume_ml=0.05)
    cleaned = predictor.segment(volume, lungs, probability=True, postprocessing=settings)
    assert 0 < cleaned.mask.sum() < plain.mask.sum()
    assert not (cleaned.mask & ~(plain.mask & (lungs > 0))).any()
    np.testing.assert_array_equal(cleaned.probability, plain.probability)
    assert cleaned.record.postprocessing == settings.completed(predictor.model.card).to_json()


def test_the_model_limits_lesion_to_the_lungs_unless_another_distance_is_asked_for(a_small_network):
    volume, lungs = a_chest(), some_lungs((5, 40, 52))
    model = a_model(a_small_network)
    everywhere = Predictor(model, "cpu", "float32").segment(volume, lungs)
    model.card = replace(model.card, keep_inside_lungs_mm=1.0)
    predictor = Predictor(model, "cpu", "float32")
    by_card = predictor.segment(volume, lungs)
    lesion_inside = everywhere.mask & (lungs > 0)
    near = distance_transform_edt(~lesion_inside, sampling=volume.geometry.spacing_zyx) <= 1.0
    near |= lungs > 0
    np.testing.assert_array_equal(by_card.mask, everywhere.mask & near)
    assert 0 < by_card.mask.sum() < everywhere.mask.sum()
    assert by_card.record.postprocessing["keep_inside_lungs_mm"] == 1.0
    inside = predictor.segment(volume, lungs, postprocessing=PostProcessing(keep_inside_lungs_mm=0))
    np.testing.assert_array_equal(inside.mask, everywhere.mask & (lungs > 0))
    all_of_it = predictor.segment(volume, lungs, postprocessing=PostProcessing(keep_inside_lungs_mm=1000))
    np.testing.assert_array_equal(all_of_it.mask, everywhere.mask)


def test_probability_is_smoothed_across_slices_where_the_card_or_the_caller_says_so(a_small_network):
    # slices lie along x, the last one first; 2.5 mm apart
    shape = (7, 40, 52)
    axial, lungs = a_chest(shape), some_lungs(shape)
    to_x = (1, 2, 0)
    geometry = Geometry((7, 52, 40), (2.5, 0.7, 0.8), direction=((0, 1, 0), (0, 0, 1), (-1, 0, 0)))
    model = a_model(a_small_network)
    first = Predictor(model, "cpu", "float32", batch_size=3)
    rough = first.segment(axial, lungs, probability=True, uncertainty="mutual_information")
    model.card = replace(model.card, smooth_across_slices_mm=2.0)
    predictor = Predictor(model, "cpu", "float32", batch_size=3)
    smooth = predictor.segment(axial, lungs, probability=True, uncertainty=True)
    box = tuple(slice(*ends) for ends in smooth.record.parameters["box"])
    expected = np.zeros_like(rough.probability)
    expected[box] = gaussian_filter1d(rough.probability[box].astype(float), 2.0 / 2.5, axis=0, mode="nearest")
    np.testing.assert_allclose(smooth.probability, expected, atol=2e-5)
    np.testing.assert_array_equal(smooth.mask, smooth.probability > 0.5)
    assert (smooth.mask ^ rough.mask).any()
    assert smooth.record.postprocessing["smooth_across_slices_mm"] == 2.0
    # the entropy is that of the probability beside it; the copies' disagreement is the network's
    p = np.clip(smooth.probability[box].astype(float), 1e-12, 1 - 1e-12)
    np.testing.assert_allclose(smooth.uncertainty[box], -p * np.log2(p) - (1 - p) * np.log2(1 - p), atol=1e-4)
    disagreement = predictor.segment(axial, lungs, uncertainty="mutual_information").uncertainty
    np.testing.assert_array_equal(disagreement, rough.uncertainty)
    # nothing but the mask is asked for; another orientation; and a caller who wants none
    alone = predictor.segment(axial, lungs, tta=True)
    assert alone.probability is None and np.array_equal(alone.mask, smooth.mask)
    turned = Volume(np.ascontiguousarray(axial.array[::-1].transpose(to_x)), geometry)
    mask = predictor.segment(turned, np.ascontiguousarray(lungs[::-1].transpose(to_x)), tta=True).mask
    np.testing.assert_array_equal(mask.transpose(2, 0, 1)[::-1], smooth.mask)
    none = predictor.segment(axial, lungs, tta=True, postprocessing=PostProcessing(smooth_across_slices_mm=0))
    np.testing.assert_array_equal(none.mask, rough.mask)


def test_flips_are_averaged(a_small_network):
    volume, lungs = a_chest((2, 30, 44)), some_lungs((2, 30, 44))
    flips = ((), (1,), (0,), (0, 1))
    expected = the_plain_loop(a_small_network, volume, lungs, flips=flips)
    predictor = Predictor(a_model(a_small_network), "cpu", "float32")
    result = predictor.segment(volume, lungs, probability=True, tta=True)
    np.testing.assert_allclose(result.probability, expected, atol=2e-5)
    assert np.abs(predictor.segment(volume, lungs, probability=True).probability - expected).max() > 0.01


def test_uncertainty_is_entropy_or_mutual_information_in_bits(a_small_network):
    volume, lungs = a_chest((2, 30, 44)), some_lungs((2, 30, 44))
    predictor = Predictor(a_model(a_small_network), "cpu", "float32")
    copies = [the_plain_loop(a_small_network, volume, lungs, flips=(axes,)) for axes in ((), (1,), (0,), (0, 1))]

    def entropy(p):
        p = np.clip(p.astype(float), 1e-12, 1 - 1e-12)
        return -p * np.log2(p) - (1 - p) * np.log2(1 - p)

    inside = copies[0] > 0
    mean = entropy(np.mean(copies, axis=0))
    for name, expected in (
        (True, mean),
        ("entropy", mean),
        ("mutual_information", mean - np.mean([entropy(p) for p in copies], axis=0)),
    ):
        result = predictor.segment(volume, lungs, uncertainty=name)
        assert result.uncertainty.dtype == np.float32
        np.testing.assert_allclose(result.uncertainty[inside], expected[inside], atol=2e-4)
        assert (result.uncertainty[~inside] == 0).all()
        assert 0 <= result.uncertainty.min() <= result.uncertainty.max() <= 1
        assert result.record.parameters["tta"] is True
        assert result.probability is None


# --- lungs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.float32, np.uint16])
def test_lungs_are_taken_in_any_number_type(a_small_network, kind):
    volume, lungs = a_chest((3, 20, 20)), some_lungs((3, 20, 20))
    predictor = Predictor(a_model(a_small_network), "cpu", "float32")
    result = predictor.segment(volume, lungs.astype(kind))
    assert result.lungs.dtype == np.uint8
    np.testing.assert_array_equal(result.lungs, lungs > 0 if kind is bool else lungs)
    np.testing.assert_array_equal(result.mask, predictor.segment(volume, lungs).mask)
    assert result.record.parameters["lungs"] == "given"


def test_other_labels_count_as_lung(a_small_network):
    volume, lungs = a_chest((3, 20, 20)), some_lungs((3, 20, 20))
    labels = LabelVolume((lungs * 100).astype(np.uint8), volume.geometry)
    result = Predictor(a_model(a_small_network), "cpu", "float32").segment(volume, labels)
    np.testing.assert_array_equal(result.lungs, lungs > 0)


@pytest.mark.parametrize(
    ("lungs", "error", "words"),
    [
        (np.zeros((3, 20, 20), dtype=bool), LungsNotFoundError, "empty"),
        (np.ones((3, 20, 21), dtype=bool), GridMismatchError, "same grid"),
        (np.full((3, 20, 20), np.nan), InputError, "NaN"),
        (np.full((3, 20, 20), "lung"), InputError, "numbers"),
        (LabelVolume(np.ones((3, 20, 20), np.uint8), Geometry((20, 20, 3), (1, 1, 1))), GridMismatchError, "spacing"),
    ],
)
def test_wrong_lungs_are_refused(a_small_network, lungs, error, words):
    with pytest.raises(error, match=words):
        Predictor(a_model(a_small_network), "cpu").segment(a_chest((3, 20, 20)), lungs)


def test_lungs_are_found_where_none_are_given(a_small_network, monkeypatch):
    volume, lungs = a_chest((3, 20, 20)), some_lungs((3, 20, 20))
    asked = []
    located = LocatedLungs(lungs, LungQuality("ok", "another"))

    def locate(*arguments, engine):
        asked.append((*arguments, engine))
        return located

    monkeypatch.setattr(predictor_module, "locate_lungs", locate)
    progress, cancelled = print, lambda: False
    predictor = Predictor(a_model(a_small_network), "cpu")
    predictor.segment(volume)
    result = predictor.segment(volume, progress=progress, cancelled=cancelled, lung_engine="another")
    assert asked == [(volume, None, None, None), (volume, progress, cancelled, "another")]
    assert result.lungs is lungs
    assert result.lung_quality is located.quality
    assert result.record.lung_quality == located.quality.to_json()
    assert result.record.parameters["lungs"] == "found"


def test_volumes_that_are_no_ct_are_refused(a_small_network):
    predictor = Predictor(a_model(a_small_network), "cpu")
    array = a_chest((3, 20, 20)).array.astype(np.float32)
    array[1, 2, 3] = np.nan
    array[2, 3, 4] = np.inf
    with pytest.raises(IntensityError, match="2 voxels of the CT are NaN or infinite"):
        predictor.segment(Volume(array, Geometry((20, 20, 3))), np.ones((3, 20, 20), dtype=bool))
    with pytest.raises(InputError, match="Volume"):
        predictor.segment(array)


# --- progress and cancelling ------------------------------------------------------------------------------------------


def test_progress_comes_with_every_batch_and_ends_complete(a_small_network):
    volume, lungs = a_chest((5, 20, 20)), np.ones((5, 20, 20), dtype=bool)
    seen = []
    predictor = Predictor(a_model(a_small_network), "cpu", batch_size=2)
    predictor.segment(volume, lungs, progress=lambda *event: seen.append(event))
    assert [event for event in seen if event[0] == "network"] == [("network", done, 5) for done in (0, 2, 4, 5)]
    assert seen[-2:] == [("postprocess", 0, 1), ("postprocess", 1, 1)]


def test_a_run_is_cancelled_between_batches_and_the_predictor_lives_on(a_small_network):
    volume, lungs = a_chest((6, 20, 20)), np.ones((6, 20, 20), dtype=bool)
    predictor = Predictor(a_model(a_small_network), "cpu", batch_size=1)
    done = []
    with pytest.raises(CancelledError):
        predictor.segment(volume, lungs, lambda *event: done.append(event), lambda: ("network", 3, 6) in done)
    assert done[-1] == ("network", 3, 6)
    assert predictor.segment(volume, lungs, cancelled=lambda: False).mask.shape == volume.array.shape
