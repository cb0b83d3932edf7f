"""The sampler chain on distributions small enough to work out by hand, and its draws against the probabilities."""

from __future__ import annotations

import time

import numpy as np
import pytest

from localcoder.errors import NumericsError, OptionError
from localcoder.session.options import SamplingOptions
from localcoder.session.sampler import (
    Candidates,
    Sampler,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    logprobs,
    penalize_counts,
    penalize_repeats,
    penalize_repetitions,
)

PROBABILITIES = np.array([0.1, 0.5, 0.15, 0.25])
LOGITS = np.log(PROBABILITIES).astype(np.float32)


def candidates(logits=LOGITS) -> Candidates:
    return Candidates(np.arange(len(logits)), np.asarray(logits, np.float32))


def kept(c: Candidates) -> set[int]:
    return set(c.ids[np.isfinite(c.logits)].tolist())


@pytest.mark.parametrize(
    ("k", "expected"), [(0, {0, 1, 2, 3}), (1, {1}), (2, {1, 3}), (3, {1, 2, 3}), (9, {0, 1, 2, 3})]
)
def test_top_k(k, expected):
    assert kept(keep_top_k(candidates(), k)) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0, {1}), (0.49, {1}), (0.51, {1, 3}), (0.74, {1, 3}), (0.76, {1, 2, 3}), (0.91, {0, 1, 2, 3}), (1, {0, 1, 2, 3})],
)
def test_top_p(p, expected):
    assert kept(keep_top_p(candidates(), p)) == expected


@pytest.mark.parametrize(
    ("p", "expected"), [(0, {0, 1, 2, 3}), (0.25, {1, 2, 3}), (0.45, {1, 3}), (0.6, {1}), (1, {1})]
)
def test_min_p(p, expected):
    assert kept(keep_min_p(candidates(), p)) == expected


