"""The report's page and the commands ``report`` and ``compare-timepoints``."""

from __future__ import annotations

import builtins
import csv
import dataclasses
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest

from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.imaging import Geometry, LabelVolume, Volume, read_labels, write_labels, write_volume
from COVIDLesionSegLib.measurement.longitudinal import TimePoint
from COVIDLesionSegLib.measurement.report.document import LISTED_LESIONS, Report

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a page holds, and whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def chest(shift=0.0):
    """A small chest of boxes with two lesions; 3 mm voxels."""
    hu = np.full((36, 40, 60), 40, np.int16)
    lungs = np.zeros(hu.shape, np.uint8)
    lungs[3:33, 6:34, 4:26], lungs[3:33, 6:34, 34:56] = 1, 2
    hu[lungs > 0] = -850
    rng = np.random.default_rng(0)
    for z, y, x in rng.integers((3, 6, 4), (31, 32, 54), (60, 3)):
        hu[z : z + 2, y : y + 2, x : x + 2] = -100
    lesion = np.zeros(hu.shape, bool)
    lesion[5:12, 22:32, 6:18] = lesion[20:24, 24:30, 40:50] = True
    hu[5:12, 22:32, 6:18], hu[20:24, 24:30, 40:50] = -550, -50
    geometry = Geometry((60, 40, 36), (3.0, 3.0, 3.0), (-90.0 + shift, -60.0, 0.0))
    return Volume(hu, geometry, "chest"), lesion, lungs


@pytest.fixture(scope="module")
def page_of_everything():
    volume, lesion, lungs = chest()
    before_volume, before, _ = chest(shift=6.0)
    before = before.copy()
    before[20:24] = False
    report = Report(
        "case 1",
        TimePoint(volume, lesion, lungs),
        reference=np.roll(lesion, 1, axis=2),
        earlier=TimePoint(Volume(before_volume.array + np.int16(1), before_volume.geometry), before, lungs),
        notes=["The spacing is uneven."],
        created=datetime(2020, 1, 2, 3, 4, tzinfo=UTC),
    )
    return report, report.to_html()


