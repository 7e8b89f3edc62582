"""Pictures of the module's pages beside slice and 3-D views, drawn off-screen on the stand-in for Slicer.

``python Testing/tools/panel_pictures.py [FOLDER]`` makes those of Resources/Screenshots from the synthetic chest, with
the real worker and the bundled network.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "COVIDLesionSeg")]
PANEL = (360, 760)
VIEW = (330, 379)


def main(folder: Path) -> None:
    """Drive the panel through a whole case and photograph each tab."""
    import host

    host.boot_gui()
    import slicer

    from COVIDLesionSegLib import mrml
    from COVIDLesionSegLib.phantom.synthetic import synthetic_chest
    from host.scripted import load_module

    folder.mkdir(parents=True, exist_ok=True)
    phantom = synthetic_chest(oblique=False)
    panel, widget = open_panel(load_module)
    views = Views()
    ct = mrml.nodeFromVolume(phantom.volume, "Synthetic chest")
    segment(panel, ct)
    node = mrml.moduleParameters().lesionSegmentation
    views.photograph(widget, ct, folder / "segment.png", phantom.lesion)

    panel.show("correct")
    wait_for(lambda: panel.session.live.lesions and not panel.session.live.busy)
    panel.correct.ui.nextLesionButton.click()
    panel.correct.ui.nextLesionButton.click()
    views.photograph(widget, ct, folder / "correct.png", mrml.lesionMask(node, ct))

    panel.show("measure")
    reference = mrml.createSegmentation(ct, "Known lesions")
    reference.GetSegmentation().AddEmptySegment("known", "known lesions", [0.3, 0.7, 0.9])
    mrml.writeSegment(reference, "known", phantom.lesion, ct)
    reference.GetDisplayNode().SetVisibility(False)
    panel.measure.ui.referenceSelector.setCurrentNode(reference)
    wait_for(lambda: panel.session.live.evaluation and not panel.session.live.busy)
    panel.measure.ui.errorsButton.click()
    wait_for(lambda: mrml.moduleParameters().errorSegmentation is not None)
    node.GetDisplayNode().SetVisibility(False)
    mrml.showIn3D(mrml.moduleParameters().errorSegmentation)
    let_run(0.5)
    views.photograph(widget, ct, folder / "measure.png", phantom.lesion)

    # a relative path: the picture shows it, and it is to say nothing of this computer
    with tempfile.TemporaryDirectory() as store, contextlib.chdir(store):
        opened = open_case(
            panel, Path("lung-cases"), [synthetic_chest(seed, oblique=False).volume for seed in (1, 2, 3)]
        )
        parameters = mrml.moduleParameters()
        mask = mrml.lesionMask(parameters.lesionSegmentation, opened)
        # as the Segment Editor's button does
        mrml.showIn3D(parameters.lesionSegmentation)
        mrml.showIn3D(parameters.lungSegmentation, smooth=False)
        views.photograph(widget, opened, folder / "cases.png", mask, follow=False)
        widget_of(panel).cleanup()
    slicer.mrmlScene.Clear(False)
    let_run(2)


def open_panel(load_module: Callable[[Path], Any]) -> tuple[Any, Any]:
    """The module's panel in a window."""
    loaded = load_module(ROOT / "COVIDLesionSeg" / "COVIDLesionSeg.py")
    loaded.panel.resize(*PANEL)
    loaded.panel.show()
    loaded.widget.enter()
    _widgets[id(loaded.widget.panel)] = loaded.widget
    return loaded.widget.panel, loaded.panel


_widgets: dict[int, Any] = {}


def widget_of(panel: Any) -> Any:
    """The module's widget object that holds a panel."""
    return _widgets[id(panel)]


