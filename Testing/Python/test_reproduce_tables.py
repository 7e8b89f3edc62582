"""The tables that can be reproduced: schemas, published figures, what a row trains, bad input."""

from __future__ import annotations

import argparse
import re
import shlex

import jsonschema
import pytest

from COVIDLesionSegLib.cli import main, reproduce
from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.reproduction.catalog import load_table, networks, table_ids
from COVIDLesionSegLib.reproduction.planning import (
    Cell,
    Facts,
    Options,
    cells,
    command,
    configuration,
    identity,
    parse_noise,
    reductions,
)
from COVIDLesionSegLib.reproduction.writing import write_table
from COVIDLesionSegLib.resources import load_json, resource

# table -> heading of its published figures in the specification, columns
PUBLISHED = {
    "tmi-1": ("P1 Table I (", ("dice", "relative_volume_error", "hausdorff_distance_95")),
    "tmi-2": ("P1 Table II (", ("dice", "relative_volume_error", "hausdorff_distance_95")),
    "tmi-3": ("P1 Table III (", ("dice", "relative_volume_error", "hausdorff_distance_95")),
    "tmi-4": ("P1 Table IV", ("dice", "relative_volume_error", "hausdorff_distance_95")),
    **{
        f"med-phys-{number}": (
            f"P2 Table {number},",
            (
                "dice",
                "sensitivity",
                "specificity",
                "structure_measure",
                "enhanced_alignment_measure",
                "mean_absolute_error",
            ),
        )
        for number in (1, 2, 3)
    },
}


@pytest.fixture
def options(tmp_path):
    return Options(tmp_path / "data", tmp_path / "out")


def test_every_table_and_the_networks_keep_their_schemas():
    for path in resource("Reproduce").glob("*.json"):
        if not path.name.endswith(".schema.json"):
            values = load_json(f"Reproduce/{path.name}")
            jsonschema.validate(values, load_json(f"Reproduce/{values['$schema']}"))
            assert values.get("id", "networks") == path.stem


def test_all_tables_and_figures_of_both_papers_are_there():
    ablations = [f"med-phys-fig{number}" for number in (10, 7, 8, 9)]
    expected = ["label-noise", *(f"med-phys-{number}" for number in (1, 2, 3, 4)), *ablations, "med-phys-tuning"]
    assert table_ids() == [*expected, "tmi-1", "tmi-2", "tmi-3", "tmi-4", "tmi-fig4"]
    groups = {key: load_table(key).groups for key in ("tmi-1", "tmi-2", "tmi-4")}
    assert groups == {"tmi-1": "Fig. 5", "tmi-2": "Fig. 7", "tmi-4": "Fig. 9"}
    assert not load_table("tmi-3").groups


@pytest.mark.parametrize("key", PUBLISHED)
def test_published_figures_are_those_of_the_papers(key, shared):
    heading, metrics = PUBLISHED[key]
    text = shared("docs/METHODS.md").read_text(encoding="utf-8")
    lines = text[text.index(heading) :].splitlines()[1:]
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    printed = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        printed.append([cell.strip() for cell in line.strip("|").split("|")][1:])
    table = load_table(key)
    assert len(printed) == len(table.rows)
    for row, cells_ in zip(table.rows, printed, strict=True):
        assert tuple(row.published) == metrics
        for metric, cell in zip(metrics, cells_, strict=True):
            numbers = [float(number) for number in re.findall(r"\d*\.\d+", cell)]
            figure = row.published[metric]
            assert [float(n) for n in (figure.mean, figure.sd) if n is not None] == numbers, (row.id, metric)
            assert (metric in row.significant) == cell.endswith("*")


@pytest.mark.parametrize(
    ("key", "row", "metric", "printed"),
    [
        ("tmi-1", "noise-robust-dice", "dice", "79.07 ± 12.88"),
        ("tmi-3", "full", "hausdorff_distance_95", "17.12 ± 29.35"),
        ("tmi-4", "reweighting", "relative_volume_error", "18.30 ± 27.84"),
        ("med-phys-1", "semi-caresunet", "dice", "0.776 ± 0.10"),
        ("med-phys-1", "inf-net", "mean_absolute_error", "0.082"),
        ("med-phys-2", "caresunet", "mean_absolute_error", "0.0046 ± 0.01"),
        ("med-phys-3", "unet-resnet34", "specificity", "0.831 ± 0.37"),
    ],
)
def test_published_figures_are_shown_as_printed(key, row, metric, printed):
    assert str(load_table(key).row(row).published[metric]) == printed


