"""From a request to a call: what a task's signature asks for is taken from the request, checked, and handed over.

A task is a function, or a method of what keeps something between requests, whose parameters all have types::

    def component(self, mask: Mask, place: list[float], spacing: list[float]) -> Answer: ...

A request must hold what has no default; null counts as absent. Arrays (:data:`Array`, :data:`Mask`) have three axes, a
mask is true where the array is not 0. ``**arrays: Array`` takes all others. A parameter of the context's own class is
given the context. Everything else is a plain JSON value, or of a type that a maker makes.

A maker is a function with such a signature, too. Its first parameter, where that is positional-only, is the value that
the request has under the name of the task's parameter; all others are taken from the request by their own names.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from ..errors import CancelledError, InputError
from ..imaging import Geometry, Volume, check_hounsfield
from ..imaging.lungs.engines import CLASSICAL
from ..imaging.masks import Mask
from ..imaging.plausibility import rescaled
from ..inference.lung_engine import locate_lungs
from .protocol import geometry_from_json

Array = NDArray[Any]
Call = Callable[[], Any]
Makers = Mapping[Any, Callable[..., Any]]

_WORDS = {
    str: ("a text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "values true or false"),
}


@dataclass
class Answer:
    """What a task gives back: plain values and arrays."""

    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)


class Worker(Protocol):
    """The tasks of one kind of child, what makes their parameters, and the device that is in use."""

    device: str
    tasks: Mapping[str, Callable[..., Answer]]
    makers: Makers


class Context:
    """How a task says how far it is, and hears that it is to stop.

    Args:
        report: called as report(phase, done, total, message).
        note: called with sentences for people.
        is_cancelled: whether the parent has asked to stop.
    """

    def __init__(
        self,
        report: Callable[[str, int, int, str], None] = lambda *_: None,
        note: Callable[[str], None] = lambda _: None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._report = report
        self.note = note
        self.is_cancelled = is_cancelled

    def progress(self, phase: str, done: int, total: int, message: str = "") -> None:
        """Say how far the work is."""
        self._report(phase, done, total, message)

    def check(self) -> None:
        """Stop here if the parent has asked to.

        Raises:
            CancelledError: it has.
        """
        if self.is_cancelled():
            raise CancelledError("The run was cancelled.")


def tasks_of(holder: object) -> dict[str, Callable[..., Answer]]:
    """The public methods of an object by their names."""
    names = [name for name in dir(type(holder)) if not name.startswith("_")]
    return {name: getattr(holder, name) for name in names if callable(getattr(type(holder), name))}


def perform(
    worker: Worker, name: str, parameters: Mapping[str, Any], arrays: Mapping[str, Array], context: Context
) -> Answer:
    """Do what a request asks of a worker.

    Raises:
        InputError: there is no such task, or see :func:`dispatch`.
    """
    task = worker.tasks.get(name)
    if task is None:
        raise InputError(f"This worker has no task {name!r}; its tasks are {', '.join(sorted(worker.tasks))}.")
    answer: Answer = dispatch(name, task, parameters, arrays, context, worker.makers)
    return answer


def dispatch(
    name: str,
    task: Callable[..., Any],
    parameters: Mapping[str, Any],
    arrays: Mapping[str, Array],
    context: object,
    makers: Makers | None = None,
) -> Any:
    """Call a task with what a request holds; nothing is made or done before all of it was looked at.

    Args:
        name: of the task, for messages.
        task: to call.
        parameters: plain JSON values.
        arrays: what to work on.
        context: what the task is given besides.
        makers: of types that only this task knows.

    Raises:
        InputError: a value that is missing, of another type, or unknown to the task.
    """
    request = _Request(name, parameters, arrays, context, {**_MAKERS, **(makers or {})})
    call = request.call_of(task)
    request.finish()
    return call()


class _Request:
    """What of a request was not taken yet."""

    def __init__(
        self, task: str, parameters: Mapping[str, Any], arrays: Mapping[str, Array], context: object, makers: Makers
    ) -> None:
        self._task, self._context, self._makers = task, context, makers
        self._values, self._arrays = dict(parameters), dict(arrays)

    def call_of(self, function: Callable[..., Any], own: str = "") -> Call:
        """Take what a function needs; ``own`` is the name of the value that a maker makes something of."""
        positional: list[Call] = []
        named: dict[str, Call] = {}
        rest: dict[str, Array] = {}
        for parameter, hint in _parameters(function):
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(self._argument(own, parameter, hint))
            elif parameter.kind is parameter.VAR_KEYWORD:
                rest, self._arrays = self._arrays, {}
            else:
                named[parameter.name] = self._argument(parameter.name, parameter, hint)
        return lambda: function(*(call() for call in positional), **{n: call() for n, call in named.items()}, **rest)

    def finish(self) -> None:
        """Everything was taken.

        Raises:
            InputError: something that the task does not know.
        """
        unknown = {*self._values, *self._arrays}
        if unknown:
            raise InputError(f"The task {self._task} does not know {', '.join(sorted(unknown))}.")

    def _argument(self, name: str, parameter: inspect.Parameter, hint: Any) -> Call:
        if isinstance(hint, type) and isinstance(self._context, hint):
            return lambda: self._context
        maker = next((self._makers[kind] for kind in _kinds(hint) if kind in self._makers), None)
        optional = parameter.default is not parameter.empty
        if maker is not None:
            names = self._names(maker, name)
            if optional and all(self._values.get(known) is None and known not in self._arrays for known in names):
                for known in names:
                    self._values.pop(known, None)
                return lambda: parameter.default
            return self.call_of(maker, name)
        value = self._taken(name, hint)
        if value is not None:
            value = self._checked(name, value, hint)
        elif optional:
            value = parameter.default
        else:
            needed = f"the array {name}" if _takes_array(hint) else f"{name}, {_words(hint)}"
            raise InputError(f"The task {self._task} needs {needed}.")
        return lambda: value

    def _taken(self, name: str, hint: Any) -> Any:
        """What there is of a name, of the right sort if there are an array and a value."""
        places: list[dict[str, Any]] = [self._values, self._arrays]
        for place in reversed(places) if _takes_array(hint) else places:
            if place.get(name) is not None:
                return place.pop(name)
            place.pop(name, None)
        return None

    def _names(self, maker: Callable[..., Any], own: str) -> set[str]:
        """The names of all that a maker takes from a request."""
        found: set[str] = set()
        for parameter, hint in _parameters(maker):
            inner = next((self._makers[kind] for kind in _kinds(hint) if kind in self._makers), None)
            name = own if parameter.kind is parameter.POSITIONAL_ONLY else parameter.name
            found |= {name} if inner is None else self._names(inner, name)
        return found

    def _checked(self, name: str, value: Any, hint: Any) -> Any:
        if _takes_array(hint) and _is_array(value):
            if value.ndim != 3:
                raise InputError(f"The array {name} of {self._task} has {value.ndim} axes; 3 are needed.")
            return value != 0 if Mask in _kinds(hint) else value
        if not _fits(value, hint):
            shown = "an array" if _is_array(value) else repr(value)
            raise InputError(f"The parameter {name} of {self._task} is {shown[:200]}; {_words(hint)} is needed.")
        return value


def _parameters(function: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
    """Parameters of a function, or fields of a dataclass, and their types."""
    hints = get_type_hints(function)
    return [(found, hints[name]) for name, found in inspect.signature(function).parameters.items()]


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _takes_array(hint: Any) -> bool:
    return any(kind in (Array, Mask) for kind in _kinds(hint))


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a type."""
    kinds, origin, inner = _kinds(hint), get_origin(hint), get_args(hint)
    if len(kinds) > 1:
        return any(_fits(value, kind) for kind in kinds)
    if origin is Literal:
        return any(value == word and type(value) is type(word) for word in inner)
    if origin in (list, dict):
        items = value.values() if origin is dict and isinstance(value, dict) else value
        return isinstance(value, origin) and all(_fits(item, inner[-1]) for item in items)
    if hint is Any:
        return not _is_array(value)
    if _takes_array(hint) or isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def _words(hint: Any) -> str:
    """What is needed, for people."""
    found = []
    for kind in _kinds(hint):
        origin, inner = get_origin(kind), get_args(kind)
        if origin is Literal:
            found += [repr(word) for word in inner]
        elif origin is list:
            several = _WORDS[inner[0]][1] if inner[0] in _WORDS else _words(inner[0])
            found.append(f"a list of {several}" if several else "a list")
        elif origin is dict:
            found.append("an object")
        elif _takes_array(kind):
            found.append("an array")
        elif kind in _WORDS:
            found.append(_WORDS[kind][0])
    return " or ".join(found)


