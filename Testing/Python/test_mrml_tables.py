"""Measurements as tables and charts in the scene."""

from __future__ import annotations

import math

import numpy as np
import pytest

from COVIDLesionSegLib.errors import InputError
from COVIDLesionSegLib.imaging import Geometry, Volume
from COVIDLesionSegLib.measurement import evaluate, quantify

SHAPE = (12, 20, 24)
THIRDS = ("upper", "middle", "lower")
GRID = Geometry(SHAPE[::-1], (1.0, 1.0, 5.0), (-12.0, -10.0, 0.0))


@pytest.fixture
def tables(scene):
    from COVIDLesionSegLib.mrml import tables

    return tables


@pytest.fixture
def charts(scene):
    from COVIDLesionSegLib.mrml import charts

    return charts


@pytest.fixture(scope="module")
def lesion():
    mask = np.zeros(SHAPE, bool)
    mask[4:6, 8:12, 4:8] = True
    mask[9, 8:10, 16:18] = True
    return mask


@pytest.fixture(scope="module")
def volume():
    return Volume(np.random.default_rng(0).integers(-900, 100, SHAPE).astype(np.int16), GRID)


@pytest.fixture(scope="module")
def measured(volume, lesion):
    lungs = np.zeros(SHAPE, np.uint8)
    lungs[1:11, 2:18, 2:11] = 1
    lungs[1:11, 2:18, 13:22] = 2
    return quantify(volume, lesion, lungs)


@pytest.fixture(scope="module")
def measured_without_lungs(volume, lesion):
    return quantify(volume, lesion)


def cell(node, row_title, column):
    table = node.GetTable()
    titles = [node.GetCellText(row, 0) for row in range(node.GetNumberOfRows())]
    return table.GetValueByName(titles.index(row_title), column)


def test_regions_are_rows_and_quantities_columns(tables, measured):
    node = tables.showRegions(measured)
    for region, key in (("Whole study", "lesion_volume"), ("Left lung", "lesion_volume.left_lung")):
        assert cell(node, region, "lesion_volume").ToDouble() == pytest.approx(measured[key]["value"])
    assert cell(node, "Right lung, middle zone", "involvement").ToDouble() == pytest.approx(
        measured["involvement.right_middle_zone"]["value"]
    )


def test_columns_know_their_units_and_definitions(tables, measured):
    node = tables.showRegions(measured)
    for name, unit, ucum in (
        ("lesion_volume", "mL", "mL"),
        ("involvement", "%", "%"),
        ("mean_hu", "HU", "[hnsf'U]"),
        ("severity_by_zones", "", "1"),
    ):
        assert node.GetColumnUnitLabel(name) == unit
        assert node.GetColumnProperty(name, "ucum") == ucum
        assert node.GetColumnDescription(name) == measured[name]["definition"].replace('"', "'")
        assert node.GetColumnTitle(name) == measured[name]["title"] + (f" [{unit}]" if unit else "")


def test_what_was_not_measured_is_nan_and_says_why(tables, measured_without_lungs):
    node = tables.showRegions(measured_without_lungs)
    assert math.isnan(cell(node, "Whole study", "involvement").ToDouble())
    assert "no lung mask was given" in cell(node, "Whole study", "remarks").ToString()


def test_lesions_are_listed_with_ras_centers(tables, measured):
    node = tables.showLesionList(measured["lesions"]["value"])
    table = node.GetTable()
    assert table.GetNumberOfRows() == 2
    assert [table.GetValueByName(row, "index").ToInt() for row in range(2)] == [1, 2]
    center = [table.GetValueByName(0, axis).ToDouble() for axis in "RAS"]
    expected = (GRID.ijk_to_ras @ np.array([5.5, 9.5, 4.5, 1]))[:3]
    np.testing.assert_allclose(center, expected, atol=1e-9)
    assert node.GetColumnUnitLabel("R") == "mm"


def test_no_lesion_is_a_table_without_rows(tables):
    node = tables.showLesionList([])
    assert node.GetTable().GetNumberOfRows() == 0
    assert node.GetTable().GetNumberOfColumns() == 8


def test_a_comparison_keeps_nan_infinity_and_status(tables, lesion):
    node = tables.showComparison(evaluate(lesion, np.zeros_like(lesion), GRID.spacing_zyx))
    assert cell(node, "Dice", "value").ToDouble() == 0
    assert cell(node, "HD95", "value").ToDouble() == math.inf
    assert math.isnan(cell(node, "Relative volume error", "value").ToDouble())
    assert "reference is empty" in cell(node, "Dice", "status").ToString()
    assert cell(node, "HD95", "unit").ToString() == "mm"


def test_a_table_is_filled_again_with_one_event(tables, measured, measured_without_lungs, scene):
    node = tables.showRegions(measured)
    count, events = scene.GetNumberOfNodes(), []
    node.AddObserver("ModifiedEvent", lambda *_: events.append(1))
    assert tables.showRegions(measured_without_lungs, node) is node
    assert len(events) == 1
    assert scene.GetNumberOfNodes() == count
    scene.RemoveNode(node)
    with pytest.raises(InputError, match="table was deleted"):
        tables.showRegions(measured, node)


