"""Inside Slicer: the real child process segments a synthetic chest with the bundled network and measures it."""

import importlib.util
import sys
import unittest

import numpy as np
import slicer


class COVIDLesionSegWorkerTest(unittest.TestCase):
    def setUp(self):
        from COVIDLesionSeg import COVIDLesionSegLogic
        from COVIDLesionSegLib import mrml
        from COVIDLesionSegLib.imaging import Geometry, Volume

        slicer.mrmlScene.Clear(0)
        self.geometry = Geometry((96, 64, 8), (3.0, 3.0, 8.0), (-144.0, -96.0, 0.0))
        z, y, x = np.indices(self.geometry.shape)
        lungs = np.zeros(self.geometry.shape, np.uint8)
        for label, middle in ((1, 30), (2, 66)):
            lungs[((x - middle) / 14) ** 2 + ((y - 32) / 20) ** 2 < 1] = label
        self.lesion = ((x - 26) / 7) ** 2 + ((y - 44) / 6) ** 2 + ((z - 4) / 3) ** 2 < 1
        body = ((x - 48) / 44) ** 2 + ((y - 32) / 29) ** 2 < 1
        hu = np.where(body, 40, -1000)
        hu[lungs > 0] = -850
        hu[self.lesion] = -450
        hu = (hu + np.random.default_rng(0).normal(0, 20, hu.shape)).astype(np.int16)
        self.volumeNode = mrml.nodeFromVolume(Volume(hu, self.geometry, "synthetic"))
        self.lungs = mrml.showLungs(self.volumeNode, lungs)
        self.logic = COVIDLesionSegLogic()

    def tearDown(self):
        self.logic.close()
        slicer.mrmlScene.Clear(0)

    def test_known_lesions_are_measured(self):
        from COVIDLesionSegLib import mrml

        node = mrml.showLesions(self.volumeNode, self.lesion)
        figures = self.logic.measure(self.volumeNode, node, self.lungs)
        known = float(self.lesion.sum() * self.geometry.voxel_ml)
        self.assertAlmostEqual(figures["lesion_volume"]["value"], known, places=3)

    def test_lesions_are_found_by_the_bundled_network(self):
        if importlib.util.find_spec("torch") is None:
            self.skipTest("PyTorch is not installed; the module's page Settings leads to it")
        from COVIDLesionSegLib import mrml

        node = self.logic.segment(self.volumeNode, device="cpu", lungs=self.lungs)
        mask = mrml.lesionMask(node, self.volumeNode)
        # pixels three times as large as the network learned with: all that is asked is something at the right place
        self.assertTrue((mask & self.lesion).any())
        self.assertEqual(mrml.recordOf(node).model["id"], "coplenet-ctseg")
        self.assertNotIn("torch", sys.modules)


if __name__ == "__main__":
    unittest.main()
