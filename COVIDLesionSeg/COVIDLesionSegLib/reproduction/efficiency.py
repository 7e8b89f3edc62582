"""What networks cost: parameters, multiply-adds and measured time of one slice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import __version__
from ..errors import InputError
from ..files import write_text
from ..inference.devices import choose_device, cpu_name, exact_float32, wait_for
from ..measurement.tables import write_csv
from ..networks.factory import create_network, network_class
from . import baselines
from .catalog import Network, Row, Table
from .planning import Options, chosen_rows, command

_SECONDS = 2.0
_WARM_UP = 2
_MOST_RUNS = 50


@dataclass(frozen=True)
class Cost:
    """Of one network.

    Attributes:
        parameters: how many.
        macs: multiply-adds of convolutions and matrix products for one slice, as this implementation computes them.
        seconds: of one slice, the mean of ``runs``.
        runs: that were timed.
    """

    parameters: int
    macs: int
    seconds: float
    runs: int


def build(network: Network, width: int | None) -> nn.Module:
    """A network with random weights, own or of a library.

    Raises:
        InputError: it can't be made here.
    """
    wide = min(width or network.width or 0, network.width or 0)
    if network.source != "own":
        return baselines.make_network(network, wide or None)
    return create_network(network.family, **network.arguments, **network_class(network.family).scaled(wide))


def cost(network: nn.Module, size: tuple[int, int], device: torch.device) -> Cost:
    """Count and time a network on one slice of random intensities, with as many channels as it takes, float32."""
    network = network.to(device).eval()
    image = torch.rand((1, getattr(network, "in_channels", 1), *size), device=device)
    with torch.inference_mode(), exact_float32(device):
        counter = FlopCounterMode(display=False)
        with counter:
            network(image)
        runs: list[float] = []
        for number in range(_WARM_UP + _MOST_RUNS):
            started = time.perf_counter()
            network(image)
            wait_for(device)
            if number >= _WARM_UP:
                runs.append(time.perf_counter() - started)
            if sum(runs) > _SECONDS:
                break
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Cost(parameters, counter.get_total_flops() // 2, sum(runs) / len(runs), len(runs))


def efficiency_table(
    table: Table, options: Options, progress: Callable[[str, int, int], None] | None = None
) -> list[Path]:
    """Measure the rows and write the table as Markdown and CSV.

    Returns:
        The files.
    """
    rows = chosen_rows(table, options)
    size = options.resize or (256, 256)
    choice = choose_device(options.device)
    found: dict[str, Cost | str] = {}
    for number, row in enumerate(rows):
        try:
            found[row.id] = cost(build(row.network, options.width), size, choice.device)
        except InputError as error:
            found[row.id] = row.network.reason or str(error).rstrip(".")
        if progress is not None:
            progress("measuring", number + 1, len(rows))
    name = choice.name if choice.device.type != "cpu" else f"{cpu_name()}, {torch.get_num_threads()} thread(s)"
    made = f"{name}; PyTorch {torch.__version__}; covid-lesion-seg {__version__}; {size[0]} x {size[1]}"
    paths = [options.output / f"{table.id}.md", options.output / f"{table.id}.csv"]
    write_text(paths[0], _markdown(table, options, rows, found, made))
    write_csv(paths[1], [_csv_row(table, row, found[row.id], made) for row in rows])
    return paths


def _markdown(table: Table, options: Options, rows: Sequence[Row], found: dict[str, Cost | str], made: str) -> str:
    lines = [f"# {table.id}: {table.title}", "", f"Published: {table.source}. {table.published_note}", ""]
    if options.width is not None:
        lines += [f"**Not the paper's protocol: base width {options.width} where the network is wider.**", ""]
    lines += [f"- Measured on: {made}.", *(f"- {note}" for note in table.notes), ""]
    head = ["row"]
    for metric in table.metrics:
        head += [f"{metric.heading}, published", f"{metric.heading}, ours"]
    lines += ["| " + " | ".join([*head, "remarks"]) + " |", "| " + " | ".join(["---"] * (len(head) + 1)) + " |"]
    for row in rows:
        entry, cells = found[row.id], [row.title]
        for metric in table.metrics:
            value = (
                "-" if isinstance(entry, str) else f"{getattr(entry, metric.key) * metric.factor:.{metric.decimals}f}"
            )
            cells += ["not found", value]
        remark = _missing(row, entry) if isinstance(entry, str) else row.network.note
        lines.append("| " + " | ".join([*cells, remark]) + " |")
    return "\n".join([*lines, "", "```", command(table, options), "```", ""])


def _missing(row: Row, reason: str) -> str:
    if row.network.source == "none":
        return f"missing: {reason}"
    return f"missing: {reason}; filled after `{baselines.install_command()}`"


def _csv_row(table: Table, row: Row, entry: Cost | str, made: str) -> dict[str, object]:
    values: dict[str, object] = {"table": table.id, "row": row.id}
    for metric in table.metrics:
        measured = None if isinstance(entry, str) else getattr(entry, metric.key) * metric.factor
        values[metric.heading] = measured
    values["runs timed"] = None if isinstance(entry, str) else entry.runs
    return values | {"missing because": entry if isinstance(entry, str) else "", "measured on": made}