def test_page_is_whole_and_loads_nothing(page_of_everything):
    page = Page(page_of_everything[1])
    assert page.open == []
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert any(meta.get("http-equiv") == "Content-Security-Policy" for meta in page.all("meta"))
    assert not {"script", "link", "iframe", "object", "a"} & {tag for tag, _ in page.tags}
    pictures = page.all("img")
    assert len(pictures) == 8  # overlay, 2 lesions, zones, histogram, change chart, change map, error map
    for picture in pictures:
        assert picture["src"].startswith("data:image/png;base64,")
        assert picture["alt"]
        assert int(picture["width"]) > 100
    style = re.search(r"<style>(.*?)</style>", page_of_everything[1], re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_page_has_its_sections_and_says_research_use_only(page_of_everything):
    page = Page(page_of_everything[1])
    titles = re.findall(r"<h2>(.*?)</h2>", page_of_everything[1])
    assert titles == [
        "Key figures",
        "Pictures",
        "Lungs, zones and lobes",
        "Density",
        "Lesions",
        "Change since the earlier study",
        "Comparison with the reference",
        "Definitions",
        "Run record",
    ]
    assert "Research use only." in page.words
    assert "Made 2020-01-02 03:04 UTC" in page.words
    assert "The spacing is uneven." in page.words
    for column in page.all("th"):
        assert column["scope"] in ("col", "row")


def test_figures_on_the_page_are_those_measured(page_of_everything):
    report, text = page_of_everything
    words = " ".join(Page(text).words.split())
    quantities = report.quantities
    # 840 and 240 voxels of 0.027 mL
    assert quantities["lesion_volume"]["value"] == pytest.approx(29.16)
    assert re.search(r"Lesion volume ?29\.2 mL", words)
    assert f"{quantities['involvement']['value']:.1f} %" in words
    assert "77.8 %" in words  # ground glass: 840 of 1080 voxels
    assert "right lung, lower zone" in words
    assert "-300 HU" in words
    changes = report.comparison["changes"]
    assert changes["lesions_new"]["value"] == 1
    assert "+6.5 mL" in words
    assert f"{report.evaluation['dice']['value']:.3f}" in words
    assert "10.1186/s12879-021-06556-z" in words
    assert "Lesion voxels at or above -300 HU" in words


def test_lobe_map_and_consolidation_hold_for_the_change_too():
    volume, lesion, lungs = chest()
    lobes = 20 + 10 * lungs
    report = Report(
        "x",
        TimePoint(volume, lesion, lungs, lobes),
        earlier=TimePoint(volume, lesion & (lungs == 1), lungs, lobes),
        lobe_map={30: "right_lower_lobe", 40: "left_lower_lobe"},
        consolidation_from=-600,
    )
    assert report.comparison["later"] == report.quantities
    assert "at or above -600 HU" in report.comparison["changes"]["consolidation_volume_change"]["definition"]


def test_what_was_not_measured_is_a_dash_with_its_reason():
    volume, lesion, _ = chest()
    words = " ".join(Page(Report("x", TimePoint(volume, lesion, None)).to_html()).words.split())
    assert "no lung mask was given" in words
    assert re.search("Lung involved ?\N{EN DASH}", words)
    assert "0.0 %" not in words


def test_no_lesion_still_gives_a_page():
    volume, lesion, lungs = chest()
    report = Report("x", TimePoint(volume, lesion & False, lungs), reference=lesion)
    page = Page(report.to_html())
    assert page.open == []
    assert "There is no lesion." in page.words
    assert "the prediction is empty" in page.words
    assert "\N{INFINITY}" in page.words


def test_everything_from_outside_is_escaped():
    volume, lesion, lungs = chest()
    evil = "<script>alert('x')</script>&\""
    report = Report(evil, TimePoint(volume, lesion, lungs), notes=[evil])
    page = Page(report.to_html())
    assert "script" not in {tag for tag, _ in page.tags}
    assert evil in page.words
    assert page.open == []


def test_many_lesions_are_counted_where_they_are_not_listed():
    volume, lesion, lungs = chest()
    lesion = lesion & False
    lesion[4:32:4, 8:34:4, 6:26:4] = True
    count = 7 * 7 * 5
    words = Page(Report("x", TimePoint(volume, lesion, lungs)).to_html()).words
    assert f"{count - LISTED_LESIONS} smaller lesions" in words


def test_page_without_matplotlib_has_all_figures_but_the_pictures(monkeypatch):
    real = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    volume, lesion, lungs = chest()
    report = Report("x", TimePoint(volume, lesion, lungs))
    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    page = Page(report.to_html())
    assert page.all("img") == []
    assert "Pictures need matplotlib" in page.words
    assert "29.2 mL" in page.words


def test_json_of_a_report_holds_everything_as_plain_values(page_of_everything):
    document = page_of_everything[0].to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["quantities"]["lesion_volume"]["unit"] == "mL"
    assert document["comparison"]["registration"]["kind"] == "rigid"
    assert "map" not in document["comparison"]
    assert document["evaluation"]["dice"]["status"] == "ok"


# The commands


@pytest.fixture
def files(tmp_path):
    """A study in a folder whose name tells a patient's name."""
    folder = tmp_path / "DOE^JANE 1970"
    folder.mkdir()
    for when, shift in (("earlier", 6.0), ("later", 0.0)):
        volume, lesion, lungs = chest(shift)
        if when == "earlier":
            lesion[20:24] = False
        write_volume(volume, folder / f"{when}_ct.nii.gz")
        write_labels(LabelVolume(lesion.astype(np.uint8), volume.geometry), folder / f"{when}_lesions.nii.gz")
        write_labels(LabelVolume(lungs, volume.geometry), folder / f"{when}_lungs.nii.gz")
    return folder


def names(folder, when):
    return [str(folder / f"{when}_{what}.nii.gz") for what in ("ct", "lesions", "lungs")]


def test_report_command_writes_page_tables_and_json(files, tmp_path, capsys):
    ct, lesion, lungs = names(files, "later")
    out = tmp_path / "out"
    arguments = ["report", ct, lesion, "--lungs", lungs, "--reference", lesion, "--json"]
    arguments += ["--earlier", ",".join(names(files, "earlier"))]
    arguments += ["-o", str(out / "r.html"), "--csv", str(out / "r.csv"), "--lesions-csv", str(out / "l.csv")]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["case"] == "study"
    assert document["quantities"]["lesion_volume"]["value"] == pytest.approx(29.16)
    assert document["comparison"]["changes"]["lesions_new"]["value"] == 1
    with (out / "r.csv").open(newline="") as file:
        rows = {row["region"]: row for row in csv.DictReader(file)}
    assert float(rows["right_lung"]["lesion_volume [mL]"]) == pytest.approx(840 * 0.027)
    assert len((out / "l.csv").read_text().splitlines()) == 3
    # the folder's name, a patient's, is nowhere
    for text in (printed.out, printed.err, *((out / n).read_text() for n in ("r.html", "r.csv", "l.csv"))):
        assert "^JANE" not in text
        assert str(tmp_path) not in text


def test_report_shows_the_run_record_that_stands_beside_the_mask_and_nothing_else(files, tmp_path):
    from COVIDLesionSegLib.inference.record import RunRecord

    ct, lesion, lungs = names(files, "later")
    page = tmp_path / "r.html"
    arguments = ["report", ct, lesion, "--lungs", lungs, "-o", str(page)]
    (files / "later_lesions.json").write_text(json.dumps({"PatientName": "DOE^JANE"}))
    assert main(arguments) == 0
    assert "^JANE" not in page.read_text()
    assert main([*arguments, "--record", str(files / "later_lesions.json")]) == 2
    record = RunRecord({}, {"id": "the-model"}, {}, {}, {}, {"network": 1.5})
    value = record.to_json() | {"PatientName": "DOE^JANE"}
    assert {field.name for field in dataclasses.fields(record)} <= value.keys()
    (files / "later_lesions.json").write_text(json.dumps(value))
    assert main(arguments) == 0
    assert "the-model" in page.read_text()
    assert "^JANE" not in page.read_text()


@pytest.fixture
def manifest(files):
    rows = ["id,ct,lesion,lungs,earlier_ct,earlier_lesion,earlier_lungs"]
    rows.append("one,later_ct.nii.gz,later_lesions.nii.gz,later_lungs.nii.gz,,,")
    before = "earlier_ct.nii.gz,earlier_lesions.nii.gz,earlier_lungs.nii.gz"
    rows.append(f"two,later_ct.nii.gz,later_lesions.nii.gz,later_lungs.nii.gz,{before}")
    rows.append("bad,later_ct.nii.gz,later_ct.nii.gz,later_lungs.nii.gz,,,")
    path = files / "cases.csv"
    path.write_text("\n".join(rows))
    return path


def test_report_of_a_manifest_goes_on_resumes_and_makes_one_table(manifest, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["report", "--manifest", str(manifest), "-o", str(out), "--csv", str(out / "all.csv"), "--quiet"]
    assert main([*arguments, "--workers", "2"]) == 3
    printed = capsys.readouterr()
    assert "2 done, 1 failed" in printed.err
    assert "failed bad: " in printed.err
    assert sorted(p.name for p in out.iterdir()) == ["all.csv", "one_report.html", "state.jsonl", "two_report.html"]
    assert "Change since" in (out / "two_report.html").read_text()
    with (out / "all.csv").open(newline="") as file:
        assert {row["case"] for row in csv.DictReader(file)} == {"one", "two"}
    (out / "one_report.html").unlink()
    before = (out / "two_report.html").stat().st_mtime_ns
    assert main([*arguments, "--workers", "1", "--resume"]) == 3
    assert "1 done, 1 skipped (done before), 1 failed" in capsys.readouterr().err
    assert (out / "one_report.html").exists()
    assert (out / "two_report.html").stat().st_mtime_ns == before


def test_compare_timepoints_command_writes_table_map_and_json(files, tmp_path, capsys):
    before, after = names(files, "earlier"), names(files, "later")
    arguments = ["compare-timepoints", *before[:2], *after[:2], "--earlier-lungs", before[2], "--later-lungs", after[2]]
    arguments += ["-o", str(tmp_path / "c.csv"), "--map", str(tmp_path / "m.nii.gz"), "--json"]
    arguments += ["--lesions-csv", str(tmp_path / "l.csv")]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["changes"]["lesion_volume_change"]["value"] == pytest.approx(240 * 0.027)
    assert document["changes"]["lesions_new"]["value"] == 1
    assert document["changes"]["translation"]["value"] == pytest.approx(6.0, abs=0.5)
    assert "^JANE" not in printed.out
    (row,) = csv.DictReader((tmp_path / "c.csv").open(newline=""))
    assert float(row["lesion_volume_change [mL]"]) == pytest.approx(6.48)
    groups = list(csv.DictReader((tmp_path / "l.csv").open(newline="")))
    assert [group["status"] for group in groups] == ["stable", "new"]
    change = read_labels(tmp_path / "m.nii.gz")
    assert not change.geometry.difference(chest()[0].geometry)
    assert set(np.unique(change.array)) <= {0, 1, 2, 3}
    assert np.count_nonzero(change.array == 2) >= 240


@pytest.fixture
def two_people(files):
    """The later study is another person's: the same lungs with other vessels, and no opacity that both have."""
    volume, _lesion, lungs = chest()
    vessels = np.zeros(lungs.shape, bool)
    for z, y, x in np.random.default_rng(1).integers((3, 6, 4), (31, 32, 54), (150, 3)):
        vessels[z : z + 2, y : y + 2, x : x + 2] = True
    volume.array[lungs > 0] = np.where(vessels, -100, -850)[lungs > 0]
    write_volume(volume, files / "later_ct.nii.gz")
    return files


def test_two_people_are_compared_only_where_that_is_asked_for(two_people, tmp_path, capsys):
    before, after = names(two_people, "earlier"), names(two_people, "later")
    compare = ["compare-timepoints", *before[:2], *after[:2], "--earlier-lungs", before[2], "--later-lungs", after[2]]
    report = ["report", *after[:2], "--lungs", after[2], "--earlier", ",".join(before), "-o", str(tmp_path / "r.html")]
    for arguments in (compare, report):
        assert main(arguments) == 2
        assert "hardly of one patient" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()
    assert main([*compare, "--assume-same-patient", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["same_patient"]
    assert found["assumed"]
    assert "vessels" in found["doubts"][0]
    assert main([*report, "--assume-same-patient", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["comparison"]["same_patient"] == found
    assert "because that was asked for, although" in (tmp_path / "r.html").read_text()


def test_dicom_series_of_two_patients_are_told_apart_by_their_ids(files, tmp_path, capsys):
    pytest.importorskip("pydicom")
    from synthetic_dicom import write_series

    paths = []
    for when, patient, shift in (("earlier", "MRN-4711", 6.0), ("later", "4712", 0.0)):
        volume, _lesion, lungs = chest(shift)
        folder = tmp_path / when
        write_series(
            folder,
            volume.array,
            [(volume.geometry.origin[0], -60.0, 3.0 * k) for k in range(len(lungs))],
            PixelSpacing=[3.0, 3.0],
            SliceThickness=3.0,
            PatientID=patient,
        )
        paths += [str(folder), str(files / f"{when}_lesions.nii.gz")]
    lungs = ["--earlier-lungs", names(files, "earlier")[2], "--later-lungs", names(files, "later")[2]]
    assert main(["compare-timepoints", *paths, *lungs]) == 2
    printed = capsys.readouterr()
    assert "different patient IDs" in printed.err
    assert main(["compare-timepoints", *paths, *lungs, "--assume-same-patient", "--json"]) == 0
    said = capsys.readouterr().out
    assert json.loads(said)["same_patient"] == {
        "assumed": True,
        "doubts": ["the DICOM files name different patient IDs"],
    }
    assert "471" not in printed.err + said.replace("0.471", "")


def test_compare_timepoints_of_a_manifest(files, tmp_path, capsys):
    path = files / "pairs.csv"
    columns = ["earlier_ct", "earlier_lesion", "later_ct", "later_lesion", "earlier_lungs", "later_lungs"]
    good = ["earlier_ct", "earlier_lesions", "later_ct", "later_lesions", "earlier_lungs", "later_lungs"]
    bad = [*good[:4], "earlier_lesions", "later_lungs"]
    rows = [",".join(["id", *columns])]
    rows += [",".join([key, *(f"{name}.nii.gz" for name in case)]) for key, case in (("good", good), ("bad", bad))]
    path.write_text("\n".join(rows))
    maps = tmp_path / "maps"
    arguments = ["compare-timepoints", "--manifest", str(path), "-o", str(tmp_path / "c.csv"), "--map", str(maps)]
    assert main([*arguments, "--workers", "1", "--quiet"]) == 3
    printed = capsys.readouterr()
    assert "1 done, 1 failed" in printed.err
    assert "can't be compared" in printed.err
    assert [p.name for p in maps.iterdir()] == ["good_change.nii.gz"]
    assert "New lesions" in printed.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "CT"], "Give CT and LESION"),
        (["report", "CT", "LESION", "--resume"], "--resume is for a --manifest"),
        (["report", "CT", "LESION", "--earlier", "CT"], "--earlier is"),
        (["report", "CT", "CT"], "labels are whole numbers"),
        (
            ["report", "CT", "LESION", "--lungs", "LUNGS", "--lobes", "LUNGS"],
            "labels 1, 2, which fit no known label map",
        ),
        (["report", "CT", "LESION", "--lungs", "LUNGS", "-o", "CT"], "is an input"),
        (["report", "--manifest", "CASES"], "-o names a folder"),
        (["report", "CT", "LESION", "--manifest", "CASES", "-o", "out"], "are columns of the manifest"),
        (["compare-timepoints", "CT", "LESION"], "Give EARLIER_CT EARLIER_LESION LATER_CT LATER_LESION"),
        (["compare-timepoints", "--manifest", "CASES", "--resume"], "no column|--resume needs -o"),
        (["report", "CT", "LESION", "--csv", "LESION"], "is an input"),
        (["report", "CT", "LESION", "--lungs", "LUNGS", "--lesions-csv", "LUNGS"], "is an input"),
        (["report", "--manifest", "CASES", "-o", "out", "--csv", "CASES"], "is an input"),
        (["compare-timepoints", "CT", "LESION", "CT", "LESION", "-o", "CT"], "is an input"),
        (["compare-timepoints", "CT", "LESION", "CT", "LESION", "--lesions-csv", "LESION"], "is an input"),
        (["compare-timepoints", "--manifest", "PAIRS", "-o", "PAIRS"], "is an input"),
    ],
)
def test_bad_usage_gets_one_sentence_and_status_2(manifest, files, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    ct, lesion, lungs = names(files, "later")
    pairs = files / "pairs.csv"
    pairs.write_text(f"earlier_ct,earlier_lesion,later_ct,later_lesion\n{ct},{lesion},{ct},{lesion}\n")
    places = {"CT": ct, "LESION": lesion, "LUNGS": lungs, "CASES": str(manifest), "PAIRS": str(pairs)}
    before = {path: path.read_bytes() for path in files.iterdir()}
    assert main([places.get(a, a) for a in arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert re.search(words, error[0])
    assert {path: path.read_bytes() for path in files.iterdir()} == before
