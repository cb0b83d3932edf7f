"""Codes can be read off the values and written back."""

from __future__ import annotations

import numpy as np
import pytest

from localcoder.errors import OptionError
from localcoder.quants import ALL, by_name
from localcoder.quants.codes import Grid, has_codes, with_codes
from localcoder.quants.search import quantize_best

CODED = [qtype for qtype in ALL if has_codes(qtype)]


@pytest.mark.parametrize("qtype", CODED, ids=lambda t: t.name)
def test_the_grid_holds_every_value_and_codes_go_back(qtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 256)).astype(np.float32)
    blocks = quantize_best(qtype, x).view(qtype.block).reshape(-1)
    grid = Grid.of(qtype, blocks)
    values = qtype.dequantize_blocks(blocks)
    options = grid.offset[..., None] + grid.step[..., None] * grid.levels
    codes = np.abs(options - values[..., None]).argmin(axis=-1).astype(np.uint8)
    chosen = np.take_along_axis(options, codes[..., None].astype(np.intp), axis=-1)[..., 0]
    assert np.allclose(chosen, values, rtol=1e-4, atol=1e-5 * np.abs(x).max())
    rewritten = with_codes(qtype, blocks, codes)
    assert np.array_equal(qtype.dequantize_blocks(rewritten), values)
    random = rng.integers(0, len(grid.levels), values.shape).astype(np.uint8)
    if qtype.name == "q8_0":
        random = np.maximum(random, 1)
    found = qtype.dequantize_blocks(with_codes(qtype, blocks, random))
    expected = grid.offset + grid.step * grid.levels[random]
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(x).max())


def test_formats_without_codes_are_refused():
    with pytest.raises(OptionError, match="f16"):
        with_codes(by_name("f16"), np.zeros(1, by_name("f16").block), np.zeros((1, 1), np.uint8))
