"""Error feedback: the output of a matrix changes less than with plain rounding, in the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

from localcoder.convert.feedback import Feedback
from localcoder.quants import ALL
from localcoder.quants.codes import has_codes
from localcoder.quants.search import quantize_best


def correlated_inputs(n_tokens: int, n_in: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((n_in // 4, n_in)) * np.exp(rng.standard_normal(n_in))
    noise = 0.1 * rng.standard_normal((n_tokens, n_in))
    return (rng.standard_normal((n_tokens, n_in // 4)) @ mixing + noise).astype(np.float32)


@pytest.mark.parametrize("qtype", [t for t in ALL if has_codes(t)], ids=lambda t: t.name)
@pytest.mark.parametrize("n_in", [512, 160])
def test_the_output_error_falls(qtype, n_in):
    if n_in % qtype.block_elems:
        pytest.skip("rows of this length do not exist in this format")
    x, unseen = np.split(correlated_inputs(2000, n_in), 2)
    w = np.random.default_rng(1).standard_normal((16, n_in)).astype(np.float32)
    moments = x.T @ x

    def output_error(data: np.ndarray) -> float:
        return float(((unseen @ (qtype.dequantize(data) - w).T) ** 2).mean())

    importance = np.diagonal(moments).copy()
    assert output_error(Feedback(moments).round(qtype, w)) < 0.7 * output_error(quantize_best(qtype, w, importance))


def test_without_correlation_it_is_the_search():
    qtype = next(t for t in ALL if t.name == "q4_k")
    w = np.random.default_rng(1).standard_normal((8, 512)).astype(np.float32)
    found = Feedback(np.eye(512, dtype=np.float32)).round(qtype, w)
    assert np.array_equal(found, quantize_best(qtype, w, np.ones(512, np.float32)))


def test_inputs_that_are_all_zero_do_no_harm():
    qtype = next(t for t in ALL if t.name == "q4_0")
    w = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    found = qtype.dequantize(Feedback(np.zeros((64, 64), np.float32)).round(qtype, w))
    assert np.abs(found - w).max() < 0.5
