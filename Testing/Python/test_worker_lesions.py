"""The real child that segments: the predictor's own masks, its models, and a PyTorch that is missing or broken."""

from __future__ import annotations

import os

import numpy as np
import pytest
from worker_children import ON_POSIX, broken_torch, pump_until, save_tiny_model

from COVIDLesionSegLib.errors import CancelledError, InputError, ModelError
from COVIDLesionSegLib.resources import resource
from COVIDLesionSegLib.worker import WorkerFailedError, WorkerSettings, blocking_client, wait
from COVIDLesionSegLib.worker import protocol as p

pytestmark = ON_POSIX


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("raise ModuleNotFoundError('No module named torch', name='torch')", "torch_missing", "torch is not installed"),
        ("raise OSError('libcudart.so.13: cannot open shared object file')", "torch_missing", "libcudart"),
        ("raise AttributeError('NoneType has no attribute x')", "torch_missing", "NoneType"),
        ("import ctypes; ctypes.string_at(0)", "died", "while it loaded PyTorch"),
    ],
)
def test_pytorch_that_is_missing_half_there_or_crashing_leads_to_its_set_up(
    children, tmp_path, chest, code, kind, words
):
    client = children.real("lesions", environment={**os.environ, "PYTHONPATH": broken_torch(tmp_path, code)})
    grid = p.geometry_to_json(chest.volume.geometry)
    request = client.request("segment", {"geometry": grid}, {"volume": chest.volume.array})
    with pytest.raises(WorkerFailedError, match=words):
        wait(request)
    assert (request.error.kind, request.error.action) == (kind, "set_up_pytorch") and request.error.hint
    if kind == "torch_missing":
        # what needs no PyTorch still works
        assert wait(client.request("lungs", {"geometry": grid}, {"volume": chest.volume.array})).arrays["lungs"].any()
        report = wait(client.request("doctor")).values
        assert not report["smoke_test"]["passed"] and report["devices"] is None


@pytest.fixture(scope="module")
def lesions():
    client = blocking_client(WorkerSettings(environment={**os.environ, "OMP_NUM_THREADS": "1"}), "lesions")
    yield client
    client.kill()


def test_the_masks_are_those_of_a_predictor_bit_for_bit(lesions, slab, tmp_path):
    from COVIDLesionSegLib.inference import PostProcessing, Predictor, RunRecord

    save_tiny_model(tmp_path / "tiny.safetensors")
    phases = []
    parameters = {
        "geometry": p.geometry_to_json(slab.volume.geometry),
        "model": str(tmp_path / "tiny.safetensors"),
        "device": "cpu",
        "precision": "float32",
        "batch_size": 4,
        "probability": True,
        "levels": True,
        "uncertainty": "entropy",
        "postprocessing": PostProcessing(threshold=0.4, minimum_volume_ml=0.1).to_json(),
        "name": "CT",
    }
    arrays = {"volume": slab.volume.array, "lungs": slab.lungs}
    reply = wait(lesions.request("segment", parameters, arrays, progress=lambda found: phases.append(found.phase)))
    import torch

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = Predictor(tmp_path / "tiny.safetensors", "cpu", "float32", 4).segment(
            slab.volume,
            slab.lungs,
            probability=True,
            levels=True,
            uncertainty="entropy",
            postprocessing=PostProcessing(threshold=0.4, minimum_volume_ml=0.1),
        )
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(reply.arrays["mask"], expected.mask)
    np.testing.assert_array_equal(reply.arrays["lungs"], expected.lungs)
    np.testing.assert_array_equal(reply.arrays["probability"], expected.probability)
    np.testing.assert_array_equal(reply.arrays["uncertainty"], expected.uncertainty)
    np.testing.assert_array_equal(reply.arrays["levels"], expected.levels.levels)
    assert reply.values["levels"] == expected.levels.described() and reply.values["levels"]["threshold"] == 0.4
    record = RunRecord.from_json(reply.values["record"])
    assert record.input["voxels_sha256"] == expected.record.input["voxels_sha256"]
    assert {"loading", "network", "postprocess"} <= set(phases)
    volume = expected.mask.sum() * slab.volume.geometry.voxel_ml
    assert reply.values["summary"]["lesion_ml"] == pytest.approx(volume)


