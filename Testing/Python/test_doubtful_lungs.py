"""Lungs that can't be trusted: nothing of a perfect network's lesion is lost, and every figure says it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from box_chest import value
from lung_chests import Chest, coarse_chest, lungs_found
from predictor_fixtures import a_model
from torch import nn

from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.errors import COVIDLesionSegError, InputError
from COVIDLesionSegLib.imaging import (
    LabelVolume,
    LocatedLungs,
    LungQuality,
    Volume,
    assess_lungs,
    body_box,
    locate_lungs,
    write_labels,
    write_volume,
)
from COVIDLesionSegLib.inference import PostProcessing, Predictor, RunRecord
from COVIDLesionSegLib.inference import predictor as predictor_module
from COVIDLesionSegLib.learning.data import TrainingCase
from COVIDLesionSegLib.learning.store import open_store
from COVIDLesionSegLib.measurement import compare_timepoints, quantify
from COVIDLesionSegLib.measurement.catalog import catalog, joint_status
from COVIDLesionSegLib.measurement.longitudinal import TimePoint
from COVIDLesionSegLib.measurement.quantification import severity_score
from COVIDLesionSegLib.measurement.report.document import Report
from COVIDLesionSegLib.measurement.tables import case_row, region_rows
from COVIDLesionSegLib.worker.lesion_tasks import Lesions
from COVIDLesionSegLib.worker.measurement_tasks import Measurements
from COVIDLesionSegLib.worker.protocol import geometry_to_json
from COVIDLesionSegLib.worker.tasks import Context, perform

# HU that nothing but lesion has in these chests
LESION_HU = 30
LIMIT_MM = 5.0


class Perfect(nn.Module):
    """A perfect network: sure of every voxel whose value in its window is a lesion's, and of no other."""

    def __init__(self, is_lesion):
        super().__init__()
        self.is_lesion = is_lesion

    def forward(self, x):
        marked = self.is_lesion(x)
        return torch.cat([torch.where(marked, -9.0, 9.0), torch.where(marked, 9.0, -9.0)], dim=1)


def a_limited_model(is_lesion, **options):
    model = a_model(Perfect(is_lesion), **options)
    model.card = replace(model.card, keep_inside_lungs_mm=LIMIT_MM)
    return model


@pytest.fixture(scope="module")
def sick():
    """A chest with a white left lung and a lesion in the right one: CT, lesion, true lungs, in an LPS volume."""
    chest = Chest((4.0, 2.5, 2.5))
    lesion = (chest.truth == 2) | chest.consolidate((-75, 20, -30), 25, LESION_HU)
    chest.hu[lesion] = LESION_HU
    return chest.volume(), lesion, chest.truth


@pytest.fixture
def a_perfect_model():
    return a_limited_model(lambda x: (x * 1500 - 1400 - LESION_HU).abs() < 3)


@pytest.fixture
def predictor(a_perfect_model):
    return Predictor(a_perfect_model, "cpu", "float32")


@pytest.fixture
def files(sick, tmp_path):
    """The chest as files, with a lung mask that misses the left lung."""
    volume, lesion, truth = sick
    write_volume(volume, tmp_path / "ct.nii.gz")
    for name, array in (("lesion.nii.gz", lesion), ("right.seg.nrrd", truth == 1), ("both.nii.gz", truth)):
        names = {1: "lesion"} if array is lesion else {1: "right lung", 2: "left lung"}
        write_labels(LabelVolume(array.astype(np.uint8), volume.geometry, names), tmp_path / name)
    return tmp_path


def judged(lungs, verdict="doubtful"):
    return LocatedLungs(np.asarray(lungs, np.uint8), LungQuality(verdict, "test"))


def statuses(measured):
    return {key: entry["status"] for key, entry in measured.items()}


# ---- nothing is thrown away -----------------------------------------------------------------------------------------


