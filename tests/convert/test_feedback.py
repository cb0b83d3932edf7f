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

    def output_error(data: np.ndarray) -> float:
        return float(((unseen @ (qtype.dequantize(data) - w).T) ** 2).mean())

    importance = (x * x).sum(axis=0)
    assert output_error(Feedback([x[:300], x[300:]]).round(qtype, w)) < 0.7 * output_error(
        quantize_best(qtype, w, importance)
    )


def test_without_correlation_it_is_the_search():
    qtype = next(t for t in ALL if t.name == "q4_k")
    w = np.random.default_rng(1).standard_normal((8, 512)).astype(np.float32)
    found = Feedback([np.eye(512, dtype=np.float32)]).round(qtype, w)
    assert np.array_equal(found, quantize_best(qtype, w, np.ones(512, np.float32)))


def test_inputs_that_are_all_zero_do_no_harm():
    qtype = next(t for t in ALL if t.name == "q4_0")
    w = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    found = qtype.dequantize(Feedback([np.zeros((4, 64), np.float32)]).round(qtype, w))
    assert np.abs(found - w).max() < 0.5


def test_few_tokens_do_no_harm():
    """Far fewer tokens than columns: most of the correlations that they show are chance."""
    x = correlated_inputs(2000, 512)
    qtype = next(t for t in ALL if t.name == "q4_k")
    w = np.random.default_rng(1).standard_normal((16, 512)).astype(np.float32)

    def output_error(data: np.ndarray) -> float:
        return float(((x[1000:] @ (qtype.dequantize(data) - w).T) ** 2).mean())

    plain = output_error(quantize_best(qtype, w))
    errors = [output_error(Feedback([x[:n]]).round(qtype, w)) for n in (8, 64, 1000)]
    assert errors[2] < errors[1] < errors[0] < plain


@pytest.mark.parametrize("n_in", [600, 256])
def test_the_factors_make_up_the_moments(n_in):
    x = correlated_inputs(1500, n_in).astype(np.float64)
    feedback = Feedback([x.astype(np.float32)])
    order = np.concatenate([group.columns for group in feedback._groups])
    assert sorted(order) == list(range(n_in))
    factor = np.zeros((n_in, n_in))
    for group, rows in zip(feedback._groups, feedback._spread):
        factor[group.at : group.end, group.at :] = rows
    factor = np.triu(factor)
    assert np.array_equal(np.diagonal(factor), np.ones(n_in))
    moments = (x.T @ x)[np.ix_(order, order)]
    mean = np.diagonal(moments).mean()
    moments += np.diag(np.diagonal(moments) * 0.3 * n_in / len(x) + 0.01 * mean)
    inverse = np.linalg.inv(factor)
    left = inverse @ moments @ inverse.T  # D, if the factor is right
    scale = np.sqrt(np.diagonal(left))
    assert np.abs(left / scale / scale[:, None] - np.eye(n_in)).max() < 1e-3
