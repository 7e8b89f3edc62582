"""The tab that measures writes files: tables, reports and DICOM SEG, none with the patient's name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from panel_fixtures import (
    VOXEL_ML,
    add_ct,
    add_reference,
    apply_and_wait,
    chest,
    choose_reference,
    find,
    said,
    settle,
    wait_for,
    wait_for_words,
)


def test_files_are_written_without_the_patients_name(panel, segmentation, ct, tmp_path):
    pytest.importorskip("matplotlib")
    ct.SetName("Doe^Jane")
    segmentation.SetName("Doe^Jane lesions")
    ui = panel.measure.ui
    ui.jsonCheck.setChecked(True)
    ui.folderEdit.setProperty("currentPath", str(tmp_path / "out"))
    ui.caseEdit.text = "case 7"
    ui.saveButton.click()
    wait_for_words(panel, "Written:", seconds=60)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"case 7_{end}" for end in ("measurements.csv", "lesions.csv", "report.json", "report.html")}
    texts = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert "Doe" not in texts
    report = json.loads((tmp_path / "out" / "case 7_report.json").read_text())
    ml = chest()[1].sum() * VOXEL_ML
    assert report["quantities"]["lesion_volume"]["value"] == pytest.approx(ml)
    assert report["record"]["model"]["name"] == "fake"


@pytest.mark.parametrize(
    ("folder", "case", "kinds", "words"),
    [
        ("", "case", ["csv"], "No folder is chosen"),
        ("out", "../up", ["csv"], "can't be a part of file names"),
        ("out", "case", [], "No kind of file is chosen"),
        ("out", "case", ["dicom"], "was not loaded with the DICOM module"),
    ],
)
def test_an_export_that_can_not_be_is_refused(folder, case, kinds, words, panel, segmentation, tmp_path):
    ui = panel.measure.ui
    for name in ("csv", "json", "html", "dicom"):
        getattr(ui, f"{name}Check").setChecked(name in kinds)
    ui.folderEdit.setProperty("currentPath", str(tmp_path / folder) if folder else "")
    ui.caseEdit.text = case
    ui.saveButton.click()
    assert words in said(panel)
    assert not (tmp_path / "out").exists()


def test_a_dicom_seg_says_first_what_it_holds(panel, segmentation):
    ui = panel.measure.ui
    assert not ui.dicomNote.isVisible()
    ui.exportButton.collapsed = False
    ui.dicomCheck.setChecked(True)
    assert ui.dicomNote.isVisible() and "patient" in ui.dicomNote.text


def test_a_dicom_seg_is_written_from_the_files_that_slicer_knows(
    panel, tmp_path, mrml, slicer_gui, monkeypatch, answers
):
    """As loaded with Slicer's DICOM module: the volume names its instances, the database their files."""
    pytest.importorskip("highdicom")
    import types

    import pydicom
    from synthetic_dicom import write_series

    from COVIDLesionSegLib.imaging import read_labels, read_volume

    write_series(tmp_path / "ct", chest()[0])
    files = {str(pydicom.dcmread(file).SOPInstanceUID): str(file) for file in sorted((tmp_path / "ct").iterdir())}
    database = types.SimpleNamespace(fileForInstance=lambda uid: files.get(uid, ""))
    monkeypatch.setattr(slicer_gui, "dicomDatabase", database, raising=False)
    node = mrml.nodeFromVolume(read_volume(tmp_path / "ct"))
    node.SetAttribute("DICOM.instanceUIDs", " ".join(files))
    panel.segment.ui.inputSelector.setCurrentNode(node)
    panel.segment.ui.viewCombo.setCurrentIndex(1)
    segmentation = apply_and_wait(panel)
    panel.show("measure")
    settle(panel)
    ui = panel.measure.ui
    for name in ("csv", "html", "dicom"):
        getattr(ui, f"{name}Check").setChecked(name == "dicom")
    ui.folderEdit.setProperty("currentPath", str(tmp_path))
    ui.saveButton.click()
    wait_for_words(panel, "Written: case-1_lesions.dcm", seconds=60)
    back = read_labels(tmp_path / "case-1_lesions.dcm", geometry=mrml.gridOfNode(node))
    assert sorted(back.names.values()) == ["consolidation", "ground-glass opacity"]
    assert np.array_equal(back.array > 0, mrml.lesionMask(segmentation, node))
    written = pydicom.dcmread(tmp_path / "case-1_lesions.dcm")
    assert {str(s.SegmentAlgorithmType) for s in written.SegmentSequence} == {"AUTOMATIC"}
    files.popitem()
    answers.next = False
    ui.saveButton.click()
    assert "case-1_lesions.dcm" in answers.asked[0]
    answers.next = True
    ui.saveButton.click()
    wait_for_words(panel, "1 of the CT's 24 DICOM files are not in the database")


def export_csv(panel, folder):
    for name in ("csv", "json", "html", "dicom"):
        find(panel, f"{name}Check").setChecked(name == "csv")
    find(panel, "folderEdit").setProperty("currentPath", str(folder))
    panel.measure.ui.saveButton.click()


def test_two_patients_never_share_a_file_name_and_files_are_replaced_after_a_question(
    panel, segmentation, ct, tmp_path, answers
):
    export_csv(panel, tmp_path)
    wait_for_words(panel, "Written:", seconds=60)
    first = (tmp_path / "case-1_measurements.csv").read_bytes()
    find(panel, "inputSelector").setCurrentNode(add_ct("of another patient"))
    apply_and_wait(panel)
    settle(panel)
    export_csv(panel, tmp_path)
    wait_for(lambda: (tmp_path / "case-2_lesions.csv").is_file(), "the other patient's files")
    assert (tmp_path / "case-1_measurements.csv").read_bytes() == first and not answers.asked
    wait_for(lambda: panel.measure.ui.saveButton.isEnabled(), "rest")
    find(panel, "caseEdit").setText("case-1")
    answers.next = False
    export_csv(panel, tmp_path)
    assert "case-1_measurements.csv, case-1_lesions.csv" in answers.asked[0]
    assert not panel.session.live.busy and (tmp_path / "case-1_measurements.csv").read_bytes() == first
    find(panel, "inputSelector").setCurrentNode(ct)
    assert find(panel, "caseEdit").text == "case-1"


def test_a_measuring_child_that_has_ended_by_itself_is_brought_back(panel, segmentation, ct, mrml, tmp_path, worker):
    choose_reference(panel, add_reference(ct, mrml, np.roll(chest()[1], 2, axis=2)))
    parameters = mrml.moduleParameters()

    def idle():
        child = next(child for child in worker.children if child.kind == "measurement" and child.is_running)
        child.close_input()
        wait_for(lambda: not child.is_running, "the end")

    idle()
    find(panel, "errorsButton").click()
    wait_for(lambda: parameters.errorSegmentation is not None, "the error map")
    settle(panel)
    idle()
    export_csv(panel, tmp_path)
    wait_for_words(panel, "Written:", seconds=60)
    assert "not open" not in said(panel) and len(worker.named("open")) >= 3
