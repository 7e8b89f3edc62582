"""CT nodes to volumes and back, on the real MRML classes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY

from COVIDLesionSegLib.errors import GeometryError, InputError, IntensityError
from COVIDLesionSegLib.imaging import Geometry, Volume

SHAPE = (5, 6, 7)
OBLIQUE = Geometry(
    (7, 6, 5),
    (0.7, 0.8, 2.5),
    (-120.5, 33.25, -700.125),
    tuple(
        (
            np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
            @ np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
        ).ravel()
    ),
)


@pytest.fixture
def volumes(scene):
    from COVIDLesionSegLib.mrml import volumes

    return volumes


@pytest.fixture
def hounsfield():
    return np.random.default_rng(3).integers(-1024, 300, SHAPE).astype(np.int16)


@pytest.fixture
def ct_node(volumes, hounsfield):
    return volumes.nodeFromVolume(Volume(hounsfield, OBLIQUE))


def transform_node(scene, matrix=None, nonlinear=False):
    import slicer
    import vtk

    node = scene.AddNewNodeByClass("vtkMRMLTransformNode")
    if nonlinear:
        spline = vtk.vtkThinPlateSplineTransform()
        points = vtk.vtkPoints()
        moved = vtk.vtkPoints()
        for x, y, z in np.random.default_rng(0).uniform(-100, 100, (6, 3)):
            points.InsertNextPoint(x, y, z)
            moved.InsertNextPoint(x + 5, y - x / 20, z)
        spline.SetSourceLandmarks(points)
        spline.SetTargetLandmarks(moved)
        spline.SetBasisToR()
        node.SetAndObserveTransformToParent(spline)
    else:
        node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    return node


def test_an_oblique_volume_comes_back_exactly(volumes, ct_node, hounsfield):
    back = volumes.volumeFromNode(ct_node)
    np.testing.assert_array_equal(back.array, hounsfield)
    assert back.array.dtype == np.int16
    np.testing.assert_allclose(back.geometry.ijk_to_lps, OBLIQUE.ijk_to_lps, rtol=0, atol=1e-10)


def test_the_copy_does_not_follow_the_node(volumes, ct_node, hounsfield, slicer_core):
    back = volumes.volumeFromNode(ct_node)
    slicer_core.util.arrayFromVolume(ct_node)[:] = 0
    np.testing.assert_array_equal(back.array, hounsfield)


def test_it_agrees_with_what_the_reader_makes_of_the_same_file(volumes, ct_node, tmp_path, slicer_core):
    from COVIDLesionSegLib.imaging import read_volume

    slicer_core.util.saveNode(ct_node, str(tmp_path / "ct.nrrd"), {})
    read, node = read_volume(tmp_path / "ct.nrrd"), volumes.volumeFromNode(ct_node)
    np.testing.assert_array_equal(read.array, node.array)
    assert not read.geometry.difference(node.geometry, 1e-4)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("int8", "int16"), ("int32", "int16"), ("float64", "int16"), ("float32", "int16"), ("int16", "int16")],
)
def test_whole_numbers_become_int16(volumes, scene, slicer_core, dtype, expected):
    values = np.arange(-100, 110).reshape(SHAPE).clip(-100, 100).astype(dtype)
    node = slicer_core.util.addVolumeFromArray(values)
    back = volumes.volumeFromNode(node, check=False)
    assert back.array.dtype == expected
    np.testing.assert_array_equal(back.array, values)


def test_fractions_stay_as_float32(volumes, scene, slicer_core):
    values = np.linspace(-1000, 200.5, 210).reshape(SHAPE)
    back = volumes.volumeFromNode(slicer_core.util.addVolumeFromArray(values))
    assert back.array.dtype == np.float32
    np.testing.assert_array_equal(back.array, values.astype(np.float32))


def test_a_linear_transform_moves_the_grid_and_not_the_voxels(volumes, ct_node, hounsfield, scene):
    turn = np.array([[0, -1, 0, 10], [1, 0, 0, -20], [0, 0, 1, 30], [0, 0, 0, 1.0]])
    ct_node.SetAndObserveTransformNodeID(transform_node(scene, turn).GetID())
    back = volumes.volumeFromNode(ct_node)
    np.testing.assert_array_equal(back.array, hounsfield)
    np.testing.assert_allclose(back.geometry.ijk_to_ras, turn @ OBLIQUE.ijk_to_ras, atol=1e-9)
    ct_node.HardenTransform()
    assert not volumes.volumeFromNode(ct_node).geometry.difference(back.geometry, 1e-6)


def test_a_nonlinear_transform_is_refused(volumes, ct_node, scene):
    ct_node.SetAndObserveTransformNodeID(transform_node(scene, nonlinear=True).GetID())
    with pytest.raises(GeometryError, match="is not linear"):
        volumes.volumeFromNode(ct_node)
    assert "not linear" in volumes.volumeProblem(ct_node)


def test_a_shearing_transform_is_refused(volumes, ct_node, scene):
    shear = np.eye(4)
    shear[0, 2] = 0.3
    ct_node.SetAndObserveTransformNodeID(transform_node(scene, shear).GetID())
    with pytest.raises(GeometryError, match="Under its transform"):
        volumes.volumeFromNode(ct_node)


def unusable_nodes(scene, slicer_core):
    """Name of the fault -> (node, what the message says)."""
    util = slicer_core.util
    deleted = util.addVolumeFromArray(np.zeros(SHAPE, np.int16))
    scene.RemoveNode(deleted)
    label = util.addVolumeFromArray(np.zeros(SHAPE, np.uint8), nodeClassName="vtkMRMLLabelMapVolumeNode")
    vector = util.addVolumeFromArray(np.zeros((*SHAPE, 3), np.uint8), nodeClassName="vtkMRMLVectorVolumeNode")
    components = util.addVolumeFromArray(np.zeros((*SHAPE, 2), np.int16), nodeClassName="vtkMRMLVectorVolumeNode")
    scalar = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    scalar.SetAndObserveImageData(components.GetImageData())
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode")
    return {
        "none": (None, "No CT is chosen"),
        "no node": ("ct.nrrd", "must be a MRML node"),
        "deleted": (deleted, "was deleted"),
        "empty": (scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode"), "no voxels"),
        "label map": (label, "a label map"),
        "vector": (vector, "color or vector"),
        "two components": (scalar, "2 values a voxel"),
        "diffusion": (scene.AddNewNodeByClass("vtkMRMLDiffusionWeightedVolumeNode"), "a diffusion volume"),
        "sequence": (sequence, "sequence of volumes"),
        "model": (scene.AddNewNodeByClass("vtkMRMLModelNode"), "is needed"),
    }


def test_what_is_no_ct_is_refused_with_a_sentence(volumes, scene, slicer_core):
    for fault, (node, sentence) in unusable_nodes(scene, slicer_core).items():
        with pytest.raises(InputError, match=sentence):
            volumes.volumeFromNode(node)
        assert sentence in volumes.volumeProblem(node), fault


def test_a_frame_of_a_sequence_is_refused(volumes, ct_node, scene):
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode")
    for time in ("0", "1"):
        sequence.SetDataNodeAtValue(ct_node, time)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.AddSynchronizedSequenceNode(sequence)
    browser.AddProxyNode(ct_node, sequence, False)
    with pytest.raises(InputError, match="sequence of 2 volumes"):
        volumes.volumeFromNode(ct_node)


def test_messages_do_not_name_the_node(volumes, scene):
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "DOE^JANE 1970-01-01")
    assert "DOE" not in volumes.volumeProblem(node)


def test_values_that_are_no_hounsfield_units_are_refused(volumes, scene, slicer_core):
    picture = slicer_core.util.addVolumeFromArray(np.arange(210, dtype=np.uint8).reshape(SHAPE))
    with pytest.raises(IntensityError):
        volumes.volumeFromNode(picture)
    assert volumes.volumeProblem(picture) == ""


def test_a_good_ct_has_no_problem(volumes, ct_node):
    assert volumes.volumeProblem(ct_node) == ""
    assert volumes.gridOfNode(ct_node).size == OBLIQUE.size


def test_removing_a_node_frees_its_voxels(volumes, ct_node, scene):
    from COVIDLesionSegLib.mrml.nodes import removeNode

    count = scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeDisplayNode")
    removeNode(ct_node)
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeDisplayNode") == count - 1
    removeNode(ct_node)
    removeNode(None)


def test_the_room_loads_without_what_slicers_process_should_not_load(slicer_core):
    code = (
        "import host; host.boot(); import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'safetensors', 'scipy', 'SimpleITK', 'matplotlib', 'pydicom'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import COVIDLesionSegLib.mrml\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "Testing", check=True)
