"""Waiting for an answer, the exception that fits an error, and the report that holds nothing of a patient."""

from __future__ import annotations

import pytest
from worker_world import World

from COVIDLesionSegLib import errors
from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.worker import WorkerError, WorkerFailedError, wait
from COVIDLesionSegLib.worker import protocol as p
from COVIDLesionSegLib.worker.faults import exception_of, scrubbed

pytestmark = pytest.mark.usefixtures("nothing_lies_about_afterwards")


def waiting_world():
    world = World()
    world.client.pump = lambda seconds: world.run(seconds)
    return world


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (WorkerError("input", "No.", "Do.", error_class="LungsNotFoundError"), errors.LungsNotFoundError),
        (WorkerError("input", "No."), errors.InputError),
        (WorkerError("model", "No."), errors.ModelError),
        (WorkerError("device", "No."), errors.DeviceError),
        (WorkerError("cancelled", "No."), errors.CancelledError),
        (WorkerError("died", "No."), WorkerFailedError),
        (WorkerError("internal", "No.", error_class="sys"), WorkerFailedError),
        (WorkerError("internal", "No.", error_class="annotations"), WorkerFailedError),
    ],
)
def test_the_exception_fits_the_error(error, expected):
    found = exception_of(error)
    assert type(found) is expected and str(found) == str(error)


def test_waiting_without_an_answer_ends_with_the_time_out():
    world = waiting_world()
    request = world.ready()
    with pytest.raises(TimeoutError, match=r"0\.01 seconds"):
        wait(request, timeout=0.01)
    assert request.error.kind == "cancelled" and world.process.killed


def test_waiting_needs_something_that_pumps(world):
    with pytest.raises(InputError, match="pump"):
        wait(world.ask())


def test_the_report_helps_and_holds_nothing_of_a_patient(world):
    parameters = {"name": "DOE^JANE", "model": "coplenet", "file": "/home/me/Doe Jane 1951/ct.nii.gz", "note": ["Doe"]}
    request = world.ready(parameters=parameters)
    world.process.print_errors("warning: /data/Doe Jane 1951/ct.nii.gz is odd\nRuntimeError: DOE^JANE\n")
    details = 'File "/opt/lib/COVIDLesionSegLib/worker/server.py", line 3\nModelError: no file /home/me/Doe Jane 1951/x'
    world.process.say(p.Failure(request.number, "model", "coplenet can't be read for DOE^JANE.", "", details))
    report = world.client.report()
    for secret in ("DOE", "Doe", "/home/me", "/data"):
        assert secret not in report
    for useful in ("coplenet", "worker/server.py", "RuntimeError", "model:", "segment", "Python", "protocol 1"):
        assert useful in report


@pytest.mark.parametrize(
    ("text", "secret", "useful"),
    [
        ("Invalid value for VR PN: 'DOE^JANE^M', will be ignored", "DOE", "will be ignored"),
        ("PatientName=Müller^Hans-Peter of the Clinic\nnext line", "Hans", "next line"),
        ("date 1951-02-03 and 19510203 in (0010,0030)", "1951", "(0010,0030)"),
        ("series 1.2.840.113619.2.55.3.604688 of numpy 2.4.6", "113619", "numpy 2.4.6"),
        ("can't open C:\\Users\\me\\Doe Jane\\ct.nii", "Jane", "can't open"),
        ("can't open /data/Doe Jane.nii.gz or /data/x: gone", "Jane", "gone"),
        ("can't open '/data/Doe Jane/ct.nii': gone", "Jane", "gone"),
        ("Linux-6.18.44 at 12:30:59 with 20480 bytes", "nothing", "Linux-6.18.44 at 12:30:59 with 20480 bytes"),
    ],
)
def test_what_may_tell_about_a_patient_is_taken_out(text, secret, useful):
    found = scrubbed(text, set())
    assert secret not in found and useful in found


def test_the_last_words_of_a_dead_child_stay_in_the_report(world):
    world.ready()
    world.process.print_errors("Fatal Python error: Segmentation fault\n")
    world.process.end(-11)
    report = world.client.report()
    assert "Fatal Python error" in report and "SIGSEGV" in report