def test_models_stay_warm_are_switched_and_changed_files_are_noticed(lesions, slab, tmp_path):
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for seed, file in enumerate(files):
        save_tiny_model(file, seed)
    grid = p.geometry_to_json(slab.volume.geometry)

    def used(file):
        parameters = {"geometry": grid, "model": str(file), "device": "cpu"}
        found = wait(lesions.request("segment", parameters, {"volume": slab.volume.array, "lungs": slab.lungs}))
        return found.values["record"]["model"]["weights_sha256"]

    first, second = used(files[0]), used(files[1])
    assert first != second and used(files[0]) == first
    # another file under the same name, in the middle of a session
    save_tiny_model(files[0], seed=7)
    third = used(files[0])
    assert third not in (first, second)
    files[0].unlink()
    with pytest.raises(ModelError, match=r"one\.safetensors"):
        used(files[0])
    assert used(files[1]) == second


def test_a_damaged_model_file_is_a_model_error_and_the_child_goes_on(lesions, slab, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not a model")
    grid = p.geometry_to_json(slab.volume.geometry)
    parameters = {"geometry": grid, "model": str(tmp_path / "broken.safetensors")}
    request = lesions.request("segment", parameters, {"volume": slab.volume.array})
    with pytest.raises(ModelError):
        wait(request)
    assert request.error.kind == "model"
    with pytest.raises(ModelError, match="no model 'unheard-of'"):
        wait(lesions.request("verify_model", {"model": "unheard-of"}))


@pytest.mark.parametrize("model", ["lungs-ctseg", str(resource("Models/lungs-ctseg.safetensors"))], ids=["id", "file"])
def test_the_network_for_lungs_is_no_lesion_model(lesions, slab, model):
    given = {"geometry": p.geometry_to_json(slab.volume.geometry), "model": model}
    with pytest.raises(ModelError, match="finds lungs, not lesions"):
        wait(lesions.request("segment", given, {"volume": slab.volume.array, "lungs": slab.lungs}))


def test_a_device_that_is_not_there_leads_to_the_cpu(lesions):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    request = lesions.request("warm_up", {"device": "cuda"})
    with pytest.raises(InputError):
        wait(request)
    assert (request.error.kind, request.error.action) == ("device", "use_cpu")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"tta": "yes"}, "tta"),
        ({"brightness": 3}, "does not know brightness"),
        ({"postprocessing": {"threshold": 2}}, "threshold"),
        ({"rescale": [1]}, "rescale"),
        ({"geometry": {}}, "geometry"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_parameters_that_are_not_allowed(lesions, slab, parameters, words):
    given = {"geometry": p.geometry_to_json(slab.volume.geometry), **parameters}
    with pytest.raises(InputError, match=words):
        wait(lesions.request("segment", given, {"volume": slab.volume.array, "lungs": slab.lungs}))


def test_cancel_between_batches(children, slab, tmp_path):
    save_tiny_model(tmp_path / "tiny.safetensors")
    client = children.real("lesions", cancel_seconds=20, environment={**os.environ, "OMP_NUM_THREADS": "1"})
    phases = []
    parameters = {
        "geometry": p.geometry_to_json(slab.volume.geometry),
        "model": str(tmp_path / "tiny.safetensors"),
        "device": "cpu",
        "tta": True,
        "batch_size": 1,
    }
    arrays = {"volume": slab.volume.array, "lungs": slab.lungs}
    request = client.request("segment", parameters, arrays, progress=lambda found: phases.append(found.phase))
    pump_until(client, lambda: "network" in phases, 60)
    request.cancel()
    with pytest.raises(CancelledError):
        wait(request)
    assert client.running, "it stopped by itself"
