"""Models, cards, registries, configurations, manifests, records and outputs that no command should trip over.

Each case is a name, what makes its files in an empty folder and returns the command's words, and what the environment
is to hold. ``base`` is a folder with a sound study: ``ct.nii``, ``mask.nii``, ``lungs.nii``, ``tiny.safetensors``.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from dicom_seg_files import a_segment, scanned, spotted, written
from hostile_images import link, raw, sparse, special

Words = Sequence[str | Path]
DEEP = 10_000


@dataclass(frozen=True)
class Case:
    """A command on hostile input.

    Attributes:
        name: of the case.
        make: from the empty folder and the base folder to the command's words.
        status: exit statuses that are right.
        environment: variables to set; "{}" stands for the folder.
    """

    name: str
    make: Callable[[Path, Path], Words]
    status: tuple[int, ...] = (2,)
    environment: dict[str, str] = field(default_factory=dict)


# --- JSON and TOML ---------------------------------------------------------------------------------------------------


def jsons() -> dict[str, bytes]:
    """Texts that are no document of this program."""
    return {
        "deep-lists": b"[" * DEEP + b"]" * DEEP,
        "deep-objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "deep-and-cut": b"[" * 1_000_000,
        "wide-lists": b"[" + b"[]," * 3_000_000 + b"[]]",
        "large": b'"' + b"x" * (40 << 20) + b'"',
        "nan": b'{"a": NaN}',
        "infinite": b'{"a": 1e400}',
        "digits": b'{"a": ' + b"9" * 10_000 + b"}",
        "list": b"[]",
        "number": b"3",
        "null": b"null",
        "empty": b"",
        "object": b"{}",
        "not-utf-8": b'{"a": "\xff\xfe"}',
        "half-a-character": b'{"a": "\\ud800"}',
        "zero-byte": b'{"a": "\\u0000"}',
        "cut": b'{"a": ',
    }


def tomls() -> dict[str, bytes]:
    return {
        "run-is-3": b"run = 3\n",
        "tables-of-tables": b"[[run]]\nsteps = 1\n",
        "deep-lists": b"a = " + b"[" * DEEP + b"]" * DEEP,
        "deep-tables": b"a = " + b"{a = " * DEEP + b"1" + b"}" * DEEP,
        "deep-names": b"a" + b".a" * DEEP + b" = 1",
        "deep-headings": b"[a" + b".a" * DEEP + b"]",
        "long-names": b"\n".join(b"a%d" % i + b".b" * 500 + b" = 1" for i in range(250)),
        "large": b"# " + b"x" * (1 << 20),
        "steps-are-nan": b"[run]\nsteps = nan\n",
        "steps-are-infinite": b"[run]\nsteps = inf\n",
        "steps-are-a-date": b"[run]\nsteps = 2020-01-01\n",
        "steps-are-text": b'[run]\nsteps = "many"\n',
        "steps-are-huge": b"[run]\nsteps = 0x" + b"f" * 5000 + b"\n",
        "seed-is-huge": b"[run]\nseed = 99999999999999999999999999\n",
        "rate-is-infinite": b"[optimizer]\nlearning_rate = inf\n",
        "rate-is-nan": b"[optimizer]\nlearning_rate = nan\n",
        "digits": b"[run]\nsteps = " + b"9" * 10_000 + b"\n",
        "network-of-terabytes": b"[network.arguments]\nchannels = [9999999, 9999999, 9999999, 9999999, 9999999]\n",
        "network-of-text": b'[network.arguments]\nchannels = "wide"\n',
        "crop-of-gigapixels": b"[data]\ncrop = [1600000, 1600000]\n",
        "cases-in-a-strange-home": b'[data]\ncases = "~nosuchuser/cases.csv"\n',
        "cases-with-a-zero-byte": b'[data]\ncases = "a\\u0000b"\n',
        "not-utf-8": b"a = '\xff'",
        "empty": b"",
        "garbage": bytes(range(256)),
    }


def documents() -> Iterator[Case]:
    for name, text in tomls().items():
        yield Case(f"train-{name}", lambda f, b, t=text: ["train", file(f / "x.toml", t), "-o", f / "run", "--quiet"])
        if name in ("run-is-3", "deep-lists", "network-of-text"):
            yield Case(
                f"train-override-{name}",
                lambda f, b, t=text: ["train", file(f / "x.toml", t), "-o", f / "run", "--steps", "2", "--quiet"],
            )
    for name, text in jsons().items():
        yield Case(f"record-{name}", lambda f, b, t=text: [*report(f, b), "--record", file(f / "x.json", t)])
        home = {"COVIDLESIONSEG_MODELS": "{}"}
        yield Case(
            f"settings-{name}",
            lambda f, b, t=text: [file(f / "_settings.json", t), "models", "default"][1:],
            (2,),
            home,
        )
        yield Case(
            f"registry-{name}", lambda f, b, t=text: [file(f / "mine.json", t), "models", "list"][1:], (0,), home
        )
        yield Case(f"split-{name}", lambda f, b, t=text: training(f, b, split=file(f / "split.json", t)))
        yield Case(f"safetensors-header-{name}", lambda f, b, t=text: imported(header(f / "x.safetensors", t)), (2,))
        card = safe({"__metadata__": {"model_card": text.decode("utf-8", "replace")}, **ONE_TENSOR})
        if len(card) < 30 << 20:
            yield Case(f"card-{name}", lambda f, b, c=card: imported(header(f / "x.safetensors", c)), (2,))
        yield Case(f"store-{name}", lambda f, b, t=text: ["cases", "list", file(f / "s" / "store.json", t).parent])
        yield Case(f"data-set-{name}", lambda f, b, t=text: nnunet(f, t), (2, 3))
    texts = jsons()
    for name in ("deep-objects", "nan", "list", "large"):
        # what merely lies beside a mask must not matter
        yield Case(
            f"beside-{name}",
            lambda f, b, t=texts[name]: [file(f / "mask.json", t), *report(f, b, linked(f, b))][1:],
            (0,),
        )


def report(folder: Path, base: Path, lesion: Path | None = None) -> list[str | Path]:
    return [
        "report",
        base / "ct.nii",
        lesion or base / "mask.nii",
        "--lungs",
        base / "lungs.nii",
        "-o",
        folder / "o.html",
    ]


def linked(folder: Path, base: Path) -> Path:
    (folder / "mask.nii").symlink_to(base / "mask.nii")
    return folder / "mask.nii"


def file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def training(folder: Path, base: Path, **data: Path) -> list[str | Path]:
    manifest = table(folder / "cases.csv", "id,ct,lesion,lungs", f"a,{base}/ct.nii,{base}/mask.nii,{base}/lungs.nii")
    settings = "".join(f'{name} = "{path}"\n' for name, path in {"cases": manifest, **data}.items())
    config = file(folder / "x.toml", f"[data]\n{settings}[run]\nsteps = 1\n".encode())
    return ["train", config, "-o", folder / "run", "--quiet"]


def nnunet(folder: Path, text: bytes) -> list[str | Path]:
    for name in ("imagesTr", "labelsTr"):
        (folder / "set" / name).mkdir(parents=True)
    file(folder / "set" / "dataset.json", text)
    return ["cases", "import", made_store(folder), folder / "set", "--quiet"]


def made_store(folder: Path) -> Path:
    from COVIDLesionSegLib.cases import Store

    return Store.create(folder / "store").folder


# --- models ----------------------------------------------------------------------------------------------------------

ONE_TENSOR: dict[str, Any] = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}


def safe(content: Any) -> bytes:
    return json.dumps(content).encode()


def header(path: Path, text: bytes, length: int | None = None, tail: bytes = bytes(16)) -> Path:
    """A safetensors file with this header, whatever it is."""
    return file(path, struct.pack("<Q", len(text) if length is None else length) + text + tail)


def imported(path: Path, *more: str) -> list[str | Path]:
    return ["models", "import", path, *more]


def _card(**values: Any) -> dict[str, Any]:
    return {"id": "x", "name": "X", "network": "coplenet", **values}


def _carded(**values: Any) -> bytes:
    return safe({"__metadata__": {"model_card": json.dumps(_card(**values))}, **ONE_TENSOR})


def recarded(folder: Path, base: Path, **values: Any) -> Path:
    """The tiny model with another card."""
    content = (base / "tiny.safetensors").read_bytes()
    length = struct.unpack_from("<Q", content)[0]
    head = json.loads(content[8 : 8 + length])
    card = json.loads(head["__metadata__"]["model_card"]) | values
    head["__metadata__"]["model_card"] = json.dumps(card)
    return header(folder / "x.safetensors", json.dumps(head).encode(), tail=content[8 + length :])


def tensors() -> dict[str, Any]:
    """Entries of a header that lie about the tensor behind it."""
    entry = ONE_TENSOR["w"]
    return {
        "shape-of-terabytes": entry | {"shape": [1 << 40]},
        "negative-shape": entry | {"shape": [-4]},
        "shape-of-text": entry | {"shape": "4"},
        "deep-shape": entry | {"shape": [1] * 5000},
        "unknown-type": entry | {"dtype": "F8192"},
        "offsets-backward": entry | {"data_offsets": [16, 0]},
        "negative-offsets": entry | {"data_offsets": [-16, 16]},
        "offsets-infinite": entry | {"data_offsets": [0, 1e300]},
        "offsets-of-text": entry | {"data_offsets": ["a", "b"]},
        "no-offsets": {"dtype": "F32", "shape": [4]},
        "no-object": 3,
    }


class Call:
    """Unpickled, it would call something."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def pickles() -> dict[str, bytes]:
    """PyTorch's older format begins with a pickle."""
    return {
        "code": pickle.dumps(Call(os.system, "touch caught"), protocol=2),
        "deep-tuple": b"\x80\x02" + b"(" * DEEP + b"t" * DEEP + b".",
        "deep-list": b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
        "memo-of-gigabytes": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
        "text-of-gigabytes": b"\x80\x02X\xff\xff\xff\x7fabc",
        "bytes-of-terabytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc.",
        "stops-at-once": b"\x80\x02.",
        "unknown-opcode": b"\x80\x02\xfe\xfe\xfe",
        "number-of-megabytes": b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20) + b".",
        "negative-length": b"\x80\x02\x8b\xff\xff\xff\xff.",
        "zeros": b"\x80" + bytes(5000),
        "magic-number-only": pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2),
        "wrong-version": pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(9999, protocol=2),
    }


