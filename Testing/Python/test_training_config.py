"""A configuration reads and writes TOML and explains what is wrong with it."""

from __future__ import annotations

import importlib.util
import tomllib

import pytest
from conftest import REPOSITORY

from COVIDLesionSegLib.errors import InputError, ReadError
from COVIDLesionSegLib.learning.config import TrainingConfig
from COVIDLesionSegLib.learning.settings import dotted_keys, merged, nearest, parse_settings, require


def test_defaults_are_allowed_and_survive_toml():
    config = TrainingConfig()
    assert TrainingConfig.from_dict(tomllib.loads(config.to_toml())) == config


def test_values_survive_toml(tmp_path):
    config = TrainingConfig.from_dict(
        {
            "data": {"cases": 'C:\\data "x"', "validation_patients": ["a", "b"], "crop": [96, 128]},
            "network": {"name": "caresunet", "arguments": {"base_channels": 16, "upsampling": "subpixel"}},
            "optimizer": {"name": "ranger", "schedule": "milestones", "milestones": [30, 50], "learning_rate": 1},
            "augmentation": {"rotation": {"degrees": 30}},
            "run": {"steps": 10},
        }
    )
    path = tmp_path / "c.toml"
    path.write_text(config.to_toml())
    assert TrainingConfig.from_toml(path) == config
    assert isinstance(config.optimizer.learning_rate, float)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizr": {}}, "unknown key optimizr; did you mean optimizer"),
        ({"optimizer": {"learning_rat": 1}}, "optimizer.learning_rat; did you mean learning_rate"),
        ({"optimizer": {"learning_rate": "fast"}}, "a number is needed"),
        ({"optimizer": {"learning_rate": float("nan")}}, "NaN"),
        ({"optimizer": {"name": "adamw"}}, "allowed are adam, sgd, ranger; did you mean adam"),
        ({"run": {"steps": 2.5}}, "a whole number is needed"),
        ({"run": {"steps": True}}, "a whole number is needed"),
        ({"run": {"batch_size": 0}}, "run.batch_size is 0; it must be at least 1"),
        ({"loss": {"arguments": {"gamma": 2.5}}}, r"gamma is 2.5; it must be in \[1, 2\]"),
        ({"ensembling": {"percentile": 100}}, r"inside \(0, 100\)"),
        ({"reweighting": {"percentile": 0}}, r"inside \(0, 100\)"),
        ({"data": {"crop": [100, 100]}}, "multiples of 16"),
        ({"data": {"crop": 224}}, "a list is needed"),
        ({"data": 3}, "a table of settings is needed"),
        ({"label_noise": {"kind": "dropout", "strength": 3}}, r"in \[0, 1\] for dropout"),
        ({"augmentation": {"blur": {"sd": -0.1}}}, r"augmentation.Blur.sd is -0.1; it must be 0 or above"),
        ({"augmentation": {"scale": {"change": 1.5}}}, r"augmentation.Scale.change is 1.5; it must be in \[0, 0.99\]"),
        ({"augmentation": {"rotatoin": {}}}, "did you mean rotation"),
        ({"data": {"resize": [192, 256]}}, r"data.crop is \[224, 224\]; it must be at most \[192, 256\]"),
    ],
)
def test_what_is_wrong_is_a_sentence(values, words):
    with pytest.raises(InputError, match=words):
        TrainingConfig.from_dict(values)


@pytest.mark.parametrize("content", [None, "a = ", b"\xff\xfe"])
def test_files_that_are_no_configuration(tmp_path, content):
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ReadError, match="configuration"):
        TrainingConfig.from_toml(path)


def test_difference_names_the_setting():
    other = TrainingConfig.from_dict({"loss": {"name": "dice"}})
    assert TrainingConfig().difference(other) == ['loss.name: "noise_robust_dice" -> "dice"']


