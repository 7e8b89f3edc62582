"""The tables that can be reproduced, read from ``Resources/Reproduce``: protocols, rows, published figures.

Loads without PyTorch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..errors import InputError
from ..resources import load_json, resource

FOLDER = "Reproduce"
_NO_TABLES = ("networks", "networks.schema", "table.schema")


@dataclass(frozen=True)
class Network:
    """A network of a row.

    Attributes:
        id: its key.
        title: for people.
        source: "own", "monai", "smp" (segmentation_models_pytorch), "torchvision", or "none" where no kept library
            offers it.
        family: of an own network.
        builder: how a library's network is made, see ``reproduction.baselines``.
        arguments: of an own network's constructor.
        width: base width in the paper or of the original; None: the library fixes its widths.
        note: what stands in for what was published.
        reason: why there is none.
    """

    id: str
    title: str
    source: str
    family: str = ""
    builder: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    width: int | None = None
    note: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Metric:
    """A column.

    Attributes:
        key: of the measure.
        title: as the papers print it.
        unit: as shown.
        factor: shown value per measured value.
        decimals: shown.
        better: "higher" or "lower".
    """

    key: str
    title: str
    unit: str
    factor: float
    decimals: int
    better: str

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} [{self.unit}]" if self.unit else self.title


@dataclass(frozen=True)
class Published:
    """A figure as it is printed, in the column's unit.

    Attributes:
        mean: digits of the mean.
        sd: digits of the standard deviation over cases, or None where none is printed.
    """

    mean: str
    sd: str | None

    def __str__(self) -> str:
        return self.mean if self.sd is None else f"{self.mean} ± {self.sd}"


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        id: its key.
        title: for people.
        network: what is trained.
        method: "train", "semi-supervised" or "label-update".
        settings: tables of the training configuration that differ from the table's protocol.
        published: metric -> figure.
        significant: metrics that the paper marks as better than its baseline (p < 0.05).
        teacher: row whose network makes the pseudo-labels.
        pseudo_labels: threshold, base and convention of the filter.
        count: networks of a label update.
    """

    id: str
    title: str
    network: Network
    method: str = "train"
    settings: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Published] = field(default_factory=dict)
    significant: tuple[str, ...] = ()
    teacher: str = ""
    pseudo_labels: Mapping[str, Any] = field(default_factory=dict)
    count: int = 0


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper.

    Attributes:
        id: its key.
        title: for people.
        source: of the published figures.
        published_note: why there are none, or "".
        data: "pictures" (the layout of COVID-SemiSeg), "volumes", or "none".
        judged: "slices", "volumes", "slices-of-volumes" or "efficiency".
        metrics: columns.
        compared_with: row that the others are tested against.
        test_share: share of the patients that are tested, where the data don't say who is.
        split_published: how the paper split.
        epochs: of training, 0 where the protocol counts steps.
        steps: of training, 0 where it counts epochs.
        milestone_epochs: where the rate drops.
        normalize: gray of lung and of soft tissue in every picture, see ``reproduction.pictures``; or ().
        settings: tables of the training configuration.
        notes: choices and conventions, sentences.
        groups: figure that shows the same by lesion size, or "".
        curves: the table is about curves of training and testing loss.
        default_folds: folds if none are asked for; 0 is the protocol's one split.
        rows: in the paper's order.
    """

    id: str
    title: str
    source: str
    published_note: str
    data: str
    judged: str
    metrics: tuple[Metric, ...]
    compared_with: str
    test_share: float
    split_published: str
    epochs: int
    steps: int
    milestone_epochs: tuple[int, ...]
    normalize: tuple[float, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    groups: str
    curves: bool
    default_folds: int
    rows: tuple[Row, ...]

    def row(self, key: str) -> Row:
        """A row by its key.

        Raises:
            InputError: there is none.
        """
        for row in self.rows:
            if row.id == key:
                return row
        raise InputError(f"The table {self.id} has no row {key!r}; {_offer(key, [row.id for row in self.rows])}")


def table_ids() -> list[str]:
    """Keys of all tables, in order."""
    names = sorted(path.name.removesuffix(".json") for path in resource(FOLDER).glob("*.json"))
    return [name for name in names if name not in _NO_TABLES]


def load_table(key: str) -> Table:
    """A table by its key.

    Raises:
        InputError: there is none; the message offers what there is.
    """
    known = table_ids()
    if key not in known:
        raise InputError(f"There is no table {key!r}; {_offer(key, known)}")
    values = load_json(f"{FOLDER}/{key}.json")
    protocol, split = values["protocol"], values.get("split", {})
    return Table(
        id=values["id"],
        title=values["title"],
        source=values["source"],
        published_note=values.get("published_note", ""),
        data=values["data"],
        judged=values["judged"],
        metrics=tuple(Metric(**metric) for metric in values["metrics"]),
        compared_with=values.get("compared_with", ""),
        test_share=split.get("test_share", 0.0),
        split_published=split.get("published", ""),
        epochs=protocol.get("epochs", 0),
        steps=protocol.get("steps", 0),
        milestone_epochs=tuple(protocol.get("milestone_epochs", ())),
        normalize=tuple(protocol.get("normalize", ())),
        settings=protocol["settings"],
        notes=tuple(values.get("notes", ())),
        groups=values.get("groups", ""),
        curves=values.get("curves", False),
        default_folds=values.get("default_folds", 0),
        rows=tuple(_row(row) for row in values["rows"]),
    )


@cache
def networks() -> Mapping[str, Network]:
    """Every network that a row names."""
    return {key: Network(key, **values) for key, values in load_json(f"{FOLDER}/networks.json")["networks"].items()}


def _row(values: Mapping[str, Any]) -> Row:
    published = {key: Published(*figures) for key, figures in values.get("published", {}).items()}
    changed = {"network": networks()[values["network"]], "published": published}
    return Row(**{**values, **changed, "significant": tuple(values.get("significant", ()))})


def _offer(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    advice = f"did you mean {near[0]}? " if near else ""
    return f"{advice}There are {', '.join(known)}."
