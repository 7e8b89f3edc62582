"""Detached jobs: they outlive their parent, are found again, stop when asked to, and are honest about their end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from file_faults import small_disk

from COVIDLesionSegLib.errors import InputError, ReadError
from COVIDLesionSegLib.processes import is_alive, kill_tree, start_time
from COVIDLesionSegLib.worker import WorkerFailedError, WorkerSettings
from COVIDLesionSegLib.worker.jobs import Job, find_jobs, start_job

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and process groups are tested on POSIX")

TESTS = Path(__file__).parent
LIBRARY = REPOSITORY / "COVIDLesionSeg"
SETTINGS = WorkerSettings(environment={**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"})


@pytest.fixture
def run(tmp_path):
    """Starts jobs with tasks of odd_jobs; what still runs at the end is killed."""
    started = []

    def start(task, name="job", **parameters):
        job = start_job(tmp_path / name, f"odd_jobs:{task}", parameters, SETTINGS)
        started.append(job)
        return job

    yield start
    for job in started:
        job._kill()


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def reported(job):
    """The first progress is there."""
    until(lambda: job.status().progress is not None)
    return job.status()


def gone(pid):
    until(lambda: not is_alive(pid))
    return True


# ---- the normal path ------------------------------------------------------------------------------------------------


def test_a_job_runs_reports_and_ends(run):
    job = run("count", steps=5)
    assert job.status().state in ("starting", "running", "done")
    status = job.wait(30)
    assert status.state == "done" and not status.is_active and status.error is None
    assert status.result["steps"] == 5 and status.result["pid"] != os.getpid()
    assert (status.progress.phase, status.progress.done, status.progress.total) == ("training", 5, 5)
    assert status.progress.fraction == 1 and status.seconds_left is None
    assert status.curves == {"loss": [[step, 1 / (step + 1)] for step in range(5)]}
    assert status.messages == ("Counting.",)
    assert (job.work / "result.txt").read_text() == "made"
    assert 0 < status.seconds < 30


def test_a_long_job_says_how_long_it_will_still_take(run):
    job = run("count", steps=1000, seconds=0.05)
    until(lambda: job.status().seconds_left is not None)
    status = job.status()
    assert status.state == "running" and 20 < status.seconds_left < 500
    assert 0 < status.progress.fraction < 0.5
    job.cancel()
    job.wait(20)


PARENT = """
import sys
sys.path.insert(0, {library!r})
from test_jobs import SETTINGS, start_job
start_job({folder!r}, "odd_jobs:count", {{"steps": 60, "seconds": 0.05}}, SETTINGS)
print("started", flush=True)
import time; time.sleep(60)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "tree"])
def test_a_job_outlives_its_parent_and_is_found_again(tmp_path, how):
    code = PARENT.format(library=str(LIBRARY), folder=str(tmp_path / "job"))
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    assert parent.stdout.readline() == b"started\n"
    parent.stdout.close()
    if how == "tree":
        # what the system does to everything in the parent's session, e.g. when a terminal is closed
        os.killpg(parent.pid, signal.SIGKILL)
    parent.kill()
    parent.wait()
    (job,) = find_jobs(tmp_path)
    assert job.status().is_active
    assert job.task == "odd_jobs:count" and job.parameters == {"steps": 60, "seconds": 0.05}
    status = job.wait(30)
    assert status.state == "done" and len(status.curves["loss"]) == 60


def test_jobs_are_found_newest_first_and_what_is_none_is_left_out(run, tmp_path, caplog):
    for name in ("b", "a", "c"):
        run("count", name, steps=1).wait(30)
    (tmp_path / "no job").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "job.json").write_text("{")
    assert [job.folder.name for job in find_jobs(tmp_path)] == ["c", "a", "b"]
    assert "damaged" in caplog.text
    assert find_jobs(tmp_path / "nowhere") == []


# ---- cancel ---------------------------------------------------------------------------------------------------------


def test_cancel_is_a_message_and_what_was_reached_is_kept(run):
    job = run("count", steps=5000, seconds=0.02)
    reported(job)
    job.cancel()
    assert job.status().state in ("cancelling", "cancelled")
    status = job.wait(20)
    assert status.state == "cancelled" and status.error is None
    reached = int((job.work / "reached").read_text())
    assert 0 < reached < 5000

    # and it goes on from there, in the same folder
    again = start_job(job.folder, job.task, {"steps": reached + 3, "resume": True}, SETTINGS)
    status = again.wait(30)
    assert status.state == "done"
    assert [point[0] for point in status.curves["loss"]] == list(range(reached + 3)), "one curve over both parts"


def test_a_job_that_does_not_listen_ends_after_the_grace_time_with_its_children(run):
    job = run("deaf")
    child = int(reported(job).messages[0])
    job.cancel(grace_seconds=0.5)
    assert job.status().state == "cancelling" and is_alive(child)
    assert job.wait(20).state == "cancelled"
    assert gone(child)


