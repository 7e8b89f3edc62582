"""Everything that is unmeasured without a GPU, in one run of ten minutes, as one JSON.

    python Testing/benchmarks/gpu.py [-o gpu.json] [--seconds 570] [--device cuda] [--only PART ...] [--miniature]

Parts: ``matmul`` (the card's bfloat16 rate), ``exactness`` (both networks against the CPU, in all precisions),
``speed`` (a CT of 300 slices against batch size, with the fraction of that rate), ``memory`` (the predictor under a
real limit of memory), ``training`` (steps per second of both papers' full protocols, with the loader's fraction) and
``covid_semiseg`` (one CARes-UNet of full width for as many epochs as the time left holds, judged on the test slices).

Each part has a time budget and stops itself; the JSON is written after every part. What hangs beyond the limit is cut
off by the process itself, with what is known written. With --miniature the same runs on the CPU with tiny arrays: it
shows that the script works, and nothing else. COVID-SemiSeg is looked for in data/covid-semiseg of
``COVIDLESIONSEG_SHARED``. Ends with 1 if a part failed or was cut off, with 143 if SIGTERM ended it: what the part
under way had found is written then, too.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "COVIDLesionSeg"), str(HERE)]

import numpy as np
import SimpleITK as sitk
import torch
from coplenet_ct import KEEP_ALL, SHARED, middle, unresized
from quantification import stretched
from scaling import resized_chest
from torch import nn
from training_step import write_cases

from COVIDLesionSegLib.cli import EXIT_TERMINATED
from COVIDLesionSegLib.errors import CancelledError
from COVIDLesionSegLib.files import write_json
from COVIDLesionSegLib.imaging import Volume
from COVIDLesionSegLib.inference import Predictor
from COVIDLesionSegLib.inference.devices import choose_device, wait_for
from COVIDLesionSegLib.inference.memory import release_memory
from COVIDLesionSegLib.inference.slices import SlicePreparation
from COVIDLesionSegLib.learning import Trainer, TrainingConfig
from COVIDLesionSegLib.learning.log import read_log
from COVIDLesionSegLib.measurement import dice
from COVIDLesionSegLib.models import LoadedModel, ModelRegistry, load_checkpoint
from COVIDLesionSegLib.networks.factory import network_class
from COVIDLesionSegLib.phantom.synthetic import synthetic_chest
from COVIDLesionSegLib.processes import TerminatedError, ending_by_sigterm
from COVIDLesionSegLib.reproduction.catalog import load_table
from COVIDLesionSegLib.reproduction.efficiency import cost
from COVIDLesionSegLib.reproduction.planning import Options, protocol, protocols
from COVIDLesionSegLib.reproduction.study import Study

MODELS = ("coplenet-ctseg", "caresunet-ctseg")
PROTOCOLS = ("tmi-3/full", "med-phys-1/caresunet")
# Most seconds of each part; the last takes what is left.
BUDGETS = {"matmul": 15, "exactness": 70, "speed": 100, "memory": 45, "training": 80, "covid_semiseg": 570}
# Of the time left, what the epochs may take: the rest is for the testing loss, the judgment and misjudged steps.
_EPOCHS_FRACTION = 0.6
_WARM_UP_STEPS = 5
_ENDED = "ended by SIGTERM"
# What is left of the memory that a run without limit takes.
_LIMITS = (0.6, 0.3, 0.1, 0.0)


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    matmul: int
    side: int
    slices: int
    compared: int
    laddered: int
    batches: tuple[int, ...]
    precisions: tuple[str, ...]
    width: int | None
    crop: int | None
    steps: int

    @property
    def miniature(self) -> bool:
        """Whether the figures mean nothing."""
        return self.width is not None


FULL = Scale(
    8192, 512, 300, 24, 64, (32, 1, 2, 4, 8, 16, 64, 128), ("float32", "bfloat16", "float16"), None, None, 100_000
)
MINIATURE = Scale(128, 64, 4, 2, 4, (1, 2), ("float32", "bfloat16"), 4, 32, 3)


@dataclass(frozen=True)
class Bench:
    """What the parts share.

    Attributes:
        device: where everything but the reference runs.
        scale: how large.
        found: the figures of earlier parts.
        data: folder of COVID-SemiSeg.
    """

    device: torch.device
    scale: Scale
    found: dict[str, Any]
    data: Path

    def chest(self, slices: int) -> tuple[Volume, np.ndarray]:
        """So many slices of the synthetic chest, with its lungs."""
        whole = max(self.scale.slices, slices)
        volume, lungs = whole_chest(whole, self.scale.side)
        return (volume, lungs) if whole == slices else middle(volume, lungs, slices)

    def model(self, name: str) -> LoadedModel:
        """A bundled model; in miniature it sees the slices as they are, which are smaller than it asks for."""
        model = load_checkpoint(ModelRegistry().path(name))
        return unresized(model) if self.scale.miniature else model

    def predictor(self, model: LoadedModel, precision: str = "auto", batch_size: int | None = None) -> Predictor:
        return Predictor(model, str(self.device), precision, batch_size)


@cache
def whole_chest(slices: int, side: int) -> tuple[Volume, np.ndarray]:
    """The synthetic chest of a size, with its lungs."""
    chest = synthetic_chest(oblique=False)
    return resized_chest(chest.volume, slices, side), stretched(chest.lungs, (slices, side, side))


def matmul(bench: Bench, found: dict[str, Any], until: float) -> None:
    """The rate of bfloat16 matrix products that the card reaches, multiply and add counted as two."""
    side = bench.scale.matmul
    a, b = (torch.rand(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    while len(seconds) < 3 or (len(seconds) < 50 and time.monotonic() < until):
        wait_for(bench.device)
        start = time.perf_counter()
        a @ b
        wait_for(bench.device)
        seconds.append(time.perf_counter() - start)
    found |= {"side": side, "rounds": len(seconds), "flops_per_second": 2 * side**3 / min(seconds[1:])}


def exactness(bench: Bench, found: dict[str, Any], until: float) -> None:
    """Both networks in all precisions against float32 on the CPU."""
    volume, lungs = bench.chest(bench.scale.compared)
    for name in MODELS:
        model = bench.model(name)
        reference = Predictor(model, "cpu", "float32").segment(volume, lungs, probability=True, postprocessing=KEEP_ALL)
        for precision in bench.scale.precisions:
            if time.monotonic() > until:
                return
            result = bench.predictor(model, precision).segment(volume, lungs, probability=True, postprocessing=KEEP_ALL)
            difference = np.abs(result.probability - reference.probability)
            found[f"{name} {precision}"] = {
                "largest_difference": float(difference.max()),
                "mean_difference": float(difference.mean()),
                "dice": dice(result.mask, reference.mask),
                "lesion_voxels": int(reference.mask.sum()),
                "warnings": list(result.record.warnings),
            }


def speed(bench: Bench, found: dict[str, Any], until: float) -> None:
    """The network phase of a CT, warm, against batch size, and the fraction of the measured matrix rate."""
    volume, lungs = bench.chest(bench.scale.slices)
    start = time.monotonic()
    for number, name in enumerate(MODELS):
        model = bench.model(name)
        share = start + (until - start) * (number + 1) / len(MODELS)
        macs = None
        for batch in bench.scale.batches:
            if time.monotonic() > share:
                break
            predictor = bench.predictor(model, batch_size=batch)
            predictor.segment(*middle(volume, lungs, max(batch, 2)), postprocessing=KEEP_ALL)
            if bench.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(bench.device)
            results = []
            while not results or (len(results) < 3 and time.monotonic() < share):
                results.append(predictor.segment(volume, lungs, postprocessing=KEEP_ALL).record)
            record = min(results, key=lambda record: record.seconds["network"])
            if macs is None:
                box = record.parameters["box"]
                crop = (box[1][1] - box[1][0], box[2][1] - box[2][0])
                size = SlicePreparation(model.card.preprocessing, crop, torch.device("cpu")).size
                macs = cost(model.network, size, bench.device).macs
                model.network.cpu()
            seconds, count = record.seconds["network"], record.parameters["slices"]
            rate = bench.found.get("matmul", {}).get("flops_per_second")
            found[f"{name} batch {batch}"] = {
                "slices": volume.array.shape[0],
                "slices_computed": count,
                "seconds": seconds,
                "slices_per_second": count / seconds,
                "precision": record.device["precision"],
                "batch_size_used": record.device["batch_size"],
                "fraction_of_matmul_rate": 2 * macs * count / seconds / rate if rate else None,
                "peak_bytes": torch.cuda.max_memory_reserved(bench.device) if bench.device.type == "cuda" else None,
                "rungs": list(record.device["rungs"]),
            }


def memory(bench: Bench, found: dict[str, Any], until: float) -> None:
    """The predictor with less and less memory than it takes, and how its mask compares with that of enough."""
    volume, lungs = bench.chest(bench.scale.laddered)
    model, cuda = bench.model(MODELS[0]), bench.device.type == "cuda"
    batch = bench.scale.batches[0] if cuda else max(bench.scale.batches)
    free(bench.device)
    base = torch.cuda.memory_reserved(bench.device) if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(bench.device)
    enough = bench.predictor(model, batch_size=batch).segment(volume, lungs, postprocessing=KEEP_ALL)
    peak = torch.cuda.max_memory_reserved(bench.device) if cuda else 0
    for limit in _LIMITS:
        if time.monotonic() > until:
            return
        free(bench.device)
        limited = model if cuda else replace(model, network=Narrow(model.network, max(1, int(batch * limit))))
        # made before the limit: it tries the device
        predictor = bench.predictor(limited, batch_size=batch)
        try:
            if cuda:
                total = torch.cuda.get_device_properties(bench.device).total_memory
                torch.cuda.set_per_process_memory_fraction((base + limit * (peak - base)) / total, bench.device)
            result = predictor.segment(volume, lungs, postprocessing=KEEP_ALL)
        finally:
            if cuda:
                torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
        device = result.record.device
        found[f"{limit:g} of the memory"] = {
            "by": "the allocator's limit" if cuda else "a network that refuses large batches",
            "bytes": int(base + limit * (peak - base)) if cuda else None,
            "device": device["used"],
            "precision": device["precision"],
            "rungs": list(device["rungs"]),
            "seconds": result.record.seconds["network"],
            "dice": dice(result.mask, enough.mask),
        }


class Narrow(nn.Module):
    """A network that says memory ran out where more slices come at once than it may take."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("More slices than allowed.")
        return self.network(x)


