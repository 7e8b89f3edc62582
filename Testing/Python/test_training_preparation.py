"""Slices reach the network in one way, wherever they come from, and figures come back to the case's own grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from training_fixtures import hashes_of, tiny_config, write_cases, write_pictures

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.imaging import apply_window
from COVIDLesionSegLib.inference.slices import (
    SlicePreparation,
    channels_last,
    for_pictures,
    resized,
    resized_labels,
    slice_logits,
)
from COVIDLesionSegLib.learning import Trainer
from COVIDLesionSegLib.learning.data import read_cases
from COVIDLesionSegLib.learning.fine_tuning import as_prepared_for
from COVIDLesionSegLib.learning.pseudo_labels import picture_logits
from COVIDLesionSegLib.learning.store import open_store
from COVIDLesionSegLib.learning.validation import judge_case, predict_case
from COVIDLesionSegLib.measurement import hausdorff_distance_95
from COVIDLesionSegLib.models import ModelCard, Preprocessing

CPU = torch.device("cpu")


class Bright(torch.nn.Module):
    """Calls lesion what is brighter than 0.55: a network whose answer is known at every pixel."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(200.0))
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape[-2:]))
        return torch.cat([-self.gain * (x - 0.55), self.gain * (x - 0.55)], dim=1)


def test_both_windows_are_one_to_the_bit():
    """Training slices are windowed on the processor, all others where the network is."""
    hu = np.random.default_rng(0).integers(-2000, 1000, (2, 30, 40)).astype(np.int16)
    for width, level in ((1500.0, -650.0), (700.0, -123.5)):
        settings = Preprocessing(window_width=width, window_level=level)
        prepared = SlicePreparation(settings, (30, 40), CPU).windowed(torch.from_numpy(hu))
        assert np.array_equal(prepared[:, 0].numpy(), apply_window(hu, width, level))
    grays = np.arange(256, dtype=np.int16).reshape(1, 16, 16)
    prepared = SlicePreparation(for_pictures(Preprocessing()), (16, 16), CPU).apply(torch.from_numpy(grays))
    assert np.array_equal(prepared[0, 0].numpy(), grays[0].astype(np.float32) / np.float32(255))


def test_padding_is_taken_off_where_it_was_put():
    preparation = SlicePreparation(Preprocessing(), (21, 35), CPU)
    slices = torch.from_numpy(np.random.default_rng(0).integers(-1400, 100, (1, 21, 35)).astype(np.int16))
    x = preparation.apply(slices)
    assert x.shape == (1, 1, 32, 48) == (1, 1, *preparation.size)
    assert torch.equal(preparation.restore(x), preparation.windowed(slices))


def test_one_channel_is_laid_out_channels_last_by_its_strides():
    """``contiguous(memory_format=...)`` leaves one channel as it was, and convolutions are slower then."""
    x = torch.zeros(2, 1, 8, 12)
    assert channels_last(x).stride() == (96, 1, 12, 1)
    assert x.contiguous(memory_format=torch.channels_last).stride() != (96, 1, 12, 1)


def test_the_training_step_hands_the_network_channels_last():
    from COVIDLesionSegLib.learning.step import TrainingStep

    strides = []
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    network.register_forward_pre_hook(lambda _, inputs: strides.append(inputs[0].stride()))
    config = tiny_config("unused", ensembling={"enabled": False})
    step = TrainingStep(network, config, CPU)
    step.run(0, np.zeros((4, 1, 32, 48), np.float32), np.ones((4, 32, 48), np.uint8), range(4))
    assert strides == [(32 * 48, 1, 48, 1)]


