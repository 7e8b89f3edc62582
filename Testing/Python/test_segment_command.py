"""The command `segment`, driven like a user would, with a tiny network of random weights."""

from __future__ import annotations

import io
import json
import os
import subprocess

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.imaging import read_labels, read_volume
from COVIDLesionSegLib.models import ModelCard, save_model
from COVIDLesionSegLib.models.card import Preprocessing
from COVIDLesionSegLib.networks import COPLENet
from COVIDLesionSegLib.resources import resource


@pytest.fixture(scope="module")
def a_tiny_model(tmp_path_factory):
    torch.manual_seed(1)
    network = COPLENet(channels=(2, 4, 8, 16, 32)).eval()
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(network, ModelCard("tiny", "Tiny", "coplenet", network.arguments), path)
    return path


def write_study(folder, name, size=(4, 40, 48), direction=None):
    hu = np.full(size, 40, dtype=np.int16)
    lungs = np.zeros(size, dtype=np.uint8)
    lungs[:, 6:-6, 5:20], lungs[:, 6:-6, 28:43] = 1, 2
    hu[lungs > 0] = -850
    hu[:, :2] = -1000
    hu[1:3, 12:20, 8:16] = -500
    for kind, array in (("ct", hu), ("lungs", lungs)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((2.0, 2.0, 5.0))
        image.SetDirection(direction or (1, 0, 0, 0, 1, 0, 0, 0, 1))
        sitk.WriteImage(image, str(folder / f"{name}_{kind}.nii.gz"))
    return folder / f"{name}_ct.nii.gz", folder / f"{name}_lungs.nii.gz"


@pytest.fixture
def a_study(tmp_path):
    return write_study(tmp_path, "one", direction=(-1, 0, 0, 0, 0, 1, 0, -1, 0))


def run(*words):
    return main([str(word) for word in words])


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("output", "mask"), [("out", "out/one_ct_lesions.nii.gz"), ("m.seg.nrrd", "m.seg.nrrd")])
def test_one_study_gives_a_mask_on_its_own_grid_and_a_record(a_study, a_tiny_model, tmp_path, capsys, output, mask):
    ct, lungs = a_study
    assert run("segment", ct, "-o", tmp_path / output, "--lungs", lungs, "--model", a_tiny_model, "--quiet") == 0
    volume, labels = read_volume(ct), read_labels(tmp_path / mask)
    assert labels.geometry.difference(volume.geometry) == ""
    assert labels.array.shape == volume.array.shape
    assert "mL lesion" in capsys.readouterr().out
    record = json.loads((tmp_path / mask.replace(".nii.gz", ".json").replace(".seg.nrrd", ".json")).read_text())
    assert record["model"]["id"] == "tiny"
    assert {"reading", "network", "writing"} <= set(record["seconds"])
    assert str(tmp_path) not in json.dumps(record)


def test_maps_and_json(a_study, a_tiny_model, tmp_path, capsys):
    ct, lungs = a_study
    words = ["--lungs", lungs, "--model", a_tiny_model, "--probability", "--uncertainty", "--json", "--quiet"]
    assert run("segment", ct, "-o", tmp_path / "out", *words) == 0
    found = json.loads(capsys.readouterr().out)
    mask = read_labels(tmp_path / "out" / "one_ct_lesions.nii.gz").mask()
    assert found["lesion_ml"] == pytest.approx(mask.sum() * 0.02)
    probability = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "one_ct_lesions_probability.nii.gz")))
    assert np.array_equal(probability > 0.5, mask)
    assert (tmp_path / "out" / "one_ct_lesions_uncertainty.nii.gz").exists()


def test_how_much_is_smoothed_across_slices_stands_in_the_record(a_study, a_tiny_model, tmp_path):
    ct, lungs = a_study
    found = {}
    for options in ([], ["--smooth-across-slices", "4"]):
        words = ["--lungs", lungs, "--model", a_tiny_model, "--probability", "--quiet", *options]
        assert run("segment", ct, "-o", tmp_path / "m.nii.gz", *words) == 0
        deviation = json.loads((tmp_path / "m.json").read_text())["postprocessing"]["smooth_across_slices_mm"]
        found[deviation] = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "m_probability.nii.gz")))
    assert list(found) == [0, 4]
    # the slices of this CT lie along y; what changes along them becomes less
    steps = {deviation: np.abs(np.diff(array, axis=1)).sum() for deviation, array in found.items()}
    assert 0 < steps[4] < 0.9 * steps[0]


