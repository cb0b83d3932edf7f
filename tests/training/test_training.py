"""The model is the family's, it learns, and a training that was stopped goes on as if it had not been."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from torch_or_skip import torch
from train.card import make_card
from train.commands import main
from train.export import MOST_BYTES, SHARD_BYTES, make_config, read_weights, write_checkpoint
from train.model import Llama
from train.muon import Muon, orthogonal
from train.packing import read_about
from train.report import shipped_card, shipped_model
from train.settings import FILE, ModelSettings, read_settings
from train.sources import PYTHON, VERSIONS, read_list
from train.training import Plan, Trainer, average, read_state
from train.work import Work

from localcoder import Coder
from localcoder.convert.choice import Choice
from localcoder.convert.converter import convert
from localcoder.convert.recipes import recipe_by_name
from localcoder.errors import FileError, OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.quants.search import requantize

TOOL = Path(__file__).parents[2] / "tools" / "train"
STEP = 8 * 128  # tokens
PLAN = Plan(device="cpu", dtype=torch.float32, compiled=False, micro_rows=4, tokens=6 * STEP)


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums come out in the same order every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(work: Work, settings, plan: Plan, n_steps: int, *, resume: bool = False) -> tuple[list[float], Trainer]:
    trainer = Trainer(work, settings, plan)
    if resume:
        trainer.resume()
    return [trainer.step() for _ in range(n_steps)], trainer


def test_muon_is_torchs():
    """torch's computes in bf16, of 8 bits: so do the two agree. A matrix without gradient stays."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 64), (64, 24), (24, 64), (32, 32)]
    begun = [torch.randn(shape, generator=generator) for shape in shapes]
    theirs, ours = ([torch.nn.Parameter(w.clone()) for w in begun] for _ in range(2))
    optimizers = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1), Muon(ours, 0.02, 0.1)
    for _ in range(4):
        for a, b in zip(theirs[:-1], ours[:-1]):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, first in zip(theirs, ours, begun):
        assert torch.linalg.norm(a.detach() - b.detach()) <= 0.02 * torch.linalg.norm(a.detach() - first)
    assert torch.equal(ours[-1].detach(), begun[-1])


@pytest.mark.parametrize("shape", [(24, 64), (64, 24)])
def test_orthogonal_keeps_singular_vectors_and_levels_their_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    (found,) = orthogonal(matrix[None], torch.float64).double()
    turned = left.mT @ found @ right.mT
    assert torch.allclose(turned, torch.diag(turned.diag()), atol=1e-5)
    assert 0.6 <= turned.diag().min() <= turned.diag().max() <= 1.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(work, settings, dtype):
    plan = dataclasses.replace(PLAN, dtype=dtype)
    losses, whole = train(work, settings, plan, 6)
    first, stopped = train(work, settings, plan, 3)
    stopped.save()
    second, resumed = train(work, settings, plan, 3, resume=True)
    assert first + second == losses
    expected = whole.model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in resumed.model.state_dict().items())


def test_the_loss_falls(work, settings):
    losses, trainer = train(work, settings, dataclasses.replace(PLAN, tokens=100 * STEP), 100)
    assert abs(losses[0] - np.log(settings.model.n_vocab)) < 0.2  # it knows nothing yet
    assert np.mean(losses[-3:]) < losses[0] - 1.5
    assert trainer.heldout_loss() < losses[0] - 1


