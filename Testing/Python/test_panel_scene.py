"""The panel while the scene changes under it: deleted nodes, loaded and closed scenes, another patient's CT."""

from __future__ import annotations

import pytest
from panel_fixtures import add_ct, add_reference, apply_and_wait, chest, find, let_run

SELECTORS = {
    "inputSelector": "inputVolume",
    "segmentationSelector": "lesionSegmentation",
    "referenceSelector": "referenceSegmentation",
    "earlierSelector": "earlierVolume",
    "earlierSegmentationSelector": "earlierSegmentation",
}


@pytest.fixture
def parameters(panel, mrml):
    return mrml.moduleParameters()


# ---- a node is deleted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_deleted_node_is_not_replaced_by_its_neighbor(selector, panel, ct, mrml, parameters):
    neighbors = [add_ct("first"), add_ct("second"), add_ct("third")]
    if "Volume" not in SELECTORS[selector]:
        neighbors = [add_reference(node, mrml, chest()[1]) for node in neighbors]
    find(panel, selector).setCurrentNode(neighbors[1])
    assert getattr(parameters, SELECTORS[selector]) is neighbors[1]
    mrml.removeNode(neighbors[1])
    let_run()
    assert getattr(parameters, SELECTORS[selector]) is None
    assert find(panel, selector).currentNode() is None


def test_a_deleted_region_of_interest_is_not_replaced_by_another(panel, ct, scene, mrml):
    regions = [scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name) for name in ("one", "two")]
    find(panel, "roiSelector").setCurrentNode(regions[0])
    mrml.removeNode(regions[0])
    assert find(panel, "roiSelector").currentNode() is None


def test_lungs_that_were_chosen_and_deleted_are_not_replaced_by_the_lesions(panel, ct, mrml, parameters):
    apply_and_wait(panel)
    find(panel, "lungsCombo").setCurrentIndex(1)
    mrml.removeNode(parameters.lungSegmentation)
    let_run()
    assert parameters.lungSegmentation is None and find(panel, "lungSelector").currentNode() is None