def archives() -> dict[str, bytes]:
    def packed(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return buffer.getvalue()

    sound = {"x/data.pkl": pickle.dumps({}, protocol=2), "x/version": b"3\n", "x/byteorder": b"little"}
    return {
        "empty-archive": packed({}),
        "no-pickle": packed({"x/version": b"3\n"}),
        "pickle-of-code": packed(sound | {"x/data.pkl": pickle.dumps(Call(os.system, "touch caught"), protocol=2)}),
        "empty-dictionary": packed(sound),
        "deep-pickle": packed(sound | {"x/data.pkl": pickles()["deep-tuple"]}),
        "paths-outside": packed(sound | {"../../../outside": b"x"}),
        "bomb": packed(sound | {"x/data/0": bytes(256 << 20)}, zipfile.ZIP_DEFLATED),
        "garbage-behind-the-magic": b"PK\x03\x04" + bytes(range(256)) * 20,
        "many-entries": packed(sound | {f"x/{i}": b"" for i in range(5000)}),
    }


def states() -> dict[str, Callable[[], Any]]:
    """What PyTorch itself writes and no network is."""
    import torch

    def expanded() -> Any:
        return {"input.first.conv.weight": torch.zeros(1).expand(1 << 20, 1 << 20, 3, 3)}

    def tiny() -> dict[str, Any]:
        from COVIDLesionSegLib.networks import COPLENet

        return dict(COPLENet(channels=(2, 4, 8, 16, 32)).state_dict())

    def changed(change: Callable[[Any], Any]) -> Callable[[], Any]:
        return lambda: {name: change(tensor) if tensor.dim() else tensor for name, tensor in tiny().items()}

    return {
        "terabytes-on-a-byte": expanded,
        "list": lambda: [1, 2, 3],
        "tensor": lambda: torch.zeros(3),
        "numbers": lambda: {"a": 1.0},
        "card-of-text": lambda: {"model_card": "x", **tiny()},
        "card-of-lists": lambda: {"model_card": [[]], **tiny()},
        "keys-of-numbers": lambda: dict(enumerate(tiny().values())),
        "complex": changed(lambda t: t.to(torch.complex64)),
        "whole-numbers": changed(lambda t: (t * 100).to(torch.int8)),
        "sparse": changed(lambda t: t.to_sparse()),
        "nan": changed(lambda t: t * float("nan")),
        "empty": changed(lambda t: t[:0]),
        "scalars": changed(lambda t: t.sum()),
        "contains-itself": itself,
    }


def itself() -> Any:
    value: dict[str, Any] = {}
    value["state_dict"] = value
    return value


def models() -> Iterator[Case]:
    home = {"COVIDLESIONSEG_MODELS": "{}/models"}
    for name, make in special(".pth"):
        if "absent" not in name:
            yield Case(f"model-{name}", lambda f, b, m=make: imported(m(f)), (2,), home)
    yield Case("model-sparse", lambda f, b: imported(sparse(".pth", b"PK\x03\x04", 1 << 42)(f)), (2,), home)
    yield Case("model-sparse-pickle", lambda f, b: imported(sparse(".pth", b"\x80\x02", 1 << 31)(f)), (2,), home)
    for name, entry in tensors().items():
        yield Case(
            f"tensor-{name}", lambda f, b, e=entry: imported(header(f / "x.safetensors", safe({"w": e}))), (2,), home
        )
    for length in (0, 1, 1 << 20, 1 << 40, (1 << 64) - 1):
        yield Case(
            f"header-of-{length}", lambda f, b, n=length: imported(header(f / "x.safetensors", b"{}", n)), (2,), home
        )
    for name, value in {
        "network-of-terabytes": {"network_arguments": {"channels": [10**9] * 5}},
        "network-of-negative-width": {"network_arguments": {"channels": [-1] * 5}},
        "network-of-text": {"network_arguments": {"channels": "abcde"}},
        "network-of-nothing": {"network_arguments": {"channels": []}},
        "many-classes": {"network_arguments": {"channels": [2, 4, 8, 16, 32], "out_channels": 10**12}},
        "unknown-argument": {"network_arguments": {"deep": 1}},
        "no-id": {"id": ""},
        "id-outside": {"id": "../../x"},
        "id-of-a-list": {"id": ["x"]},
        "huge-window": {"preprocessing": {"window_width": 1e308, "window_level": -1e308}},
        "resize-of-gigapixels": {"preprocessing": {"resize": [10**9, 10**9]}},
        "name-that-steers": {"name": "\x1b[2J\x1b]0;x\x07"},
        "license-of-megabytes": {"license": "x" * 5_000_000},
        "hash-of-text": {"weights_sha256": "x"},
        "threshold-of-text": {"threshold": "x"},
        "deep-extra": {"deeper": nested(60)},
    }.items():
        harmless = name in (
            "huge-window",
            "name-that-steers",
            "license-of-megabytes",
            "deep-extra",
            "resize-of-gigapixels",
        )
        yield Case(
            f"card-{name}", lambda f, b, v=value: imported(recarded(f, b, **v)), (0, 2) if harmless else (2,), home
        )
    for name, content in {**pickles(), **archives()}.items():
        yield Case(f"pickle-{name}", lambda f, b, c=content: imported(file(f / "x.pth", c)), (2,), home)
    for name, state in states().items():
        yield Case(f"state-{name}", lambda f, b, s=state: imported(saved(f / "x.pth", s())), (0, 2), home)
    for model_id in ("../../x", "/etc/x", "", ".", "a" * 300, "x\0y", "..\\x", "a\nb"):
        yield Case(
            f"import-as-{model_id[:9]!r}",
            lambda f, b, i=model_id: imported(b / "tiny.safetensors", "--id", i),
            (2,) if model_id else (0, 2),
            home,
        )
        for action in ("remove", "verify", "default", "download"):
            yield Case(f"{action}-{model_id[:9]!r}", lambda f, b, a=action, i=model_id: ["models", a, i], (0, 2), home)
    yield Case(
        "import-into-a-file", lambda f, b: [file(f / "models", b"x"), *imported(b / "tiny.safetensors")][1:], (2,), home
    )
    yield Case(
        "models-in-a-strange-home", lambda f, b: ["models", "list"], (0, 2), {"COVIDLESIONSEG_MODELS": "~nosuchuser/x"}
    )
    record = {
        **dict.fromkeys(("name", "network", "license", "license_notice", "origin", "source", "added"), "x"),
        "id": "mine",
        "size_bytes": 1,
        "sha256": "ab" * 32,
        "file": "mine.pt",
        "record_version": 1,
    }
    for name, value in {
        "size_bytes": "many", "sha256": 3, "file": "../../x.pt", "id": "other", "network": [], "license": None,
        "added": {}, "origin": nested(50),
    }.items():  # fmt: skip

        def make(f: Path, b: Path, n: str = name, v: Any = value) -> Words:
            file(f / "models" / "mine.json", safe(record | {n: v}))
            file(f / "models" / "mine.pt", b"x")
            return ["models", "list"]

        yield Case(f"record-with-{name}", make, (0,), home)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def saved(path: Path, state: Any) -> Path:
    import torch

    torch.save(state, path)
    return path


# --- manifests and state files ---------------------------------------------------------------------------------------


def table(path: Path, *lines: str) -> Path:
    return file(path, "\n".join(lines).encode() + b"\n")


def manifests() -> Iterator[Case]:
    good = "a,{b}/mask.nii,{b}/mask.nii"
    rows = {
        "strange-home": ("b,~nosuchuser/x.nii,{b}/mask.nii", (3,)),
        "zero-byte": ("b,x\0y.nii,{b}/mask.nii", (2,)),
        "long-name": ("b," + "x" * 5000 + ".nii,{b}/mask.nii", (3,)),
        "long-cell": ("b," + "x" * 200_000 + ".nii,{b}/mask.nii", (2,)),
        "id-outside": ("../../x,{b}/mask.nii,{b}/mask.nii", (2,)),
        "long-id": ("x" * 300 + ",{b}/mask.nii,{b}/mask.nii", (2,)),
        "same-id": ("a,{b}/mask.nii,{b}/mask.nii", (2,)),
        "device": ("b,/dev/zero,{b}/mask.nii", (3,)),
        "folder": ("b,/,{b}/mask.nii", (3,)),
        "many-cells": ("b,{b}/mask.nii,{b}/mask.nii" + ",x" * 10_000, (2,)),
        "line-break": ('"b\nc",{b}/mask.nii,{b}/mask.nii', (2,)),
        "formula": ("=cmd|x,{b}/mask.nii,{b}/mask.nii", (2,)),
        "open-quote": ('b,"{b}/mask.nii,{b}/mask.nii', (2, 3)),
        "not-utf-8": ("b,\udcff.nii,{b}/mask.nii", (2,)),
    }
    for name, (row, status) in rows.items():

        def make(f: Path, b: Path, r: str = row) -> Words:
            text = "\n".join(["id,prediction,reference", good, r]).replace("{b}", str(b))
            return evaluated(f, file(f / "m.csv", text.encode("utf-8", "surrogateescape")))

        yield Case(f"manifest-{name}", make, status)
    for name, make_file in special(".csv"):
        yield Case(f"manifest-{name}", lambda f, b, m=make_file: ["evaluate", "--manifest", m(f), "--quiet"])
    for name, content in {
        "no-columns": b"\n\n\n", "one-column-often": b"id,id,id\na,b,c\n", "header-only": b"id,prediction,reference\n",
        "large": b"id,prediction,reference\n" + b"a,b,c\n" * 6_000_000, "zeros": bytes(10_000),
        "many-columns": b"x," * 100_000 + b"\n" + b"y," * 100_000,
    }.items():  # fmt: skip
        yield Case(f"manifest-{name}", lambda f, b, c=content: evaluated(f, file(f / "m.csv", c)))
    for name, content in jsons().items():
        yield Case(f"state-file-{name}", lambda f, b, c=content: resumed(f, b, c + b"\n" + c), (0, 2))
    for name in ("key", "status", "fingerprint", "result"):
        yield Case(f"state-file-without-{name}", lambda f, b, n=name: resumed(f, b, line(n) * 2), (0, 2))
    yield Case("state-file-result-of-lists", lambda f, b: resumed(f, b, line("", result=[[]])), (0,))
    for name, make_file in special(".jsonl"):
        if name.startswith(("folder", "pipe", "link")):

            def make(f: Path, b: Path, m: Any = make_file) -> Words:
                words = resumed(f, b, b"")
                (f / "t.csv.state.jsonl").unlink()
                m(f)
                (f / "x.jsonl").rename(f / "t.csv.state.jsonl")
                return words

            yield Case(f"state-file-{name}", make, (0, 2))


def evaluated(folder: Path, manifest: Path, *more: str) -> list[str | Path]:
    return ["evaluate", "--manifest", manifest, "-o", folder / "t.csv", "--quiet", "--workers", "1", *more]


def line(absent: str, **values: Any) -> bytes:
    entry = {"key": "a", "status": "done", "fingerprint": "ab", "result": {}} | values
    entry.pop(absent, None)
    return safe(entry) + b"\n"


def resumed(folder: Path, base: Path, state: bytes) -> list[str | Path]:
    manifest = table(folder / "m.csv", "id,prediction,reference", f"a,{base}/mask.nii,{base}/mask.nii")
    file(folder / "t.csv.state.jsonl", state)
    return evaluated(folder, manifest, "--resume")


# --- outputs, arguments, environment ---------------------------------------------------------------------------------


def outputs() -> Iterator[Case]:
    """Commands that write to what is no file; each output is looked at afterwards."""
    targets: dict[str, Callable[[Path], Path]] = {
        "pipe": lambda f: called(os.mkfifo, f / "t.csv"),
        "folder": lambda f: called(Path.mkdir, f / "t.csv"),
        "socket": lambda f: bound(f / "t.csv"),
        "device": lambda f: Path("/dev/null"),
        "full-device": lambda f: Path("/dev/full"),
        "standard-output": lambda f: Path("/dev/stdout"),
        "link-to-a-device": lambda f: link(".csv", "/dev/null")(f),
        "link-to-a-pipe": lambda f: [os.mkfifo(f / "pipe"), link(".csv", "pipe")(f)][1],
        "link-to-itself": lambda f: link(".csv", "x.csv")(f),
        "below-a-file": lambda f: file(f / "file", b"") / "t.csv",
        "long-name": lambda f: f / ("x" * 5000 + ".csv"),
        "zero-byte": lambda f: f / "x\0.csv",
        "process": lambda f: Path("/proc/self/mem"),
    }
    for name, target in targets.items():
        yield Case(
            f"output-{name}", lambda f, b, t=target: ["evaluate", b / "mask.nii", b / "mask.nii", "-o", t(f), "--quiet"]
        )
    for name in ("pipe", "link-to-a-device", "link-to-itself", "socket"):
        yield Case(f"page-{name}", lambda f, b, t=targets[name]: [*report(f, b)[:-1], t(f)])


def called(function: Callable[[Path], Any], path: Path) -> Path:
    function(path)
    return path


def bound(path: Path) -> Path:
    short = os.path.relpath(path)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(short if len(short) < len(str(path)) else str(path))
    return path


def arguments() -> Iterator[Case]:
    masks = ["{b}/mask.nii", "{b}/mask.nii"]
    commands = {
        "evaluate-tolerance-nan": ["evaluate", *masks, "--tolerance", "nan"],
        "evaluate-tolerance-infinite": ["evaluate", *masks, "--tolerance", "inf"],
        "evaluate-label-of-digits": ["evaluate", *masks, "--label", "9" * 5000],
        "evaluate-label-of-dots": ["evaluate", *masks, "--label", "\u00b2"],
        "report-id-outside": ["report", "{b}/ct.nii", "{b}/mask.nii", "--id", "../../x"],
        "report-rescale-nan": ["report", "{b}/ct.nii", "{b}/mask.nii", "--rescale", "nan", "1"],
        "report-earlier": ["report", "{b}/ct.nii", "{b}/mask.nii", "--earlier", "a,b,c,d,e"],
        "report-record-pipe": ["report", "{b}/ct.nii", "{b}/mask.nii", "--record", "{f}/pipe"],
        "compare-id-outside": ["compare-timepoints", *["{b}/ct.nii", "{b}/mask.nii"] * 2, "--id", "/x"],
        "segment-threshold-nan": [*segmented(), "--threshold", "nan"],
        "segment-volume-nan": [*segmented(), "--minimum-volume", "nan"],
        "segment-reach-nan": [*segmented(), "--keep-inside-lungs", "nan"],
        "segment-smooth-infinite": [*segmented(), "--smooth-across-slices", "inf"],
        "segment-device": [*segmented(), "--device", "cuda:999999999999"],
        "train-steps": ["train", "{f}/x.toml", "-o", "{f}/run", "--steps", "-1"],
        "cases-show-outside": ["cases", "show", "{s}", "../../x"],
        "cases-note-outside": ["cases", "note", "{s}", "../../x", "text"],
        "cases-unlock-outside": ["cases", "unlock", "{s}", "../../x"],
        "cases-submit-outside": ["cases", "submit", "{s}", "../../x", "{b}/mask.nii", "--rater", "anna"],
        "cases-rater-outside": ["cases", "submit", "{s}", "case-0001", "{b}/mask.nii", "--rater", "../x"],
        "cases-add-pipe": ["cases", "add", "{s}", "{f}/pipe"],
        "cases-add-device": ["cases", "add", "{s}", "/dev/zero"],
        "cases-import-pipe": ["cases", "import", "{s}", "{f}/pipe"],
        "pseudo-label-pipe": ["pseudo-label", "{f}/pipe", "-o", "{f}/out", "--model", "{b}/tiny.safetensors"],
        "pseudo-label-picture-pipe": ["pseudo-label", "{f}", "-o", "{f}/out", "--model", "{b}/tiny.safetensors"],
        "fine-tune-pipe": ["fine-tune", "{f}/pipe", "-o", "{f}/out", "--model", "{b}/tiny.safetensors"],
        "fine-tune-model-pipe": ["fine-tune", "{s}", "-o", "{f}/out", "--model", "{f}/pipe"],
        "reproduce-set": ["reproduce", "tmi-1", "--set", "run.steps=" + "[" * DEEP, "-o", "{f}/out"],
    }  # fmt: skip
    for name, words in commands.items():

        def make(f: Path, b: Path, w: list[str] = words, name: str = name) -> Words:
            os.mkfifo(f / "pipe")
            if name == "pseudo-label-picture-pipe":
                os.mkfifo(f / "x.png")
            store = made_store(f) if "{s}" in w else f
            return [word.replace("{b}", str(b)).replace("{f}", str(f)).replace("{s}", str(store)) for word in w]

        yield Case(f"argument-{name}", make, (2,))
    for variable, value in (("WORLD_SIZE", "many"), ("WORLD_SIZE", "-1"), ("WORLD_SIZE", ""), ("WORLD_SIZE", "\u00b2")):
        words = [word.replace("{f}/pipe", "{f}/x") for word in segmented()]

        def segment(f: Path, b: Path, w: list[str] = words) -> Words:
            return [word.replace("{b}", str(b)).replace("{f}", str(f)) for word in w]

        yield Case(f"environment-{variable}={value!r}", segment, (2,), {variable: value})
    yield Case("environment-RANK", segment, (2,), {"WORLD_SIZE": "2", "RANK": "first"})


def segmented() -> list[str]:
    model = ["--model", "{b}/tiny.safetensors", "--lungs", "{b}/lungs.nii", "--quiet"]
    return ["segment", "{b}/ct.nii", "-o", "{f}/out", *model]


# --- DICOM SEG -------------------------------------------------------------------------------------------------------


def seg_changes() -> dict[str, Callable[[pydicom.Dataset], Any]]:
    def groups(data: pydicom.Dataset) -> Any:
        return data.PerFrameFunctionalGroupsSequence

    def place(data: pydicom.Dataset, value: float) -> None:
        for group in groups(data)[:1]:
            group.PlanePositionSequence[0].ImagePositionPatient = [value, 0, 0]

    return {
        "rows": lambda d: d.update({"Rows": 65535}),
        "rows-and-columns": lambda d: d.update({"Rows": 65535, "Columns": 65535}),
        "no-rows": lambda d: d.update({"Rows": 0}),
        "frames": lambda d: d.update({"NumberOfFrames": 2_000_000_000}),
        "no-frames": lambda d: d.update({"NumberOfFrames": 0}),
        "bits": lambda d: d.update({"BitsAllocated": 64}),
        "no-bits": lambda d: d.update({"BitsAllocated": 0}),
        "samples": lambda d: d.update({"SamplesPerPixel": 3}),
        "no-groups": lambda d: d.__delattr__("PerFrameFunctionalGroupsSequence"),
        "few-groups": lambda d: d.update({"PerFrameFunctionalGroupsSequence": groups(d)[:1]}),
        "no-segments": lambda d: d.__delattr__("SegmentSequence"),
        "empty-segments": lambda d: d.update({"SegmentSequence": []}),
        "no-shared-groups": lambda d: d.__delattr__("SharedFunctionalGroupsSequence"),
        "number-of-segment": lambda d: d.SegmentSequence[0].update({"SegmentNumber": 65535}),
        "no-pixels": lambda d: d.update({"PixelData": b""}),
        "far-away": lambda d: place(d, 1e300),
        "kind": lambda d: d.update({"SegmentationType": "FRACTIONAL", "MaximumFractionalValue": 0}),
    }


def segs() -> Iterator[Case]:
    for name, change in seg_changes().items():

        def make(f: Path, b: Path, c: Callable[[pydicom.Dataset], Any] = change) -> Words:
            return ["evaluate", dicom_seg(f, c), b / "mask.nii"]

        yield Case(f"dicom-seg-{name}", make)
    for length in (200, 1000, 3000):
        yield Case(
            f"dicom-seg-cut-at-{length}", lambda f, b, n=length: ["evaluate", dicom_seg(f, length=n), b / "mask.nii"]
        )


def dicom_seg(
    folder: Path, change: Callable[[pydicom.Dataset], Any] = lambda data: None, length: int | None = None
) -> Path:
    path, _ = written(scanned(folder), [a_segment(spotted((12, 24, 20)))])
    if length is not None:
        path.write_bytes(path.read_bytes()[:length])
        return path
    data = pydicom.dcmread(path)
    change(data)
    data.save_as(path)
    return path


def cases() -> Iterator[Case]:
    """All of them."""
    yield from documents()
    yield from models()
    yield from manifests()
    yield from outputs()
    yield from arguments()
    yield from segs()


__all__ = ["Case", "cases", "np", "raw"]
