"""Manifests and the machinery of batches."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from COVIDLesionSegLib.cli._batch import file_fingerprint, run_batch
from COVIDLesionSegLib.errors import CancelledError, InputError, ReadError
from COVIDLesionSegLib.manifest import case_id, read_manifest
from COVIDLesionSegLib.processes import TerminatedError, ending_by_sigterm

PACKAGE_FOLDER = Path(__file__).resolve().parents[2] / "COVIDLesionSeg"


@pytest.fixture
def folder_with_two_files(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"a")
    (tmp_path / "b.nii.gz").write_bytes(b"b")
    return tmp_path


def manifest(folder, text, encoding="utf-8"):
    path = folder / "cases.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("ct\na.nii.gz\nb.nii.gz\n", "utf-8"),
        ("ct\r\na.nii.gz\r\n\r\nb.nii.gz\r\n", "utf-8-sig"),
        ("CT ;note\na.nii.gz;x\nb.nii.gz;\n", "utf-8"),
        ("id\tct\na\ta.nii.gz\nb\tb.nii.gz\n", "utf-8"),
        ('"ct"\n"a.nii.gz"\n"./b.nii.gz"', "utf-8"),
    ],
)
def test_manifest_is_read_with_any_separator_and_mark(folder_with_two_files, text, encoding):
    cases = read_manifest(manifest(folder_with_two_files, text, encoding), ["ct"])
    assert cases == [
        {"id": "a", "ct": str(folder_with_two_files / "a.nii.gz")},
        {"id": "b", "ct": str(folder_with_two_files / "b.nii.gz")},
    ]


def test_manifest_keeps_text_columns_and_leaves_empty_optional_cells_out(folder_with_two_files):
    path = manifest(folder_with_two_files, "id,ct,lungs,series\n7,a.nii.gz,,1.2.3\n8,a.nii.gz,b.nii.gz,\n")
    cases = read_manifest(path, ["ct"], ["lungs", "series"], text=["series"])
    assert cases[0] == {"id": "7", "ct": str(folder_with_two_files / "a.nii.gz"), "series": "1.2.3"}
    assert cases[1]["lungs"] == str(folder_with_two_files / "b.nii.gz")
    assert "series" not in cases[1]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", ReadError, "lists no case"),
        ("ct\n\n", ReadError, "lists no case"),
        ("image\na.nii.gz\n", InputError, "no column ct; its columns are image, needed are ct"),
        ("ct,ct\na.nii.gz,b.nii.gz\n", InputError, "column ct more than once"),
        ("ct,lungs\na.nii.gz,\n,b.nii.gz\n", InputError, "line 3: ct"),
        ("ct\na.nii.gz,b.nii.gz\n", InputError, "line 2: 2 cells"),
        ("ct\na.nii.gz\na.nii.gz\n", InputError, "lines 2 and 3 have the same id 'a'; add an 'id' column"),
        ("id,ct\nx,a.nii.gz\nX,b.nii.gz\n", InputError, "same id 'X'; give each row its own"),
        ("id,ct\n../x,a.nii.gz\n", InputError, "can't be part of a file name"),
        ("ct\nc.nii.gz\nd.nii.gz\n", InputError, "None of the 2 cases"),
        ('ct\n"a.nii.gz\x00\n', ReadError, "not a text file"),
    ],
)
def test_bad_manifest_gets_one_clear_sentence(folder_with_two_files, text, error, words):
    with pytest.raises(error, match=words.replace("(", r"\(")):
        read_manifest(manifest(folder_with_two_files, text), ["ct"], ["lungs"])


def test_manifest_that_is_missing_or_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(ReadError, match="is not there"):
        read_manifest(tmp_path / "none.csv", ["ct"])
    with pytest.raises(ReadError, match="not UTF-8"):
        read_manifest(manifest(tmp_path, "ct\nü.nii.gz\n", "utf-16"), ["ct"])


def test_manifest_warns_of_unknown_columns_and_of_files_that_are_not_there(folder_with_two_files, caplog):
    path = manifest(folder_with_two_files, "ct,remark\na.nii.gz,fine\nz.nii.gz,gone\n")
    with caplog.at_level(logging.WARNING):
        assert [case["id"] for case in read_manifest(path, ["ct"])] == ["a", "z"]
    assert "ignored unknown columns remark" in caplog.text
    assert "1 of 2 cases name files that are not there: z: ct" in caplog.text


def test_manifest_leaves_links_as_they_are(folder_with_two_files):
    (folder_with_two_files / "P001").symlink_to(folder_with_two_files / "a.nii.gz")
    cases = read_manifest(manifest(folder_with_two_files, "ct\n./none/../P001\nb.nii.gz\n"), ["ct"])
    assert cases[0] == {"id": "P001", "ct": str(folder_with_two_files / "P001")}


def test_a_file_that_cannot_be_looked_at_is_a_matter_of_its_own_case(folder_with_two_files, caplog):
    name = "x" * 300
    cases = read_manifest(manifest(folder_with_two_files, f"id,ct\na,a.nii.gz\nx,{name}\n"), ["ct"])
    assert f"1 of 2 cases name files that are not there: x: ct {cases[1]['ct']}" in caplog.text
    assert file_fingerprint([cases[1]["ct"]]) != file_fingerprint([cases[0]["ct"]])
    with pytest.raises(ReadError, match=r"can't be read: File name too long|is not there"):
        read_manifest(folder_with_two_files / name, ["ct"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/data/case_1.nii.gz", "case_1"),
        ("case.SEG.NRRD", "case"),
        ("scan.mha", "scan"),
        ("covid_P001", "covid_P001"),
        ("study.2020.1", "study.2020.1"),
    ],
)
def test_case_is_called_after_its_file(name, expected):
    assert case_id(name) == expected


def work_of(number, log=None):
    if log is not None:
        with Path(log).open("a") as file:
            file.write(f"{number}\n")
    if number == 3:
        raise InputError("Three is not allowed.")
    if number == 4:
        raise ZeroDivisionError("oops")
    if number == 5:
        os._exit(9)
    return {"square": number * number}


def key_of(number):
    return f"case{number}"


@pytest.mark.parametrize("workers", [1, 2])
def test_batch_goes_on_after_a_failure_and_lists_it(tmp_path, workers):
    outcome = run_batch([1, 3, 2, 4], work_of, key=key_of, workers=workers, quiet=True)
    assert outcome.done == ["case1", "case2"]
    assert outcome.failed == [("case3", "Three is not allowed."), ("case4", "unexpected ZeroDivisionError: oops")]
    assert outcome.results == {"case1": {"square": 1}, "case2": {"square": 4}}
    assert outcome.exit_status == 3
    assert outcome.summary().splitlines()[0] == "2 done, 2 failed"


def test_worker_that_dies_fails_its_own_case_only():
    outcome = run_batch([1, 5, 2, 6], work_of, key=key_of, workers=2, quiet=True)
    assert outcome.done == ["case1", "case2", "case6"]
    assert outcome.failed[0][0] == "case5"
    assert "status 9" in outcome.failed[0][1]


def test_resume_does_only_what_is_missing_failed_or_changed(tmp_path):
    state, log = tmp_path / "state.jsonl", tmp_path / "log"
    data = {n: tmp_path / f"{n}.dat" for n in (1, 2, 3)}
    for n, path in data.items():
        path.write_text(str(n))
    options = {
        "key": key_of,
        "state_file": state,
        "quiet": True,
        "fingerprint": lambda n: file_fingerprint([data[n]], {"p": 1}),
    }
    work = partial(work_of, log=str(log))

    first = run_batch([1, 2, 3], work, **options)
    assert (first.done, [k for k, _ in first.failed]) == (["case1", "case2"], ["case3"])
    log.unlink()
    data[2].write_text("changed")
    second = run_batch([1, 2, 3], work, resume=True, **options)
    assert log.read_text() == "2\n3\n"
    assert second.skipped == ["case1"]
    assert second.results == {"case1": {"square": 1}, "case2": {"square": 4}}

    log.unlink()
    run_batch([1, 2], work, resume=True, complete=lambda n: n != 1, **options)
    assert log.read_text() == "1\n"
    log.unlink()
    run_batch([1, 2], work, **options)
    assert log.read_text() == "1\n2\n"


def test_resume_survives_a_line_torn_by_a_crash_but_not_a_foreign_file(tmp_path):
    state = tmp_path / "state.jsonl"
    run_batch([1, 2], work_of, key=key_of, state_file=state, quiet=True)
    text = state.read_text()
    state.write_text(text[:-10])
    outcome = run_batch([1, 2], work_of, key=key_of, state_file=state, resume=True, quiet=True)
    assert (outcome.skipped, outcome.done) == (["case1"], ["case2"])
    assert [json.loads(line)["key"] for line in state.read_text().splitlines()] == ["case1", "case2"]
    state.write_text("hello\nworld\n")
    with pytest.raises(InputError, match="not the state file"):
        run_batch([1], work_of, key=key_of, state_file=state, resume=True, quiet=True)


def test_batch_refuses_doubled_keys_and_no_workers():
    with pytest.raises(InputError, match="listed more than once"):
        run_batch([1, 1], work_of, key=key_of, quiet=True)
    with pytest.raises(InputError, match="workers is 0"):
        run_batch([1], work_of, key=key_of, workers=0, quiet=True)


@pytest.mark.parametrize("error", [CancelledError("Stopped."), BrokenPipeError("the reader has left")])
def test_cancelling_ends_the_batch_and_keeps_what_was_done(tmp_path, error):
    def work(number):
        if number == 2:
            raise error
        return {}

    state = tmp_path / "state.jsonl"
    with pytest.raises(type(error)):
        run_batch([1, 2, 3], work, key=key_of, state_file=state, quiet=True)
    assert [json.loads(line)["key"] for line in state.read_text().splitlines()] == ["case1"]


SLEEPER = """
import os, signal, sys, time
# a suite that a shell started in the background hands on an ignored SIGINT
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {package!r})
from pathlib import Path
from COVIDLesionSegLib.cli._batch import run_batch
def work(n):
    Path(f"started{{n}}").write_text(str(os.getpid()))
    time.sleep(0.1 if n == 1 else 60)
    return {{}}
