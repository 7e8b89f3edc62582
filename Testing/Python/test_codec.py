"""Records as JSON and back: what their type hints say is what is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from COVIDLesionSegLib.codec import TRANSIENT, from_json, to_json


@dataclass(frozen=True)
class Inner:
    name: str
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outer:
    number: int
    kind: Literal["one", "two"]
    inner: Inner
    more: Mapping[str, Inner] = field(default_factory=dict)
    maybe: Inner | None = None
    triple: tuple[int, int, int] = (0, 0, 0)
    anything: Mapping[str, Any] = field(default_factory=dict)
    many: tuple[Inner, ...] = ()
    flag: bool = False
    seen: str = field(default="now", metadata=TRANSIENT)


RECORD = Outer(
    3,
    "two",
    Inner("a", (1.5, math.inf, -math.inf)),
    {"x": Inner("b")},
    Inner("c"),
    (1, 2, 3),
    {"deep": [1, {"er": None}]},
    (Inner("d"), Inner("e", (2.0,))),
    True,
    "changed",
)


def test_a_record_survives_json_and_what_is_transient_is_not_written():
    text = json.dumps(to_json(RECORD), allow_nan=False)
    again = from_json(Outer, json.loads(text))
    assert (again.seen, RECORD.seen) == ("now", "changed")
    assert to_json(again) == to_json(RECORD) and "seen" not in text
    assert again.inner == RECORD.inner and again.many == RECORD.many and again.triple == (1, 2, 3)
    nan = from_json(Inner, json.loads(json.dumps(to_json(Inner("n", (math.nan,))))))
    assert math.isnan(nan.values[0])


def test_a_newer_programs_keys_are_left_out_and_absent_ones_keep_their_default():
    found = from_json(Outer, {"number": 1, "kind": "one", "inner": {"name": "a", "color": "red"}, "later": 5})
    assert found == Outer(1, "one", Inner("a"))
    # whole numbers are numbers
    assert from_json(Inner, {"name": "a", "values": [1, 2]}).values == (1.0, 2.0)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"number": "3"}, r"Outer\.number: a whole number is needed, got '3'"),
        ({"number": True}, r"Outer\.number: a whole number is needed, got True"),
        ({"number": 2.5}, "a whole number is needed"),
        ({"kind": "three"}, r"Outer\.kind: one of \('one', 'two'\)"),
        ({"inner": {"values": []}}, r"Outer\.inner: .*'name'"),
        ({"inner": {"name": "a", "values": ["x"]}}, r"Outer\.inner\.values: a number is needed, got 'x'"),
        ({"inner": None}, r"Outer\.inner: an object is needed, got None"),
        ({"more": {"x": []}}, r"Outer\.more\.x: an object is needed"),
        ({"maybe": 5}, r"Outer\.maybe: an object is needed, got 5"),
        ({"triple": [1, 2]}, r"Outer\.triple: 3 values"),
        ({"many": "ab"}, r"Outer\.many: a list is needed, got 'ab'"),
        ({"flag": 1}, r"Outer\.flag: true or false is needed"),
    ],
)
def test_what_is_not_such_a_record_is_refused_by_the_name_of_its_field(changed, words):
    with pytest.raises(ValueError, match=words):
        from_json(Outer, {**to_json(RECORD), **changed})


def test_what_json_has_no_form_for_is_not_written():
    with pytest.raises(TypeError, match="complex"):
        to_json(Inner("a", (1j,)))