def test_the_gradient_does_not_depend_on_how_many_rows_are_computed_at_a_time(work, settings):
    found = [train(work, settings, dataclasses.replace(PLAN, micro_rows=n), 3)[0] for n in (2, 8)]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_every_row_of_a_pass_comes_once(work, settings):
    trainer = Trainer(work, settings, PLAN)
    n_rows = len(trainer._passes[0])
    seen = torch.cat([trainer._batch(step, 8) for step in range(n_rows // 8)])
    expected = {row.tobytes() for row in trainer._passes[0].astype(np.int64)}
    assert len({row.tobytes() for row in seen.numpy()}) >= len(expected) - 8
    later = trainer._batch(n_rows // 8, 8)  # of the second pass
    assert {row.tobytes() for row in later.numpy()} <= {row.tobytes() for row in trainer._passes[1].astype(np.int64)}


def rates_of(trainer: Trainer, n_steps: int) -> list[float]:
    rates = []
    for _ in range(n_steps):
        rates.append(trainer.rate())
        trainer.progress.tokens += STEP
    return rates


def test_rates_rise_stay_and_fall(work, settings):
    rates = rates_of(Trainer(work, settings, dataclasses.replace(PLAN, tokens=1000 * STEP)), 1000)
    assert rates[:8] == pytest.approx(np.arange(1, 9) / 8)
    assert set(rates[8:800]) == {1.0}
    assert rates[800:] == pytest.approx(np.arange(200, 0, -1) / 200)


def test_the_end_can_be_decided_late(work, settings):
    """Without an end the rates stay; from where it is decided on they fall, through every resumption."""
    endless = dataclasses.replace(PLAN, tokens=None)
    trainer = Trainer(work, settings, endless)
    assert rates_of(trainer, 400)[8:] == [1.0] * 392
    trainer.save()
    deciding = Trainer(work, settings, dataclasses.replace(endless, decay=True))
    deciding.resume()
    assert deciding.progress.total_tokens == 500 * STEP
    assert rates_of(deciding, 40) == pytest.approx(np.arange(100, 60, -1) / 100)
    deciding.save()
    going_on = Trainer(work, settings, endless)
    going_on.resume()
    assert rates_of(going_on, 60) == pytest.approx(np.arange(60, 0, -1) / 100)
    assert going_on.is_done
    going_on.save()
    with pytest.raises(OptionError, match="of 512,000; to go on, give more"):
        Trainer(work, settings, endless).resume()
    longer = Trainer(work, settings, dataclasses.replace(PLAN, tokens=1000 * STEP))
    longer.resume()
    assert longer.rate() == 1.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(work, settings, number):
    trainer = Trainer(work, settings, dataclasses.replace(PLAN, tokens=None))
    told = []

    def tell(text: str) -> None:
        told.append(text)
        if len(told) == 1:
            threading.Timer(0.05, signal.raise_signal, [number]).start()

    before = signal.getsignal(number)
    assert trainer.run(tell) == "interrupted"
    assert signal.getsignal(number) is before
    state = read_state(work.state)
    assert state["progress"]["step"] == trainer.progress.step >= 1
    lines = [json.loads(line) for line in work.log.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["step"] == 1
    assert not list(work.folder.glob("*.tmp"))


def test_time_ends_a_sitting_and_tokens_the_training(work, settings):
    sitting = Trainer(work, settings, dataclasses.replace(PLAN, tokens=None, minutes=0.01))
    assert sitting.run(lambda text: None) == "time"
    done = sitting.progress.tokens
    assert done > 0
    last = Trainer(work, settings, dataclasses.replace(PLAN, tokens=done + 2 * STEP))
    last.resume()
    assert last.run(lambda text: None) == "done"
    assert last.progress.tokens == done + 2 * STEP
    assert last.progress.log[-1]["heldout_loss"] > 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_training_goes_on_from_what_was_saved_last(work, settings, tmp_path):
    """Stopped and continued it minds nothing; killed in the middle it loses no more than what came after a save."""
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"tiny": dataclasses.asdict(settings)}), encoding="utf-8")
    command = [sys.executable, str(TOOL), "--work", str(work.folder), "--settings", str(path), "--profile", "tiny"]
    command += ["train", "--no-compile", "--dtype", "f32", "--device", "cpu", "--save-minutes", "0.001"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: work.state.exists() and read_state(work.state)["progress"]["step"] >= 3)
            process.send_signal(signal.SIGSTOP)
            before = read_state(work.state)["progress"]["step"]
            process.send_signal(signal.SIGCONT)
            wait_for(lambda: read_state(work.state)["progress"]["step"] > before)
        finally:
            process.kill()
    state = read_state(work.state)
    resumed = Trainer(work, settings, dataclasses.replace(PLAN, tokens=None))
    resumed.resume()
    assert resumed.progress.step == state["progress"]["step"] > before
    resumed.step()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_wrong_beginnings(work, settings):
    other = dataclasses.replace(settings, model=dataclasses.replace(settings.model, n_vocab=1024))
    with pytest.raises(FileError, match="the settings have"):
        Trainer(work, other, PLAN)
    with pytest.raises(OptionError, match="3 rows at a time"):
        Trainer(work, settings, dataclasses.replace(PLAN, micro_rows=3))
    with pytest.raises(FileError, match="run the stage `train` first"):
        Trainer(work, settings, PLAN).resume()
    work.state.write_bytes(b"no state")
    with pytest.raises(FileError, match="is no saved state"):
        Trainer(work, settings, PLAN).resume()
    weights = Llama(dataclasses.replace(settings.model, n_ff=128)).state_dict()
    with pytest.raises(OptionError, match=r"mlp.down_proj.weight is \(64, 128\) in the checkpoint"):
        Trainer(work, settings, PLAN, weights)


@pytest.mark.parametrize("tied", [True, False])
def test_the_exported_model_computes_what_was_trained(work, settings, tmp_path, tied):
    """In transformers and, converted unchanged, in localcoder; and training goes on from it."""
    transformers = pytest.importorskip("transformers")
    chosen = dataclasses.replace(settings, model=dataclasses.replace(settings.model, tied=tied))
    _, trainer = train(work, chosen, PLAN, 4)
    weights = trainer.model.state_dict()
    write_checkpoint(weights, chosen.model, work.tokenizer, tmp_path / "hf", torch.float32)
    ids = torch.from_numpy(trainer._heldout[0].astype(np.int64))
    with torch.no_grad():
        ours = trainer.model(ids[None])[0]
        theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)(ids[None]).logits[
            0
        ]
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    convert(tmp_path / "hf", tmp_path / "model.gguf", Choice(recipe_by_name("f32")), requantize=requantize)
    with Coder(tmp_path / "model.gguf") as coder:
        found = coder.logits(ids.tolist())
        assert coder.infill("def f(x):\n    return ", "\n", max_tokens=4) is not None
    assert np.abs(found - theirs.numpy()).max() <= 2e-3 * theirs.abs().max()
    again = read_weights(tmp_path / "hf")
    assert again.keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in again.items())


