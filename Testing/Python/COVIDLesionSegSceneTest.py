"""Inside Slicer: masks become segments and come back, voxel for voxel, also from a saved scene."""

import tempfile
import unittest
from pathlib import Path

import numpy as np
import slicer


class COVIDLesionSegSceneTest(unittest.TestCase):
    def setUp(self):
        from COVIDLesionSegLib.imaging import Geometry, Volume

        slicer.mrmlScene.Clear(0)
        # rows to the right, columns to the front, a little oblique
        turn = np.radians(7)
        direction = (-np.cos(turn), 0, np.sin(turn), 0, -1, 0, np.sin(turn), 0, np.cos(turn))
        self.geometry = Geometry((40, 30, 12), (0.8, 0.9, 2.5), (15.0, 20.0, -30.0), direction)
        hu = np.full(self.geometry.shape, -850, np.int16)
        self.mask = np.zeros(self.geometry.shape, bool)
        self.mask[2:7, 5:15, 8:20] = self.mask[8:11, 20:24, 30:36] = True
        hu[self.mask] = -400
        self.volume = Volume(hu, self.geometry, "synthetic")

    def tearDown(self):
        slicer.mrmlScene.Clear(0)

    def test_a_volume_and_its_lesions_come_back(self):
        from COVIDLesionSegLib import mrml

        volumeNode = mrml.nodeFromVolume(self.volume)
        back = mrml.volumeFromNode(volumeNode)
        self.assertTrue(np.array_equal(back.array, self.volume.array))
        self.assertEqual(back.geometry.difference(self.geometry), "")
        for view, count in (("lesion", 1), ("attenuation", 2), ("separate", 2)):
            node = mrml.showLesions(volumeNode, self.mask, view=view, volume=self.volume)
            self.assertEqual(node.GetSegmentation().GetNumberOfSegments(), count, view)
            self.assertTrue(np.array_equal(mrml.lesionMask(node, volumeNode), self.mask), view)

    def test_a_saved_scene_holds_them(self):
        from COVIDLesionSegLib import mrml

        volumeNode = mrml.nodeFromVolume(self.volume)
        node = mrml.showLesions(volumeNode, self.mask)
        name = node.GetName()
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "scene.mrb")
            self.assertTrue(slicer.util.saveScene(path))
            slicer.mrmlScene.Clear(0)
            slicer.util.loadScene(path)
        volumeNode = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
        node = slicer.util.getFirstNodeByClassByName("vtkMRMLSegmentationNode", name)
        self.assertTrue(np.array_equal(mrml.lesionMask(node, volumeNode), self.mask))


if __name__ == "__main__":
    unittest.main()
