"""Every kind of bad input: one clean error, quickly, in little memory."""

from __future__ import annotations

import json
import os
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from raw_gguf import ARRAY, BOOL, F32, STRING, U8, U32, U64, RawGGUF, pair, string, tensor, u32, u64
from safetensors.numpy import save
from torch_archive import archive, pickled_dict, pickled_tensor

from localcoder.errors import CheckpointError, FileError, GGUFError, LocalcoderError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.safetensors_reader import SafetensorsFile
from localcoder.files.torch_reader import TorchFile

VALID_GGUF = RawGGUF().bytes()
VALID_SAFETENSORS = save({"x": np.ones((2, 3), np.float32), "y": np.ones(4, np.float16)})
VALID_TORCH = archive(pickled_dict(x=pickled_tensor((2, 3)), y=pickled_tensor((4,), offset=2)))

OPENERS: dict[str, tuple[Callable[[Path], object], type[FileError], bytes]] = {
    "gguf": (GGUFFile.open, GGUFError, VALID_GGUF),
    "safetensors": (SafetensorsFile, CheckpointError, VALID_SAFETENSORS),
    "bin": (TorchFile, CheckpointError, VALID_TORCH),
}


def refused(path: Path, match: str = "") -> str:
    """Opens `path` by its ending; checks the one error, its time and its memory; returns its text after the path."""
    open_file, error, _ = OPENERS[path.suffix[1:]]
    with pytest.raises(LocalcoderError) as caught:
        open_file(path)
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 700
    assert re.search(match, message)
    return message


def with_pairs(*pairs: bytes, **changes) -> RawGGUF:
    raw = RawGGUF(**changes)
    raw.pairs.extend(pairs)
    return raw


def with_tensors(*tensors: bytes) -> RawGGUF:
    return RawGGUF(tensors=list(tensors))


def array(element: int, n: int, data: bytes = b"") -> bytes:
    return pair("array", ARRAY, u32(element) + u64(n) + data)