def test_weights_come_back_from_a_gguf_file(work, settings, tmp_path):
    model = Llama(settings.model)
    model.initialize(0)
    weights = model.state_dict()
    write_checkpoint(weights, settings.model, work.tokenizer, tmp_path / "hf", torch.float32)
    convert(tmp_path / "hf", tmp_path / "model.gguf", Choice(recipe_by_name("f32")), requantize=requantize)
    again = read_weights(tmp_path / "model.gguf")
    assert again.keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in again.items())
    Trainer(work, settings, PLAN, again).step()  # nothing of it is bound to the file


def test_averaged_weights(work, settings, tmp_path):
    """A state can be averaged once, with weights of its shape, and is then not trained on."""
    _, trainer = train(work, settings, PLAN, 1)
    trainer.save()
    first = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    write_checkpoint(first, settings.model, work.tokenizer, tmp_path / "earlier", torch.float32)
    trainer.step()
    trainer.save()
    second = read_state(work.state)["model"]
    average(work.state, settings, tmp_path / "earlier", 0.75)
    state = read_state(work.state)
    for name, weight in state["model"].items():
        assert torch.allclose(weight, 0.25 * first[name] + 0.75 * second[name], atol=1e-6)
    assert tuple(state["progress"]["averaged"]) == ("earlier", 0.75)
    with pytest.raises(OptionError, match="averaged weights already"):
        average(work.state, settings, tmp_path / "earlier", 0.75)
    with pytest.raises(OptionError, match="train on from one that has not"):
        Trainer(work, settings, PLAN).resume()


