"""One person at work on one case: the lock, the time, autosaves, and what a crash left."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..imaging.volume import LabelVolume, Volume
from .case_files import CaseFiles
from .records import Case, Revision
from .work import Autosave


class Session:
    """An open case; made by ``Store.open``, closed with :meth:`close` or at the end of a ``with`` block.

    Others see the case as open until it is closed, or until nobody has renewed it for a quarter of an hour. A panel
    calls :meth:`renew` once a minute (an autosave does that, too).

    Attributes:
        case: as it was when it was opened.
        rater: who.
        recovered: unsaved work of this rater from a program that ended before it was saved, or None;
            :attr:`start_mask` is that work then.
        blind: it is read without any model's prediction, and without a mask that one has drafted.
        start_mask: what to edit, on the grid of the CT: recovered work, else the rater's own last revision, else the
            case's last one, else the model's prediction, else an empty mask; blind, the rater's own last revision if no
            model has drafted it, else an empty mask.
        start_from: the same as a phrase.
    """

    def __init__(self, files: CaseFiles, case_id: str, rater: str, take_over: bool, blind: bool = False) -> None:
        case = files.case(case_id)
        if case.exclusion:
            raise InputError(f"{case_id} is excluded ({case.exclusion}); include it again to work on it.")
        self._files = files
        self.case: Case = case
        self.rater = rater
        begun = files.autosaves.read(case_id, rater)
        # unsaved work goes on as it was begun: what a model has drafted is not read blind any more
        self.blind = blind if begun is None else begun.blind
        self._token = files.locks.acquire(case_id, rater, take_over, self.blind)
        self._open = True
        self._reader = ThreadPoolExecutor(1)
        try:
            self.case = files.case(case_id)
            # needed when the mask is saved; until then there is time
            self._prediction: Future[NDArray[np.bool_] | None] = self._reader.submit(self._read_prediction)
            self.recovered: Autosave | None = self._unsaved()
            self.start_mask, self.start_from = self._start()
        except BaseException:
            self.close()
            raise
        self._seconds = self.recovered.seconds if self.recovered is not None else 0.0
        self._running_since: float | None = time.monotonic()

    @property
    def token(self) -> str:
        """What ``Store.locks`` needs to renew or release the case in another process."""
        return self._token

    @property
    def prediction(self) -> NDArray[np.bool_] | None:
        """The model's last prediction, bool (z, y, x); None without one, and for who reads blind."""
        return self._prediction.result()

    @property
    def seconds(self) -> float:
        """Time spent since the case was opened or last saved, without pauses."""
        running = 0.0 if self._running_since is None else time.monotonic() - self._running_since
        return self._seconds + running

    def pause(self) -> None:
        """Stop counting time, e.g. while the user looks at something else."""
        self._seconds, self._running_since = self.seconds, None

    def resume(self) -> None:
        """Count time again."""
        self._seconds, self._running_since = self.seconds, time.monotonic()

    def read_ct(self) -> Volume:
        """The CT, checked against its recorded hash."""
        return self._files.read_ct(self.case.id)

    def renew(self) -> None:
        """Give a sign of life.

        Raises:
            CaseOpenError: somebody else has taken the case over.
        """
        self._files.locks.renew(self.case.id, self._token)

    def autosave(self, mask: LabelVolume | NDArray[Any]) -> Autosave:
        """Keep the mask without making a revision of it; it is recovered when the case is opened again.

        Raises:
            GridMismatchError, InputError: a mask that does not fit the CT.
            OutputError: the disk is full or read-only; the earlier autosave stays.
            CaseOpenError: somebody else has taken the case over; the mask is kept all the same.
        """
        labels = self.case.labels(mask, "mask")
        saved = self._files.autosaves.write(self.case.id, self.rater, labels, self.seconds, self.blind)
        self.renew()
        return saved

    def save(self, mask: LabelVolume | NDArray[Any], *, no_lesion: bool = False, comment: str = "") -> Revision:
        """Save the mask as the next revision; see ``Store.save_revision`` for what it raises."""
        revision = self._files.save_revision(
            self.case.id,
            mask,
            self.rater,
            seconds=self.seconds,
            no_lesion=no_lesion,
            comment=comment,
            prediction=self.prediction,
            blind=self.blind,
        )
        self._files.autosaves.remove(self.case.id, self.rater)
        self._seconds = 0.0
        if self._running_since is not None:
            self._running_since = time.monotonic()
        self.recovered = None
        return revision

    def discard(self) -> None:
        """Throw unsaved work away."""
        self._files.autosaves.remove(self.case.id, self.rater)
        self.recovered = None

    def close(self) -> None:
        """Let others open the case; unsaved work stays as it was autosaved."""
        if self._open:
            self._open = False
            self._reader.shutdown(wait=False)
            self._files.locks.release(self.case.id, self._token)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_prediction(self) -> NDArray[np.bool_] | None:
        return None if self.blind or self.case.prediction is None else self._files.read_prediction(self.case.id).mask()

    def _unsaved(self) -> Autosave | None:
        found = self._files.autosaves.read(self.case.id, self.rater)
        last = self.case.latest(self.rater)
        if found is not None and last is not None and found.sha256 == last.sha256:
            # the program ended after the revision was saved and before the autosave was taken away
            self._files.autosaves.remove(self.case.id, self.rater)
            return None
        return found

    def _start(self) -> tuple[LabelVolume, str]:
        case, files = self.case, self._files
        if self.recovered is not None:
            mask = files.autosaves.mask(self.recovered)
            if mask is not None:
                return mask, f"unsaved work of {self.recovered.saved}"
            self.recovered = None
        return starting_mask(files, case, self.rater, self.blind, self.prediction)


def starting_mask(
    files: CaseFiles, case: Case, rater: str, blind: bool, prediction: NDArray[np.bool_] | None
) -> tuple[LabelVolume, str]:
    """What a rater begins with where nothing is unsaved, see :class:`Session`; and the same as a phrase.

    Args:
        files: the store's cases.
        case: which.
        rater: who.
        blind: see there.
        prediction: the model's last one, bool (z, y, x), or None.
    """
    revision = case.latest(rater)
    if blind:
        revision = revision if revision is not None and not revision.drafts else None
    else:
        revision = revision or case.latest()
    if revision is not None:
        return files.read_revision(case.id, revision.number), f"revision {revision.number} of {revision.rater}"
    if prediction is not None and case.prediction is not None and not blind:
        mask = LabelVolume(prediction.view(np.uint8), case.ct.geometry, {1: "lesion"})
        return mask, f"the prediction of {case.prediction.model_id}"
    return LabelVolume(np.zeros(case.ct.geometry.shape, np.uint8), case.ct.geometry, {1: "lesion"}), "an empty mask"
