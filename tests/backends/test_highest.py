"""The highest logits of a row, as every backend gives them, and texts that are chosen from nothing else."""

from __future__ import annotations

import os

import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.backends import select
from localcoder.backends.c import library as c_library
from localcoder.backends.cuda import emulated
from localcoder.backends.highest import MAX_HIGHEST, Candidates, Wanted, highest, wanted_of
from localcoder.backends.program import KVShape, Recorder, RopeTable, Step
from localcoder.errors import NumericsError
from localcoder.session.options import SamplingOptions
from localcoder.session.sampler import Sampler


def names() -> list[str]:
    forced = os.environ.get("LOCALCODER_BACKEND")
    return [forced] if forced else select.usable_backends()


@pytest.fixture(params=names())
def backend(request):
    opened = select._by_name(request.param).open(2)
    yield opened
    opened.close()


@pytest.mark.skipif(c_library.availability() is not None, reason=str(c_library.availability()))
def test_the_c_core_finds_as_many():
    assert c_library.load().lib.LC_MAX_HIGHEST == MAX_HIGHEST


def run_highest(backend, rows: np.ndarray, wanted: Wanted) -> list[Candidates]:
    """What the backend finds in the given rows: the program adds zeros to them."""
    n, width = rows.shape
    ops = Recorder()
    result = ops.add(ops.input(width), ops.input(width))
    table = np.zeros((n, 1), np.float32)
    program = ops.finish(result, KVShape(1, 1, 2, n), RopeTable(table, table))
    executable = backend.compile(program, backend.new_kv_store(program.kv, 1), n)
    count, zeros = np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
    step = Step(zeros, count, zeros, np.zeros((1, 1), np.int32), count, (rows, np.zeros_like(rows)))
    found = executable.run_highest(step, wanted)
    executable.close()
    return found


@pytest.mark.parametrize(
    ("n", "n_ids"), [(7, 7), (300, 290), (4096, 4096), (5000, 4999), (32256, 32022), (102400, 102400)]
)
@pytest.mark.parametrize("k", [1, 2, 40, MAX_HIGHEST])
def test_the_highest_are_found_in_order(backend, n, n_ids, k):
    if k > n_ids:
        pytest.skip("more than there are")
    rng = np.random.default_rng(n + k)
    rows = rng.standard_normal((3, n)).astype(np.float32)
    rows[0, rng.integers(0, n, n)] = 0.25  # many are equal
    rows[1] = np.round(rows[1])  # zeros of both signs
    rows[2, n_ids:] = 100
    wanted = Wanted(k, n_ids)
    for row, found in zip(rows, run_highest(backend, rows, wanted), strict=True):
        expected = np.argsort(-row[:n_ids], kind="stable")[:k]
        np.testing.assert_array_equal(found.ids, expected)
        np.testing.assert_array_equal(found.logits, row[expected])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("at", [3, 4500, 4999])
def test_what_is_not_finite_comes_first(backend, bad, k, at):
    rows = np.random.default_rng(1).standard_normal((2, 5000)).astype(np.float32)
    rows[1, at] = bad
    first, second = run_highest(backend, rows, Wanted(k, 4900))
    assert np.isfinite(first.logits).all()
    assert second.ids[0] == at
    assert not np.isfinite(second.logits[0])
    others = np.argsort(-np.where(np.arange(5000) == at, -np.inf, rows[1])[:4900], kind="stable")
    np.testing.assert_array_equal(second.ids[1:], others[: k - 1])
    with pytest.raises(NumericsError):
        Sampler(SamplingOptions()).sample(second, [])


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}, {"temperature": 2.0, "seed": 4, "top_k": 3}])
@pytest.mark.parametrize("forbidden", [(), (995, 996, 997, 998, 999), (0, 17, 999), range(0, 1000, 3)])
def test_a_choice_from_them_is_the_choice_from_all(options, forbidden):
    rng = np.random.default_rng(7)
    whole, few = (Sampler(SamplingOptions(**options), forbidden) for _ in range(2))
    wanted = few.wanted(1000)
    assert wanted is not None
    for _ in range(200):
        logits = np.round(3 * rng.standard_normal(1000), 1).astype(np.float32)
        assert few.sample(wanted_of(logits, wanted), []) == whole.sample(logits, [])


@pytest.mark.parametrize(
    "options",
    [
        {"repeat_penalty": 1.1},
        {"frequency_penalty": 0.1},
        {"presence_penalty": 0.1},
        {"dry_multiplier": 0.8},
        {"logit_bias": {3: 1.0}},
        {"temperature": 1.0, "top_k": 0},
        {"temperature": 1.0, "top_k": MAX_HIGHEST + 1},
        {"temperature": 1.0, "mirostat_tau": 5.0},
        {"temperature": 1.0, "samplers": ("temperature", "top_k")},
    ],
)
def test_what_needs_all_logits_gets_them(options):
    assert Sampler(SamplingOptions(**options)).wanted(1000) is None
    assert Sampler(SamplingOptions(), n_logprobs=0).wanted(1000) is None


def test_only_padding_that_is_not_at_the_end_is_asked_for():
    def wanted(*forbidden: int) -> Wanted | None:
        return Sampler(SamplingOptions(), forbidden).wanted(1000)

    assert wanted() == Wanted(1, 1000)
    assert wanted(*range(900, 1000)) == Wanted(1, 900)
    assert wanted(5, *range(900, 1000)) == Wanted(2, 900)
    assert wanted(900) == Wanted(2, 1000)
    assert wanted(*range(0, 1000, 2)) == Wanted(501, 1000)
    assert wanted(*range(1000)) is None


def test_plain_definition_of_the_highest():
    x = np.array([1, 3, 2, 3, 0], np.float32)
    assert highest(x, 1).tolist() == [1]
    assert highest(x, 3).tolist() == [1, 3, 2]
    assert highest(x, 5).tolist() == [1, 3, 2, 0, 4]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.5, "seed": 3},
        {"temperature": 1.5, "seed": 3, "top_k": 7, "min_p": 0.01},
        {"speculate": True},
        {"temperature": 0.7, "seed": 5, "speculate": True},
    ],
)
def test_texts_are_those_of_whole_rows(backend, tmp_path, monkeypatch, options):
    path = write_tiny_model(tmp_path / "tiny.gguf", scale=3.0, n_ctx=512)
    monkeypatch.setenv("LOCALCODER_BACKEND", backend.name)

    def written() -> list[str]:
        with Coder(path) as coder:
            found = [coder.complete("def f(x):\n    return ", max_tokens=40, **options)]
            if options.get("temperature") and not options.get("speculate"):
                found += [c.text for c in coder.choices("class A", n=3, max_tokens=10, **options)]
            return [str(text) for text in found]

    few = written()
    monkeypatch.setattr(Sampler, "wanted", lambda self, n_vocab: None)
    assert few == written()
    assert few[0]


@pytest.mark.skipif(emulated.availability() is not None, reason=str(emulated.availability()))
@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 3}])
def test_texts_of_a_model_on_card_and_cpu(tmp_path, monkeypatch, options):
    path = write_tiny_model(tmp_path / "tiny.gguf", scale=3.0, n_ctx=512)
    monkeypatch.setenv("LOCALCODER_BACKEND", "cuda-emulated")
    texts = []
    for _ in range(2):
        with Coder(path, gpu_layers=1, threads=1) as coder:
            assert "+" in coder.engine.backend.name
            texts.append(str(coder.complete("def f(x):\n    return ", max_tokens=20, **options)))
        monkeypatch.setattr(Sampler, "wanted", lambda self, n_vocab: None)
    assert texts[0] == texts[1]
