"""Two processes of a training equal one with the same global batch, and lose nothing when one of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY
from training_fixtures import make_corrected_store, register_tiny_model, write_cases

from COVIDLesionSegLib.cases import Store
from COVIDLesionSegLib.learning.distributed import GlobalBatchNorm2d, rank_share
from COVIDLesionSegLib.learning.log import read_log

SCRIPT = """
import sys
sys.path[:0] = [{library!r}, {tests!r}]
from pathlib import Path
from training_fixtures import tiny_config
from COVIDLesionSegLib.errors import COVIDLesionSegError
from COVIDLesionSegLib.learning import Trainer
from COVIDLesionSegLib.learning.several import label_update
tables = {tables!r}
network = {{"arguments": {{"channels": [8, 16, 32, 64, 128], "dropout": [0] * 5}}}}
run = {{"precision": "float64", "validation_interval": 10, "checkpoint_interval": 5}} | tables.pop("run")
config = tiny_config(Path({cases!r}), network=network, run=run, **tables)
try:
    if {members!r}:
        label_update(config, Path({folder!r}), Path({base!r}), {members!r}, resume=True)
    else:
        Trainer(config, Path({folder!r}), Path({base!r})).run(resume=True)
except COVIDLesionSegError as error:
    # one write a process, which no other comes between; torchrun's Python has no buffer
    sys.stderr.write(f"error: {{error}}\\n")
    sys.exit(error.exit_status)
"""
FRAMEWORK = {"loss": {"name": "noise_robust_dice"}, "data": {"selection_patients": ("cleo",)}}
REWEIGHTING = {
    "data": {"selection_patients": ("cleo",)},
    "loss": {"name": "dice_cross_entropy"},
    "ensembling": {"enabled": False},
    "reweighting": {"enabled": True, "warm_up": 2, "percentile": 50.0},
    "optimizer": {"name": "ranger", "learning_rate": 1e-3},
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return write_cases(tmp_path_factory.mktemp("cases"))


def start(folder, cases, ranks, tables, steps, members=0):
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "run.py"
    library, tests = str(REPOSITORY / "COVIDLesionSeg"), str(REPOSITORY / "Testing" / "Python")
    script.write_text(
        SCRIPT.format(
            library=library,
            tests=tests,
            tables={**tables, "run": {"steps": steps}},
            cases=str(cases),
            folder=str(folder / "run"),
            base=str(folder),
            members=members,
        )
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, str(script)], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    "tables",
    [pytest.param(FRAMEWORK, id="framework"), pytest.param(REWEIGHTING, id="reweighting", marks=pytest.mark.long)],
)
def test_two_ranks_equal_one(cases, tmp_path, tables):
    states = []
    for ranks in (1, 2):
        process = start(tmp_path / str(ranks), cases, ranks, tables, 20)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        states.append(torch.load(tmp_path / str(ranks) / "run" / "state.pt", weights_only=True))
    one, two = states
    for name in ("network", *(["ensembling"] if one["ensembling"] else [])):
        tensors = [state[name] if name == "network" else state[name]["teacher"] for state in states]
        for key, value in tensors[0].items():
            assert torch.allclose(value.double(), tensors[1][key].double(), rtol=0, atol=1e-6), key
    logs = [[e for e in read_log(tmp_path / str(n) / "run") if e["kind"] == "step"] for n in (1, 2)]
    for first, second in zip(*logs, strict=True):
        for key in ("loss", "student_loss", "teacher_loss", "consistency", "lambda", "alpha", "beta", "kept"):
            if first.get(key) is not None:
                assert first[key] == pytest.approx(second[key], abs=1e-6), (key, first["step"])
    assert one["best"]["step"] == two["best"]["step"]
    assert one["best"]["selection"]["cleo"] == pytest.approx(two["best"]["selection"]["cleo"], abs=1e-6)


@pytest.mark.long
def test_several_trainings_of_one_call_keep_their_processes(cases, tmp_path):
    # as many steps as it takes until the labels that the first networks agree on hold lesion
    process = start(tmp_path, cases, 2, FRAMEWORK, 30, members=2)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert (tmp_path / "run" / "final" / "result.json").exists()


def test_a_lost_rank_ends_the_job_with_a_message_and_a_usable_state(cases, tmp_path):
    process = start(tmp_path, cases, 2, FRAMEWORK, 400)
    while not (tmp_path / "run" / "state.pt").exists() and process.poll() is None:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Another process of this training ended" in errors or "Signal 9" in errors
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["step"] % 5 == 0
    again = start(tmp_path, cases, 2, FRAMEWORK, state["step"] + 5)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors


def test_global_batch_norm_of_one_process_is_batch_norm():
    torch.manual_seed(0)
    plain = torch.nn.BatchNorm2d(3).double()
    other = GlobalBatchNorm2d(3).double()
    values = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    assert torch.equal(plain(values), other(values))


def test_ranks_share_independent_cases(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        parts.append(rank_share(["a", "b", "c"]))
    assert parts == [["a", "c"], ["b"]]


ROUND = """
import sys
sys.path[:0] = [{library!r}, {tests!r}]
from test_cases_learning import ANY_MODEL, settings
from COVIDLesionSegLib.cases import Store
from COVIDLesionSegLib.errors import COVIDLesionSegError
try:
    result = Store({store!r}).fine_tune(config=settings(), validation=["case-0004"], rule=ANY_MODEL, resume=True)
except COVIDLesionSegError as error:
    # one write a process, which no other comes between; torchrun's Python has no buffer
    sys.stderr.write(f"error: {{error}}\\n")
    sys.exit(error.exit_status)
sys.stdout.write(f"round {{result.round}} {{result.model.id}}\\n")
sys.stdout.flush()
"""


def test_a_fine_tuning_of_a_store_on_two_ranks_is_one_round(tmp_path):
    """And an error of the main process ends both with its sentence."""
    models = tmp_path / "models"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COVIDLESIONSEG_MODELS", str(models / "registry"))
        register_tiny_model(models)
        make_corrected_store(tmp_path)
    script = tmp_path / "round.py"
    library, tests = str(REPOSITORY / "COVIDLesionSeg"), str(REPOSITORY / "Testing" / "Python")
    script.write_text(ROUND.format(library=library, tests=tests, store=str(tmp_path / "store")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COVIDLESIONSEG_MODELS": str(models / "registry")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    store = Store(tmp_path / "store")
    (model,) = store.models.list()
    (record,) = store.training.rounds()
    assert (record["status"], record["model"]) == ("done", model.id)
    # both processes know what the main one has done
    assert sorted(line for line in done.stdout.splitlines() if line) == [f"round 1 {model.id}"] * 2
    metrics = store.models.card(model.id).metrics
    assert set(metrics["base"]["cases"]) == set(metrics["validation"]["cases"]) == {"case-0004"}
    assert model.gate is not None and store.models.default() == model.id
    assert store.check().findings == ()
    # the main process alone asks the split, which refuses validation patients now
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert done.stderr.count("error: The split of this store is frozen already") == 2
    assert len(store.training.rounds()) == 1
