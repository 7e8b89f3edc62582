"""The panel as people see it: known widgets, narrow and dark panels, translated, quick to open, free of PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from conftest import REPOSITORY
from panel_fixtures import apply_and_wait, find, let_run, wait_for

UI = sorted((REPOSITORY / "Resources" / "UI").glob("*.ui"))
# Widgets that the stand-in for Slicer can't imitate and the panel may use all the same: none.
ALLOWED_INERT: set[str] = set()


def test_every_widget_is_one_that_the_host_knows(panel):
    from host.gui import inert_widgets

    assert inert_widgets - {"qMRMLVolumeThresholdWidget"} <= ALLOWED_INERT  # that one is asked for by the host's test


def test_every_signal_that_the_panel_connects_exists(panel):
    """PythonQt prints a line and connects nothing, which nobody reads."""
    from host.pythonqt import failed_connections

    assert not failed_connections


@pytest.mark.parametrize("path", UI, ids=lambda path: path.name)
def test_a_form_has_no_fixed_colors_and_explains_its_controls(path):
    from host import gui

    root = ET.parse(path).getroot()
    text = path.read_text(encoding="utf-8")
    assert "styleSheet" not in text and "<color" not in text and "<palette" not in text
    for widget in root.iter("widget"):
        name = widget.get("class")
        known = name in gui._WIDGETS or name.startswith("Q")
        assert known, f"{name} is not imitated by the host"
        properties = {p.get("name") for p in widget.findall("property")}
        if name in ("QPushButton", "QCheckBox", "QComboBox", "QDoubleSpinBox", "QLineEdit", "qMRMLNodeComboBox"):
            assert "toolTip" in properties, f"{widget.get('name')} in {path.name} has no tooltip"
    declared = {custom.findtext("class") for custom in root.iter("customwidget")}
    used = {w.get("class") for w in root.iter("widget") if not w.get("class").startswith("Q")}
    assert used == declared


def test_all_tabs_fit_into_320_pixels(panel, ct):
    apply_and_wait(panel)
    for tab in (panel.segment, panel.correct, panel.measure, panel.settings):
        for button in ("optionsButton", "cardButton", "exportButton", "earlierButton", "chartsButton", "torchButton"):
            if hasattr(tab.ui, button):
                getattr(tab.ui, button).collapsed = False
        assert tab.form.minimumSizeHint.width() <= 320 - 24, type(tab).__name__
    window = panel.form.window()
    window.resize(340, 900)
    let_run(0.02)
    assert window.widget().width <= 340


@pytest.mark.parametrize("height", [800, 420])
def test_the_messages_and_the_choice_of_pages_are_in_view_on_every_page(height, panel, ct):
    """Whatever a page holds: in Slicer's panel, which scrolls what is higher than it."""
    import qt

    apply_and_wait(panel)
    window, text = panel.form.window(), find(panel, "messageText")
    window.resize(400, height)
    for name in (*panel.pages, *reversed(panel.pages)):
        panel.show(name)
        let_run(0.05)
        for widget in (text, find(panel, "settingsPageButton")):
            place = widget.mapTo(window.viewport(), qt.QPoint(0, 0))
            assert place.y() >= 0 and place.y() + widget.height <= height, (name, widget.objectName)
        assert window.verticalScrollBar().maximum == 0, name


def test_a_page_is_left_and_found_again_where_it_was(panel, ct):
    bar = find(panel, "pageArea").verticalScrollBar()
    panel.form.window().resize(400, 420)
    panel.show("settings")
    wait_for(lambda: bar.maximum > 60, "a long page")
    bar.setValue(60)
    panel.show("segment")
    let_run(0.05)
    assert bar.value == 0
    panel.show("settings")
    wait_for(lambda: bar.value == 60, "the place")


def test_the_titles_of_all_pages_fit_at_380_pixels_and_12_points(panel, slicer_gui):
    import qt

    window, font = panel.form.window(), qt.QFont(slicer_gui.app.font())
    font.setPointSize(12)
    window.setFont(font)
    window.resize(380, 800)
    let_run(0.05)
    for name in panel.pages:
        button = find(panel, f"{name}PageButton")
        assert button.fontMetrics().horizontalAdvance(button.text) + 12 <= button.width, name
        assert button.mapTo(window.viewport(), qt.QPoint(button.width, 0)).x() <= window.viewport().width


