"""Tables and JSON: units in headers, nothing that could not be measured is 0, no formula gets into a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest

from COVIDLesionSegLib.imaging import Geometry, Volume
from COVIDLesionSegLib.measurement import evaluate
from COVIDLesionSegLib.measurement.quantification import quantify
from COVIDLesionSegLib.measurement.tables import (
    case_row,
    csv_text,
    lesion_rows,
    long_rows,
    number,
    plain,
    region_rows,
)


@pytest.fixture
def measured():
    hu = np.full((6, 20, 40), -800, np.int16)
    lungs = np.zeros(hu.shape, np.uint8)
    lungs[:, 2:18, 2:16], lungs[:, 2:18, 24:38] = 1, 2
    lesion = np.zeros(hu.shape, bool)
    lesion[2:4, 4:8, 4:8] = True
    return quantify(Volume(hu, Geometry((40, 20, 6), (5.0, 5.0, 10.0))), lesion, lungs)


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_one_row_a_case_has_units_in_its_header(measured):
    (row,) = read(csv_text([case_row("a", measured)]))
    assert row["case"] == "a"
    assert float(row["lesion_volume [mL]"]) == pytest.approx(8.0)
    assert float(row["mean_hu [HU]"]) == -800
    assert row["lesion_count"] == "1"
    assert "lesions" not in row
    assert row["severity_by_lobes"] == ""
    assert "lobes_missing" in row["status"].split()


def test_one_row_a_region_and_one_a_lesion(measured):
    rows = read(csv_text(region_rows("a", measured)))
    assert [row["region"] for row in rows][:4] == ["whole", "right_lung", "left_lung", "right_upper_zone"]
    by_region = {row["region"]: row for row in rows}
    assert float(by_region["right_middle_zone"]["lesion_volume [mL]"]) == pytest.approx(8.0)
    assert by_region["left_lung"]["mean_hu [HU]"] == ""
    (lesion,) = read(csv_text(lesion_rows("a", measured["lesions"]["value"])))
    assert lesion["place"] == "right lung, middle zone"
    assert float(lesion["center x [mm, LPS]"]) == pytest.approx(27.5)


def test_long_table_has_one_row_a_measurement(measured):
    rows = read(csv_text(long_rows("a", measured)))
    assert len(rows) == len(measured) - 1  # all but the list of lesions
    unit = {row["quantity"]: row["unit (UCUM)"] for row in rows}
    assert (unit["lesion_volume"], unit["mean_hu"], unit["involvement"]) == ("mL", "[hnsf'U]", "%")
    missing = next(row for row in rows if row["quantity"] == "severity_by_lobes")
    assert (missing["value"], missing["status"]) == ("", "lobes_missing")


def test_infinite_distance_stays_infinite_and_nan_stays_empty():
    some, none = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    missed, nothing = evaluate(none, some, (1, 1, 1)), evaluate(none, none, (1, 1, 1))
    rows = read(csv_text([case_row("missed", missed), case_row("nothing", nothing)]))
    assert math.isinf(float(rows[0]["hausdorff_distance_95 [mm]"]))
    assert rows[0]["status"] == "prediction_empty"
    assert rows[1]["hausdorff_distance_95 [mm]"] == ""
    assert rows[1]["status"] == "both_empty"
    text = json.dumps(plain([missed, nothing]), allow_nan=False)
    back = json.loads(text)
    assert number(back[0]["hausdorff_distance_95"]["value"]) == math.inf
    assert back[1]["hausdorff_distance_95"]["value"] is None
    assert math.isnan(number(back[1]["hausdorff_distance_95"]["value"]))


@pytest.mark.parametrize(
    ("name", "cell"),
    [("=1+1", "'=1+1"), ("+a", "'+a"), ("-a", "'-a"), ("@x", "'@x"), ("\t=x", "'=x"), ("a\r\n=b", "a =b"), ("a", "a")],
)
def test_cells_that_a_spreadsheet_would_run_are_marked_as_text(name, cell):
    text = csv_text([{"case": name, name: 1.0, "value": -5.0}])
    header, row = list(csv.reader(io.StringIO(text, newline="")))
    assert header[1] == cell
    assert row == [cell, "1", "-5"]


def test_plain_takes_numpy_apart():
    value = {"a": np.float32(0.5), "b": np.arange(3), 3: (np.int64(2), np.nan, -np.inf), "d": [True, None]}
    assert plain(value) == {"a": 0.5, "b": [0, 1, 2], "3": [2, None, "-Infinity"], "d": [True, None]}


def test_rows_with_different_columns_share_one_header():
    text = csv_text([{"case": "a", "x [mL]": 1}, {"case": "b", "status": "failed: no file"}])
    assert text.splitlines() == ["case,x [mL],status", "a,1,", "b,,failed: no file"]
    assert csv_text([]) == "\n"
