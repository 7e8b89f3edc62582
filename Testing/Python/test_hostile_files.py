"""Files that lie, through the command: one sentence and the right status, never a trace-back, a signal or a wait.

Each case runs in a forked process with limits of time and memory (:mod:`hostile_runner`). What nobody foresaw shows as
"unexpected" in the sentence, which counts as a failure here: the net below the commands is for what these do not know.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hostile_documents
import hostile_images
import numpy as np
import pytest
from conftest import REPOSITORY
from hostile_images import Maker

SECONDS = 30
MEGABYTES = 1500
# the limit counts what is allocated; this what is touched, with the 300 MB of the libraries
MOST_RESIDENT = 1300
EXIT_TERMINATED = 143


class Runner:
    """Speaks to the process that forks; see there for what it answers."""

    def __init__(self) -> None:
        paths = [str(REPOSITORY / "COVIDLesionSeg"), str(Path(__file__).parent)]
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("hostile_runner.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )

    def __call__(self, words: Sequence[str | Path], folder: Path, **more: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        ask = {
            "argv": [str(word) for word in words],
            "cwd": str(folder),
            "environment": {},
            "seconds": SECONDS,
            "megabytes": MEGABYTES,
            "terminate_after": None,
        }
        self._process.stdin.write(json.dumps(ask | more) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def run() -> Iterator[Runner]:
    if sys.platform != "linux":
        pytest.skip("the memory of a process is limited as only Linux can")
    runner = Runner()
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A sound study and a small model."""
    from COVIDLesionSegLib.models import ModelCard, save_model
    from COVIDLesionSegLib.networks import COPLENet

    folder: Path = tmp_path_factory.mktemp("base")
    chest = hostile_images.chest()
    arrays = {"ct": chest, "mask": hostile_images.mask(), "lungs": (chest == -850).astype(np.uint8)}
    for name, array in arrays.items():
        (folder / f"{name}.nii").write_bytes(hostile_images.nifti_bytes(array))
    network = COPLENet(channels=(2, 4, 8, 16, 32)).eval()
    save_model(network, ModelCard("tiny", "Tiny", "coplenet", network.arguments), folder / "tiny.safetensors")
    return folder


def complaint(answer: dict[str, Any], folder: Path, status: Sequence[int]) -> str:
    """What is wrong with the end of a command, or ""."""
    lines = [line for line in answer["error"].splitlines() if not line.startswith(("WARNING: ", "note: "))]
    found = {
        "too late": answer["late"],
        f"status {answer['status']}": answer["status"] not in status,
        "a trace-back": "Traceback" in answer["error"],
        "not foreseen": "unexpected" in answer["error"],
        "not one line": answer["status"] == 2 and (len(lines) != 1 or not lines[0].startswith("error: ")),
        f"{answer['megabytes']} MB": answer["megabytes"] > MOST_RESIDENT,
        "left unfinished": any(".part." in path.name for path in folder.rglob("*")),
        "code was run": (folder / "caught").exists(),
    }
    wrong = ", ".join(what for what, holds in found.items() if holds)
    return f"{wrong}; {answer['error'][-600:]}" if wrong else ""


def grouped(named: Iterator[tuple[Any, ...]], size: int) -> list[Any]:
    """Some cases a test, so that reports stay short; a test lists all that went wrong in it."""
    parts = iter(lambda: tuple(itertools.islice(named, size)), ())
    return [pytest.param(part, id=str(part[0][0])) for part in parts]


def once() -> Iterator[tuple[str, str, Maker]]:
    """Of the images every lie once, of a CT or of a mask; the long suite has both."""
    both: dict[str, list[tuple[str, str, Maker]]] = {}
    for name, kind, make in hostile_images.images():
        both.setdefault(name, []).append((name, kind, make))
    for index, entries in enumerate(both.values()):
        # CTs that pass are measured and drawn, which takes a second; so of three lies one is told of a CT
        yield entries[0 if index % 3 == 0 else -1]


