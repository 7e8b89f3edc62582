"""What a store's model answers to a case that is opened, and what is said about a correction of it that was saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from .. import mrml
from ..inference import PostProcessing
from ..worker import Progress, Reply, Request, WorkerError
from .store_client import StoreClient
from .text import _

if TYPE_CHECKING:
    from .session import Session


class CaseAnswer:
    """The answer of the store's default model to one case.

    Args:
        session: shared by all panels.
        store: the store.
        case: id of the case.
    """

    def __init__(self, session: Session, store: StoreClient, case: str) -> None:
        self._session, self._store, self._case, self._folder = session, store, case, store.folder
        self._request: Request | None = None

    def ask(
        self,
        geometry: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        progress: Callable[[Progress], None],
        finished: Callable[[Reply], None],
        failed: Callable[[WorkerError], None],
    ) -> None:
        """Ask for it.

        Args:
            geometry: the CT's grid, as the worker's protocol has it.
            arrays: ``volume`` and, if there are any, ``lungs``.
            progress: called now and then.
            finished: called with the answer.
            failed: called with what went wrong.

        Raises:
            ModelError: the model can't be sent to another computer.
        """
        model = self._store.modelFile(str(self._store.overview.get("default") or ""))
        values = {
            "geometry": geometry,
            "model": self._session.modelFor(model),
            "device": mrml.moduleParameters().device,
            "postprocessing": PostProcessing().to_json(),
            "levels": True,
            "name": self._case,
        }
        self._request = self._session.client("lesions").request(
            "segment", values, arrays, files=("model",), progress=progress, finished=finished, failed=failed
        )

    def cancel(self) -> None:
        """Do without it."""
        if self._request is not None:
            self._request.cancel()

    def keep(self, reply: Reply) -> str:
        """Put the answer into the store; returns what the model is called."""
        record: Mapping[str, Any] = reply.values["record"]
        known: tuple[str, ...] = ("mask", "lungs", "levels")
        arrays = {name: reply.arrays[name] for name in known if name in reply.arrays}
        values = {"store": self._folder, "case": self._case, "record": record, "levels": reply.values.get("levels")}
        self._store.ask("case_answer", values, arrays=arrays)
        return str(record["model"].get("id") or record["model"].get("name") or "")


def savedTexts(saved: Mapping[str, Any], others: Sequence[str]) -> list[str]:
    """What is said about a revision.

    Args:
        saved: what the task ``case_save`` answers.
        others: names of segments that are no lesion.
    """
    revision = saved["revision"]
    volume = _("no lesion") if revision["lesion_free"] else f"{revision['lesion_ml']:.1f} mL"
    text = _("{case}: saved as revision {number} of {rater}, {volume}.").format(
        case=saved["case"]["id"], number=revision["number"], rater=revision["rater"], volume=volume
    )
    if revision["dice_to_prediction"] is not None:
        overlap = f"{revision['dice_to_prediction']:.3f}"
        text += " " + _("Dice {dice} to the model's answer.").format(dice=overlap)
    if not others:
        return [text]
    names = ", ".join(others)
    return [text, _("Segments of your own are not lesion and were not saved: {names}.").format(names=names)]
