"""Two time points: known motion, known changes, and studies that must be refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from COVIDLesionSegLib.errors import GridMismatchError, InputError, LungsNotFoundError
from COVIDLesionSegLib.imaging import Geometry, Volume
from COVIDLesionSegLib.measurement import longitudinal, zones
from COVIDLesionSegLib.measurement.lesions import find_components
from COVIDLesionSegLib.measurement.longitudinal import NEW, PERSISTING, RESOLVED, TimePoint, compare_timepoints
from COVIDLesionSegLib.measurement.quantification import quantify

phantom_module = pytest.importorskip("COVIDLesionSegLib.phantom.synthetic")


@pytest.fixture(scope="module")
def synthetic_patient():
    return phantom_module.synthetic_chest(size=(72, 144, 192), spacing=(4.0, 2.0, 2.0), oblique=False)


def turned(geometry: Geometry, degrees: float, shift: tuple[float, float, float]) -> tuple[Geometry, np.ndarray]:
    """The grid after the patient lay down differently, and the 4 x 4 motion (LPS) that led there."""
    a = np.radians(degrees)
    motion = np.eye(4)
    motion[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    motion[:3, 3] = shift
    rotation = motion[:3, :3]
    origin = rotation @ np.array(geometry.origin) + shift
    return Geometry(geometry.size, geometry.spacing, tuple(origin), tuple((rotation @ geometry.matrix).ravel())), motion


@pytest.fixture(scope="module")
def follow_up(synthetic_patient):
    """One lesion gone, one half gone, a new one, and the patient turned by 7 degrees and moved."""
    p = synthetic_patient
    geometry, motion = turned(p.volume.geometry, 7.0, (12.0, -9.0, 14.0))
    labels = find_components(p.lesion).image(p.lesion)
    later = p.lesion.copy()
    later[labels == 2] = False
    rows = np.flatnonzero((labels == 3).any(axis=(1, 2)))
    later[rows[: len(rows) // 2]] &= labels[rows[: len(rows) // 2]] != 3
    inside = np.argwhere((p.lungs == 2) & ~p.lesion)
    center = inside[np.abs(inside - inside.mean(axis=0)).sum(axis=1).argmin()]
    new = tuple(slice(c - 3, c + 3) for c in center)
    assert not p.lesion[tuple(slice(c - 7, c + 7) for c in center)].any()
    later[new] = True
    # noise, so that the images are not the same voxel for voxel
    rng = np.random.default_rng(1)
    hu = p.volume.array + rng.normal(0, 15, p.volume.array.shape).astype(np.int16)
    return TimePoint(Volume(hu, geometry, "later"), later, p.lungs, p.lobes), motion, labels, new


@pytest.fixture(scope="module")
def compared(synthetic_patient, follow_up):
    p = synthetic_patient
    return compare_timepoints(TimePoint(p.volume, p.lesion, p.lungs, p.lobes), follow_up[0])


def test_registration_finds_the_motion(synthetic_patient, follow_up, compared):
    volume = follow_up[0].volume
    found = np.array(compared["registration"]["later_to_earlier_lps"])
    corners = np.argwhere(synthetic_patient.lungs)[::997, ::-1]
    points = np.column_stack([corners, np.ones(len(corners))]) @ volume.geometry.ijk_to_lps.T
    expected = points @ np.linalg.inv(follow_up[1]).T
    assert np.linalg.norm((points @ found.T - expected)[:, :3], axis=1).max() < 1.5
    quality = compared["changes"]
    assert quality["lung_dice"]["value"] > 0.96
    assert quality["lung_surface_distance"]["value"] < 1.0
    assert quality["rotation"]["value"] == pytest.approx(7.0, abs=0.3)
    assert quality["volume_scale"]["value"] == pytest.approx(1.0)
    assert quality["common_coverage"]["value"] == pytest.approx(100.0)
    assert compared["notes"] == []


def test_changes_are_later_minus_earlier(synthetic_patient, follow_up, compared):
    p, ml = synthetic_patient, synthetic_patient.volume.geometry.voxel_ml
    before, after = np.count_nonzero(p.lesion) * ml, np.count_nonzero(follow_up[0].lesion) * ml
    changes = compared["changes"]
    assert changes["lesion_volume_change"]["value"] == pytest.approx(after - before)
    assert changes["lesion_volume_change_percent"]["value"] == pytest.approx(100 * (after - before) / before)
    assert changes["lesion_volume_change"]["value"] < 0
    lungs = np.count_nonzero(p.lungs) * ml
    assert changes["involvement_change"]["value"] == pytest.approx(100 * (after - before) / lungs, rel=1e-3)
    for region in ("right_lower_zone", "left_lung", "left_upper_lobe"):
        one, other = (compared[t][f"lesion_volume.{region}"]["value"] for t in ("earlier", "later"))
        assert changes[f"lesion_volume_change.{region}"]["value"] == pytest.approx(other - one)
    total = sum(changes[f"lesion_volume_change.{side}_lung"]["value"] for side in ("right", "left"))
    assert total == pytest.approx(after - before)


def test_lesions_are_new_resolved_shrunk_or_stable(compared):
    status_of_old = {i: group["status"] for group in compared["lesions"] for i in group["earlier_lesions"]}
    assert status_of_old[2] == "resolved"
    assert status_of_old[3] == "shrunk"
    assert {status for i, status in status_of_old.items() if i not in (2, 3)} == {"stable"}
    fresh = [group for group in compared["lesions"] if group["status"] == "new"]
    assert len(fresh) == 1
    assert fresh[0]["later_ml"] == pytest.approx(216 * 0.016)
    assert fresh[0]["place"].startswith("left lung")
    assert fresh[0]["change_percent"] is None
    counts = {status: compared["changes"][f"lesions_{status}"]["value"] for status in ("new", "resolved", "shrunk")}
    assert counts == {"new": 1, "resolved": 1, "shrunk": 1}
    sizes = [max(group["earlier_ml"], group["later_ml"]) for group in compared["lesions"]]
    assert sizes == sorted(sizes, reverse=True)


def test_map_shows_what_persists_is_new_and_is_gone(follow_up, compared):
    later, _, labels, new = follow_up
    change_map = compared["map"]
    assert change_map.shape == later.volume.array.shape
    assert change_map.dtype == np.uint8
    assert np.array_equal((change_map == PERSISTING) | (change_map == NEW), later.lesion)
    assert (change_map[new] == NEW).all()
    assert (change_map[labels == 2] == RESOLVED).mean() > 0.85
    assert (change_map[labels == 1] == PERSISTING).mean() > 0.85
    ml = later.volume.geometry.voxel_ml
    assert compared["changes"]["new_volume"]["value"] == pytest.approx(np.count_nonzero(change_map == NEW) * ml)


def test_the_same_input_gives_the_same_answer(synthetic_patient, follow_up, compared):
    p = synthetic_patient
    again = compare_timepoints((p.volume, p.lesion, p.lungs, p.lobes), follow_up[0])
    assert again["registration"] == compared["registration"]
    assert np.array_equal(again["map"], compared["map"])


def test_swapping_the_time_points_turns_the_signs(synthetic_patient, follow_up, compared):
    p = synthetic_patient
    back = compare_timepoints(follow_up[0], (p.volume, p.lesion, p.lungs, p.lobes))
    for key in ("lesion_volume_change", "involvement_change.right_lung"):
        assert back["changes"][key]["value"] == pytest.approx(-compared["changes"][key]["value"])
    assert back["changes"]["lesions_new"]["value"] == compared["changes"]["lesions_resolved"]["value"]


def test_affine_registration_takes_up_a_deeper_breath(synthetic_patient):
    p = synthetic_patient
    g = p.volume.geometry
    longer = Geometry(g.size, (g.spacing[0], g.spacing[1], g.spacing[2] * 1.08), g.origin, g.direction)
    later = (Volume(p.volume.array, longer), p.lesion, p.lungs)
    rigid = compare_timepoints((p.volume, p.lesion, p.lungs), later)
    affine = compare_timepoints((p.volume, p.lesion, p.lungs), later, registration="affine")
    assert affine["changes"]["volume_scale"]["value"] == pytest.approx(1 / 1.08, rel=0.02)
    assert affine["changes"]["lung_dice"]["value"] > rigid["changes"]["lung_dice"]["value"] + 0.01
    assert affine["changes"]["lung_volume_change_percent"]["value"] == pytest.approx(8.0)


def test_the_same_ct_twice_needs_no_registration_and_says_so(synthetic_patient):
    p = synthetic_patient
    none = np.zeros_like(p.lesion)
    result = compare_timepoints((p.volume, none, p.lungs), (p.volume, p.lesion, p.lungs))
    assert "same image" in result["notes"][0]
    assert result["registration"]["kind"] == "identity"
    changes = result["changes"]
    assert changes["lung_dice"]["value"] == 1.0
    assert changes["lesion_volume_change"]["value"] > 0
    assert (changes["lesion_volume_change_percent"]["value"], changes["lesion_volume_change_percent"]["status"]) == (
        None,
        "earlier_empty",
    )
    assert (changes["mean_hu_change"]["value"], changes["mean_hu_change"]["status"]) == (None, "lesion_empty")
    assert changes["severity_by_lobes_change"]["status"] == "lobes_missing"
    assert {group["status"] for group in result["lesions"]} == {"new"}


def test_choices_of_lobe_map_and_consolidation_hold_for_both_times(synthetic_patient):
    p = synthetic_patient
    ten_times = {10 * value: lobe for value, lobe in zones.lobe_values(np.arange(1, 6), {}, "lungmask").items()}
    lesions = (p.lesion & (p.lungs == 1), p.lesion)
    result = compare_timepoints(
        *((p.volume, lesion, p.lungs, 10 * p.lobes) for lesion in lesions), lobe_map=ten_times, consolidation_from=-650
    )
    for time, lesion in zip(("earlier", "later"), lesions, strict=True):
        expected = quantify(p.volume, lesion, p.lungs, p.lobes, consolidation_from=-650)
        assert result[time] == expected
    assert "at or above -650 HU" in result["changes"]["consolidation_volume_change"]["definition"]


def test_no_lesion_at_either_time_is_no_change(synthetic_patient):
    p = synthetic_patient
    none = np.zeros_like(p.lesion)
    result = compare_timepoints((p.volume, none, p.lungs), (p.volume, none, p.lungs))
    assert result["lesions"] == []
    assert result["changes"]["lesion_volume_change"]["value"] == 0.0
    assert not result["map"].any()


@pytest.mark.parametrize(("gap", "expected"), [(0, ["stable"]), (1, ["stable"]), (2, ["new", "resolved"])])
def test_lesions_closer_than_the_limit_are_the_same(synthetic_patient, gap, expected):
    p = synthetic_patient  # 2 mm voxels in plane: with gaps of 0, 1 and 2 voxels the centers lie 2, 4 and 6 mm apart
    inside = np.argwhere(p.lungs == 1)
    z, y, x = inside[np.abs(inside - inside.mean(axis=0)).sum(axis=1).argmin()]
    one, other = np.zeros_like(p.lesion), np.zeros_like(p.lesion)
    one[z : z + 2, y : y + 8, x : x + 8] = True
    other[z : z + 2, y : y + 8, x + 8 + gap : x + 16 + gap] = True
    result = compare_timepoints((p.volume, one, p.lungs), (p.volume, other, p.lungs))
    assert sorted(group["status"] for group in result["lesions"]) == expected


@pytest.mark.parametrize("size", [4, 20], ids=["beside", "deep inside"])
def test_lesion_between_thick_slices_of_the_later_ct_is_not_lost(synthetic_patient, size):
    p = synthetic_patient  # every second slice at the later time; the earlier lesion lies on one that is left out
    volume = p.volume
    x, y, z = volume.geometry.spacing
    thick = Geometry((*volume.geometry.size[:2], 36), (x, y, 2 * z), volume.geometry.origin, volume.geometry.direction)
    inside = np.argwhere(p.lungs == 1)
    center = inside[np.abs(inside - inside.mean(axis=0)).sum(axis=1).argmin()]
    one, other = np.zeros_like(p.lesion), np.zeros_like(p.lesion)
    middle = center[0] // 2 * 2
    one[middle + 1, center[1] - 2 : center[1] + 2, center[2] - 2 : center[2] + 2] = True
    near = slice(middle, middle + 1) if size == 4 else slice(middle - 6, middle + 9)
    other[near, center[1] - size // 2 : center[1] + size // 2, center[2] - size // 2 : center[2] + size // 2] = True
    later = (Volume(volume.array[::2].copy(), thick), other[::2], p.lungs[::2])
    (group,) = compare_timepoints((volume, one, p.lungs), later)["lesions"]
    assert (group["earlier_lesions"], group["later_lesions"]) == ([1], [1])


def test_lesions_that_merge_are_one_group(synthetic_patient):
    p = synthetic_patient
    inside = np.argwhere(p.lungs == 1)
    z, y, x = inside[np.abs(inside - inside.mean(axis=0)).sum(axis=1).argmin()]
    two, one = np.zeros_like(p.lesion), np.zeros_like(p.lesion)
    two[z : z + 4, y : y + 6, x : x + 4] = two[z : z + 4, y : y + 6, x + 10 : x + 14] = True
    one[z : z + 4, y : y + 6, x : x + 14] = True
    (group,) = compare_timepoints((p.volume, two, p.lungs), (p.volume, one, p.lungs))["lesions"]
    assert (group["earlier_lesions"], group["later_lesions"], group["status"]) == ([1, 2], [1], "grown")
    assert group["change_percent"] == pytest.approx(75.0)


@pytest.mark.parametrize("bad", ["none", "empty"])
def test_studies_without_lungs_are_refused(synthetic_patient, bad):
    p = synthetic_patient
    lungs = None if bad == "none" else np.zeros_like(p.lungs)
    with pytest.raises(LungsNotFoundError, match="The later study has no lungs"):
        compare_timepoints((p.volume, p.lesion, p.lungs), (p.volume, p.lesion, lungs))


def test_lungs_too_thin_for_the_grid_of_the_registration_are_refused(synthetic_patient):
    p = synthetic_patient
    thin = np.zeros_like(p.lungs)
    thin[20:50, 60:80, 40], thin[20:50, 60:80, 150] = 1, 2
    later = Volume(p.volume.array + np.int16(1), p.volume.geometry)
    with pytest.raises(LungsNotFoundError, match="lung mask of the later study is too thin or small to register"):
        compare_timepoints((p.volume, p.lesion, p.lungs), (later, p.lesion, thin))


def test_studies_that_show_different_parts_of_the_lungs_are_refused(synthetic_patient):
    p = synthetic_patient
    lower, upper = slice(0, 42), slice(30, 72)
    studies = []
    for part in (lower, upper):
        geometry = p.volume.geometry.cropped((part, slice(None), slice(None)))
        studies.append((Volume(p.volume.array[part].copy(), geometry), p.lesion[part], p.lungs[part]))
    with pytest.raises(InputError, match=r"can't be compared: (only|after)"):
        compare_timepoints(*studies)


def test_lungs_of_another_body_are_refused(synthetic_patient):
    p = synthetic_patient
    lungs = np.zeros_like(p.lungs)
    lungs[20:50, 60:80, 20:60], lungs[20:50, 60:80, 130:170] = 1, 2
    hu = np.where(lungs > 0, -850, 40).astype(np.int16)
    with pytest.raises(
        InputError, match=r"lungs agree with a Dice of 0\.\d\d \(0\.8 is needed\); the lung volumes are"
    ):
        compare_timepoints((p.volume, p.lesion, p.lungs), (Volume(hu, p.volume.geometry), lungs == 5, lungs))


def person(seed: int, shift: float = 0.0) -> tuple[Volume, np.ndarray, np.ndarray]:
    """A chest of boxes, 3 mm voxels, of which the seed draws the vessels: all people have the same lungs."""
    hu = np.full((36, 40, 60), 40, np.int16)
    lungs = np.zeros(hu.shape, np.uint8)
    lungs[3:33, 6:34, 4:26], lungs[3:33, 6:34, 34:56] = 1, 2
    hu[lungs > 0] = -850
    for z, y, x in np.random.default_rng(seed).integers((3, 6, 4), (31, 32, 54), (150, 3)):
        hu[z : z + 2, y : y + 2, x : x + 2] = -100
    lesion = np.zeros(hu.shape, bool)
    lesion[20:26, 20:28, 8:18] = True
    return Volume(hu, Geometry((60, 40, 36), (3.0, 3.0, 3.0), (-90.0 + shift, -60.0, 0.0))), lesion, lungs


def test_two_people_with_the_same_lungs_are_refused():
    with pytest.raises(
        InputError, match=r"hardly of one patient: .* vessels .* correlation of -?0\.\d\d \(0\.15 is needed"
    ):
        compare_timepoints(person(1), person(2, shift=6.0))


def test_one_person_with_new_disease_is_not_refused():
    volume, lesion, lungs = person(1)
    later, opacity, _ = person(1, shift=6.0)
    opacity = opacity.copy()
    opacity[3:18] |= lungs[3:18] > 0
    later.array[opacity] = -50
    result = compare_timepoints((volume, lesion, lungs), (later, opacity, lungs))
    assert result["same_patient"] == {"assumed": False, "doubts": []}
    assert result["registration"]["structure_correlation"] > 0.3
    assert not any("one patient" in note for note in result["notes"])


def test_lungs_without_aerated_tissue_in_common_are_not_judged_by_it():
    volume, lesion, lungs = person(1)
    later, _, _ = person(2)
    later.array[lungs > 0] = -100
    result = compare_timepoints((volume, lesion, lungs), (later, lungs > 0, lungs))
    assert result["registration"]["structure_correlation"] is None


def test_different_people_are_compared_where_that_is_asked_for_and_the_result_says_so():
    result = compare_timepoints(person(1), person(2, shift=6.0), assume_same_patient=True)
    assert result["same_patient"]["assumed"]
    (doubt,) = result["same_patient"]["doubts"]
    assert "pattern of the vessels" in doubt
    assert result["notes"][0] == f"Compared as CTs of one patient because that was asked for, although {doubt}."


@pytest.mark.parametrize(
    ("ids", "refused"), [(("MRN-4711", "4712"), True), (("MRN-4711", "MRN-4711"), False), (("MRN-4711", ""), False)]
)
def test_patient_ids_are_compared(ids, refused):
    (one, lesion, lungs), (other, _, _) = person(1), person(1, shift=3.0)
    one, other = (dataclasses.replace(v, patient_id=id_) for v, id_ in zip((one, other), ids, strict=True))
    studies = (one, lesion, lungs), (other, lesion, lungs)
    if refused:
        with pytest.raises(InputError, match="the DICOM files name different patient IDs") as caught:
            compare_timepoints(*studies)
        assert "471" not in str(caught.value)
    result = compare_timepoints(*studies, assume_same_patient=refused)
    assert len(result["same_patient"]["doubts"]) == refused
    assert "471" not in repr((result["notes"], result["same_patient"]))


def test_the_same_image_is_of_one_patient_whatever_the_ids():
    volume, lesion, lungs = person(1)
    studies = [(dataclasses.replace(volume, patient_id=id_), lesion, lungs) for id_ in ("original", "pseudonym")]
    assert compare_timepoints(*studies)["same_patient"] == {"assumed": False, "doubts": []}


@pytest.mark.long
@pytest.mark.parametrize("registration", ["rigid", "affine"])
def test_real_chests_of_two_people_are_refused_and_one_of_its_own_is_not(ct_seg, registration):
    from COVIDLesionSegLib.imaging import find_lungs, read_volume

    def study(number, **changes):
        volume = read_volume(ct_seg(number).ct)
        lungs = find_lungs(volume)
        return dataclasses.replace(volume, **changes), lungs == 5, lungs

    # lungs of one size, which fit each other with a Dice of 0.86
    one, other = study("002"), study("006")
    with pytest.raises(InputError, match="hardly of one patient"):
        compare_timepoints(one, other, registration)
    geometry, _ = turned(one[0].geometry, 5.0, (10.0, -8.0, 12.0))
    noise = np.random.default_rng(0).normal(0, 20, one[0].array.shape)
    again = Volume((one[0].array + noise).astype(np.int16), geometry), one[1], one[2]
    assert compare_timepoints(one, again, registration)["registration"]["structure_correlation"] > 0.9


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [(1.0, 1.2, "stable"), (1.0, 1.3, "grown"), (1.0, 0.7, "shrunk"), (0.1, 0.19, "stable"), (8.0, 8.5, "stable")],
)
def test_a_lesion_changes_only_by_a_quarter_and_by_a_tenth_of_a_milliliter(before, after, status):
    old, new = ([{"volume_ml": ml, "index": 1, "place": ""}] for ml in (before, after))
    seen = np.array([False])
    assert longitudinal._group([0], [0], old, new, seen, seen)["status"] == status


@pytest.mark.parametrize(("slices", "unseen"), [(2, False), (1, True)])
def test_a_lesion_of_which_half_is_seen_is_not_outside_the_field_of_view(slices, unseen):
    mask = np.zeros((8, 4, 4), bool)
    mask[2:6, 1:3, 1:3] = True
    geometry, other = Geometry((4, 4, 8), (1, 1, 2)), Geometry((4, 4, 2 + slices), (1, 1, 2))
    assert longitudinal._unseen(find_components(mask), geometry, other, np.eye(4)).tolist() == [unseen]


def test_bad_arguments_are_refused(synthetic_patient):
    p = synthetic_patient
    study = (p.volume, p.lesion, p.lungs)
    moved = Volume(p.volume.array + np.int16(1), p.volume.geometry)
    with pytest.raises(InputError, match="'elastic' is not known; known are rigid, affine"):
        compare_timepoints(study, (moved, p.lesion, p.lungs), registration="elastic")
    with pytest.raises(GridMismatchError):
        compare_timepoints(study, (moved, p.lesion[1:], p.lungs))
    geometry = p.volume.geometry.cropped((slice(30, 34), slice(None), slice(None)))
    thin = (Volume(p.volume.array[30:34].copy(), geometry), p.lesion[30:34], p.lungs[30:34])
    with pytest.raises(InputError, match="too few to register the lungs"):
        compare_timepoints(study, thin)


def test_lesion_outside_the_other_field_of_view_is_not_called_new(synthetic_patient):
    p = synthetic_patient
    rows = np.flatnonzero((p.lungs > 0).any(axis=(1, 2)))
    start = int(rows[0] + 0.3 * len(rows))
    geometry = p.volume.geometry.cropped((slice(start, None), slice(None), slice(None)))
    none = np.zeros_like(p.lesion)
    basal = none.copy()
    inside = np.argwhere(p.lungs[: start - 2] == 1)
    z, y, x = inside[len(inside) // 2]
    basal[z - 1 : z + 1, y - 2 : y + 2, x - 2 : x + 2] = True
    earlier = (Volume(p.volume.array[start:].copy(), geometry), none[start:], p.lungs[start:])
    result = compare_timepoints(earlier, (p.volume, basal, p.lungs))
    assert [group["status"] for group in result["lesions"]] == ["not_imaged"]
    assert result["changes"]["common_coverage"]["value"] < 97
    assert "imaged at both times" in result["notes"][0]
