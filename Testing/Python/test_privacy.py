"""Names, ids, dates and private tags of a DICOM series are found in nothing that is written, said or logged.

Identity is meant to be in two places only: a DICOM SEG carries the patient module of its CT (and no private tag), and
the folder ``private`` of a case store holds what was asked for with ``keep_identity``.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import sys
import tempfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from synthetic_dicom import write_series
from training_fixtures import PATIENTS, register_tiny_model, tiny_config, write_cases

from COVIDLesionSegLib.cases import Store
from COVIDLesionSegLib.cases.gate import GateRule
from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.errors import ModelError
from COVIDLesionSegLib.imaging import read_labels, read_volume
from COVIDLesionSegLib.worker import WorkerSettings, blocking_client, wait
from COVIDLesionSegLib.worker.protocol import geometry_to_json

# what is planted; words that turn up by chance in no packed voxels
SECRETS = {
    "PatientName": "ZZQUINTILIAN^MAXIMA",
    "PatientID": "MRN-77310042",
    "PatientBirthDate": "19510203",
    "OtherPatientIDs": "XK-550017",
    "PatientAddress": "ZZLINDENALLEE",
    "ReferringPhysicianName": "ZZBRACKWEDE^OTTO",
    "InstitutionName": "ZZSPITALOST",
    "AccessionNumber": "ACC8810273",
    "StudyDate": "20210417",
    "StudyDescription": "ZZSTUDYWORDS",
    "SeriesDescription": "ZZSERIESWORDS",
    "StationName": "ZZSTATION9",
}
PRIVATE = "ZZPRIVATETAG"
WORDS = ("QUINTILIAN", "MAXIMA", "77310042", "19510203", "1951-02-03", "550017", "8810273", "20210417", "2021-04-17")
WORDS += (PRIVATE, "ZZLINDEN", "ZZBRACK", "ZZSPITAL", "ZZSTUDY", "ZZSERIES", "ZZSTATION")
# the folders' names are somebody's, too: the terminal may say them, since it is asked about them; no file may
FOLDER = "SEMPRONIA_19481109"
NAMES = ("SEMPRONIA", "19481109", "LUCRETIA")


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """What all commands, a store, a training and a worker leave behind: the folders that they wrote into."""
    root = tmp_path_factory.mktemp("journey")
    written = {name: root / name for name in ("out", "store", "temporary", "home", "worker", "terminal")}
    for name in written.keys() - {"store"}:
        written[name].mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            patch.setenv(name, str(written["home"]))
        patch.setenv("TMPDIR", str(written["temporary"]))
        patch.setattr(tempfile, "tempdir", str(written["temporary"]))
        patch.setenv("COVIDLESIONSEG_MODELS", str(root / "registry"))
        patch.setitem(sys.modules, "torch.utils.tensorboard", written_board())
        register_tiny_model(root / "model")
        kept = Kept()
        patch.setattr(sys, "stdout", kept)
        patch.setattr(sys, "stderr", kept)
        handler = logging.StreamHandler(kept)
        logging.getLogger().addHandler(handler)
        try:
            series = write_patients(root / "clinic")
            use_commands(root, series, written["out"])
            use_store(root, series, written["store"])
            use_worker(series[0], written["worker"])
        finally:
            logging.getLogger().removeHandler(handler)
        (written["terminal"] / "said.txt").write_text(kept.getvalue())
    return written


class Kept(io.StringIO):
    """All that is said; a stream that belongs to no terminal."""

    encoding = "utf-8"


def written_board() -> types.ModuleType:
    """TensorBoard's place, which keeps in one text file what is given to it."""

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            self.file = Path(folder) / "events.txt"

        def add_scalar(self, *given: object) -> None:
            with self.file.open("a") as file:
                file.write(f"{given}\n")

        def add_image(self, title: str, _image: object, *given: object, **_: object) -> None:
            self.add_scalar(title, *given)

        def flush(self) -> None: ...

        def close(self) -> None: ...

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    return module


def write_patients(folder: Path) -> list[Path]:
    """A DICOM series for each of four patients, in folders with their names; lesion and lung masks beside them."""
    write_cases(folder / "drawn")
    series = []
    for number, patient in enumerate(PATIENTS):
        hu = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "drawn" / f"{patient}_ct.nii.gz")))
        place = folder / f"{FOLDER}_{number}"
        tags = SECRETS | {"PatientID": f"{SECRETS['PatientID']}-{number}"}
        write_series(place, hu, change=lambda dataset, _: plant(dataset), **tags)
        grid = read_volume(place).geometry
        for kind in ("lesion", "lungs"):
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "drawn" / f"{patient}_{kind}.nii.gz")))
            sitk.WriteImage(grid.to_sitk(array), str(folder / f"{FOLDER}_{number}_{kind}.nii.gz"))
        series.append(place)
    return series


def plant(dataset: pydicom.Dataset) -> None:
    dataset.private_block(0x0011, "ZZVENDOR", create=True).add_new(0x01, "LO", PRIVATE)


def beside(place: Path, kind: str) -> Path:
    return place.with_name(f"{place.name}_{kind}.nii.gz")


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0, words


