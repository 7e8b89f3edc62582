"""Lungs by a network: its grid and channels, the way back to the CT's own grid, and when it is the default."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from lung_chests import Chest, coarse_chest, overlap

from COVIDLesionSegLib.errors import CancelledError, InputError, IntensityError, LungsNotFoundError
from COVIDLesionSegLib.files import sha256_file
from COVIDLesionSegLib.imaging import Geometry, Volume, assess_lungs, find_lungs, read_labels, read_volume
from COVIDLesionSegLib.imaging.lungs.engines import ENGINES
from COVIDLesionSegLib.inference import lung_engine, lungs
from COVIDLesionSegLib.inference.lungs import CONTEXT, context_of, find_lungs_by_network, network_input, reduce_slices
from COVIDLesionSegLib.models import ModelCard
from COVIDLesionSegLib.resources import resource


class ByBrightness(torch.nn.Module):
    """Stands in for a network: what has the density of aerated lung is, right of the middle of the body or left."""

    def forward(self, x):
        here = x[:, len(CONTEXT) // 2]
        low, high = network_input(torch.tensor([-930.0, -500.0]))
        lung = (here > low) & (here < high)
        columns = torch.nonzero((here > 0.5).any(dim=0).any(dim=0)).flatten()
        is_right = (torch.arange(here.shape[2]) < columns.float().mean()).expand_as(lung)
        return 20.0 * torch.stack([~lung, lung & is_right, lung & ~is_right], dim=1).float()


@pytest.fixture(scope="module")
def chest():
    made = Chest(spacing=(3.0, 1.5, 1.5), extent=(240.0, 250.0, 340.0))
    return made.volume(), made.truth


def test_lungs_lie_on_the_inputs_grid_to_a_voxel(chest):
    volume, truth = chest
    steps = []
    found = find_lungs_by_network(volume, lambda *step: steps.append(step), network=ByBrightness())
    assert found.dtype == np.uint8
    assert found.shape == truth.shape
    for side in (1, 2):
        assert overlap(found == side, truth == side) > 0.985
    assert steps[0] == ("lungs", 0, 100)
    assert steps[-1] == ("lungs", 100, 100)
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)], ids=["up", "front", "side", "all"])
def test_right_stays_right_however_the_voxels_are_stored(chest, axes):
    volume, _ = chest
    expected = find_lungs_by_network(volume, network=ByBrightness())
    geometry = volume.geometry
    direction, origin = np.array(geometry.matrix), np.array(geometry.origin)
    for axis in axes:
        column = 2 - axis
        length = (geometry.size[column] - 1) * geometry.spacing[column]
        origin = origin + direction[:, column] * length
        direction[:, column] *= -1
    flipped = Volume(
        np.flip(volume.array, axes), replace(geometry, origin=tuple(origin), direction=tuple(direction.ravel()))
    )
    assert np.array_equal(find_lungs_by_network(flipped, network=ByBrightness()), np.flip(expected, axes))


def test_turned_axes(chest):
    volume, _ = chest
    expected = find_lungs_by_network(volume, network=ByBrightness())
    geometry = volume.geometry
    order = (1, 2, 0)
    columns = [2 - axis for axis in order][::-1]
    turned = Geometry(
        [geometry.size[c] for c in columns],
        [geometry.spacing[c] for c in columns],
        geometry.origin,
        geometry.matrix[:, columns].ravel(),
    )
    found = find_lungs_by_network(Volume(volume.array.transpose(order), turned), network=ByBrightness())
    assert np.array_equal(found, expected.transpose(order))


def test_the_border_of_dense_lung_is_the_networks_own(chest):
    """Consolidation as bright as the chest wall: Hounsfield units say nothing there."""
    volume, truth = chest
    array = volume.array.copy()
    rows = np.flatnonzero((truth == 1).any(axis=(0, 2)))
    back = np.zeros(truth.shape, bool)
    back[:, rows[len(rows) // 2] :] = True
    array[(truth == 1) & back] = 40

    class Knows(torch.nn.Module):
        """Answers the true lungs, whatever it sees."""

        def __init__(self):
            super().__init__()
            self.next = 0

        def forward(self, x):
            share = [
                reduce_slices(np.where(truth == s, 100, 0).astype(np.int16), volume.geometry.spacing_zyx)[0]
                for s in (1, 2)
            ]
            first, self.next = self.next, self.next + len(x)
            right, left = (s[first : self.next, : x.shape[2], : x.shape[3]] / 100 for s in share)
            logits = torch.zeros((len(x), 3, *x.shape[2:]))
            for number, part in ((1, right), (2, left)):
                padded = torch.zeros((len(x), *x.shape[2:]))
                padded[:, : part.shape[1], : part.shape[2]] = part
                logits[:, number] = 12 * padded
            logits[:, 0] = 6
            return logits

    # the body's box is the whole grid
    array[:, [0, -1]] = array[:, :, [0, -1]] = 40
    found = find_lungs_by_network(Volume(array, volume.geometry), network=Knows())
    assert overlap((found == 1) & back, (truth == 1) & back) > 0.96
    assert overlap(found == 2, truth == 2) > 0.97


def test_scraps_are_no_lungs_and_islands_take_the_side_around_them(chest):
    volume, truth = chest

    class Careless(ByBrightness):
        def forward(self, x):
            logits = super().forward(x)
            # an island of the wrong side in the right lung, and a spot in the corner that no lung is near to
            height, width = logits.shape[2:]
            island = logits[:, :, height // 2 - 2 : height // 2 + 2, width // 4 - 2 : width // 4 + 2]
            island[:, [1, 2]] = island[:, [2, 1]].clone()
            logits[:, :, :3, :3] = torch.tensor([0.0, 20.0, 0.0])[None, :, None, None]
            return logits

    found = find_lungs_by_network(volume, network=Careless())
    assert np.array_equal(found > 0, find_lungs_by_network(volume, network=ByBrightness()) > 0)
    for side in (1, 2):
        assert overlap(found == side, truth == side) > 0.985


def test_a_slice_has_its_neighbors_as_channels():
    found = context_of(10, 10.0)
    assert found[5].tolist() == [2, 4, 5, 6, 8]
    assert found[0].tolist() == [0, 0, 0, 1, 3]
    assert found[9].tolist() == [6, 8, 9, 9, 9]
    assert context_of(3, 100.0).tolist() == [[0] * 5, [1] * 5, [2] * 5]


def test_thin_slices_are_averaged_and_thick_ones_are_kept():
    array = np.arange(24, dtype=np.int16).reshape(6, 2, 2)
    reduced, depth = reduce_slices(array, (1.0, 2.5, 2.5))
    assert depth == 4
    assert torch.equal(reduced, torch.tensor([[[6.0, 7], [8, 9]], [[18, 19], [20, 21]]]))
    assert reduce_slices(array, (5.0, 2.5, 2.5))[1] == 1
    assert reduce_slices(array.astype(np.float32) - 5000, (5.0, 1.25, 1.25))[0].tolist() == [[[-1024.0]]] * 6


def test_what_holds_no_lungs_is_refused():
    array = np.full((8, 60, 60), 40, np.int16)
    with pytest.raises(LungsNotFoundError, match="the network sees none"):
        find_lungs_by_network(Volume(array, Geometry((60, 60, 8), (3, 3, 3))), network=ByBrightness())
    air = Volume(np.full((8, 60, 60), -1000, np.int16), Geometry((60, 60, 8), (3, 3, 3)))
    with pytest.raises(LungsNotFoundError):
        find_lungs_by_network(air, network=ByBrightness())
    spoiled = array.astype(np.float32)
    spoiled[3, 4, 5] = np.nan
    with pytest.raises(IntensityError, match="not a number"):
        find_lungs_by_network(Volume(spoiled, Geometry((60, 60, 8), (3, 3, 3))), network=ByBrightness())


@pytest.mark.parametrize("after", [0, 1, 3, 8])
def test_it_stops_between_the_steps(chest, after):
    asked = []

    def cancelled():
        asked.append(1)
        return len(asked) > after

    with pytest.raises(CancelledError):
        find_lungs_by_network(chest[0], cancelled=cancelled, network=ByBrightness())
    assert len(asked) == after + 1


# ---- which engine ---------------------------------------------------------------------------------------------------


def test_the_classical_finder_is_asked_unless_the_network_is_chosen(monkeypatch):
    chest = coarse_chest("emphysema")
    asked = []

    def stand_in(name):
        return lambda *_: asked.append(name) or chest.lungs

    monkeypatch.setattr(lung_engine, "_by_network", stand_in("network"))
    monkeypatch.setitem(ENGINES, "classical", stand_in("classical"))
    assert lung_engine.locate_lungs(chest.volume).quality.engine == "classical"
    assert asked == ["classical"]
    assert lung_engine.locate_lungs(chest.volume, engine="network").quality.engine == "network"
    assert asked[:2] == ["classical", "network"]


def test_lungs_that_the_classical_finder_sees_otherwise_are_doubtful(monkeypatch):
    chest = coarse_chest("emphysema")
    wrong = np.where(np.arange(len(chest.lungs))[:, None, None] > 35, 0, chest.lungs).astype(np.uint8)
    monkeypatch.setattr(lung_engine, "_by_network", lambda *_: wrong)
    found = lung_engine.locate_lungs(chest.volume, engine="network")
    assert found.labels is wrong and found.quality.is_doubtful
    assert "finder_dice" in [finding.check for finding in found.quality.findings]


def test_the_network_without_torch_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "COVIDLesionSegLib.inference.lungs", None)
    with pytest.raises(InputError, match=r"needs PyTorch, which is not installed.*classical"):
        lung_engine.locate_lungs(coarse_chest("emphysema").volume, engine="network")


# ---- the weights that come with the program -------------------------------------------------------------------------


def test_the_weights_are_the_recorded_ones_and_made_for_this_grid():
    entry = lung_engine.lung_network()
    assert entry.status == "bundled"
    assert (entry.path.stat().st_size, sha256_file(entry.path)) == (entry.size_bytes, entry.sha256)
    assert entry.size_bytes <= 2_000_000
    assert entry.path == resource(lungs.WEIGHTS)
    card = lungs.lung_model().card
    assert card == ModelCard.from_json(entry.path.with_suffix(".json").read_text(encoding="utf-8"))
    for key in ("id", "name", "license", "license_notice", "citation"):
        assert getattr(card, key) == getattr(entry, key), key
    grid = card.extra["lung_grid"]
    assert grid["context_mm"] == list(CONTEXT)
    assert grid["hu"] == [lungs.LOWEST, lungs.HIGHEST]
    assert (grid["pixel_mm"], grid["thickest_slice_mm"]) == (lungs.PIXEL, lungs.THICKNESS)
    level, width = card.preprocessing.window_level, card.preprocessing.window_width
    assert [level - width / 2, level + width / 2] == grid["hu"]
    notice = entry.path.with_name("lungs-ctseg.LICENSE.txt").read_text(encoding="utf-8").lower()
    assert all(word in notice for word in ("non-commercial", "3757476", "s41597-021-00900-3", "lctsc"))


@pytest.mark.parametrize("name", ["emphysema", "right_half"])
def test_the_network_finds_the_lungs_of_a_phantom(name):
    chest = coarse_chest(name)
    found = lung_engine.locate_lungs(chest.volume, engine="network")
    assert found.quality.engine == "network"
    assert overlap(found.labels > 0, chest.lungs > 0) > 0.95
    assert overlap(found.labels == 1, chest.lungs == 1) > 0.95


def test_the_network_agrees_with_experts(ct_seg):
    """It learned on these chests; what it does on others stands on its card."""
    case = ct_seg("009")
    drawn = case.expert_slices
    found = lung_engine.locate_lungs(read_volume(case.ct), engine="network")
    assert overlap(found.labels[drawn] > 0, read_labels(case.lungs).mask()[drawn]) >= 0.98
    assert not found.quality.is_doubtful


def test_the_network_agrees_with_the_finder_on_a_whole_series_that_never_trained(shared):
    volume = read_volume(shared("data/covid-ct-md/dicom/covid_P001"))
    found = lung_engine.locate_lungs(volume, engine="network")
    assert (found.quality.engine, found.quality.verdict) == ("network", "ok")
    finder = find_lungs(volume)
    for side in (1, 2):
        assert overlap(found.labels == side, finder == side) > 0.975


# ---- the classical finder as a check --------------------------------------------------------------------------------


def test_lungs_that_the_classical_finder_sees_too_are_trusted():
    chest = coarse_chest("emphysema")
    quality = assess_lungs(chest.volume, chest.lungs, "network")
    assert quality.measures["finder_dice"] > 0.9
    assert not quality.is_doubtful
    assert "finder_dice" not in assess_lungs(chest.volume, chest.lungs, "lungmask").measures


def test_lungs_that_the_classical_finder_does_not_see_are_doubtful():
    chest = coarse_chest("emphysema")
    # as far as the apices: the rib cage is covered and both sides are alike
    wrong = np.where(np.arange(len(chest.lungs))[:, None, None] > 35, 0, chest.lungs).astype(np.uint8)
    quality = assess_lungs(chest.volume, wrong, "network")
    assert quality.is_doubtful
    (finding,) = [finding for finding in quality.findings if finding.check == "finder_dice"]
    assert finding.value < finding.limit
    assert "The classical finder, which sees lungs by their air, disagrees with the network (Dice 0." in quality.line()


def test_lungs_in_which_the_classical_finder_finds_none_are_doubtful():
    chest = coarse_chest("emphysema")
    dense = np.where(chest.lungs > 0, 30, chest.volume.array).astype(np.int16)
    quality = assess_lungs(Volume(dense, chest.volume.geometry), chest.lungs, "network")
    assert quality.is_doubtful
    assert "finds none here" in quality.line()