def segment(panel: Any, ct: Any) -> None:
    """Choose the CT and press Apply."""
    ui = panel.segment.ui
    ui.inputSelector.setCurrentNode(ct)
    ui.viewCombo.setCurrentIndex(1)
    ui.limitCheck.setChecked(True)
    ui.minimumSpin.setValue(0.5)
    wait_for(lambda: ui.deviceLabel.text and "Looking" not in ui.deviceLabel.text)
    start = time.monotonic()
    ui.applyButton.click()
    wait_for(lambda: not panel.session.run.busy, 600)
    # the five lines of the result
    wait_for(lambda: panel.session.live.quantities and not panel.session.live.busy)
    print(f"segmented in {time.monotonic() - start:.1f} s;", panel.messages.ui.messageText.toPlainText())


def open_case(panel: Any, folder: Path, volumes: list[Any]) -> Any:
    """Make a store of CTs and open the first, which the network answers; gives the CT's node."""
    from COVIDLesionSegLib import mrml
    from COVIDLesionSegLib.cases import Store

    store = Store.create(folder)
    for number, volume in enumerate(volumes):
        store.add("CT", f"Patient {number}", volume=volume)
    page = panel.cases
    panel.show("cases")
    page.ui.storePath.setProperty("currentPath", str(folder))
    wait_for(lambda: panel.store.cases and page.ui.openNextButton.enabled)
    page.ui.openNextButton.click()
    wait_for(lambda: panel.correct.work.isOpen and not panel.store.busy, 600)
    panel.show("cases")
    return mrml.moduleParameters().inputVolume


class Views:
    """An axial, a sagittal, a coronal and a 3-D view."""

    def __init__(self) -> None:
        from host import pictures

        self._slices = [pictures.SliceView(name, VIEW) for name in ("Axial", "Coronal", "Sagittal")]
        self._space = pictures.ThreeDView(VIEW)

    def photograph(self, widget: Any, ct: Any, file: Path, mask: np.ndarray, follow: bool = True) -> None:
        """The panel beside the views: at the crosshair if it is to be followed, or where a mask marks most."""
        import slicer

        from COVIDLesionSegLib.mrml import gridOfNode

        crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        ras = list(crosshair.GetCrosshairRAS())
        if not follow or not any(ras):
            z = int(np.argmax(mask.sum(axis=(1, 2))))
            y, x = (int(np.median(places)) for places in np.nonzero(mask[z]))
            ras = (gridOfNode(ct).ijk_to_ras @ [x, y, z, 1])[:3]
        shown = []
        for view in self._slices:
            view.show(ct)
            view.goTo(*ras)
            shown.append(view.picture())
        axial, coronal, sagittal = shown
        space = self._space.picture(azimuth=20, elevation=10)
        right = np.vstack([np.hstack([axial, space]), np.hstack([coronal, sagittal])])
        widget.resize(*PANEL)
        left = grab(widget)
        height = min(len(left), len(right))
        save(np.hstack([left[:height], right[:height]]), file)


def grab(widget: Any) -> np.ndarray:
    """A widget as (rows, columns, RGB)."""
    import qt

    let_run(0.1)
    image = widget.grab().toImage().convertToFormat(qt.QImage.Format_RGB888)
    rows, columns = image.height(), image.width()
    data = np.frombuffer(image.constBits(), np.uint8).reshape(rows, image.bytesPerLine())
    return data[:, : 3 * columns].reshape(rows, columns, 3).copy()


def save(picture: np.ndarray, file: Path) -> None:
    """Write a PNG with a palette of its own, which is a fifth of the size."""
    from PIL import Image

    Image.fromarray(picture).quantize(40, dither=Image.Dither.NONE).save(file, optimize=True)
    print(file.name, f"{file.stat().st_size / 1000:.0f} kB")


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    """Let Qt's events run until a condition holds."""
    import slicer

    end = time.monotonic() + seconds
    while not condition():
        slicer.app.processEvents()
        time.sleep(0.005)
        if time.monotonic() > end:
            raise TimeoutError("the panel did not get there")


def let_run(seconds: float) -> None:
    """Let Qt's events run for a while."""
    end = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() >= end)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as models:
        import os

        os.environ["COVIDLESIONSEG_MODELS"] = models
        os.environ["LOGNAME"] = "reader-1"
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "Resources" / "Screenshots")
