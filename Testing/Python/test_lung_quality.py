"""The verdict on a lung mask: what each check sees, and that true lungs of sick chests pass."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
from lung_chests import coarse_chest

from COVIDLesionSegLib.errors import GridMismatchError, InputError
from COVIDLesionSegLib.imaging import LungQuality, Volume, assess_lungs
from COVIDLesionSegLib.phantom.sick import SICK_CHESTS
from COVIDLesionSegLib.resources import load_json


def made(name):
    return coarse_chest(name, oblique=False)


def axial(chest, lungs=None):
    """CT and lungs with slices from the feet up, rows to the back, columns to the left."""
    view = chest.volume.geometry.axial_view()
    return view.apply(chest.volume.array).copy(), view.apply(chest.lungs if lungs is None else lungs).copy(), view


def checks(quality):
    return {finding.check for finding in quality.findings}


def test_the_limits_are_valid_data():
    jsonschema.validate(load_json("LungQuality.json"), load_json("LungQuality.schema.json"))


def test_the_schema_refuses_a_check_without_reason():
    limits = load_json("LungQuality.json")
    del limits["checks"]["side_ratio"]["reason"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(limits, load_json("LungQuality.schema.json"))


@pytest.mark.parametrize("name", [name for name in SICK_CHESTS if "half" not in name and name != "pneumothorax"])
def test_the_true_lungs_of_a_sick_chest_are_plausible(name):
    chest = coarse_chest(name)
    quality = assess_lungs(chest.volume, chest.lungs)
    assert quality.verdict == "ok", quality.line()
    assert quality.line() == "Lungs plausible."
    assert quality.engine == "given"


@pytest.mark.parametrize("name", ["dependent_25", "dependent_40", "lower_lobe", "lower_lobes", "white_left_lung"])
def test_lungs_without_their_consolidation_are_doubtful(name):
    chest = coarse_chest(name)
    aerated = np.where(chest.consolidation, 0, chest.lungs).astype(np.uint8)
    quality = assess_lungs(chest.volume, aerated)
    assert quality.is_doubtful
    if name == "white_left_lung":
        assert "The left lung is missing." in quality.line()
    else:
        assert "wall_uncovered" in checks(quality)
        assert "Dense tissue (consolidation or effusion) lies between the right lung and" in quality.line()


def test_lung_that_is_not_in_the_mask_is_named():
    chest = made("haze")
    array, lungs, view = axial(chest)
    lungs[:, array.shape[1] // 2 :] = 0
    quality = assess_lungs(chest.volume, view.restore(lungs))
    assert "Aerated tissue that is not in the mask lies between the left lung and" in quality.line()


def test_gas_of_a_pneumothorax_is_seen_inside_and_around_the_mask():
    chest, healthy = made("pneumothorax"), made("emphysema")
    quality = assess_lungs(chest.volume, healthy.lungs)
    assert "gas_inside" in checks(quality)
    gas_ml = np.count_nonzero((healthy.lungs == 2) & (chest.lungs == 0)) * chest.volume.geometry.voxel_ml
    assert quality.measures["gas_inside_ml"] == pytest.approx(gas_ml, rel=0.12)
    assert "mL of gas without lung tissue are counted as lung" in quality.line()

    quality = assess_lungs(chest.volume, chest.lungs)
    assert {"gas_around", "wall_uncovered"} <= checks(quality)
    assert quality.measures["gas_inside_ml"] < 60
    assert quality.measures["gas_around_ml"] == pytest.approx(gas_ml, rel=0.12)
    assert "Gas lies between the left lung and" in quality.line()


def test_gas_of_stomach_and_trachea_is_no_finding():
    quality = assess_lungs(made("emphysema").volume, made("emphysema").lungs)
    assert quality.measures["gas_inside_ml"] == quality.measures["gas_around_ml"] == 0


@pytest.mark.parametrize(("side", "name"), [(1, "right"), (2, "left")])
def test_a_side_that_is_missing_or_far_smaller(side, name):
    chest = made("emphysema")
    quality = assess_lungs(chest.volume, np.where(chest.lungs == side, 0, chest.lungs).astype(np.uint8))
    assert checks(quality) >= {"side_ratio"}
    assert f"The {name} lung is missing." in quality.line()

    _, lungs, view = axial(chest)
    part = lungs == side
    part[2 * len(part) // 3 :] = False
    lungs[part] = 0
    quality = assess_lungs(chest.volume, view.restore(lungs))
    (finding,) = (finding for finding in quality.findings if finding.check == "side_ratio")
    assert finding.value < finding.limit == 0.3
    assert f"The {name} lung is far smaller than the other" in quality.line()


@pytest.mark.parametrize(("name", "other"), [("right_half", "left"), ("left_half", "right")])
def test_half_a_chest_is_told_from_a_missing_lung(name, other):
    quality = assess_lungs(made(name).volume, made(name).lungs)
    assert quality.is_doubtful
    assert f"The {other} half of the chest lies outside the field of view." in quality.line()
    assert checks(quality) == {"side_ratio"}


def test_one_label_for_both_lungs_is_said_and_not_doubtful():
    chest = made("emphysema")
    quality = assess_lungs(chest.volume, (chest.lungs > 0).astype(np.uint8))
    assert quality.verdict == "ok"
    assert [note.check for note in quality.notes] == ["sides"]
    assert quality.line() == "Lungs plausible. Right and left lung are not told apart."
    assert quality.measures["side_ratio"] is None


@pytest.mark.parametrize("from_below", [18, 35])
def test_a_scan_that_ends_within_the_lungs_is_said_and_not_doubtful(from_below):
    chest = made("emphysema")
    array, lungs, _ = axial(chest)
    cut = slice(from_below, None)
    geometry = type(chest.volume.geometry)(array[cut].shape[::-1], chest.volume.geometry.spacing)
    quality = assess_lungs(Volume(array[cut], geometry), lungs[cut])
    assert quality.verdict == "ok"
    assert quality.measures["cut_by_ends"] > 0.3
    assert [note.check for note in quality.notes] == ["cut_by_ends"]
    assert quality.line().startswith("Lungs plausible. The scan ends within the lungs:")


def test_padding_beside_the_lungs_is_a_cut():
    chest = made("emphysema")
    array, lungs, view = axial(chest)
    array[:, :, :25] = -2000
    lungs[:, :, :25] = 0
    volume = Volume(view.restore(array), chest.volume.geometry)
    assert "cut_by_sides" not in {note.check for note in assess_lungs(chest.volume, chest.lungs).notes}
    assert "cut_by_sides" in {note.check for note in assess_lungs(volume, view.restore(lungs)).notes}


def test_a_mask_of_the_whole_body_is_doubtful():
    chest = made("emphysema")
    array, _, view = axial(chest)
    body = (array > -1100) & (np.arange(array.shape[2]) > 20) & (np.arange(array.shape[2]) < 108)
    sides = np.where(np.arange(array.shape[2]) < 64, 1, 2) * body
    assert "hull_share_high" in checks(assess_lungs(chest.volume, view.restore(sides.astype(np.uint8))))


def test_lungs_that_fill_little_of_the_ribs_are_doubtful():
    chest = made("emphysema")
    _, lungs, view = axial(chest)
    lungs[:, ::2] = 0
    assert "hull_share_low" in checks(assess_lungs(chest.volume, view.restore(lungs)))


def test_an_empty_mask_is_doubtful():
    chest = made("emphysema")
    quality = assess_lungs(chest.volume, np.zeros_like(chest.lungs))
    assert quality.line() == "Lungs doubtful: The lung mask is empty."


@pytest.mark.parametrize("shape", [(1, 40, 40), (3, 8, 8), (40, 6, 6)])
def test_small_volumes_without_bone_are_judged_by_what_they_show(shape):
    geometry = type(made("haze").volume.geometry)(shape[::-1], (2.0, 2.0, 2.0))
    lungs = np.ones(shape, np.uint8)
    lungs[:, :, shape[2] // 2 :] = 2
    quality = assess_lungs(Volume(np.full(shape, -850, np.int16), geometry), lungs)
    assert quality.measures["right_wall_uncovered"] is None
    assert quality.measures["hull_share"] is None
    assert quality.measures["side_ratio"] == pytest.approx(1, abs=0.1)


def test_unsided_masks_are_judged_by_both_walls():
    chest = made("dependent_40")
    aerated = ((chest.lungs > 0) & ~chest.consolidation).astype(np.uint8)
    quality = assess_lungs(chest.volume, aerated, sided=False)
    assert quality.measures["side_ratio"] is None
    assert [finding.check for finding in quality.findings] == ["wall_uncovered"] * 2


def test_every_orientation_gives_the_same_verdict():
    chests = made("dependent_40"), coarse_chest("dependent_40")
    one, other = (assess_lungs(c.volume, np.where(c.consolidation, 0, c.lungs).astype(np.uint8)) for c in chests)
    assert checks(one) == checks(other)
    for key in ("right_wall_uncovered", "left_wall_uncovered", "hull_share"):
        assert one.measures[key] == pytest.approx(other.measures[key], abs=0.1)


def test_a_record_survives_json():
    chest = made("pneumothorax")
    quality = assess_lungs(chest.volume, (chest.lungs > 0).astype(np.uint8))
    assert quality.findings and quality.notes
    assert LungQuality.from_json(json.loads(json.dumps(quality.to_json(), allow_nan=False))) == quality
    for other in ({"verdict": "ok"}, ["ok"], None):
        with pytest.raises(InputError, match="no record of the lungs' quality"):
            LungQuality.from_json(other)


def test_a_record_without_notes_is_read():
    record = assess_lungs(made("pneumothorax").volume, made("pneumothorax").lungs).to_json()
    del record["notes"]
    quality = LungQuality.from_json(record)
    assert quality.findings and quality.notes == ()
    assert quality.to_json() == record | {"notes": []}


def test_lungs_of_another_shape_are_refused():
    chest = made("haze")
    with pytest.raises(GridMismatchError):
        assess_lungs(chest.volume, chest.lungs[1:])
