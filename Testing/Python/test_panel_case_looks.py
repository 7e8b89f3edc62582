"""How the annotator's pages look and feel: keyboard, long lists, narrow panels, translation."""

from __future__ import annotations

import collections
import re
import xml.etree.ElementTree as ET

import pytest
from conftest import REPOSITORY
from panel_case_fixtures import corrected, draw, is_at_rest, open_next, rest
from panel_fixtures import find, let_run, wait_for

pytestmark = pytest.mark.usefixtures("forgotten_choices")

PAGES = ("segment", "measure", "correct", "cases", "train", "settings")


def test_the_keyboard_is_enough(page, panel, store, press):
    press("Alt+O")
    wait_for(lambda: page.work.isOpen and is_at_rest(page), "the case")
    draw(corrected())
    press("Alt+S")
    wait_for(lambda: store.case("case-0001").latest("anna") is not None, "the revision")
    rest(page)
    press("Alt+D")
    wait_for(lambda: page.work.caseId == "case-0002" and page.work.isOpen, "the next case")


@pytest.fixture
def press(panel):
    import qt

    def press(keys):
        for shortcut in panel.shortcuts:
            if shortcut.key.toString() == qt.QKeySequence(keys).toString() and shortcut.isEnabled():
                assert shortcut.parent() is panel.form, "it works on every page"
                shortcut.activated.emit()
                return
        pytest.fail(f"no shortcut {keys}")

    return press


@pytest.mark.parametrize(
    ("form", "order"),
    [
        ("cases", ["storePath", "readerEdit", "orderCombo", "caseList", "openNextButton", "noteEdit", "addPath"]),
        ("correct", ["saveCaseButton", "saveNextButton", "noLesionButton", "nextLesionButton", "resetButton"]),
        ("train", ["baseCombo", "stepsSpin", "startButton", "storeModelList", "useButton", "overrideEdit"]),
    ],
)
def test_fields_come_in_the_order_of_the_work(form, order, panel):
    form = panel.pages[form].form
    widget, names = form.nextInFocusChain(), []
    while widget is not form and len(names) < 2000:
        if form.isAncestorOf(widget):
            names.append(widget.objectName)
        widget = widget.nextInFocusChain()
    assert [name for name in names if name in order] == order


@pytest.mark.parametrize("name", PAGES)
def test_a_label_leads_to_its_field_and_no_two_letters_are_the_same(name, panel):
    """Letters of labels, too, must not be keys that the panel has given away."""
    root = ET.parse(REPOSITORY / "Resources" / "UI" / f"{name.capitalize()}.ui").getroot()
    there = [each for each in panel.shortcuts if each.parent() in (panel.form, panel.pages[name].form)]
    taken = [shortcut.key.toString().removeprefix("Alt+") for shortcut in there]
    # of sections that unfold one at a time each has its letters for itself
    sections = [w for w in root.iter("widget") if w.get("class") == "ctkCollapsibleButton"]
    groups = sections if name == "settings" else [root]
    for group in groups:
        letters = []
        for widget in group.iter("widget"):
            values = {p.get("name"): "".join(p.itertext()) for p in widget.findall("property")}
            letters += re.findall(r"&(\w)", values.get("text", "").upper())
            if widget.get("name").endswith("Caption"):
                assert values["buddy"] == widget.get("name").removesuffix("Caption")
                assert find(panel, widget.get("name")).buddy() is find(panel, values["buddy"])
        assert len(letters) == len(set(letters)), (name, letters)
        assert not set(letters) & set(taken), (name, letters)


def test_no_two_widgets_have_the_same_name():
    """A name leads to one widget, in tests and in the application."""
    forms = sorted((REPOSITORY / "Resources" / "UI").glob("*.ui"))
    names = [widget.get("name") for form in forms for widget in ET.parse(form).getroot().iter("widget")]
    assert not [name for name, count in collections.Counter(names).items() if count > 1]


def test_a_page_has_few_buttons_and_the_rest_is_in_its_menu(page, panel):
    import qt

    buttons = [w.objectName for w in page.panel.cases.form.findChildren(qt.QPushButton)]
    assert len(buttons) <= 8, buttons
    assert {action.text for action in page.ui.caseList.actions()} >= {
        "Open",
        "Approve",
        "Exclude",
        "Compare the readers",
    }
    assert list(page.ui.caseActionsButton.actions()) == list(page.ui.caseList.actions())


