"""The Python console: segment, measure, evaluate, a folder, fine-tuning; with the real worker and network."""

from __future__ import annotations

import csv
import json
import sys
import time

import numpy as np
import pytest
from conftest import REPOSITORY
from panel_fixtures import add_ct, chest
from scipy.ndimage import distance_transform_edt

from COVIDLesionSegLib.errors import InputError, ModelError
from COVIDLesionSegLib.inference import PostProcessing


@pytest.fixture(scope="module")
def module(slicer_gui):
    """The entry file, as Slicer has it in memory."""
    from host.scripted import load_module

    loaded = load_module(REPOSITORY / "COVIDLesionSeg" / "COVIDLesionSeg.py")
    yield loaded.python
    loaded.widget.cleanup()


@pytest.fixture(scope="module")
def logic(module, tmp_path_factory):
    """One logic for all tests, so that its children stay warm."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COVIDLESIONSEG_MODELS", str(tmp_path_factory.mktemp("models")))
        patch.setenv("OMP_NUM_THREADS", "1")
        one = module.COVIDLesionSegLogic()
        yield one
        one.close()


@pytest.fixture
def mrml(scene):
    from COVIDLesionSegLib import mrml

    return mrml


@pytest.fixture
def ct(scene):
    return add_ct()


@pytest.fixture
def lungs(ct, mrml):
    """The chest is too small for the lung finder."""
    return mrml.showLungs(ct, lung_array())


@pytest.fixture(scope="module")
def phantom():
    """The synthetic chest, coarse enough for a quick run, whole enough for the lung finder."""
    from COVIDLesionSegLib.phantom.synthetic import synthetic_chest

    return synthetic_chest(size=(40, 144, 192), spacing=(7.5, 2.0, 2.0), oblique=False)


def lung_array():
    lungs = np.zeros(chest()[0].shape, np.uint8)
    lungs[3:-3, 12:-12, 8:36], lungs[3:-3, 12:-12, 44:72] = 1, 2
    return lungs


def test_segment_measure_and_evaluate(logic, phantom, mrml, slicer_gui):
    ct = mrml.nodeFromVolume(phantom.volume, "CT")
    lungs = mrml.showLungs(ct, phantom.lungs)
    node = logic.segment(ct, model="coplenet-ctseg", device="cpu", lungs=lungs, view="attenuation", probability=True)
    mask = mrml.lesionMask(node, ct)
    lesion = phantom.lesion
    overlap = 2 * (mask & lesion).sum() / (mask.sum() + lesion.sum())
    assert overlap > 0.5, "the bundled network finds most of the synthetic lesions"
    assert mrml.segmentsWithRole(node) == ["ground_glass_opacity", "consolidation"]
    assert mrml.recordOf(node).model["id"] == "coplenet-ctseg"
    assert np.array_equal(mrml.predictionMask(node, ct), mask)
    parameters = mrml.moduleParameters()
    assert parameters.lesionSegmentation is node and parameters.inputVolume is ct
    probability = slicer_gui.util.arrayFromVolume(parameters.probabilityVolume)
    # the bundled model's card limits lesion to the lungs, not the probability
    steps = mrml.recordOf(node).postprocessing
    reach, threshold = steps["keep_inside_lungs_mm"], steps["threshold"]
    near = distance_transform_edt(phantom.lungs == 0, sampling=phantom.volume.geometry.spacing_zyx) <= reach
    assert reach == 5.0
    assert threshold == 0.6
    assert np.array_equal((probability > threshold) & near, mask)
    figures = logic.measure(ct, node, lungs)
    assert figures["lesion_volume"]["value"] == pytest.approx(mask.sum() * phantom.volume.geometry.voxel_ml)
    assert 0 < figures["involvement"]["value"] < 100
    reference = mrml.showLesions(ct, lesion)
    assert logic.evaluate(node, reference)["dice"]["value"] == pytest.approx(overlap)


def test_a_second_segmentation_goes_where_it_is_told(logic, ct, lungs, mrml):
    first = logic.segment(ct, device="cpu", lungs=lungs)
    assert logic.segment(ct, device="cpu", lungs=lungs, segmentationNode=first, view="separate") is first
    assert mrml.segmentsWithRole(first)[0] == "lesion_1"


def test_errors_are_exceptions(logic, ct, lungs, scene):
    with pytest.raises(InputError, match="No CT is chosen"):
        logic.segment(None)
    with pytest.raises(ModelError, match="no model"):
        logic.segment(ct, model="no-such-model", lungs=lungs)
    with pytest.raises(InputError, match="no lesion segments"):
        logic.measure(ct, scene.AddNewNodeByClass("vtkMRMLSegmentationNode"))


def test_without_waiting_the_run_goes_on_in_the_background(logic, ct, lungs, mrml, monkeypatch, worker, shared_session):
    from panel_fixtures import wait_for

    from COVIDLesionSegLib.panel import logic as module

    monkeypatch.setattr(module, "session", lambda: shared_session)
    wanted = PostProcessing(threshold=0.3, minimum_volume_ml=0.1)
    mrml.moduleParameters().minimumVolume = 7.0
    run = logic.segment(ct, lungs=lungs, view="separate", postprocessing=wanted, wait=False)
    assert run.busy
    wait_for(lambda: not run.busy, "the end")
    assert worker.named("segment")[0].parameters["postprocessing"] == wanted.to_json()
    assert np.array_equal(mrml.lesionMask(mrml.moduleParameters().lesionSegmentation, ct), chest()[1])


def test_a_folder_is_segmented_and_one_bad_study_does_not_end_it(logic, phantom, tmp_path, scene):
    from COVIDLesionSegLib.imaging import read_labels, write_volume

    geometry = phantom.volume.geometry
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write_volume(phantom.volume, folder / "good.nii.gz")
    (folder / "bad.nii.gz").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not a CT")
    rows = logic.segmentFolder(folder, output, device="cpu")
    assert [(row["case"], row["status"]) for row in rows] == [("bad", "failed"), ("good", "done")]
    assert rows[0]["message"]
    mask = read_labels(output / "good_lesions.nii.gz")
    assert mask.geometry.difference(geometry) == ""
    assert float(rows[1]["lesion [mL]"]) == pytest.approx((mask.array > 0).sum() * geometry.voxel_ml, abs=1e-3)
    assert json.loads((output / "good_lesions.json").read_text())["model"]["id"] == "coplenet-ctseg"
    again = logic.segmentFolder(folder, output, device="cpu", resume=True)
    assert [row["status"] for row in again] == ["failed", "skipped"]
    with (output / "batch.csv").open() as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["bad", "good"]
    with pytest.raises(InputError, match="no folder"):
        logic.segmentFolder(tmp_path / "absent", output)
    (folder / "good.nrrd").touch()
    with pytest.raises(InputError, match=r"good.nii.gz and good.nrrd would be the same files"):
        logic.segmentFolder(folder, output)
    (tmp_path / "empty" / "notes").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no CT"):
        logic.segmentFolder(tmp_path / "empty", output)


def test_the_readmes_example_runs(module, phantom, mrml, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mrml.nodeFromVolume(phantom.volume, "CT")
    code = (REPOSITORY / "Testing" / "Python" / "console_example.py").read_text(encoding="utf-8")
    exec(compile(code, "console_example.py", "exec"), {"slicer": sys.modules["slicer"]})
    words = capsys.readouterr().out.split()
    assert words[1] == "mL," and words[3] == "%"
    assert float(words[0]) > 20


def test_fine_tuning_starts_as_a_job_and_can_be_cancelled(module, tmp_path):
    from training_fixtures import write_cases

    cases = write_cases(tmp_path / "cases")
    training = module.COVIDLesionSegTrainingLogic(root=tmp_path / "jobs")
    with pytest.raises(InputError, match="no job"):
        training.status()
    with pytest.raises(InputError, match="no cases"):
        training.fineTune(tmp_path / "absent")
    job = training.fineTune(cases, "coplenet-ctseg", device="cpu")
    assert training.status(job).is_active
    # another start of Slicer finds it again
    later = module.COVIDLesionSegTrainingLogic(root=tmp_path / "jobs")
    assert [found.folder for found in later.jobs()] == [job.folder]
    later.cancel()
    end = time.monotonic() + 60
    while training.status(job).is_active and time.monotonic() < end:
        time.sleep(0.1)
    assert training.status(job).state == "cancelled"


def test_the_modules_own_test_passes(module, scene):
    import unittest

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(module.COVIDLesionSegTest).run(result)
    assert result.wasSuccessful() and result.testsRun == 1, result.errors + result.failures
