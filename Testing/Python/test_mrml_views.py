"""Slice views, on the real slice logic."""

from __future__ import annotations

import types

import numpy as np
import pytest

from COVIDLesionSegLib.imaging import Geometry, Volume

SHAPE = (12, 20, 24)


@pytest.fixture
def view(scene, slicer_core, monkeypatch):
    """The logic of a slice view that the application's layout shows."""
    import vtk

    logic = slicer_core.vtkMRMLSliceLogic()
    logic.SetMRMLApplicationLogic(slicer_core.app.applicationLogic())
    logic.SetMRMLScene(scene)
    logic.AddSliceNode("Red")
    shown = vtk.vtkCollection()
    shown.AddItem(logic)
    layout = types.SimpleNamespace(mrmlSliceLogics=lambda: shown)
    monkeypatch.setattr(slicer_core.app, "_layout", layout)
    return logic


def ct_at(place):
    from COVIDLesionSegLib.mrml import nodeFromVolume

    return nodeFromVolume(Volume(np.zeros(SHAPE, np.int16), Geometry(SHAPE[::-1], (1.0, 1.0, 1.0), place)))


def center(view):
    matrix = view.GetSliceNode().GetSliceToRAS()
    return [matrix.GetElement(row, 3) for row in range(3)]


def test_a_ct_that_lies_elsewhere_is_in_view_and_the_place_in_it_is_kept(view):
    from COVIDLesionSegLib.mrml import showInViews

    showInViews(ct_at((0, 0, 0)))
    far = ct_at((-300, 200, 1000))
    showInViews(far)
    np.testing.assert_allclose(center(view), (288, -210, 1006), atol=2)
    node = view.GetSliceNode()
    node.JumpSliceByCentering(290, -205, 1003)
    before = center(view)
    showInViews(far)
    assert center(view) == before