def test_of_equal_logits_the_lower_ids_are_kept():
    flat = candidates(np.zeros(4))
    assert kept(keep_top_k(flat, 2)) == {0, 1}
    assert kept(keep_top_p(flat, 0.5)) == {0, 1}
    many = candidates(np.zeros(32256))
    assert kept(keep_top_k(many, 40)) == set(range(40))
    assert kept(keep_top_p(many, 0.25)) == set(range(32256 // 4))


@pytest.mark.parametrize("spread", [0.0, 0.3, 1, 4, 30])
@pytest.mark.parametrize("n", [257, 5000, 32256])
def test_filters_agree_with_a_full_sort(spread, n):
    logits = (spread * np.random.default_rng(n).standard_normal(n)).astype(np.float32)
    logits[::7] = -np.inf
    order = np.argsort(-logits, kind="stable")
    for k in (1, 40, 300):
        assert kept(keep_top_k(candidates(logits), k)) == {i for i in order[:k].tolist() if np.isfinite(logits[i])}
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    for p in (0.1, 0.5, 0.95, 0.999):
        n_kept = int(np.searchsorted(np.cumsum(probabilities[order]), p)) + 1
        mine = kept(keep_top_p(candidates(logits), p))
        assert abs(len(mine) - n_kept) <= 1 + n_kept // 10000  # float32 sums may differ by a token or so
        assert mine == set(order[: len(mine)].tolist())


def test_repeats_are_weakened_on_both_sides_of_zero():
    logits = np.array([2.0, -2.0, 1.0, 0.0], np.float32)
    assert penalize_repeats(logits, [0, 1, 1, 3], 2.0).tolist() == [1.0, -4.0, 1.0, 0.0]
    assert logits.tolist() == [2.0, -2.0, 1.0, 0.0]
    sampler = Sampler(SamplingOptions(repeat_penalty=3.0, repeat_last_n=2))
    assert sampler.sample(logits, [1, 1]) == 0
    assert sampler.sample(logits, [0, 1]) == 2
    assert sampler.sample(logits, [0, 1, 1]) == 0  # beyond the window


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature):
    rng = np.random.default_rng(0)
    n = 4000
    counts = np.bincount([draw(candidates(), temperature, rng.random()) for _ in range(n)], minlength=4)
    expected = PROBABILITIES ** (1 / temperature)
    expected *= n / expected.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square with 3 degrees of freedom, 0.1%


def test_a_draw_over_a_whole_vocabulary_inverts_the_distribution():
    logits = np.random.default_rng(1).standard_normal(32256).astype(np.float32)
    logits[1000:20000] = -np.inf
    weights = np.exp(logits.astype(np.float64))
    ends = np.cumsum(weights) / weights.sum()
    for u in (0.0, 1e-6, 0.2, 0.5, 0.9, 1 - 1e-9):
        id_ = draw(candidates(logits), 1.0, u)
        assert np.isfinite(logits[id_])
        assert ends[max(id_ - 1, 0)] - 1e-6 <= u <= ends[id_] + 1e-6 or id_ == 0


def test_temperature_zero_takes_the_likeliest():
    assert Sampler(SamplingOptions()).sample(LOGITS, []) == 1


def test_the_same_seed_gives_the_same_tokens():
    options = SamplingOptions(temperature=1.0, seed=7)
    runs = [[s.sample(LOGITS, []) for _ in range(50)] for s in (Sampler(options), Sampler(options))]
    assert runs[0] == runs[1]
    other = Sampler(SamplingOptions(temperature=1.0, seed=8))
    assert [other.sample(LOGITS, []) for _ in range(50)] != runs[0]
    fresh = Sampler(SamplingOptions(temperature=1.0))
    again = Sampler(SamplingOptions(temperature=1.0, seed=fresh.seed))
    assert [fresh.sample(LOGITS, []) for _ in range(50)] == [again.sample(LOGITS, []) for _ in range(50)]


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_forbidden_ids_are_never_chosen(temperature):
    sampler = Sampler(SamplingOptions(temperature=temperature, seed=0, top_k=0, top_p=1), forbidden=[1, 3])
    assert {sampler.sample(LOGITS, []) for _ in range(100)} <= {0, 2}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_not_finite_are_an_error(bad, temperature):
    logits = LOGITS.copy()
    logits[0] = bad
    with pytest.raises(NumericsError, match="not finite"):
        Sampler(SamplingOptions(temperature=temperature)).sample(logits, [])


def test_a_token_of_the_familys_vocabulary_takes_well_under_a_millisecond():
    # The aim is 0.3 ms; a busy test machine gets some room.
    logits = (4 * np.random.default_rng(0).standard_normal(32256)).astype(np.float32)
    sampler = Sampler(SamplingOptions(temperature=0.8, repeat_penalty=1.1, min_p=0.02, seed=0), range(32022, 32256))
    times = []
    for _ in range(50):
        start = time.perf_counter()
        sampler.sample(logits, range(1000))
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3


def by_llama_cpp(make: str, *arguments, accepted: list[int] = (), logits=LOGITS) -> dict[int, float]:
    """Ids and logits that a sampler of llama.cpp leaves."""
    llama_cpp = pytest.importorskip("llama_cpp")
    data = (llama_cpp.llama_token_data * len(logits))()
    for i, logit in enumerate(logits.tolist()):
        data[i] = llama_cpp.llama_token_data(i, logit, 0.0)
    array = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
    sampler = getattr(llama_cpp, make)(*arguments)
    for token in accepted:
        llama_cpp.llama_sampler_accept(sampler, token)
    llama_cpp.llama_sampler_apply(sampler, array)
    left = {array.data[i].id: array.data[i].logit for i in range(array.size)}
    llama_cpp.llama_sampler_free(sampler)
    return left


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.76, 0.9, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_typical_agrees_with_llama_cpp(p, seed):
    logits = (2 * np.random.default_rng(seed).standard_normal(50)).astype(np.float32)
    assert kept(keep_typical(candidates(logits), p)) == set(
        by_llama_cpp("llama_sampler_init_typical", p, 1, logits=logits)
    )


def test_frequency_and_presence_agree_with_llama_cpp():
    logits = np.random.default_rng(0).standard_normal(12).astype(np.float32)
    recent = [1, 1, 1, 4, 5, 5]
    expected = by_llama_cpp("llama_sampler_init_penalties", 12, 64, 1.0, 0.3, 0.7, accepted=recent, logits=logits)
    mine = penalize_counts(logits, recent, 0.3, 0.7)
    assert np.allclose(mine, [expected[i] for i in range(12)], atol=1e-6)


def dry_in_plain_words(history, multiplier, base, allowed, breakers, n_vocab):
    """For every token: the longest n such that the last n tokens and then it are in the history."""
    penalty = np.zeros(n_vocab)
    for token in set(history) - set(breakers):
        for n in range(1, len(history)):
            run = history[-n:]
            if set(run) & set(breakers):
                break
            if any(history[i : i + n + 1] == [*run, token] for i in range(len(history) - n)) and n >= allowed:
                penalty[token] = multiplier * base ** (n - allowed)
    return penalty


@pytest.mark.parametrize("seed", range(20))
def test_repetitions_are_weakened_by_their_length(seed):
    rng = np.random.default_rng(seed)
    history = rng.integers(0, 4, 30).tolist()
    logits = rng.standard_normal(6).astype(np.float32)
    mine = penalize_repetitions(logits, history, 0.8, 1.75, 2, {3})
    assert np.allclose(logits - mine, dry_in_plain_words(history, 0.8, 1.75, 2, {3}, 6), atol=1e-4, rtol=1e-4)


def test_mirostat_keeps_the_surprise_near_its_target():
    logits = (2 * np.random.default_rng(0).standard_normal(2000)).astype(np.float32)
    for tau in (2.0, 4.0, 6.0):
        sampler = Sampler(SamplingOptions(temperature=1, mirostat_tau=tau, mirostat_eta=0.1, seed=0))
        bounds, drawn = [], []
        for _ in range(1000):
            bounds.append(sampler._mu)
            drawn.append(sampler.sample(logits, []))
        observed = []
        surprise = -logprobs(logits) / np.log(2)
        for bound, token in zip(bounds[200:], drawn[200:]):
            left = logits[surprise <= max(bound, surprise.min())]
            observed.append(float(np.log2(np.exp(left.astype(np.float64)).sum()) - logits[token] / np.log(2)))
        assert abs(np.mean(observed) - tau) < 0.2


def test_the_order_of_the_filters_matters_and_what_is_left_out_does_not_work():
    def possible(samplers, temperature) -> set[int]:
        options = SamplingOptions(temperature=temperature, top_k=0, top_p=0.74, samplers=samplers, seed=0)
        sampler = Sampler(options)
        return {sampler.sample(LOGITS, []) for _ in range(300)}

    assert possible(("top_p", "temperature"), 5.0) == {1, 3}
    assert possible(("temperature", "top_p"), 5.0) == {0, 1, 2, 3} - {0}
    assert possible(("temperature",), 5.0) == {0, 1, 2, 3}


def test_a_bias_moves_the_choice():
    assert Sampler(SamplingOptions(logit_bias={0: 10.0})).sample(LOGITS, []) == 0
    assert Sampler(SamplingOptions(logit_bias={1: float("-inf")})).sample(LOGITS, []) == 3
    with pytest.raises(OptionError, match="logit_bias has token 4; the model has 4"):
        Sampler(SamplingOptions(logit_bias={4: 1.0})).sample(LOGITS, [])


def test_log_probabilities_are_the_models_own():
    sampler = Sampler(SamplingOptions(logit_bias={0: 10.0}), n_logprobs=2)
    assert sampler.sample(LOGITS, []) == 0
    (record,) = sampler.logprobs
    assert record.token == 0
    assert np.isclose(np.exp(record.logprob), 0.1)
    assert [i for i, _ in record.top] == [1, 3]
    assert np.allclose(np.exp([value for _, value in record.top]), [0.5, 0.25])


def test_penalties_may_leave_the_prompt_alone():
    logits = np.array([3.0, 2.0, 1.0], np.float32)

    def chosen(**options) -> list[int]:
        sampler, history = Sampler(SamplingOptions(presence_penalty=5, **options)), [0, 1]
        for _ in range(3):
            history.append(sampler.sample(logits, history))
        return history[2:]

    assert chosen()[0] == 2
    assert chosen(penalize_prompt=False) == [0, 1, 2]