def check_images(run: Runner, base: Path, folder: Path, part: Sequence[tuple[str, str, Maker]]) -> None:
    wrong = []
    for index, (name, kind, make) in enumerate(part):
        here = folder / str(index)
        here.mkdir()
        path = make(here)
        ct = ["report", path, base / "mask.nii", "-o", here / "page.html"]
        answer = run(ct if kind == "ct" else ["evaluate", path, base / "mask.nii"], here)
        if found := complaint(answer, here, (0, 2)):
            wrong.append(f"{name} as a {kind}: {found}")
        if answer["status"] == 2 and (here / "page.html").exists():
            wrong.append(f"{name}: refused, but there is a page")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", grouped(once(), 25))
def test_images_that_lie(run, base, tmp_path, part):
    check_images(run, base, tmp_path, part)


@pytest.mark.long
@pytest.mark.parametrize("part", grouped(hostile_images.images(), 50))
def test_images_that_lie_as_ct_and_as_mask(run, base, tmp_path, part):
    check_images(run, base, tmp_path, part)


@pytest.mark.parametrize("part", grouped(((case.name, case) for case in hostile_documents.cases()), 25))
def test_other_files_and_words_that_lie(run, base, tmp_path, part):
    wrong = []
    for index, (name, case) in enumerate(part):
        here = tmp_path / str(index)
        here.mkdir()
        words = case.make(here, base)
        before = {path: path.lstat().st_mode for path in here.rglob("*") if not path.is_file() or path.is_symlink()}
        models = {"COVIDLESIONSEG_MODELS": str(here / "models")}
        answer = run(
            words, here, environment=models | {key: v.replace("{}", str(here)) for key, v in case.environment.items()}
        )
        if found := complaint(answer, here, case.status):
            wrong.append(f"{name}: {found}")
        changed = [
            path.name for path, mode in before.items() if not os.path.lexists(path) or path.lstat().st_mode != mode
        ]
        if changed:
            wrong.append(f"{name}: {changed} are something else now")
        if outside := {path.name for path in tmp_path.iterdir()} - {str(number) for number in range(index + 1)}:
            wrong.append(f"{name}: wrote {outside} outside its folder")
    assert not wrong, "\n".join(wrong)


# --- SIGTERM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0.0, 0.05, 0.1, 0.2, 0.4, 0.8])
@pytest.mark.parametrize("command", ["segment", "report", "batch", "import"])
def test_sigterm_ends_every_phase_without_leftovers(run, base, tmp_path, command, after):
    model = ["--model", base / "tiny.safetensors", "--lungs", base / "lungs.nii", "--quiet"]
    manifest = tmp_path / "m.csv"
    rows = [f"c{number},{base}/ct.nii,{base}/mask.nii,{base}/lungs.nii" for number in range(20)]
    manifest.write_text("\n".join(["id,ct,lesion,lungs", *rows]))
    words = {
        "segment": ["segment", base / "ct.nii", "-o", tmp_path / "out", *model, "--probability", "--uncertainty"],
        "report": [
            "report",
            base / "ct.nii",
            base / "mask.nii",
            "--lungs",
            base / "lungs.nii",
            "-o",
            tmp_path / "o.html",
        ],
        "batch": ["report", "--manifest", manifest, "-o", tmp_path / "out", "--workers", "2", "--quiet"],
        "import": ["models", "import", base / "tiny.safetensors"],
    }[command]
    models = {"COVIDLESIONSEG_MODELS": str(tmp_path / "models")}
    answer = run(words, tmp_path, environment=models, terminate_after=after, seconds=60, megabytes=20_000)
    # a command that was faster is done; one that had not begun to listen is ended by the signal itself
    assert answer["status"] in (0, EXIT_TERMINATED, -signal.SIGTERM), answer["error"]
    if answer["status"] == EXIT_TERMINATED:
        assert answer["error"].splitlines()[-1] == "Terminated."
    assert "Traceback" not in answer["error"]
    assert not [path for path in tmp_path.rglob("*") if ".part." in path.name]


