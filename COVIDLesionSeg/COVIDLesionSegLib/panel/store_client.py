"""The case store that was chosen, and the child processes that work on it, so that no window waits for a disk."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from numpy.typing import NDArray

from ..cases import ORDERS, is_store
from ..errors import CancelledError, COVIDLesionSegError, InputError
from ..worker import Client, Progress, Reply, Request
from .messages import noticeOf
from .task import Signal, Task, Tasks
from .text import _

if TYPE_CHECKING:
    from .session import Session

_PREFIX = "COVIDLesionSeg/"
_READER = 40
_ORDER, _AGAIN = "caseOrder", "caseAgain"


class StoreClient:
    """Asks a measurement child of its own, so that figures that follow edits never wait for a store.

    What takes long has a second child, so that renewals, autosaves and revisions need not wait for it. The store lies
    on this computer or on one of its shares, so both run here, whatever prefix the settings have.

    Args:
        session: shared by all panels.

    Attributes:
        changed: signal: another store, another overview, something begins or ends.
        noted: signal: a :class:`.messages.Notice`.
        overview: what ``worker.store_tasks.overview`` gives; empty before it is there.
        progress: of what takes long, or None.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.changed, self.noted = Signal(), Signal()
        self.overview: Mapping[str, Any] = {}
        self.progress: Progress | None = None
        self._tasks = Tasks(session.timer, lambda error: self.noted.emit(noticeOf(error)))
        self._client: Client | None = None
        self._longClient: Client | None = None
        self._long: Request | None = None
        self._looking: Task | None = None
        self._again = False
        remembered = _setting("caseStore")
        self._folder = remembered if remembered and is_store(remembered) else ""
        session.ending.connect(self.endChildren)

    def close(self) -> None:
        """The panel goes."""
        self._session.ending.disconnect(self.endChildren)
        self._tasks.close()
        self.endChildren()

    def endChildren(self) -> None:
        """End the children; requests that still wait are dropped, the next one starts a child."""
        clients, self._client, self._longClient = (self._client, self._longClient), None, None
        for client in clients:
            if client is not None:
                client.close()

    # ---- settings ---------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> str:
        """The store's folder, or ""."""
        return self._folder

    @property
    def reader(self) -> str:
        """Who works here; at first the name of the account, as far as it can be one."""
        return _setting("rater") or re.sub(r"[^A-Za-z0-9_-]", "", _account())[:_READER]

    @reader.setter
    def reader(self, name: str) -> None:
        _keep("rater", name.strip())
        self.changed.emit()

    @property
    def order(self) -> str:
        """In which order cases come, one of ``cases.ORDERS``."""
        known = _setting(_ORDER)
        return known if known in ORDERS else next(iter(ORDERS))

    @order.setter
    def order(self, order: str) -> None:
        _keep(_ORDER, order)

    @property
    def secondReading(self) -> bool:
        """Whether cases that others have corrected come, too."""
        return _setting(_AGAIN) == "1"

    @secondReading.setter
    def secondReading(self, wanted: bool) -> None:
        _keep(_AGAIN, "1" if wanted else "0")

    def choose(self, folder: str) -> None:
        """Work on another store; "" on none."""
        self._folder, self.overview = folder, {}
        _keep("caseStore", folder)
        self.changed.emit()
        self.refresh()

    # ---- requests ---------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether something is on that takes long."""
        return self._long is not None

    def cancel(self) -> None:
        """Stop what takes long."""
        if self._long is not None:
            self._long.cancel()

    def refresh(self) -> None:
        """Look into the store again."""
        self._again = True
        if self._looking is None or self._looking.done:
            self._looking = self._tasks.start(self._look())

    async def _look(self) -> None:
        while self._again and self._folder:
            self._again, folder = False, self._folder
            try:
                reply = await self._request("store_overview", {"store": folder, "rater": self.reader})
            except COVIDLesionSegError as error:
                if not isinstance(error, CancelledError):
                    self.noted.emit(noticeOf(error))
                overview: Mapping[str, Any] = {}
            else:
                overview = reply.values
            if folder == self._folder:
                self.overview = overview
                self.changed.emit()

    async def create(self, folder: str) -> None:
        """Make an empty store; it is not chosen."""
        await self._request("store_create", {"store": folder})

    async def ask(
        self,
        task: str,
        values: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]] | None = None,
        *,
        refresh: bool = True,
    ) -> Reply:
        """Ask for something on the store; afterwards the overview is another one.

        Args:
            task: see ``worker.store_tasks``.
            values: its parameters; ``store`` only where it is another one than the chosen store.
            arrays: of the request.
            refresh: look into the store again.

        Raises:
            InputError: no store is chosen; what the task raises.
        """
        try:
            return await self._request(task, self._placed(values), arrays)
        finally:
            if refresh:
                self.refresh()

    async def askLong(self, task: str, values: Mapping[str, Any], arrays: Any = None) -> Reply:
        """Ask for something that takes long: its progress is shown, and it can be cancelled; one at a time.

        Raises:
            InputError: no store is chosen, or something long is on; what the task raises.
        """
        if self.busy:
            raise InputError(_("The store is busy."), _("Wait for what is on, or cancel it."))
        client = self._longClient = self._longClient or self._newClient()
        request = client.request(task, self._placed(values), arrays or {}, progress=self._onProgress)
        self._long = request
        self.changed.emit()
        try:
            return await request
        finally:
            self._long, self.progress = None, None
            self.changed.emit()
            self.refresh()

    def _placed(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._folder:
            raise InputError(_("No case store is chosen."), _("Choose its folder on the page Cases."))
        return {"store": self._folder, **values}

    def _request(self, task: str, values: Mapping[str, Any], arrays: Any = None) -> Request:
        client = self._client = self._client or self._newClient()
        return client.request(task, values, arrays or {})

    def _newClient(self) -> Client:
        settings = self._session.client("measurement").settings.on_this_machine()
        return Client(self._session.spawn, self._session.timer, settings, "measurement")

    def _onProgress(self, progress: Progress) -> None:
        self.progress = progress
        self.changed.emit()

    # ---- what the overview says -------------------------------------------------------------------------------------

    @property
    def cases(self) -> dict[str, Mapping[str, Any]]:
        """The cases by id."""
        return {case["id"]: case for case in self.overview.get("cases", ())}

    @property
    def progressText(self) -> str:
        """How many cases are corrected; "" before the overview is there."""
        counts: Mapping[str, int] = self.overview.get("counts", {})
        done = counts.get("corrected", 0) + counts.get("approved", 0)
        total = sum(counts.values()) - counts.get("excluded", 0)
        return _("{done} of {total} corrected").format(done=done, total=total) if total else ""

    def modelFile(self, model: str) -> str:
        """What the worker is told of a model: the file of one that was trained in the store, else its id."""
        trained = any(known["id"] == model for known in self.overview.get("models", ()))
        return str(Path(self._folder) / "models" / model / "model.safetensors") if trained else model


def _setting(name: str) -> str:
    value = slicer.app.settings().value(f"{_PREFIX}{name}", "")
    return value.strip() if isinstance(value, str) else ""


def _keep(name: str, value: str) -> None:
    slicer.app.settings().setValue(f"{_PREFIX}{name}", value)


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # an account without a name
        return ""
