"""What a task's signature asks for is taken from the request, checked, and handed over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from COVIDLesionSegLib.errors import InputError, IntensityError
from COVIDLesionSegLib.imaging import Geometry, Volume
from COVIDLesionSegLib.imaging.masks import Mask
from COVIDLesionSegLib.worker.lesion_tasks import Lesions
from COVIDLesionSegLib.worker.measurement_tasks import Measurements
from COVIDLesionSegLib.worker.protocol import geometry_to_json
from COVIDLesionSegLib.worker.tasks import Array, Context, dispatch, perform

ARRAY = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
GRID = geometry_to_json(Geometry((4, 3, 2)))


@dataclass(frozen=True)
class Choice:
    model: str
    batch_size: int = 4


class Study:
    def __init__(self, name):
        self.name = name


def study_named(name: str, /) -> Study:
    if name == "gone":
        raise InputError("It is gone.")
    return Study(name)


MAKERS = {Choice: Choice, Study: study_named}


def call(task, parameters=None, arrays=None, context=None):
    return dispatch("try", task, parameters or {}, arrays or {}, context or Context(), MAKERS)


def plain(
    text: str,
    number: float = 0.5,
    count: int | None = None,
    flag: bool = False,
    words: list[str] = [],  # noqa: B006  # never changed
    facts: dict[str, Any] | None = None,
    side: Literal["left", "right"] = "left",
    folder: Path | None = None,
    either: str | list[float] = "",
):
    return locals()


DEFAULTS = plain("x")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {}),
        ({"number": 3, "count": 2, "flag": True}, {}),
        ({"count": None, "side": None, "folder": None}, {"count": None, "side": "left", "folder": None}),
        ({"words": ["a"], "facts": {"a": [None]}, "side": "right"}, {}),
        ({"folder": "/a/b"}, {"folder": Path("/a/b")}),
        ({"either": [1, 2.5]}, {}),
    ],
)
def test_plain_values_are_handed_over(given, found):
    assert call(plain, {"text": "x", **given}) == {**DEFAULTS, **given, **found}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "The task try needs text, a text."),
        ({"text": None}, "The task try needs text, a text."),
        ({"text": 3}, "The parameter text of try is 3; a text is needed."),
        ({"text": "x", "number": "3"}, "The parameter number of try is '3'; a number is needed."),
        ({"text": "x", "number": True}, "The parameter number of try is True; a number is needed."),
        ({"text": "x", "count": 1.5}, "The parameter count of try is 1.5; a whole number is needed."),
        ({"text": "x", "flag": 1}, "The parameter flag of try is 1; true or false is needed."),
        ({"text": "x", "words": ["a", 1]}, "The parameter words of try is ['a', 1]; a list of texts is needed."),
        ({"text": "x", "facts": []}, "The parameter facts of try is []; an object is needed."),
        ({"text": "x", "side": "up"}, "The parameter side of try is 'up'; 'left' or 'right' is needed."),
        ({"text": "x", "folder": 3}, "The parameter folder of try is 3; a text is needed."),
        (
            {"text": "x", "either": ["a"]},
            "The parameter either of try is ['a']; a text or a list of numbers is needed.",
        ),
        ({"text": "x", "speed": 1, "colour": None}, "The task try does not know colour, speed."),
    ],
)
def test_a_wrong_missing_or_unknown_value_gets_a_sentence(given, sentence):
    with pytest.raises(InputError) as found:
        call(plain, given)
    assert str(found.value) == sentence


def test_arrays_are_checked_and_masks_made():
    def task(volume: Array, mask: Mask | None = None, other: Mask | None = None):
        return volume, mask, other

    volume, mask, other = call(task, {}, {"volume": ARRAY, "mask": ARRAY})
    assert volume is ARRAY and other is None
    np.testing.assert_array_equal(mask, ARRAY != 0)
    for arrays, words in (
        ({}, "needs the array volume"),
        ({"volume": ARRAY[0]}, "The array volume of try has 2 axes; 3 are needed."),
        ({"volume": ARRAY, "lungs": ARRAY}, "does not know lungs"),
    ):
        with pytest.raises(InputError, match=words):
            call(task, {}, arrays)
    with pytest.raises(InputError, match=r"volume of try is 'ct\.nii'; an array is needed"):
        call(task, {"volume": "ct.nii"})
    with pytest.raises(InputError, match="text of try is an array; a text is needed"):
        call(plain, {}, {"text": ARRAY})


def test_all_other_arrays_can_be_asked_for():
    def task(text: str, **arrays: Array):
        return text, sorted(arrays)

    assert call(task, {"text": "x"}, {"b": ARRAY, "a": ARRAY}) == ("x", ["a", "b"])
    with pytest.raises(InputError, match="does not know more"):
        call(task, {"text": "x", "more": 1}, {"a": ARRAY})


def test_the_context_is_handed_over_by_its_class():
    context = Context()
    assert call(lambda: 1) == 1

    def task(how: Context, text: str):
        return how

    assert call(task, {"text": "x"}, context=context) is context


def test_what_a_maker_takes_is_taken_from_the_request():
    def task(study: Study, choice: Choice, earlier: Study | None = None):
        return study.name, choice, earlier and earlier.name

    assert call(task, {"study": "a", "model": "m"}) == ("a", Choice("m"), None)
    given = {"study": "a", "earlier": "b", "model": "m", "batch_size": 2}
    assert call(task, given) == ("a", Choice("m", 2), "b")
    for change, words in (
        ({"study": None}, "needs study, a text"),
        ({"model": None}, "needs model, a text"),
        ({"batch_size": "2"}, "batch_size of try is '2'; a whole number is needed"),
        ({"earlier": 3}, "earlier of try is 3; a text is needed"),
    ):
        with pytest.raises(InputError, match=words):
            call(task, {**given, **change})


def test_something_to_be_made_may_be_left_out():
    def task(choice: Choice | None = None):
        return choice

    assert call(task) is None and call(task, {"model": "m"}) == Choice("m")
    with pytest.raises(InputError, match="needs model"):
        call(task, {"batch_size": 2})


def test_a_maker_may_need_a_value_and_an_array_of_one_name():
    def made(facts: dict[str, Any], /, levels: Array) -> Study:
        return Study((facts, levels))

    def task(levels: Study | None = None):
        return levels and levels.name

    def ask(parameters, arrays):
        return dispatch("try", task, parameters, arrays, Context(), {Study: made})

    assert ask({"levels": {"a": 1}}, {"levels": ARRAY}) == ({"a": 1}, ARRAY)
    assert ask({"levels": None}, {}) is None
    with pytest.raises(InputError, match="levels of try is an array; an object is needed"):
        ask({}, {"levels": ARRAY})
    with pytest.raises(InputError, match="needs the array levels"):
        ask({"levels": {}}, {})


def test_nothing_is_made_before_all_was_looked_at():
    def task(study: Study):
        return study

    with pytest.raises(InputError, match="It is gone"):
        call(task, {"study": "gone"})
    with pytest.raises(InputError, match="does not know speed"):
        call(task, {"study": "gone", "speed": 1})


def test_a_ct_is_made_of_array_grid_and_rescale():
    def task(volume: Volume):
        return volume

    stored = np.linspace(0, 2000, 24).astype(np.uint16).reshape(2, 3, 4)
    found = call(task, {"geometry": GRID, "rescale": [1, -1024]}, {"volume": stored})
    np.testing.assert_array_equal(found.array, stored.astype(np.int32) - 1024)
    assert found.array.dtype == np.int16 and found.source == {"rescale": [1, -1024]}
    for parameters, arrays, error in (
        ({"geometry": GRID}, {}, InputError),
        ({}, {"volume": stored}, InputError),
        ({"geometry": {}}, {"volume": stored}, InputError),
        ({"geometry": GRID, "rescale": [1]}, {"volume": stored}, InputError),
        ({"geometry": GRID}, {"volume": stored}, IntensityError),
    ):
        with pytest.raises(error):
            call(task, parameters, arrays)


@pytest.mark.parametrize("worker", [Lesions, Measurements])
def test_every_task_of_a_worker_says_what_it_needs(worker):
    """The signatures can be read, with all that makers need."""
    holder = worker()
    for name in holder.tasks:
        with pytest.raises(InputError, match=f"The task {name} does not know nonsense|The task {name} needs "):
            perform(holder, name, {"nonsense": 1}, {}, Context())
    with pytest.raises(InputError, match=r"no task 'nonsense'; its tasks are .*lungs"):
        perform(holder, "nonsense", {}, {}, Context())
