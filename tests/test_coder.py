"""What a script sees: class Coder, and the public names of the package."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from contextlib import closing

import numpy as np
import pytest
from tiny_model import write_tiny_model

import localcoder
from localcoder import Coder
from localcoder.backends.select import usable_backends
from localcoder.errors import ContextLengthError, GGUFError, LocalcoderError, OptionError
from localcoder.session.options import SamplingOptions
from localcoder.session.sampler import Sampler
from localcoder.session.session import Session

PROMPT = "def f(x):\n    return "


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    # Large enough weights make the greedy choices clear cut, so that they are the same on every backend.
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", scale=3.0)


@pytest.fixture(scope="module")
def coder(path):
    with Coder(path) as coder:
        yield coder


def test_complete_returns_the_text_that_stream_yields(coder):
    text = coder.complete(PROMPT, max_tokens=40)
    assert isinstance(text, str)
    assert text
    pieces = list(coder.stream(PROMPT, max_tokens=40))
    assert "".join(pieces) == text
    assert len(pieces) > 1
    done = coder.generate(PROMPT, max_tokens=40)
    assert done.text == text
    assert done.n_tokens <= 40
    assert done.n_prompt_tokens == 1 + len(PROMPT)


def test_seeds_and_temperature(coder):
    options = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "max_tokens": 30}
    first = coder.complete(PROMPT, seed=1, **options)
    assert coder.complete(PROMPT, seed=1, **options) == first
    assert coder.complete(PROMPT, seed=2, **options) != first
    done = coder.generate(PROMPT, **options)
    assert coder.complete(PROMPT, seed=done.seed, **options) == done.text


def test_stop_strings_cut_the_text(coder):
    text = coder.complete(PROMPT, max_tokens=40, temperature=1, seed=3)
    stop = text[10:12]
    assert coder.complete(PROMPT, max_tokens=40, temperature=1, seed=3, stop=stop) == text[: text.index(stop)]


def test_padding_is_never_sampled(coder):
    ids = []
    for seed in range(5):
        with closing(Session(coder.engine)) as session:
            forbidden = np.flatnonzero(coder.tokenizer.unsampleable(coder.n_vocab))
            sampler = Sampler(SamplingOptions(temperature=50, top_k=0, top_p=1, seed=seed), forbidden.tolist())
            ids += list(session.generate(coder.tokenize("a"), sampler, max_tokens=100))
    assert max(ids) < 256 + 9
    assert len(set(ids)) > 100


def test_logits_have_a_row_for_every_token(coder):
    ids = coder.tokenize(PROMPT)
    logits = coder.logits(ids)
    assert logits.dtype == np.float32
    assert logits.shape == (len(ids), coder.n_vocab)
    assert np.isfinite(logits).all()
    alone = coder.logits(ids[:5])
    assert np.abs(alone - logits[:5]).max() <= 1e-3 * np.abs(logits).max()
    assert coder.complete(PROMPT, max_tokens=1) == coder.detokenize([int(logits[-1, :256].argmax())])


def test_tokenize_puts_bos_first_and_comes_back(coder):
    ids = coder.tokenize(PROMPT)
    assert ids[0] == coder.tokenizer.bos_id
    assert coder.tokenize(PROMPT, bos=False) == ids[1:]
    assert coder.detokenize(ids) == PROMPT


@pytest.mark.parametrize(
    "options", [{"n_ubatch": 1}, {"n_ubatch": 7}, {"n_ubatch": 64}, {"threads": 1}, {"threads": 2}]
)
@pytest.mark.parametrize("backend", ["c", "numba", "numpy"])
def test_greedy_text_is_the_same_however_it_is_computed(path, coder, monkeypatch, backend, options):
    if backend not in usable_backends():
        pytest.skip(f"the backend {backend} is not usable here")
    monkeypatch.setenv("LOCALCODER_BACKEND", backend)
    expected = coder.complete(PROMPT * 3, max_tokens=24)
    with Coder(path, **options) as other:
        assert other.engine.backend.name == backend
        assert other.complete(PROMPT * 3, max_tokens=24) == expected


def test_a_prompt_that_shares_a_beginning_costs_its_end_only(path):
    with Coder(path) as coder:
        first = coder.generate(PROMPT, max_tokens=2)
        again = coder.generate(PROMPT + "y", max_tokens=2)
    assert first.timings.n_prefill == first.n_prompt_tokens
    assert again.timings.n_prefill == 1


def test_two_streams_at_once_and_several_threads(path):
    with Coder(path, n_sequences=4) as coder:
        prompts = ["a = ", "def g(", "import ", "class A"]
        expected = [coder.complete(p, max_tokens=20) for p in prompts]
        one, two = (coder.stream(p, max_tokens=20) for p in prompts[:2])
        first, second = zip(*zip(one, two))
        assert expected[0].startswith("".join(first))
        assert expected[1].startswith("".join(second))
        results: dict[str, str] = {}
        threads = [
            threading.Thread(target=lambda p=p: results.update({p: coder.complete(p, max_tokens=20)})) for p in prompts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [results[p] for p in prompts] == expected


def test_closing(path):
    coder = Coder(path)
    stream = coder.stream(PROMPT, max_tokens=100)
    next(stream)
    coder.close()
    coder.close()
    for use in (
        lambda: coder.complete("x"),
        lambda: coder.stream("x"),
        lambda: coder.logits([1]),
        lambda: next(stream),
    ):
        with pytest.raises(OptionError, match="closed"):
            use()
    with pytest.raises(OptionError, match="closed"), coder:
        pass


def test_wrong_arguments_are_named(coder):
    with pytest.raises(OptionError, match="unknown option topk"):
        coder.complete("x", topk=3)
    with pytest.raises(OptionError, match="top_p is 2; expected a number from 0 to 1"):
        coder.stream("x", top_p=2)
    with pytest.raises(ContextLengthError, match="301 tokens do not fit in a context of 256"):
        coder.complete("x" * 300)
    with pytest.raises(OptionError, match="no tokens"):
        coder.logits([])
    with pytest.raises(OptionError, match="token id"):
        coder.logits([320])


def test_wrong_files_and_devices(tmp_path, path):
    with pytest.raises(GGUFError, match=r"nothing\.gguf"):
        Coder(tmp_path / "nothing.gguf")
    with pytest.raises(GGUFError):
        Coder(tmp_path)
    with pytest.raises(LocalcoderError, match="abacus"):
        Coder(path, device="abacus")
    with pytest.raises(OptionError, match="n_ctx is 0"):
        Coder(path, n_ctx=0)
    with pytest.raises(OptionError, match="threads is 0"):
        Coder(path, threads=0)


def test_what_was_assumed_is_noted_and_logged(path, caplog):
    with caplog.at_level(logging.WARNING, "localcoder"), Coder(path, n_ctx=1000) as coder:
        assert coder.notes == ["n_ctx 1000 is beyond the 256 positions the model was trained for"]
        assert "tiny.gguf: n_ctx 1000 is beyond" in caplog.text


def test_the_context_can_be_filled_to_its_end(path):
    with Coder(path, n_ctx=32) as coder:
        done = coder.generate("x" * 20, max_tokens=None, temperature=5, top_k=0, top_p=1, seed=1)
        assert (done.finish_reason, done.n_tokens) == ("length", 12)


def test_log_probabilities_of_each_token(coder):
    done = coder.generate(PROMPT, max_tokens=4, logprobs=3)
    ids = [*coder.tokenize(PROMPT), *(record.token for record in done.logprobs)]
    rows = coder.logits(ids)[-5:-1]
    assert [record.token for record in done.logprobs] == [
        int(row[: 256 + 9].argmax()) for row in rows
    ]  # the rest is padding
    first = done.logprobs[0]
    logits = coder.logits(coder.tokenize(PROMPT))[-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert abs(first.logprob - expected[first.token]) < 1e-3
    assert first.top[0][0] == first.token
    assert len(first.top) == 3
    assert coder.generate(PROMPT, max_tokens=1).logprobs is None


def test_edits_in_the_middle_of_a_file_cost_what_follows_them(path):
    """And the text is that of a fresh model."""
    with Coder(path, n_ctx=4200) as coder:
        lines = [f"v{i:03} = {i:03}\n" for i in range(330)]  # one token for each byte
        coder.generate("".join(lines), max_tokens=4)
        n_prefill = n_after = 0
        for edit in range(8):
            at = 40 * edit + 20
            lines[at] = f"w{at:03} = {at:03}\n"
            text = "".join(lines)
            done = coder.generate(text, max_tokens=4)
            n_prefill += done.timings.n_prefill
            n_after += len("".join(lines[at:]))
        assert n_prefill <= 1.5 * n_after
    with Coder(path, n_ctx=4200) as fresh:
        assert fresh.complete(text, max_tokens=4) == done.text


def test_public_names():
    assert sorted(localcoder.__all__) == localcoder.__all__
    for name in localcoder.__all__:
        assert getattr(localcoder, name) is not None
        assert name in dir(localcoder)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        localcoder.nothing  # noqa: B018
    errors = {n for n in vars(localcoder.errors) if n.endswith("Error")}
    assert errors <= set(localcoder.__all__)


def test_importing_costs_nothing():
    code = "import sys, localcoder; print(sorted({'numpy', 'numba', 'click', 'tokenizers', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_a_path_the_embedded_model_writes_code():
    with Coder() as coder:
        assert coder.path.name == "python-9m.gguf"
        assert coder.notes == []
        text = coder.complete(
            "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def", max_tokens=24
        )
    assert "self" in text


def test_greedy_text_depends_on_neither_backend_nor_threads_nor_chunks(monkeypatch):
    """With the embedded model, whose integer blocks round the activations: a last bit can change a text."""
    prompts = [
        "import os\n\ndef read_lines(path):\n    " * 3,
        "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def",
        "def mean(values):\n    return",
        "import unittest\n\nclass TestParser(unittest.TestCase):\n    def test_",
    ]
    texts = set()
    for backend in {"c", "numba"} & set(usable_backends()):
        monkeypatch.setenv("LOCALCODER_BACKEND", backend)
        for options in ({"threads": 1}, {"threads": 2}, {"threads": 2, "n_ubatch": 1}, {"threads": 1, "n_ubatch": 16}):
            with Coder(**options) as coder:
                assert coder.engine.backend.name == backend
                texts.add(tuple(coder.complete(prompt, max_tokens=32) for prompt in prompts))
    assert len(texts) == 1