def training(bench: Bench, found: dict[str, Any], until: float) -> None:
    """Steps per second of both papers' protocols, and the fraction of the time that the network waits for data."""
    start = time.monotonic()
    for number, key in enumerate(PROTOCOLS):
        share = start + (until - start) * (number + 1) / len(PROTOCOLS)
        with tempfile.TemporaryDirectory() as folder:
            write_cases(Path(folder) / "cases")
            steps = trained_steps(training_configuration(bench, key), Path(folder), share)
        steps = steps[_WARM_UP_STEPS:] or steps
        seconds = [entry["seconds"] for entry in steps]
        found[key] = {
            "steps": len(steps),
            "steps_per_second": len(steps) / sum(seconds),
            "median_seconds": statistics.median(seconds),
            "waiting_fraction": sum(entry["waiting_seconds"] for entry in steps) / sum(seconds),
        }


def training_configuration(bench: Bench, key: str) -> TrainingConfig:
    """A paper's protocol on the two cases of ``training_step``; nothing is chosen and validated on the way."""
    table, row = protocols()[key]
    config, scale = protocol(table, row), bench.scale
    data = {"cases": "cases", "cache": "slices", "validation_patients": ("two",), "validation_share": 0.0}
    data["selection_fraction"] = 0.0
    run = {"steps": scale.steps, "device": str(bench.device)}
    run |= {"validation_interval": scale.steps, "checkpoint_interval": scale.steps}
    network = config.network
    if scale.crop is not None and scale.width is not None:
        data |= {"crop": (scale.crop,) * 2, "resize": (scale.crop,) * 2 if config.data.resize else ()}
        run["batch_size"] = 2
        network = replace(network, arguments=dict(network_class(network.name).scaled(scale.width)))
    return replace(config, data=replace(config.data, **data), run=replace(config.run, **run), network=network)