def test_a_resized_mask_stays_on_its_image():
    """Half a pixel's shift of the mask against the image would show at every border."""
    rows, columns = np.mgrid[:90, :120]
    for shape in ((60, 80), (30, 40), (120, 96)):
        for row, column in ((30.0, 50.0), (61.5, 80.25)):
            label = ((rows - row) ** 2 + (columns - column) ** 2 < 20**2).astype(np.uint8)[None]
            image = resized(torch.from_numpy(label.astype(np.float32))[:, None], shape)[0, 0].numpy()
            mask = resized_labels(label, shape)[0]
            assert set(np.unique(mask)) == {0, 1}
            weights = [image / image.sum(), mask / mask.sum()]
            grid = np.mgrid[: shape[0], : shape[1]]
            centers = np.array([[(axis * weight).sum() for axis in grid] for weight in weights])
            assert np.abs(centers[0] - centers[1]).max() < 0.15


@pytest.mark.parametrize("resize", [None, (32, 32)])
def test_a_case_is_predicted_on_its_own_grid(tmp_path, resize):
    """41 x 50 pixels: padded to 48 x 64, or resized, and brought back to the pixel."""
    found = read_cases(write_cases(tmp_path / "cases", ("anna",), size=(49, 56)))
    store = open_store(found, hashes_of(found), tmp_path / "store", 2, judges={"anna"})
    stored = store.cases["anna"]
    assert stored.shape[1:] == (41, 50)
    network = Bright()
    probability = predict_case(network, store, "anna", Preprocessing(resize=resize), CPU, None)
    assert set(network.seen) == {(32, 32) if resize else (48, 64)}
    assert probability.shape == (6, 49, 56)
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(found[0].image)))
    expected = np.zeros(image.shape, dtype=bool)
    expected[stored.box] = apply_window(image)[stored.box] > 0.55
    same = (probability > 0.5) == expected
    assert same.all() if resize is None else same.mean() > 0.85
    outside = np.ones(image.shape, dtype=bool)
    outside[stored.box] = False
    assert (probability[outside] == 0).all()


@pytest.mark.parametrize("resize", [None, (32, 32)])
def test_a_network_of_volumes_is_answered_on_the_grid_of_the_case(tmp_path, resize):
    class Volumes(Bright):
        def predict_volume(self, x):
            assert x.shape == (1, 1, 6, *(resize or (41, 50)))
            return torch.stack([-x[:, 0], x[:, 0] - 1.1], dim=1) * 100

    found = read_cases(write_cases(tmp_path / "cases", ("anna",), size=(49, 56)))
    store = open_store(found, hashes_of(found), tmp_path / "store", 2, judges={"anna"})
    settings = Preprocessing(resize=resize)
    whole, planes = (predict_case(network, store, "anna", settings, CPU, None) for network in (Volumes(), Bright()))
    assert whole.shape == (6, 49, 56)
    assert np.mean((whole > 0.5) == (planes > 0.5)) > 0.95


def test_a_picture_is_answered_on_its_own_pixels():
    picture = np.random.default_rng(0).integers(0, 256, (21, 37)).astype(np.uint8)
    network = Bright()
    logits = picture_logits(network, Preprocessing(), picture, CPU)
    assert network.seen == [(32, 48)]
    assert np.array_equal(logits[0, 1].detach().numpy() > 0, picture / 255 > 0.55)


def test_the_activation_is_the_cards(tmp_path):
    found = read_cases(write_cases(tmp_path / "cases", ("anna",)))
    store = open_store(found, hashes_of(found), tmp_path / "store", 2)
    network = Bright()
    with torch.no_grad():
        network.gain.fill_(2.0)
    soft, own = (
        predict_case(network, store, "anna", replace(Preprocessing(), activation=name), CPU, None)
        for name in ("softmax", "sigmoid")
    )
    odds = [probability / (1 - probability) for probability in (soft, own)]
    np.testing.assert_allclose(odds[0], odds[1] ** 2, rtol=1e-4)


