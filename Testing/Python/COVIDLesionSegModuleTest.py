"""Inside Slicer: the module as it was built finds its library, its resources and its weights, and is light."""

import subprocess
import sys
import unittest
from pathlib import Path

import slicer


class COVIDLesionSegModuleTest(unittest.TestCase):
    def setUp(self):
        self.folder = Path(slicer.modules.covidlesionseg.path).resolve().parent

    def test_the_library_is_the_one_beside_the_module(self):
        import COVIDLesionSegLib

        self.assertEqual(Path(COVIDLesionSegLib.__file__).resolve().parent.parent, self.folder)

    def test_one_resolver_finds_every_resource(self):
        from COVIDLesionSegLib.resources import load_json, resources_folder

        # beside the module where it is built or installed, one folder up in the source tree
        self.assertIn(resources_folder(), (self.folder / "Resources", self.folder.parent / "Resources"))
        widget = slicer.modules.COVIDLesionSegWidget
        module = slicer.modules.COVIDLesionSegInstance
        forms = sorted(path.name for path in (resources_folder() / "UI").glob("*.ui"))
        self.assertTrue(forms)
        for name in ("Models.json", "Icons/COVIDLesionSeg.png", *(f"UI/{form}" for form in forms)):
            for found in (module.resourcePath(name), widget.resourcePath(name)):
                self.assertEqual(Path(found), resources_folder() / name)
                self.assertTrue(Path(found).is_file(), found)
        for entry in load_json("Terminologies/segments.json")["segments"]:
            self.assertTrue(entry["name"])

    def test_the_bundled_weights_arrived_whole(self):
        from COVIDLesionSegLib.models import ModelRegistry

        bundled = [entry for entry in ModelRegistry().list() if entry.status == "bundled"]
        self.assertTrue(bundled)
        for entry in bundled:
            self.assertTrue(ModelRegistry().verify(entry.id).id)

    def test_sample_data_stands_in_slicers_list(self):
        from COVIDLesionSegLib.mrml.sample_data import registerSampleData
        from COVIDLesionSegLib.phantom.samples import sample_category, samples

        # the module Sample Data can be left out of Slicer; the host has none
        self.assertEqual(registerSampleData(), hasattr(slicer.modules, "sampledata"))
        if hasattr(slicer.modules, "sampledata"):
            import SampleData

            sources = SampleData.SampleDataLogic.sampleDataSourcesByCategory(sample_category())
            self.assertEqual([source.sampleName for source in sources], [sample.name for sample in samples()])

    def test_the_module_loads_without_pytorch_and_scipy(self):
        # in a process of its own: other modules of Slicer may have loaded them in this one
        code = (
            f"import sys; sys.path.insert(0, {str(self.folder)!r})\n"
            "import COVIDLesionSegLib.imaging, COVIDLesionSegLib.measurement, COVIDLesionSegLib.models\n"
            "import COVIDLesionSegLib.inference, COVIDLesionSegLib.learning, COVIDLesionSegLib.worker\n"
            "heavy = {'torch', 'scipy', 'SimpleITK', 'matplotlib', 'pydicom', 'highdicom'} & set(sys.modules)\n"
            "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
        )
        from COVIDLesionSegLib.worker.process import own_python

        done = subprocess.run([own_python(), "-c", code], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("torch", sys.modules)


if __name__ == "__main__":
    unittest.main()