def trained_steps(config: TrainingConfig, base: Path, until: float) -> list[dict[str, Any]]:
    """What the log says of each step until the time is over."""
    trainer = Trainer(config, base / "run", base)
    try:
        trainer.run(cancelled=lambda: time.monotonic() > until)
    except CancelledError:
        # where the time is over, the steps so far are the figure; a signal is no figure
        if time.monotonic() <= until:
            raise
    return [entry for entry in read_log(base / "run") if entry["kind"] == "step"]


def covid_semiseg(bench: Bench, found: dict[str, Any], until: float) -> None:
    """One CARes-UNet by the protocol of Table 1, for the epochs that the time holds, judged on the test slices."""
    with tempfile.TemporaryDirectory() as folder:
        data, scale = bench.data, bench.scale
        if scale.miniature:
            write_pictures(data := Path(folder) / "pictures")
        if not data.is_dir():
            found["skipped"] = f"{data.name} is not there; give --data"
            return
        options = Options(
            data,
            Path(folder) / "out",
            rows=("caresunet",),
            seeds=(0,),
            epochs=1,
            width=scale.width,
            resize=(scale.crop, scale.crop) if scale.crop else None,
            device=str(bench.device),
            keep_intensities=scale.miniature,
        )
        table = load_table("med-phys-1")
        prepared = Study(table, options).prepare(Study(table, options).cells[0])
        rate = bench.found.get("training", {}).get(PROTOCOLS[1], {}).get("steps_per_second")
        if rate is None:
            found["skipped"] = "the part training gave no steps per second to choose the epochs by"
            return
        left = until - time.monotonic()
        epochs = 1 if scale.miniature else max(1, int(left * _EPOCHS_FRACTION * rate / prepared.epoch))
        epochs = min(epochs, table.epochs)
        study = Study(table, replace(options, epochs=epochs), cancelled=lambda: time.monotonic() > until)
        found["epochs"], found["protocol_epochs"] = epochs, table.epochs
        result = study.run(study.cells[0])
        scores = {
            reading: [slices[reading]["dice"] for slices in result["slices"].values()]
            for reading in next(iter(result["slices"].values()))
        }
        found |= {
            "steps": result["steps"],
            "seconds": result["seconds"],
            "precision": result["hardware"]["precision"],
            "loss": [result["curve"][0], result["curve"][-1]],
            "test_slices": len(result["slices"]),
            "dice": {reading: statistics.fmean(values) for reading, values in scores.items()},
            "published_dice": 0.731,
        }