@pytest.mark.parametrize("key", [key for key in table_ids() if key != "med-phys-4"])
def test_every_row_that_can_be_trained_has_a_configuration(key, options):
    table = load_table(key)
    for cell in cells(table, options):
        if cell.row.network.source != "none":
            config = configuration(table, cell, options, Facts(400, 100))
            assert config.run.seed == cell.seed
            assert config.data.lesion_free_share == 0.25


def test_the_protocol_of_the_tmi_paper(options):
    table = load_table("tmi-3")
    config = configuration(table, Cell(table.row("full"), 0), options, Facts(52_489, 1))
    assert config.network.arguments["channels"] == [32, 64, 128, 256, 512]
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adam", 1e-4, 1e-5)
    assert (optimizer.schedule, optimizer.factor, optimizer.every) == ("halving", 0.5, 10_000)
    assert (config.run.batch_size, config.run.patience) == (30, 10_000)
    assert config.loss.name == "noise_robust_dice"
    assert config.loss.arguments == {"gamma": 1.5}
    assert config.ensembling.adaptive_teacher
    assert config.ensembling.adaptive_student


@pytest.mark.parametrize(
    ("row", "loss", "on", "teacher", "student"),
    [
        ("dice", "dice", False, True, True),
        ("mean-teacher", "dice", True, False, False),
        ("adaptive-teacher", "dice", True, True, False),
        ("adaptive-student", "dice", True, False, True),
        ("both-adaptive", "dice", True, True, True),
        ("full", "noise_robust_dice", True, True, True),
    ],
)
def test_the_six_rows_of_table_iii(row, loss, on, teacher, student, options):
    table = load_table("tmi-3")
    config = configuration(table, Cell(table.row(row), 0), options, Facts(100, 10))
    assert config.loss.name == loss
    assert config.ensembling.enabled == on
    if on:
        assert (config.ensembling.adaptive_teacher, config.ensembling.adaptive_student) == (teacher, student)


def test_the_protocol_of_the_medical_physics_paper_on_volumes(options):
    table = load_table("med-phys-2")
    config = configuration(table, Cell(table.row("caresunet"), 0), options, Facts(10_147, 5000))
    epoch = 2537
    assert config.run.steps == 60 * epoch
    assert config.optimizer.milestones == (30 * epoch, 50 * epoch)
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.factor) == ("ranger", 5e-4, 0.1)
    assert config.network.arguments["base_channels"] == 64


def test_the_semi_supervised_row_sees_as_many_pseudo_labels_as_labels(options):
    table = load_table("med-phys-1")
    config = configuration(table, Cell(table.row("semi-caresunet"), 0), options, Facts(50, 0))
    assert (config.run.batch_size, config.run.pseudo_batch_size) == (2, 2)
    assert config.run.steps == 1200 * 25
    supervised = configuration(table, Cell(table.row("caresunet"), 0), options, Facts(50, 0))
    assert (supervised.run.steps, supervised.optimizer.milestones) == (15_600, (10_400, 13_000))


def test_what_is_reduced_is_said(tmp_path):
    options = Options(
        tmp_path, tmp_path, epochs=30, width=16, resize=(96, 96), changes={"optimizer": {"learning_rate": 1e-3}}
    )
    table = load_table("med-phys-1")
    said = ", ".join(reductions(table, options, [table.row("caresunet")]))
    assert said == (
        "base width 16 instead of 64, 30 epochs instead of 1200 epochs, the schedule of the rate in proportion, "
        "resize 96 x 96 instead of 256 x 256, optimizer.learning_rate 0.001 instead of 0.0005"
    )
    config = configuration(table, Cell(table.row("caresunet"), 0), options, Facts(50, 0))
    assert config.data.resize == config.data.crop == (96, 96)
    assert config.optimizer.milestones == (260, 325)
    assert not reductions(table, Options(tmp_path, tmp_path), list(table.rows))


