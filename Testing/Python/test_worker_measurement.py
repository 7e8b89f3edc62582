"""The real child that measures: the library's own figures through every edit, and a sentence for bad requests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from worker_children import ARRAY, ON_POSIX, broken_torch

from COVIDLesionSegLib.errors import InputError, OutputError
from COVIDLesionSegLib.measurement import compare_timepoints, evaluate, quantify
from COVIDLesionSegLib.worker import WorkerFailedError, blocking_client, wait
from COVIDLesionSegLib.worker import protocol as p

pytestmark = ON_POSIX


@pytest.fixture(scope="module")
def measuring():
    client = blocking_client(kind="measurement")
    yield client
    client.kill()


def opened(client, chest, study="a", **more):
    arrays = {"volume": chest.volume.array, "lungs": chest.lungs, "lobes": chest.lobes, "lesion": chest.lesion}
    parameters = {"study": study, "geometry": p.geometry_to_json(chest.volume.geometry)}
    return wait(client.request("open", parameters, {**arrays, **more}))


def same(found, expected):
    """Equal figures, NaN and infinity too."""
    assert list(found) == list(expected)
    for name, entry in expected.items():
        assert json.dumps(found[name], sort_keys=True) == json.dumps(p.decode(json_of(entry)).values, sort_keys=True)


def json_of(value):
    return p.encode(p.Result(1, value))


def test_the_figures_are_those_of_the_library_through_every_edit(measuring, chest):
    lesion, reference = chest.lesion.copy(), np.roll(chest.lesion, 1, axis=2)
    spacing = chest.volume.geometry.spacing_zyx
    values = opened(measuring, chest, reference=reference).values
    generator = np.random.default_rng(3)
    for step in range(6):
        same(values["quantities"], quantify(chest.volume, lesion, chest.lungs, chest.lobes))
        same(values["evaluation"], evaluate(lesion, reference, spacing))
        low = generator.integers(0, np.array(lesion.shape) - 12)
        box = [[int(a), int(a) + int(n)] for a, n in zip(low, generator.integers(1, 12, 3), strict=True)]
        place = tuple(slice(*side) for side in box)
        edit = generator.integers(0, 2, lesion[place].shape).astype(np.uint8)
        if step == 4:
            reference[place] = edit
            values = wait(measuring.request("update", {"study": "a", "reference_box": box}, {"reference": edit})).values
        else:
            lesion[place] = edit
            values = wait(measuring.request("update", {"study": "a", "box": box}, {"lesion": edit})).values


def test_an_edit_whose_figures_were_cancelled_is_not_forgotten(measuring, chest):
    """The next update measures both changes, not just its own box."""
    lesion = chest.lesion.copy()
    opened(measuring, chest, reference=chest.lesion)
    lesion[2:5, 3:9, 3:9] = True
    # two updates at once: the first one is cancelled after it has begun or before, whichever comes
    first = measuring.request(
        "update", {"study": "a", "box": [[2, 5], [3, 9], [3, 9]]}, {"lesion": lesion[2:5, 3:9, 3:9].astype(np.uint8)}
    )
    second = measuring.request(
        "update", {"study": "a", "box": [[9, 9], [0, 0], [0, 0]]}, {"lesion": lesion[9:9, :0, :0]}
    )
    values = wait(second).values
    assert first.done
    same(values["evaluation"], evaluate(lesion, chest.lesion, chest.volume.geometry.spacing_zyx))


def test_masks_come_and_go(measuring, chest):
    opened(measuring, chest, "b")
    values = wait(measuring.request("update", {"study": "b"}, {"reference": chest.lesion.astype(np.uint8)})).values
    assert values["evaluation"]["dice"]["value"] == 1.0
    values = wait(measuring.request("update", {"study": "b", "drop": ["reference"]})).values
    assert values["evaluation"] is None and values["quantities"] is not None
    values = wait(measuring.request("update", {"study": "b", "drop": ["lesion"]})).values
    assert values["quantities"] is None
    values = wait(measuring.request("update", {"study": "b"}, {"lesion": np.zeros(chest.lesion.shape, bool)})).values
    assert values["quantities"]["lesion_volume"]["value"] == 0
    wait(measuring.request("close", {"study": "b"}))


@pytest.mark.parametrize(
    ("task", "parameters", "arrays", "words"),
    [
        ("update", {"study": "never opened"}, {}, "not open"),
        ("update", {"study": "a", "box": [[0, 1], [0, 1]]}, {"lesion": ARRAY[:1, :1, :1]}, "box"),
        ("update", {"study": "a", "box": [[0, 1], [0, 1], [0, 9999]]}, {"lesion": ARRAY[:1, :1, :1]}, "box"),
        ("update", {"study": "a", "box": [[0, 2], [0, 1], [0, 1]]}, {"lesion": ARRAY[:1, :1, :1]}, "shape"),
        ("update", {"study": "a", "box": [[0, 1], [0, 1], [0, 1]]}, {"lesion": ARRAY[0]}, "axes"),
        ("update", {"study": "a"}, {"lesion": ARRAY}, "shape"),
        ("update", {"study": "a"}, {"lungs": ARRAY}, "does not know lungs"),
        ("update", {"study": "a", "drop": ["lungs"]}, {}, "a list of 'lesion' or 'reference' is needed"),
        ("update", {"study": 3}, {}, "a text is needed"),
        ("evaluate", {"study": "a"}, {}, "no reference"),
        ("quantify", {}, {}, "needs the array volume"),
        ("report", {"study": "a", "case": "x", "folder": "/tmp", "kinds": ["pdf"]}, {}, "html, csv and json"),
        ("compare", {"study": "a", "earlier": "never opened"}, {}, "not open"),
    ],
)
def test_bad_requests_are_answered_with_a_sentence(measuring, chest, task, parameters, arrays, words):
    opened(measuring, chest)
    request = measuring.request(task, parameters, arrays)
    with pytest.raises((InputError, WorkerFailedError), match=words):
        wait(request)
    assert request.error.kind == ("not_open" if "not open" in words else "input")


def test_a_ct_that_is_none_is_refused(measuring, chest):
    grid = p.geometry_to_json(chest.volume.geometry)
    with pytest.raises(InputError, match="rescale"):
        wait(measuring.request("open", {"study": "c", "geometry": grid}, {"volume": chest.volume.array + 1024}))
    stored = {"study": "c", "geometry": grid, "rescale": [1, -1024]}
    wait(measuring.request("open", stored, {"volume": chest.volume.array + 1024}))


def test_files_of_a_report(measuring, chest, tmp_path):
    opened(measuring, chest)
    parameters = {"study": "a", "case": "case-7", "folder": str(tmp_path), "kinds": ["csv", "json"]}
    reply = wait(measuring.request("report", parameters))
    names = {Path(file).name for file in reply.values["files"]}
    assert names == {"case-7_measurements.csv", "case-7_lesions.csv", "case-7_report.json"}
    measured = json.loads((tmp_path / "case-7_report.json").read_text())
    assert measured["case"] == "case-7" and measured["quantities"]["lesion_volume"]["value"] > 0
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="could not be written"):
        wait(measuring.request("report", {**parameters, "folder": str(tmp_path / "file")}))


@pytest.mark.long
def test_the_page_of_a_report(measuring, chest, tmp_path):
    opened(measuring, chest)
    wait(measuring.request("report", {"study": "a", "case": "case-7", "folder": str(tmp_path), "kinds": ["html"]}))
    assert "case-7" in (tmp_path / "case-7_report.html").read_text()


def test_a_part_of_a_mask_is_found_at_its_place(measuring):
    mask = np.zeros((4, 9, 9), np.uint8)
    mask[1:3, 1:3, 1:8] = mask[1:3, 6:8, 1:8] = 1
    values = {"place": [1.5, 5.2, 4.0], "spacing": [2.5, 0.8, 0.8]}
    found = wait(measuring.request("component", values, {"mask": mask})).arrays["component"]
    mask[:, :5] = 0
    np.testing.assert_array_equal(found, mask)
    with pytest.raises(InputError, match="needs the array mask"):
        wait(measuring.request("component", values))


def test_an_earlier_study_is_compared(measuring, chest):
    later = chest.lesion.copy()
    later[:, later.shape[1] // 2 :] = False
    arrays = {"volume": chest.volume.array, "lesion": chest.lesion, "lungs": chest.lungs}
    grid = p.geometry_to_json(chest.volume.geometry)
    settings = {"study": "late", "geometry": grid, "consolidation_from": -600}
    wait(measuring.request("open", settings, {**arrays, "lobes": chest.lobes, "lesion": later}))
    reply = wait(measuring.request("compare", {"study": "late", "geometry": grid}, arrays))
    points = [(chest.volume, chest.lesion, chest.lungs), (chest.volume, later, chest.lungs, chest.lobes)]
    expected = compare_timepoints(*points, consolidation_from=-600)
    np.testing.assert_array_equal(reply.arrays["map"], expected["map"])
    changes = reply.values["comparison"]["changes"]
    assert changes["lesion_volume_change"]["value"] == expected["changes"]["lesion_volume_change"]["value"] < 0
    assert changes["consolidation_volume_change"] == expected["changes"]["consolidation_volume_change"]


def test_chests_of_two_people_are_compared_only_where_that_is_asked_for(measuring, chest):
    other = chest.volume.array.copy()
    # other vessels: the lungs upside down, within their outline
    inside = chest.lungs > 0
    other[inside] = np.where(inside & inside[::-1], other[::-1], -850)[inside]
    arrays = {"volume": other, "lesion": chest.lesion, "lungs": chest.lungs}
    grid = p.geometry_to_json(chest.volume.geometry)
    opened(measuring, chest)
    with pytest.raises(InputError, match="hardly of one patient"):
        wait(measuring.request("compare", {"study": "a", "geometry": grid}, arrays))
    values = {"study": "a", "geometry": grid, "assume_same_patient": True}
    reply = wait(measuring.request("compare", values, arrays))
    assert reply.values["comparison"]["same_patient"]["assumed"]


def test_measuring_needs_no_pytorch(children, chest, tmp_path):
    client = children.real(environment={**os.environ, "PYTHONPATH": broken_torch(tmp_path, "raise SystemExit(9)")})
    assert opened(client, chest, reference=chest.lesion).values["evaluation"]["dice"]["value"] == 1.0
