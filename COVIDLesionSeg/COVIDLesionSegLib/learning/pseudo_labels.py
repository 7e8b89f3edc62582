"""Pseudo-labels for slices that nobody labeled, kept only where the network is sure of them.

Source: Xu et al., Med Phys 48(11), 2021, Fig. 5: a mask is kept if the mean entropy of its slice is below 0.6. The base
of the logarithm is not stated. The released network's own convention (a softmax over sigmoid outputs) can only give
0.58 to 0.69 nats, and there 0.6 is a real cut; over properly normalized probabilities 0.6 nats rejects almost nothing.
Both are offered, the share that is accepted is reported, and 0 % or 100 % is warned about.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CancelledError, InputError
from ..files import atomic_path, write_json, write_text
from ..inference.devices import choose_device, choose_precision
from ..inference.slices import SlicePreparation, for_pictures, slice_logits
from ..models import LoadedModel, Preprocessing
from .data import TrainingCase
from .distributed import Ranks
from .store import read_picture

Base = Literal["nats", "bits"]
Convention = Literal["normalized", "softmax_of_sigmoids"]


@dataclass(frozen=True)
class PseudoLabel:
    """What became of one slice.

    Attributes:
        id: of the slice.
        entropy: mean over its pixels, in the chosen base.
        accepted: whether its mask was kept.
        lesion_share: share of pixels that the mask marks.
    """

    id: str
    entropy: float
    accepted: bool
    lesion_share: float


@dataclass(frozen=True)
class PseudoLabelReport:
    """What became of all slices.

    Attributes:
        manifest: CSV of the accepted ones, for ``data.pseudo_cases``.
        accepted: how many were kept.
        total: how many were looked at.
        warning: a sentence when the filter did nothing or left nothing, else "".
    """

    manifest: Path
    accepted: int
    total: int
    warning: str

    @property
    def fraction(self) -> float:
        """Share that was accepted."""
        return self.accepted / self.total


def mean_entropy(logits: Tensor, base: Base = "nats", convention: Convention = "normalized") -> Tensor:
    """Mean entropy over the pixels of each image.

    Args:
        logits: (N, 2, H, W), before softmax.
        base: of the logarithm.
        convention: "normalized", the softmax of the logits; "softmax_of_sigmoids", what the released code's loss saw.

    Returns:
        (N,), float32, 0 ... ln 2 nats or 0 ... 1 bit.

    Raises:
        InputError: an unknown base or convention.
    """
    if base not in get_args(Base) or convention not in get_args(Convention):
        raise InputError(
            f"Entropy in {base!r} by {convention!r} is unknown; "
            f"choose {' or '.join(get_args(Base))}, and {' or '.join(get_args(Convention))}."
        )
    values = torch.sigmoid(logits.float()) if convention == "softmax_of_sigmoids" else logits.float()
    log_p = torch.log_softmax(values, dim=1)
    entropy = -(log_p.exp() * log_p).sum(1).flatten(1).mean(1)
    return entropy / np.log(2) if base == "bits" else entropy


def pseudo_label(
    model: LoadedModel,
    cases: Sequence[TrainingCase],
    folder: Path | str,
    threshold: float = 0.6,
    base: Base = "nats",
    convention: Convention = "normalized",
    device: str = "auto",
    ranks: Ranks | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    precision: str = "float32",
) -> PseudoLabelReport:
    """Label pictures of slices with a model and keep those it is sure of.

    Writes ``masks/<id>.png`` (0 and 255) of the accepted slices, ``pseudo_labels.csv`` (a manifest for
    ``data.pseudo_cases``) and ``pseudo_labels.json`` (every slice with its entropy, and the settings).

    Args:
        model: the network and its card; the card's preprocessing is followed.
        cases: pictures without masks.
        folder: of the results.
        threshold: slices with a mean entropy below it are accepted.
        base: see :func:`mean_entropy`.
        convention: see :func:`mean_entropy`.
        device: where to compute.
        ranks: of a distributed job, whose processes share the slices.
        progress: called as progress("pseudo-labeling", done, total).
        cancelled: asked between slices.
        precision: of the network, see :func:`.inference.devices.choose_precision`.

    Raises:
        InputError: no slice, or a case that is no picture.
        CancelledError: asked to stop.
    """
    ranks = ranks or Ranks()
    folder = Path(folder)
    if not cases:
        raise InputError("There is no slice to label.")
    volumes = [case.id for case in cases if case.kind != "picture"]
    if volumes:
        raise InputError(
            f"{volumes[0]} is a volume; pseudo-labels are made for pictures of slices. "
            "Use `segment` for volumes and list its masks in a manifest."
        )
    where = choose_device(device).device
    network = model.network.to(where).eval()
    chosen, _ = choose_precision(precision, where)
    autocast = None if chosen == torch.float32 else chosen
    own = cases[ranks.rank :: ranks.count]
    found = []
    for number, case in enumerate(own):
        if cancelled is not None and cancelled():
            raise CancelledError("Stopped while pseudo-labeling.")
        logits = picture_logits(network, model.card.preprocessing, read_picture(case.image), where, autocast)
        entropy = float(mean_entropy(logits, base, convention))
        # ties go to the background, as everywhere
        mask = (logits[0, 1] > logits[0, 0]).cpu().numpy()
        label = PseudoLabel(case.id, entropy, entropy < threshold, float(mask.mean()))
        if label.accepted:
            _write_mask(mask, folder / "masks" / f"{case.id}.png")
        found.append(label)
        if progress is not None:
            progress("pseudo-labeling", number + 1, len(own))

    labels = sorted(ranks.gather_objects(found), key=lambda label: label.id)
    accepted = sum(label.accepted for label in labels)
    report = PseudoLabelReport(folder / "pseudo_labels.csv", accepted, len(labels), _warning(accepted, len(labels)))
    if ranks.is_main:
        images = {case.id: case.image for case in cases}
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["id", "ct", "lesion"])
        # a slice that is surely free of lesion is worth learning, too
        for label in labels:
            if label.accepted:
                mask_name = f"masks/{label.id}.png" if label.lesion_share > 0 else "none"
                writer.writerow([label.id, images[label.id].resolve(), mask_name])
        write_text(report.manifest, buffer.getvalue())
        settings = {"threshold": threshold, "base": base, "convention": convention, "model": model.card.id}
        write_json(
            folder / "pseudo_labels.json",
            {
                **settings,
                "accepted": accepted,
                "total": len(labels),
                "warning": report.warning,
                "slices": [asdict(label) for label in labels],
            },
        )
    ranks.barrier()
    return report


def picture_logits(
    network: torch.nn.Module,
    preprocessing: Preprocessing,
    picture: NDArray[np.uint8],
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """A network's answer to a picture of a slice, on the picture's own pixels.

    Args:
        network: in eval mode, on the device.
        preprocessing: whether and how the picture is resized and padded.
        picture: (H, W), 0 ... 255.
        device: where to compute.
        autocast: type of the mixed precision, or None.

    Returns:
        Logits (1, 2, H, W), float32.
    """
    preparation = SlicePreparation(for_pictures(preprocessing), (picture.shape[0], picture.shape[1]), device)
    with torch.inference_mode():
        return preparation.restore(slice_logits(network, preparation, picture[None], autocast).float())


def _write_mask(mask: NDArray[np.bool_], path: Path) -> None:
    import SimpleITK as sitk

    with atomic_path(path) as temporary:
        sitk.WriteImage(sitk.GetImageFromArray(mask.astype(np.uint8) * np.uint8(255)), str(temporary))


def _warning(accepted: int, total: int) -> str:
    if accepted == total:
        return "Every slice was accepted: the entropy threshold filters nothing; lower it or check base and convention."
    if accepted == 0:
        return "No slice was accepted: the entropy threshold is below what the model gives; check base and convention."
    return ""
