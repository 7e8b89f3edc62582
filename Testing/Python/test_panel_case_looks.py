"""How the work with cases looks and feels: keyboard, long lists, narrow panels, translation."""

from __future__ import annotations

import pytest
from panel_case_fixtures import corrected, draw, is_at_rest, open_next, rest
from panel_fixtures import let_run, wait_for

pytestmark = pytest.mark.usefixtures("forgotten_choices")


def test_the_keyboard_is_enough(page, panel, store, reviewed_keys):
    press = reviewed_keys
    press("Alt+O")
    wait_for(lambda: page.work.isOpen and is_at_rest(page), "the case")
    draw(corrected())
    press("Alt+S")
    wait_for(lambda: store.case("case-0001").latest("anna") is not None, "the revision")
    rest(page)
    press("Alt+D")
    wait_for(lambda: page.work.caseId == "case-0002" and page.work.isOpen, "the next case")
    # from field to field in the order of the work
    order = ["storePath", "raterEdit", "caseList", "orderCombo", "nextButton", "saveButton", "noteEdit"]
    places = {w.objectName: i for i, w in enumerate(focus_chain(page.form)) if w.objectName in order}
    assert sorted(places, key=places.get) == order


def focus_chain(form):
    widget, chain = form.nextInFocusChain(), []
    while widget is not form and len(chain) < 2000:
        chain.append(widget)
        widget = widget.nextInFocusChain()
    return [widget for widget in chain if form.isAncestorOf(widget)]


@pytest.fixture
def reviewed_keys(page, panel):
    import qt

    let_run(0.02)

    def press(keys):
        for shortcut in panel.shortcuts:
            if shortcut.key.toString() == qt.QKeySequence(keys).toString() and shortcut.isEnabled():
                assert shortcut.parent() is panel.form
                shortcut.activated.emit()
                return
        pytest.fail(f"no shortcut {keys}")

    return press


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


GROUPS = ("workListButton", "addButton", "tuneButton", "reviewButton", "ratersButton", "filesButton")


def test_everything_fits_into_320_pixels(page, reviewed):
    open_next(page)
    for name in GROUPS:
        getattr(page.ui, name).collapsed = False
    let_run(0.02)
    assert page.form.minimumSizeHint.width() <= 320 - 24
    # unfolding shows nothing that has no meaning now
    hidden = (
        "createButton",
        "storeProgress",
        "caseProgress",
        "restartButton",
        "predictCancelButton",
        "tuneProgress",
        "resumeButton",
        "gateBrowser",
        "overrideButton",
        "agreementBrowser",
        "reportLabel",
    )
    assert [name for name in hidden if getattr(page.ui, name).isVisibleTo(page.form)] == []


def test_every_word_of_the_forms_code_can_be_translated(open_panel, monkeypatch):
    from COVIDLesionSegLib.panel import adding_page, review_page, store_files_page, tuning_page, work_list

    for module in (adding_page, review_page, store_files_page, tuning_page, work_list):
        monkeypatch.setattr(module, "_", lambda text: f"«{text}»")
    ui = open_panel().cases.ui
    for combo in (ui.stateCombo, ui.orderCombo, ui.layoutCombo):
        assert all("«" in combo.itemText(index) for index in range(combo.count))
    assert "«" in ui.storeState.text
