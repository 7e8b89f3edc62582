"""The ways through the panel, in a process of their own: after each, which heavy packages that process has loaded.

    python Testing/Python/panel_journeys.py STORE FOLDER

STORE is a case store with cases, FOLDER an empty one for exports. The network is a function here; everything else that
the panel has done elsewhere is done by the real measurement child. Prints one JSON object a journey.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("COVIDLesionSeg", "Testing", "Testing/Python")]
HEAVY = ("torch", "scipy", "SimpleITK", "matplotlib", "pydicom", "highdicom", "safetensors")


def main(store: str, folder: str) -> None:
    """Go all ways."""
    os.environ["COVIDLESIONSEG_MODELS"] = str(Path(folder) / "models")
    import host

    host.boot_gui()
    import slicer
    from panel_fixtures import add_ct

    from COVIDLesionSegLib.panel import ModulePanel
    from COVIDLesionSegLib.panel.session import Session

    session = Session(_spawn())
    widget = slicer.qSlicerScriptedLoadableModuleWidget()
    panel = ModulePanel(widget.layout(), session)
    widget.show()
    panel.enter()
    panel.segment.ui.inputSelector.setCurrentNode(add_ct())
    for journey in (lesion_by_lesion, reset_a_lesion, measure, export, cases):
        journey(panel, folder if journey is export else store)
        loaded = sorted(set(HEAVY) & set(sys.modules))
        print(json.dumps({"journey": journey.__name__, "loaded": loaded}), flush=True)
    panel.cleanup()


def _spawn() -> Any:
    from fake_worker import FakeWorker

    from COVIDLesionSegLib.panel.process import QtProcess, QtTimer

    worker = FakeWorker(QtTimer)

    def spawn(command: list[str], environment: dict[str, str]) -> Any:
        return (worker.spawn if "lesions" in command else QtProcess)(command, environment)

    return spawn


def _wait(condition: Any, what: str) -> None:
    from panel_fixtures import wait_for

    wait_for(condition, what, seconds=60)


def lesion_by_lesion(panel: Any, _: str) -> None:
    """A result in each of the three views."""
    from panel_fixtures import apply_and_wait

    combo = panel.segment.ui.viewCombo
    for view in ("separate", "attenuation", "lesion"):
        combo.setCurrentIndex(combo.findData(view))
        apply_and_wait(panel)


def reset_a_lesion(panel: Any, _: str) -> None:
    """Go to a lesion, erase of it, reset it to the AI result."""
    from panel_fixtures import brush, said

    from COVIDLesionSegLib import mrml

    panel.show("correct")
    live = panel.session.live
    _wait(lambda: live.lesions and not live.busy, "the figures")
    panel.correct.goToLesion(1)
    brush(panel, mrml.moduleParameters().lesionSegmentation, np.s_[9:12, 22:30, 16:24], erase=True)
    _wait(lambda: not live.busy, "the figures")
    panel.correct.onReset()
    _wait(lambda: not panel.correct.busy, "the AI result")
    assert "Reset to the AI result" in said(panel), said(panel)


def measure(panel: Any, _: str) -> None:
    """Reference, error map, charts, an earlier study."""
    from panel_fixtures import add_ct, chest

    from COVIDLesionSegLib import mrml

    parameters, live = mrml.moduleParameters(), panel.session.live
    earlier = add_ct("earlier")
    truth = mrml.showLesions(earlier, np.roll(chest()[1], 2, axis=2))
    parameters.update(referenceSegmentation=truth, earlierVolume=earlier, earlierSegmentation=truth)
    panel.show("measure")
    _wait(lambda: live.evaluation and not live.busy, "the comparison")
    tools = panel.session.tools
    for show, name in (
        (tools.showErrors, "errorSegmentation"),
        (tools.showHistogram, "histogramChart"),
        (tools.showZones, "zoneChart"),
        (tools.compare, "changeTable"),
    ):
        show()
        _wait(lambda made=name: getattr(parameters, made) is not None and not tools.busy, name)


def export(panel: Any, folder: str) -> None:
    """Tables and report."""
    ui = panel.measure.ui
    ui.jsonCheck.setChecked(True)
    ui.folderEdit.setProperty("currentPath", folder)
    ui.caseEdit.text = "case"
    ui.saveButton.click()
    _wait(lambda: (Path(folder) / "case_report.html").is_file(), "the report")


def cases(panel: Any, store: str) -> None:
    """Open a case, on which the model runs first, edit it, keep it, save it, and open the next one."""
    from panel_case_fixtures import Annotating, draw, scene_mask

    panel.show("cases")
    page = Annotating(panel)
    page.name_reader("anna")
    page.ui.storePath.setProperty("currentPath", store)
    _wait(lambda: page.store.cases, "the overview")
    page.ui.openNextButton.click()
    _wait(lambda: page.work.isOpen and not page.store._client.busy, "an open case")
    mask = scene_mask()
    mask[mask.any(axis=(1, 2)).argmax()] = False
    draw(mask)
    page.work.autosave()
    page.ui.saveNextButton.click()
    _wait(lambda: page.work.caseId == "case-0002" and page.work.state == "open", "the next case")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