def test_a_batch_goes_on_after_a_bad_study_and_resumes(a_tiny_model, tmp_path, capsys):
    good, good_lungs = write_study(tmp_path, "good")
    other, other_lungs = write_study(tmp_path, "other")
    bad = tmp_path / "bad_ct.nii.gz"
    bad.write_bytes(b"this is no image")
    manifest = tmp_path / "studies.csv"
    rows = [("a", good, good_lungs), ("b", bad, good_lungs), ("c", other, other_lungs)]
    manifest.write_text("id,ct,lungs\n" + "".join(f"{i},{c.name},{p.name}\n" for i, c, p in rows))
    words = ["--manifest", manifest, "-o", tmp_path / "out", "--model", a_tiny_model, "--quiet"]

    assert run("segment", *words) == 3
    said = capsys.readouterr()
    assert "2 done, 1 failed" in said.err
    assert "failed b:" in said.err
    assert {"a_lesions.nii.gz", "c_lesions.nii.gz"} <= set(files(tmp_path / "out"))
    before = (tmp_path / "out" / "a_lesions.json").stat().st_mtime_ns

    bad.write_bytes(good.read_bytes())
    assert run("segment", *words, "--resume") == 0
    assert "1 done, 2 skipped" in capsys.readouterr().err
    assert (tmp_path / "out" / "a_lesions.json").stat().st_mtime_ns == before
    # a changed option is done again
    assert run("segment", *words, "--resume", "--smooth-across-slices", "1") == 0
    assert "3 done, 0 failed" in capsys.readouterr().err
    assert run("segment", *words, "--resume") == 0
    assert "3 done, 0 failed" in capsys.readouterr().err
    # and so is a changed input
    os.utime(good)
    assert run("segment", *words, "--resume") == 0
    assert "1 done, 2 skipped" in capsys.readouterr().err