def test_a_cell_is_the_same_on_another_device_and_another_with_other_settings(tmp_path):
    table = load_table("tmi-3")
    cell = Cell(table.row("dice"), 0)

    def digest(**changed):
        return identity(configuration(table, cell, Options(tmp_path, tmp_path, **changed), Facts(90, 9)), {"data": "x"})

    assert digest() == digest(device="cpu")
    assert len({digest(), digest(steps=50), digest(width=16), digest(changes={"optimizer": {"name": "sgd"}})}) == 4


def test_what_a_row_is_about_no_setting_of_all_rows_changes(tmp_path):
    table = load_table("tmi-3")
    options = Options(tmp_path, tmp_path, changes={"ensembling": {"adaptive_teacher": True, "window": 50}})
    taken = {cell.row.id: configuration(table, cell, options, Facts(50, 0)) for cell in cells(table, options)}
    gated = {key: config.ensembling.adaptive_teacher for key, config in taken.items() if config.ensembling.enabled}
    assert gated == {
        "mean-teacher": False,
        "adaptive-teacher": True,
        "adaptive-student": False,
        "both-adaptive": True,
        "full": True,
    }
    assert {config.ensembling.window for config in taken.values()} == {50}
    teacher, window = reductions(table, options, table.rows)
    assert teacher.startswith("ensembling.adaptive_teacher true instead of the default (but not of + mean teacher and")
    assert window == "ensembling.window 50 instead of the default"


def test_the_optimizers_are_compared_at_one_rate(tmp_path):
    for key in ("med-phys-fig9", "med-phys-fig10"):
        table = load_table(key)
        options = Options(tmp_path, tmp_path)
        taken = [configuration(table, cell, options, Facts(50, 0)).optimizer for cell in cells(table, options)]
        names = dict.fromkeys(optimizer.name for optimizer in taken)
        assert list(names) == ["ranger", "adam", "sgd"]
        assert {optimizer.learning_rate for optimizer in taken} == {5e-4}


def test_ablations_are_of_the_plain_unet():
    arguments = {
        key: [dict(row.network.arguments) for row in load_table(key).rows] for key in ("med-phys-fig7", "med-phys-fig8")
    }
    plain, deconvolution = {"residual": False}, {"upsampling": "deconvolution"}
    assert arguments == {
        "med-phys-fig7": [plain | deconvolution, deconvolution, plain, {}],
        "med-phys-fig8": [plain, plain | deconvolution, plain | {"upsampling": "subpixel"}],
    }


def test_rows_that_stand_for_the_protocol_are_the_same_cells_in_every_table(tmp_path):
    digests = set()
    for key in ("med-phys-1", "med-phys-fig7", "med-phys-fig9", "med-phys-fig10", "med-phys-tuning"):
        table = load_table(key)
        config = configuration(table, Cell(table.row("caresunet"), 0), Options(tmp_path, tmp_path), Facts(50, 0))
        digests.add(identity(config, {"data": "x"}))
    assert len(digests) == 1


def test_the_command_of_a_cell_brings_its_options_back(tmp_path):
    table = load_table("tmi-3")
    options = Options(
        tmp_path / "my data",
        tmp_path,
        steps=40,
        width=16,
        crop=(64, 96),
        noises=(parse_noise("dilation:3:0.5"),),
        changes={"optimizer": {"learning_rate": 1e-3}, "run": {"batch_size": 4}},
    )
    cell = cells(table, options)[0]
    text = command(table, options, cell)
    assert text == (
        f"covid-lesion-seg reproduce tmi-3 --data '{tmp_path / 'my data'}' -o {tmp_path} --rows dice --seeds 0 "
        "--steps 40 --width 16 --crop 64 96 --label-noise dilation:3:0.5 "
        "--set optimizer.learning_rate=0.001 --set run.batch_size=4"
    )
    parser = argparse.ArgumentParser()
    reproduce.add_arguments(parser)
    arguments = parser.parse_args(shlex.split(text)[2:])
    assert arguments.data == options.data
    assert arguments.label_noise == ["dilation:3:0.5"]
    assert arguments.set == ["optimizer.learning_rate=0.001", "run.batch_size=4"]


