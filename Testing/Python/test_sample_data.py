"""Sample data: made on demand, the same every time, offered by Slicer's Sample Data module, loaded ready to use."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from typing import ClassVar
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
from conftest import REPOSITORY

from COVIDLesionSegLib.cli import main
from COVIDLesionSegLib.imaging import read_labels, read_volume
from COVIDLesionSegLib.phantom import samples as samples_module
from COVIDLesionSegLib.phantom.samples import make_sample, sample, samples
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest
from COVIDLesionSegLib.resources import load_json

# what the child process runs instead of making a large chest: copy one that is there
COPY = "import shutil, sys\nshutil.copytree({made!r}, sys.argv[4])\n"


@pytest.fixture(scope="module")
def a_chest():
    return synthetic_chest(0, size=(12, 48, 64), spacing=(24.0, 6.0, 6.0))


@pytest.fixture
def a_quick_maker(a_chest, monkeypatch):
    monkeypatch.setattr(samples_module, "synthetic_chest", lambda seed: a_chest)


# The data


def test_the_resource_file_follows_its_schema():
    jsonschema.validate(load_json("SampleData.json"), load_json("SampleData.schema.json"))


def test_what_is_published_must_have_a_hash():
    document = load_json("SampleData.json")
    document["samples"][0]["published"] = True
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, load_json("SampleData.schema.json"))


def test_every_sample_has_a_thumbnail():
    for entry in samples():
        assert entry.thumbnail.read_bytes().startswith(b"\x89PNG")


def test_the_files_hold_the_chest_and_what_was_put_into_it(a_chest, a_quick_maker, tmp_path):
    chest = a_chest
    ct, reference = make_sample(sample("synthetic-chest"), tmp_path)
    volume = read_volume(ct)
    assert np.array_equal(volume.array, chest.volume.array)
    assert not volume.geometry.difference(chest.volume.geometry)
    labels = read_labels(reference)
    assert labels.names == {1: "lesion"}
    assert np.array_equal(labels.array == 1, chest.lesion)
    assert not labels.geometry.difference(volume.geometry)
    assert sample("COVIDLesionSegChest").are_there(tmp_path)


def test_the_command_prints_what_it_made(a_quick_maker, tmp_path, capsys):
    assert main(["sample-data", "-o", str(tmp_path / "new"), "--quiet"]) == 0
    made = capsys.readouterr().out.split()
    assert [path.rpartition("/")[2] for path in made] == [file.file_name for file in samples()[0].files]
    assert samples()[0].are_there(tmp_path / "new")
    assert main(["sample-data", "mona-lisa"]) == 2
    assert "There is no sample 'mona-lisa'; choose one of synthetic-chest." in capsys.readouterr().err


def test_the_library_can_be_started_by_its_path_from_anywhere(tmp_path):
    command = REPOSITORY / "COVIDLesionSeg" / "COVIDLesionSegLib" / "__main__.py"
    done = subprocess.run(
        [sys.executable, "-I", command, "sample-data", "x"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "There is no sample 'x'" in done.stderr


# In Slicer


class SampleDataSource:
    """What Slicer keeps of a source."""

    def __init__(self, **given):
        lists = ("uris", "fileNames", "nodeNames", "loadFileType", "checksums")
        assert len({len(given[name]) for name in lists}) == 1, "Slicer wants lists of one length"
        assert all(isinstance(uri, str) for uri in given["uris"])
        vars(self).update(given)


class SampleDataLogic:
    """The part of Slicer's class of this name that registers sources."""

    sources: ClassVar[dict[str, list[SampleDataSource]]] = {}

    @classmethod
    def sampleDataSourcesByCategory(cls, category=None):
        return cls.sources.get(category, [])

    @classmethod
    def registerCustomSampleDataSource(cls, category="Custom", **given):
        cls.sources.setdefault(category, []).append(SampleDataSource(**given))


@pytest.fixture
def slicers_samples(scene, a_quick_maker, tmp_path, monkeypatch):
    """Slicer's Sample Data module, an empty cache, and a child process that brings a small chest."""
    from COVIDLesionSegLib.mrml import sample_data

    module = types.ModuleType("SampleData")
    monkeypatch.setattr(SampleDataLogic, "sources", {})
    module.SampleDataLogic = SampleDataLogic
    monkeypatch.setitem(sys.modules, "SampleData", module)
    monkeypatch.setattr(sample_data, "_cache", lambda: tmp_path / "cache")
    make_sample(samples()[0], tmp_path / "made")
    (tmp_path / "copy.py").write_text(COPY.format(made=str(tmp_path / "made")))
    monkeypatch.setattr(sample_data, "_COMMAND", tmp_path / "copy.py")
    return sample_data


def registered():
    (source,) = SampleDataLogic.sources["COVIDLesionSeg"]
    return source


def test_it_is_registered_once_and_no_unpublished_address_with_it(slicers_samples, tmp_path):
    assert slicers_samples.registerSampleData()
    assert slicers_samples.registerSampleData()
    source = registered()
    assert source.sampleName == "COVIDLesionSegChest"
    assert source.nodeNames == ["SyntheticChest", "KnownLesions"]
    assert source.loadFileType == ["VolumeFile", "SegmentationFile"]
    assert source.thumbnailFileName.endswith("SyntheticChest.png")
    # not published: Slicer finds the files in its cache or nowhere
    assert all(uri.startswith((tmp_path / "cache").as_uri()) for uri in source.uris)