BAD_GGUF = {
    "wrong magic": (RawGGUF(magic=b"GGUQ"), "expected a GGUF file, found"),
    "an old format": (RawGGUF(magic=b"tjgg"), "a GGML file of before GGUF"),
    "version 0": (RawGGUF(version=0), "GGUF version 0"),
    "version 1": (RawGGUF(version=1), "GGUF version 1 .files of 2023-08"),
    "version 4": (RawGGUF(version=4), "GGUF version 4; expected 2 or 3"),
    "big-endian": (RawGGUF(version=3 << 24), "a big-endian file"),
    "2**64 - 1 tensors": (RawGGUF(n_tensors=2**64 - 1), "claims 18446744073709551615 tensors"),
    "2**63 pairs": (RawGGUF(n_pairs=2**63), "claims 9223372036854775808 metadata pairs"),
    "more tensors than there are": (RawGGUF(n_tensors=60_000), "truncated|is 0 dimensions|has 0 dim|bytes long"),
    "more pairs than there are": (RawGGUF(n_pairs=60_000), "truncated|not supported|bytes long|twice"),
    "fewer pairs than there are": (RawGGUF(n_pairs=3), "dimensions|truncated"),
    "key of 2**63 bytes": (with_pairs(u64(2**63)), "is 9223372036854775808 bytes long; expected at most"),
    "key longer than the limit": (with_pairs(pair("k" * 1025, U8, 1)), "is 1025 bytes long"),
    "key not UTF-8": (with_pairs(pair(b"\xff\xfe", U8, 1)), "metadata key 4 is not UTF-8"),
    "key twice": (with_pairs(pair("flag", U8, 1)), "metadata key flag occurs twice"),
    "unknown value type": (with_pairs(pair("x", 13, b"")), "has the value type 13"),
    "string of 2**63 bytes": (with_pairs(pair("x", STRING, u64(2**63))), "truncated: metadata key x"),
    "string not UTF-8": (with_pairs(pair("x", STRING, string(b"\xc3("))), "metadata key x is not UTF-8"),
    "bool of 2": (with_pairs(pair("x", BOOL, 2)), "metadata key x is 2; expected 0 or 1"),
    "array of 2**63 strings": (with_pairs(array(STRING, 2**63)), "claims 9223372036854775808 strings"),
    "array of too many strings": (with_pairs(array(STRING, 1 << 21)), "truncated: metadata key array"),
    "array of 2**63 numbers": (with_pairs(array(U64, 2**63)), "truncated: array in metadata key array"),
    "array of 2**61 numbers": (with_pairs(array(U64, 2**61)), "truncated: array in metadata key array"),
    "array of arrays": (with_pairs(array(ARRAY, 1, u32(U8) + u64(1) + b"\1")), "value type 9, which is not supported"),
    "array of unknown type": (with_pairs(array(77, 1)), "value type 77"),
    "array of bad bools": (with_pairs(array(BOOL, 3, b"\0\1\2")), "is 2; expected 0 or 1"),
    "array with a string not UTF-8": (with_pairs(array(STRING, 1, string(b"\x80"))), "string 0 is not UTF-8"),
    "array with a string of 2**64 - 1": (with_pairs(array(STRING, 1, u64(2**64 - 1))), "string 0 ends at byte"),
    "alignment 0": (with_pairs(pair("general.alignment", U32, 0)), "general.alignment is 0; expected a power"),
    "alignment 3": (with_pairs(pair("general.alignment", U32, 3)), "general.alignment is 3"),
    "alignment 2**31": (with_pairs(pair("general.alignment", U32, 2**31)), "general.alignment is 2147483648"),
    "alignment of text": (with_pairs(pair("general.alignment", STRING, "32")), "is a string, expected an integer"),
    "alignment of floats": (with_pairs(pair("general.alignment", F32, 32)), "is a number, expected an integer"),
    "0 dimensions": (with_tensors(tensor("x", [])), "has 0 dimensions; expected 1 to 4"),
    "5 dimensions": (with_tensors(tensor("x", [1] * 5)), "has 5 dimensions"),
    "2**32 - 1 dimensions": (with_tensors(string("x") + u32(2**32 - 1)), "has 4294967295 dimensions"),
    "a dimension of 0": (with_tensors(tensor("x", [4, 0])), "expected no zero"),
    "a dimension of 2**63": (with_tensors(tensor("x", [2**63, 1])), "truncated: tensor x ends at byte"),
    "dimensions that overflow": (with_tensors(tensor("x", [2**32] * 4)), "truncated: tensor x ends at byte"),
    "rows of no whole blocks": (with_tensors(tensor("x", [33], 8)), "rows of 33 values; q8_0 has blocks of 32"),
    "tensor twice": (with_tensors(tensor("x", [4]), tensor("x", [4], offset=32)), "tensor x occurs twice"),
    "tensors overlap": (with_tensors(tensor("x", [4, 4]), tensor("y", [4], offset=32)), "tensors x and y overlap"),
    "tensors at the same place": (with_tensors(tensor("x", [4]), tensor("y", [4])), "tensors x and y overlap"),
    "offset not aligned": (with_tensors(tensor("x", [4], offset=4)), "starts at 4, not a multiple of 32"),
    "offset beyond the end": (with_tensors(tensor("x", [4], offset=96)), "truncated: tensor x ends at byte"),
    "offset of 2**64 - 32": (with_tensors(tensor("x", [4], offset=2**64 - 32)), "truncated: tensor x ends"),
    "unknown tensor type": (with_tensors(tensor("x", [4], 999)), "has type 999, which is not supported"),
    "removed tensor type": (with_tensors(tensor("x", [32], 4)), "has type 4, which is not supported"),
    "tensor name not UTF-8": (with_tensors(tensor(b"\xff", [4])), "name of tensor 0 is not UTF-8"),
    "tensor name of 2**40": (with_tensors(u64(2**40)), "name of tensor 0 is 1099511627776 bytes long"),
    "a name that draws on the terminal": (with_tensors(tensor("\x1b[2J\n\u202e", [4], 999)), r"\\x1b\[2J\\n\\u202e"),
}