def test_all_that_is_wrong_is_told_at_once():
    values = {
        "loss": {"name": "nr_dice"},
        "run": {"steps": 0, "batch_size": -1, "sead": 3, "learning_rate": 1},
        "data": {"crop": [100, 100], "resize": [64, 64, 64], "margin": "wide"},
        "augmentation": {"noise": {"sd": -1}},
        "reweighting": {"enabled": True},
        "oops": 1,
    }
    with pytest.raises(InputError) as caught:
        TrainingConfig.from_dict(values)
    text = str(caught.value)
    assert text.startswith("The configuration has 11 errors: (1)") and "(11)" in text and "(12)" not in text
    for words in (
        "did you mean noise_robust_dice?",
        "run.steps is 0",
        "run.batch_size is -1",
        "run.sead; did you mean seed?",
        # a key that stands in another table
        "run.learning_rate; did you mean optimizer.learning_rate?",
        "data.crop is [100, 100]",
        "data.resize is [64, 64, 64]",
        "data.margin is 'wide'; a whole number is needed",
        "sd is -1",
        "Data re-weighting and self-ensembling are both enabled",
        "unknown key oops",
    ):
        assert words in text, words
    # outside of a configuration a check still raises by itself
    with pytest.raises(InputError, match="x is 1; it must be 2"):
        require(False, "x", 1, "2")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("nr_dice", "noise_robust_dice"),
        ("noise_robust", "noise_robust_dice"),
        ("ce", "cross_entropy"),
        ("gce", "generalized_cross_entropy"),
        ("mae", "mean_absolute_error"),
        ("dice_ce", "dice_cross_entropy"),
        ("Dice", "dice"),
        ("crosentropy", "cross_entropy"),
        ("hinge", None),
    ],
)
def test_what_was_meant(word, meant):
    losses = ["noise_robust_dice", "dice", "sorensen_dice", "focal_dice", "cross_entropy", "focal"]
    losses += ["mean_absolute_error", "generalized_cross_entropy", "dice_cross_entropy"]
    assert nearest(word, losses) == meant


def test_settings_of_a_command_line():
    found = parse_settings(
        [
            *("optimizer.learning_rate=1e-3", "loss.name=dice", 'data.cases="a b"', "augmentation.rotation.degrees=15"),
            *("data.crop=[32, 48]", "run.deterministic=false", "data.split= my split.json "),
        ]
    )
    assert found == {
        "optimizer": {"learning_rate": 1e-3},
        "loss": {"name": "dice"},
        "data": {"cases": "a b", "crop": [32, 48], "split": "my split.json"},
        "augmentation": {"rotation": {"degrees": 15}},
        "run": {"deterministic": False},
    }
    assert TrainingConfig.from_dict(found).augmentation.rotation.degrees == 15
    for text in ("steps=3", "run.steps", "run..steps=3", ".steps=3", "=3"):
        with pytest.raises(InputError, match=r"TABLE\.KEY=VALUE is needed"):
            parse_settings([text])
    with pytest.raises(InputError, match="gives rotation a value and"):
        parse_settings(["augmentation.rotation=3", "augmentation.rotation.degrees=3"])


def test_merged_tables_leave_both_sides_alone():
    first, second = {"a": {"b": 1, "c": {"d": 2}}}, {"a": {"c": {"e": 3}}, "f": {"g": 4}}
    both = merged(first, second)
    assert both == {"a": {"b": 1, "c": {"d": 2, "e": 3}}, "f": {"g": 4}}
    both["a"]["c"]["d"] = both["f"]["g"] = 0
    assert (first, second) == ({"a": {"b": 1, "c": {"d": 2}}}, {"a": {"c": {"e": 3}}, "f": {"g": 4}})


def test_the_page_of_settings_is_complete_and_up_to_date():
    script = REPOSITORY / "Testing" / "tools" / "configuration_page.py"
    spec = importlib.util.spec_from_file_location("configuration_page", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text(encoding="utf-8")
    assert page == module.page(), "run Testing/tools/configuration_page.py"
    sections = {part.partition("]`")[0]: part for part in page.split("## `[")[1:]}
    for key in dotted_keys(TrainingConfig):
        table, _, name = key.partition(".")
        (row,) = [line for line in sections[table].splitlines() if line.startswith(f"| `{name}` |")]
        kind, default, meaning = (text.strip() for text in row.strip("|").split(" | ")[1:4])
        assert kind and len(meaning) > 5, key
        assert default.startswith("`"), key