def test_every_page_says_what_it_holds(panel):
    for number, name in enumerate(panel.pages, 1):
        button = find(panel, f"{name}PageButton")
        assert len(button.toolTip) > 40 and f"Alt+{number}" in button.toolTip
        button.click()
        assert panel.current == name and button.checked
        assert [page.form.isVisible() for page in panel.pages.values()].count(True) == 1
        assert panel.pages[name].form.isVisible()


def test_every_shortcut_is_listed_once(panel):
    keys = [shortcut.key.toString() for shortcut in panel.shortcuts]
    assert len(keys) == len(set(keys))
    listed = find(panel, "shortcutsBrowser").toPlainText()
    assert all(key in listed for key in keys)


def luminance(color):
    return (0.2126 * color.redF() + 0.7152 * color.greenF() + 0.0722 * color.blueF()) ** 1.0


def test_text_is_readable_on_a_dark_theme(panel, ct, slicer_gui):
    import qt

    before = slicer_gui.app.palette()
    dark = qt.QPalette()
    roles = qt.QPalette
    for role, value in (
        (roles.Window, 45),
        (roles.Base, 30),
        (roles.AlternateBase, 40),
        (roles.Button, 55),
        (roles.WindowText, 230),
        (roles.Text, 230),
        (roles.ButtonText, 230),
    ):
        dark.setColor(role, qt.QColor(value, value, value))
    window = panel.form.parentWidget()
    slicer_gui.app.setPalette(dark)
    try:
        apply_and_wait(panel)
        for index in panel.pages:
            panel.show(index)
            wait_for(lambda: not panel.session.live.busy, "rest")
            image = window.grab().toImage()
            pixels = [image.pixelColor(x, y) for x in range(0, image.width(), 3) for y in range(0, image.height(), 3)]
            values = np.array([luminance(color) for color in pixels])
            # mostly dark, with light text on it, and nothing that was painted white
            assert np.median(values) < 0.3 and values.max() > 0.6 and (values > 0.95).mean() < 0.02, index
    finally:
        slicer_gui.app.setPalette(before)


def test_every_word_of_the_code_can_be_translated(open_panel, monkeypatch):
    """With a translation that marks what it was asked for, no label that the code sets is without the mark."""
    import importlib

    from COVIDLesionSegLib.panel import correct_page, measure_page, module_panel, segment_page, session

    for module in (correct_page, measure_page, module_panel, segment_page, session):
        monkeypatch.setattr(importlib.import_module(module.__name__), "_", lambda text: f"«{text}»")
    panel = open_panel()
    ui = panel.segment.ui
    for combo in (
        ui.deviceCombo,
        ui.lungsCombo,
        ui.viewCombo,
        panel.correct.ui.regionCombo,
        panel.measure.ui.tableCombo,
    ):
        assert all("«" in combo.itemText(index) for index in range(combo.count))


OPEN = """
import sys
sys.path[:0] = {paths!r}
import host
host.boot_gui()
from host.scripted import load_module
import slicer
import slicer.i18n
slicer.i18n.translate = lambda context, text: f"in Slicer's words: {{text}}" if "qSlicer" in context else text
loaded = load_module({module!r})
loaded.widget.enter()
assert loaded.module.parent.categories == ("in Slicer's words: Segmentation",)
heavy = {{"torch", "scipy", "SimpleITK", "matplotlib", "pydicom", "safetensors"}} & set(sys.modules)
assert not heavy, heavy
sys.modules["COVIDLesionSegLib.mrml.nodes"].is_old = True
loaded.widget.onReload()
again = slicer.modules.COVIDLesionSegWidget
assert again is not loaded.widget and loaded.widget.panel is None and again.panel is not None
assert not hasattr(sys.modules["COVIDLesionSegLib.mrml.nodes"], "is_old"), "the whole library is loaded again"
assert slicer.util.findChild(loaded.panel, "applyButton") is not None
again.enter()
again.cleanup()
"""


