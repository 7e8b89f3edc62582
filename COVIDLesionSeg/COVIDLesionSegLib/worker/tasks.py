"""What the tasks of a child have in common: their parameters, checked, and the way to say how far they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import CancelledError, InputError
from ..imaging import Volume, check_hounsfield
from ..imaging.lungs.engines import CLASSICAL
from ..imaging.plausibility import rescaled
from ..inference.lung_engine import locate_lungs
from .protocol import geometry_from_json

Arrays = dict[str, NDArray[Any]]


@dataclass
class Answer:
    """What a task gives back: plain values and arrays."""

    values: dict[str, Any] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)


class Worker(Protocol):
    """The tasks of one kind of child, and what it keeps between them."""

    device: str
    tasks: Mapping[str, Callable[[Work], Answer]]


class Work:
    """One request, as its task sees it.

    Args:
        task: its name, for messages.
        parameters: what the parent asked for; each is taken once, and one that nobody takes is an error.
        arrays: what to work on.
        report: called as report(phase, done, total, message).
        note: called with sentences for people.
        is_cancelled: whether the parent has asked to stop.
    """

    def __init__(
        self,
        task: str,
        parameters: Mapping[str, Any],
        arrays: Arrays,
        report: Callable[[str, int, int, str], None] = lambda *_: None,
        note: Callable[[str], None] = lambda _: None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.task = task
        self.arrays = dict(arrays)
        self._parameters = dict(parameters)
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

    def __contains__(self, name: str) -> bool:
        return self._parameters.get(name) is not None

    def take(self, name: str, kinds: type | tuple[type, ...], default: Any = None) -> Any:
        """A parameter of certain types; the default if it is absent or null.

        Raises:
            InputError: another type.
        """
        value = self._parameters.pop(name, None)
        if value is None:
            return default
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            words = " or ".join(kind.__name__ for kind in allowed)
            raise InputError(f"The parameter {name} of {self.task} is {value!r}; {words} is needed.")
        return value

    def need(self, name: str, kinds: type | tuple[type, ...]) -> Any:
        """A parameter that must be there."""
        value = self.take(name, kinds)
        if value is None:
            raise InputError(f"The task {self.task} needs the parameter {name}.")
        return value

    def array(self, name: str, axes: int = 3) -> NDArray[Any] | None:
        """An array, None if it was not sent.

        Raises:
            InputError: another number of axes.
        """
        found = self.arrays.pop(name, None)
        if found is not None and found.ndim != axes:
            raise InputError(f"The array {name} of {self.task} has {found.ndim} axes; {axes} are needed.")
        return found

    def volume(self) -> Volume:
        """The CT: array ``volume``, parameters ``geometry`` and, if given, ``rescale`` and ``name``.

        Raises:
            InputError: one is missing.
            GeometryError, GridMismatchError, IntensityError: not a CT.
        """
        array = self.array("volume")
        if array is None:
            raise InputError(f"The task {self.task} needs the array volume.")
        geometry = geometry_from_json(self.need("geometry", dict))
        rescale = self.take("rescale", list)
        name = self.take("name", str, "CT")
        source = self.take("source", dict, {})
        if rescale is not None:
            if len(rescale) != 2 or not all(isinstance(value, int | float) for value in rescale):
                raise InputError(f"The rescale is {rescale}; a slope and an intercept are needed.")
            array = rescaled(array, *rescale)
            source = {**source, "rescale": rescale}
        elif array.dtype not in (np.dtype(np.int16), np.dtype(np.float32)):
            array = rescaled(array, 1.0, 0.0)
        return check_hounsfield(Volume(array, geometry, name, source))

    def finish(self) -> None:
        """All parameters and arrays have been taken.

        Raises:
            InputError: one that the task does not know.
        """
        unknown = [*self._parameters, *self.arrays]
        if unknown:
            raise InputError(f"The task {self.task} does not know {', '.join(sorted(unknown))}.")


def find_lungs_in(work: Work) -> Answer:
    """The task ``lungs``, which both kinds of worker have."""
    volume = work.volume()
    engine = work.take("lung_engine", str, CLASSICAL)
    work.finish()
    found = locate_lungs(volume, work.progress, work.is_cancelled, engine=engine)
    return Answer({"warnings": list(volume.warnings), "lung_quality": found.quality.to_json()}, {"lungs": found.labels})
