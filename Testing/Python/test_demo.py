"""The demo: one command leaves a segmentation, a picture, a table and a record, and says what it found."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import gzip
import io
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest

from COVIDLesionSegLib import inference
from COVIDLesionSegLib.cli import _progress, main
from COVIDLesionSegLib.imaging import read_labels, read_volume, write_volume
from COVIDLesionSegLib.measurement import dice
from COVIDLesionSegLib.measurement.report import pictures
from COVIDLesionSegLib.phantom import synthetic as phantom

RESULTS = ["overlay.png", "record.json", "segmentation.nii.gz", "segmentation.seg.nrrd", "table.csv"]


@pytest.fixture(scope="module")
def a_small_chest():
    """The synthetic chest on a grid that is segmented in seconds."""
    make = phantom.synthetic_chest
    return functools.cache(lambda seed: make(seed, size=(50, 84, 108), spacing=(6.0, 3.5, 3.5)))


@pytest.fixture(scope="module")
def progress():
    """What the finished demo says on standard error, which is no terminal."""
    return io.StringIO()


@pytest.fixture(scope="module")
def a_finished_demo(a_small_chest, progress, tmp_path_factory):
    """Folder and standard output of a demo run with the bundled model."""
    folder = tmp_path_factory.mktemp("work") / "demo"
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text), contextlib.redirect_stderr(progress):
        patch.setattr(phantom, "synthetic_chest", a_small_chest)
        assert main(["demo", "-o", str(folder), "--device", "cpu"]) == 0
    return folder, text.getvalue()


def rows(folder):
    with (folder / "table.csv").open() as file:
        return {row["region"]: row for row in csv.DictReader(file)}


def test_everything_is_there_and_on_the_chests_own_grid(a_finished_demo, a_small_chest):
    folder, _ = a_finished_demo
    assert sorted(path.name for path in folder.iterdir()) == sorted([*RESULTS, "input.nii.gz", "reference.nii.gz"])
    made = a_small_chest(0)
    written = read_volume(folder / "input.nii.gz")
    assert written.geometry.difference(made.volume.geometry) == ""
    assert np.array_equal(written.array, made.volume.array)
    assert np.array_equal(read_labels(folder / "reference.nii.gz").mask(), made.lesion)
    plain, named = (read_labels(folder / f"segmentation.{ending}") for ending in ("nii.gz", "seg.nrrd"))
    for labels in (plain, named):
        assert labels.geometry.difference(made.volume.geometry) == ""
    assert np.array_equal(plain.mask(), named.mask())
    assert named.names[1].casefold() == "lesion"
    assert (folder / "overlay.png").read_bytes().startswith(b"\x89PNG")


def test_progress_goes_all_the_way(a_finished_demo, progress):
    lines = progress.getvalue().splitlines()
    phases = ["loading the model", "making the chest", "lungs", "network", "measuring", "writing"]
    told = [phase for phase in phases if any(line.startswith(f"demo: {phase}") for line in lines)]
    assert told == phases


def test_outside_a_terminal_a_phase_is_a_line_and_a_long_one_several(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(_progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with _progress.ProgressBar("demo") as bar:
        for seconds, event in enumerate(
            [("lungs", 0, 1), ("lungs", 1, 1), *(("network", n, 20) for n in range(0, 21, 4))]
        ):
            clock[0] = 4.0 * seconds
            bar(*event)
    assert capsys.readouterr().err == "demo: lungs ...\ndemo: network ...\ndemo: network 12 of 20\n"


def test_what_is_printed_is_what_the_files_hold(a_finished_demo):
    folder, text = a_finished_demo
    found = read_labels(folder / "segmentation.nii.gz")
    known = read_labels(folder / "reference.nii.gz")
    expected = dice(found.mask(), known.mask())
    assert float(re.search(r"Dice: lesion ([\d.]+)", text)[1]) == pytest.approx(expected, abs=5e-4)
    ml = found.mask().sum() * found.geometry.voxel_ml
    assert float(re.search(r"Lesion found: ([\d.]+) mL", text)[1]) == pytest.approx(ml, abs=0.06)
    for name in ("overlay.png", "table.csv", str(folder)):
        assert name in text
    assert "Research use only" in text


def test_the_table_has_units_and_the_known_volumes(a_finished_demo, a_small_chest):
    folder, _ = a_finished_demo
    truth = a_small_chest(0).truth
    table = rows(folder)
    assert len(table) == 9
    assert all(
        re.search("_(ml|percent_of_lung|hu)$", name) for name in table["whole CT"] if name not in ("region", "status")
    )
    assert {row["status"] for row in table.values()} == {"ok"}
    assert float(table["whole CT"]["known_lesion_ml"]) == pytest.approx(truth["lesion"], abs=0.01)
    assert float(table["left lung"]["known_consolidation_ml"]) == pytest.approx(
        truth["regions"]["left_lung"]["consolidation"], abs=0.01
    )
    assert float(table["right upper zone"]["known_lung_ml"]) == pytest.approx(
        truth["regions"]["right_upper_zone"]["region"], abs=0.01
    )
    # the lungs that were found are about those that were put in
    for region in ("right lung", "left lung"):
        assert float(table[region]["lung_volume_ml"]) == pytest.approx(float(table[region]["known_lung_ml"]), rel=0.1)


def test_the_record_names_model_and_seconds_but_no_place(a_finished_demo):
    folder, _ = a_finished_demo
    text = (folder / "record.json").read_text()
    record = json.loads(text)
    assert {"making the chest", "loading the model", "lungs", "network", "measuring", "writing"} <= set(
        record["seconds"]
    )
    assert record["model"]["weights_sha256"]
    assert str(folder.parent) not in text


def test_a_ct_of_ones_own_leaves_no_copy_and_no_name(a_small_chest, tmp_path, capsys):
    ct = tmp_path / "DOE_JANE.nii.gz"
    write_volume(a_small_chest(0).volume, ct)
    status = main(["demo", "--input", str(ct), "-o", str(tmp_path / "out"), "--device", "cpu", "--quiet", "--json"])
    assert status == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == RESULTS
    assert "dice_with_known_lesions" not in found
    assert found["whole_ct"]["lung_volume_ml"] > 2000
    assert set(found["files"]) == set(RESULTS)
    for name in RESULTS:
        content = (tmp_path / "out" / name).read_bytes()
        # three letters turn up by chance in a compressed picture of a megabyte, eight do not
        secret = b"DOE" if name.endswith((".csv", ".json")) else b"DOE_JANE"
        assert secret not in (gzip.decompress(content) if name.endswith(".gz") else content)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "absent.nii.gz"], "absent.nii.gz"),
        (["--series", "1.2.3"], "--input"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--device", "abacus"], "abacus"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quiet", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_the_input_is_never_overwritten(tmp_path, capsys):
    series = tmp_path / "dicom"
    series.mkdir()
    assert main(["demo", "--input", str(series), "-o", str(series / "demo")]) == 2
    assert main(["demo", "--input", str(tmp_path / "segmentation.nii.gz"), "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("choose another") == 2
    assert not any(series.iterdir())


def test_an_output_that_is_no_folder_is_refused_at_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "-o", str(tmp_path / "file" / "demo")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(a_small_chest, tmp_path, monkeypatch, capsys):
    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    class KnowsTheAnswer:
        def __init__(self, *_arguments, **_options) -> None: ...

        def segment(self, volume, progress):
            chest = a_small_chest(0)
            record = SimpleNamespace(seconds={})
            return SimpleNamespace(mask=chest.lesion, lungs=chest.lungs, located_lungs=chest.lungs, record=record)

    monkeypatch.setattr(phantom, "synthetic_chest", a_small_chest)
    monkeypatch.setattr(inference, "Predictor", KnowsTheAnswer, raising=False)
    monkeypatch.setattr(pictures, "overlay_sheet", full)
    assert main(["demo", "-o", str(tmp_path / "demo"), "--device", "cpu", "--quiet"]) == 2
    assert "disk is full" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_read_only_folder_is_refused_at_once(tmp_path, monkeypatch, capsys):
    # root, who runs some test machines, may write everywhere: ask the question's answer instead of the disk
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 2
    assert "read-only" in capsys.readouterr().err
