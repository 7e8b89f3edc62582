"""Files of what was measured, written by the worker's measurement child; the segmentation as DICOM SEG."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import mrml
from ..errors import InputError
from ..imaging import segment_style
from ..mrml import ModuleParameters
from ..worker import Reply, WorkerError
from ..worker.measurement_tasks import REPORT_FILES
from .live import StudyRequest
from .notices import Notice, confirm, noticeOf
from .steps import Steps
from .text import _

# more segments than this are written as one
_MOST_SEGMENTS = 3
_CASE = re.compile(r"[\w][\w .-]{0,79}(?<![ .])")

if TYPE_CHECKING:
    from .session import Session


class Export:
    """Writes the chosen kinds of files, one request after the other.

    Args:
        session: shared by all panels.
        note: shows a :class:`.notices.Notice`.
        changed: called when it begins and ends.
    """

    def __init__(self, session: Session, note: Callable[[Notice], None], changed: Callable[[], None]) -> None:
        self._session, self._note, self._changed = session, note, changed
        self._request: StudyRequest | None = None
        self._requests: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self._steps = Steps(session.timer)
        self._written: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether files are being written."""
        return self._request is not None or self._steps.busy

    @property
    def text(self) -> str:
        """What goes on, or ""."""
        return _("Writing files...") if self.busy else ""

    def start(
        self,
        parameters: ModuleParameters,
        folder: Path,
        case: str,
        kinds: Sequence[str],
        dicomFolder: Path | None = None,
    ) -> None:
        """Begin.

        Args:
            parameters: the scene's.
            folder: where to; made if absent.
            case: what the files are called.
            kinds: "csv", "json", "html", "dicom".
            dicomFolder: the CT's DICOM files; None takes those that Slicer's database knows.

        Raises:
            InputError: no folder, no kind, a case that can't name files, no measurement, or already busy.
        """
        if self.busy:
            raise InputError(_("Files are being written already."), _("Wait until that has finished."))
        if str(folder) in ("", "."):
            raise InputError(_("No folder is chosen."), _("Choose where the files are to go."))
        if not kinds:
            raise InputError(_("No kind of file is chosen."), _("Choose at least one."))
        self._session.live.require()
        case = _checkedCase(case)
        self._requests, self._written = [], []
        steps: list[Callable[[], Any]] = []
        if not self._mayWrite(folder, case, kinds):
            return
        common = {"case": case, "folder": str(folder.absolute()), "record": self._record(parameters)}
        files = [kind for kind in kinds if kind != "dicom"]
        if files:
            self._requests.append(("report", common | {"kinds": files}, {}))
        if "dicom" in kinds:
            source: Any = str(dicomFolder.absolute()) if dicomFolder else mrml.dicomFilesOf(parameters.inputVolume)
            steps = self._dicomSteps(parameters, common | {"source": source})
        self._steps.start([*steps, self._next], self._onError)

    def _mayWrite(self, folder: Path, case: str, kinds: Sequence[str]) -> bool:
        """Ask before files are replaced that are there already: they may be another patient's."""
        names = [f"{case}_{ending}" for kind in kinds for ending in REPORT_FILES[kind]]
        there = [name for name in names if (folder / name).exists()]
        text = _("These files are in the folder already and are replaced: {names}.")
        return not there or confirm(text.format(names=", ".join(there)), _("Replace them?"))

    def _record(self, parameters: ModuleParameters) -> dict[str, Any] | None:
        record = mrml.recordOf(parameters.lesionSegmentation)
        return None if record is None else record.to_json()

    def _dicomSteps(self, parameters: ModuleParameters, values: dict[str, Any]) -> list[Callable[[], Any]]:
        """All lesions as one segment; the few of a view by attenuation each by itself."""
        node, volumeNode = parameters.lesionSegmentation, parameters.inputVolume
        ids = mrml.segmentsWithRole(node)
        apart = not parameters.lesionSegmentId and 1 < len(ids) <= _MOST_SEGMENTS
        arrays: dict[str, Any] = {}
        found: dict[str, Any] = {}

        def read(identity: str) -> None:
            arrays[identity] = mrml.segmentMask(node, identity, volumeNode).view(np.uint8)

        def readAnswer() -> None:
            found["answer"] = mrml.predictionMask(node, volumeNode) if mrml.hasPrediction(node) else None

        def add() -> None:
            _parameters, lesions = self._session.live.require()
            edited = found["answer"] is None or not np.array_equal(found["answer"], lesions)
            names = {identity: segment_style(identity).name for identity in (ids if apart else ["lesion"])}
            segments = [{"name": name, "array": array, "edited": edited} for array, name in names.items()]
            self._requests.append(("dicom_seg", values | {"segments": segments}, arrays))

        return [readAnswer, *(functools.partial(read, identity) for identity in (ids if apart else [])), add]

    def _next(self) -> None:
        if self._requests:
            task, values, arrays = self._requests.pop(0)
            self._request = StudyRequest(self._session.live, task, values, arrays, self._onWritten, self._onFailed)
        else:
            self._request = None
            self._note(Notice(_("Written: {files}.").format(files=", ".join(self._written))))
        self._changed()

    def _onError(self, error: Exception) -> None:
        self._note(noticeOf(error))
        self._changed()

    def _onWritten(self, reply: Reply) -> None:
        values = reply.values
        self._written += [Path(file).name for file in values["files"]]
        for text in values.get("notes", ()):
            self._note(Notice(text))
        self._next()

    def _onFailed(self, error: WorkerError) -> None:
        self._request = None
        self._requests = []
        self._note(noticeOf(error))
        self._changed()


def _checkedCase(case: str) -> str:
    case = case.strip()
    if not _CASE.fullmatch(case):
        raise InputError(
            _("{case!r} can't be a part of file names.").format(case=case),
            _("Use letters, digits, spaces, dots, dashes and underscores, beginning with a letter or digit."),
        )
    return case
