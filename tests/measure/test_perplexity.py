"""Perplexity by its definition, worked out with other people's models and other people's sums."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fakes import CountingEngine
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.errors import NumericsError, OptionError
from localcoder.measure.chunks import cut_chunks
from localcoder.measure.perplexity import chunk_losses, negative_log_likelihoods, scored_pieces, summarize

N_CTX = 128
N_TEXT = 8_000  # characters of the held-out text


def test_losses_are_minus_the_log_of_the_softmax():
    scipy_free = np.array([[0.0, np.log(3.0)], [5.0, 5.0]], np.float32)
    losses = negative_log_likelihoods(scipy_free, np.array([1, 0]))
    np.testing.assert_allclose(losses, [-np.log(0.75), np.log(2)], rtol=1e-6)
    large = np.random.default_rng(0).normal(0, 300, (100, 50)).astype(np.float32)
    assert np.isfinite(negative_log_likelihoods(large, np.zeros(100, np.int32))).all()
    with pytest.raises(NumericsError):
        negative_log_likelihoods(np.array([[np.nan, 0]], np.float32), np.array([0]))


def losses_of(engine, tokens, n_ctx, bos_id=None) -> list[np.ndarray]:
    return list(chunk_losses(scored_pieces(engine, cut_chunks(tokens, n_ctx, bos_id))))


def test_which_positions_are_scored_and_what_each_sees():
    engine = CountingEngine(n_vocab=100, n_ctx=20)
    tokens = list(range(10, 60))  # always one more: the second half of each chunk is predicted well
    losses = losses_of(engine, tokens, 20)
    assert [len(chunk) for chunk in losses] == [20 - 1 - 10] * 2
    likely = np.log(1 + 99 * np.exp(-5))
    np.testing.assert_allclose(losses, likely, rtol=1e-5)
    assert engine.evaluated == [list(range(10, 29)), list(range(30, 49))]
    engine.evaluated.clear()
    losses_of(engine, tokens, 20, bos_id=1)
    assert engine.evaluated == [[1, *range(11, 29)], [1, *range(31, 49)]]


def test_a_long_chunk_is_computed_in_steps():
    whole = CountingEngine(n_vocab=1000, n_ctx=900)
    (losses,) = losses_of(whole, np.random.default_rng(0).integers(0, 1000, 900).tolist(), 900)
    assert len(losses) == 449
    assert [len(step) for step in whole.evaluated] == [256, 256, 256, 131]


def test_the_summary():
    losses = [np.array([1.0, 2.0]), np.array([3.0, 2.0])]
    result = summarize(losses)
    assert result.perplexity == pytest.approx(np.exp(2.0))
    assert result.standard_error == pytest.approx(np.exp(2.0) * np.std([1, 2, 3, 2], ddof=1) / 2)
    assert (result.n_tokens, result.n_chunks) == (4, 2)


def test_too_short():
    with pytest.raises(OptionError, match="19 tokens; one chunk takes 20"):
        losses_of(CountingEngine(n_ctx=20), range(19), 20)
    with pytest.raises(OptionError, match="n_ctx is 3"):
        losses_of(CountingEngine(n_ctx=20), range(19), 3)


@pytest.fixture(scope="module")
def text(shared, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "heldout.txt"
    whole = (shared / "checkpoints/python-9m/heldout.txt").read_text(encoding="utf-8")
    path.write_text(whole[:N_TEXT], encoding="utf-8", newline="")
    return path


@pytest.fixture(scope="module")
def converted(shared, tmp_path_factory):
    """The trained checkpoint as a GGUF file of a type."""
    from localcoder.cli.main import main

    folder = tmp_path_factory.mktemp("python-9m")

    def convert(type_name: str):
        path = folder / f"{type_name}.gguf"
        if not path.exists():
            with pytest.raises(SystemExit) as exit_:
                main(["convert", str(shared / "checkpoints/python-9m"), str(path), "--type", type_name])
            assert not exit_.value.code
        return path

    return convert


def ours(path, text, capsys) -> dict:
    from localcoder.cli.main import main

    with pytest.raises(SystemExit) as exit_:
        main(["perplexity", str(path), "--file", str(text), "--n-ctx", str(N_CTX), "--threads", "1", "--json"])
    assert not exit_.value.code
    return json.loads(capsys.readouterr().out)


def test_the_trained_checkpoint_as_transformers_computes_it(shared, converted, text, capsys):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    result = ours(converted("f32"), text, capsys)
    model = transformers.AutoModelForCausalLM.from_pretrained(shared / "checkpoints/python-9m", dtype=torch.float32)
    with Coder(converted("f32")) as coder:
        ids = torch.tensor(coder.tokenize(text.read_text(encoding="utf-8")))
        bos_id = coder.tokenizer.bos_id
    n_chunks = len(ids) // N_CTX
    chunks = ids[: n_chunks * N_CTX].reshape(n_chunks, N_CTX).clone()
    chunks[:, 0] = bos_id
    with torch.no_grad():
        logits = model(chunks).logits[:, N_CTX // 2 : -1].double()
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), chunks[:, N_CTX // 2 + 1 :].reshape(-1)
    )
    assert result["n_tokens"] == n_chunks * (N_CTX - 1 - N_CTX // 2)
    assert result["n_chunks"] == n_chunks
    assert result["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-3)


@pytest.mark.parametrize("type_name", ["f32", "f16", "q8_0", "q4_0"])
def test_the_trained_checkpoint_as_llama_cpp_computes_it(converted, text, capsys, type_name):
    llama_cpp = pytest.importorskip("llama_cpp")
    result = ours(converted(type_name), text, capsys)
    model = llama_cpp.Llama(
        str(converted(type_name)),
        n_ctx=N_CTX,
        n_batch=N_CTX,
        logits_all=True,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
    )
    ids = np.array(model.tokenize(text.read_bytes(), add_bos=True, special=False))
    losses = []
    for at in range(0, len(ids) - N_CTX + 1, N_CTX):
        chunk = ids[at : at + N_CTX].copy()
        chunk[0] = model.token_bos()
        model.reset()
        model.eval(chunk.tolist())
        first = N_CTX // 2
        losses.append(negative_log_likelihoods(model.scores[first : N_CTX - 1], chunk[first + 1 :]))
    model.close()
    theirs = summarize(losses)
    assert result["n_tokens"] == theirs.n_tokens
    assert result["perplexity"] == pytest.approx(theirs.perplexity, rel=5e-3)
    assert result["standard_error"] == pytest.approx(theirs.standard_error, rel=2e-2)


def test_the_text_form(tmp_path, capsys):
    from localcoder.cli.main import main

    (tmp_path / "text.txt").write_text("def f(x): return x\n" * 20)
    model = write_tiny_model(tmp_path / "tiny.gguf")
    with pytest.raises(SystemExit):
        main(["perplexity", str(model), "--file", str(tmp_path / "text.txt"), "--n-ctx", "64"])
    out, err = capsys.readouterr()
    assert out.startswith("perplexity ")
    assert "(155 tokens scored in 5 chunks)" in out
    assert err == ""
