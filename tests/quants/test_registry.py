"""The table of block formats against the constants of the `gguf` package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from localcoder.errors import OptionError
from localcoder.quants import ALL, BY_ID, by_name

KNOWN_TO_GGUF = [t for t in ALL if t.gguf_id in {int(known) for known in gguf.GGMLQuantizationType}]


@pytest.mark.parametrize("qtype", KNOWN_TO_GGUF, ids=repr)
def test_name_and_sizes(qtype):
    known = gguf.GGMLQuantizationType(qtype.gguf_id)
    assert known.name.lower() == qtype.name
    assert gguf.GGML_QUANT_SIZES[known] == (qtype.block_elems, qtype.block_bytes)


def test_every_type_that_gguf_dequantizes_is_here():
    readable = {int(known) for known in gguf.quants._type_traits} | {0, 1}
    assert readable <= set(BY_ID)


def test_names_and_ids_are_unique():
    assert len({t.name for t in ALL}) == len({t.gguf_id for t in ALL}) == len(ALL)


def test_names_in_either_case_and_unknown_ones():
    assert by_name("Q4_K") is by_name("q4_k")
    with pytest.raises(OptionError, match=r"unknown type 'q4_x'; known: .*q4_0.*"):
        by_name("q4_x")


def test_row_bytes():
    q4_k = by_name("q4_k")
    assert q4_k.row_bytes(512) == 288
    with pytest.raises(OptionError, match="multiple of 256"):
        q4_k.row_bytes(300)


@pytest.mark.parametrize("qtype", ALL, ids=repr)
def test_shapes_and_empty_tensors(qtype):
    n = 2 * qtype.block_elems
    assert qtype.dequantize(np.zeros((3, 5, qtype.row_bytes(n)), np.uint8)).shape == (3, 5, n)
    assert qtype.dequantize(np.zeros((0, qtype.row_bytes(n)), np.uint8)).shape == (0, n)
    if qtype.quantize_blocks is not None:
        assert qtype.quantize(np.zeros((3, 5, n), np.float32)).shape == (3, 5, qtype.row_bytes(n))
        assert qtype.quantize(np.zeros((0, n), np.float32)).shape == (0, qtype.row_bytes(n))


def test_no_plain_rounding():
    with pytest.raises(OptionError, match="q4_k: has no plain rounding"):
        by_name("q4_k").quantize(np.zeros((1, 256), np.float32))
