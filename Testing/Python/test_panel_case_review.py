"""Doubtful labels, several raters, and who trains and who judges, decided in the panel."""

from __future__ import annotations

import pytest
from panel_case_fixtures import is_at_rest, open_next, rest
from panel_fixtures import chest, let_run, wait_for, wait_for_words

pytestmark = pytest.mark.usefixtures("forgotten_choices")


def test_doubtful_labels_are_looked_at_and_decided(reviewed, page, panel, scene, slicer_gui):
    from COVIDLesionSegLib.mrml import nodes

    view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetOrientationToAxial()
    ui = page.ui
    assert ui.reviewList.item(0).text() == "case-0002, slice 9: the loss stayed high"
    panel.cases.jumpToNext()
    wait_for(lambda: page.work.isOpen and is_at_rest(page), "the case")
    assert page.work.caseId == "case-0002"
    view = next(node for node in nodes.nodesOfClass("vtkMRMLSliceNode"))
    assert view.GetSliceToRAS().GetElement(2, 3) == pytest.approx(-30 + 9 * 2.5)
    ui.rightButton.click()
    wait_for(lambda: ui.reviewList.count == 2, "the decision")
    rest(page)
    ui.reviewList.setCurrentRow(1)
    ui.fixButton.click()
    wait_for(lambda: ui.reviewList.count == 1, "the decision")
    decided = {(i.case, i.slice): (i.decision, i.by) for i in reviewed.review.items(True)}
    assert decided == {("case-0002", 9): ("right", "anna"), ("case-0001", 13): ("fix", "anna")}
    rest(page)
    assert open_next(page) == "case-0001" and "fix it" in page.work.reason
    assert "slices 13" in ui.caseLabel.text
    ui.decidedCheck.click()
    assert ui.reviewList.count == 3 and "[to be fixed, anna]" in ui.reviewList.item(2).text()


def test_after_a_decision_the_views_show_the_next_label_before_it_can_be_decided(reviewed, page, panel, monkeypatch):
    from COVIDLesionSegLib import mrml

    jumps, ui = [], page.ui
    monkeypatch.setattr(mrml, "jumpTo", lambda ras: jumps.append(page.work.caseId))
    panel.cases.jumpToNext()
    panel.cases.decide("right")
    wait_for(lambda: page.work.isOpen and is_at_rest(page), "the case")
    assert jumps == ["case-0002"] and ui.reviewList.count == 3, "it was not seen yet"
    panel.cases.decide("right")
    wait_for(lambda: ui.reviewList.count == 2, "the decision")
    # the next one is of a case that is not open
    assert ui.reviewList.currentRow == -1
    panel.cases.decide("right")
    panel.cases.jumpToNext()
    wait_for(lambda: page.work.caseId == "case-0001" and is_at_rest(page), "the other case")
    panel.cases.decide("right")
    wait_for(lambda: ui.reviewList.count == 1, "the decision")
    rest(page)
    assert jumps == ["case-0002", "case-0001", "case-0001"] and ui.reviewList.currentRow == 0
    # a decided label that stays in the list is looked at already
    ui.decidedCheck.click()
    texts = [ui.reviewList.item(row).text() for row in range(ui.reviewList.count)]
    ui.reviewList.setCurrentRow(next(row for row, text in enumerate(texts) if "slice 13" in text))
    panel.cases.decide("fix")
    wait_for(lambda: not reviewed.review.items(), "the decision")
    rest(page)
    assert len(jumps) == 3 and ui.reviewList.currentRow >= 0


def test_a_double_click_jumps_once(reviewed, page, panel, monkeypatch):
    import qt
    from PySide6 import QtTest

    from COVIDLesionSegLib import mrml
    from COVIDLesionSegLib.panel import cases_page

    # however slow this machine is
    monkeypatch.setattr(cases_page, "DOUBLE_CLICK_S", 60)
    panel.show("cases")
    page.ui.reviewButton.collapsed = False
    let_run(0.05)
    jumps = []
    monkeypatch.setattr(mrml, "jumpTo", jumps.append)
    widget = page.ui.reviewList
    panel.cases.jumpToNext()
    wait_for(lambda: page.work.isOpen and is_at_rest(page), "the case")
    assert len(jumps) == 1
    place = widget.visualItemRect(widget.item(0)).center()
    for press in (QtTest.QTest.mouseClick, QtTest.QTest.mouseDClick):
        press(widget.viewport(), qt.Qt.LeftButton, qt.Qt.NoModifier, place)
    rest(page)
    assert len(jumps) == 2, "both presses of a double click"
    widget.setCurrentRow(1)
    QtTest.QTest.keyClick(widget, qt.Qt.Key_Return)
    wait_for(lambda: page.work.caseId == "case-0001" and page.work.isOpen and is_at_rest(page), "the other case")
    assert len(jumps) == 3, "the return key on another item"


