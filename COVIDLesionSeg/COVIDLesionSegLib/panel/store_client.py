"""The case store that was chosen, and the child process that works on it, so that no window waits for a disk."""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from numpy.typing import NDArray

from ..cases import is_store
from ..errors import InputError
from ..worker import Client, Progress, Reply, Request, WorkerError
from .events import Signal
from .notices import Notice, noticeOf
from .text import _

if TYPE_CHECKING:
    from .session import Session

_PREFIX = "COVIDLesionSeg/"
_RATER = 40


class StoreClient:
    """Asks a measurement child of its own, so that figures that follow edits never wait for a store.

    What takes long has a second child, so that renewals, autosaves and revisions need not wait for it. The store lies
    on this computer or on one of its shares, so both run here, whatever prefix the settings have.

    Args:
        session: shared by all panels.

    Attributes:
        changed: signal: another store, another overview, something begins or ends.
        noted: signal: a :class:`.notices.Notice`.
        overview: what ``worker.store_tasks.overview`` gives; empty before it is there.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.changed, self.noted = Signal(), Signal()
        self.overview: Mapping[str, Any] = {}
        self.progress: Progress | None = None
        self._client: Client | None = None
        self._longClient: Client | None = None
        self._shown: Request | None = None
        self._asking = False
        self._again = False
        self._folder = self._asked = ""
        session.ending.connect(self.endChildren)
        remembered = _setting("caseStore")
        if remembered and is_store(remembered):
            self._folder = remembered

    # ---- settings ---------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> str:
        """The store's folder, or ""."""
        return self._folder

    @property
    def rater(self) -> str:
        """Who works here; at first the name of the account, as far as it can be one."""
        return _setting("rater") or re.sub(r"[^A-Za-z0-9_-]", "", _account())[:_RATER]

    @rater.setter
    def rater(self, name: str) -> None:
        slicer.app.settings().setValue(f"{_PREFIX}rater", name.strip())
        self.changed.emit()

    def setting(self, name: str, value: str | None = None) -> str:
        """A choice that is remembered; a value is kept."""
        if value is not None:
            slicer.app.settings().setValue(f"{_PREFIX}{name}", value)
        return _setting(name)

    def choose(self, folder: str) -> None:
        """Work on another store; "" on none."""
        self._folder, self.overview = folder, {}
        slicer.app.settings().setValue(f"{_PREFIX}caseStore", folder)
        self.changed.emit()
        self.refresh()

    def create(self, folder: str, done: Callable[[], None]) -> None:
        """Make a store; ``done`` is called when it is there."""

        def created(_reply: Reply) -> None:
            self.noted.emit(Notice(_("An empty store was made. Add cases to it below.")))
            done()

        self._request("store_create", {"store": folder}, {}, created, self._noteError)

    # ---- requests ---------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether something long is on whose progress is shown."""
        return self._shown is not None

    def cancel(self) -> None:
        """Stop what is shown."""
        if self._shown is not None:
            self._shown.cancel()

    def refresh(self) -> None:
        """Look into the store again."""
        if not self._folder or self._asking:
            self._again = self._asking
            return
        folder, self._asking, self._asked = self._folder, True, self._folder
        self._request(
            "store_overview", {"store": folder, "rater": self.rater}, {}, self._onOverview, self._onNoOverview
        )

    def ask(
        self,
        task: str,
        values: Mapping[str, Any],
        done: Callable[[Reply], None] | None = None,
        *,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        failed: Callable[[WorkerError], None] | None = None,
        shown: bool = False,
        refresh: bool = True,
    ) -> None:
        """Ask for something on the store; afterwards the overview is another one.

        Args:
            task: see ``worker.store_tasks``.
            values: its parameters; ``store`` only where it is another one than the chosen store.
            done: called with the answer.
            arrays: of the request.
            failed: called with what went wrong; None shows it.
            shown: it takes long: its progress is shown, and it can be cancelled; one at a time.
            refresh: look into the store again.

        Raises:
            InputError: no store is chosen, or something long is on.
        """
        if not self._folder:
            raise InputError(_("No case store is chosen."), _("Choose a folder above, or make a new store."))
        if shown and self.busy:
            raise InputError(_("Something else is done with the store."), _("Wait for it, or cancel it."))

        def finish(action: Callable[[Any], None] | None, outcome: Any) -> None:
            if shown:
                self._shown, self.progress = None, None
                self.changed.emit()
            if action is not None:
                action(outcome)
            if refresh:
                self.refresh()

        request = self._request(
            task,
            {"store": self._folder, **values},
            arrays or {},
            lambda reply: finish(done, reply),
            lambda error: finish(failed or self._noteError, error),
            self._onProgress if shown else None,
        )
        if shown:
            self._shown = request
            self.changed.emit()

    def close(self) -> None:
        """The panel goes."""
        self._session.ending.disconnect(self.endChildren)
        self.endChildren()

    def endChildren(self) -> None:
        """End the children; requests that still wait are dropped, the next one starts a child."""
        for client in (self._client, self._longClient):
            if client is not None:
                client.close()
        self._client, self._longClient, self._shown, self._asking = None, None, None, False

    def _request(
        self,
        task: str,
        values: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        done: Callable[[Reply], None],
        failed: Callable[[WorkerError], None],
        progress: Callable[[Progress], None] | None = None,
    ) -> Request:
        if progress is None:
            client = self._client = self._client or self._newClient()
        else:
            client = self._longClient = self._longClient or self._newClient()
        return client.request(task, values, arrays, progress=progress, finished=done, failed=failed)

    def _newClient(self) -> Client:
        settings = self._session.client("measurement").settings.on_this_machine()
        return Client(self._session.spawn, self._session.timer, settings, "measurement")

    def _onProgress(self, progress: Progress) -> None:
        self.progress = progress
        self.changed.emit()

    def _onOverview(self, reply: Reply) -> None:
        self._asking = False
        if self._asked == self._folder:
            self.overview = reply.values
            self.changed.emit()
        if self._again:
            self._again = False
            self.refresh()

    def _onNoOverview(self, error: WorkerError) -> None:
        self._asking = self._again = False
        self.overview = {}
        self._noteError(error)
        self.changed.emit()

    def _noteError(self, error: WorkerError) -> None:
        self.noted.emit(noticeOf(error))

    # ---- what the overview says -------------------------------------------------------------------------------------

    @property
    def cases(self) -> dict[str, Mapping[str, Any]]:
        """The cases by id."""
        return {case["id"]: case for case in self.overview.get("cases", ())}

    def modelFile(self, model: str) -> str:
        """What the worker is told of a model: the file of one that was trained in the store, else its id."""
        trained = any(known["id"] == model for known in self.overview.get("models", ()))
        return str(Path(self._folder) / "models" / model / "model.safetensors") if trained else model


def _setting(name: str) -> str:
    value = slicer.app.settings().value(f"{_PREFIX}{name}", "")
    return value.strip() if isinstance(value, str) else ""


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # an account without a name
        return ""
