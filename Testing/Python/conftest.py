"""Fixtures that more than one test file needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import shared_data

# one that imports from another stands after it
pytest_plugins = [
    "box_chest",
    "checkpoint_files",
    "download_files",
    "panel_fixtures",
    "panel_case_fixtures",
    "predictor_fixtures",
    "registry_fixtures",
    "training_fixtures",
    "reproduction_fixtures",
    "worker_children",
    "worker_world",
]

REPOSITORY = Path(__file__).resolve().parents[2]
VECTORS = Path(__file__).resolve().parent / "vectors"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run kill, soak and speed checks")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    for item in items:
        if "long" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="runs with --long only"))


@pytest.fixture(scope="session", autouse=True)
def own_models_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither reads nor changes the models of whoever runs the tests, in this process or in those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COVIDLESIONSEG_MODELS", str(tmp_path_factory.mktemp("models")))
        yield


# What may be missing where CI runs; all else .ci/run and run.py install, so that a skip for it is a fault.
MAY_BE_MISSING = (
    "runs with --long only",
    "no CUDA device",
    "there is a GPU here",
    "no package registry can be reached",
    "no small disk can be mounted here",
    "needs root on Linux",
)
# What only Linux, or only POSIX, has.
ELSEWHERE = (
    "file rights are tested on POSIX systems only",
    "killing at write points needs fork",
    "limits the size of files as only POSIX can",
    "no named pipes here",
    "other systems have no file names in another encoding",
    "process groups are asked for the POSIX way",
    "signals and process groups are tested on POSIX",
    "the boot is known on Linux only",
    "the memory of a process is",
)
BASELINES = ("the package torchvision is not installed", "the package segmentation-models-pytorch is not installed")
# an engine beside PyTorch: with it every test of the predictor would compute by what a measurement happens to choose
ENGINES = ("the extra openvino is not installed",)
NO_SHARED_DATA = "of the shared data is not here"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a test that skips for a reason that CI should have seen to fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if "CI" not in os.environ or reporter is None or hasattr(session.config, "workerinput"):
        return
    allowed = [*MAY_BE_MISSING, *BASELINES, *ENGINES]
    allowed += [] if shared_data.SHARED.is_dir() else [NO_SHARED_DATA]
    allowed += [] if sys.platform == "linux" else ELSEWHERE
    skipped = [report.longrepr for report in reporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)]
    faults = sorted({reason for *_, reason in skipped if not any(words in reason for words in allowed)})
    if faults:
        reporter.write_line("")
        reporter.write_line(f"CI must not skip tests because: {'; '.join(faults)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def shared_path(relative: str) -> Path:
    """A file or folder of the shared data, or a skip that says what is missing."""
    path = shared_data.SHARED / relative
    if not path.exists():
        pytest.skip(f"{relative} {NO_SHARED_DATA} (set COVIDLESIONSEG_SHARED)")
    return path


@pytest.fixture(scope="session")
def shared():
    """Function from a relative name to a path in the shared data; skips the test where it is absent."""
    return shared_path


@pytest.fixture(scope="session")
def ct_seg():
    """Function from the number of a patient of COVID-19-CT-Seg to the whole CT's files; skips where it is absent."""

    def unpacked(number: str) -> shared_data.Case:
        return shared_data.ct_seg(shared_path(f"data/covid19-ct-seg/coronacases_{number}.zip").stem)

    return unpacked


@pytest.fixture(scope="session")
def slicer_core():
    """The module ``slicer`` as inside the application; skips where slicer-core is not installed."""
    pytest.importorskip("slicer", reason="slicer-core is not installed (pip install .[test])")
    import host

    host.boot()
    return sys.modules["slicer"]


@pytest.fixture
def scene(slicer_core):
    """The scene, empty before and after the test."""
    import host

    yield host.clear_scene()
    host.clear_scene()


@pytest.fixture(scope="session")
def slicer_gui(slicer_core):
    """``slicer`` with its widgets; ``import qt`` and ``import ctk`` work. Skips where PySide6 can't be loaded."""
    pytest.importorskip(
        "PySide6.QtWidgets",
        reason="PySide6 is not installed, or a system library that .ci/run lists is missing",
        exc_type=ImportError,
    )
    import host

    host.boot_gui()
    return slicer_core
