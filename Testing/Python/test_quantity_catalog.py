"""The catalog of quantities: units, definitions, codes that exist, plain JSON."""

from __future__ import annotations

import json

import pytest
from conftest import REPOSITORY

from COVIDLesionSegLib.measurement.catalog import catalog, definition
from COVIDLesionSegLib.measurement.quantification import quantify
from COVIDLesionSegLib.resources import load_json


def test_every_quantity_has_unit_definition_and_a_code_that_exists(chest_of_boxes):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.sr._concepts_dict import concepts

    assert pydicom
    known = {(scheme, code) for scheme, names in concepts.items() for codes in names.values() for code in codes}
    data = catalog()
    codes = [quantity["code"] for quantity in data["quantities"].values()]
    codes += [quantity["finding"] for quantity in data["quantities"].values() if "finding" in quantity]
    codes += [region[key] for region in data["regions"].values() for key in ("code", "laterality") if key in region]
    codes += [unit["code"] for unit in data["units"].values()]
    for code in codes:
        own = code["scheme"] == "99COVIDLESIONSEG"
        assert own or (code["scheme"], code["value"]) in known, code
        # lengths that DICOM allows for a code value and a scheme designator
        assert len(code["value"]) <= 16
        assert len(code["scheme"]) <= 16
        assert len(code["meaning"]) <= 64
    measured = quantify(*chest_of_boxes)
    for entry in measured.values():
        assert set(entry) == {"name", "region", "value", "unit", "status", "title", "definition", "code"}
        assert entry["unit"] in data["units"]
        assert entry["definition"] and "{" not in entry["definition"]
        assert entry["status"] in data["statuses"]


def test_catalog_keeps_its_schema():
    jsonschema = pytest.importorskip("jsonschema")
    data = load_json("Quantities.json")
    jsonschema.validate(data, load_json("Quantities.schema.json"))
    cited = {name for quantity in data["quantities"].values() for name in quantity.get("citations", [])}
    assert cited <= data["citations"].keys()
    page = (REPOSITORY / "docs" / "quantities.md").read_text(encoding="utf-8")
    for name in data["quantities"]:
        assert f"`{name}`" in page
        assert definition(name) in page
    for citation in data["citations"].values():
        assert citation["doi"] in page
    for status, meaning in data["statuses"].items():
        assert f"| `{status}` | {meaning} |" in page


def test_measurements_are_plain_json(chest_of_boxes):
    measured = quantify(*chest_of_boxes)
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