def test_a_job_that_is_stopped_altogether_is_killed_by_who_looks_after_the_grace_time(run):
    job = run("stopped")
    reported(job)
    pid = json.loads((job.folder / "process.json").read_text())["pid"]
    job.cancel(grace_seconds=0.3)
    assert job.wait(20).state == "cancelled"
    assert gone(pid)


def test_cancel_after_the_end_changes_nothing(run):
    job = run("count", steps=1)
    job.wait(30)
    job.cancel()
    assert job.status().state == "done" and not (job.folder / "cancel.json").exists()


# ---- honest ends ----------------------------------------------------------------------------------------------------


def test_a_failed_job_says_why(run):
    job = run("fail")
    status = job.wait(30)
    assert status.state == "failed"
    assert (status.error.kind, status.error.message) == ("model", "There is no model 'x'.")
    assert status.error.hint == "Choose another." and "Traceback" in status.error.details
    report = job.report()
    assert "words of the failing job" in report and "model: There is no model" in report
    assert str(job.folder) not in report and "odd_jobs" in report


def test_an_unknown_task_fails_with_a_sentence(tmp_path):
    for task in ("nonsense", "odd_jobs:nonsense"):
        status = start_job(tmp_path / task.replace(":", "-"), task, {}, SETTINGS).wait(30)
        assert status.state == "failed" and "nonsense" in status.error.message and status.error.kind == "input"


def test_a_crash_is_called_one_and_the_last_words_are_shown(run):
    job = run("crash")
    status = job.wait(30)
    assert status.state == "died" and status.error.kind == "died"
    assert "last words" in status.error.details and "Resume" in status.error.hint


def test_a_killed_job_is_dead_also_for_another_process(run, tmp_path):
    job = run("count", steps=5000, seconds=0.02)
    reported(job)
    kill_tree(json.loads((job.folder / "process.json").read_text())["pid"])
    (found,) = find_jobs(tmp_path)
    until(lambda: found.status().state == "died")


def fake_job(folder, **process):
    """A job as another process, or an earlier start of the machine, has left it."""
    folder.mkdir()
    described = {"version": 1, "task": "count", "parameters": {}, "created": "2026-01-01T00:00:00+00:00"}
    (folder / "job.json").write_text(json.dumps(described))
    known = {"pid": os.getpid(), "start_time": start_time(os.getpid()), "machine": socket.gethostname(), "time": 0}
    (folder / "process.json").write_text(json.dumps({**known, **process}))
    (folder / "heartbeat").touch()
    return Job(folder)


def test_a_process_that_has_got_the_number_later_is_not_taken_for_the_job(tmp_path):
    assert fake_job(tmp_path / "own").status().state == "running", "the same process is alive"
    later = fake_job(tmp_path / "later", start_time="another boot 12345").status()
    assert later.state == "died"


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="the boot is known on Linux only")
def test_a_restart_of_the_machine_is_named(tmp_path):
    ticks = start_time(os.getpid()).split()[1]
    boot = "11111111-2222-3333-4444-555555555555"
    status = fake_job(tmp_path / "job", start_time=f"{boot} {ticks}").status()
    assert status.state == "died" and "restarted" in status.error.message
    other = fake_job(tmp_path / "other", start_time=f"{start_time(os.getpid()).split()[0]} 1").status()
    assert other.state == "died" and "restarted" not in other.error.message


def test_a_job_on_another_machine_lives_by_its_heartbeat(tmp_path):
    job = fake_job(tmp_path / "job", machine="another", pid=1, start_time="another-start 5")
    assert job.status().state == "running"
    os.utime(job.folder / "heartbeat", (0, 0))
    assert job.status().state == "died"


@pytest.mark.skipif(sys.platform != "linux", reason="the boot is known on Linux only")
def test_a_machine_that_was_renamed_is_still_this_one(tmp_path):
    job = fake_job(tmp_path / "job", machine="the old name")
    os.utime(job.folder / "heartbeat", (0, 0))
    assert job.status().state == "running"
    assert fake_job(tmp_path / "other", machine="the old name", pid=2**22).status().state == "died"


def test_a_job_without_a_heartbeat_is_said_to_be_silent(tmp_path):
    job = fake_job(tmp_path / "job")
    os.utime(job.folder / "heartbeat", (0, 0))
    status = job.status()
    assert status.state == "running" and status.error.kind == "silent"


def test_a_job_that_never_came_up_is_not_called_running_for_ever(tmp_path):
    job = fake_job(tmp_path / "job")
    (job.folder / "process.json").unlink()
    assert job.status().state == "starting"
    os.utime(job.folder / "job.json", (0, 0))
    assert job.status().state == "died"


