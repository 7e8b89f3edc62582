"""COVIDLesionSeg from Slicer's Python console: the example of docs/engineer.md, run by a test."""

from COVIDLesionSeg import COVIDLesionSegLogic

logic = COVIDLesionSegLogic()
ct = slicer.util.getNode("CT")  # noqa: F821  # Slicer's console has it
lesions = logic.segment(ct, model="coplenet-ctseg", device="cpu")
figures = logic.measure(ct, lesions)
print(f"{figures['lesion_volume']['value']:.1f} mL, {figures['involvement']['value']:.1f} % of the lungs")
logic.close()