def test_the_module_opens_without_heavy_packages(slicer_gui, tmp_path, monkeypatch):
    monkeypatch.setenv("COVIDLESIONSEG_MODELS", str(tmp_path))
    folder = REPOSITORY / "COVIDLesionSeg"
    code = OPEN.format(paths=[str(REPOSITORY / "Testing"), str(folder)], module=str(folder / "COVIDLesionSeg.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def journeys(slicer_gui, tmp_path_factory):
    """Journey -> heavy packages that the panel's process has loaded after it."""
    from case_fixtures import make_store

    folder = tmp_path_factory.mktemp("journeys")
    store = make_store(folder, 2)
    script = REPOSITORY / "Testing" / "Python" / "panel_journeys.py"
    command = [sys.executable, str(script), str(store.folder), str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row["journey"]: row["loaded"] for row in rows}


@pytest.mark.parametrize("journey", ["lesion_by_lesion", "reset_a_lesion", "measure", "export", "cases"])
def test_no_journey_loads_heavy_packages_into_slicer(journey, journeys):
    """Importing scipy alone holds Slicer's window up for a third of a second."""
    assert journeys[journey] == []


def test_the_entry_file_is_small_and_resources_are_found(slicer_gui):
    from pathlib import Path

    from host.scripted import load_module

    file = REPOSITORY / "COVIDLesionSeg" / "COVIDLesionSeg.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 120
    loaded = load_module(file)
    for holder in (loaded.module, loaded.widget):
        assert Path(holder.resourcePath("UI/Segment.ui")) == REPOSITORY / "Resources" / "UI" / "Segment.ui"
    assert loaded.module.parent.title == "COVIDLesionSeg" and loaded.module.parent.categories
    names = ("COVIDLesionSegLogic", "COVIDLesionSegTrainingLogic", "COVIDLesionSegTest")
    assert all(hasattr(loaded.python, name) for name in names)
    loaded.widget.cleanup()


def test_keys_do_what_buttons_do(panel, ct, qt_keys):
    qt_keys("Ctrl+Return")
    wait_for(lambda: panel.session.live is not None and not panel.session.run.busy, "the run")
    from COVIDLesionSegLib import mrml

    assert mrml.moduleParameters().lesionSegmentation is not None
    qt_keys("Alt+3")
    assert panel.current == "correct"
    wait_for(lambda: panel.session.live.lesions and not panel.session.live.busy, "the figures")
    qt_keys("Alt+N")
    assert "Lesion 1 of 2" in panel.correct.ui.lesionLabel.text
    qt_keys("Alt+P")
    assert "Lesion 2 of 2" in panel.correct.ui.lesionLabel.text


@pytest.fixture
def qt_keys(panel):
    """Function that presses keys in the panel's window."""
    import qt

    # the off-screen window has no focus, so the shortcuts are told themselves
    def press(keys):
        for shortcut in panel.shortcuts:
            if shortcut.key.toString() == qt.QKeySequence(keys).toString() and shortcut.isEnabled():
                shortcut.activated.emit()
                return
        pytest.fail(f"no shortcut {keys}")

    return press


def test_the_newest_message_is_in_view(panel, ct):
    from COVIDLesionSegLib.panel.messages import Notice

    bar = panel.messages.ui.messageText.verticalScrollBar()
    for number in range(20):
        panel.messages.note(Notice(f"Message {number}."))
    let_run(0.05)
    # as Qt leaves it where the box was drawn anew, or where somebody has read what was before
    bar.setValue(0)
    panel.messages.note(Notice("The last one."))
    let_run(0.05)
    assert bar.maximum > 0 and bar.value == bar.maximum


def test_times_and_changes_are_said_in_words(slicer_gui):
    from COVIDLesionSegLib.panel.live import _signed
    from COVIDLesionSegLib.panel.text import duration_text

    said = {1: "a second", 7: "7 seconds", 43: "45 seconds", 89: "90 seconds", 90: "2 minutes", 600: "10 minutes"}
    said |= {5399: "90 minutes", 5400: "2 hours", 4 * 3600: "4 hours"}
    assert {seconds: duration_text(seconds) for seconds in said} == {s: f"about {text}" for s, text in said.items()}
    assert [_signed(value, "mL")[0] for value in (1.5, 0.0)] == ["+", "0"]
