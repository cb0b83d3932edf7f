"""KL divergence and its company, against torch and plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.errors import FileError, ModelError, NumericsError, OutputError
from localcoder.measure.chunks import cut_chunks
from localcoder.measure.divergence import DivergenceSamples, clustered_se, compare_pieces
from localcoder.measure.perplexity import ScoredPiece, chunk_losses, n_scored, scored_pieces, scored_slices, summarize
from localcoder.measure.saved_logits import LogitsWriter, SavedLogits, saving
from localcoder.model.engine import check_same_vocabulary

TEXT = "for i in range(10):\n    total += values[i] * weights[i]\n" * 12
N_CTX = 100


@pytest.fixture(scope="module", autouse=True)
def _quick_backend():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALCODER_BACKEND", "numpy")
        yield


@pytest.fixture(scope="module")
def coders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = write_tiny_model(folder / "base.gguf", scale=3.0)
    other = write_tiny_model(folder / "other.gguf", scale=3.0, type_name="q4_0")
    with Coder(base, n_ctx=N_CTX, n_sequences=8) as a, Coder(other, n_ctx=N_CTX, n_sequences=8) as b:
        yield a, b


@pytest.fixture(scope="module")
def chunks(coders):
    return cut_chunks(coders[0].tokenize(TEXT), N_CTX, coders[0].tokenizer.bos_id)


@pytest.fixture(scope="module")
def expected(coders, chunks):
    """Log-probabilities over the scored positions of every chunk, float64 [2, n_chunks, n, n_vocab], and targets."""
    first = N_CTX // 2
    logits = np.array([[coder.logits(chunk)[first:-1] for chunk in chunks] for coder in coders], np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)), chunks[:, first + 1 :]


@pytest.mark.parametrize("step", [256, 7])
def test_figures(coders, chunks, expected, monkeypatch, step):
    monkeypatch.setattr("localcoder.measure.perplexity._STEP", step)
    (p, q), targets = expected
    models = [scored_pieces(coder.engine, chunks) for coder in coders]
    *_, (samples,) = compare_pieces(models[0], [models[1]])
    found = samples.summarize()
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    losses = [-np.take_along_axis(x, targets[..., None], -1)[..., 0] for x in (p, q)]
    assert found.n_chunks == len(chunks) > 5
    assert found.n_tokens == kl.size == len(chunks) * n_scored(N_CTX)
    # Other pieces add in another order, and a rounded activation may fall to the other side: hence not 1e-6.
    assert found.kl_divergence == pytest.approx(kl.mean(), rel=3e-3)
    assert found.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=3e-3)
    assert found.top1_agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean(), abs=2.1 / kl.size)
    assert found.perplexity == pytest.approx(np.exp(losses[1].mean()), rel=3e-3)
    assert found.base_perplexity == pytest.approx(np.exp(losses[0].mean()), rel=1e-5)
    assert found.perplexity_ratio == pytest.approx(found.perplexity / found.base_perplexity, rel=1e-9)
    # All chunks are of one length, so the means of chunks are a plain sample.
    n = len(chunks)
    assert found.kl_divergence_se == pytest.approx(kl.mean(axis=1).std(ddof=1) / np.sqrt(n), rel=1e-2)
    difference = (losses[1] - losses[0]).mean(axis=1).std(ddof=1) / np.sqrt(n)
    assert found.perplexity_ratio_se == pytest.approx(found.perplexity_ratio * difference, rel=1e-2)
    assert 0 < found.kl_p99_se < found.kl_p99


def test_kl_is_torch_s():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    base, other = (random.normal(0, 8, (40, 1000)).astype(np.float32) for _ in range(2))
    targets = np.zeros(40, np.int32)
    samples = DivergenceSamples()
    samples.add(ScoredPiece(0, base, targets), ScoredPiece(0, other, targets))
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (base, other))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    assert samples.summarize().kl_divergence == pytest.approx(expected.item(), rel=1e-12)


def test_a_model_and_itself(coders, chunks):
    base, model = (scored_pieces(coders[0].engine, chunks[:1]) for _ in range(2))
    *_, (samples,) = compare_pieces(base, [model])
    found = samples.summarize()
    assert (found.kl_divergence, found.kl_p99, found.top1_agreement, found.perplexity_ratio) == (0, 0, 1, 1)
    assert found.kl_divergence_se is found.kl_p99_se is found.perplexity_se is None


def test_standard_errors_take_chunks_as_what_varies():
    """Copying each value within its chunk makes no mean more certain."""
    means = np.random.default_rng(0).normal(size=30)
    assert clustered_se([np.full(20, mean) for mean in means]) == pytest.approx(means.std(ddof=1) / np.sqrt(30))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(value):
    logits = np.zeros((3, 8), np.float32)
    broken = logits.copy()
    broken[1, 2] = value
    targets = np.zeros(3, np.int32)
    with pytest.raises(NumericsError), np.errstate(invalid="ignore"):
        DivergenceSamples().add(ScoredPiece(0, logits, targets), ScoredPiece(0, broken, targets))


def test_models_of_other_vocabularies(coders, tmp_path):
    longer = write_tiny_model(tmp_path / "longer.gguf", n_vocab=384)
    with Coder(longer) as coder, pytest.raises(ModelError, match=r"has 384 rows of vocabulary, .* has 320"):
        check_same_vocabulary(coders[0].engine, coder.engine)
    with Coder(coders[0].path) as coder:
        coder.engine.file.get_strings("tokenizer.ggml.tokens")[65] = "?!"
        with pytest.raises(ModelError, match=r"token 65 is '\?!', in .* it is 'A'"):
            check_same_vocabulary(coders[0].engine, coder.engine)


@pytest.mark.parametrize("n_ctx", [4, 5, 256, 257, 512, 513, 1000])
def test_the_second_half_is_scored(n_ctx):
    inputs, scored = zip(*scored_slices(n_ctx))
    assert [i for s in inputs for i in range(s.start, s.stop)] == list(range(n_ctx - 1))
    assert [i for s in scored for i in range(s.start, s.stop)] == list(range(n_ctx // 2, n_ctx - 1))
    assert n_scored(n_ctx) == n_ctx - 1 - n_ctx // 2


def _write(path, chunks, pieces):
    with LogitsWriter(path, chunks, 320) as writer:
        for _ in saving(pieces, writer):
            pass


class TestSavedLogits:
    @pytest.fixture
    def path(self, coders, chunks, tmp_path):
        path = tmp_path / "logits.safetensors"
        _write(path, chunks, scored_pieces(coders[0].engine, chunks))
        return path

    def test_stand_for_the_model(self, coders, chunks, path):
        models = [scored_pieces(coder.engine, chunks) for coder in coders]
        *_, (samples,) = compare_pieces(models[0], [models[1]])
        with SavedLogits(path) as saved:
            *_, (again,) = compare_pieces(saved.pieces(), [scored_pieces(coders[1].engine, chunks)])
            losses = list(chunk_losses(saved.pieces()))
        assert again.summarize() == samples.summarize()
        assert summarize(losses).perplexity == pytest.approx(samples.summarize().base_perplexity)

    def test_are_plain_safetensors(self, coders, chunks, path):
        from safetensors.numpy import load_file

        tensors = load_file(path)
        assert (tensors["chunks"] == chunks).all()
        assert tensors["logits"].shape == (len(chunks), n_scored(N_CTX), coders[0].n_vocab)
        assert tensors["logits"][1] == pytest.approx(coders[0].logits(chunks[1])[N_CTX // 2 : -1], abs=1e-4)

    def test_nothing_is_left_of_an_interrupted_run(self, coders, chunks, tmp_path):
        def interrupted():
            yield next(scored_pieces(coders[0].engine, chunks))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            _write(tmp_path / "x", chunks, interrupted())
        assert not list(tmp_path.iterdir())

    def test_the_target_is_checked_first(self, chunks, tmp_path):
        with pytest.raises(OutputError, match="is a folder"):
            LogitsWriter(tmp_path, chunks, 320)

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"x": np.zeros(3, np.float32)}, "not logits"),
            ({"chunks": np.zeros((2, 8), np.int32), "logits": np.zeros((2, 3), np.float32)}, "not logits"),
            ({"chunks": np.zeros((2, 8), np.int64), "logits": np.zeros((2, 3, 5), np.float32)}, "not logits"),
            ({"chunks": np.zeros((2, 8), np.int32), "logits": np.zeros((2, 4, 5), np.float32)}, "do not belong"),
            ({"chunks": np.zeros((2, 2), np.int32), "logits": np.zeros((2, 0, 5), np.float32)}, "do not belong"),
            ({"chunks": np.zeros((0, 8), np.int32), "logits": np.zeros((0, 3, 5), np.float32)}, "do not belong"),
            ({"chunks": np.full((2, 8), 5, np.int32), "logits": np.zeros((2, 3, 5), np.float32)}, "outside"),
            ({"chunks": np.full((2, 8), -1, np.int32), "logits": np.zeros((2, 3, 5), np.float32)}, "outside"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path, tensors, message):
        from safetensors.numpy import save_file

        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(FileError, match=message):
            SavedLogits(tmp_path / "x.safetensors")

    def test_a_truncated_file_is_refused(self, path):
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(FileError, match=r"logits\.safetensors"):
            SavedLogits(path)
