"""Off-screen slice and 3-D views of the scene as numpy images, drawn by Slicer's own displayable managers."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

_ORIENTATIONS = {"Axial": "Red", "Sagittal": "Yellow", "Coronal": "Green"}
_SLICE_MANAGERS = ("vtkMRMLSegmentationsDisplayableManager2D",)
_VIEW_MANAGERS = ("vtkMRMLSegmentationsDisplayableManager3D", "vtkMRMLModelDisplayableManager")


class _View:
    """A window with a renderer and the displayable managers on it."""

    def __init__(self, size: tuple[int, int], node: Any, managers: tuple[str, ...]) -> None:
        self.size = size
        self.node = node
        self.renderer = vtk.vtkRenderer()
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(True)
        self.window.SetMultiSamples(0)
        self.window.SetSize(*size)
        self.window.AddRenderer(self.renderer)
        # the managers ask their window for an interactor; nobody interacts
        self.interactor = vtk.vtkGenericRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.group: Any = slicer.vtkMRMLDisplayableManagerGroup()
        self.group.SetRenderer(self.renderer)
        for name in managers:
            manager = getattr(slicer, name)()
            manager.SetMRMLApplicationLogic(slicer.app.applicationLogic())
            self.group.AddDisplayableManager(manager)
        self.group.SetMRMLDisplayableNode(node)

    def grab(self) -> NDArray[np.uint8]:
        """Render, and return the picture as (rows, columns, RGB), first row at the top."""
        self.window.Render()
        grabber = vtk.vtkWindowToImageFilter()
        grabber.SetInput(self.window)
        grabber.ReadFrontBufferOff()
        grabber.Update()
        image = grabber.GetOutput()
        columns, rows, _ = image.GetDimensions()
        values: NDArray[np.uint8] = vtk_to_numpy(image.GetPointData().GetScalars())
        return np.ascontiguousarray(values.reshape(rows, columns, -1)[::-1, :, :3])

    def close(self) -> None:
        # the managers go with their group
        self.group = None
        self.window.Finalize()


class SliceView:
    """One slice through the scene.

    Args:
        orientation: "Axial", "Sagittal" or "Coronal".
        size: columns and rows of the picture.
    """

    def __init__(self, orientation: str = "Axial", size: tuple[int, int] = (400, 400)) -> None:
        layout = _ORIENTATIONS[orientation]
        # one that an earlier view or scene left would bring its field of view along
        _remove_singleton("vtkMRMLSliceNode", layout)
        _remove_singleton("vtkMRMLSliceCompositeNode", layout)
        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self._node = self._logic.AddSliceNode(layout)
        self._node.SetOrientation(orientation)
        self._node.SetDimensions(*size, 1)
        self._view = _View(size, self._node, _SLICE_MANAGERS)
        mapper = vtk.vtkImageMapper()
        mapper.SetInputConnection(self._logic.GetImageDataConnection())
        mapper.SetColorWindow(255)
        mapper.SetColorLevel(127.5)
        self._image = vtk.vtkActor2D()
        self._image.SetMapper(mapper)
        self._image.GetProperty().SetDisplayLocationToBackground()
        self._view.renderer.AddViewProp(self._image)

    def show(self, background: Any, foreground: Any = None, opacity: float = 0.5) -> None:
        """Show a volume, or two, fitted into the picture."""
        composite = self._logic.GetSliceCompositeNode()
        composite.SetBackgroundVolumeID(background.GetID())
        composite.SetForegroundVolumeID(None if foreground is None else foreground.GetID())
        composite.SetForegroundOpacity(opacity)
        self._logic.FitSliceToAll(*self._view.size)
        self._logic.SnapSliceOffsetToIJK()

    def goTo(self, right: float, anterior: float, superior: float) -> None:
        """Show the slice through a point, RAS mm."""
        self._node.JumpSliceByOffsetting(right, anterior, superior)

    def picture(self) -> NDArray[np.uint8]:
        """The view as (rows, columns, RGB)."""
        self._logic.UpdatePipeline()
        # there is no image before a volume is shown
        self._image.SetVisibility(self._logic.GetImageDataConnection() is not None)
        self._image.GetMapper().SetInputConnection(self._logic.GetImageDataConnection())
        return self._view.grab()

    def close(self) -> None:
        """Let go of the scene."""
        self._view.close()


class ThreeDView:
    """The scene's surfaces.

    Args:
        size: columns and rows of the picture.
    """

    def __init__(self, size: tuple[int, int] = (400, 400)) -> None:
        scene = slicer.mrmlScene
        node = scene.GetSingletonNode("1", "vtkMRMLViewNode")
        if node is None:
            node = slicer.vtkMRMLViewNode()
            node.SetSingletonTag("1")
            node.SetLayoutName("1")
            node = scene.AddNode(node)
        self._view = _View(size, node, _VIEW_MANAGERS)
        self._view.renderer.SetBackground(0.1, 0.1, 0.15)

    def picture(self, azimuth: float = 0.0, elevation: float = 15.0) -> NDArray[np.uint8]:
        """The view from the front, turned by angles in degrees, as (rows, columns, RGB)."""
        camera = self._view.renderer.GetActiveCamera()
        camera.SetFocalPoint(0, 0, 0)
        camera.SetPosition(0, 500, 0)  # RAS: in front of the patient
        camera.SetViewUp(0, 0, 1)
        camera.Azimuth(azimuth)
        camera.Elevation(elevation)
        self._view.renderer.ResetCamera()
        return self._view.grab()

    def close(self) -> None:
        """Let go of the scene."""
        self._view.close()


def _remove_singleton(class_name: str, tag: str) -> None:
    node = slicer.mrmlScene.GetSingletonNode(tag, class_name)
    if node is not None:
        slicer.mrmlScene.RemoveNode(node)


def save(picture: NDArray[np.uint8], file: str) -> None:
    """Write a picture as PNG."""
    from PySide6.QtGui import QImage

    rows, columns, _ = picture.shape
    data = np.ascontiguousarray(picture)
    image = QImage(data.tobytes(), columns, rows, 3 * columns, QImage.Format.Format_RGB888)
    if not image.save(file):
        raise OSError(f"{file} could not be written")
