"""Several people at one store: who has what open, what a dead machine leaves, work that a crash interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from case_fixtures import lesion, make_store
from conftest import REPOSITORY

from COVIDLesionSegLib.cases import CaseOpenError, Store, work
from COVIDLesionSegLib.errors import InputError, ReadError
from COVIDLesionSegLib.worker.measurement_tasks import Measurements
from COVIDLesionSegLib.worker.tasks import Context, perform

SAVE = """
import sys
sys.path.insert(0, sys.argv[3])
from case_fixtures import lesion
from COVIDLesionSegLib.cases import Store
store = Store(sys.argv[1])
for number in range(4):
    store.save_revision("case-0001", lesion(number), sys.argv[2])
"""
HOLD = """
import sys, time
sys.path.insert(0, sys.argv[2])
from case_fixtures import lesion
from COVIDLesionSegLib.cases import Store
session = Store(sys.argv[1]).open("case-0001", "anna")
session.autosave(lesion(3))
print("open", flush=True)
time.sleep(60)
"""


def child(script: str, *arguments: object) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "COVIDLesionSeg"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments), str(REPOSITORY / "Testing" / "Python")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def lock_of_another_machine(store: Store, case_id: str, age_s: float) -> None:
    file = store.layout.locks / f"{case_id}.lock"
    values = {"owner": "bert", "host": "ward-7", "machine": "another", "pid": 1, "started": None, "token": "t"}
    file.write_text(json.dumps({**values, "renewals": 3, "since": "2020-11-01T08:00:00+00:00"}))
    stamp = time.time() - age_s
    os.utime(file, (stamp, stamp))


def test_a_case_that_somebody_has_open_is_not_opened_and_not_offered(tmp_path):
    store = make_store(tmp_path)
    lock_of_another_machine(store, "case-0001", age_s=30)
    with pytest.raises(CaseOpenError, match=r"case-0001 is open: bert on ward-7 since .*, last seen 30 s ago"):
        store.open("case-0001", "anna")
    assert store.case("case-0001").state == "in work"
    found = store.next("anna")
    assert found.case.id == "case-0002"
    assert found.waiting == 2
    assert len(found.skipped) == 1 and "bert on ward-7" in found.skipped[0]


def test_a_case_can_be_taken_over_and_its_first_owner_learns_it(tmp_path):
    store = make_store(tmp_path)
    first = store.open("case-0001", "anna")
    with pytest.raises(CaseOpenError, match="the program still runs on this computer"):
        Store(store.folder).open("case-0001", "bert")
    second = Store(store.folder).open("case-0001", "bert", take_over=True)
    second.save(lesion(1))
    with pytest.raises(CaseOpenError, match="bert took it over"):
        first.renew()
    # the work of the one who lost the lock becomes a revision of its own
    assert first.save(lesion(2)).number == 2
    first.close()
    assert store.case("case-0001").lock.owner == "bert"
    second.close()
    assert store.case("case-0001").lock is None
    assert store.case("case-0001").raters == ("bert", "anna")


@pytest.mark.parametrize(
    ("age_s", "abandoned"), [(0.0, False), (800.0, False), (1000.0, True), (-3600.0, False), (-1e8, False)]
)
def test_a_silent_machine_loses_its_lock_after_a_quarter_of_an_hour(tmp_path, age_s, abandoned):
    store = make_store(tmp_path, 1)
    lock_of_another_machine(store, "case-0001", age_s)
    lock = store.case("case-0001").lock
    assert lock.abandoned is abandoned
    assert lock.age_s >= 0
    if abandoned:
        with store.open("case-0001", "anna") as session:
            assert session.case.id == "case-0001"


def test_a_clock_that_jumped_back_does_not_keep_a_dead_lock_alive_for_ever(tmp_path, monkeypatch):
    store = make_store(tmp_path, 1)
    lock_of_another_machine(store, "case-0001", age_s=-1e6)
    assert not store.case("case-0001").lock.abandoned
    now = time.monotonic()
    monkeypatch.setattr(work.time, "monotonic", lambda: now + work.ABANDONED_S + 1)
    assert store.case("case-0001").lock.abandoned
    # another sign of life begins the watch anew
    file = store.layout.locks / "case-0001.lock"
    file.write_text(json.dumps({**json.loads(file.read_text()), "renewals": 4}))
    os.utime(file, (time.time() + 1e6,) * 2)
    assert not store.case("case-0001").lock.abandoned


def test_order_and_numbers_do_not_come_from_the_clock(tmp_path, monkeypatch):
    store = make_store(tmp_path, 1)
    monkeypatch.setattr("COVIDLesionSegLib.cases.case_files.now", lambda: "2031-01-01T00:00:00+00:00")
    store.save_revision("case-0001", lesion(1), "anna")
    monkeypatch.setattr("COVIDLesionSegLib.cases.case_files.now", lambda: "1999-01-01T00:00:00+00:00")
    store.save_revision("case-0001", lesion(2), "anna")
    assert [revision.saved[:4] for revision in store.case("case-0001").revisions] == ["2031", "1999"]
    assert np.array_equal(store.read_revision("case-0001").mask(), lesion(2))


def test_a_killed_program_frees_its_case_at_once_and_its_work_is_recovered(tmp_path):
    store = make_store(tmp_path)
    with child(HOLD, store.folder) as owner:
        assert owner.stdout.readline() == "open\n"
        assert store.case("case-0001").state == "in work"
        with pytest.raises(CaseOpenError):
            store.open("case-0001", "bert")
        owner.kill()
        owner.wait()
    lock = store.case("case-0001").lock
    assert lock.abandoned and lock.why == "its program has ended"
    found = store.next("anna")
    assert (found.case.id, found.reason) == ("case-0001", "You left unsaved work on it.")
    with store.open("case-0001", "anna") as session:
        assert session.recovered is not None
        assert session.start_from.startswith("unsaved work of")
        assert np.array_equal(session.start_mask.mask(), lesion(3))
        session.save(session.start_mask)
    assert store.case("case-0001").unsaved == ()
    assert store.case("case-0001").state == "corrected"


def test_unsaved_work_of_somebody_else_is_kept_and_offered_last(tmp_path):
    store = make_store(tmp_path, 2)
    with store.open("case-0001", "anna") as session:
        session.autosave(lesion(1))
    assert store.next("bert").case.id == "case-0002"
    store.exclude("case-0002", "motion")
    found = store.next("bert")
    assert (found.case.id, found.reason) == ("case-0001", "anna left unsaved work on it.")
    with store.open("case-0001", "bert") as session:
        assert session.recovered is None
        session.save(lesion(2))
    with store.open("case-0001", "anna") as session:
        assert np.array_equal(session.start_mask.mask(), lesion(1))
        session.discard()
    assert store.case("case-0001").unsaved == ()


def test_a_file_of_another_program_among_the_autosaves_hides_no_case(tmp_path):
    store = make_store(tmp_path, 1)
    for name in ("desktop.json", "case-0001.json", ".case-0001.anna.json"):
        (store.layout.autosave / name).write_text("{}")
    (case,) = store.cases()
    assert case.state == "new" and case.unsaved == ()


def test_a_case_that_could_not_be_opened_is_not_left_open(tmp_path):
    store = make_store(tmp_path, 1)
    store.set_prediction("case-0001", lesion(1), "m", record={"a": 1})
    (store.layout.predictions("case-0001") / "0001" / "prediction.json").write_text("{")
    asked = {"store": str(store.folder), "rater": "anna", "case": "case-0001"}
    with pytest.raises(ReadError, match="damaged"):
        perform(Measurements(), "case_open", asked, {}, Context())
    assert store.case("case-0001").lock is None


def test_an_autosave_of_what_was_saved_is_not_recovered(tmp_path):
    store = make_store(tmp_path, 1)
    session = store.open("case-0001", "anna")
    session.autosave(lesion(1))
    # killed after the revision was there and before the autosave was taken away
    store.save_revision("case-0001", lesion(1), "anna")
    session.close()
    with store.open("case-0001", "anna") as again:
        assert again.recovered is None
    assert store.case("case-0001").unsaved == ()


def test_a_damaged_autosave_does_not_stop_the_work(tmp_path):
    store = make_store(tmp_path, 1)
    with store.open("case-0001", "anna") as session:
        saved = session.autosave(lesion(1))
    (store.layout.autosave / saved.file).write_bytes(b"half")
    with store.open("case-0001", "anna") as session:
        assert session.recovered is None
        assert session.start_from == "an empty mask"


def test_two_programs_that_save_at_once_overwrite_nothing(tmp_path):
    store = make_store(tmp_path, 1)
    with child(SAVE, store.folder, "anna") as one, child(SAVE, store.folder, "bert") as other:
        assert (one.wait(), other.wait()) == (0, 0)
    case = store.case("case-0001")
    assert [revision.number for revision in case.revisions] == list(range(1, 9))
    for rater in ("anna", "bert"):
        own = [revision for revision in case.revisions if revision.rater == rater]
        for number, revision in enumerate(own):
            assert np.array_equal(store.read_revision("case-0001", revision.number).mask(), lesion(number))
    assert store.check().findings == ()


def test_revisions_do_not_overwrite_each_other_even_where_locks_do_not_work(tmp_path, monkeypatch):
    store = make_store(tmp_path, 1)
    monkeypatch.setattr("COVIDLesionSegLib.locks._lock", lambda descriptor: True)
    monkeypatch.setattr("COVIDLesionSegLib.locks._is_same_file", lambda descriptor, path: True)
    with ThreadPoolExecutor(4) as pool:
        saved = list(pool.map(lambda n: store.save_revision("case-0001", lesion(n), f"rater{n}"), range(6)))
    assert sorted(revision.number for revision in saved) == [1, 2, 3, 4, 5, 6]
    store.check()
    case = Store(store.folder).case("case-0001")
    assert sorted(case.raters) == [f"rater{n}" for n in range(6)]
    for revision in saved:
        number = int(revision.rater[-1])
        assert np.array_equal(store.read_revision("case-0001", revision.number).mask(), lesion(number))


def test_time_is_counted_without_pauses_and_goes_on_after_a_crash(tmp_path, monkeypatch):
    store = make_store(tmp_path, 1)
    clock = [100.0]
    monkeypatch.setattr("COVIDLesionSegLib.cases.session.time.monotonic", lambda: clock[0])
    session = store.open("case-0001", "anna")
    clock[0] += 60
    session.pause()
    clock[0] += 1000
    session.resume()
    clock[0] += 30
    session.autosave(lesion(1))
    store.unlock("case-0001")
    again = store.open("case-0001", "anna")
    clock[0] += 10
    assert again.save(lesion(1)).seconds == 100
    clock[0] += 5
    assert again.save(lesion(2)).seconds == 5


def test_an_excluded_case_is_not_opened(tmp_path):
    store = make_store(tmp_path, 1)
    store.exclude("case-0001", "motion artifacts")
    with pytest.raises(InputError, match="excluded"):
        store.open("case-0001", "anna")


def test_unlocking_says_whose_lock_it_was(tmp_path):
    store = make_store(tmp_path, 1)
    lock_of_another_machine(store, "case-0001", age_s=30)
    assert "bert on ward-7" in store.unlock("case-0001")
    assert store.unlock("case-0001") == "case-0001 was not open."
