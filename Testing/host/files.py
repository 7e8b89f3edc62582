"""What stands for Slicer's IO manager: ``slicer.util.loadVolume``, ``saveNode``, ``saveScene`` and their like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import slicer

_SEGMENTATION = (".seg.nrrd", ".seg.nhdr", ".seg.vtm")
_ENDINGS = {
    _SEGMENTATION: "SegmentationFile",
    (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".tif", ".tiff", ".dcm"): "VolumeFile",
    (".stl", ".ply", ".obj", ".vtp", ".vtk"): "ModelFile",
    (".csv", ".tsv"): "TableFile",
    (".mrml", ".mrb"): "SceneFile",
    (".h5", ".tfm", ".mat"): "TransformFile",
}
# file type -> node class, storage node class
_BY_STORAGE = {
    "ModelFile": ("vtkMRMLModelNode", "vtkMRMLModelStorageNode"),
    "TableFile": ("vtkMRMLTableNode", "vtkMRMLTableStorageNode"),
    "TransformFile": ("vtkMRMLTransformNode", "vtkMRMLTransformStorageNode"),
}
_LABELMAP, _CENTER, _SINGLE_FILE = 1, 2, 4


class FileManager:
    """The methods of qSlicerCoreIOManager that ``slicer.util`` calls."""

    def fileType(self, name: str) -> str:
        name = str(name).lower()
        return next((kind for endings, kind in _ENDINGS.items() if name.endswith(endings)), "")

    def fileWriterFileType(self, node: Any) -> str:
        return "" if node is None else "Node"

    def loadNodes(self, kind: str, properties: Mapping[str, Any], nodes: Any = None, messages: Any = None) -> bool:
        file = str(properties["fileName"])
        if not Path(file).exists():
            return False
        name = properties.get("name") or Path(file).name.split(".")[0]
        if kind == "SceneFile":
            return self._load_scene(file, clear=properties.get("clear", True))
        if kind == "VolumeFile":
            chosen = {"labelmap": _LABELMAP, "center": _CENTER, "singleFile": _SINGLE_FILE}
            options = sum(flag for key, flag in chosen.items() if properties.get(key))
            node = slicer.modules.volumes.logic().AddArchetypeVolume(file, name, options)
        elif kind == "SegmentationFile":
            node = slicer.modules.segmentations.logic().LoadSegmentationFromFile(file, True, name)
        elif kind in _BY_STORAGE:
            node = self._load_by_storage(kind, file, name)
        else:
            raise ValueError(f"The host does not load files of the type {kind!r}.")
        if node is None:
            return False
        if nodes is not None:
            nodes.AddItem(node)
        return True

    def saveNodes(self, kind: str, properties: Mapping[str, Any], messages: Any = None) -> bool:
        if kind == "SceneFile":
            return self.saveScene(str(properties["fileName"]))
        node = slicer.mrmlScene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode()
        storage = node.GetStorageNode()
        storage.SetFileName(str(properties["fileName"]))
        if "useCompression" in properties:
            storage.SetUseCompression(int(properties["useCompression"]))
        return bool(storage.WriteData(node))

    def saveScene(self, file: str, screenshot: Any = None) -> bool:
        scene = slicer.mrmlScene
        scene.SetURL(file)
        scene.SetRootDirectory(str(Path(file).parent))
        return bool(scene.WriteToMRB(file) if file.endswith(".mrb") else scene.Commit(file))

    def _load_scene(self, file: str, clear: bool) -> bool:
        scene = slicer.mrmlScene
        if file.endswith(".mrb"):
            return bool(scene.ReadFromMRB(file, clear))
        scene.SetURL(file)
        return bool(scene.Connect() if clear else scene.Import())

    def _load_by_storage(self, kind: str, file: str, name: str) -> Any:
        scene = slicer.mrmlScene
        node_class, storage_class = _BY_STORAGE[kind]
        node, storage = scene.AddNewNodeByClass(node_class, name), scene.AddNewNodeByClass(storage_class)
        storage.SetFileName(file)
        node.SetAndObserveStorageNodeID(storage.GetID())
        if not storage.ReadData(node):
            scene.RemoveNode(storage)
            scene.RemoveNode(node)
            return None
        if hasattr(node, "CreateDefaultDisplayNodes"):
            node.CreateDefaultDisplayNodes()
        return node