def test_a_white_lung_loses_no_lesion_and_every_figure_says_so():
    chest = coarse_chest("white_left_lung")
    volume, lesion = chest.volume, chest.lesion
    # the lesion is brightened: nothing else reaches so far up in the window
    model = a_limited_model(lambda x: x > 0.95, window_width=4000, window_level=1000)
    located = lungs_found("white_left_lung")
    marked = Volume(np.where(lesion, np.int16(2900), volume.array), volume.geometry)
    result = Predictor(model, "cpu", "float32").segment(marked, located)
    measured = quantify(volume, result.mask, result.located_lungs)
    involvement, severity = measured["involvement"], measured["severity_by_zones"]
    kept = np.count_nonzero(result.mask & lesion) / np.count_nonzero(lesion)
    if located.quality.is_doubtful:
        assert kept == 1.0
        assert result.record.warnings[0].startswith(located.quality.line())
        assert involvement["status"] == severity["status"] == "lungs_doubtful"
    else:
        # a finder that finds the white lung after all, and is right about it
        assert kept >= 0.9
        true = quantify(volume, lesion, judged(chest.lungs, "ok"))
        assert involvement["value"] == pytest.approx(true["involvement"]["value"], abs=5)
        assert severity["value"] == true["severity_by_zones"]["value"]


def test_on_doubtful_lungs_the_body_is_searched_and_the_model_s_limit_left_out(sick, predictor):
    volume, lesion, truth = sick
    result = predictor.segment(volume, judged(truth == 1))
    np.testing.assert_array_equal(result.mask, lesion)
    assert result.record.postprocessing["keep_inside_lungs_mm"] is None
    first = result.record.warnings[0]
    assert first.startswith("Lungs doubtful") and "the whole body was searched, and no lesion was dropped" in first
    assert RunRecord.from_json(result.record.to_json()).lung_quality == result.lung_quality.to_json()
    box = tuple(slice(*ends) for ends in result.record.parameters["box"])
    assert (truth[box] > 0).sum() == (truth > 0).sum()
    # air beside the patient is left out
    assert all(
        0 < start < stop < n
        for (start, stop), n in zip(result.record.parameters["box"][1:], truth.shape[1:], strict=True)
    )
    trusted = predictor.segment(volume, judged(truth == 1, "ok"))
    assert 0 < np.count_nonzero(trusted.mask) < 0.2 * np.count_nonzero(lesion)
    assert trusted.record.postprocessing["keep_inside_lungs_mm"] == LIMIT_MM
    assert not trusted.record.warnings and trusted.record.parameters["box"] != result.record.parameters["box"]


def test_a_limit_that_was_asked_for_is_obeyed_on_doubtful_lungs(sick, predictor):
    volume, lesion, truth = sick
    asked = PostProcessing(keep_inside_lungs_mm=0)
    result = predictor.segment(volume, judged(truth == 1), postprocessing=asked)
    np.testing.assert_array_equal(result.mask, lesion & (truth == 1))
    assert result.record.postprocessing["keep_inside_lungs_mm"] == 0
    assert (
        "lesion outside the lungs and further than 0 mm from lesion in them was dropped, as asked"
        in result.record.warnings[0]
    )


@pytest.mark.parametrize(
    ("lungs", "doubtful"),
    [
        (lambda truth: truth, False),
        (lambda truth: truth > 0, False),
        (lambda truth: np.where(truth == 2, 1, truth * 2), False),
        (lambda truth: truth == 2, True),
        (lambda truth: np.where(truth == 1, 0, truth), True),
    ],
    ids=["both", "one label for both", "sides exchanged", "one lung, unnamed", "the left lung"],
)
def test_given_lungs_are_judged_too(sick, predictor, lungs, doubtful):
    volume, _, truth = sick
    quality = predictor.segment(volume, lungs(truth).astype(np.uint8)).lung_quality
    assert (quality.engine, quality.is_doubtful) == ("given", doubtful)


