"""What stands beside a model's weights: its network, how to prepare an image, its origin, what it may be used for.

A card travels as JSON in the header of our safetensors files, so that it can be read without PyTorch and without
reading the weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from ..documents import MOST_JSON_BYTES, parse_json, parse_object
from ..errors import ModelError, ReadError
from ..files import atomic_path, regular_file
from ..imaging.volume import LUNG_WINDOW_LEVEL, LUNG_WINDOW_WIDTH
from ..imports import is_import_path
from ..networks import NETWORKS

# The key under which a safetensors file's metadata holds the card.
CARD_KEY = "model_card"
# The key that only the card of a network for lungs has: the grid that it learned on.
_LUNG_GRID = "lung_grid"
ACTIVATIONS = ("softmax", "sigmoid")
# A Gaussian wider than this would leave nothing of a lesion of an ordinary size.
LARGEST_SMOOTHING_MM = 20.0
# The format itself allows 100 MB; the headers of these networks have some kB.
_LARGEST_HEADER = MOST_JSON_BYTES
# The published COPLE-Net has 42 MB, CARes-UNet 120 MB.
_MOST_BYTES = 1 << 30
_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Preprocessing:
    """How axial slices in Hounsfield units become the network's input, and its output a probability.

    Attributes:
        window_width: width of the intensity window, HU; the window becomes [0, 1].
        window_level: center of the window, HU.
        lung_crop_margin: voxels kept around the lungs' bounding box on every axis (in plane and along z); None: whole
            slices, no crop.
        resize: rows and columns (H, W) that every slice is resized to; None: no resizing.
        activation: "softmax" (over the classes) or "sigmoid" (of the lesion's logit alone): how logits become the
            probability that is shown.
        pad_multiple: sides are padded by reflection to a multiple of this many voxels.
        slice_offsets_mm: distances (mm) along the slices' axis, rising, at which the network sees slices as channels of
            its input; 0, the slice itself, is one of them. (0,) is a network that sees each slice alone.

    Raises:
        ModelError: a value that is not allowed.
    """

    window_width: float = LUNG_WINDOW_WIDTH
    window_level: float = LUNG_WINDOW_LEVEL
    lung_crop_margin: int | None = 8
    resize: tuple[int, int] | None = None
    activation: str = "softmax"
    pad_multiple: int = 16
    slice_offsets_mm: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        _require(_is_number(self.window_width) and self.window_width > 0, "window_width", "a number above 0", self)
        _require(_is_number(self.window_level), "window_level", "a number", self)
        margin = self.lung_crop_margin
        _require(
            margin is None or (_is_integer(margin) and margin >= 0), "lung_crop_margin", "an integer >= 0 or null", self
        )
        if self.resize is not None:
            sides = self.resize
            good = isinstance(sides, list | tuple) and len(sides) == 2 and all(_is_integer(s) and s > 0 for s in sides)
            _require(good, "resize", "two positive integers (H, W) or null", self)
            object.__setattr__(self, "resize", tuple(sides))
        _require(self.activation in ACTIVATIONS, "activation", f"one of {', '.join(ACTIVATIONS)}", self)
        multiple = self.pad_multiple
        _require(
            _is_integer(multiple) and multiple > 0 and multiple % 16 == 0,
            "pad_multiple",
            "a positive multiple of 16",
            self,
        )
        offsets = self.slice_offsets_mm
        good = isinstance(offsets, list | tuple) and are_slice_offsets(offsets)
        _require(good, "slice_offsets_mm", "a rising list of distances in mm, one of which is 0", self)
        object.__setattr__(self, "slice_offsets_mm", tuple(map(float, offsets)))


@dataclass(frozen=True)
class ModelCard:
    """Everything about a model but its weights.

    Attributes:
        id: short name for commands and file names: lower-case letters, digits, ".", "_" and "-".
        name: name for people.
        network: one of ``networks.NETWORKS``, or "package.module:Name" of a class that is needed to load the model.
        network_arguments: arguments of the network's constructor, as JSON values.
        version: version of the model, free text.
        preprocessing: how images are prepared; the predictor obeys it.
        threshold: a voxel is lesion where the probability is above this, in (0, 1).
        keep_inside_lungs_mm: lesion outside the lungs and further than this from lesion inside them is dropped unless
            a user says otherwise: a network that learned on slices cut to the lungs does not know what lies beside
            them; None keeps all.
        smooth_across_slices_mm: standard deviation (mm) of the Gaussian along the slices' axis that the probability is
            smoothed with before the threshold unless a user says otherwise: a network that answers slice by slice
            marks spots that no neighboring slice has; 0 smooths nothing.
        training_data: one object a data set: name, citation, license, ...
        license: short name of the weights' license, or "unknown".
        license_notice: what a user must know before using the weights.
        citation: what to cite.
        metrics: measured figures; nested objects say on what.
        weights_sha256: hash of the tensors (see ``checkpoints.weights_sha256``), or "" before they are saved.
        notes: anything else worth reading.
        extra: keys of a newer version of the card that this version doesn't know; kept when saved again.

    Raises:
        ModelError: a value that is not allowed.
    """

    id: str
    name: str
    network: str
    network_arguments: Mapping[str, Any] = field(default_factory=dict)
    version: str = "1"
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    threshold: float = 0.5
    keep_inside_lungs_mm: float | None = None
    smooth_across_slices_mm: float = 0.0
    training_data: tuple[Mapping[str, Any], ...] = ()
    license: str = "unknown"
    license_notice: str = ""
    citation: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    notes: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    _TEXTS: ClassVar = ("name", "version", "license", "license_notice", "citation", "notes")
    _OBJECTS: ClassVar = ("network_arguments", "metrics", "extra")

    def __post_init__(self) -> None:
        good_id = isinstance(self.id, str) and _ID.fullmatch(self.id)
        _require(good_id, "id", 'lower-case letters, digits, ".", "_" and "-", beginning with a letter or digit', self)
        good_network = self.network in NETWORKS or (isinstance(self.network, str) and is_import_path(self.network))
        _require(good_network, "network", f"one of {', '.join(NETWORKS)}, or an import path", self)
        for name in self._TEXTS:
            _require(isinstance(getattr(self, name), str), name, "text", self)
        for name in self._OBJECTS:
            _require(isinstance(getattr(self, name), Mapping), name, "an object of names and values", self)
        _require(isinstance(self.preprocessing, Preprocessing), "preprocessing", "an object of settings", self)
        _require(_is_number(self.threshold) and 0 < self.threshold < 1, "threshold", "a number between 0 and 1", self)
        reach = self.keep_inside_lungs_mm
        good_reach = reach is None or (_is_number(reach) and reach >= 0)
        _require(good_reach, "keep_inside_lungs_mm", "a number of mm >= 0 or null", self)
        deviation = self.smooth_across_slices_mm
        good_deviation = _is_number(deviation) and 0 <= deviation <= LARGEST_SMOOTHING_MM
        _require(good_deviation, "smooth_across_slices_mm", f"a number of mm, 0 to {LARGEST_SMOOTHING_MM:g}", self)
        data = self.training_data
        good_data = isinstance(data, list | tuple) and all(isinstance(d, Mapping) and d.get("name") for d in data)
        _require(good_data, "training_data", 'a list of objects that each have a "name"', self)
        object.__setattr__(self, "training_data", tuple(data))
        good_hash = isinstance(self.weights_sha256, str) and (
            not self.weights_sha256 or _SHA256.fullmatch(self.weights_sha256)
        )
        _require(good_hash, "weights_sha256", "64 hexadecimal digits or empty", self)

    @property
    def training_images(self) -> set[str]:
        """Hashes of the voxels of the CTs that the weights were trained on, as far as the training has noted them."""
        noted = self.metrics.get("training_images")
        return set(map(str, noted)) if isinstance(noted, list | tuple) else set()

    @property
    def finds_lungs(self) -> bool:
        """Whether the network marks the right and the left lung, and no lesions."""
        return _LUNG_GRID in self.extra

    def to_json(self) -> dict[str, Any]:
        """The card as an object that ``json.dumps`` takes; unknown keys of newer versions stand beside our own."""
        value = asdict(self)
        extra = value.pop("extra")
        return {**value, **extra}

    @classmethod
    def from_json(cls, value: Any) -> ModelCard:
        """A card from its JSON text or the object parsed from it.

        Raises:
            ModelError: not JSON, not an object, a key missing or a value not allowed. Unknown keys are kept in
                :attr:`extra`.
        """
        if isinstance(value, str | bytes):
            try:
                value = parse_json(value, "The model card")
            except ReadError as error:
                raise ModelError(str(error)) from error
        if not isinstance(value, Mapping):
            raise ModelError(f"The model card is {type(value).__name__} where an object of names and values is needed.")
        known = {f.name for f in fields(cls)} - {"extra"}
        missing = [name for name in ("id", "name", "network") if name not in value]
        if missing:
            raise ModelError(f"The model card lacks {', '.join(missing)}.")
        arguments = {name: value[name] for name in value if name in known}
        if "preprocessing" in arguments:
            arguments["preprocessing"] = _preprocessing(arguments["preprocessing"])
        return cls(**arguments, extra={name: value[name] for name in value if name not in known})


def read_card(path: Path | str) -> ModelCard:
    """Card of one of our model files, from its header alone; needs no PyTorch.

    Args:
        path: a safetensors file.

    Raises:
        ModelError: no such file, not a safetensors file, cut short, or one without a card.
    """
    path = Path(path)
    metadata = read_header(path).get("__metadata__") or {}
    if CARD_KEY not in metadata:
        raise ModelError(f"{path.name} holds weights but no model card; import it with a card first.")
    try:
        return ModelCard.from_json(metadata[CARD_KEY])
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from error


def no_lesion_model(name: str) -> ModelError:
    """What to raise where a network for lungs was given as a model for lesions, by its id or its file's name."""
    return ModelError(
        f"{name} finds lungs, not lesions: it can't be used as a lesion model.",
        "Choose a lesion model; this one finds the lungs with --lung-engine network.",
    )


def require_model_size(path: Path) -> int:
    """The bytes of a file that may be a model.

    Raises:
        ModelError: no file (a folder, pipe or device), or larger than any model.
        OSError: not there, or it can't be looked at.
    """
    try:
        size = regular_file(path).st_size
    except ReadError as error:
        raise ModelError(str(error)) from error
    if size > _MOST_BYTES:
        raise ModelError(
            f"{path.name} has {size / 1e9:.4g} GB; the networks of this program have at most {_MOST_BYTES >> 30} GB."
        )
    return size


def read_header(path: Path) -> dict[str, Any]:
    """Header of a safetensors file: tensor name -> dtype, shape and data_offsets, and ``__metadata__``.

    Raises:
        ModelError: no such file, not a safetensors file, or one whose size does not fit its header.
    """
    try:
        size = require_model_size(path)
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise ModelError(f"{path.name} is not a safetensors file, or its beginning is damaged.")
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path} could not be read: {error.strerror or error}.") from error
    try:
        header = parse_object(text, path.name)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ModelError(f"{path.name} is not a safetensors file, or its beginning is damaged.") from error
    if size != expected:
        raise ModelError(
            f"{path.name} has {size} bytes where its header promises {expected}; it was cut short or damaged. "
            "Download or copy it again."
        )
    return header


