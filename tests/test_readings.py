"""What a model makes of text: hidden states, embeddings, scores."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import save_checkpoint
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.convert.choice import Choice
from localcoder.convert.converter import convert
from localcoder.convert.recipes import recipe_by_name
from localcoder.errors import ContextLengthError, OptionError
from localcoder.quants.search import requantize

PROMPT = "def f(x):\n    return "


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", scale=3.0)
    with Coder(path, n_ubatch=16) as coder:
        yield coder


def test_hidden_states_are_those_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = save_checkpoint(tmp_path / "source", n_layer=3)
    convert(tmp_path / "source", tmp_path / "out.gguf", Choice(recipe_by_name("f32")), requantize=requantize)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 150)
    with torch.no_grad():
        expected = [h[0].numpy() for h in model(torch.from_numpy(ids)[None], output_hidden_states=True).hidden_states]
    with Coder(tmp_path / "out.gguf", n_ctx=256, n_ubatch=64) as coder:
        found = [coder.hidden_states(ids, n_layer=i) for i in range(3)] + [coder.hidden_states(ids)]
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == np.float32
        assert np.linalg.norm(f - e) <= 1e-3 * np.linalg.norm(e)  # the KV cache is f16


def test_hidden_states_leave_nothing_behind(coder):
    before = coder.complete(PROMPT, max_tokens=20)
    ids = coder.tokenize(PROMPT)
    for n_layer in (0, 1, 2, None):
        assert coder.hidden_states(ids, n_layer=n_layer).shape == (len(ids), coder.n_embd)
    done = coder.generate(PROMPT, max_tokens=20)
    assert done.text == before
    assert done.timings.n_prefill <= 1  # the session of before is still there


def test_wrong_layers_and_ids_are_refused(coder):
    with pytest.raises(OptionError, match="n_layer is 3; expected 0 to 2"):
        coder.hidden_states([1, 2], n_layer=3)
    with pytest.raises(OptionError, match="no tokens"):
        coder.hidden_states([])
    with pytest.raises(OptionError, match="token id"):
        coder.hidden_states([coder.n_vocab])
    with pytest.raises(ContextLengthError):
        coder.hidden_states([1] * 300)


@pytest.mark.parametrize(("pooling", "pool"), [("mean", lambda s: s.mean(0)), ("last", lambda s: s[-1])])
def test_an_embedding_is_the_pooled_states(coder, pooling, pool):
    expected = pool(coder.hidden_states(coder.tokenize(PROMPT)))
    raw = coder.embed(PROMPT, pooling=pooling, normalize=False)
    np.testing.assert_allclose(raw, expected, rtol=1e-5)
    both = coder.embed([PROMPT, "x"], pooling=pooling)
    np.testing.assert_allclose(both[0], expected / np.linalg.norm(expected), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, rtol=1e-5)
    assert coder.embed([]).shape == (0, coder.n_embd)


def test_no_such_pooling(coder):
    with pytest.raises(OptionError, match="pooling is 'max'"):
        coder.embed("x", pooling="max")


@pytest.mark.parametrize("n", [1, 15, 16, 17, 40])  # around the edges of steps of 16
@pytest.mark.parametrize("prompt", ["", "import os\n", "y" * 40])
def test_scores_are_the_log_probabilities_of_the_logits(coder, prompt, n):
    text = (PROMPT * 2)[:n]
    before, scored = coder.tokenize(prompt), coder.tokenize(text, bos=False)
    logits = coder.logits([*before, *scored]).astype(np.float64)[len(before) - 1 : -1]
    expected = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    np.testing.assert_allclose(
        coder.score(text, prompt=prompt), expected[np.arange(len(scored)), scored], rtol=1e-6, atol=1e-6
    )


def test_nothing_to_score(coder):
    with pytest.raises(OptionError, match="no text to score"):
        coder.score("")


def test_a_closed_model_reads_no_more(tmp_path):
    coder = Coder(write_tiny_model(tmp_path / "tiny.gguf"))
    coder.hidden_states([1])
    coder.close()
    for use in (lambda: coder.hidden_states([1]), lambda: coder.embed("x"), lambda: coder.score("x")):
        with pytest.raises(OptionError, match="closed"):
            use()