def test_sigterm_in_the_middle_of_writing_removes_the_unfinished_file(tmp_path):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from COVIDLesionSegLib import cli, files\n"
        "from COVIDLesionSegLib.cli import evaluate\n"
        "def work(arguments):\n"
        "    with files.atomic_path('t.csv') as path:\n"
        "        path.write_text('half')\n"
        "        print('writing', flush=True)\n"
        "        time.sleep(60)\n"
        "evaluate.run = work\n"
        "sys.exit(cli.main(['evaluate', 'a', 'b']))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "COVIDLesionSeg")}
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert [path.name[-5:] for path in tmp_path.iterdir()] == ["t.csv"]
    process.terminate()
    assert process.wait(30) == EXIT_TERMINATED
    process.stdout.close()
    assert list(tmp_path.iterdir()) == []


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_an_existing_output_keeps_its_mode_and_a_link_leads_to_what_it_names(run, base, tmp_path):
    (tmp_path / "kept.csv").write_text("old")
    (tmp_path / "kept.csv").chmod(0o640)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.csv").symlink_to("folder/t.csv")
    for name in ("kept.csv", "link.csv"):
        assert run(["evaluate", base / "mask.nii", base / "mask.nii", "-o", name], tmp_path)["status"] == 0
    assert (tmp_path / "kept.csv").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "kept.csv").read_text().startswith("case,")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "folder" / "t.csv").read_text().startswith("case,")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["t.csv"]


def test_a_pipe_with_a_reader_is_not_replaced(run, base, tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    reader = threading.Thread(target=lambda: os.close(os.open(tmp_path / "t.csv", os.O_RDONLY | os.O_NONBLOCK)))
    reader.start()
    answer = run(["evaluate", base / "mask.nii", base / "mask.nii", "-o", "t.csv"], tmp_path)
    reader.join()
    assert answer["status"] == 2
    assert "is a pipe, which is not replaced by a file" in answer["error"]
    assert (tmp_path / "t.csv").is_fifo()


# --- names -----------------------------------------------------------------------------------------------------------

NAME = "Mustermann_Erika"


def test_a_name_in_a_files_name_gets_into_no_page(run, base, tmp_path):
    files = {name: tmp_path / f"{NAME}_{name}.nii" for name in ("ct", "mask", "lungs")}
    for name, path in files.items():
        path.write_bytes((base / f"{name}.nii").read_bytes())
    words = ["report", files["ct"], files["mask"], "--lungs", files["lungs"], "-o", tmp_path / "page.html", "--json"]
    answer = run(words, tmp_path)
    assert answer["status"] == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Lung lesion report: study" in page
    assert NAME not in page
    assert NAME not in answer["out"]


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_failed_rows_files_get_into_no_table_and_no_state(run, base, tmp_path, command):
    secret = tmp_path / f"{NAME}_1958" / f"{NAME}.nii.gz"
    secret.parent.mkdir()
    secret.write_bytes(b"no image")
    sound = {"evaluate": f"{base}/mask.nii,{base}/mask.nii", "report": f"{base}/ct.nii,{base}/mask.nii"}[command]
    columns = {"evaluate": "prediction,reference", "report": "ct,lesion"}[command]
    manifest = hostile_documents.table(tmp_path / "m.csv", f"id,{columns}", f"a,{sound}", f"b,{secret},{secret}")
    output = {"evaluate": tmp_path / "t.csv", "report": tmp_path / "out"}[command]
    state = {"evaluate": tmp_path / "t.csv.state.jsonl", "report": output / "state.jsonl"}[command]
    answer = run([command, "--manifest", manifest, "-o", output, "--json", "--quiet", "--workers", "1"], tmp_path)
    assert answer["status"] == 3, answer["error"]
    assert '"b"' in answer["out"]
    written = [answer["out"], state.read_text(), *([output.read_text()] if output.is_file() else [])]
    assert not [text for text in written if "Mustermann" in text or "no_image" in text]
    # who sits at the terminal sees which file it was
    assert f"{NAME}.nii.gz" in answer["error"]
