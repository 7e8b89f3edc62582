"""The tab that measures writes files: tables, reports and DICOM SEG, none with the patient's name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from panel_fixtures import VOXEL_ML, apply_and_wait, chest, said, settle, wait_for_words


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


def test_a_dicom_seg_is_written_from_the_files_that_slicer_knows(panel, tmp_path, mrml, slicer_gui, monkeypatch):
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
    panel.tabs.setCurrentIndex(2)
    settle(panel)
    ui = panel.measure.ui
    for name in ("csv", "html", "dicom"):
        getattr(ui, f"{name}Check").setChecked(name == "dicom")
    ui.folderEdit.setProperty("currentPath", str(tmp_path))
    ui.saveButton.click()
    wait_for_words(panel, "Written: case_lesions.dcm", seconds=60)
    back = read_labels(tmp_path / "case_lesions.dcm", geometry=mrml.gridOfNode(node))
    assert sorted(back.names.values()) == ["consolidation", "ground-glass opacity"]
    assert np.array_equal(back.array > 0, mrml.lesionMask(segmentation, node))
    written = pydicom.dcmread(tmp_path / "case_lesions.dcm")
    assert {str(s.SegmentAlgorithmType) for s in written.SegmentSequence} == {"AUTOMATIC"}
    files.popitem()
    ui.saveButton.click()
    wait_for_words(panel, "1 of the CT's 24 DICOM files are not in the database")
