"""A worker's child inside the test: the real client talks the real protocol to it, functions of the test answer.

``FakeWorker().spawn`` goes where ``QtProcess`` goes. ``tasks`` maps a task's name to a function of (parameters, arrays)
that returns (values, arrays), raises one of our errors, or returns one of the orders below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from COVIDLesionSegLib.errors import COVIDLesionSegError
from COVIDLesionSegLib.imaging import Volume
from COVIDLesionSegLib.inference import RunRecord
from COVIDLesionSegLib.inference.levels import ProbabilityLevels, levels_of
from COVIDLesionSegLib.inference.record import describe_input
from COVIDLesionSegLib.worker import protocol as p
from COVIDLesionSegLib.worker.faults import failure_of
from COVIDLesionSegLib.worker.measurement_tasks import Measurements
from COVIDLesionSegLib.worker.tasks import Context, perform
from COVIDLesionSegLib.worker.transport import read_array, write_array

HOLD, DIE, GARBAGE = "hold", "die", "garbage"


@dataclass
class Asked:
    """A request as a child got it."""

    kind: str
    task: str
    parameters: dict[str, Any]
    arrays: dict[str, Any]


@dataclass
class FakeWorker:
    """Makes children, and remembers what they were asked."""

    timer: Callable[[int, Callable[[], None]], Any]
    tasks: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Any]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    children: list[FakeChild] = field(default_factory=list)

    def spawn(self, command: list[str], environment: Mapping[str, str]) -> FakeChild:
        child = FakeChild(self, command)
        self.children.append(child)
        return child

    def named(self, task: str) -> list[Asked]:
        """Requests of one task."""
        return [asked for asked in self.asked if asked.task == task]


class FakeChild:
    """The ``Process`` that the client sees."""

    def __init__(self, worker: FakeWorker, command: list[str]) -> None:
        self.worker = worker
        self.command = command
        self.kind = command[command.index("--kind") + 1]
        self.pid = None
        self.is_running = False
        self.killed = False
        self._decoder = p.Decoder()
        self._held: p.Ask | None = None
        # the measurement child's own tasks need no PyTorch and are fast on small CTs
        self._measurements = Measurements()

    def start(self, listener: Any) -> None:
        self._listener = listener
        self.pid, self.is_running = 4_000_000 + len(self.worker.children), True
        hello = p.Hello(self.kind, "0", "3", "test", self.pid, {"tasks": [], "transports": ["file"]})
        self._later(lambda: self._say(hello))

    def write(self, data: bytes | memoryview) -> None:
        if self.is_running:
            for frame in self._decoder.feed(bytes(data)):
                self._later(lambda message=frame.message: self._take(message))

    def pending(self) -> int:
        return 0

    def close_input(self) -> None:
        self._later(self._end)

    def kill_tree(self) -> None:
        self.killed = True
        self._later(lambda: self._end(-9))

    # ---- what it does ---------------------------------------------------------------------------------------------

    def _take(self, message: p.Message) -> None:
        if isinstance(message, p.Close):
            self._end()
        elif isinstance(message, p.Cancel) and self._held is not None:
            self._held = None
            self._say(p.Failure(message.id, "cancelled", "The run was cancelled."))
        elif isinstance(message, p.Ask):
            arrays = {header.name: np.array(read_array(Path(message.folder), header)) for header in message.arrays}
            asked = Asked(self.kind, message.task, message.parameters, arrays)
            self.worker.asked.append(asked)
            self._say(p.Started(message.id))
            self._answer(message, asked)

    def _answer(self, ask: p.Ask, asked: Asked) -> None:
        function = self.worker.tasks.get(ask.task) or self._own(ask.task)
        try:
            outcome = function(asked.parameters, asked.arrays)
        except COVIDLesionSegError as error:
            self._say(failure_of(error, ask.id))
            return
        if outcome == HOLD:
            self._held = ask
            self._say(p.ProgressMessage(ask.id, "network", 3, 10))
        elif outcome == DIE:
            self._end(-11)
        elif outcome == GARBAGE:
            self._listener.output(b"Segmentation fault (core dumped)\n")
        elif isinstance(outcome, p.Failure):
            self._say(p.Failure(**{**vars(outcome), "id": ask.id}))
        else:
            self.reply(ask, *outcome)

    def release(self, values: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Answer the request that is held."""
        ask, self._held = self._held, None
        self.reply(ask, values, arrays)

    def reply(self, ask: p.Ask, values: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        folder, headers = Path(ask.folder), []
        for name, array in arrays.items():
            header = p.ArrayHeader.of(name, array, f"reply-{name}.npy")
            for _ in write_array(folder / header.file, array):
                pass
            headers.append(header)
        self._say(p.Result(ask.id, dict(values), headers))

    def _say(self, message: p.Message) -> None:
        if self.is_running:
            self._listener.output(p.encode(message))

    def _end(self, code: int = 0) -> None:
        if self.is_running:
            self.is_running = False
            self._listener.ended(code, "")

    def _later(self, action: Callable[[], None]) -> None:
        self.worker.timer(0, action)

    def _own(self, task: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], Any]:
        if self.kind == "lesions":
            return getattr(self, f"_{task}")

        def measure(parameters: Mapping[str, Any], arrays: dict[str, Any]) -> Any:
            answer = perform(self._measurements, task, parameters, arrays, Context())
            return answer.values, answer.arrays

        return measure

    # ---- the tasks of a child that works as it should -------------------------------------------------------------

    def _segment(self, parameters: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
        return segment_by_threshold(parameters, arrays)

    def _doctor(self, parameters: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
        return doctor_report(), {}

    def _verify_model(self, parameters: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
        return {"card": {"id": parameters["model"], "weights_sha256": "ab" * 32}}, {}


def segment_by_threshold(parameters: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    """Lesion is what lies between -700 and 100 HU in the lungs, which are what lies below it and its holes."""
    volume = _volume(parameters, arrays)
    lungs = arrays.get("lungs")
    if lungs is None:
        lungs = np.zeros(volume.array.shape, np.uint8)
        inside = volume.array < 20
        half = lungs.shape[2] // 2
        lungs[:, 4:-4, 4:half], lungs[:, 4:-4, half:-4] = inside[:, 4:-4, 4:half], 2 * inside[:, 4:-4, half:-4]
    mask = (lungs != 0) & (volume.array > -700)
    maps = {name: mask.astype(np.float32) for name in ("probability", "uncertainty") if parameters.get(name)}
    described = {}
    if parameters.get("levels"):
        # what is a little denser than lung is seen a little: 0.02 at -860 HU, 0.4 at -760 HU
        probability = np.clip(0.02 * np.exp((volume.array + 860.0) / 33), 0.0, 0.49).astype(np.float32)
        probability[mask] = 0.9
        probability[lungs == 0] = 0
        levels = ProbabilityLevels.of(levels_of(probability, 0.5), 0.5)
        maps["levels"], described = levels.levels, {"levels": levels.described()}
    summary = {"lesion_ml": float(mask.sum() * volume.geometry.voxel_ml)}
    values = {"record": record_of(volume, parameters).to_json(), "summary": summary, **described}
    return values, {"mask": mask.view(np.uint8), "lungs": lungs, **maps}


def record_of(volume: Volume, parameters: Mapping[str, Any]) -> RunRecord:
    model = {"id": parameters.get("model"), "name": "fake", "version": "1", "network": "coplenet", "license": "none"}
    device = {"requested": parameters["device"], "used": "cpu"}
    return RunRecord(describe_input(volume), model, device, {}, parameters["postprocessing"], {"network": 0.1})


def doctor_report() -> dict[str, Any]:
    """What the doctor says on a computer without a graphics card."""
    reason = "The processor is used because this PyTorch was built without CUDA."
    processor = {"name": "Some processor", "threads": 2, "bfloat16": True, "instructions": "AVX512"}
    torch = {"version": "2.13.0", "cuda_build": None, "rocm_build": None, "nvidia_driver": None}
    chosen = {"requested": "auto", "device": "cpu", "name": "Some processor", "reason": reason}
    devices = {"torch": torch, "processor": processor, "gpus": [], "chosen": chosen}
    return {"devices": devices, "smoke_test": {"passed": True, "problem": ""}}


def _volume(parameters: Mapping[str, Any], arrays: Mapping[str, Any]) -> Volume:
    return Volume(arrays["volume"], p.geometry_from_json(parameters["geometry"]), "CT")
