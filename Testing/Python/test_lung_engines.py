"""What finds lungs, by name: the package lungmask, a network from a higher floor, and what is missing."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from lung_chests import coarse_chest

from COVIDLesionSegLib.errors import CancelledError, InputError, LungsNotFoundError
from COVIDLesionSegLib.imaging import locate_lungs
from COVIDLesionSegLib.imaging.lungs.engines import ENGINES, _no_network, register_engine


@pytest.fixture(scope="module")
def chest():
    return coarse_chest("emphysema")


@pytest.fixture
def lungmask(monkeypatch, chest):
    """A module that stands in for lungmask; answers the phantom's lungs in the axial frame that lungmask wants."""
    view = chest.volume.geometry.axial_view()
    module = types.ModuleType("lungmask")
    module.asked, module.answer, module.fails = [], view.apply(chest.lungs), None

    class LMInferer:
        def __init__(self, modelname="R231", tqdm_disable=False):
            if module.fails is not None:
                raise module.fails
            module.asked.append((modelname, tqdm_disable))

        def apply(self, image):
            assert image.flags.c_contiguous
            assert np.array_equal(image, view.apply(chest.volume.array))
            return module.answer

    module.LMInferer = LMInferer
    monkeypatch.setitem(sys.modules, "lungmask", module)
    return module


def test_lungmask_gives_right_and_left_on_the_inputs_grid(lungmask, chest):
    steps = []
    found = locate_lungs(chest.volume, lambda *step: steps.append(step), engine="lungmask")
    assert np.array_equal(found.labels, chest.lungs)
    assert found.labels.dtype == np.uint8
    assert (found.quality.engine, found.quality.verdict) == ("lungmask", "ok")
    assert steps[-1] == ("lungs", 2, 2)
    assert lungmask.asked == [("R231", True)]


def test_lungmasks_sides_are_put_right_by_position(lungmask, chest):
    lungmask.answer = np.array([0, 2, 1], np.uint8)[lungmask.answer]
    assert np.array_equal(locate_lungs(chest.volume, engine="lungmask").labels, chest.lungs)


def test_lungmask_without_lungs(lungmask, chest):
    lungmask.answer = np.zeros_like(lungmask.answer)
    with pytest.raises(LungsNotFoundError, match="lungmask found no lungs in synthetic_chest"):
        locate_lungs(chest.volume, engine="lungmask")


def test_lungmask_without_network(lungmask, chest):
    lungmask.fails = OSError("no route to host")
    with pytest.raises(InputError, match=r"weights of lungmask could not be downloaded.*no route.*connect once"):
        locate_lungs(chest.volume, engine="lungmask")


def test_lungmask_stops_before_it_begins(lungmask, chest):
    with pytest.raises(CancelledError):
        locate_lungs(chest.volume, cancelled=lambda: True, engine="lungmask")
    assert not lungmask.asked


def test_lungmask_that_is_not_installed_says_how_to_get_it(monkeypatch, chest):
    monkeypatch.setitem(sys.modules, "lungmask", None)
    with pytest.raises(InputError, match=r"which is not installed.*covid-lesion-seg\[lungs\].*downloads its weights"):
        locate_lungs(chest.volume, engine="lungmask")


def test_a_network_registers_itself(monkeypatch, chest):
    monkeypatch.setitem(ENGINES, "network", _no_network)  # put back afterwards
    with pytest.raises(InputError, match=r"needs a network for lungs, and none is known here.*classical"):
        locate_lungs(chest.volume, engine="network")
    register_engine("network", lambda volume, progress, cancelled: chest.lungs)
    found = locate_lungs(chest.volume, engine="network")
    assert found.labels is chest.lungs
    assert found.quality.engine == "network"


def test_unknown_engines_are_refused(chest):
    with pytest.raises(InputError, match="'magic' is not known; known are classical, lungmask, network, none"):
        locate_lungs(chest.volume, engine="magic")
