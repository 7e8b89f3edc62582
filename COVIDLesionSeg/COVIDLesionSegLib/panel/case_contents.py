"""What the store and the model say of a case that is opened, on its way into the scene."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from ..inference import ProbabilityLevels
from ..worker import Reply
from ..worker.protocol import geometry_from_json
from .case_scene import CaseScene


class CaseContents:
    """CT, lungs, answer and mask of one case; each ``show`` method writes one node.

    Args:
        reply: of the task ``case_open``.
        scene: the nodes of the case.

    Attributes:
        geometry: the CT's grid, as the worker's protocol has it.
    """

    def __init__(self, reply: Reply, scene: CaseScene) -> None:
        self._scene = scene
        self.geometry: Mapping[str, Any] = reply.values["geometry"]
        self._record: Mapping[str, Any] | None = reply.values.get("record")
        self._arrays: dict[str, NDArray[Any]] = dict(reply.arrays)
        self._levels = ProbabilityLevels.received(reply.values, reply.arrays)

    def forModel(self) -> dict[str, NDArray[Any]]:
        """The arrays that a model works on."""
        return {name: array for name, array in self._arrays.items() if name in ("volume", "lungs")}

    def takeAnswer(self, reply: Reply) -> None:
        """A model has answered; lungs that are known already stay."""
        mask = reply.arrays["mask"]
        self._arrays = {"lungs": reply.arrays["lungs"]} | self._arrays | {"answer": mask, "mask": mask}
        self._record = reply.values["record"]
        self._levels = ProbabilityLevels.received(reply.values, reply.arrays)

    def showVolume(self, name: str) -> None:
        """Show the CT."""
        self._scene.showVolume(self._arrays["volume"], geometry_from_json(self.geometry), name)

    def showLungs(self) -> None:
        """Show the lungs, if there are any."""
        if "lungs" in self._arrays:
            self._scene.showLungs(self._arrays["lungs"])

    def lesionSteps(self) -> list[Callable[[], Any]]:
        """What shows the lesions, in pieces."""
        return [self._showAnswer, self._keepAnswer, self._showMask]

    def _showAnswer(self) -> None:
        first = self._arrays.get("answer", self._arrays["mask"])
        self._scene.showLesions(first.view(bool), self._record)

    def _keepAnswer(self) -> None:
        if "answer" in self._arrays:
            self._scene.keepAnswer(self._levels)

    def _showMask(self) -> None:
        if "answer" in self._arrays:
            self._scene.write(self._arrays["mask"].view(bool))