def test_lungs_that_are_not_told_apart_are_judged_by_where_they_lie(sick):
    volume, _, truth = sick
    both, one = ((truth > 0).view(np.uint8), (truth == 2).view(np.uint8))
    assert not assess_lungs(volume, both, sided=False).is_doubtful
    assert assess_lungs(volume, one, sided=False).findings[0].sentence.startswith("The right lung is")
    # few voxels, of which the grid on which lungs are judged holds none
    few = np.zeros_like(truth)
    few[1, 1, 1] = 1
    assert assess_lungs(volume, few).is_doubtful
    assert assess_lungs(volume, few, sided=False).measures["right_ml"] > 0


def test_without_lungs_the_whole_body_is_searched_on_request(sick, predictor):
    volume, lesion, _ = sick
    result = predictor.segment(volume, lung_engine="none")
    np.testing.assert_array_equal(result.mask, lesion)
    assert not result.lungs.any() and "No lungs were looked for." in result.record.warnings[0]
    measured = quantify(volume, result.mask, result.located_lungs)
    assert (measured["severity_by_zones"]["value"], measured["involvement"]["status"]) == (None, "lungs_empty")
    with pytest.raises(InputError, match="there are no lungs"):
        predictor.segment(volume, lung_engine="none", postprocessing=PostProcessing(keep_inside_lungs_mm=5))
    with pytest.raises(InputError, match=r"lung engine 'magic' is not known; known are classical, .*none"):
        predictor.segment(volume, lung_engine="magic")


