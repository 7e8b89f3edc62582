"""Networks that see neighboring slices as channels: training, prediction and judging show them the same ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from predictor_fixtures import CPU, a_chest, a_model, some_lungs
from torch import nn
from training_fixtures import tiny_config, write_cases, write_pictures

from COVIDLesionSegLib.errors import InputError, ModelError
from COVIDLesionSegLib.inference import Predictor
from COVIDLesionSegLib.inference.slices import SlicePreparation, planes_at
from COVIDLesionSegLib.learning import Trainer
from COVIDLesionSegLib.learning.augmentation import AugmentationSettings, NeighborDropout, WindowShift
from COVIDLesionSegLib.learning.config import DataSettings
from COVIDLesionSegLib.learning.data import read_pictures
from COVIDLesionSegLib.learning.pseudo_labels import pseudo_label
from COVIDLesionSegLib.learning.sampling import BatchSource
from COVIDLesionSegLib.models import ModelCard, Preprocessing, load_checkpoint
from COVIDLesionSegLib.networks import CAResUNet, COPLENet
from COVIDLesionSegLib.networks.factory import with_more_channels

OFFSETS = (-5.0, 0.0, 5.0)
STILL = AugmentationSettings.none()


class Above(nn.Module):
    """Lesion where the slice above (toward the head) is bright: an answer that only its neighbor gives."""

    in_channels, out_channels = 3, 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = (x[:, 2:] - 0.55) * 1000 * self.weight
        return torch.cat([-bright, bright], dim=1)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        (1.0, [[0, 0, 5], [2, 7, 9], [4, 9, 9]]),
        (2.5, [[0, 0, 2], [5, 7, 9], [7, 9, 9]]),
        # a neighbor at 8 mm is nearer to 5 mm than the slice itself; one at 12 mm is not
        (8.0, [[0, 0, 1], [6, 7, 8], [8, 9, 9]]),
        (12.0, [[0, 0, 0], [7, 7, 7], [9, 9, 9]]),
    ],
)
def test_neighbors_are_the_nearest_slices_and_ends_repeat(spacing, expected):
    assert planes_at(OFFSETS, spacing, [0, 7, 9], 10).tolist() == expected


def test_a_slice_without_neighbors_stands_for_them():
    preparation = SlicePreparation(Preprocessing(slice_offsets_mm=OFFSETS), (16, 32), CPU, 1.0)
    hu = np.random.default_rng(0).integers(-1000, 100, (1, 16, 32)).astype(np.int16)
    x = preparation.input_of(hu, [0])
    assert x.shape == (1, 3, 16, 32)
    assert torch.equal(x, preparation.apply(torch.from_numpy(hu)))
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x[:, 2], x[:, 1])


def test_one_channel_is_prepared_to_the_bit_as_slices_alone():
    preparation = SlicePreparation(Preprocessing(resize=(20, 24)), (18, 30), CPU, 1.0)
    hu = np.random.default_rng(0).integers(-1000, 100, (6, 18, 30)).astype(np.int16)
    assert torch.equal(preparation.input_of(hu[::-1], [1, 4]), preparation.apply(torch.from_numpy(hu[[4, 1]])))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_predictor_shows_neighbors_across_batches(batch_size):
    volume = a_chest((9, 40, 52))
    lungs = some_lungs(volume.array.shape)
    model = a_model(Above(), lung_crop_margin=None, slice_offsets_mm=OFFSETS)
    result = Predictor(model, "cpu", "float32", batch_size).segment(volume, lungs)
    # slices lie 2.5 mm apart
    above = volume.array[np.minimum(np.arange(9) + 2, 8)]
    np.testing.assert_array_equal(result.mask, (above + 1400) / 1500 > 0.55)


def test_a_card_must_name_as_many_slices_as_the_network_takes():
    with pytest.raises(ModelError, match=r"takes 3 channels, its card names 1 slice offsets \(0 mm\)"):
        Predictor(a_model(Above()), "cpu")


@pytest.mark.parametrize("offsets", [(), (1.0,), (0.0, -5.0), (-5.0, 0.0, 0.0), (0.0, float("inf")), "0", (0.0, True)])
def test_slice_offsets_must_rise_and_hold_the_slice_itself(offsets):
    with pytest.raises(ModelError, match="slice_offsets_mm"):
        Preprocessing(slice_offsets_mm=offsets)


def test_old_cards_see_slices_alone_and_new_ones_come_back():
    card = ModelCard.from_json({"id": "a", "name": "A", "network": "coplenet", "preprocessing": {"resize": [16, 16]}})
    assert card.preprocessing.slice_offsets_mm == (0.0,)
    seen = replace(card, preprocessing=Preprocessing(slice_offsets_mm=[-5, 0, 5]))
    assert ModelCard.from_json(seen.to_json()) == seen


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"slice_offsets_mm": (5.0, 0.0)}, "a rising list of distances"),
        ({"slice_offsets_mm": OFFSETS, "depth": 3}, "data.depth is above 1"),
    ],
)
def test_impossible_offsets_of_a_training_are_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        DataSettings(**settings)


def batches(store, augmentation=STILL, offsets=OFFSETS):
    data = DataSettings(crop=(32, 32), lesion_free_share=0.5)
    preprocessing = Preprocessing(slice_offsets_mm=offsets)
    return BatchSource(store, ["anna"], 4, data, augmentation, preprocessing, seed=1)


def test_training_crops_hold_the_neighbors_and_the_label_of_the_slice(a_store):
    alone, seen = batches(a_store, offsets=(0.0,)).batch(0), batches(a_store).batch(0)
    assert seen.images.shape == (4, 3, 32, 32)
    assert np.array_equal(seen.images[:, 1:2], alone.images)
    assert np.array_equal(seen.labels, alone.labels)
    for image, (case, index) in zip(seen.images, seen.slices, strict=True):
        # slices lie 2 mm apart: 5 mm is 2.5 of them, and ties go to the even number
        for channel, neighbor in ((0, max(index - 2, 0)), (2, min(index + 2, 5))):
            hu = a_store.image(case)[neighbor].astype(np.float32)
            expected = np.clip((hu + 1400) / 1500, 0, 1)
            assert np.isin(image[channel].round(5), expected.round(5)).all()


def test_dropped_neighbors_are_replaced_by_the_slice():
    dropout, planes = NeighborDropout(1.0), np.array([2, 4, 6])
    drawn = {tuple(dropout.planes(planes, 4, np.random.default_rng(seed)).tolist()) for seed in range(40)}
    assert drawn == {(2, 4, 4), (4, 4, 6), (4, 4, 4)}
    assert NeighborDropout(0.0).planes(planes, 4, np.random.default_rng(0)) is planes


def test_neighbors_are_changed_as_the_slice_is(a_store):
    """Another window for each channel would be a pattern that no CT has."""
    shifted = batches(a_store, replace(STILL, window_shift=WindowShift(200.0), neighbor_dropout=NeighborDropout(1.0)))
    both = [image for image in shifted.batch(0).images if np.array_equal(image[0], image[2])]
    assert both
    assert all(np.array_equal(image[0], image[1]) for image in both)


def test_a_network_with_neighbors_is_trained_saved_judged_tuned_and_used(tmp_path):
    write_cases(tmp_path / "cases")
    changes = replace(STILL, neighbor_dropout=NeighborDropout(0.5))
    config = replace(
        tiny_config(tmp_path / "cases", data={"slice_offsets_mm": OFFSETS}, run={"steps": 2}), augmentation=changes
    )
    trainer = Trainer(config, tmp_path / "run", tmp_path)
    result = trainer.run()
    model = load_checkpoint(result.model)
    assert model.network.in_channels == 3
    assert model.card.preprocessing.slice_offsets_mm == OFFSETS
    assert result.validation.counted == 1
    # the stored slices of the case that judges are the predictor's crop
    stored = trainer.data.store.cases["dora"]
    probability = trainer.predict(model.network, "dora")[stored.box]
    preparation = SlicePreparation(trainer.preprocessing, stored.shape[1:], CPU, stored.spacing[0])
    with torch.no_grad():
        logits = model.network(preparation.input_of(trainer.data.store.image("dora"), [1]))
    expected = preparation.restore(logits.softmax(1)[:, 1:])[0, 0]
    np.testing.assert_allclose(probability[1], expected.numpy(), atol=1e-5)

    report = pseudo_label(model, read_pictures(write_pictures(tmp_path / "set") / "images"), tmp_path / "pseudo")
    assert report.total == 4

    base = replace(config.network, base_model=str(result.model), arguments={})
    own = replace(config, network=base, data=replace(config.data, slice_offsets_mm=()))
    tuned = load_checkpoint(Trainer(own, tmp_path / "tuned", tmp_path).run().model)
    assert tuned.card.preprocessing.slice_offsets_mm == OFFSETS
    other = replace(own, data=replace(own.data, slice_offsets_mm=(0.0,)))
    with pytest.raises(InputError, match=r"the base model sees slices at \[-5.0, 0.0, 5.0\] mm"):
        Trainer(other, tmp_path / "other", tmp_path).run()


@pytest.mark.parametrize("network", [COPLENet(channels=(2, 4, 8, 16, 32)), CAResUNet(base_channels=2)])
def test_a_network_that_gets_channels_computes_what_it_did(network):
    wider = with_more_channels(network.eval(), 3, [1])
    x = torch.rand(2, 3, 16, 32)
    with torch.no_grad():
        assert torch.equal(wider(x), wider(torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:2], x[:, 2:] + 1], dim=1)))
        torch.testing.assert_close(wider(x), network(x[:, 1:2]))
    assert not wider.training


def test_a_base_model_that_saw_slices_alone_learns_to_use_neighbors(tmp_path):
    write_cases(tmp_path / "cases")
    alone = replace(tiny_config(tmp_path / "cases", run={"steps": 1}), augmentation=STILL)
    base = Trainer(alone, tmp_path / "alone", tmp_path).run().model
    settings = replace(alone.network, base_model=str(base), arguments={}, batch_norm="estimated")
    more = replace(alone, network=settings, data=replace(alone.data, slice_offsets_mm=OFFSETS))
    model = load_checkpoint(Trainer(more, tmp_path / "more", tmp_path).run().model)
    assert model.card.preprocessing.slice_offsets_mm == OFFSETS
    assert model.network.in_channels == 3
    weights = model.network.input.first.conv.weight
    assert weights[:, (0, 2)].abs().max() > 0
    assert weights[:, (0, 2)].abs().max() < weights[:, 1].abs().max()
