"""Reading weights in every form they are published in, and writing our own.

Our files are safetensors: tensors under our names and the card as JSON in the header. Foreign files are PyTorch
pickles; they are read with ``weights_only=True`` and a short allow-list, so that no code in them can run.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import DeviceError, InputError, ModelError
from ..files import atomic_path
from ..imports import is_import_path
from ..networks import NETWORKS, title_of
from ..networks.factory import create_network, network_class
from ..networks.imported import require_allowed
from ..networks.slices import Naming, SliceNetwork
from .card import CARD_KEY, ModelCard, Preprocessing, no_lesion_model, read_header, require_model_size
from .catalog import id_from_name

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Where containers keep the weights; the first one that is there counts.
_CONTAINER_KEYS = ("model_state_dict", "state_dict", "model", "network", "net")
# what torch.nn.DataParallel and torch.compile put before each name
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
_COUNTER = ".num_batches_tracked"
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to use.

    Attributes:
        network: in eval mode, float32, on the device that was asked for.
        card: what is known about it.
    """

    network: SliceNetwork
    card: ModelCard


def load_checkpoint(
    path: Path | str, network: str | None = None, device: torch.device | str = "cpu", *, lungs: bool = False
) -> LoadedModel:
    """Load weights of one of the networks, whoever wrote the file.

    Recognized by content, never by file name: our safetensors files; PyTorch files (zip or the older format) with the
    names of the network's authors, of its ports, or ours (``SliceNetwork.namings``), as a bare state dict or inside a
    container, with or without a ``module.`` prefix, unused tensors and batch counters. Family, widths and variant
    follow from the tensors' names and shapes. A container may carry a card as ``model_card``; a file without one gets a
    card that says so.

    Args:
        path: the file.
        network: one of ``networks.NETWORKS`` to insist on it; None takes what the file holds. The import path of a
            network of another package loads a file whose card names it; its code runs.
        device: where the network goes.
        lungs: whether a network for lungs is wanted; without, one is refused, since it finds no lesions.

    Raises:
        ModelError: no such file, damaged or cut short, of another network, with a wrong hash, a network for lungs, or
            one that could only be read by running code from it.
        DeviceError: the device is unknown or not there.
    """
    path = Path(path)
    if network is not None and network not in NETWORKS and not is_import_path(network):
        raise InputError(f"There is no network {network!r}; there are {', '.join(NETWORKS)}.")
    tensors, card = _read(path)
    if card is not None and card.finds_lungs and not lungs:
        raise no_lesion_model(path.name)
    if card is not None and is_import_path(card.network):
        return _load_imported(path, tensors, card, network, device)
    family, naming = _recognized(path, tensors)
    title = title_of(family)
    if network is not None and family != network:
        raise ModelError(f"{path.name} holds a {title}; {title_of(network)} is needed here.")
    if card is not None and card.network != family:
        raise ModelError(f"{path.name} holds the tensors of {title}, but its card says {title_of(card.network)}.")
    try:
        state, unknown = _to_our_names(tensors, naming)
        arguments = (
            dict(card.network_arguments)
            if card
            else network_class(family).arguments_from({name: tuple(tensor.shape) for name, tensor in state.items()})
        )
        # without memory first: whoever wrote the file may claim any width
        with torch.device("meta"):
            expected = create_network(family, **arguments).state_dict()
        for name, tensor in state.items():
            if name in expected and expected[name].dim() == 2 and tensor.shape[2:] == (1, 1):
                # a 1 x 1 convolution of one pixel is our linear layer
                state[name] = tensor.flatten(1)
        _require_fit(expected, state, unknown)
        built = create_network(family, **arguments)
        built.load_state_dict(state, strict=False)
    except InputError as error:
        raise ModelError(f"{path.name} does not fit {title}. {error}") from error
    except (RuntimeError, TypeError, ArithmeticError, ValueError) as error:
        raise ModelError(
            f"{path.name} claims a {title} that can't be built; it is damaged, or no model of ours."
        ) from error
    if card is None:
        card = _card_for(path, naming, built)
    return _on_device(built, card, device)


def _recognized(path: Path, tensors: Mapping[str, Tensor]) -> tuple[str, Naming]:
    """The network and the naming that know most of these tensors, and half of them at least."""
    best: tuple[str, Naming] | None = None
    known = 0
    for family in NETWORKS:
        for naming in network_class(family).namings():
            count = len(naming.translate(tensors)) + sum(map(naming.is_dead, tensors))
            if count > known:
                best, known = (family, naming), count
    if best is None or 2 * known < len(tensors):
        titles = " nor ".join(listed.title for listed in NETWORKS.values())
        raise ModelError(f"{path.name} holds weights of neither {titles} (its first tensor is {min(tensors)}).")
    return best


