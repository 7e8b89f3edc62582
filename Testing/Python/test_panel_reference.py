"""The reference on the page Measure: which of its segments is compared, and changes that cross each other."""

from __future__ import annotations

import numpy as np
import pytest
from panel_fixtures import add_reference, brush, chest, choose_reference, wait_for

from COVIDLesionSegLib.measurement import dice


@pytest.fixture
def parameters(panel, mrml):
    return mrml.moduleParameters()


def test_a_reference_of_several_segments_is_compared_whole_or_by_the_chosen_one(
    panel, segmentation, ct, mrml, parameters
):
    reference = mrml.showLesions(ct, chest()[1], view="separate")
    choose_reference(panel, reference)
    live, combo = panel.session.live, panel.measure.ui.referenceCombo
    assert parameters.referenceSegmentId == "" and live.evaluation["dice"]["value"] == 1
    combo.setCurrentIndex(combo.findData("lesion_2"))
    wait_for(
        lambda: live.evaluation and live.evaluation["dice"]["value"] < 0.5 and not live.busy, "one segment's figures"
    )
    combo.setCurrentIndex(0)
    wait_for(lambda: live.evaluation and live.evaluation["dice"]["value"] == 1 and not live.busy, "those of all")


def test_the_chosen_segment_of_the_reference_stays_as_long_as_it_exists(panel, segmentation, ct, mrml, parameters):
    reference = add_reference(ct, mrml, chest()[1])
    segments = reference.GetSegmentation()
    segments.AddEmptySegment("other", "other")
    ui, live = panel.measure.ui, panel.session.live
    ui.referenceSelector.setCurrentNode(reference)
    ui.referenceCombo.setCurrentIndex(ui.referenceCombo.findData("expert"))
    wait_for(lambda: live.evaluation and not live.busy, "the comparison")
    segments.RemoveSegment("other")
    segments.AddEmptySegment("third", "third")
    ui.referenceSelector.currentNodeChanged.emit(reference)
    wait_for(lambda: ui.referenceCombo.findData("third") > 0 and live.evaluation and not live.busy, "the new segments")
    assert ui.referenceCombo.findData("other") < 0
    assert parameters.referenceSegmentId == "expert" == ui.referenceCombo.itemData(ui.referenceCombo.currentIndex)
    segments.RemoveSegment("expert")
    wait_for(lambda: ui.referenceCombo.findData("expert") < 0 and not live.busy, "the loss")
    assert not ui.referenceCombo.currentText and "is not there any more" in ui.stateLabel.text
    ui.referenceSelector.setCurrentNode(segmentation)
    assert parameters.referenceSegmentId == "" and ui.referenceCombo.currentIndex == 0


def test_an_edit_right_after_a_change_of_the_reference_loses_neither(panel, segmentation, ct, mrml):
    truth = add_reference(ct, mrml, chest()[1])
    choose_reference(panel, truth)
    live = panel.session.live
    wait_for(lambda: live.evaluation and not live.busy, "the comparison")
    before = live.evaluation["dice"]["value"]
    # both within one pause: the second must not take the first one's place
    segment = truth.GetSegmentation().GetNthSegmentID(0)
    mrml.writeSegment(truth, segment, np.roll(chest()[1], 6, axis=2), ct)
    brush(panel, segmentation, np.s_[4:6, 20:30, 50:60])
    wait_for(lambda: not live.busy and live.evaluation["dice"]["value"] < before - 0.05, "the new comparison")


def test_a_reference_chosen_right_after_an_edit_is_compared(panel, segmentation, ct, mrml, parameters, monkeypatch):
    live, edits = panel.session.live, [np.s_[8:10, 20:30, 50:60]]
    wanted = np.roll(chest()[1], 2, axis=2)
    truth = add_reference(ct, mrml, wanted)
    reading = live._read

    def read():
        # an edit while the study is read anew for the reference
        mask = reading()
        if edits:
            brush(panel, segmentation, edits.pop())
        return mask

    brush(panel, segmentation, np.s_[4:6, 20:30, 50:60])
    monkeypatch.setattr(live, "_read", read)
    parameters.referenceSegmentation = truth
    wait_for(lambda: live.evaluation and not live.busy, "the comparison")
    assert not edits and live.evaluation["dice"]["value"] == pytest.approx(dice(reading(), wanted))
