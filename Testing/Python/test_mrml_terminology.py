"""The terminology that Slicer loads says what the segments carry."""

from __future__ import annotations

import json

import pytest

from COVIDLesionSegLib.imaging import segment_styles
from COVIDLesionSegLib.resources import load_json
from tools import write_terminology


def test_the_file_is_made_from_the_segments():
    made = json.loads(json.dumps(write_terminology.terminology_context()))
    assert load_json(write_terminology.FILE) == made, "run Testing/tools/write_terminology.py"


def test_slicer_loads_it_and_finds_every_segment_in_it(scene, slicer_core):
    from COVIDLesionSegLib.mrml import loadTerminology

    logic = slicer_core.modules.terminologies.logic()
    name = loadTerminology()
    assert name == segment_styles()[0].context
    assert logic.IsTerminologyContextLoaded(name)
    for style in segment_styles():
        entry = slicer_core.vtkSlicerTerminologyEntry()
        assert logic.DeserializeTerminologyEntry(style.terminology_entry, entry)
        # fills the colors in from the loaded file, and fails for what is not in it
        assert logic.UpdateEntryFromLoadedTerminologies(entry, [], []), style.id
        shown = entry.GetTypeModifierObject() if style.modifier else entry.GetTypeObject()
        assert [round(255 * c) for c in style.color] == list(shown.GetRecommendedDisplayRGBValue()), style.id
        assert shown.GetSlicerLabel() == style.id


def test_public_codes_are_those_of_the_concept_dictionary():
    """Where pydicom's dictionary knows a code, it means what ours says; what nobody knows is in the private scheme."""
    codes = pytest.importorskip("pydicom.sr._concepts_dict").concepts
    known = {
        (scheme, value): meaning
        for scheme, keywords in codes.items()
        for concept in keywords.values()
        for value, (meaning, *_) in concept.items()
    }
    used = {c for s in segment_styles() for c in (s.category, s.type, s.modifier, s.region) if c is not None}
    for code in used:
        public = (code.scheme, code.value) in known
        assert public != (code.scheme == "99COVIDLESIONSEG"), code
        if public:
            assert code.meaning.casefold() in known[code.scheme, code.value].casefold(), code