def test_processes_of_one_launcher_share_the_studies(a_tiny_model, tmp_path, capsys, monkeypatch):
    studies = [write_study(tmp_path, name) for name in ("one", "two", "three")]
    manifest = tmp_path / "studies.csv"
    manifest.write_text("ct,lungs\n" + "".join(f"{ct.name},{lungs.name}\n" for ct, lungs in studies))
    words = ["--manifest", manifest, "-o", tmp_path / "out", "--model", a_tiny_model, "--quiet"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, count in (("0", 2), ("1", 1)):
        monkeypatch.setenv("RANK", rank)
        assert run("segment", *words) == 0
        said = capsys.readouterr().err
        assert f"{count} done" in said
        assert "note" not in said
    assert len([name for name in files(tmp_path / "out") if name.endswith("_lesions.nii.gz")]) == 3


def test_a_failed_study_does_not_end_the_other_processes_of_a_launcher(
    a_study, a_tiny_model, tmp_path, capsys, monkeypatch
):
    ct, lungs = a_study
    manifest = tmp_path / "studies.csv"
    manifest.write_text(f"id,ct,lungs\none,{ct},{lungs}\nbad,{manifest},\ntwo,{ct},{lungs}\n")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    words = ["--manifest", manifest, "-o", tmp_path / "out", "--model", a_tiny_model, "--quiet"]
    assert run("segment", *words) == 0
    said = capsys.readouterr().err
    assert "failed bad: " in said
    assert "--resume does the failed studies again" in said
    monkeypatch.setenv("RANK", "0")
    assert run("segment", *words) == 0
    said = capsys.readouterr().err
    assert "2 done" in said
    assert "note" not in said


def test_a_study_is_called_after_its_link(a_study, a_tiny_model, tmp_path):
    ct, lungs = a_study
    link = tmp_path / "P001.nii.gz"
    link.symlink_to(ct.rename(tmp_path / "DOE_JANE.nii.gz"))
    manifest = tmp_path / "studies.csv"
    manifest.write_text(f"ct,lungs\n{link.name},{lungs.name}\n")
    for number, words in enumerate([[link, "--lungs", lungs], ["--manifest", manifest]]):
        out = tmp_path / f"out{number}"
        assert run("segment", *words, "-o", out, "--model", a_tiny_model, "--quiet") == 0
        assert {"P001_lesions.json", "P001_lesions.nii.gz"} <= set(files(out))
        assert not any("DOE" in name for name in files(out))
        assert "DOE" not in (out / "P001_lesions.json").read_text()


def test_a_name_that_the_terminal_cannot_show_does_not_fail_its_study(a_tiny_model, tmp_path, monkeypatch):
    ct, lungs = write_study(tmp_path, "Łódź")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", terminal)
    words = ["--lungs", lungs, "--model", a_tiny_model, "--quiet", "--resume"]
    assert run("segment", ct, "-o", tmp_path / "out", *words) == 0
    assert terminal.buffer.getvalue().startswith(b"\\u0141\xf3d\\u017a_ct: ")


def test_a_file_that_cannot_be_looked_at_fails_its_own_study_only(a_study, a_tiny_model, tmp_path, capsys):
    ct, lungs = a_study
    manifest = tmp_path / "studies.csv"
    manifest.write_text(f"id,ct,lungs\none,{ct},{lungs}\nbad,{'x' * 300},{lungs}\n")
    words = ["--manifest", manifest, "-o", tmp_path / "out", "--model", a_tiny_model, "--quiet"]
    assert run("segment", *words) == 3
    said = capsys.readouterr().err
    assert "1 done, 1 failed" in said
    assert "failed bad: " in said


def test_resume_trusts_no_result_of_another_format_preprocessing_or_without_its_maps(a_study, tmp_path, capsys):
    ct, lungs = a_study
    network = COPLENet(channels=(2, 4, 8, 16, 32)).eval()
    model = tmp_path / "tiny.safetensors"
    out = tmp_path / "out"

    def done(preprocessing, *options):
        save_model(
            network, ModelCard("tiny", "Tiny", "coplenet", network.arguments, preprocessing=preprocessing), model
        )
        words = ["--lungs", lungs, "--model", model, "--quiet", "--resume", *options]
        assert run("segment", ct, "-o", out, *words) == 0
        return "1 done" in capsys.readouterr().err

    assert done(Preprocessing())
    assert not done(Preprocessing())
    assert done(Preprocessing(), "--format", "seg.nrrd")
    # the mask in this format is there, but of before
    assert done(Preprocessing())
    assert done(Preprocessing(window_level=-600))
    assert not done(Preprocessing(window_level=-600))
    assert done(Preprocessing(), "--probability")
    (out / "one_ct_lesions_probability.nii.gz").unlink()
    assert done(Preprocessing(), "--probability")


def test_a_study_given_twice_or_two_of_one_name_is_refused(a_study, a_tiny_model, tmp_path, capsys):
    ct, _ = a_study
    (tmp_path / "b").mkdir()
    twin = tmp_path / "b" / ct.name
    twin.write_bytes(ct.read_bytes())
    assert run("segment", ct, twin, "-o", tmp_path / "out", "--model", a_tiny_model) == 2
    assert "same file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["CT", "-o", "OUT", "--device", "cuda"], "CUDA"),
        (["CT", "-o", "OUT", "--device", "tpu"], "device"),
        (["CT", "-o", "OUT", "--model", "coplenet-ctsg"], "coplenet-ctseg"),
        (["CT", "-o", "OUT", "--model", "CT"], "one_ct"),
        (["CT", "-o", "OUT", "--model", "lungs-ctseg"], "lungs-ctseg finds lungs, not lesions"),
        (["CT", "-o", "OUT", "--model", "LUNGS"], "lungs-ctseg.safetensors finds lungs, not lesions"),
        (["CT", "-o", "CT"], "input"),
        (["CT", "-o", "OUT/m.nii"], "unknown format"),
        (["CT", "-o", "OUT/m.nii.gz", "--format", "seg.nrrd"], "leave --format out"),
        (["CT", "CT", "-o", "OUT/m.nii.gz"], "one file"),
        (["-o", "OUT"], "Give CT files"),
        (["CT", "-o", "OUT", "--manifest", "CT"], "not both"),
        (["MISSING", "-o", "OUT"], "missing.nii.gz"),
        (["CT", "-o", "OUT", "--lungs", "OTHER"], "not on the grid"),
        (["CT", "-o", "OUT", "--threshold", "1.5"], "threshold"),
        (["CT", "-o", "OUT", "--minimum-volume", "-1"], "volume"),
        (["CT", "-o", "OUT", "--smooth-across-slices", "-1"], "smoothing across slices"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(a_study, a_tiny_model, tmp_path, capsys, words, sentence):
    ct, _ = a_study
    _, other = write_study(tmp_path, "larger", size=(5, 40, 48))
    names = {"CT": ct, "OUT": tmp_path / "out", "MISSING": tmp_path / "missing.nii.gz", "OTHER": other}
    names["LUNGS"] = resource("Models/lungs-ctseg.safetensors")
    before = files(tmp_path)
    filled = [str(names.get(word, word)).replace("OUT/", f"{tmp_path}/out/") for word in words]
    model = [] if "--model" in words else ["--model", a_tiny_model]
    assert run("segment", *filled, *model, "--quiet") == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert said.count("\n") == 0
    assert "Traceback" not in said
    assert files(tmp_path) == before


def test_a_map_does_not_replace_the_ct(a_study, a_tiny_model, tmp_path, capsys):
    ct = a_study[0].rename(tmp_path / "m_probability.nii.gz")
    before = ct.read_bytes()
    assert run("segment", ct, "-o", tmp_path / "m.nii.gz", "--probability", "--model", a_tiny_model, "--quiet") == 2
    assert "m_probability.nii.gz is an input" in capsys.readouterr().err
    assert ct.read_bytes() == before


def test_a_full_disk_leaves_nothing_half_written(a_tiny_model, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    if os.name != "posix" or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", full]).returncode:
        pytest.skip("mounting a small file system needs root on Linux")
    try:
        ct, lungs = write_study(tmp_path, "big", size=(4, 200, 200))
        words = ["--lungs", lungs, "--model", a_tiny_model, "--probability", "--quiet"]
        assert run("segment", ct, "-o", full, *words) == 2
        said = capsys.readouterr().err
        assert "disk is full" in said
        assert ".part." not in said
        assert files(full) == []
    finally:
        subprocess.run(["umount", full], check=True)