if __name__ == "__main__":
    run_batch([1, 2, 3, 4], work, key=str, state_file=Path("state.jsonl"), workers=2, quiet=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="process groups are asked for the POSIX way")
def test_interrupt_ends_the_workers_and_keeps_what_was_done(tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER.format(package=str(PACKAGE_FOLDER)))
    parent = subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not all((tmp_path / f"started{n}").exists() for n in (2, 3)) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(parent.pid, signal.SIGINT)
    _, error = parent.communicate(timeout=30)
    assert parent.returncode != 0
    assert error.decode().rstrip().endswith("KeyboardInterrupt")
    assert [json.loads(line)["key"] for line in (tmp_path / "state.jsonl").read_text().splitlines()] == ["1"]
    for worker in [int((tmp_path / name).read_text()) for name in ("started2", "started3")]:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_a_signal_that_native_code_made_another_error_of_ends_the_batch():
    """An import that SIGTERM interrupts fails with ImportError: it is no error of the case that was worked on."""
    done = []

    def interrupted(item):
        done.append(item)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except TerminatedError:
            raise ImportError("initialization failed") from None
        return {}

    def whole_batch():
        with ending_by_sigterm():
            return run_batch([1, 2], interrupted, key=key_of, quiet=True)

    with pytest.raises(TerminatedError):
        whole_batch()
    assert done == [1]