def test_without_the_sample_data_module_nothing_happens(slicers_samples, monkeypatch):
    monkeypatch.setitem(sys.modules, "SampleData", None)
    assert not slicers_samples.registerSampleData()


def test_a_click_makes_and_loads_it_and_the_next_one_only_loads(slicers_samples, a_chest, slicer_core, tmp_path):
    from COVIDLesionSegLib import mrml

    told = []
    slicers_samples.registerSampleData(tell=told.append)
    source = registered()
    source.customDownloader(source)
    assert told == ["Making the synthetic chest; this takes some seconds.", "The synthetic chest is loaded."]

    chest = a_chest
    volumeNode = slicer_core.util.getNode("SyntheticChest")
    assert np.array_equal(mrml.volumeFromNode(volumeNode).array, chest.volume.array)
    assert volumeNode.GetStorageNode() is None
    display = volumeNode.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel()) == (1500, -650)
    reference = slicer_core.util.getNode("KnownLesions")
    assert not reference.GetDisplayNode().GetVisibility()
    assert list(reference.GetSegmentation().GetSegmentIDs()) == ["lesion"]
    assert np.array_equal(mrml.segmentMask(reference, "lesion", volumeNode), chest.lesion)

    made = (tmp_path / "cache" / source.fileNames[0]).stat().st_mtime_ns
    source.customDownloader(source)
    assert told[2:] == ["The synthetic chest is loaded."]
    assert (tmp_path / "cache" / source.fileNames[0]).stat().st_mtime_ns == made


def test_a_process_of_qt_makes_it_while_the_user_goes_on(slicers_samples, slicer_core):
    told, started = [], []

    class Later:
        """A process that ends when the test says so."""

        def __init__(self, command, environment):
            self.command, self.environment = command, environment

        def start(self, listener):
            self.listener = listener
            started.append(self)

    slicers_samples.registerSampleData(spawn=Later, tell=told.append)
    source = registered()
    source.customDownloader(source)
    source.customDownloader(source)
    assert len(started) == 1
    assert told[-1] == "The synthetic chest is being made already."
    (process,) = started
    assert process.command[-5:] == ["sample-data", "synthetic-chest", "-o", str(slicers_samples._cache()), "--quiet"]
    process.listener.diagnostics(b"working\nerror: the disk is full\n")
    process.listener.ended(2, "")
    assert told[-1] == "The synthetic chest could not be made: error: the disk is full"
    source.customDownloader(source)
    assert len(started) == 2
    started[1].listener.ended(None, "python3: not found")
    assert told[-1] == "The synthetic chest could not be made: python3: not found"
    assert not slicer_core.util.getNodes("SyntheticChest*")


def test_the_console_waits_for_it(slicers_samples, monkeypatch, tmp_path):
    from COVIDLesionSegLib.errors import InputError, OutputError

    volumeNode, reference = slicers_samples.loadSampleData()
    assert (volumeNode.GetName(), reference.GetName()) == ("SyntheticChest", "KnownLesions")
    with pytest.raises(InputError, match="no sample 'x'"):
        slicers_samples.loadSampleData("x")
    monkeypatch.setattr(slicers_samples, "_cache", lambda: tmp_path / "other")
    monkeypatch.setattr(slicers_samples, "_COMMAND", tmp_path / "gone.py")
    with pytest.raises(OutputError, match="could not be made"):
        slicers_samples.loadSampleData()


@pytest.mark.long
def test_the_real_command_makes_the_real_chest(slicers_samples, scene, monkeypatch):
    monkeypatch.undo()
    volumeNode, _ = slicers_samples.loadSampleData()
    assert volumeNode.GetImageData().GetDimensions() == (384, 288, 120)


def test_the_module_offers_it_and_its_terminology_once_slicer_has_started(slicers_samples, slicer_gui):
    import host.application
    import host.scripted
    from COVIDLesionSegLib.imaging import segment_styles

    loaded = host.scripted.load_module(REPOSITORY / "COVIDLesionSeg" / "COVIDLesionSeg.py")
    assert not SampleDataLogic.sources
    host.application.complete_startup(slicer_gui.app)
    assert registered().sampleName == "COVIDLesionSegChest"
    assert slicer_gui.modules.terminologies.logic().IsTerminologyContextLoaded(segment_styles()[0].context)
    loaded.widget.cleanup()


# The tutorial


def console_example():
    tutorial = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", tutorial, re.DOTALL)
    return compile(block, "docs/tutorial.md", "exec")


@pytest.mark.parametrize("page", ["tutorial", "annotating"])
def test_the_tutorials_name_what_the_panel_shows(page):
    """Every phrase in bold is a text of one of our forms."""
    tutorial = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    shown = set()
    for form in (REPOSITORY / "Resources" / "UI").glob("*.ui"):
        shown |= {
            node.text.rstrip(":").replace("&", "") for node in ElementTree.parse(form).iter("string") if node.text
        }
    named = set(re.findall(r"\*\*(.+?)\*\*", tutorial))
    assert len(named) > 10
    assert named <= shown, named - shown


def test_the_example_of_the_tutorial_is_python():
    console_example()


@pytest.mark.long
def test_the_example_of_the_tutorial_runs(slicer_gui, scene, monkeypatch, tmp_path, capsys):
    import host.scripted

    host.scripted.load_module(REPOSITORY / "COVIDLesionSeg" / "COVIDLesionSeg.py")
    monkeypatch.chdir(tmp_path)
    exec(console_example(), {})
    said = capsys.readouterr().out
    assert "mL" in said
    assert float(re.search(r"Dice ([0-9.]+)", said)[1]) > 0.5
