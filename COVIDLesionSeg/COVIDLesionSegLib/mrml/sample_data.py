"""The synthetic chest in Slicer's Sample Data module: made on this computer when its button is clicked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import slicer

from ..errors import COVIDLesionSegError, OutputError
from ..phantom.samples import Sample, sample_category, samples
from ..phantom.samples import sample as sample_named
from ..worker import BlockingLoop, Process, WorkerSettings
from ..worker.process import child_environment, own_python
from .volumes import use_lung_window

_log = logging.getLogger("COVIDLesionSeg")
_COMMAND = Path(__file__).resolve().parent.parent / "__main__.py"

Spawn = Callable[[list[str], Mapping[str, str]], Process]
Tell = Callable[[str], None]


def registerSampleData(spawn: Spawn | None = None, tell: Tell | None = None) -> bool:
    """Offer our sample data in Slicer's Sample Data module; call it when the application has started.

    Making the chest takes some seconds in a child process. Nothing is downloaded.

    Args:
        spawn: makes that process, not started (``panel.process.QtProcess``); None waits for it.
        tell: gets sentences about what is going on; None puts them into the status bar and the log.

    Returns:
        Whether there is a Sample Data module.
    """
    try:
        import SampleData  # type: ignore[import-not-found]  # a module of Slicer
    except ImportError:
        _log.info("There is no Sample Data module, so the synthetic chest is not offered there.")
        return False
    logic = SampleData.SampleDataLogic
    known = {source.sampleName for source in logic.sampleDataSourcesByCategory(sample_category())}
    for sample in samples():
        if sample.name in known:
            continue
        logic.registerCustomSampleDataSource(
            category=sample_category(),
            sampleName=sample.name,
            # an address that is not published is not asked; Slicer takes the file from its cache once it is made
            uris=[file.url if sample.published else (_cache() / file.file_name).as_uri() for file in sample.files],
            fileNames=[file.file_name for file in sample.files],
            nodeNames=[file.node_name for file in sample.files],
            loadFileType=[file.file_type for file in sample.files],
            checksums=[f"SHA256:{file.sha256}" if file.sha256 else None for file in sample.files],
            thumbnailFileName=str(sample.thumbnail),
            customDownloader=_Maker(sample, spawn, tell or _showStatus),
        )
    return True


def loadSampleData(name: str = "") -> list[Any]:
    """Make a sample if it is not there yet and load it; waits until it is done.

    Args:
        name: of the sample; "" takes the first.

    Returns:
        Its nodes: the CT, and the segmentation with the lesions that were put into it (hidden).

    Raises:
        InputError: there is no such sample.
        OutputError: it could not be made or loaded.
    """
    maker = _Maker(sample_named(name) if name else samples()[0], None, _showStatus)
    maker()
    if maker.problem:
        raise OutputError(maker.problem)
    return maker.nodes


class _Maker:
    """Makes a sample's files in Slicer's cache and loads them: a ``customDownloader``, and listener of the process."""

    def __init__(self, sample: Sample, spawn: Spawn | None, tell: Tell) -> None:
        self.nodes: list[Any] = []
        self.problem = ""
        self._sample = sample
        self._spawn = spawn
        self._tell = tell
        self._busy = False
        self._said = b""

    def __call__(self, *_source: Any) -> None:
        """Slicer calls it with the source whose button was clicked."""
        if self._busy:
            self._tell("The synthetic chest is being made already.")
            return
        self.nodes, self.problem, self._said = [], "", b""
        folder = _cache()
        if self._sample.are_there(folder):
            self._load(folder)
            return
        self._busy = True
        self._tell("Making the synthetic chest; this takes some seconds.")
        command = [own_python(), "-P", str(_COMMAND), "sample-data", self._sample.id, "-o", str(folder), "--quiet"]
        environment = child_environment(WorkerSettings())
        if self._spawn is not None:
            self._spawn(command, environment).start(self)
            return
        loop = BlockingLoop()
        loop.spawn(command, environment).start(self)
        while self._busy:
            loop.run_once(0.2)

    def output(self, data: bytes) -> None:
        """The names of the files, which are known."""

    def diagnostics(self, data: bytes) -> None:
        """What the process has to say."""
        self._said += data

    def ended(self, exit_code: int | None, problem: str) -> None:
        """The files are there, or not."""
        self._busy = False
        if exit_code == 0:
            self._load(_cache())
        else:
            said = self._said.decode(errors="replace").strip().splitlines()
            self._fail(problem or (said[-1] if said else f"The process ended with {exit_code}."))

    def _load(self, folder: Path) -> None:
        try:
            self.nodes = _loaded(self._sample, folder)
        except (RuntimeError, COVIDLesionSegError) as error:
            self._fail(str(error))
        else:
            self._tell("The synthetic chest is loaded.")

    def _fail(self, reason: str) -> None:
        self.problem = f"The synthetic chest could not be made: {reason}"
        _log.error("%s", self.problem)
        self._tell(self.problem)


def _loaded(sample: Sample, folder: Path) -> list[Any]:
    """Load a sample's files as nodes that know nothing of Slicer's cache."""
    load = {"VolumeFile": slicer.util.loadVolume, "SegmentationFile": slicer.util.loadSegmentation}
    nodes = [load[file.file_type](str(folder / file.file_name), {"name": file.node_name}) for file in sample.files]
    for node in nodes:
        storage = node.GetStorageNode()
        if storage is not None:
            node.SetAndObserveStorageNodeID(None)
            slicer.mrmlScene.RemoveNode(storage)
    volumeNode, *references = nodes
    use_lung_window(volumeNode)
    for node in references:
        node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        # what was put in is for comparison; seeing it first would spoil the finding
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetVisibility(False)
    return nodes


def _cache() -> Path:
    return Path(slicer.mrmlScene.GetCacheManager().GetRemoteCacheDirectory())


def _showStatus(text: str) -> None:
    _log.info("%s", text)
    slicer.util.showStatusMessage(text, 5000)