def test_a_thousand_cases_are_listed_at_once(page, store, slicer_gui):
    import time

    case = next(iter(page.store.cases.values()))
    many = [{**case, "id": f"case-{n:04d}"} for n in range(1, 1001)]
    page.store.overview = {**page.store.overview, "cases": many, "counts": {"new": 1000}}
    begun = time.perf_counter()
    page.store.changed.emit()
    took = time.perf_counter() - begun
    assert page.ui.caseList.count == 1000
    print(f"a thousand cases shown in {1000 * took:.0f} ms")


def test_the_case_and_the_tools_are_in_view_above_the_editor_at_400_by_800_pixels(page, panel):
    import qt

    open_next(page)
    rest(page)
    panel.form.window().resize(400, 800)
    let_run(0.1)
    area = find(panel, "pageArea").viewport()
    order = ["caseTitle", "saveNextButton", "nextLesionButton", "resetButton", "sensitivitySlider", "editor"]
    places = [find(panel, name).mapTo(area, qt.QPoint(0, 0)).y() for name in order]
    assert places == sorted(places) and places[0] >= 0
    assert places[-1] + 60 < area.height, "the editor begins in view"
    folded = find(panel, "editor").mapTo(area, qt.QPoint(0, 0)).y()
    find(panel, "clickSection").collapsed = True
    let_run(0.1)
    assert find(panel, "editor").mapTo(area, qt.QPoint(0, 0)).y() < folded - 100, "room for who paints only"


@pytest.mark.parametrize("name", ["cases", "train", "settings"])
def test_a_page_fits_into_400_by_800_pixels_without_a_scroll(name, page, panel, reviewed):
    """With a case open, as it comes: rarely used parts are folded."""
    open_next(page)
    panel.form.window().resize(400, 800)
    panel.show(name)
    let_run(0.1)
    assert find(panel, "pageArea").verticalScrollBar().maximum == 0, panel.pages[name].form.height


@pytest.mark.parametrize("name", PAGES)
def test_everything_fits_into_320_pixels(name, page, panel, reviewed):
    import ctk

    open_next(page)
    panel.show(name)
    form = panel.pages[name].form
    assert form.minimumSizeHint.width() <= 320 - 24
    for button in form.findChildren(ctk.ctkCollapsibleButton):
        button.collapsed = False
        let_run(0.01)
        assert form.minimumSizeHint.width() <= 320 - 24, button.objectName
    # unfolding shows nothing that has no meaning now
    hidden = {
        "segment": ("progressBar", "cancelButton"),
        "measure": ("referenceLabel", "changeLabel"),
        "cases": ("createButton", "storeProgress", "storeCancelButton", "agreementBrowser"),
        "correct": ("caseProgress", "caseCancelButton", "nextCaseButton", "roiSelector"),
        "train": ("trainProgress", "resumeButton", "gateBrowser", "overrideButton"),
        "settings": ("settingsProgress", "settingsCancelButton", "reportLabel"),
    }
    assert [each for each in hidden[name] if find(panel, each).isVisibleTo(form)] == []


def test_one_section_of_the_settings_is_unfolded_at_a_time(panel):
    panel.show("settings")
    names = ["modelsButton", "torchSection", "importSection", "upkeepSection", "splitSection", "shortcutsSection"]
    for name in (*names, "torchSection"):
        find(panel, name).collapsed = False
        assert [other for other in names if not find(panel, other).collapsed] == [name]


def test_every_word_of_the_forms_code_can_be_translated(open_panel, monkeypatch):
    from COVIDLesionSegLib.panel import cases_page, correct_page, settings_page, train_page

    for module in (cases_page, correct_page, settings_page, train_page):
        monkeypatch.setattr(module, "_", lambda text: f"«{text}»")
    panel = open_panel()
    for name in ("stateCombo", "orderCombo", "layoutCombo", "regionCombo"):
        combo = find(panel, name)
        assert all("«" in combo.itemText(index) for index in range(combo.count)), name
    entries = [*panel.cases.entries.values(), *panel.correct.bar.entries.values()]
    assert all("«" in entry.text for entry in entries)
    for name in ("storeState", "splitLabel", "caseTitle"):
        assert "«" in find(panel, name).text, name
