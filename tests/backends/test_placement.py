"""A model shared out among several devices: the same logits, and every layer where there is room for it."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.backends import select
from localcoder.backends.cuda import emulated
from localcoder.backends.cuda.emulated import EmulatedCudaBackend
from localcoder.backends.placement import CardsBackend
from localcoder.backends.program import Input
from localcoder.backends.reference import ReferenceBackend
from localcoder.backends.split import Part, SplitBackend, part_of
from localcoder.cli.main import main
from localcoder.errors import BackendError, OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine

emulation = pytest.mark.skipif(emulated.availability() is not None, reason=str(emulated.availability()))
N_LAYER = 5
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def file(folder):
    with GGUFFile.open(write_tiny_model(folder / "f16.gguf", type_name="f16", n_layer=N_LAYER)) as opened:
        yield opened


def tokens(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n).astype(np.int32)


def course(engine: Engine) -> np.ndarray:
    """Logits of chunks, of several sequences, of a fork, and of a past that was forgotten."""
    first, second = engine.new_sequence(), engine.new_sequence()
    rows = [engine.evaluate([Chunk(first, tokens(70), 70)])]
    rows += [engine.evaluate([Chunk(first, tokens(1, i), 1), Chunk(second, tokens(3, i), 2)]) for i in range(3)]
    fork = first.fork()
    rows.append(engine.evaluate([Chunk(fork, tokens(9, 5), 1)]))
    fork.trim(66)
    rows.append(engine.evaluate([Chunk(fork, tokens(2, 6), 2), Chunk(first, tokens(1, 7), 1)]))
    assert not engine.evaluate([Chunk(second, tokens(20, 8), 0)]).size
    rows.append(engine.evaluate([Chunk(second, tokens(1, 9), 1)]))
    return np.concatenate(rows)


def engine_on(file: GGUFFile, backend, **options) -> Engine:
    return Engine(file, backend, **{"n_ctx": 128, "n_sequences": 3, "n_ubatch": 96, **options})


@pytest.fixture(scope="module")
def expected(file) -> np.ndarray:
    return course(engine_on(file, ReferenceBackend()))


def cpu():
    return select._open_on_cpu(2)


def error(result: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(result - right).max() / np.abs(right).max())


# --- a split ---------------------------------------------------------------------------------------------------------


def test_parts_have_every_op_once(file):
    program = engine_on(file, ReferenceBackend())._program
    parts = [part_of(program, 0, 2), part_of(program, 2, 3), part_of(program, 3, N_LAYER)]
    assert sum(len(part.ops) for part in parts) == len(program.ops) + 2
    assert [part.kv.n_layer for part in parts] == [2, 1, 2]
    assert [isinstance(part.ops[0], Input) for part in parts] == [False, True, True]
    assert [part.logits.rows for part in parts] == ["tokens", "tokens", "outputs"]
    assert [part.logits.width for part in parts] == [64, 64, 320]


@pytest.mark.parametrize("cuts", [(0,), (1,), (4,), (0, 3), (1, 2, 3, 4)])
def test_a_split_changes_nothing(file, expected, cuts):
    """On one backend, so to the bit."""
    edges = [0, *cuts, N_LAYER]
    split = SplitBackend([Part(ReferenceBackend(), a, b) for a, b in pairwise(edges)])
    np.testing.assert_array_equal(course(engine_on(file, split)), expected)


def test_a_split_is_described():
    one, two = ReferenceBackend(), ReferenceBackend()
    split = SplitBackend([Part(one, 0, 0), Part(two, 0, 1), Part(one, 1, 9)])
    about = one.description
    assert split.name == "numpy"
    assert split.description == f"the embedding on {about}; layer 0 on {about}; layers 1 to 8 on {about}"


def test_hidden_states_of_a_split(file):
    split = SplitBackend([Part(ReferenceBackend(), 0, 2), Part(ReferenceBackend(), 2, N_LAYER)])
    whole, shared = engine_on(file, ReferenceBackend()), engine_on(file, split)
    for n_layer in (0, 1, 2, 3, N_LAYER, None):
        states = [e.hidden_states(e.new_sequence(), tokens(10), n_layer) for e in (whole, shared)]
        np.testing.assert_array_equal(*states)


def test_pages_of_a_split_are_those_of_the_whole(file):
    """So a session that was saved on one placement goes on with another."""
    split = SplitBackend([Part(ReferenceBackend(), 0, 2), Part(ReferenceBackend(), 2, N_LAYER)])
    whole, shared = engine_on(file, ReferenceBackend()), engine_on(file, split)
    ids, results = tokens(70), []
    sequence = whole.new_sequence()
    whole.evaluate([Chunk(sequence, ids)])
    pages = list(whole.read_pages(sequence))
    for engine in (whole, shared):
        restored = engine.new_sequence()
        engine.write_pages(restored, len(ids), pages)
        for page, again in zip(pages, engine.read_pages(restored), strict=True):
            np.testing.assert_array_equal(page, again)
        results.append(engine.evaluate([Chunk(restored, ids[:3], 3)]))
    np.testing.assert_array_equal(*results)
    assert whole.kv_bytes == shared.kv_bytes


# --- cards and the CPU -----------------------------------------------------------------------------------------------


def bytes_of(file: GGUFFile, first: int, *, with_start: bool = False) -> int:
    """What a card needs for the layers from `first` on."""
    program = part_of(engine_on(file, ReferenceBackend())._program, first, N_LAYER, with_start=with_start)
    return EmulatedCudaBackend().bytes_needed(program, 6, 96)


def cards(*sizes: int, gpu_layers: int | None = None) -> CardsBackend:
    openers = [lambda size=size: EmulatedCudaBackend(1, size) for size in sizes]
    return CardsBackend("cuda-emulated", openers, cpu, gpu_layers)


def spans(engine: Engine) -> list[tuple[str, int, int]]:
    backend = engine.backend
    assert isinstance(backend, SplitBackend)
    return [(part.backend.name, part.first, part.end) for part in backend.parts]


@emulation
@pytest.mark.parametrize("gpu_layers", [0, 1, 3, N_LAYER, 99])
def test_the_last_layers_go_to_the_card(file, expected, gpu_layers):
    backend = cards(1 << 40, gpu_layers=gpu_layers)
    engine = engine_on(file, backend)
    if gpu_layers == 0:
        assert engine.backend.name in ("c", "numba")
    elif gpu_layers >= N_LAYER:
        assert engine.backend is backend.card(0)
    else:
        name = cpu().name
        assert spans(engine) == [(name, 0, N_LAYER - gpu_layers), ("cuda-emulated", N_LAYER - gpu_layers, N_LAYER)]
    assert error(course(engine), expected) <= 1e-3
    engine.close()
    backend.close()


@emulation
@pytest.mark.parametrize("n_fit", [1, 2, 4, N_LAYER])
def test_as_many_layers_as_fit(file, expected, n_fit):
    """The layers run in exactly the memory that they are said to need, and take most of it."""
    engine = engine_on(file, cards(bytes_of(file, N_LAYER - n_fit)))
    first = N_LAYER - n_fit
    assert spans(engine) == [(cpu().name, 0, first), ("cuda-emulated", first, N_LAYER)]
    assert error(course(engine), expected) <= 1e-3
    device = engine.backend.parts[-1].backend.device
    assert device.usable_bytes <= 0.4 * bytes_of(file, first)  # nobody asked for the highest logits
    engine.close()


@emulation
def test_a_card_with_room_for_all_has_the_embedding_too(file, expected):
    backend = cards(bytes_of(file, 0, with_start=True))
    engine = engine_on(file, backend)
    assert engine.backend is backend.card(0)
    assert error(course(engine), expected) <= 1e-3


@emulation
def test_several_cards_are_filled_one_after_the_other(file, expected):
    two = bytes_of(file, N_LAYER - 2)
    engine = engine_on(file, cards(two, two, two, two))
    found = spans(engine)
    assert found[-1] == ("cuda-emulated", 3, N_LAYER)
    assert [name for name, _, _ in found].count("cuda-emulated") >= 2
    assert [end for _, _, end in found[:-1]] == [first for _, first, _ in found[1:]]
    assert len({id(part.backend) for part in engine.backend.parts}) == len(found)
    assert error(course(engine), expected) <= 1e-3


@emulation
def test_cards_that_are_not_needed_stay_closed(file):
    def refuse():
        raise AssertionError("opened")

    backend = CardsBackend("cuda-emulated", [EmulatedCudaBackend, refuse], cpu)
    assert engine_on(file, backend).backend is backend.card(0)


@emulation
def test_more_layers_than_fit_are_refused_with_what_does(file):
    with pytest.raises(BackendError) as refusal:
        engine_on(file, cards(bytes_of(file, N_LAYER - 2), gpu_layers=4))
    text = str(refusal.value)
    assert text.startswith("the model does not fit on the card: 4 of the model's 5 layers need ")
    assert "choose --gpu-layers 2, " in text
    assert "--device cpu" in text
    assert "\n" not in text


@emulation
def test_a_smaller_context_that_fits_is_named(file):
    size = bytes_of(file, 0, with_start=False)
    with pytest.raises(BackendError, match=r"--gpu-layers \d, --n-ctx \d+, a smaller quantization or --device cpu"):
        engine_on(file, cards(size, gpu_layers=N_LAYER), n_ctx=1024)
    with pytest.raises(BackendError, match=r"a layer of the model needs .* choose a smaller quantization or --device"):
        engine_on(file, cards(1000))


@emulation
@pytest.mark.parametrize("type_name", ["q8_0", "q4_0"])
def test_rounded_weights_on_both_sides(folder, type_name):
    path = write_tiny_model(folder / f"{type_name}.gguf", type_name=type_name, n_layer=3)
    with GGUFFile.open(path) as file:
        right = course(engine_on(file, cpu()))
        assert error(course(engine_on(file, cards(1 << 40, gpu_layers=1))), right) <= 0.03


# --- from above ------------------------------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch):
    """A function that makes emulated cards of so many MiB the ones that `auto` chooses."""
    entry = next(e for e in select._BACKENDS if e.name == "cuda-emulated")
    real = select._Entry("cuda", "cuda", entry.summary, entry.module, entry.class_name, has_cards=True)
    others = tuple(e for e in select._BACKENDS if e.device == "cpu")
    monkeypatch.setattr(select, "_BACKENDS", (real, *others))
    monkeypatch.delenv("LOCALCODER_BACKEND", raising=False)
    return lambda *sizes: monkeypatch.setenv(emulated.MEMORY_VARIABLE, ",".join(map(str, sizes)))


@emulation
def test_a_coder_on_a_card_and_the_cpu_writes_what_the_cpu_writes(card, file):
    with Coder(file.path, n_ctx=128, device="cpu") as coder:
        expected = coder.complete("def f(x):", max_tokens=12)
    card(64)
    for gpu_layers in (2, None):
        with Coder(file.path, n_ctx=128, gpu_layers=gpu_layers) as coder:
            assert coder.complete("def f(x):", max_tokens=12) == expected
            assert "cuda" in coder.engine.backend.name
            assert ("layers 3 to 4 on CUDA" in coder.engine.backend.description) == (gpu_layers == 2)


@emulation
def test_too_little_memory_means_the_cpu_unless_a_card_was_asked_for(card, file, caplog):
    card(0.01)
    with caplog.at_level(logging.WARNING, "localcoder"), Coder(file.path, n_ctx=128) as coder:
        assert "cuda" not in coder.engine.backend.name
    (warning,) = [r.getMessage() for r in caplog.records]
    assert warning.startswith("the model does not fit on the card")
    assert warning.endswith("; computing on the CPU")
    with pytest.raises(BackendError, match="does not fit on the card"):
        Coder(file.path, n_ctx=128, device="cuda")


@emulation
def test_a_cache_that_cards_do_not_have_means_the_cpu(card, folder, caplog):
    path = write_tiny_model(folder / "wide.gguf", head_dim=32)
    card(64)
    with caplog.at_level(logging.WARNING, "localcoder"), Coder(path, n_ctx=64, kv_type="q4_0") as coder:
        assert "cuda" not in coder.engine.backend.name
    assert "f16 or q8_0, not q4_0; computing on the CPU" in caplog.text


def test_layers_for_a_card_that_is_not_there(monkeypatch, file, caplog):
    monkeypatch.delenv("LOCALCODER_BACKEND", raising=False)
    monkeypatch.setattr(select, "_BACKENDS", tuple(e for e in select._BACKENDS if e.device == "cpu"))
    with caplog.at_level(logging.WARNING, "localcoder"), Coder(file.path, n_ctx=64, gpu_layers=3):
        pass
    assert "no layer goes to a card" in caplog.text
    with pytest.raises(OptionError, match="gpu_layers is 3, which needs a card, and the device is cpu"):
        Coder(file.path, n_ctx=64, gpu_layers=3, device="cpu")
    with pytest.raises(OptionError, match="gpu_layers is -1; expected 0 or more"):
        Coder(file.path, n_ctx=64, gpu_layers=-1)


@pytest.mark.parametrize(("text", "code"), [("auto", 0), ("0", 0), ("-1", 2), ("some", 2)])
def test_the_option_of_the_terminal(monkeypatch, file, text, code):
    monkeypatch.setattr(select, "_BACKENDS", tuple(e for e in select._BACKENDS if e.device == "cpu"))
    monkeypatch.delenv("LOCALCODER_BACKEND", raising=False)
    arguments = ["bench", str(file.path), "-p", "4", "-n", "0", "-r", "1", "--gpu-layers", text]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code
    assert ("is neither a number nor auto" in result.stderr) == (code == 2)


@emulation
def test_the_option_reaches_the_card(card, file):
    card(64)
    arguments = ["bench", str(file.path), "-p", "4", "-n", "1", "-r", "1", "--gpu-layers", "2", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert json.loads(result.stdout)["backend"].endswith("+cuda-emulated")