def _load_imported(
    path: Path, tensors: dict[str, Tensor], card: ModelCard, network: str | None, device: torch.device | str
) -> LoadedModel:
    """A model whose network is of another package, which the user has named: nothing else may be imported."""
    if network is not None and network != card.network:
        raise ModelError(f"{path.name} holds a network {card.network}; {title_of(network)} is needed here.")
    try:
        if network is None:
            require_allowed(card.network, path.name)
        built = create_network(card.network, **card.network_arguments)
        _require_fit(built.state_dict(), tensors, [])
    except InputError as error:
        raise ModelError(str(error)) from error
    built.load_state_dict(tensors, strict=False)
    return _on_device(built, card, device)


def _on_device(built: SliceNetwork, card: ModelCard, device: torch.device | str) -> LoadedModel:
    try:
        return LoadedModel(built.to(device).eval(), card)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"The device {device} can't be used: {str(error).splitlines()[0]}") from error


def save_model(network: SliceNetwork, card: ModelCard, path: Path | str, dtype: str = "float32") -> ModelCard:
    """Write a network and its card as one safetensors file, whole or not at all.

    Args:
        network: the network; its family and arguments replace what the card says about them.
        card: the card; its hash is made here.
        path: the file to make or replace.
        dtype: "float32", "float16" or "bfloat16" for the weights. Batch-normalization tensors stay float32, since their
            variances span more than half types hold.

    Returns:
        The card as written.

    Raises:
        ModelError: a weight that is not finite or too large for the type.
        OutputError: the file can't be written.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    normalization = {
        f"{module_name}.{name}"
        for module_name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name in module.state_dict()
    }
    tensors = {}
    for name, tensor in network.state_dict().items():
        wanted = torch.float32 if name in normalization else DTYPES[dtype]
        stored = tensor.detach().to("cpu", wanted if tensor.is_floating_point() else None)
        if not torch.isfinite(tensor).all():
            raise ModelError(f"The network can't be saved: {name} holds NaN or infinity.")
        if not torch.isfinite(stored).all():
            raise ModelError(
                f"The network can't be saved as {dtype}: {name} reaches {tensor.abs().max().item():.3g}.",
                "Save it as float32 or bfloat16.",
            )
        tensors[name] = stored.contiguous()
    notes = card.notes
    if is_import_path(network.family) and network.family not in notes:
        notes = f"{notes} The Python class {network.family} is needed to load it.".strip()
    card = replace(
        card,
        network=network.family,
        network_arguments=network.arguments,
        notes=notes,
        weights_sha256=weights_sha256(tensors),
    )
    text = json.dumps(card.to_json(), ensure_ascii=False, allow_nan=False)
    # one key only: the library writes several in any order, and the same model shall be the same bytes
    content = safetensors.torch.save(tensors, metadata={CARD_KEY: text})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return card


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes (row-major, little-endian) of tensors, ordered by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], ModelCard | None]:
    """Tensors of a file under its own names, and its card if it has one."""
    try:
        require_model_size(path)
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ModelError(f"{path} could not be read: {error.strerror or error}.") from error
    if not start:
        raise ModelError(f"{path.name} is empty; download or copy it again.")
    # a header's length comes first, whose low byte may be that of a pickle
    if start[4:9] == b"\0\0\0\0{" or (path.suffix == ".safetensors" and not start.startswith(_ZIP)):
        return _read_safetensors(path)
    if start.startswith((_ZIP, _PICKLE)):
        return _read_torch(path)
    raise ModelError(
        f"{path.name} is neither a safetensors file nor a PyTorch checkpoint, or its beginning is damaged."
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], ModelCard | None]:
    metadata = read_header(path).get("__metadata__") or {}
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ModelError(f"{path.name} is a damaged safetensors file ({error}).") from error
    if not tensors:
        raise ModelError(f"{path.name} holds no weights.")
    if CARD_KEY not in metadata:
        return tensors, None
    card = _parsed_card(path, metadata[CARD_KEY])
    if card.weights_sha256 and card.weights_sha256 != weights_sha256(tensors):
        raise ModelError(
            f"The weights in {path.name} are not those its card was written for (their hash differs).",
            "Download or copy the file again.",
        )
    return tensors, card


def _read_torch(path: Path) -> tuple[dict[str, Tensor], ModelCard | None]:
    _require_sound_archive(path)
    try:
        with torch.serialization.safe_globals(_harmless_globals()), warnings.catch_warnings():
            # about TorchScript and new pickle protocols, both refused below
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        *(pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError, TypeError),
        *(AttributeError, ArithmeticError, MemoryError, AssertionError, ImportError, struct.error),
    ) as error:
        # whatever an unpickler stumbles over
        raise _refusal(path, error) from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{path.name} holds a {type(content).__name__}, not the weights of a network.")
    card = _parsed_card(path, content[CARD_KEY]) if CARD_KEY in content else None
    tensors = _state_dict(path, content)
    # a view may claim any size on a few bytes
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > path.stat().st_size or any(tensor.layout != torch.strided for tensor in tensors.values()):
        raise ModelError(f"{path.name} claims weights of {claimed / 1e6:.4g} MB, which it does not hold.")
    return tensors, card


def _require_sound_archive(path: Path) -> None:
    # torch itself doesn't look at the checksums; files older than its zip format have none
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            # torch packs nothing: what unpacks to more than the file is none of its own
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ModelError(f"{path.name} is packed in a way that PyTorch does not use; it is no checkpoint.")
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path.name} is damaged ({error}); download or copy it again.") from error
    if broken:
        raise ModelError(f"{path.name} is damaged ({broken} fails its checksum); download or copy it again.")


def _refusal(path: Path, error: Exception) -> ModelError:
    # torch's own message is long and advises to run the code all the same
    message = str(error)
    wanted = re.search(r"GLOBAL ([\w.]+)", message)
    needs = f" ({wanted[1]})" if wanted else " (TorchScript)" if "TorchScript" in message else ""
    if needs or isinstance(error, pickle.UnpicklingError):
        return ModelError(
            f"{path.name} could only be read by running code from it{needs}, so it is refused.",
            "Ask its author for the plain weights: a state dict or a safetensors file.",
        )
    return ModelError(
        f"{path.name} is not a PyTorch checkpoint, or it is damaged or cut short; download or copy it again."
    )


def _harmless_globals() -> list[Any]:
    # Older training codes store their best score as a numpy scalar. What makes one has had two homes.
    scalar = np.float64(0).__reduce__()[0]
    kinds = [np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType, np.dtypes.Int32DType]
    homes = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*homes, np.dtype, *kinds]


def _state_dict(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The weights in a container, without the prefixes of wrappers."""
    inner = next((content[key] for key in _CONTAINER_KEYS if isinstance(content.get(key), Mapping)), content)
    tensors = {
        _WRAPPERS.sub("", name): value
        for name, value in inner.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise ModelError(f"{path.name} holds no weights; its entries are {', '.join(map(str, list(content)[:5]))}.")
    return tensors


def _parsed_card(path: Path, value: Any) -> ModelCard:
    try:
        return ModelCard.from_json(value)
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from error


def _to_our_names(tensors: Mapping[str, Tensor], naming: Naming) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under our names, and the names that the naming doesn't know."""
    translated = naming.translate(tensors)
    state = {ours: tensors[theirs] for ours, theirs in translated.items()}
    known = set(translated.values())
    return state, [name for name in tensors if name not in known and not naming.is_dead(name)]


def _require_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], unknown: list[str]) -> None:
    """Raise a ModelError that says what does not fit, unless all tensors do."""
    problems = []
    missing = [name for name in expected if name not in state and not name.endswith(_COUNTER)]
    surplus = unknown + [name for name in state if name not in expected]
    misshaped = [
        f"{name} is {tuple(tensor.shape)} where {tuple(expected[name].shape)} is needed"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    for what, names in (("missing", missing), ("not part of the network", surplus), ("of another shape", misshaped)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{len(names)} tensors are {what}: {', '.join(names[:3])}{more}.")
    if problems:
        raise ModelError(" ".join(problems))
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name} holds NaN or infinity.")


def _card_for(path: Path, naming: Naming, network: SliceNetwork) -> ModelCard:
    return ModelCard(
        id=id_from_name(path.name) or network.family,
        name=f"{title_of(network.family)} ({path.stem})",
        network=network.family,
        network_arguments=network.arguments,
        version="unknown",
        preprocessing=Preprocessing(**network.published_preprocessing),
        license="unknown",
        license_notice="The file states no license; ask its authors before you use it.",
        weights_sha256=weights_sha256(network.state_dict()),
        notes=f"Imported from a file without a card; tensors named by {naming.origin}. Preprocessing is that of the "
        "published code.",
    )
