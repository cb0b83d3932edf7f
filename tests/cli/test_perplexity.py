"""`localcoder perplexity` with one model or several, a base, saved logits, and the plot."""

from __future__ import annotations

import importlib.util
import json

import pytest
from tiny_model import write_tiny_model

TYPES = ("f16", "q8_0", "q4_0")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "text.txt").write_text("while x < 100:\n    x += step(x)\n" * 12, encoding="utf-8")
    for name in ("f32", *TYPES):
        write_tiny_model(folder / f"{name}.gguf", type_name=name, scale=3.0)
    write_tiny_model(folder / "other.gguf", n_vocab=384)
    return folder


@pytest.fixture
def measure(cli, files):
    def run(*args):
        return cli("perplexity", *args, "--file", files / "text.txt", "--n-ctx", 64)

    return run


def test_one_model(measure, files):
    found = json.loads(measure(files / "f32.gguf", "--json").out)
    assert found["n_tokens"] == 31 * found["n_chunks"] > 0
    assert found["kl_base"] is None
    assert f"perplexity {found['perplexity']:.4f} ±" in measure(files / "f32.gguf").out


def test_a_base_and_its_saved_logits_give_the_same(measure, files, tmp_path):
    alone = json.loads(measure(files / "f32.gguf", "--json", "--save-logits", tmp_path / "saved").out)
    found = json.loads(measure(files / "q8_0.gguf", "--json", "--kl-base", files / "f32.gguf").out)
    again = json.loads(measure(files / "q8_0.gguf", "--json", "--kl-base", tmp_path / "saved").out)
    assert found["base_perplexity"] == pytest.approx(alone["perplexity"], rel=1e-9)
    assert 0 < found["kl_divergence"] < found["kl_p99"] < 1
    assert 0.5 < found["top1_agreement"] <= 1
    assert found["kl_divergence_se"] > 0
    assert found.pop("kl_base") == str(files / "f32.gguf")
    assert again.pop("kl_base") == str(tmp_path / "saved")
    assert found == again


def test_several_models(measure, files):
    paths = [files / f"{name}.gguf" for name in TYPES]
    found = json.loads(measure(*paths, "--json", "--kl-base", files / "f32.gguf").out)
    assert [model["model"] for model in found["models"]] == list(map(str, paths))
    divergences = [model["kl_divergence"] for model in found["models"]]
    assert divergences == sorted(divergences)
    one = json.loads(measure(paths[2], "--json", "--kl-base", files / "f32.gguf").out)
    assert one["kl_divergence"] == divergences[2]
    table = measure(*paths, "--kl-base", files / "f32.gguf").out.splitlines()
    assert len(table) == 2 + len(paths)
    assert f"{divergences[2]:.3g} ±" in table[-1]
    assert len(measure(*paths).out.splitlines()) == len(paths)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["q8_0.gguf", "--kl-base", "other.gguf"], "has 320 rows of vocabulary"),
        (["q8_0.gguf", "--kl-base", "missing"], "no such file"),
        (["q8_0.gguf", "--kl-base", "text.txt"], "not a safetensors file"),
        (["q8_0.gguf", "--plot", "x.png"], "it needs --kl-base"),
        (["q8_0.gguf", "--kl-base", "f32.gguf", "--plot", "x.pdf"], "ends in .png or .svg"),
        (["q8_0.gguf", "f16.gguf", "--save-logits", "x"], "takes one FILE"),
        (["q8_0.gguf", "--save-logits", "q8_0.gguf"], "is the file that is being read"),
    ],
)
def test_mistakes(measure, files, args, message):
    result = measure(*[arg if arg.startswith("--") else files / arg for arg in args])
    assert result.code == 2
    assert message in result.err


def test_logits_of_another_text(cli, measure, files, tmp_path):
    measure(files / "f32.gguf", "--save-logits", tmp_path / "saved")
    (tmp_path / "text.txt").write_text("x = 1\n" * 100, encoding="utf-8")
    args = ["--file", tmp_path / "text.txt", "--n-ctx", 64, "--kl-base", tmp_path / "saved"]
    result = cli("perplexity", files / "q8_0.gguf", *args)
    assert result.code == 2
    assert "not the same text, n_ctx or vocabulary" in result.err


def test_no_matplotlib_is_said_before_anything_is_measured(measure, files, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    result = measure(files / "missing.gguf", "--kl-base", files / "f32.gguf", "--plot", "x.png")
    assert result.code == 2
    assert "needs matplotlib, which is not installed" in result.err


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_the_plot(measure, files, tmp_path, name):
    pytest.importorskip("matplotlib")
    paths = [files / f"{name}.gguf" for name in TYPES]
    result = measure(*paths, "--kl-base", files / "f32.gguf", "--plot", tmp_path / name)
    assert result.code == 0
    picture = (tmp_path / name).read_bytes()
    assert picture.startswith(b"\x89PNG") if name.endswith("png") else b"<svg" in picture
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_names_in_the_plot():
    from localcoder.measure.plot import short_names

    assert short_names(["coder-1.3b-q4_0", "coder-1.3b-q4_k_m"]) == ["q4_0", "q4_k_m"]
    assert short_names(["q4_0", "q4_1"]) == ["q4_0", "q4_1"]
    assert short_names(["coder-f16", "coder-f16-q4_0"]) == ["f16", "f16-q4_0"]
    assert short_names(["coder-q8_0"]) == ["coder-q8_0"]