def write_pictures(folder: Path) -> None:
    """A data set in the form of COVID-SemiSeg: four slices train, two are tested."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for number in range(count):
            gray = generator.integers(20, 60, (64, 64)).astype(np.uint8)
            mask = np.zeros_like(gray)
            mask[16:40, 8 + 4 * number : 36 + 4 * number] = 255
            gray[mask > 0] += 120
            for kind, array in (("images", gray), ("masks", mask)):
                (folder / part / kind).mkdir(parents=True, exist_ok=True)
                sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / part / kind / f"{part}{number}.png"))


def free(device: torch.device) -> None:
    """Give back what earlier predictors left on the device."""
    gc.collect()
    release_memory(device)


Part = Callable[[Bench, dict[str, Any], float], None]
PARTS: dict[str, Part] = {part.__name__: part for part in (matmul, exactness, speed, memory, training, covid_semiseg)}


class Report:
    """The JSON, which is whole after every part, also where the process has to end in the middle of one.

    Args:
        file: gets it.
        head: what it says besides the parts.
        limit_s: after so many seconds the process ends, whatever it does.
    """

    def __init__(self, file: Path, head: dict[str, Any], limit_s: float) -> None:
        self._file, self._lock, self._now = file, threading.Lock(), ""
        self.parts: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self._head = head
        self._watch = threading.Timer(limit_s, self._cut_off)
        self._watch.daemon = True
        self._watch.start()

    def run(self, name: str, part: Part, bench: Bench, until: float) -> None:
        """Run a part and write what came of it; what it found before it failed or was ended stays.

        Raises:
            TerminatedError: SIGTERM came, also where a training ended by itself for it.
        """
        found: dict[str, Any] = {}
        start, self._now = time.monotonic(), name
        try:
            part(bench, found, until)
        except TerminatedError:
            self.failed[name] = _ENDED
            raise
        except Exception as error:
            if getattr(error, "exit_status", None) == EXIT_TERMINATED:
                self.failed[name] = _ENDED
                raise TerminatedError from error
            traceback.print_exc()
            self.failed[name] = f"{type(error).__name__}: {error}"
        finally:
            self.parts[name], self.seconds[name] = found, round(time.monotonic() - start, 1)
            self.write()
        print(f"{name}: {self.seconds[name]} s {self.failed.get(name, '')}", flush=True)

    def write(self) -> None:
        """Write what is known."""
        with self._lock:
            write_json(self._file, self._head | {"parts": self.parts, "seconds": self.seconds, "failed": self.failed})

    def close(self) -> None:
        """Nothing is cut off any more."""
        self._watch.cancel()

    def _cut_off(self) -> None:
        self.failed[self._now] = "cut off: the time was over"
        self.write()
        # a kernel that hangs can't be stopped otherwise
        os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"), help="the JSON (gpu.json)")
    parser.add_argument("--seconds", type=float, default=570, help="for all of it (570)")
    parser.add_argument("--device", help="cuda, or cpu with --miniature, if not given")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "covid-semiseg", help="COVID-SemiSeg")
    parser.add_argument("--only", nargs="*", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--miniature", action="store_true", help="tiny, on the CPU: does the script work?")
    given = parser.parse_args(arguments)
    start = time.monotonic()
    choice = choose_device(given.device or ("cpu" if given.miniature else "cuda"))
    head = {
        "command": "python Testing/benchmarks/gpu.py" + (" --miniature" if given.miniature else ""),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "miniature": given.miniature,
        "device": choice.name,
        "torch": str(torch.__version__),
        "limit_s": given.seconds,
    }
    report = Report(given.output, head, given.seconds)
    bench = Bench(choice.device, MINIATURE if given.miniature else FULL, report.parts, given.data)
    try:
        with ending_by_sigterm():
            for name in given.only or PARTS:
                # what comes after the last epoch needs some seconds, too
                until = start + 0.95 * given.seconds
                if not given.miniature:
                    until = min(until, time.monotonic() + BUDGETS[name])
                report.run(name, PARTS[name], bench, until)
    except TerminatedError:
        return EXIT_TERMINATED
    finally:
        report.close()
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
