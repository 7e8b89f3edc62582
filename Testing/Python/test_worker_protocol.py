"""The protocol between parent and child: every message and array there and back, and nothing else taken for one."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from COVIDLesionSegLib.errors import GeometryError, InputError
from COVIDLesionSegLib.imaging import Geometry
from COVIDLesionSegLib.worker import protocol as p
from COVIDLesionSegLib.worker import transport

HEADER = p.ArrayHeader("volume", "<i2", [2, 3, 4], "1-0.npy")
RESULT = b'{"v": 1, "type": "result", "id": 7, "values": {}, "arrays": [%s]}'
MESSAGES = [
    p.Hello("lesions", "0.1.0", "3.12", "Linux", 42, {"tasks": ["segment"], "encodings": ["raw"]}),
    p.Started(7),
    p.ProgressMessage(7, "network", 3, 120, "halfway"),
    p.Note(7, "Größe: 3 µL, \u2028 line"),
    p.Result(7, {"a": [1, 2.5, None, {"b": "c"}]}, [HEADER]),
    p.Failure(7, "model", "No such model.", "Choose another.", "trace\nback", "use_cpu", "ModelError"),
    p.Heartbeat(),
    p.Bye("idle"),
    p.Ask(7, "segment", {"model": "x"}, [HEADER], "/tmp/folder", True),
    p.Cancel(7),
    p.Close(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_message_comes_back_as_it_was(message):
    line = p.encode(message)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert p.decode(line) == message


def test_numbers_that_json_does_not_have_survive():
    values = {"nan": math.nan, "inf": math.inf, "low": -math.inf, "numpy": np.float32(1.5), "pair": (1, np.int64(2))}
    found = p.decode(p.encode(p.Result(1, values))).values
    assert math.isnan(found["nan"]) and found["inf"] == math.inf and found["low"] == -math.inf
    assert found["numpy"] == 1.5 and found["pair"] == [1, 2]


def test_what_json_can_not_hold_is_refused_before_it_is_sent():
    with pytest.raises(InputError, match="Geometry"):
        p.encode(p.Result(1, {"geometry": Geometry((1, 1, 1))}))


@pytest.mark.parametrize(
    "line",
    [
        b"Segmentation fault (core dumped)",
        b"",
        b"[1, 2]",
        b"{}",
        b'{"v": 1}',
        b'{"v": 1, "type": "unheard_of"}',
        b'{"v": 1, "type": ["result"]}',
        b'{"v": 1, "type": "started"}',
        b'{"v": 1, "type": "started", "id": "7"}',
        b'{"v": 1, "type": "started", "id": true}',
        b'{"v": 1, "type": "started", "id": 7, "extra": 1}',
        b'{"v": 1, "type": "progress", "id": 7, "phase": "x", "done": NaN, "total": 1}',
        b'{"v": 1, "type": "result", "id": 7, "values": [], "arrays": []}',
        b'{"v": 1, "type": "result", "id": 7, "values": {}, "arrays": [3]}',
        b'{"v": 1, "type": "result", "id": 7, "values": {}, "arrays": [{"name": "a", "dtype": "O", "shape": []}]}',
        b'{"v": 1, "type": "result", "id": 7, "values": {}, "arrays": [{"name": "a", "dtype": "<i2", "shape": [-1]}]}',
        b'{"v": 1, "type": "result", "id": 7, "values": {}, "arrays": [{"name": "a", "dtype": "<i2", "shape": [9e9]}]}',
        RESULT % b'{"name": "a", "dtype": "<i2", "shape": [99999999, 99999999]}',
        RESULT % b'{"name": "a", "dtype": "<i2", "shape": [1], "encoding": "pickle"}',
        b'\xff\xfe{"v": 1}',
        b"[" * 100_000,
    ],
)
def test_garbage_is_a_protocol_error(line):
    with pytest.raises(p.ProtocolError):
        p.decode(line)


@pytest.mark.parametrize("version", [0, 2, "1", None, True])
def test_another_version_is_named(version):
    line = json.dumps({"v": version, "type": "started", "id": 7}).encode()
    with pytest.raises(p.VersionError, match="version") as found:
        p.decode(line)
    assert "same version" in found.value.hint


# ---- arrays in the pipe ---------------------------------------------------------------------------------------------


def streamed(message, arrays, compress=False):
    data = p.encode(message)
    for array in arrays:
        data += b"".join(block for block, _ in p.blocks(array, compress))
    return data


def announced(arrays, compress=False):
    headers = [p.ArrayHeader.of(f"a{i}", array) for i, array in enumerate(arrays)]
    return p.Result(7, {}, [replace(header, encoding="zlib" if compress else "raw") for header in headers])


def test_only_what_shrinks_well_is_compressed():
    mask = np.zeros((20, 300, 300), np.uint8)
    mask[8:12, 100:200, 100:200] = 1
    noise = np.random.default_rng(0).normal(-500, 200, (20, 300, 300)).astype(np.int16)

    def encoding(array, compress=True):
        return p.ArrayHeader.of("a", array, compress=compress).encoding

    assert encoding(mask) == encoding(mask[:, ::-1, ::2]) == encoding(np.zeros(10**6)) == "zlib"
    assert encoding(noise) == encoding(np.array(3.0)) == encoding(mask[:0]) == encoding(mask, compress=False) == "raw"
    assert p.ArrayHeader.of("a", mask, "file.npy", compress=True).encoding == "raw"


ARRAYS = [
    np.arange(24, dtype=np.int16).reshape(2, 3, 4),
    np.zeros((0, 5, 5), np.float32),
    np.array(3.5),
    np.asfortranarray(np.arange(24, dtype=">f4").reshape(4, 3, 2)),
    np.arange(60).reshape(5, 4, 3)[::-2, :, ::2],
    np.random.default_rng(0).integers(0, 2, (3, 700, 900)).astype(bool),
]


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "zlib"])
@pytest.mark.parametrize("piece", [1 << 20, 65536, 4099])
def test_arrays_come_back_from_the_pipe_however_it_cuts_them(compress, piece):
    data = streamed(announced(ARRAYS, compress), ARRAYS, compress) + p.encode(p.Heartbeat())
    decoder, frames = p.Decoder(), []
    for start in range(0, len(data), piece):
        frames += decoder.feed(data[start : start + piece])
    result, beat = frames
    assert beat.message == p.Heartbeat() and not decoder.in_frame
    for number, array in enumerate(ARRAYS):
        found = result.arrays[f"a{number}"]
        assert found.dtype == array.dtype.newbyteorder("<") and found.flags.writeable
        np.testing.assert_array_equal(found, array)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.booleans())
def test_any_cut_gives_the_same_frames(cuts, compress):
    arrays = [np.arange(17, dtype=np.uint8), np.arange(6, dtype=np.float64).reshape(2, 3)]
    data = p.encode(p.Started(1)) + streamed(announced(arrays, compress), arrays, compress) + p.encode(p.Bye("idle"))
    decoder, frames, position = p.Decoder(), [], 0
    for cut in [*cuts, len(data)]:
        frames += decoder.feed(data[position : position + cut])
        position += cut
    frames += decoder.feed(data[position:])
    assert [type(frame.message) for frame in frames] == [p.Started, p.Result, p.Bye]
    np.testing.assert_array_equal(frames[1].arrays["a1"], arrays[1])


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_never_do_more_than_raise_a_protocol_error(data):
    decoder = p.Decoder()
    try:
        decoder.feed(data)
        decoder.feed(b"\n")
        decoder.finish()
    except p.ProtocolError:
        return
    assert data.strip() == b"" or b"v" in data


def test_a_cut_off_frame_is_an_error_at_the_end():
    array = np.arange(1000)
    data = streamed(announced([array]), [array])
    for length in (10, len(data) // 2, len(data) - 1):
        decoder = p.Decoder()
        assert decoder.feed(data[:length]) == []
        with pytest.raises(p.ProtocolError, match="ended in the middle"):
            decoder.finish()
    p.Decoder().finish()


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ((5).to_bytes(4, "big") + b"12345" + bytes(4), "ended after 5"),
        ((9).to_bytes(4, "big") + b"123456789" + bytes(4), "longer than announced"),
        ((1 << 31).to_bytes(4, "big"), "announces itself"),
    ],
)
def test_blocks_that_do_not_fit_are_errors(payload, why):
    with pytest.raises(p.ProtocolError, match=why):
        p.Decoder().feed(p.encode(announced([np.zeros(8, np.uint8)])) + payload)


def test_a_damaged_compressed_block_is_an_error():
    array = np.zeros(1000, np.uint8)
    data = bytearray(streamed(announced([array], True), [array], True))
    data[-12] ^= 0xFF
    with pytest.raises(p.ProtocolError):
        p.Decoder().feed(bytes(data))


def test_what_can_not_become_a_message_is_an_error_without_a_line_end():
    with pytest.raises(p.ProtocolError, match="does not hold messages"):
        p.Decoder().feed(b"Welcome")


def test_what_a_login_script_prints_is_kept_apart_up_to_the_first_message():
    decoder = p.Decoder(tolerate=100)
    frames = decoder.feed(b"Welcome to gpu-box\nYou have mail.\n" + p.encode(p.Heartbeat()))
    assert [frame.message for frame in frames] == [p.Heartbeat()]
    assert decoder.noise.decode().splitlines() == ["Welcome to gpu-box", "You have mail."]
    with pytest.raises(p.ProtocolError):
        decoder.feed(b"noise\n")
    with pytest.raises(p.ProtocolError):
        p.Decoder(tolerate=100).feed(b"x" * 50 + b"\n" + b"y" * 60 + b"\n")


def test_arrays_of_something_else_than_numbers_are_refused():
    with pytest.raises(InputError, match="object"):
        p.ArrayHeader.of("names", np.array([None, "a"], dtype=object))


# ---- arrays in files ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder():
    made = transport.make_folder()
    yield made
    transport.remove_folder(made)
    assert not made.exists()


def written(folder, array, name="volume", file="1-0.npy"):
    header = p.ArrayHeader.of(name, array, file)
    done = list(transport.write_array(folder / file, array))
    assert done == sorted(done) and (not done or done[-1] == array.nbytes)
    return header


@pytest.mark.parametrize("array", ARRAYS, ids=range(len(ARRAYS)))
def test_arrays_come_back_from_files_which_are_gone_then(folder, array):
    found = transport.read_array(folder, written(folder, array))
    np.testing.assert_array_equal(found, array)
    found[...] = 1
    assert list(folder.iterdir()) == []


def test_the_folder_is_for_this_user_only(folder):
    assert folder.stat().st_mode & 0o077 == 0


def test_a_file_that_is_not_what_was_announced_is_an_error(folder):
    array = np.arange(24, dtype=np.int16)
    with pytest.raises(p.ProtocolError, match="int16"):
        transport.read_array(folder, p.ArrayHeader("volume", "<i2", [12], written(folder, array).file))
    header = written(folder, array, file="cut.npy")
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:-5])
    with pytest.raises(p.ProtocolError, match="did not arrive whole"):
        transport.read_array(folder, header)
    with pytest.raises(p.ProtocolError):
        transport.read_array(folder, p.ArrayHeader("volume", "<i2", [24], "absent.npy"))


@pytest.mark.parametrize("name", ["../other.npy", "/etc/passwd", ".."])
def test_a_file_outside_the_folder_is_never_read(folder, name):
    with pytest.raises(p.ProtocolError, match="announced"):
        transport.read_array(folder, p.ArrayHeader("volume", "|u1", [1], name))


def test_what_a_power_cut_has_left_is_removed_and_what_is_in_use_is_not(monkeypatch, tmp_path):
    monkeypatch.setattr(transport, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(transport.tempfile, "tempdir", str(tmp_path))
    day = 2 * 24 * 3600
    cases = {"dead-old": (2**22, day, False), "dead-new": (2**22, 60, True), "alive-old": (os.getpid(), day, True)}
    for name, (pid, age, _) in cases.items():
        folder = tmp_path / f"{transport.PREFIX}{pid}-{name}"
        folder.mkdir()
        (folder / "1-0.npy").touch()
        os.utime(folder, (time.time() - age,) * 2)
    (tmp_path / "somebody-elses").mkdir()
    made = transport.make_folder()
    for name, (pid, _, stays) in cases.items():
        assert (tmp_path / f"{transport.PREFIX}{pid}-{name}").exists() == stays, name
    assert made.is_dir() and (tmp_path / "somebody-elses").is_dir()


def test_only_folders_of_our_own_are_removed(tmp_path):
    transport.remove_folder(tmp_path)
    assert tmp_path.is_dir()


# ---- geometry -------------------------------------------------------------------------------------------------------


def test_a_grid_comes_back_as_it_was():
    turned = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    geometry = Geometry((512, 510, 300), (0.7, 0.71, 1.25), (-170.3, 20.0, 1e3), turned)
    message = p.decode(p.encode(p.Ask(1, "segment", {"geometry": p.geometry_to_json(geometry)})))
    assert p.geometry_from_json(message.parameters["geometry"]) == geometry


@pytest.mark.parametrize("value", [None, {}, {"size": [1, 2, 3]}, [1], {"size": 3, "spacing": 1, "origin": 1}])
def test_what_is_no_grid_is_an_input_error(value):
    with pytest.raises(InputError, match="geometry"):
        p.geometry_from_json(value)


def test_a_grid_that_can_not_be_is_a_geometry_error():
    value = p.geometry_to_json(Geometry((1, 1, 1))) | {"spacing": [0, 1, 1]}
    with pytest.raises(GeometryError):
        p.geometry_from_json(value)
