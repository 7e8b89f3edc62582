"""The case store where things go wrong: killed at each write, full and read-only disks, damaged files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from case_fixtures import lesion, make_store, write_ct, write_model
from conftest import REPOSITORY
from file_faults import open_folder, small_disk, without_rights

from COVIDLesionSegLib.cases import Store, case_files
from COVIDLesionSegLib.errors import COVIDLesionSegError, OutputError, ReadError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="killing at write points needs fork")


def kill_everywhere(folder: Path, stride: int) -> dict:
    inputs = folder / "inputs"
    for number in (1, 2, 3, 4):
        write_ct(inputs / f"{number}.nii.gz", number)
    write_model(inputs / "toy.safetensors")
    (folder / "scratch").mkdir()
    script = Path(__file__).with_name("case_store_faults.py")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{REPOSITORY / 'COVIDLesionSeg'}{os.pathsep}{script.parent}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(script), str(inputs), str(folder / "scratch"), str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_results(results: dict, least_points: int) -> None:
    wrong = [f"{name}: {text}" for name, found in results.items() for text in found["wrong"]]
    assert wrong == []
    assert sum(found["points"] for found in results.values()) >= least_points
    assert all(found["points"] > 2 for found in results.values())


def test_nothing_saved_is_lost_when_a_program_is_killed_while_it_writes(tmp_path):
    results = kill_everywhere(tmp_path, stride=24)
    check_results(results, least_points=500)


@pytest.mark.long
def test_nothing_saved_is_lost_at_any_write_point(tmp_path):
    results = kill_everywhere(tmp_path, stride=1)
    check_results(results, least_points=500)
    points, trials = (sum(found[name] for found in results.values()) for name in ("points", "trials"))
    print(f"{points} write points in {len(results)} operations, {trials} kills")


@pytest.mark.parametrize("damage", [b"", b'{"id": "case-0001"}', b"\x00\xff half", b"[]"])
def test_a_damaged_case_file_hides_nothing_and_is_repaired(tmp_path, damage):
    store = make_store(tmp_path)
    revision = store.save_revision("case-0001", lesion(1), "anna")
    store.set_note("case-0001", "lost with the file")
    file = store.folder / "cases" / "case-0001" / "case.json"
    file.write_bytes(damage)
    again = Store(store.folder)
    assert [case.id for case in again.cases()] == ["case-0001", "case-0002", "case-0003"]
    assert again.case("case-0001").revisions == (revision,)
    report = again.check()
    assert report.is_sound
    assert [(finding.kind, finding.where) for finding in report.findings] == [("repaired", "case-0001")]
    assert file.with_name("case.json.damaged").read_bytes() == damage
    assert Store(store.folder).check().findings == ()


def test_a_case_file_that_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    store.save_revision("case-0001", lesion(1), "anna")
    store.approve("case-0001", "chief")
    file = store.layout.case_file("case-0001")
    before, read = file.read_bytes(), case_files.read_bytes

    def held(path: Path, most: int) -> bytes:
        if path == file:
            raise PermissionError(13, "used by another process")
        return read(path, most)

    again = Store(store.folder)
    with monkeypatch.context() as patch:
        patch.setattr(case_files, "read_bytes", held)
        for refused in (again.cases, lambda: again.case("case-0001"), lambda: again.exclude("case-0001", "motion")):
            with pytest.raises(ReadError, match=r"case.json can't be read now \(used by another process\)"):
                refused()
        found = again.check().findings
        assert [(finding.kind, finding.where) for finding in found] == [("broken", "case-0001")]
    assert file.read_bytes() == before
    assert again.case("case-0001").approved == 1
    assert again.check().findings == ()


def test_a_damaged_case_file_is_kept_when_the_case_is_changed(tmp_path):
    store = make_store(tmp_path)
    file = store.layout.case_file("case-0001")
    file.write_bytes(b"half")
    store.set_note("case-0001", "anew")
    assert file.with_name("case.json.damaged").read_bytes() == b"half"
    assert Store(store.folder).case("case-0001").note == "anew"


def test_a_change_begins_with_what_the_file_says_and_not_with_what_was_read_before(tmp_path):
    store = make_store(tmp_path)
    store.set_note("case-0001", "here")
    assert store.case("case-0001").note == "here"
    # what another computer writes within one tick of the file server's clock looks the same from outside
    file = store.layout.case_file("case-0001")
    times = file.stat()
    file.write_text(file.read_text(encoding="utf-8").replace('"here"', '"away"'), encoding="utf-8")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.exclude("case-0001", "motion").note == "away"


def test_a_mask_that_changed_on_disk_is_not_read_and_named_by_the_check(tmp_path):
    store = make_store(tmp_path)
    revision = store.save_revision("case-0001", lesion(1), "anna")
    path = store.revision_path(store.case("case-0001"), revision)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ReadError, match="has changed since it was saved"):
        store.read_revision("case-0001", 1)
    report = store.check()
    assert not report.is_sound
    assert [finding.where for finding in report.findings] == ["case-0001"]


def test_a_check_that_does_not_repair_changes_nothing(tmp_path):
    store = make_store(tmp_path)
    (store.folder / "cases" / ".0011aabb.part.case-0009").mkdir()
    files = sorted(path for path in store.folder.rglob("*"))
    report = store.check(repair=False)
    assert [finding.kind for finding in report.findings] == ["repairable"]
    assert sorted(path for path in store.folder.rglob("*")) == files
    assert [finding.kind for finding in store.check().findings] == ["repaired"]
    assert store.check().findings == ()


def test_a_rest_is_left_alone_while_somebody_works(tmp_path):
    store = make_store(tmp_path)
    with store.open("case-0001", "anna"):
        (store.folder / "cases" / ".0011aabb.part.case-0009").mkdir()
        assert store.check().findings == ()
    assert len(store.check().findings) == 1


def test_a_read_only_store_can_be_looked_at(tmp_path):
    with open_folder() as folder:
        store = make_store(folder)
        store.save_revision("case-0001", lesion(1), "anna")
        for path in [store.folder, *store.folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        with without_rights():
            again = Store(store.folder)
            assert [case.state for case in again.cases()] == ["corrected", "new", "new"]
            assert again.read_revision("case-0001").mask().sum() == lesion(1).sum()
            assert again.read_ct("case-0001").array.shape == lesion(1).shape
            assert again.next("bert").case.id == "case-0002"
            assert again.check(repair=False).is_sound
            for refused in (
                lambda: again.save_revision("case-0001", lesion(1), "anna"),
                lambda: again.open("case-0001", "anna"),
                lambda: again.set_note("case-0001", "x"),
                lambda: again.add(folder / "cts" / "2.nii.gz"),
            ):
                with pytest.raises(COVIDLesionSegError, match=r"read-only|can't be written"):
                    refused()
        for path in [store.folder, *store.folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_full_disk_costs_only_what_was_being_saved(tmp_path):
    noise = np.random.default_rng(0).random(lesion(1).shape) < 0.5
    with small_disk(1.0) as folder:
        store = Store.create(folder / "store")
        store.add(write_ct(tmp_path / "1.nii.gz", 1), patient="one")
        revision = store.save_revision("case-0001", lesion(1), "anna")
        with store.open("case-0001", "anna") as session:
            session.autosave(lesion(2))
            filling = folder / "filling"
            with filling.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(4096))
            for refused in (lambda: session.save(noise), lambda: session.autosave(noise)):
                with pytest.raises(OutputError, match=r"full|No space"):
                    refused()
            again = Store(store.folder)
            assert again.case("case-0001").revisions == (revision,)
            assert again.autosaves.mask(again.autosaves.read("case-0001", "anna")).mask().sum() == lesion(2).sum()
            filling.unlink()
            assert session.save(noise).number == 2
        assert store.check().findings == ()