def test_label_noise_multiplies_the_cells(tmp_path):
    noises = tuple(map(parse_noise, ("dilation:3", "none", "dropout:0.4")))
    options = Options(tmp_path, tmp_path, seeds=(0, 1), noises=noises)
    found = cells(load_table("tmi-3"), options)
    assert len(found) == 6 * 2 * 3
    assert len({cell.name for cell in found}) == len(found)
    assert [found[place].noise and found[place].noise.kind for place in (0, 12, -1)] == ["dilation", None, "dropout"]
    assert "--label-noise dilation:3:1 none dropout:0.4:1" in command(load_table("tmi-3"), options)
    assert "--label-noise none" in command(load_table("tmi-3"), options, found[12])


@pytest.mark.parametrize(
    ("table", "rows", "said"),
    [
        ("tmi-1", (), "All rows: MONAI's DynUNet"),
        ("tmi-1", ("focal-2",), "Focal loss, gamma 2: MONAI's DynUNet"),
        ("tmi-2", ("nnunet-2d", "coplenet"), "2-D nnU-Net: MONAI's DynUNet"),
    ],
)
def test_what_is_said_of_a_network_stands_there_once(table, rows, said, tmp_path):
    text = write_table(load_table(table), Options(tmp_path, tmp_path, rows=rows), [])[0].read_text(encoding="utf-8")
    assert text.count("MONAI's DynUNet") == text.count(f"\n- {said}") == 1


def test_networks_without_a_library_say_so():
    missing = {key for key, network in networks().items() if network.source == "none"}
    assert missing == {"segnet", "inf-net", "espnetv2"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tmi-9", "--data", "."], "There is no table 'tmi-9'; did you mean tmi-"),
        (["tmi-3"], "The table tmi-3 needs data; give them with --data"),
        (["tmi-3", "--data", "nowhere"], "The training data nowhere are not there"),
        (["med-phys-1", "--data", "."], "does not hold the slices of COVID-SemiSeg"),
        (["tmi-3", "--data", ".", "--rows", "dise"], "has no row 'dise'; did you mean dice?"),
        (["tmi-3", "--data", ".", "--steps", "0"], "--steps is 0; it must be at least 1."),
        (["tmi-3", "--data", ".", "--steps", "5", "--epochs", "5"], "Both --steps and --epochs are given"),
        (["tmi-3", "--data", ".", "--folds", "1"], "1 folds are no cross-validation; give 2 or more."),
        (["tmi-3", "--data", ".", "--seeds", "1", "1"], "The seeds are [1, 1]; different whole numbers"),
        (["tmi-3", "--data", ".", "--label-noise", "dilation"], "are not KIND:STRENGTH[:SHARE]"),
        (["tmi-3", "--data", ".", "--label-noise", "dilatoin:3"], "did you mean dilation?"),
        (["tmi-3", "--data", ".", "--label-noise", "dropout:3"], "label_noise.strength is 3.0; it must be in [0, 1]"),
        (["tmi-3", "--data", ".", "--set", "rate=1"], "TABLE.KEY=VALUE is needed"),
        (["tmi-3", "--data", ".", "--set", "run.steps=50"], "run.steps can't be obeyed, since each training"),
        (["tmi-3", "--data", ".", "--set", "run.seed=7"], "give --seeds"),
        (["tmi-3", "--data", ".", "--crop", "1", "2", "3"], "--crop takes one side or two"),
        (["med-phys-1", "--data", ".", "--label-noise", "shift:2"], "label errors are for tables on volumes"),
        (
            ["med-phys-tuning", "--data", ".", "--set", "optimizer.learning_rate=1"],
            "sets optimizer.learning_rate itself",
        ),
    ],
)
def test_bad_input_is_one_sentence(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize("changes", [{"optimizer": {"learning_rat": 1.0}}, {"data": {"crop": [30, 30]}}])
def test_settings_that_no_training_takes_are_refused(changes, tmp_path):
    table = load_table("tmi-3")
    with pytest.raises(InputError, match=r"unknown key|multiples of 16"):
        configuration(table, Cell(table.row("dice"), 0), Options(tmp_path, tmp_path, changes=changes), Facts(9, 0))


def test_without_a_table_all_are_listed(capsys):
    assert main(["reproduce"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == table_ids()