def test_the_body_s_box_leaves_out_air_table_and_filling():
    spacing = (2.0, 1.0, 1.0)
    hu = np.full((40, 120, 160), -1000, np.int16)
    z, y, x = np.ogrid[:40, :120, :160]
    body = (((y - 50) / 30) ** 2 + ((x - 80) / 55) ** 2 <= 1) & (z >= 6)
    hu[body] = 20
    # the shell of a table, 1 mm from the back
    hu[:, 82:85, 10:150] = 100
    box = body_box(hu, np.zeros(hu.shape), spacing, 3)
    occupied = [np.flatnonzero(body.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    for side, found, step in zip(box, occupied, (2, 3, 3), strict=True):
        assert side.start <= found[0] - min(3, found[0])
        assert side.stop >= min(found[-1] + 4, hu.shape[box.index(side)])
        assert found[0] - side.start <= 3 + 3 * step and side.stop - found[-1] <= 4 + 3 * step
    # lungs lie in the box wherever they are, and without anything there is no reason to cut
    lungs = np.zeros(hu.shape)
    lungs[0:4, 0:6, 0:6] = 1
    assert [side.start for side in body_box(hu, lungs, spacing, 0)] == [0, 0, 0]
    nothing = body_box(np.full_like(hu, -1000), np.zeros(hu.shape), spacing, 3)
    assert nothing == tuple(slice(0, n) for n in hu.shape)


def test_training_slices_are_cut_as_the_predictor_cuts(sick, predictor, files, caplog):
    volume, _, truth = sick
    hashes = {"a": {"image": "0"}}
    shapes = {}
    for lungs in ("right.seg.nrrd", "both.nii.gz"):
        case = TrainingCase("a", "a", files / "ct.nii.gz", None, files / lungs)
        shapes[lungs] = open_store([case], hashes, files / lungs.split(".")[0], margin=2).cases["a"].shape
    box = predictor.segment(volume, judged(truth == 1)).record.parameters["box"]
    assert shapes["right.seg.nrrd"] == tuple(stop - start for start, stop in box)
    assert np.prod(shapes["both.nii.gz"]) < np.prod(shapes["right.seg.nrrd"])
    assert "Case a: Lungs doubtful: The left lung is missing. Its slices are cut to the body." in caplog.text


# ---- every figure says it -------------------------------------------------------------------------------------------


def test_what_was_computed_from_doubtful_lungs_has_the_status(chest_of_boxes):
    volume, lesion, lungs, lobes = chest_of_boxes
    plain, measured = (quantify(volume, lesion, judged(lungs, verdict), lobes) for verdict in ("ok", "doubtful"))
    assert {key: entry["value"] for key, entry in measured.items()} == {k: e["value"] for k, e in plain.items()}
    by_lobes = {key for key in measured if "lobe" in key}
    needs_no_lungs = by_lobes | {"lesion_volume", "lesion_count"}
    needs_no_lungs |= {
        key for key in measured if key.startswith(("mean_hu", "sd_hu", "ground", "consol")) and "." not in key
    }
    for key, entry in measured.items():
        if key in needs_no_lungs:
            assert entry["status"] == plain[key]["status"], key
        elif entry["value"] is not None:
            assert entry["status"] == "lungs_doubtful", key
    assert measured["severity_by_zones"]["status"] == "lungs_doubtful"
    # a lobe map is judged as well, and is the lungs where there are no others
    lobes[lungs == 2] = 0
    from_lobes = statuses(quantify(volume, lesion, None, lobes))
    assert from_lobes["involvement"] == from_lobes["severity_by_lobes"] == "lungs_doubtful"
    assert from_lobes["involvement.right_lower_lobe"] == "lungs_doubtful"
    mixed = statuses(quantify(volume, lesion, lungs, lobes))
    assert (mixed["involvement"], mixed["severity_by_lobes"]) == ("ok", "lungs_doubtful")


def test_doubt_is_said_before_anything_else():
    assert joint_status(["ok", "lungs_cut", "lungs_doubtful"]) == "lungs_doubtful"
    assert joint_status(["ok", "sides_unknown", "lungs_cut"]) == "sides_unknown"
    assert joint_status(["ok"]) == joint_status([]) == "ok"


def test_a_score_carries_what_is_to_be_said_of_the_whole(chest_of_boxes):
    volume, lesion, lungs, _ = chest_of_boxes
    lesion[14:18, 20:30, 62:78] = True
    measured = quantify(volume, lesion, lungs)
    assert measured["involvement"]["status"] == measured["severity_by_zones"]["status"] == "lesion_outside_lungs"
    assert measured["zone_score.right_lower_zone"]["status"] == "ok"


def test_tables_and_changes_carry_it(chest_of_boxes):
    volume, lesion, lungs, _ = chest_of_boxes
    measured = quantify(volume, lesion, judged(lungs))
    assert "lungs_doubtful" in case_row("a", measured)["status"].split()
    assert all(row["status"].split()[0] == "lungs_doubtful" for row in region_rows("a", measured))
    later = Volume(volume.array + np.int16(1), volume.geometry)
    compared = compare_timepoints((volume, lesion, lungs), (later, lesion, judged(lungs)))
    changed = statuses(compared["changes"])
    assert changed["involvement_change"] == changed["severity_by_zones_change"] == "lungs_doubtful"
    assert changed["lesion_volume_change"] == "ok"
    assert [compared["lung_quality"][when]["verdict"] for when in ("earlier", "later")] == ["ok", "doubtful"]
    assert compared["notes"][0].startswith("Later study: Lungs doubtful")


def test_segment_warns_and_ends_with_0(sick, a_perfect_model, files, monkeypatch, capsys):
    monkeypatch.setattr(predictor_module, "_loaded", lambda _model: a_perfect_model)
    _, lesion, truth = sick
    words = ["segment", files / "ct.nii.gz", "-o", files / "out"]
    words += ["--device", "cpu", "--precision", "float32", "--quiet"]
    # a format that keeps the names, since one label without a name can stand for both lungs
    words += ["--lungs", files / "right.seg.nrrd"]
    assert main([str(word) for word in words]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("warning: ct: Lungs doubtful: The left lung is missing. Therefore the whole body")
    assert "% of the lungs (the lung mask is doubtful);" in printed.out
    assert "note: Lungs doubtful: The left lung is missing." in printed.out
    record = json.loads((files / "out" / "ct_lesions.json").read_text())
    assert record["lung_quality"]["findings"][0]["sentence"] == "The left lung is missing."

    assert main([*(str(word) for word in words), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lesion_ml"] == pytest.approx(np.count_nonzero(lesion) * 0.025)
    assert found["lesion_percent_of_lung"] == pytest.approx(
        100 * np.count_nonzero(lesion & (truth == 1)) / np.count_nonzero(truth == 1)
    )
    assert (found["lesion_percent_status"], found["lung_quality"]["verdict"]) == ("lungs_doubtful", "doubtful")
    words[-1] = files / "both.nii.gz"
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().err == ""


def test_segment_says_how_to_go_on_where_no_lungs_are_found(sick, a_perfect_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predictor_module, "_loaded", lambda _model: a_perfect_model)
    # a body in which nothing is air, with a lesion in it
    hu = np.where(sick[0].array > -500, sick[0].array, np.int16(-1000))
    hu[:, 20:80, 20:125] = 40
    hu[20:30, 40:60, 40:60] = LESION_HU
    write_volume(Volume(hu, sick[0].geometry), tmp_path / "ct.nii.gz")
    words = ["segment", str(tmp_path / "ct.nii.gz"), "-o", str(tmp_path), "--device", "cpu", "--quiet", "--json"]
    assert main(words) == 2
    assert "--lung-engine none searches the whole body" in capsys.readouterr().err
    assert main([*words, "--lung-engine", "none"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lesion_ml"] == pytest.approx(np.count_nonzero(hu == LESION_HU) * 0.025)
    assert found["lesion_percent_of_lung"] is None
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--lung-engine", "magic"])


def test_report_shows_it_in_words(files, capsys):
    words = ["report", files / "ct.nii.gz", files / "lesion.nii.gz", "--lungs", files / "right.seg.nrrd"]
    words += ["-o", files / "page.html", "--csv", files / "table.csv"]
    assert main([str(word) for word in words]) == 0
    line = capsys.readouterr().out
    assert "% of the lungs (the lung mask is doubtful)" in line and "note: Lungs doubtful:" in line
    page = (files / "page.html").read_text()
    assert "Why the lung mask is doubtful." in page and "The left lung is missing." in page
    assert catalog()["remarks"]["lungs_doubtful"] in page
    key_figures = page[page.index("Key figures") : page.index("Pictures")]
    assert key_figures.count("the lung mask is doubtful") == 2
    with (files / "table.csv").open() as table:
        assert all("lungs_doubtful" in row["status"] or row["lung_volume [mL]"] == "" for row in csv.DictReader(table))
    assert main([*(str(word) for word in words), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["lung_quality"]["verdict"] == "doubtful"
    assert measured["notes"][0].startswith("Lungs doubtful")
    # no score without it
    assert measured["quantities"]["severity_by_zones"]["status"] == "lungs_doubtful"


def test_compare_timepoints_prints_it(sick, files, capsys):
    volume = sick[0]
    write_volume(Volume(volume.array + np.int16(1), volume.geometry), files / "later.nii.gz")
    words = ["compare-timepoints", "ct.nii.gz", "lesion.nii.gz", "later.nii.gz", "lesion.nii.gz"]
    words = [words[0], *(str(files / word) for word in words[1:])]
    for when in ("earlier", "later"):
        words += [f"--{when}-lungs", str(files / "right.seg.nrrd")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "Change of lung involved" in line)
    assert line.endswith("(the lung mask is doubtful)")
    assert "note: Later study: Lungs doubtful: The left lung is missing." in printed


def test_the_worker_s_replies_have_the_verdict(sick, a_perfect_model, monkeypatch, tmp_path):
    volume, lesion, truth = sick
    right = (truth == 1).astype(np.uint8)
    grid = geometry_to_json(volume.geometry)
    predictor = Predictor(a_perfect_model, "cpu", "float32")
    monkeypatch.setattr(Lesions, "_predictor", lambda *_: predictor)
    notes = []
    parameters, arrays = {"geometry": grid, "lung_engine": "none"}, {"volume": volume.array}
    answer = perform(Lesions(), "segment", parameters, arrays, Context(note=notes.append))
    assert answer.values["summary"]["lung_quality"]["verdict"] == "doubtful"
    assert notes[0].startswith("Lungs doubtful") and answer.values["record"]["lung_quality"]["engine"] == "none"
    np.testing.assert_array_equal(answer.arrays["mask"], lesion)

    measuring = Measurements()
    found = perform(measuring, "lungs", {"geometry": grid}, {"volume": volume.array}, Context())
    assert found.values["lung_quality"] == locate_lungs(volume).quality.to_json()

    arrays = {"volume": volume.array, "lungs": np.where(truth == 2, 2, 0).astype(np.uint8), "lesion": lesion}
    opened = perform(measuring, "open", {"study": "a", "geometry": grid}, arrays, Context()).values
    assert opened["lung_quality"]["findings"][0]["sentence"] == "The right lung is missing."
    assert opened["quantities"]["involvement"]["status"] == "lungs_doubtful"
    box = {"study": "a", "box": [[0, 1], [0, 1], [0, 1]]}
    updated = perform(measuring, "update", box, {"lesion": np.zeros((1, 1, 1), np.uint8)}, Context()).values
    assert updated["lung_quality"] == opened["lung_quality"]
    both = {"volume": volume.array, "lungs": truth, "lesion": right}
    measured = perform(measuring, "quantify", {"geometry": grid}, both, Context()).values
    assert measured["lung_quality"]["verdict"] == "ok"


def test_records_from_before_the_verdict_are_read(sick, predictor):
    volume, _, truth = sick
    record = predictor.segment(volume, truth).record.to_json()
    assert RunRecord.from_json(record).to_json() == record
    del record["lung_quality"]
    assert RunRecord.from_json(record).lung_quality is None
    del record["model"]
    with pytest.raises(InputError, match="keys are missing"):
        RunRecord.from_json(record)


# ---- too little to score, limits that are none ----------------------------------------------------------------------


def test_a_stray_voxel_adds_no_point(chest_of_boxes):
    volume, lesion, lungs, lobes = chest_of_boxes
    before = quantify(volume, lesion, lungs, lobes)
    stray = lesion.copy()
    stray[26, 30, 30] = stray[26, 30, 100] = True
    after = quantify(volume, stray, lungs, lobes)
    for name in ("severity_by_zones", "severity_by_lobes"):
        assert value(after, name) == value(before, name) > 0
    assert value(after, "involvement.right_upper_zone") > 0
    assert value(after, "zone_score.right_upper_zone") == 0
    least = catalog()["severity"]["least_scored_ml"]
    # the volume itself counts, however it was added up
    assert [severity_score(50.0, ml, "zones") for ml in (least * 0.99, sum([least / 7] * 7), least * 2)] == [0, 3, 3]
    assert (severity_score(None, 1.0, "lobes"), severity_score(0.0, 0.0, "lobes")) == (None, 0)


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), -float("inf"), True, "-300"])
def test_a_limit_of_consolidation_that_is_no_number_is_refused(chest_of_boxes, limit):
    volume, lesion, lungs, _ = chest_of_boxes
    study = TimePoint(volume, lesion, lungs)
    request = {"study": "a", "geometry": geometry_to_json(volume.geometry), "consolidation_from": limit}
    calls = [
        lambda: quantify(*study, consolidation_from=limit),
        lambda: compare_timepoints(study, study, consolidation_from=limit),
        lambda: Report("a", study, consolidation_from=limit),
        lambda: perform(Measurements(), "open", request, {"volume": volume.array, "lesion": lesion}, Context()),
    ]
    for call in calls:
        with pytest.raises(COVIDLesionSegError, match="consolidation"):
            call()


@pytest.mark.parametrize("limit", ["nan", "inf", "-inf"])
def test_report_refuses_such_a_limit_before_it_reads(limit, tmp_path, capsys):
    words = ["report", str(tmp_path / "no_ct.nii.gz"), "no_lesion.nii.gz", f"--consolidation-from={limit}"]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "a finite number of HU is needed" in message and "no_ct" not in message and len(message.splitlines()) == 1