def test_distances_and_volumes_are_those_of_the_cts_grid(tmp_path):
    """Slices of 40 x 50 pixels are shown to the network as 80 x 25; millimeters stay millimeters."""
    folder = write_cases(tmp_path / "cases", ("anna", "bert"))
    for name in ("ct", "lesion", "lungs"):
        path = str(folder / f"anna_{name}.nii.gz")
        image = sitk.ReadImage(path)
        image.SetSpacing((0.7, 1.3, 5.0))
        sitk.WriteImage(image, path)
    (folder / "cases.csv").write_text(
        "id,ct,lesion,lungs\nanna,anna_ct.nii.gz,anna_lesion.nii.gz,anna_lungs.nii.gz\n"
        "bert,bert_ct.nii.gz,none,bert_lungs.nii.gz\n"
    )
    found = read_cases(folder / "cases.csv")
    store = open_store(found, hashes_of(found), tmp_path / "store", 2, (80, 25), judges={"anna", "bert"})
    prediction = np.zeros(store.cases["anna"].label_shape, dtype=np.float32)
    prediction[2:4, 12:20, 10:30] = 0.9
    row = judge_case(prediction, store, "anna")
    truth = store.label("anna") != 0
    assert row["hd95_mm"] == pytest.approx(hausdorff_distance_95(prediction > 0.5, truth, (5.0, 1.3, 0.7)), rel=1e-5)
    # bert's voxels are 1 x 1 x 2 mm
    assert judge_case(prediction, store, "bert") == {"false_ml": pytest.approx(2 * 8 * 20 * 2 / 1000)}


def test_a_fine_tuned_card_keeps_window_activation_and_padding(tmp_path):
    from COVIDLesionSegLib.models import load_checkpoint, save_model
    from COVIDLesionSegLib.networks import create_network

    cases = write_cases(tmp_path / "cases")
    own = Preprocessing(1000.0, -500.0, 4, (48, 32), "sigmoid", 32)
    network = create_network("coplenet", channels=[2, 4, 8, 16, 32])
    save_model(network.eval(), ModelCard("base", "Base", "coplenet", preprocessing=own), tmp_path / "b.safetensors")
    config = tiny_config(
        cases, network={"arguments": {}, "base_model": str(tmp_path / "b.safetensors")}, run={"steps": 1}
    )
    config = replace(config, data=as_prepared_for(load_checkpoint(tmp_path / "b.safetensors").card, config.data))
    trainer = Trainer(config, tmp_path / "run", tmp_path)
    assert trainer.run().card.preprocessing == own
    assert trainer.data.source._window == (1000.0, -500.0)


def test_a_crop_is_no_larger_than_the_resized_slice():
    card = ModelCard("base", "Base", "caresunet", preprocessing=Preprocessing(resize=(200, 256)))
    data = as_prepared_for(card, tiny_config("unused", data={"crop": (224, 224)}).data)
    assert (data.resize, data.crop) == ((200, 256), (192, 224))
    with pytest.raises(InputError, match=r"data.crop is \[224, 224\]; it must be at most \[192, 256\]"):
        tiny_config("unused", data={"resize": (192, 256), "crop": (224, 224)})
    # at half the zoom a crop covers four times the area
    with pytest.raises(InputError, match=r"at most \[96, 128\]"):
        tiny_config("unused", data={"resize": (192, 256), "crop": (112, 112), "zoom": 0.5})


def test_pictures_train_and_judge_by_one_scale_of_gray(tmp_path):
    found = read_cases(write_pictures(tmp_path / "set"))
    store = open_store(found, hashes_of(found), tmp_path / "store", None, judges={"1"})
    network = Bright()
    probability = predict_case(network, store, "1", Preprocessing(lung_crop_margin=None), CPU, None)
    assert np.array_equal(probability[0] > 0.5, store.image("1")[0] / 255 > 0.55)
    assert judge_case(probability, store, "1").keys() == {"dice", "rve"}


def test_logits_come_in_the_networks_own_precision():
    network = Bright().double()
    logits = slice_logits(network, SlicePreparation(Preprocessing(), (16, 16), CPU), np.zeros((1, 16, 16), np.int16))
    assert logits.dtype == torch.float64
