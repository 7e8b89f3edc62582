"""Measure every bar of speed and memory in one run, and write the table into docs/performance.md.

    python Testing/benchmarks/run_all.py [--quick] [--only NAME ...] [-o FOLDER]

Each benchmark runs in a process of its own and gives its figures by ``measure``; its script alone prints more. Figures
are ratios measured in one run where there is something to compare with, else seconds; the spread is that of the
rounds. Written are ``performance.json`` (all figures, with the machine and the date) and the table between the markers
of docs/performance.md that belong to this kind of processor: with AMX, or without. With --quick everything is tiny,
and the page is left as it is: the figures say that the scripts work, and nothing else. Ends with 1 if a bar is missed
or a benchmark failed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "COVIDLesionSeg"), str(HERE)]

from COVIDLesionSegLib.files import write_json, write_text

PAGE = HERE.parents[1] / "docs" / "performance.md"
COMMAND = "python Testing/benchmarks/run_all.py"
LIMIT_S = 600
_TINY = (40, 96, 96)


@dataclass(frozen=True)
class Bar:
    """One line of the table.

    Attributes:
        what: is measured, and against what.
        of: the figures of a benchmark -> one value a round.
        limit: None where there is no bar.
        least: whether the limit is the least that is allowed, else the most.
        unit: behind the value.
    """

    what: str
    of: Callable[[dict[str, Any]], list[float]]
    limit: float | None
    least: bool
    unit: str = ""

    def row(self, figures: dict[str, Any]) -> dict[str, Any]:
        values = [float(value) for value in self.of(figures)]
        middle = statistics.median(values)
        held = None if self.limit is None else bool(middle >= self.limit if self.least else middle <= self.limit)
        return {
            "what": self.what,
            "median": middle,
            "least": min(values),
            "most": max(values),
            "rounds": len(values),
            "unit": self.unit,
            "bar": None if self.limit is None else f"{'>=' if self.least else '<='} {self.limit:g} {self.unit}".strip(),
            "held": held,
        }


@dataclass(frozen=True)
class Check:
    """A benchmark: its script, how ``measure`` is called in full and in miniature, and the bars on its figures."""

    script: str
    full: dict[str, Any]
    quick: dict[str, Any]
    bars: tuple[Bar, ...]


def _figure(name: str) -> Callable[[dict[str, Any]], list[float]]:
    """A figure as it is, or as many as there were rounds."""
    return lambda found: found[name] if isinstance(found[name], list) else [found[name]]


def _pair(name: str) -> Callable[[dict[str, Any]], list[float]]:
    """The ratio of the other form to ours."""
    return lambda found: [found[name][1] / found[name][0]]


def _steps(slower: str, faster: str) -> Callable[[dict[str, Any]], list[float]]:
    """The ratio of two kinds of steps, each against the median of the faster."""
    return lambda found: [seconds / statistics.median(found[faster]) for seconds in found[slower]]


def _network_bar() -> float:
    """What the network phase has to reach: more where the processor multiplies bfloat16 matrices."""
    return 3.0 if processor()["amx"] or processor()["avx512_bf16"] else 1.5


def processor() -> dict[str, Any]:
    """Name, cores and instruction sets that decide how fast a network runs."""
    from COVIDLesionSegLib.inference.devices import cpu_name

    info = Path("/proc/cpuinfo")
    flags = set(info.read_text(encoding="utf-8", errors="replace").split()) if info.is_file() else set()
    return {
        "name": cpu_name(),
        "cores": os.cpu_count(),
        "amx": "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "avx512f": "avx512f" in flags,
        "avx2": "avx2" in flags,
    }


def checks() -> dict[str, Check]:
    """All benchmarks by name."""
    forward = {"threads": 2, "side": 256, "slices": 1, "base": 64, "repeats": 2}
    network = _network_bar()
    return {
        "network": Check(
            "coplenet_ct",
            {"rounds": 2},
            {"slices": 4},
            (
                Bar(
                    "lesion network, whole CT, against the plain loop",
                    _figure("times_faster"),
                    network,
                    True,
                    "times",
                ),
                Bar("the same, Dice of both masks", _figure("dice_of_the_masks"), 0.995, True),
            ),
        ),
        "network at full resolution": Check(
            "coplenet_ct",
            {"full_resolution": True, "slices": 24, "rounds": 2},
            {"full_resolution": True, "slices": 1},
            (
                Bar(
                    "lesion network without resizing, against the same",
                    _figure("times_faster"),
                    network,
                    True,
                    "times",
                ),
                Bar("the same, Dice of both masks", _figure("dice_of_the_masks"), 0.995, True),
            ),
        ),
        "memory": Check(
            "peak_memory",
            {},
            {"slices": 40, "side": 96},
            (Bar("peak memory of `segment`, 512 x 512 x 300", _figure("gb"), 2.5, False, "GB"),),
        ),
        "caresunet": Check(
            "caresunet_forward",
            {"arguments": forward},
            {"arguments": forward | {"side": 64, "base": 8, "repeats": 1}},
            (
                Bar("CARes-UNet forward against unfold and matmul", _pair("time"), 2, True, "times"),
                Bar("the same, peak memory", _pair("memory"), 3, True, "times less"),
            ),
        ),
        "lungs": Check(
            "lungs",
            {},
            {"shape": (80, 128, 128)},
            (Bar("lungs and their verdict, 512 x 512 x 300, processor", _figure("value"), 5, False, "s"),),
        ),
        "reading": Check(
            "reading",
            {"repeat": 1},
            {"slices": 4, "repeat": 1},
            (
                Bar("reading `.nii.gz`, time of decoding alone", _figure("ct.nii.gz"), None, False, "times"),
                Bar("reading a DICOM series, time of decoding alone", _figure("dicom"), None, False, "times"),
            ),
        ),
        "metrics": Check(
            "metrics",
            {"repeat": 1},
            {"repeat": 1},
            (
                Bar("Dice, RVE, HD95, 512 x 512 x 300, against MONAI", _figure("times_faster"), 15, True, "times"),
                Bar("the same numbers (1 = yes)", _figure("same_numbers"), 1, True),
                Bar("figures after an edit of four slices", _figure("update_seconds"), 0.3, False, "s"),
            ),
        ),
        "quantification": Check(
            "quantification",
            {},
            {"shape": _TINY},
            (
                Bar("quantify, 512 x 512 x 300, right and left lung", _figure("both lungs"), 2, False, "s"),
                Bar("compare two time points, rigid", _figure("rigid"), 20, False, "s"),
                Bar(
                    "lesions by runs against `ndimage.label`",
                    _figure("times_faster_labelling"),
                    None,
                    True,
                    "times",
                ),
            ),
        ),
        "training": Check(
            "training_step",
            {"steps": 4},
            {"steps": 3, "batch": 1, "crop": 32},
            (
                Bar("training step against the plain loop", _steps("plain_seconds", "seconds"), 1.5, True, "times"),
                Bar(
                    "self-ensembling against plain training",
                    _steps("ensembling_seconds", "seconds"),
                    1.5,
                    False,
                    "times",
                ),
                Bar("fraction of a step spent waiting for data", lambda f: [100 * f["waiting"]], 5, False, "%"),
            ),
        ),
        "worker": Check(
            "worker_overhead",
            {"rounds": 2},
            {"rounds": 1, "shape": _TINY, "edits": 2},
            (
                Bar("overhead of the worker, 512 x 512 x 300", _figure("file"), 1, False, "s"),
                Bar("the same behind a command prefix (arrays by pipe)", _figure("pipe"), None, False, "s"),
                Bar("table after an edit, through the worker", _figure("table"), 0.5, False, "s"),
            ),
        ),
        "panel": Check(
            "panel",
            {},
            {"shape": (80, 128, 128)},
            (
                Bar("panel opens", _figure("opens"), 0.5, False, "s"),
                Bar("first result into the scene, with surfaces", _figure("result"), 3, False, "s"),
                Bar("table after a brush stroke, in the panel", _figure("table"), 0.5, False, "s"),
            ),
        ),
        "clicks": Check(
            "clicks",
            {},
            {"shape": (80, 128, 128)},
            (Bar("correction by a click, slowest, processor", _figure("value"), 0.3, False, "s"),),
        ),
        "store": Check(
            "case_store",
            {"repeat": 3},
            {"cases": 5, "repeat": 1},
            (
                Bar("next of 1000 cases, opened by a new program", _figure("next"), 0.5, False, "s"),
                Bar("a revision of 512 x 512 x 300 saved", _figure("save"), 1, False, "s"),
            ),
        ),
        "tried": Check(
            "tried",
            {"studies": 3, "slices": 40, "rounds": 2},
            {"studies": 2, "slices": 40, "side": 128, "rounds": 1},
            tuple(
                Bar(f"tried: {what}", _figure(what), None, True, "times faster")
                for what in ("channels last", "folding batch norm", "activation in the same pass", "overlap in a batch")
            ),
        ),
        "scaling": Check("scaling", {}, {"slices": (24, 30), "side": 96, "cases": (1, 2)}, ()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="everything tiny, the page untouched")
    parser.add_argument("--only", nargs="*", metavar="NAME", help=f"of {', '.join(checks())}")
    parser.add_argument("-o", "--output", type=Path, help="folder of performance.json; default: docs, or none if quick")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure_one(arguments.one[0], Path(arguments.one[1]), arguments.quick)
        return 0
    if unknown := sorted(set(arguments.only or []) - set(checks())):
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(checks())}")
    start = time.monotonic()
    report = {
        "command": COMMAND + (" --quick" if arguments.quick else ""),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": processor(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "figures": {},
        "seconds": {},
        "failed": {},
    }
    for name in arguments.only or checks():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "figures.json"
            command = [sys.executable, __file__, "--one", name, str(file), *(["--quick"] if arguments.quick else [])]
            done = subprocess.run(command, capture_output=True, text=True)
            if file.is_file():
                report["figures"][name] = json.loads(file.read_text(encoding="utf-8"))
            else:
                report["failed"][name] = done.stderr.strip()[-2000:]
        report["seconds"][name] = round(time.monotonic() - began, 1)
        print(f"{name}: {report['seconds'][name]} s", *report["failed"].get(name, "").splitlines()[-1:], flush=True)
    report["all_seconds"] = round(time.monotonic() - start)
    print(text := table(report))
    place = arguments.output or (None if arguments.quick or arguments.only else PAGE.parent)
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / "performance.json", report)
    if not arguments.quick and not arguments.only:
        write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), text, report["processor"]["amx"]))
    missed = [row["what"] for row in rows(report) if row["held"] is False]
    print(f"{report['all_seconds']} s; missed: {', '.join(missed) or 'none'}", end="; ")
    print(f"failed: {', '.join(report['failed']) or 'none'}")
    return 1 if report["failed"] or (missed and not arguments.quick) else 0


def measure_one(name: str, file: Path, quick: bool) -> None:
    """Run one benchmark in this process and write its figures."""
    check = checks()[name]
    module = importlib.import_module(check.script)
    settings: dict[str, Any] = dict(check.quick if quick else check.full)
    if name == "caresunet":
        settings["arguments"] = argparse.Namespace(**settings["arguments"])
    if name == "metrics":
        # three cases of different size; MONAI takes seconds for each
        masks = [("made-up 1", *module.made_up(0))] if quick else list(module.cases(False))[:5:2]
        settings["masks"] = masks
    measure = module.seconds_of_a_ct if name == "lungs" else module.measure
    found = measure(**settings)
    write_json(file, found if isinstance(found, dict) else {"value": found})


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each bar whose benchmark gave figures."""
    known = checks()
    return [bar.row(figures) for name, figures in report["figures"].items() for bar in known[name].bars]


