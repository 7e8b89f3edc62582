"""An annotator who works through the panel on the stand-in for Slicer: opens, corrects, saves, trains, reviews.

Used by the test of the loop with a tiny network, and by ``Testing/benchmarks/correction_loop.py`` with real CTs. All is
done with the widgets of the panel and the segmentation in the scene, as a person does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from panel_case_fixtures import Annotating

Mask = NDArray[np.bool_]


@contextmanager
def module_panel() -> Any:
    """A panel with real workers; ``host.boot_gui()`` must have been called."""
    import slicer

    from COVIDLesionSegLib.panel import ModulePanel
    from COVIDLesionSegLib.panel.session import Session

    widget = slicer.qSlicerScriptedLoadableModuleWidget()
    panel = ModulePanel(widget.layout(), Session())
    panel.enter()
    try:
        yield panel
    finally:
        panel.cleanup()
        widget.deleteLater()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            # the children end
            slicer.app.processEvents()
            time.sleep(0.01)


class Annotator:
    """One person at the panel.

    Args:
        panel: the module's panel.
        name: rater.
        patience: seconds to wait for anything but a training.
    """

    def __init__(self, panel: Any, name: str, patience: float = 60.0) -> None:
        self.panel, self.patience = panel, patience
        self.page = Annotating(panel)
        self.ui = self.page.ui
        self.page.name_reader(name)
        self.rest()

    # ---- waiting ----------------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], Any], what: str, seconds: float | None = None) -> None:
        """Let Qt's events run until something holds."""
        import slicer

        end = time.monotonic() + (self.patience if seconds is None else seconds)
        while not condition():
            slicer.app.processEvents()
            time.sleep(0.01)
            if time.monotonic() > end:
                raise TimeoutError(f"{what} did not happen. The panel says:\n{self.said}")

    @property
    def said(self) -> str:
        """All messages under the tabs."""
        return str(self.panel.messages.ui.messageText.toPlainText())

    def rest(self) -> None:
        """Wait until nothing is on."""
        end = time.monotonic() + 0.02
        self.wait(lambda: time.monotonic() > end, "a moment")
        work, store = self.page.work, self.page.store
        pages = (self.panel.cases, self.panel.correct, self.panel.settings, self.panel.train, work)
        self.wait(
            lambda: (
                work.state in ("", "open")
                and not store.busy
                # the store too: it looks again, one turn after what has changed it
                and not any(each._tasks.busy for each in (*pages, store))
                and not (store._client and store._client.busy)
            ),
            "rest",
        )

    # ---- the store --------------------------------------------------------------------------------------------------

    def make_store(self, folder: Path) -> None:
        """Make a store where there is none, and choose it."""
        self.ui.storePath.setProperty("currentPath", str(folder))
        if not (folder / "store.json").is_file():
            self.ui.createButton.click()
        self.wait(lambda: self.page.store.folder == str(folder) and self.page.store.overview, "the store")
        self.rest()

    def add_folder(self, folder: Path) -> None:
        """Add all CTs of a folder."""
        self.ui.addPath.setProperty("currentPath", str(folder))
        self._long(self.ui.addFolderButton)

    def import_pairs(self, folder: Path, approve: bool = False) -> None:
        """Take CTs with masks in."""
        self.ui.importPath.setProperty("currentPath", str(folder))
        self.ui.importApproveCheck.setChecked(approve)
        self._long(self.ui.importButton)

    def run_model(self, seconds: float = 600.0) -> None:
        """Run the model on all waiting cases."""
        self.ui.predictButton.click()
        self.wait(lambda: not self.panel.cases.watch.isActive, "the predictions", seconds)
        self.rest()

    def _long(self, button: Any) -> None:
        button.click()
        self.wait(lambda: not self.page.store.busy, "the end of it")
        self.rest()

    # ---- cases ------------------------------------------------------------------------------------------------------

    def correct_waiting(self, correct: Callable[[str, Mask], Mask], at_most: int | None = None) -> list[str]:
        """Open next, correct, save, as long as cases wait.

        Args:
            correct: (case, lesions as they are) -> lesions as they should be; an empty mask is saved as "no lesion".
            at_most: cases.

        Returns:
            What was corrected, in order.
        """
        done: list[str] = []
        self.ui.openNextButton.click()
        while at_most is None or len(done) < at_most:
            self.rest()
            case = self.page.work.caseId
            if not case:
                break
            empty = self._draw(correct(case, self.mask()))
            last = at_most is not None and len(done) + 1 == at_most
            done.append(case)
            if empty:
                self.ui.noLesionButton.click()
                self.rest()
                self.page.choose("aside") if last else self.ui.openNextButton.click()
            elif last:
                self.ui.saveCaseButton.click()
                self.rest()
                self.page.choose("aside")
            else:
                self.ui.saveNextButton.click()
        self.rest()
        return done

    def mask(self) -> Mask:
        """The lesions in the scene."""
        from COVIDLesionSegLib import mrml

        parameters = mrml.moduleParameters()
        return mrml.lesionMask(parameters.lesionSegmentation, parameters.inputVolume)

    def _draw(self, mask: Mask) -> bool:
        from COVIDLesionSegLib import mrml

        parameters = mrml.moduleParameters()
        node = parameters.lesionSegmentation
        mrml.writeSegment(node, mrml.segmentsWithRole(node)[0], mask, parameters.inputVolume)
        return not mask.any()

    # ---- learning ---------------------------------------------------------------------------------------------------

    def fine_tune(
        self, steps: int, validation: str = "", config: Path | None = None, seconds: float = 600.0, ask: bool = True
    ) -> Any:
        """Ask how long it takes, unless that is known, start, wait; returns the job's status."""
        ui, tuning = self.ui, self.panel.train
        ui.stepsSpin.setValue(steps)
        ui.validationEdit.setText(validation)
        ui.configPath.setProperty("currentPath", "" if config is None else str(config))
        if ask:
            ui.startButton.click()
            self.wait(lambda: not tuning.helper.isActive, "the estimate", seconds)
            if "About" not in ui.trainState.text:
                raise RuntimeError(f"There is no estimate. The panel says:\n{self.said}")
        else:
            tuning._estimated = tuning._wanted()
        ui.startButton.click()
        self.wait(lambda: not tuning.watch.isActive, "the fine-tuning", seconds)
        self.rest()
        return tuning.watch.status

    def review(self, decide: Callable[[str, int], str], at_most: int = 10) -> list[tuple[str, int, str]]:
        """Jump to each doubtful label and decide "right" or "fix"; returns (case, slice, decision)."""
        done = []
        while self.panel.cases._items and len(done) < at_most:
            item = self.panel.cases._items[0]
            decision = decide(item["case"], item["slice"])
            self.decide(0, decision)
            done.append((item["case"], item["slice"], decision))
        self.put_aside()
        return done

    def decide(self, row: int, decision: str) -> None:
        """Jump to a doubtful label and decide "right" or "fix"."""
        case = self.panel.cases._items[row]["case"]
        self.ui.reviewList.setCurrentRow(row)
        self.panel.cases.jump()
        self.wait(lambda: self.page.work.caseId == case and self.page.work.isOpen, "the case")
        self.rest()
        (self.ui.rightButton if decision == "right" else self.ui.fixButton).click()
        self.rest()

    def put_aside(self) -> None:
        """Close the case that is open."""
        if self.page.work.caseId:
            self.page.choose("aside")
            self.rest()