def test_checkpoints_come_in_pieces(work, settings, tmp_path):
    wide = dataclasses.replace(settings.model, n_embd=256, n_ff=4096, n_layer=8)
    write_checkpoint(Llama(wide).state_dict(), wide, work.tokenizer, tmp_path / "hf", torch.bfloat16)
    shards = list((tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) >= 4
    assert all(shard.stat().st_size <= SHARD_BYTES + 65536 for shard in shards)
    total = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert total == sum(2 * weight.numel() for weight in read_weights(tmp_path / "hf").values())


@pytest.mark.parametrize("profile", ["gpu", "cpu", "trial"])
def test_profiles_fit_into_the_package(profile):
    from localcoder.quants.registry import BY_NAME

    settings = read_settings(profile)
    n_weights = sum(weight.numel() for weight in Llama(settings.model).parameters())
    of_type = BY_NAME[settings.type]
    bits = 8 * of_type.block_bytes / of_type.block_elems
    assert n_weights * bits / 8 + 60 * settings.model.n_vocab < MOST_BYTES
    assert settings.model.n_embd % of_type.block_elems == 0
    assert settings.model.n_ff % of_type.block_elems == 0


def test_the_cpu_profile_can_start_from_the_trained_checkpoint(shared):
    settings = read_settings("cpu")
    folder = shared / "checkpoints" / "python-9m"
    theirs = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ours = make_config(settings.model)
    assert {key: ours[key] for key in ours if key in theirs} == {key: theirs[key] for key in ours if key in theirs}
    shapes = {name: weight.shape for name, weight in Llama(settings.model).state_dict().items()}
    assert {name: weight.shape for name, weight in read_weights(folder).items()} == shapes


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda p: p["trial"]["model"].pop("n_ff"), "expected"),
        (lambda p: p["trial"].update(dropout=0.1), "dropout"),
        (lambda p: p["trial"]["model"].update(n_layer="4"), "n_layer is '4'; expected int"),
        (lambda p: p["trial"]["documents"].update(row_tokens=1 << 20), "more tokens at a time"),
        (lambda p: p.pop("trial"), "no profile 'trial'"),
    ],
)
def test_settings_are_read_strictly(tmp_path, change, complaint):
    profiles = json.loads(FILE.read_text(encoding="utf-8"))
    change(profiles)
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(profiles), encoding="utf-8")
    with pytest.raises((FileError, OptionError), match=complaint):
        read_settings("trial", path)


def test_stages_by_the_command_line(work, settings, tmp_path):
    """Training, export, conversion and the card; errors are one line and exit code 2."""
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"tiny": dataclasses.asdict(settings)}), encoding="utf-8")
    common = ["--work", str(work.folder), "--settings", str(path), "--profile", "tiny"]
    options = ["--tokens", str(2 * STEP), "--no-compile", "--dtype", "f32", "--device", "cpu"]

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, [*common, *arguments])
        return result.exit_code, result.output

    code, output = run("export")
    assert code == 2
    assert "run the stage `train` first" in output
    assert run("train", *options)[0] == 0
    code, output = run("train", *options)
    assert code == 2
    assert "give --resume, or remove it" in output
    code, output = run("train", *options, "--decay")
    assert code == 2
    assert "give it with --resume and without --tokens" in output
    code, output = run("pack", "--workers", "1", "--textbooks", "0.5")
    assert code == 2
    assert "names no project that the list has several times" in output
    data = json.loads(work.data.read_text(encoding="utf-8"))
    work.data.write_text(json.dumps([{**p, "times": 1 + (p["name"] == "alpha")} for p in data]), encoding="utf-8")
    code, output = run("pack", "--workers", "1", "--textbooks", "0.9")
    assert code == 0, output
    options[1] = str(4 * STEP)
    code, output = run("train", *options, "--resume")
    assert code == 0, output
    code, output = run("export")
    assert code == 0, output
    (model,) = work.folder.glob("*.gguf")
    with Coder(model) as coder:
        assert coder.n_ctx == settings.model.n_ctx_train
        assert isinstance(coder.complete("def f(x):", max_tokens=3), str)
    code, output = run("report", "--holes", "2", "--asked", "2")
    assert code == 0, output
    found = json.loads(work.figures.read_text(encoding="utf-8"))
    assert found["origin"]["trained_tokens"] == 4 * STEP
    assert 2 < found["perplexity"]["perplexity"] < 600  # hardly better than chance
    assert [hole["n_holes"] for hole in found["fim"]] == [2, 2, 2]
    card = work.card.read_text(encoding="utf-8")
    assert f"{found['perplexity']['perplexity']:.2f}" in card
    assert "- MIT: alpha 1.0 (2 times in a pass), beta 1.0" in card
    assert "the last 2,048 of them with 90% of the text from what a pass has several times" in " ".join(card.split())
    assert f"{found['origin']['corpus_tokens']:,} tokens" in card
    assert found["origin"]["corpus_tokens"] != read_about(work)["passes"][0]["tokens"]


