"""The run of all benchmarks: its bars, its table, and that every script takes what it is called with."""

from __future__ import annotations

import ast
import importlib.util
import sys

import pytest
from conftest import REPOSITORY

BENCHMARKS = REPOSITORY / "Testing" / "benchmarks"


@pytest.fixture(scope="module")
def run_all():
    specification = importlib.util.spec_from_file_location("run_all", BENCHMARKS / "run_all.py")
    script = importlib.util.module_from_spec(specification)
    # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "run_all", script)
        specification.loader.exec_module(script)
        yield script


def test_a_benchmark_takes_what_it_is_called_with(run_all):
    for name, check in run_all.checks().items():
        tree = ast.parse((BENCHMARKS / f"{check.script}.py").read_text(encoding="utf-8"))
        wanted = "seconds_of_a_ct" if name == "lungs" else "measure"
        (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == wanted)
        taken = {argument.arg for argument in function.args.args}
        assert check.full.keys() | check.quick.keys() <= taken, name


def test_a_bar_is_held_by_the_median_of_its_rounds(run_all):
    least = run_all.Bar("speed", lambda found: found["ratios"], 3.0, True, "times")
    row = least.row({"ratios": [2.9, 3.1, 3.2]})
    assert (row["median"], row["least"], row["most"], row["rounds"], row["held"]) == (3.1, 2.9, 3.2, 3, True)
    assert row["bar"] == ">= 3 times"
    assert least.row({"ratios": [2.9]})["held"] is False
    most = run_all.Bar("time", lambda found: [found["s"]], 0.5, False, "s")
    assert [most.row({"s": seconds})["held"] for seconds in (0.4, 0.5, 0.6)] == [True, True, False]
    assert run_all.Bar("alone", lambda found: [1.0], None, True).row({})["held"] is None


def test_the_table_takes_the_place_of_the_one_of_its_kind_of_processor(run_all):
    page = run_all.PAGE.read_text(encoding="utf-8")
    kinds = {True: "with AMX", False: "without AMX"}
    for amx, kind in kinds.items():
        changed = run_all.with_table(page, "| a new table |", amx)
        part = changed.split(f"<!-- figures {kind} -->")[1].split(f"<!-- end of figures {kind} -->")[0]
        assert part == "\n| a new table |\n"
        other = f"<!-- figures {kinds[not amx]} -->"
        assert changed.split(other)[1].split("<!-- end")[0] == page.split(other)[1].split("<!-- end")[0]
    with pytest.raises(ValueError, match="markers"):
        run_all.with_table("# A page without markers", "", True)


def test_a_benchmark_that_failed_and_a_missed_bar_are_seen_in_the_table(run_all):
    report = {
        "command": run_all.COMMAND,
        "date": "2026-01-01",
        "processor": run_all.processor() | {"name": "Some processor", "cores": 2},
        "load": 0.1,
        "all_seconds": 400,
        "figures": {"memory": {"gb": 2.6, "seconds": 30}, "scaling": {"100 slices": 8.0, "1 case": 0.05}},
        "failed": {"clicks": "no display"},
    }
    text = run_all.table(report)
    assert "Some processor, 2 cores" in text
    assert "| peak memory of `segment`, 512 x 512 x 300 | <= 2.5 GB | 2.6 GB | | **no** |" in text.replace(
        "|  |", "| |"
    )
    assert "| clicks | | failed | | **no** |" in text
    assert "| cost | 100 slices | 1 case |" in text
