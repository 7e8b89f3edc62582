"""A configuration reads and writes TOML and explains what is wrong with it."""

from __future__ import annotations

import tomllib

import pytest

from COVIDLesionSegLib.errors import InputError, ReadError
from COVIDLesionSegLib.learning.config import TrainingConfig


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