def test_the_shipped_model_is_the_one_described():
    model, origin = shipped_model()
    file = GGUFFile.open(model)
    assert sum(math.prod(tensor.shape) for tensor in file.tensors.values()) == origin["n_weights"]
    assert model.stat().st_size <= MOST_BYTES
    listed = {package.name: package for package in read_list()}
    versions = dict(line.split("==") for line in VERSIONS.read_text(encoding="utf-8").split())
    for project in origin["projects"]:
        if project["name"] != PYTHON:
            assert project["version"] == versions[project["name"]]
            assert project["heldout"] == listed[project["name"]].is_heldout
    card = shipped_card()
    assert f"{model.stat().st_size / 1e6:.1f} MB" in card
    assert all(f"{p['name']} {p['version']}" in " ".join(card.split()) for p in origin["projects"] if p["files"])
    assert f"{origin['trained_tokens']:,}" in card


def test_the_shipped_models_figures_are_measured_again(work, settings, tmp_path):
    arguments = ["--work", str(work.folder), "report", "--shipped", "--holes", "1", "--asked", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "the card in the package differs:" in result.output  # other held-out files, and one hole
    assert "+| Infill, line: exact match of 1 |" in result.output
    found = json.loads(work.figures.read_text(encoding="utf-8"))
    model, origin = shipped_model()
    assert (found["file"], found["origin"]) == (model.name, origin)
    assert 3 < found["perplexity"]["perplexity"] < 100


def test_the_card_has_every_figure_and_every_project():
    data = [
        {
            "name": "alpha",
            "version": "1.2",
            "licence": "MIT",
            "heldout": False,
            "files": 3,
            "bytes": 5_000_000,
            "times": 4,
        },
        {"name": "gamma", "version": "3", "licence": "BSD", "heldout": True, "files": 2, "bytes": 90, "times": 1},
    ]
    figures = {
        "file": "python-1m.gguf",
        "file_bytes": 1_234_567,
        "origin": {
            "profile": "trial",
            "n_weights": 1_050_000,
            "trained_tokens": 2_000_000,
            "trained_seconds": 660,
            "started_from": "python-9m",
            "corpus_tokens": 1_500_000,
            "textbooks": None,
            "averaged": None,
            "projects": data,
        },
        "perplexity": {"perplexity": 31.4159, "standard_error": 0.27, "n_tokens": 9, "n_ctx": 512},
        "fim": [{"kind": "line", "n_holes": 50, "exact_match": 0.123, "edit_similarity": 0.5, "parses": 0.77}],
        "chat": {"n_asked": 30, "code_blocks": 0.9, "parses": 0.4},
        "humaneval": {"pass@1": 0.006, "n_problems": 164, "parses": 0.55},
    }
    card = make_card(figures, read_settings("trial"))
    for text in (
        "31.42 ± 0.27",
        "12.3%",
        "77%",
        "90%",
        "0.6%",
        "55%",
        "11 minutes",
        "1.2 MB",
        "- MIT: alpha 1.2 (4 times in a pass)",
        "2,000,000",
        "42\nmillion",
    ):
        assert text in card
    assert card.index("alpha 1.2") < card.index("Held out") < card.index("- BSD: gamma 3")
    assert isinstance(read_settings("trial").model, ModelSettings)
