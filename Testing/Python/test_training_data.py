"""Cases, the frozen split, the slice store, sampling, augmentation, label noise and pseudo-labels."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import REPOSITORY
from training_fixtures import tiny_config, write_cases

from COVIDLesionSegLib.errors import InputError, ReadError
from COVIDLesionSegLib.learning import TrainingConfig, mean_entropy, pseudo_label
from COVIDLesionSegLib.learning.audit import LabelAudit
from COVIDLesionSegLib.learning.building import learning_rate
from COVIDLesionSegLib.learning.config import (
    AugmentationSettings,
    DataSettings,
    LabelNoiseSettings,
    OptimizerSettings,
)
from COVIDLesionSegLib.learning.data import (
    TrainingCase,
    load_split,
    make_split,
    read_cases,
    read_pictures,
    save_split,
)
from COVIDLesionSegLib.learning.label_noise import add_label_noise
from COVIDLesionSegLib.learning.randomness import Purpose, draw
from COVIDLesionSegLib.learning.sampling import BatchSource, augment, crop_center
from COVIDLesionSegLib.learning.store import open_store
from COVIDLesionSegLib.measurement import dice
from COVIDLesionSegLib.models import LoadedModel, ModelCard, Preprocessing
from COVIDLesionSegLib.networks import CAResUNet

WINDOW = (1500.0, -650.0)
STILL = AugmentationSettings(flip=False, rotation_degrees=0, scale=0, intensity=0)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return read_cases(write_cases(tmp_path_factory.mktemp("cases")))


def hashes_of(cases):
    return {case.id: case.hashes() for case in cases}


@pytest.fixture(scope="module")
def a_store(cases, tmp_path_factory):
    return open_store(cases, hashes_of(cases), tmp_path_factory.mktemp("store"), margin=2)


def write_pictures(folder, count=4, size=(40, 56)):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image = np.random.default_rng(number).integers(0, 200, size, dtype=np.uint8)
        mask = np.zeros(size, dtype=np.uint8)
        mask[10:20, 10 + number : 30] = 255
        image[mask > 0] = 230
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "images" / f"{number}.png"))
        sitk.WriteImage(sitk.GetImageFromArray(mask), str(folder / "masks" / f"{number}.png"))
    return folder


# ---- cases and split ----------------------------------------------------------------------------------------------


def test_a_manifest_lists_cases_with_and_without_lesion(tmp_path):
    write_cases(tmp_path, ("anna", "bert"))
    manifest = tmp_path / "cases.csv"
    manifest.write_text(
        "id,patient,ct,lesion,lungs\n"
        "a1,anna,anna_ct.nii.gz,anna_lesion.nii.gz,anna_lungs.nii.gz\n"
        "b1,bert,bert_ct.nii.gz,none,\n"
    )
    found = read_cases(manifest)
    assert [(case.id, case.patient, case.lesion is None) for case in found] == [
        ("a1", "anna", False),
        ("b1", "bert", True),
    ]


def test_picture_folders_are_cases(tmp_path):
    found = read_cases(write_pictures(tmp_path / "set"))
    assert [case.kind for case in found] == ["picture"] * 4


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "anna_lesion.nii.gz").unlink(), "have ct but no lesion"),
        (lambda folder: (folder / "anna_ct.nii.gz").unlink(), "have lesion but no ct"),
    ],
)
def test_a_mask_without_ct_or_the_reverse_is_refused(tmp_path, spoil, words):
    write_cases(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=words):
        read_cases(tmp_path)


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_no_cases_is_a_sentence(tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError):
        read_cases(tmp_path / place)


def test_split_is_by_patient(tmp_path):
    both = [TrainingCase(f"{p}{n}", p, tmp_path, tmp_path) for p in "abcde" for n in range(3)]
    split = make_split(both, share=0.4, seed=1)
    assert sorted(split.sets.values()).count("validation") == 2
    validation = split.cases(both, "validation")
    assert len(validation) == 6
    assert not {case.patient for case in validation} & {case.patient for case in split.cases(both, "train")}
    assert make_split(both, share=0.4, seed=1) == split


@pytest.mark.parametrize(
    ("patients", "lesions", "validation", "words"),
    [
        (["a"], [True], (), "one patient only"),
        (["a", "b"], [False, False], (), "nothing to learn"),
        (["a", "b"], [True, True], ("c",), "not among"),
        (["a", "b"], [True, True], ("a", "b"), "at least one to train on"),
    ],
)
def test_impossible_splits_are_sentences(tmp_path, patients, lesions, validation, words):
    some = [TrainingCase(p, p, tmp_path, tmp_path if x else None) for p, x in zip(patients, lesions, strict=True)]
    with pytest.raises(InputError, match=words):
        make_split(some, validation)


def test_a_patient_on_both_sides_is_refused(cases, tmp_path):
    path = tmp_path / "split.json"
    save_split(make_split(cases, ("dora",)), path)
    assert load_split(path).sets["dora"] == "validation"
    path.write_text(path.read_text().replace('"anna": "train"', '"dora": "train"'))
    with pytest.raises(InputError, match="stands on one side only"):
        load_split(path)


@pytest.mark.parametrize("content", ["", "{}", '{"version": 1, "patients": {"a": "judge"}, "sha256": {}}'])
def test_files_that_are_no_split(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(ReadError):
        load_split(tmp_path / "s.json")


# ---- store ----------------------------------------------------------------------------------------------------------


def test_the_store_holds_the_lungs_box_in_hu(cases, a_store):
    stored = a_store.cases["anna"]
    assert stored.shape == (6, 40, 50)
    assert stored.lesion_slices == (1, 2, 3, 4)
    ct = sitk.GetArrayFromImage(sitk.ReadImage(str(next(c for c in cases if c.id == "anna").image)))
    assert np.array_equal(a_store.image("anna"), ct[:, 4:44, 3:53])
    assert a_store.windowed("anna", np.int16([-1400, -650, 100]), *WINDOW) == pytest.approx([0, 0.5, 1])


def test_a_store_is_built_once_and_built_again_when_damaged(cases, tmp_path):
    first = open_store(cases, hashes_of(cases), tmp_path, margin=2)
    stamp = (first.folder / "index.json").stat().st_mtime_ns
    calls = []
    open_store(cases, hashes_of(cases), tmp_path, margin=2, progress=lambda *event: calls.append(event))
    assert calls == []
    with (first.folder / "labels.u8").open("r+b") as file:
        file.write(b"\x01\x01\x01")
    again = open_store(cases, hashes_of(cases), tmp_path, margin=2)
    assert (again.folder / "index.json").stat().st_mtime_ns != stamp
    assert again.label("anna").ravel()[:3].tolist() == [0, 0, 0]


def test_pictures_are_stored_and_resized(tmp_path):
    found = read_cases(write_pictures(tmp_path / "set"))
    store = open_store(found, hashes_of(found), tmp_path / "store", None, (32, 32))
    assert store.image("0").shape == (1, 32, 32)
    assert set(np.unique(store.label("0"))) == {0, 1}
    assert store.windowed("0", np.int16([0, 255]), *WINDOW) == pytest.approx([0, 1])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda mask: mask[:-1], "Case anna: .*lesion mask is not on the grid"),
        (lambda mask: mask * 0, "Case anna: its lesion mask is empty"),
    ],
)
def test_cases_that_cannot_be_used_are_named(tmp_path, spoil, words):
    folder = write_cases(tmp_path / "cases", ("anna", "bert"))
    image = sitk.ReadImage(str(folder / "anna_lesion.nii.gz"))
    changed = sitk.GetImageFromArray(spoil(sitk.GetArrayFromImage(image)))
    changed.SetSpacing(image.GetSpacing())
    sitk.WriteImage(changed, str(folder / "anna_lesion.nii.gz"))
    found = read_cases(folder)
    with pytest.raises(InputError, match=words):
        open_store(found, hashes_of(found), tmp_path / "store")
    assert not any((tmp_path / "store").iterdir())


# ---- sampling and augmentation --------------------------------------------------------------------------------------


def source(store, **settings):
    data = DataSettings(crop=(32, 32), **settings)
    return BatchSource(store, ["anna", "bert", "cleo"], 5, data, STILL, WINDOW, seed=3)


def test_every_slice_is_seen_equally_often_and_lesion_free_ones_in_their_share(a_store):
    batches = source(a_store, lesion_free_share=0.2)
    chosen = [key for step in range(36) for key in batches.chosen(step)]
    lesion = [key for key in chosen if key[1] in a_store.cases[key[0]].lesion_slices]
    assert len(lesion) == 0.8 * len(chosen)
    counts = {key: lesion.count(key) for key in set(lesion)}
    assert len(counts) == 12
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_batch_depends_on_its_step_alone(a_store):
    one, other = source(a_store), source(a_store)
    for step in (7, 0, 3):
        other.batch(step)
    whole = one.batch(3)
    part = other.batch(3, range(2, 4))
    assert np.array_equal(whole.images[2:4], part.images)
    assert whole.slices[2:4] == part.slices
    assert whole.images.shape == (5, 1, 32, 32)
    assert whole.images.dtype == np.float32


def test_foreground_crops_hold_lesion():
    label = np.zeros((100, 120), dtype=np.uint8)
    label[10:12, 100:102] = 1
    data = DataSettings(crop=(32, 32), foreground_share=1.0)
    for place in range(20):
        row, column = crop_center(draw(0, Purpose.CROP, 0, place), label, data)
        assert 15.5 <= row <= 84.5
        assert abs(row - 15.5) <= 1
        assert abs(column - 101) <= 4


def test_without_changes_a_crop_is_the_slice():
    image = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    label = (image > 0.5).astype(np.uint8)
    crop, mask = augment(image, label, (31.5, 31.5), (32, 32), STILL, np.random.default_rng(0))
    assert np.array_equal(crop, image[16:48, 16:48])
    assert np.array_equal(mask, label[16:48, 16:48])


@pytest.mark.parametrize(
    "settings",
    [
        AugmentationSettings(rotation_degrees=0, scale=0, intensity=0),
        AugmentationSettings(),
        AugmentationSettings(rotation_degrees=30, scale=0.3, intensity=0.2, gamma=0.5, noise_sd=0.02, blur_sd=1.0),
        AugmentationSettings(sharpening=1.5, noise_sd=0.02, noise_grain=2.0, consolidation=0.5),
    ],
)
def test_image_and_mask_change_together(settings):
    """The mask of a bright disk stays on the disk, whatever happens."""
    rows, columns = np.mgrid[:96, :96]
    disk = (rows - 40) ** 2 + (columns - 55) ** 2 < 15**2
    image = np.where(disk, 0.9, 0.1).astype(np.float32)
    for seed in range(10):
        crop, mask = augment(image, disk.astype(np.uint8), (45, 50), (64, 64), settings, np.random.default_rng(seed))
        middle = (crop.max() + crop.min()) / 2
        assert dice(crop > middle, mask != 0) > 0.95
        assert crop.dtype == np.float32
        assert 0 <= crop.min() <= crop.max() <= 1


def test_at_half_the_zoom_a_crop_covers_four_times_the_area():
    image = np.zeros((128, 128), dtype=np.float32)
    image[32:96, 32:96] = 0.8
    label = (image > 0).astype(np.uint8)
    crop, mask = augment(image, label, (63.5, 63.5), (64, 64), STILL, np.random.default_rng(0), zoom=0.5)
    expected = np.zeros((64, 64), dtype=bool)
    expected[16:48, 16:48] = True
    assert np.array_equal(mask != 0, expected)
    assert np.array_equal(crop > 0.4, expected)


def test_a_zoomed_crop_stays_inside_its_slice():
    label = np.zeros((100, 120), dtype=np.uint8)
    label[2, 2] = 1
    data = DataSettings(crop=(32, 32), zoom=0.5, foreground_share=1.0)
    assert crop_center(draw(0, Purpose.CROP, 0, 0), label, data) == (31.0, 31.0)


def test_lesions_become_dense_and_nothing_else_does():
    rows, columns = np.mgrid[:96, :96]
    lesion = (rows - 40) ** 2 + (columns - 55) ** 2 < 20**2
    image = np.where(lesion, 0.5, 0.3).astype(np.float32)
    image[:, :8] = 1.0
    settings = AugmentationSettings(flip=False, rotation_degrees=0, scale=0, intensity=0, consolidation=1.0)
    changed = 0
    for seed in range(10):
        crop, _ = augment(image, lesion.astype(np.uint8), (47.5, 47.5), (96, 96), settings, np.random.default_rng(seed))
        far = (rows - 40) ** 2 + (columns - 55) ** 2 > 28**2
        assert np.array_equal(crop[far], image[far])
        assert (crop >= image - 1e-6).all()
        changed += (crop[lesion] > 0.7).mean() > 0.1
    assert changed >= 8


def test_grainy_noise_is_as_strong_as_white_noise_and_coarser():
    image, label = np.full((128, 128), 0.5, dtype=np.float32), np.zeros((128, 128), dtype=np.uint8)
    for grain in (0.0, 3.0):
        settings = replace(STILL, noise_sd=0.1, noise_grain=grain)
        found = []
        for seed in range(20):
            crop, _ = augment(image, label, (63.5, 63.5), (128, 128), settings, np.random.default_rng(seed))
            noise = crop - 0.5
            found.append((noise.std(), np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]))
        strength, neighbors = np.mean(found, axis=0)
        assert 0.04 < strength < 0.06
        assert (neighbors > 0.5) == (grain > 0)


def test_thicker_slices_are_means_of_neighbors(a_store):
    case = "anna"
    data = DataSettings(crop=(32, 32), foreground_share=0)
    thin, thick = (
        BatchSource(a_store, [case], 4, data, replace(STILL, neighbors=most), WINDOW, seed=0) for most in (0, 2)
    )
    grains: list[list[float]] = []
    for step in range(6):
        one, other = thin.batch(step), thick.batch(step)
        assert one.slices == other.slices
        assert np.array_equal(one.labels, other.labels)
        grains += [
            [float(np.abs(np.diff(image[0])).mean()) for image in pair]
            for pair in zip(one.images, other.images, strict=True)
        ]
    quieter = [after < 0.9 * before for before, after in grains if after != before]
    # no, one or two neighbors on either side: the noise of a mean is weaker
    assert 8 < len(quieter) < 24
    assert all(quieter)


# ---- label noise, rates, audit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "strength", "sign"), [("dilation", 3, 1), ("erosion", 2, -1), ("dropout", 0.6, -1), ("shift", 4, 0)]
)
def test_label_noise_changes_labels_as_it_says(kind, strength, sign):
    mask = np.zeros((6, 80, 80), dtype=np.uint8)
    for number in range(4):
        mask[1:5, 8 + 18 * number : 18 + 18 * number, 10:40] = 1
    noisy, done = add_label_noise(mask, LabelNoiseSettings(kind, strength), 0)
    assert done == kind
    assert 0.2 < dice(noisy != 0, mask != 0) < 0.999
    change = int(noisy.sum()) - int(mask.sum())
    assert np.sign(change) == sign or sign == 0
    assert np.array_equal(add_label_noise(mask, LabelNoiseSettings(kind, strength), 0)[0], noisy)
    assert not np.array_equal(add_label_noise(mask, LabelNoiseSettings(kind, strength), 1)[0], noisy)


def test_a_share_of_cases_is_spared():
    mask = np.zeros((3, 40, 40), dtype=np.uint8)
    mask[:, 10:20, 10:20] = 1
    settings = LabelNoiseSettings("mixed", 3.0, share=0.5)
    kinds = [add_label_noise(mask, settings, case)[1] for case in range(40)]
    assert 10 < kinds.count("none") < 30
    assert {"dilation", "erosion", "dropout", "shift"} <= set(kinds)


@pytest.mark.parametrize(
    ("settings", "steps", "rates"),
    [
        ({"schedule": "halving"}, (0, 9_999, 10_000, 20_000), (1e-4, 1e-4, 5e-5, 2.5e-5)),
        ({"schedule": "milestones", "factor": 0.1, "milestones": (30, 50)}, (0, 30, 49, 50), (1e-4, 1e-5, 1e-5, 1e-6)),
        ({"schedule": "constant"}, (0, 99), (1e-4, 1e-4)),
        ({"schedule": "one_cycle"}, (0, 30, 100), (4e-6, 1e-4, 4e-9)),
    ],
)
def test_learning_rates(settings, steps, rates):
    found = [learning_rate(OptimizerSettings(**settings), step, 100) for step in steps]
    assert found == pytest.approx(rates)


def test_the_audit_ranks_the_slice_whose_label_is_wrong():
    audit = LabelAudit(window=20, percentile=70, warm_up=2)
    generator = np.random.default_rng(0)
    for _ in range(30):
        losses = [*generator.uniform(0.1, 0.2, 3), generator.uniform(0.8, 1.0)]
        audit.add([("a", 0), ("a", 1), ("b", 0), ("b", 7)], losses, [0.1, 0.2, 0.1, 0.8])
    worst = audit.ranked()[0]
    assert (worst.case, worst.slice, worst.share_above) == ("b", 7, 1.0)
    assert worst.reason == "loss above the threshold in 28 of 28 visits; teacher and label overlap with Dice 0.20"
    assert [row["case"] for row in audit.cases()] == ["b", "a"]
    again = LabelAudit(window=20, percentile=70, warm_up=2)
    again.load_state_dict(json.loads(json.dumps(audit.state_dict())))
    assert again.ranked() == audit.ranked()


# ---- configurations that ship, pseudo-labels ------------------------------------------------------------------------

SHIPPED = sorted((REPOSITORY / "Resources" / "Training").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_are_allowed(path):
    overrides = {"data": {"pseudo_cases": "pseudo.csv"}} if "semi-" in path.stem else {}
    config = TrainingConfig.from_toml(path, overrides)
    assert TrainingConfig.from_dict(config.to_dict()) == config


def test_the_six_rows_of_table_three_differ_as_the_table_says():
    rows = [TrainingConfig.from_toml(path) for path in SHIPPED if "table3" in path.stem]
    parts = [
        (c.loss.name, c.ensembling.enabled, c.ensembling.adaptive_teacher, c.ensembling.adaptive_student) for c in rows
    ]
    assert parts[0][:2] == ("dice", False)
    assert parts[1:] == [
        ("dice", True, False, False),
        ("dice", True, True, False),
        ("dice", True, False, True),
        ("dice", True, True, True),
        ("noise_robust_dice", True, True, True),
    ]


def test_entropy_in_both_conventions():
    sure, unsure = torch.tensor([-50.0, 50.0]), torch.tensor([0.0, 0.0])
    logits = torch.stack([sure, unsure])[:, :, None, None].expand(2, 2, 4, 4)
    assert mean_entropy(logits).tolist() == pytest.approx([0, np.log(2)], abs=1e-6)
    assert mean_entropy(logits, "bits").tolist() == pytest.approx([0, 1], abs=1e-6)
    # a softmax over sigmoid outputs can't be surer than 0.582 nats
    assert mean_entropy(logits, "nats", "softmax_of_sigmoids").tolist() == pytest.approx([0.5822, np.log(2)], abs=1e-4)


@pytest.mark.parametrize(("threshold", "accepted", "warning"), [(1e-9, 0, "No slice"), (0.7, 4, "Every slice")])
def test_pseudo_labels_are_filtered_reported_and_trainable(tmp_path, threshold, accepted, warning):
    torch.manual_seed(0)
    network = CAResUNet(base_channels=4).eval()
    card = ModelCard("tiny", "Tiny", "caresunet", network.arguments, preprocessing=Preprocessing(resize=(32, 48)))
    pictures = read_pictures(write_pictures(tmp_path / "set") / "images")
    report = pseudo_label(LoadedModel(network, card), pictures, tmp_path / "pseudo", threshold, device="cpu")
    assert (report.accepted, report.total) == (accepted, 4)
    assert report.warning.startswith(warning)
    rows = list(csv.DictReader(report.manifest.open()))
    assert len(rows) == accepted
    if accepted:
        found = read_cases(report.manifest)
        assert all(case.kind == "picture" for case in found)
        mask = next((case.lesion for case in found if case.lesion is not None), None)
        if mask is not None:
            assert sitk.GetArrayFromImage(sitk.ReadImage(str(mask))).shape == (40, 56)


def test_semi_supervised_training_takes_as_many_pseudo_labels(tmp_path):
    from COVIDLesionSegLib.learning import Trainer

    labeled = write_pictures(tmp_path / "labeled")
    pseudo = write_pictures(tmp_path / "pseudo", count=6)
    config = tiny_config(
        labeled,
        data={"validation_patients": ("3",), "pseudo_cases": str(pseudo), "margin": -1, "resize": (32, 32)},
        network={"name": "caresunet", "arguments": {"base_channels": 4}},
        loss={"name": "cares"},
        optimizer={"name": "ranger", "learning_rate": 1e-3},
        ensembling={"enabled": False},
        run={"steps": 2, "batch_size": 2, "pseudo_batch_size": 2},
    )
    result = Trainer(config, tmp_path / "run", tmp_path).run()
    assert result.card.preprocessing.resize == (32, 32)
    assert result.card.preprocessing.lung_crop_margin is None
    assert set(result.best.cases["3"]) == {"dice", "rve"}