def rewrite_card(path: Path | str, card: ModelCard) -> None:
    """Replace the card of one of our model files, whole or not at all; the weights stay as they are.

    Args:
        path: a safetensors file.
        card: the new card; its hash is not made anew, since the weights do not change.

    Raises:
        ModelError: not a safetensors file, or damaged.
        OutputError: the file can't be written.
    """
    path = Path(path)
    header = read_header(path)
    # the key that is there already keeps its neighbors
    metadata = {**(header.get("__metadata__") or {}), CARD_KEY: json.dumps(card.to_json(), allow_nan=False)}
    text = json.dumps({**header, "__metadata__": metadata}, separators=(",", ":")).encode()
    # the format wants the tensors to begin at a multiple of eight bytes
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as out, path.open("rb") as file:
        out.write(struct.pack("<Q", len(text)) + text)
        file.seek(_tensor_start(file))
        shutil.copyfileobj(file, out, 1 << 20)


def tensors_sha256(path: Path | str) -> str:
    """SHA-256 of all that follows the header of a safetensors file: the same whatever the card says."""
    with Path(path).open("rb") as file:
        file.seek(_tensor_start(file))
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensor_start(file: BinaryIO) -> int:
    start = file.read(8)
    return 8 + int(struct.unpack("<Q", start)[0]) if len(start) == 8 else 0


def _preprocessing(value: Any) -> Preprocessing:
    if not isinstance(value, Mapping):
        raise ModelError(f"The model card's preprocessing is {value!r}; an object of settings is needed.")
    unknown = sorted(set(value) - {f.name for f in fields(Preprocessing)})
    if unknown:
        # a setting we don't know could change the result, so it can't be kept and ignored as other keys can
        raise ModelError(
            f"The model card asks for the preprocessing {', '.join(unknown)}, which this version does not know.",
            "Update COVIDLesionSeg to use this model.",
        )
    return Preprocessing(**value)


def _require(good: Any, name: str, needed: str, owner: Any) -> None:
    if not good:
        raise ModelError(f"The model card's {name} is {getattr(owner, name)!r}; it must be {needed}.")


def are_slice_offsets(values: Sequence[Any]) -> bool:
    """Whether values are distances (mm) at which a network can see slices: rising, and 0 is one of them."""
    return all(map(_is_number, values)) and 0 in values and all(a < b for a, b in pairwise(values))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
