"""The panel's work with cases: a store with three CTs, its page, and what an annotator does; a pytest plug-in."""

from __future__ import annotations

import numpy as np
import pytest
from panel_fixtures import chest, let_run, wait_for

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


@pytest.fixture
def page(panel, store):
    """The work with cases, with that store chosen."""
    found = panel.cases
    found.ui.raterEdit.setText("anna")
    found.list._onRater()
    found.ui.storePath.setProperty("currentPath", str(store.folder))
    wait_for(lambda: found.store.cases, "the overview")
    return found


def is_at_rest(page) -> bool:
    store = page.store
    return page.work.state in ("", "open") and not store.busy and store._client is not None and not store._client.busy


def rest(page) -> None:
    let_run(0.01)
    wait_for(lambda: is_at_rest(page), "rest")


def open_next(page) -> str:
    page.ui.nextButton.click()
    wait_for(lambda: page.work.isOpen and is_at_rest(page), "an open case")
    return page.work.caseId


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