def test_a_torn_event_is_left_out(run):
    job = run("count", steps=3)
    job.wait(30)
    with (job.folder / "events.jsonl").open("ab") as file:
        file.write(b'{"type": "point", "curve": "loss", "x": 99')
    assert len(Job(job.folder).status().curves["loss"]) == 3


def test_a_full_disk_is_said_although_there_is_no_room_to_say_it():
    with small_disk(1) as place:
        job = start_job(place / "job", "odd_jobs:fill", {}, SETTINGS)
        try:
            status = job.wait(30)
        finally:
            job._kill()
        assert status.state == "failed" and status.error.kind == "disk_full"


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_one_folder_holds_one_job(run):
    job = run("count", steps=5000, seconds=0.02)
    with pytest.raises(InputError, match="runs already"):
        run("count")
    with pytest.raises(InputError, match="runs already"):
        job.resume(SETTINGS)
    with pytest.raises(InputError, match="Cancel it first"):
        job.remove()
    job.cancel()
    job.wait(20)
    with pytest.raises(InputError, match="holds another job"):
        run("count")
    job.remove()
    assert not job.folder.exists()
    with pytest.raises(ReadError, match="no job"):
        job.status()


def test_a_prefix_is_refused(tmp_path):
    with pytest.raises(InputError, match="this machine"):
        start_job(tmp_path / "job", "fine_tune", {}, WorkerSettings(prefix=("ssh", "gpu-box")))


def test_an_interpreter_that_is_not_there(tmp_path):
    with pytest.raises(WorkerFailedError, match="No such file") as found:
        start_job(tmp_path / "job", "fine_tune", {}, WorkerSettings(python="/no/such/python"))
    assert found.value.error.kind == "start_failed" and find_jobs(tmp_path) == []


def test_a_job_that_could_not_be_resumed_can_be_resumed_again(run):
    job = run("fail")
    before = job.wait(30)
    with pytest.raises(WorkerFailedError, match="No such file"):
        job.resume(WorkerSettings(python="/no/such/python"))
    assert (job.status().state, job.status().error, job.parameters) == ("failed", before.error, {})


def test_a_job_of_a_newer_version_is_not_guessed_at(tmp_path):
    job = fake_job(tmp_path / "job")
    (job.folder / "job.json").write_text(json.dumps({"version": 2, "task": "x", "parameters": {}}))
    with pytest.raises(ReadError, match="version 2"):
        job.status()


# ---- fine-tuning ----------------------------------------------------------------------------------------------------


def test_fine_tuning_without_cases_or_with_unknown_settings(tmp_path):
    status = start_job(tmp_path / "one", "fine_tune", {}, SETTINGS).wait(30)
    assert status.state == "failed" and "needs cases" in status.error.message
    status = start_job(tmp_path / "two", "fine_tune", {"cases": str(tmp_path), "speed": 3}, SETTINGS).wait(30)
    assert status.state == "failed" and "speed" in status.error.message


def test_a_fine_tuning_is_cancelled_resumed_and_hands_in_a_model(tmp_path):
    import torch
    from training_fixtures import tiny_config, write_cases

    from COVIDLesionSegLib.models import ModelCard, load_checkpoint, save_model
    from COVIDLesionSegLib.networks import COPLENet

    torch.manual_seed(0)
    base = tmp_path / "base.safetensors"
    card = ModelCard(id="base", name="Base", network="coplenet", network_arguments={"channels": [2, 4, 8, 16, 32]})
    save_model(COPLENet(channels=(2, 4, 8, 16, 32)), card, base)
    cases = write_cases(tmp_path / "cases")
    config = tmp_path / "config.toml"

    def of_steps(steps):
        run = {"steps": steps, "checkpoint_interval": 1, "validation_interval": 4}
        config.write_text(tiny_config(cases, data={"selection_patients": ("cleo",)}, run=run).to_toml())

    of_steps(4000)
    parameters = {"cases": str(cases), "base_model": str(base), "config": str(config), "device": "cpu"}

    job = start_job(tmp_path / "job", "fine_tune", parameters, SETTINGS)
    until(lambda: len(job.status().curves.get("teacher_dice", [])) >= 1 or not job.status().is_active, 60)
    status = job.status()
    assert status.state == "running", status.error
    assert status.progress.total in (4000, 1, 2)
    job.cancel()
    assert job.wait(60).state == "cancelled"
    reached = job.status().curves["loss"][-1][0]

    of_steps(reached + 12 - reached % 4)
    status = start_job(job.folder, "fine_tune", {**parameters, "resume": True}, SETTINGS).wait(120)
    assert status.state == "done", status.error
    assert {"loss", "student_dice", "teacher_dice"} <= set(status.curves)
    steps = [point[0] for point in status.curves["loss"]]
    assert steps == sorted(set(steps)) and steps[0] == 0
    assert load_checkpoint(status.result["file"]).card.id == status.result["model"] == "base-tuned"
    assert status.result["before"]["dice"] is not None and status.result["after"]["dice"] is not None