@pytest.mark.parametrize("name", BAD_GGUF)
def test_bad_gguf(tmp_path, name):
    raw, match = BAD_GGUF[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(raw.bytes())
    refused(path, match)


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def described(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


X = described([2], 0, 8)
BAD_SAFETENSORS = {
    "header of 2**63": safetensors_bytes({"x": X}, bytes(8), 2**63),
    "header longer than the file": safetensors_bytes({"x": X}, bytes(8), 1000),
    "header of 0": safetensors_bytes(b"", bytes(8)),
    "header too long": safetensors_bytes(b"{" + b" " * (17 << 20) + b"}"),
    "header not JSON": safetensors_bytes(b"{'x'}", bytes(8)),
    "header not UTF-8": safetensors_bytes(b'{"\xff": 1}', bytes(8)),
    "header no object": safetensors_bytes([1, 2], bytes(8)),
    "header nested deep": safetensors_bytes(b"[" * 100_000),
    "no dtype": safetensors_bytes({"x": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "unknown dtype": safetensors_bytes({"x": described([2], 0, 8, "F33")}, bytes(8)),
    "dtype of half a byte": safetensors_bytes({"x": described([16], 0, 8, "F4")}, bytes(8)),
    "negative shape": safetensors_bytes({"x": described([-2], 0, 8)}, bytes(8)),
    "huge shape": safetensors_bytes({"x": described([2**62, 2**62], 0, 8)}, bytes(8)),
    "shape that overflows to fit": safetensors_bytes({"x": described([2**63, 2], 0, 0)}),
    "shape of fractions": safetensors_bytes({"x": described([1.5], 0, 6)}, bytes(6)),
    "size not that of the shape": safetensors_bytes({"x": described([3], 0, 8)}, bytes(8)),
    "offsets reversed": safetensors_bytes({"x": described([2], 8, 0)}, bytes(8)),
    "offsets beyond the end": safetensors_bytes({"x": described([2], 0, 8)}, bytes(4)),
    "bytes after the end": safetensors_bytes({"x": X}, bytes(9)),
    "overlap": safetensors_bytes({"x": X, "y": described([2], 4, 12)}, bytes(12)),
    "gap": safetensors_bytes({"x": X, "y": described([2], 12, 20)}, bytes(20)),
    "tensor twice": safetensors_bytes(b'{"x": %s, "x": %s}' % ((json.dumps(X).encode(),) * 2), bytes(16)),
    "metadata of numbers": safetensors_bytes({"__metadata__": {"a": 1}, "x": X}, bytes(8)),
}


@pytest.mark.parametrize("name", BAD_SAFETENSORS)
def test_bad_safetensors(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes(BAD_SAFETENSORS[name])
    refused(path, "not a safetensors file|has the type F4")


WRONG_FILES = {
    "empty": (b"", "is empty"),
    "one byte": (b"G", "."),
    "zeros": (bytes(4096), "."),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "a web page": (b"<!DOCTYPE html><html>Not Found</html>", "a web page; the download went wrong"),
    "a GGUF file": (VALID_GGUF, "a GGUF file"),
    "a safetensors file": (VALID_SAFETENSORS, "a safetensors file"),
    "a torch checkpoint": (VALID_TORCH, "a zip archive or torch checkpoint"),
}


@pytest.mark.parametrize("kind", OPENERS)
@pytest.mark.parametrize("name", WRONG_FILES)
def test_wrong_file(tmp_path, kind, name):
    content, match = WRONG_FILES[name]
    if content == OPENERS[kind][2]:
        pytest.skip("the right file")
    path = tmp_path / f"x.{kind}"
    path.write_bytes(content)
    refused(path, match)


@pytest.mark.parametrize("kind", OPENERS)
def test_no_file(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    refused(path, "no such file")
    path.mkdir()
    refused(path, "is a folder")
    path.rmdir()
    refused(path / f"y.{kind}", "no such file|cannot be opened: Not a directory")
    refused(tmp_path / f"{'x' * 300}.{kind}", "cannot be opened: File name too long|no such file")


@pytest.mark.skipif(os.name != "posix", reason="pipes, links and permissions of POSIX")
@pytest.mark.parametrize("kind", OPENERS)
def test_posix_files(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    path.symlink_to(tmp_path / "none")
    refused(path, "is a link to a file that is not there")
    path.unlink()
    path.symlink_to(path)
    refused(path, "cannot be opened: ")
    path.unlink()
    os.mkfifo(path)
    refused(path, "is a pipe or a device")
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(path, "is a pipe or a device")
    path.unlink()
    path.write_bytes(OPENERS[kind][2])
    path.chmod(0)
    if os.geteuid():
        refused(path, "cannot be opened: Permission denied")


@pytest.mark.parametrize("kind", OPENERS)
def test_cut_at_every_byte(tmp_path, kind):
    """A file that was not copied to its end, whichever section the end is in."""
    path = tmp_path / f"x.{kind}"
    whole = OPENERS[kind][2]
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        refused(path)


def refused_cheaply(path: Path, most_seconds: float, most_bytes: int) -> None:
    start = time.process_time()
    refused(path)
    assert time.process_time() - start < most_seconds
    tracemalloc.start()
    try:
        refused(path)
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


def test_bad_input_costs_little(tmp_path):
    """All of the above again: 0.1 s of processor time and 1 MiB each at most."""
    path = tmp_path / "x.gguf"
    path.write_bytes(b"")
    refused(path)  # whatever is imported late is imported now
    for raw, _ in BAD_GGUF.values():
        path.write_bytes(raw.bytes())
        refused_cheaply(path, 0.1, 1 << 20)
    path = tmp_path / "x.safetensors"
    for content in BAD_SAFETENSORS.values():
        path.write_bytes(content)
        refused_cheaply(path, 0.1, 1 << 20)


def test_a_large_hostile_header_costs_its_own_size(tmp_path):
    """A header that is as long as it says, full of the smallest things that it can be full of."""
    n = 100_000
    path = tmp_path / "x.gguf"
    path.write_bytes(replace(with_pairs(array(STRING, n + 1, u64(0) * n)), tensors=[], data=b"", alignment=1).bytes())
    refused_cheaply(path, 0.5, 4 << 20)
    path.write_bytes(RawGGUF(tensors=[tensor("", [1])] * 10_000).bytes())
    refused_cheaply(path, 0.5, 8 << 20)


# -- bytes changed anywhere


def is_readable(kind: str, path: Path) -> bool:
    """Does what a converter or a model would do with the file: reads every value. Only one kind of error is allowed."""
    refusal = None
    try:
        file = OPENERS[kind][0](path)
        for tensor in file.tensors.values():
            whole = tensor.dequantize() if kind == "gguf" else tensor.rows(0, tensor.shape[0] if tensor.shape else 1)
            assert whole.shape == tensor.shape
        file.close()
    except LocalcoderError as e:
        refusal = e
    assert str(refusal).isprintable()
    return refusal is None


@pytest.mark.parametrize("kind", OPENERS)
@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=[*HealthCheck], database=None)
@given(data=st.data())
def test_changed_bytes(tmp_path_factory, kind, data):
    whole = bytearray(OPENERS[kind][2])
    interesting = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        n = data.draw(st.sampled_from([1, 1, 2, 4, 8]))
        whole[at : at + n] = [data.draw(interesting)] * len(whole[at : at + n])
    path = tmp_path_factory.getbasetemp() / f"changed.{kind}"
    path.write_bytes(whole)
    is_readable(kind, path)


@pytest.mark.parametrize("kind", OPENERS)
def test_each_byte_changed(tmp_path, kind):
    whole = OPENERS[kind][2]
    path = tmp_path / f"x.{kind}"
    path.write_bytes(whole)
    assert is_readable(kind, path)
    n_refused = 0
    for at, byte in enumerate(whole):
        path.write_bytes(whole[:at] + bytes([byte ^ (0x80, 0x01, 0xFF)[at % 3]]) + whole[at + 1 :])
        n_refused += not is_readable(kind, path)
    assert n_refused > len(whole) // 2


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=[*HealthCheck], database=None)
@given(pickled=st.binary(max_size=60))
@example(pickled=b"\x80\x02}(X\x01\x00\x00\x00xNu.")
def test_any_pickle(tmp_path_factory, pickled):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(archive(b"\x80\x02" + pickled))
    refused(path)