def use_commands(root: Path, series: list[Path], out: Path) -> None:
    """Segment, measure, compare and evaluate, with ids that say nothing; one CT that fails."""
    manifest, masks = root / "studies.csv", [beside(place, "lesion") for place in series]
    rows = [f"case{n},{place},{beside(place, 'lungs')}" for n, place in enumerate(series[:2])]
    manifest.write_text("id,ct,lungs\n" + "\n".join([*rows, f"gone,{root / 'clinic' / 'LUCRETIA'},"]))
    maps = ("--probability", "--uncertainty", "--quiet", "--device", "cpu")
    assert main(["segment", "--manifest", str(manifest), "-o", str(out / "segmented"), *maps, "--json"]) == 3
    words = ("--lungs", beside(series[0], "lungs"), "--quiet", "--device", "cpu")
    run("segment", series[0], "-o", out / "named.seg.nrrd", *words, "--json")
    run("segment", series[0], "-o", out / "identity" / "seg.dcm", *words, "--json")
    tables = ("--csv", out / "report.csv", "--lesions-csv", out / "lesions.csv", "--json")
    run("report", series[0], masks[0], "--lungs", beside(series[0], "lungs"), "-o", out / "report.html", *tables)
    manifest.write_text("id,prediction,reference\n" + f"case0,{masks[0]},{masks[0]}\n")
    run("evaluate", "--manifest", manifest, "-o", out / "evaluation.csv")


def use_store(root: Path, series: list[Path], folder: Path) -> None:
    """Add, predict, correct, train, export and check."""
    store = Store.create(folder)
    for place in series:
        case = store.add(place, lungs=beside(place, "lungs"), keep_identity=place is series[0])
        with store.open(case.id, "anna") as session:
            mask = read_labels(beside(place, "lesion")).mask()
            session.autosave(mask)
            session.save(mask)
    run("cases", "predict", folder, "--device", "cpu", "--quiet")
    config = tiny_config(Path("unused"), data={"validation_patients": ()}, run={"steps": 4, "validation_interval": 2})
    rule = GateRule(dice_margin=1.0, minimum_patients=1, lesion_free_gain_ml=1e9)
    store.fine_tune(config=config, validation=["case-0004"], rule=rule)
    run("cases", "list", folder, "--json")
    run("cases", "check", folder)
    run("cases", "export", folder, root / "out" / "exported")


def use_worker(place: Path, folder: Path) -> None:
    """One request that is done and one that fails; the report for whoever looks for the error."""
    volume, lungs = read_volume(place), read_labels(beside(place, "lungs")).array
    client = blocking_client(WorkerSettings(), "lesions")
    given = {"geometry": geometry_to_json(volume.geometry), "device": "cpu", "name": volume.name}
    arrays = {"volume": volume.array, "lungs": lungs.astype(np.uint8)}
    try:
        reply = wait(client.request("segment", given, arrays))
        with pytest.raises(ModelError):
            wait(client.request("segment", given | {"model": str(place / "absent.safetensors")}, arrays))
        (folder / "reply.json").write_text(json.dumps(reply.values, default=str))
        (folder / "report.txt").write_text(client.report())
    finally:
        client.kill()


def contents(path: Path) -> list[bytes]:
    """The bytes of a file, and what is packed in them."""
    raw = path.read_bytes()
    found = [raw]
    if raw[:2] == b"\x1f\x8b":
        found.append(gzip.decompress(raw))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            found += [archive.read(name) for name in archive.namelist()]
    return found


def leaks(folder: Path, words: tuple[str, ...] = WORDS + NAMES, skip: tuple[str, ...] = ()) -> list[str]:
    """Where a planted word is found, in a name or in a file."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith(skip):
            continue
        found += [f"{word} in the name {name}" for word in words if word in name]
        if path.is_file():
            texts = contents(path)
            for word in words:
                coded = word.encode(), word.encode("utf-16-le")
                found += [f"{word} in {name}"] if any(code in text for text in texts for code in coded) else []
    return found


@pytest.mark.parametrize(
    ("place", "words", "skip"),
    [
        # a DICOM SEG and the folder private are where identity is meant to be
        ("out", WORDS + NAMES, ("identity/seg.dcm",)),
        ("store", WORDS + NAMES, ("private/",)),
        ("temporary", WORDS + NAMES, ()),
        ("home", WORDS + NAMES, ()),
        ("worker", WORDS + NAMES, ()),
        ("terminal", WORDS, ()),
    ],
)
def test_nothing_that_was_planted_is_found_in_what_was_written(journey, place, words, skip):
    assert leaks(journey[place], words, skip) == []


def test_the_search_finds_what_is_there(journey):
    found = " ".join(leaks(journey["out"].parent / "clinic"))
    for word in (*(word for word in WORDS if not word.startswith(("1951-", "2021-"))), "SEMPRONIA", "19481109"):
        assert word in found
    written = {path.name for folder in journey.values() for path in folder.rglob("*")}
    wanted = {"case0_lesions.nii.gz", "case0_lesions_probability.nii.gz", "segment_state.jsonl", "named.seg.nrrd"}
    wanted |= {"report.html", "report.csv", "lesions.csv", "evaluation.csv", "said.txt", "events.txt", "reply.json"}
    assert wanted | {"log.jsonl", "case.json", "model.safetensors", "report.txt"} <= written


def test_a_dicom_seg_carries_the_patient_and_no_private_tag(journey):
    dataset = pydicom.dcmread(journey["out"] / "identity" / "seg.dcm")
    assert (str(dataset.PatientName), dataset.PatientID) == (SECRETS["PatientName"], f"{SECRETS['PatientID']}-0")
    assert not [element for element in dataset.iterall() if element.tag.is_private]
    text = str(dataset)
    assert not [word for word in (PRIVATE, "ZZLINDENALLEE", "ZZSPITALOST", "ZZSTATION9") if word in text]


def test_the_stores_private_folder_holds_what_was_asked_for_of_one_case_only(journey):
    files = sorted((journey["store"] / "private" / "identity").iterdir())
    assert [path.name for path in files] == ["case-0001.json"]
    assert SECRETS["PatientName"] not in files[0].read_text()