def table(report: dict[str, Any]) -> str:
    """The page's tables in Markdown."""
    chip = report["processor"]
    sets = [name for name in ("amx", "avx512_bf16", "avx512f", "avx2") if chip[name]]
    machine = f"{chip['name']}, {chip['cores']} cores, {', '.join(sets) or 'no vectors'}"
    lines = [
        f"`{report['command']}`, {report['date']}, {report['all_seconds']} s, load {report['load']} at the start:",
        f"{machine}.",
        "",
        "| measured | bar | median | spread | held |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows(report):
        spread = "" if row["rounds"] == 1 else f"{number(row['least'])} to {number(row['most'])} ({row['rounds']})"
        held = {None: "", True: "yes", False: "**no**"}[row["held"]]
        value = f"{number(row['median'])} {row['unit']}".strip()
        lines.append(f"| {row['what']} | {row['bar'] or ''} | {value} | {spread} | {held} |")
    lines += [f"| {name} | | failed | | **no** |" for name in report["failed"]]
    if scaling := report["figures"].get("scaling"):
        lines += ["", "| cost | " + " | ".join(scaling) + " |", "| --- |" + " --- |" * len(scaling)]
        lines.append("| s | " + " | ".join(number(seconds) for seconds in scaling.values()) + " |")
    if phases := report["figures"].get("network"):
        parts = {name: phases[f"seconds_{name}"] for name in ("reading", "lungs", "model", "network", "writing")}
        whole = sum(parts.values())
        lines += ["", f"| where the time goes ({phases['ct']}) | " + " | ".join(parts) + " | all |"]
        lines += ["| --- |" + " --- |" * (len(parts) + 1)]
        lines += ["| s | " + " | ".join(number(seconds) for seconds in parts.values()) + f" | {number(whole)} |"]
        lines += ["| % | " + " | ".join(f"{100 * seconds / whole:.0f}" for seconds in parts.values()) + " | 100 |"]
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that count; four of what is nearly 1."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.4g}" if 0.9 <= value < 1 else f"{value:.3g}"


def with_table(page: str, text: str, amx: bool) -> str:
    """The page with the table of one kind of processor replaced.

    Raises:
        ValueError: the page lost its markers.
    """
    kind = "with AMX" if amx else "without AMX"
    start, end = f"<!-- figures {kind} -->", f"<!-- end of figures {kind} -->"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"The page has no markers {start} and {end}; put them back.")
    return pattern.sub(lambda _: f"{start}\n{text}\n{end}", page, count=1)


if __name__ == "__main__":
    sys.exit(main())
