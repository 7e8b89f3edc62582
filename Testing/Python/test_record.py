"""The run record: a frozen schema, plain JSON, nothing about the patient."""

from __future__ import annotations

import json

import numpy as np
import pytest

from COVIDLesionSegLib import __version__
from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.imaging import Geometry, Volume
from COVIDLesionSegLib.inference import RunRecord
from COVIDLesionSegLib.inference.record import describe_input, sha256_array


@pytest.fixture
def a_volume_of_somebody():
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    return Volume(
        array,
        Geometry((4, 3, 2), (0.7, 0.7, 5.0), (-10, 20, 30)),
        name="DOE^JANE_19700101",
        source={
            "format": "DICOM",
            "files": 2,
            "sha256": "0" * 64,
            "folder": "/home/doe/jane",
            "PatientName": "DOE^JANE",
            "series_uid": "1.2.840.1",
        },
        warnings=("The gap between slices varies by 0.01 mm.",),
    )


@pytest.fixture
def a_record(a_volume_of_somebody):
    return RunRecord(
        input=describe_input(a_volume_of_somebody),
        model={"id": "tiny"},
        device={"used": "cpu", "rungs": []},
        parameters={"tta": False, "box": np.array([[0, 2], [0, 3]])},
        postprocessing={"threshold": np.float32(0.5)},
        seconds={"lungs": 1.5, "network": float("nan")},
        warnings=("one",),
    )


def test_the_schema_is_frozen(a_record):
    assert list(a_record.to_json()) == [
        "input",
        "model",
        "device",
        "parameters",
        "postprocessing",
        "seconds",
        "warnings",
        "versions",
        "platform",
        "created",
        "schema",
        "lung_quality",
    ]
    assert a_record.schema == 1
    assert list(a_record.input) == ["voxels_sha256", "dtype", "geometry", "source", "warnings"]
    assert list(a_record.input["geometry"]) == ["size", "spacing", "origin", "direction"]


def test_names_paths_and_identifiers_stay_out(a_record):
    text = json.dumps(a_record.to_json())
    for secret in ("DOE", "JANE", "1970", "/home", "1.2.840"):
        assert secret not in text
    assert a_record.input["source"] == {"format": "DICOM", "files": 2, "sha256": "0" * 64}


def test_json_is_plain_and_never_holds_nan(a_record):
    value = json.loads(json.dumps(a_record.to_json(), allow_nan=False))
    assert value["seconds"] == {"lungs": 1.5, "network": None}
    assert value["parameters"]["box"] == [[0, 2], [0, 3]]
    assert value["postprocessing"]["threshold"] == 0.5
    assert value["warnings"] == ["one"]


def test_versions_say_what_computed(a_record):
    versions = a_record.to_json()["versions"]
    assert versions["COVIDLesionSeg"] == __version__
    for package in ("python", "torch", "numpy", "SimpleITK"):
        assert versions[package]


def test_a_record_is_read_back(a_record):
    value = a_record.to_json()
    assert RunRecord.from_json(json.dumps(value)).to_json() == value
    assert RunRecord.from_json(value | {"schema": 2, "new": 1}).schema == 2
    for wrong in ("{", "[]", {"schema": 1}):
        with pytest.raises(InputError, match="run record"):
            RunRecord.from_json(wrong)


def test_what_json_can_not_hold_is_an_error(a_record):
    with pytest.raises(InputError, match="set"):
        RunRecord.from_json(a_record.to_json() | {"model": {"id": {1}}}).to_json()


def test_the_hash_is_of_the_values_not_of_the_layout():
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    expected = sha256_array(array)
    assert sha256_array(np.asfortranarray(array)) == expected
    assert sha256_array(array[::-1][::-1]) == expected
    assert sha256_array(array.astype(">i2")) == expected
    assert sha256_array(array[::-1]) != expected
    import hashlib

    assert expected == hashlib.sha256(array.tobytes()).hexdigest()
