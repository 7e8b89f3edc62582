"""The panel's work with cases: a store with three CTs, its page, and what an annotator does; a pytest plug-in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from panel_fixtures import chest, find, let_run, wait_for

SIZE = (24, 64, 80)


def another_chest(number: int) -> np.ndarray:
    """The chest with other noise, so that it is another CT."""
    return (chest()[0] + np.random.default_rng(number).integers(-2, 3, SIZE)).astype(np.int16)


@pytest.fixture
def store(tmp_path):
    """A store with three CTs, each of another patient."""
    from COVIDLesionSegLib.cases import Store
    from COVIDLesionSegLib.imaging import Geometry, Volume

    made = Store.create(tmp_path / "store")
    geometry = Geometry((80, 64, 24), (1.5, 1.5, 2.5), (-60.0, -48.0, -30.0))
    for number in range(3):
        volume = Volume(another_chest(number), geometry, "CT", {"format": "test"})
        made.add("CT", f"Patient {number}", volume=volume)
    return made


@pytest.fixture
def reviewed(store):
    """Two labels, with two doubtful slices each."""
    hashes = {}
    for name in ("case-0001", "case-0002"):
        hashes[name] = store.save_revision(name, chest()[1], "bert").sha256
    rows = [
        {"case": name, "slice": index, "score": score, "reason": "the loss stayed high"}
        for name, index, score in (("case-0002", 9, 0.9), ("case-0001", 12, 0.8), ("case-0001", 13, 0.7))
    ]
    store.review.add(rows, hashes, 1)
    return store


@pytest.fixture
def forgotten_choices(slicer_gui):
    """Nothing that one test has chosen is remembered in the next."""
    names = [f"COVIDLesionSeg/{name}" for name in ("caseStore", "rater", "caseOrder", "caseAgain")]
    for name in names:
        slicer_gui.app.settings().remove(name)
    yield
    for name in names:
        slicer_gui.app.settings().remove(name)


class Annotating:
    """What an annotator has before the eyes: the widgets of all pages by their names, what menus offer, the case.

    Attributes:
        ui: name -> widget.
        entries: name -> entry of the menus of the case bar and of the work list.
    """

    def __init__(self, panel: Any) -> None:
        self.panel, self.ui, self.form = panel, Widgets(panel), panel.form
        self.store, self.work = panel.store, panel.correct.work
        self.entries = panel.cases.entries | panel.correct.bar.entries

    def choose(self, entry: str) -> None:
        """Choose what a menu offers, if it can be chosen."""
        assert self.entries[entry].isEnabled(), f"{entry} can't be chosen"
        self.entries[entry].trigger()

    def name_reader(self, name: str) -> None:
        self.ui.readerEdit.setText(name)
        self.ui.readerEdit.editingFinished.emit()


class Widgets:
    """The widgets of a panel by their names."""

    def __init__(self, panel: Any) -> None:
        self._panel = panel
        self._found: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in self._found:
            self._found[name] = find(self._panel, name)
        return self._found[name]


@pytest.fixture
def page(forgotten_choices, panel, store):
    """The work with cases, with that store chosen."""
    panel.show("cases")
    found = Annotating(panel)
    found.name_reader("anna")
    found.ui.storePath.setProperty("currentPath", str(store.folder))
    wait_for(lambda: found.store.cases, "the overview")
    wait_for(lambda: found.store.reader == "anna" and is_at_rest(found), "rest")
    return found


def is_at_rest(page) -> bool:
    store, pages = page.store, (page.panel.cases, page.panel.correct, page.panel.settings, page.panel.train, page.work)
    if page.work.state not in ("", "open") or store.busy:
        return False
    # the store too: it looks again, one turn after what has changed it
    if any(each._tasks.busy for each in (*pages, store)):
        return False
    return store._client is not None and not store._client.busy


def rest(page) -> None:
    let_run(0.01)
    wait_for(lambda: is_at_rest(page), "rest")


def open_next(page) -> str:
    page.ui.openNextButton.click()
    let_run(0.01)
    wait_for(lambda: page.work.isOpen and is_at_rest(page), "an open case")
    return page.work.caseId


def renew(page) -> None:
    """Renew the lock now, not in a minute."""
    page.work._tasks.start(page.work._renew())
    let_run(0.01)


def scene_mask() -> np.ndarray:
    from COVIDLesionSegLib import mrml

    parameters = mrml.moduleParameters()
    return mrml.lesionMask(parameters.lesionSegmentation, parameters.inputVolume)


def draw(mask: np.ndarray) -> None:
    """What an annotator does in the segment editor."""
    from COVIDLesionSegLib import mrml

    parameters = mrml.moduleParameters()
    node = parameters.lesionSegmentation
    mrml.writeSegment(node, mrml.segmentsWithRole(node)[0], mask, parameters.inputVolume)


def corrected() -> np.ndarray:
    mask = scene_mask()
    mask[:, :, :40] = False
    return mask