# ---- what many tasks take -------------------------------------------------------------------------------------------


def _ct(
    volume: Array,
    geometry: Geometry,
    rescale: list[float] | None = None,
    name: str = "CT",
    source: dict[str, Any] | None = None,
) -> Volume:
    """A CT: array ``volume`` of any type of numbers; ``rescale`` is slope and intercept that make HU of them.

    Raises:
        InputError, GeometryError, GridMismatchError, IntensityError: not a CT.
    """
    facts = source or {}
    if rescale is not None:
        if len(rescale) != 2:
            raise InputError(f"The rescale is {rescale}; a slope and an intercept are needed.")
        volume, facts = rescaled(volume, *rescale), {**facts, "rescale": rescale}
    elif volume.dtype not in (np.dtype(np.int16), np.dtype(np.float32)):
        volume = rescaled(volume, 1.0, 0.0)
    return check_hounsfield(Volume(volume, geometry, name, facts))


def _geometry(value: dict[str, Any], /) -> Geometry:
    return geometry_from_json(value)


def _path(value: str, /) -> Path:
    return Path(value)


_MAKERS: Makers = {Volume: _ct, Geometry: _geometry, Path: _path}


def find_lungs_in(context: Context, volume: Volume, lung_engine: str = CLASSICAL) -> Answer:
    """Find the lungs of a CT: the array ``lungs`` (uint8, 1 right, 2 left), and the verdict on them."""
    found = locate_lungs(volume, context.progress, context.is_cancelled, engine=lung_engine)
    return Answer({"warnings": list(volume.warnings), "lung_quality": found.quality.to_json()}, {"lungs": found.labels})