def test_raters_are_compared_and_their_consensus_trains(page, panel, store):
    other = chest()[1].copy()
    other[8:10] = False
    for rater, mask in (("anna", chest()[1]), ("bert", other), ("cleo", chest()[1])):
        store.save_revision("case-0001", mask, rater)
    page.choose("refresh")
    wait_for(lambda: "anna; bert; cleo" in page.ui.caseList.item(0).text(), "the readers")
    page.ui.caseList.setCurrentRow(0)
    page.choose("agreement")
    wait_for(lambda: "bert - cleo" in page.ui.agreementBrowser.toPlainText(), "the table")
    rest(page)
    page.choose("consensus")
    wait_for_words(panel, "The consensus of case-0001")
    case = store.case("case-0001")
    assert case.label == "consensus" and case.label_revision.kind == "consensus"
    rest(page)
    assert "the consensus trains" in page.ui.caseList.item(0).text()
    page.choose("latest")
    wait_for(lambda: store.case("case-0001").label == "latest", "the choice")


def test_a_second_rater_gets_what_the_first_has_saved(page, store):
    store.save_revision("case-0001", chest()[1], "bert")
    for name in ("case-0002", "case-0003"):
        store.exclude(name, "not now")
    page.ui.openNextButton.click()
    rest(page)
    assert not page.work.caseId
    page.ui.secondReadingCheck.click()
    assert open_next(page) == "case-0001"


def test_a_patient_changes_sides_with_a_reason_that_is_kept(page, panel, store):
    ui = page.ui
    assert not ui.moveCombo.enabled and not ui.moveButton.enabled, "nobody validates yet"
    for number in (1, 2, 3):
        store.save_revision(f"case-000{number}", chest()[1], "bert")
    store.split.freeze(["case-0003"])
    page.store.refresh()
    wait_for(lambda: page.store.overview["frozen"], "the overview")
    texts = [ui.moveCombo.itemText(row) for row in range(ui.moveCombo.count)]
    assert texts == ["case-0001, training", "case-0002, training", "case-0003, validation"]
    ui.moveCombo.setCurrentIndex(1)
    assert ui.moveButton.text == "Move to validation set" and not ui.moveButton.enabled
    ui.moveReasonEdit.setText("same hospital as case-0003")
    assert not ui.moveButton.enabled, "a reason alone is no consent"
    ui.moveCheck.setChecked(True)
    ui.moveButton.click()
    wait_for_words(panel, "case-0002: the patient is in the validation set from now on.")
    assert store.split.side(store.case("case-0002")) == "validation"
    act = store.split.history()[-1]
    assert (act["act"], act["by"], act["from"], act["to"]) == ("move", "anna", "train", "validation")
    assert act["why"] == "same hospital as case-0003"
    rest(page)
    assert ui.moveCombo.currentText == "case-0002, validation" and ui.moveButton.text == "Move to training set"
    assert not ui.moveCheck.checked and not ui.moveReasonEdit.text and not ui.moveButton.enabled


def test_the_last_patient_of_a_side_stays_there(page, panel, store):
    for number in (1, 2):
        store.save_revision(f"case-000{number}", chest()[1], "bert")
    store.split.freeze(["case-0001"])
    page.store.refresh()
    wait_for(lambda: page.store.overview["frozen"], "the overview")
    page.ui.moveReasonEdit.setText("by mistake")
    page.ui.moveCheck.setChecked(True)
    page.ui.moveButton.click()
    wait_for_words(panel, "would leave nobody for validation")
    assert len(store.split.history()) == 1 and page.ui.moveReasonEdit.text == "by mistake"


def test_the_fraction_of_replay_is_the_one_that_was_chosen(page, panel, store, monkeypatch):
    from COVIDLesionSegLib.errors import InputError
    from COVIDLesionSegLib.panel.training import TrainingLogic

    given = {}

    def start(_training, *_cases, **settings):
        given.update(settings)
        raise InputError("no training here")

    monkeypatch.setattr(TrainingLogic, "fineTune", start)
    panel.train.ui.replaySpin.setValue(25)
    # its estimate was seen
    panel.train._estimated = panel.train._wanted()
    panel.train.onStart()
    assert given["replayShare"] == 0.25 and given["by"] == "anna"