def test_tables_and_charts_survive_a_scene_bundle(tables, charts, measured, slicer_core, tmp_path):
    util = slicer_core.util
    before = tables.showRegions(measured)
    texts = [before.GetCellText(row, 1) for row in range(before.GetNumberOfRows())]
    definition = before.GetColumnDescription("involvement")
    tables.showComparison(evaluate(np.ones((2, 2, 2), bool), np.ones((2, 2, 2), bool), (1, 1, 1)))
    charts.showZones(measured)
    util.saveScene(str(tmp_path / "scene.mrb"))
    slicer_core.mrmlScene.Clear(False)
    util.loadScene(str(tmp_path / "scene.mrb"))
    node = util.getNode("Lesion measurements")
    assert [node.GetCellText(row, 1) for row in range(node.GetNumberOfRows())] == texts
    assert node.GetColumnDescription("involvement") == definition
    assert node.GetColumnUnitLabel("lesion_volume") == "mL"
    assert node.GetTable().GetColumnByName("lesion_count").GetDataTypeAsString() != "string"
    assert cell(util.getNode("Prediction against reference"), "Dice", "value").ToDouble() == 1
    chart = util.getNode("Lung zones")
    assert chart.GetNthPlotSeriesNode(0).GetTableNode().GetNumberOfRows() == 6


def columns_of(chart, number=0):
    series = chart.GetNthPlotSeriesNode(number)
    table = series.GetTableNode().GetTable()
    y = table.GetColumnByName(series.GetYColumnName())
    x = table.GetColumnByName(series.GetXColumnName() or series.GetLabelColumnName())
    return [x.GetValue(i) for i in range(x.GetNumberOfTuples())], [y.GetValue(i) for i in range(y.GetNumberOfTuples())]


def test_the_histogram_holds_every_voxel_on_its_side_of_the_limit(charts, volume, lesion, measured):
    hu = volume.array[lesion].astype(float)
    hu[:2] = [-3000, 3000]  # beyond the axis
    chart = charts.showHistogram(hu, GRID.voxel_ml)
    (x, light), (_, dense) = columns_of(chart, 0), columns_of(chart, 1)
    assert sum(light) == pytest.approx((hu < -300).sum() * GRID.voxel_ml)
    assert sum(dense) == pytest.approx((hu >= -300).sum() * GRID.voxel_ml)
    assert x[0] < -900 and x[-1] > 180
    assert "from -300 HU" in chart.GetNthPlotSeriesNode(1).GetName()
    assert chart.GetYAxisTitle() == "mL per 20 HU"


def test_a_limit_between_bins_moves_them(charts):
    chart = charts.showHistogram([-308, -307, -306], 1.0, consolidationFrom=-307.0)
    assert [sum(columns_of(chart, n)[1]) for n in (0, 1)] == [1, 2]


@pytest.mark.parametrize(
    "wrong", [{"binWidth": 0}, {"bounds": (0.0, 100.0)}, {"bounds": (200.0, -1000.0)}, {"consolidationFrom": 500.0}]
)
def test_a_histogram_without_bins_is_refused(charts, wrong):
    with pytest.raises(InputError, match="must hold the limit"):
        charts.showHistogram([0], 1.0, **wrong)


def test_zones_that_were_not_measured_have_no_bar(charts, measured, measured_without_lungs):
    chart = charts.showZones(measured)
    labels, values = columns_of(chart)
    assert labels[0] == "Right lung, upper zone" and len(labels) == 6
    expected = [measured[f"involvement.{side}_{zone}_zone"] for side in ("right", "left") for zone in THIRDS]
    assert values == pytest.approx([entry["value"] for entry in expected])
    assert chart.GetYAxisTitle() == "%"
    charts.showZones(measured_without_lungs, chart)
    assert chart.GetTitle().endswith("(6 of 6 not measured)")
    assert [math.isnan(v) for v in columns_of(chart)[1]] == [True]
    with pytest.raises(InputError, match="not measured by lobes"):
        charts.showZones(measured, kind="lobes")


def test_training_curves_follow_the_training(charts, scene):
    assert charts.showTrainingCurves({}) == (None, None)
    loss = [[step, 1 / (step + 1)] for step in range(5)]
    dice = {"student_dice": [[0, 0.5], [2, 0.6]], "teacher_dice": [[2, 0.7]]}
    kept = charts.showTrainingCurves({"loss": loss, **dice})
    assert columns_of(kept[0]) == ([0, 1, 2, 3, 4], pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]))
    assert columns_of(kept[1]) == ([0, 2], [0.5, 0.6])
    count = scene.GetNumberOfNodes()
    assert charts.showTrainingCurves({"loss": [*loss, [5, None]], **dice}, *kept) == kept
    assert math.isnan(columns_of(kept[0])[1][-1])
    assert scene.GetNumberOfNodes() == count
    charts.showTrainingCurves({"student_dice": dice["student_dice"]}, *kept)
    assert kept[1].GetNumberOfPlotSeriesNodes() == 1
    charts.showTrainingCurves(dice, *kept)
    assert kept[1].GetNumberOfPlotSeriesNodes() == 2


def test_a_chart_whose_data_were_deleted_is_made_whole(charts, measured, scene):
    chart = charts.showZones(measured)
    scene.RemoveNode(chart.GetNthPlotSeriesNode(0).GetTableNode())
    charts.showZones(measured, chart)
    assert len(columns_of(chart)[0]) == 6
    scene.RemoveNode(chart.GetNthPlotSeriesNode(0))
    charts.showZones(measured, chart)
    assert len(columns_of(chart)[0]) == 6
