"""The driver layer with the emulated card behind it: whole models, and what a card does when it fails."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import FakeCompiler
from tiny_model import write_tiny_model

from localcoder.backends.cuda import emulated
from localcoder.backends.cuda.backend import CudaBackend
from localcoder.backends.cuda.cards import Card
from localcoder.backends.cuda.compile import Module, ModuleStore
from localcoder.backends.cuda.device import Launch
from localcoder.backends.cuda.driver import CardDevice
from localcoder.backends.cuda.emulated import EmulatedDevice
from localcoder.backends.reference import ReferenceBackend
from localcoder.errors import BackendError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine

pytestmark = pytest.mark.skipif(emulated.availability() is not None, reason=str(emulated.availability()))

GOOD = Card(0, "Card", (8, 6), 24 << 30, None)


class FakeCard:
    """cuda.bindings.driver and cuda.core at once: memory and launches go to the emulated card."""

    def __init__(self, memory: int = 1 << 40) -> None:
        self.device = EmulatedDevice(Path(os.environ[emulated.VARIABLE]))
        self.left, self.sizes, self.replays = memory, {}, 0

    # cuda.bindings.driver

    def cuMemAlloc(self, n_bytes):
        if n_bytes > self.left:
            return 2, None
        address = self.device.allocate(n_bytes)
        self.sizes[address] = n_bytes
        self.left -= n_bytes
        return 0, address

    def cuMemFree(self, address):
        self.left += self.sizes.pop(address)
        self.device.release(address)
        return (0,)

    def cuMemGetInfo(self):
        return 0, self.left, 1 << 40

    def cuMemcpyHtoDAsync(self, to, source, n_bytes, stream):
        ctypes.memmove(to, source, n_bytes)
        return (0,)

    cuMemcpyDtoHAsync = cuMemcpyDtoDAsync = cuMemcpyHtoDAsync

    # cuda.core

    def Device(self, index):
        stream = SimpleNamespace(handle=0, sync=lambda: None, create_graph_builder=lambda: FakeBuilder(self))
        return SimpleNamespace(set_current=lambda: None, create_stream=lambda: stream)

    def LaunchConfig(self, grid, block):
        return SimpleNamespace(grid=grid, block=block)

    class ObjectCode:
        @staticmethod
        def from_cubin(code, name):
            assert code == b"code of " + name.encode()
            return SimpleNamespace(get_kernel=lambda kernel: kernel, handle=1)

    def launch(self, where, config, kernel, *words):
        launch = Launch(kernel, config.grid, config.block, tuple(int(word) for word in words))
        if isinstance(where, FakeBuilder):
            where.launches.append(launch)
        else:
            self.device.launch(launch)


class FakeBuilder:
    def __init__(self, card: FakeCard) -> None:
        self.card, self.launches = card, []

    def begin_building(self):
        pass

    end_building = close = begin_building

    def complete(self):
        return self

    def launch(self, stream):
        self.card.replays += 1
        for launch in self.launches:
            self.card.device.launch(launch)


def backend_on(card: FakeCard, folder: Path) -> CudaBackend:
    return CudaBackend(CardDevice(GOOD, ModuleStore("sm_86", FakeCompiler(), "13.0", folder), card, card))


def test_a_model_runs_through_the_driver_layer(tmp_path):
    file = GGUFFile.open(write_tiny_model(tmp_path / "tiny.gguf", type_name="q8_0"))
    ids = np.arange(30, dtype=np.int32)
    results = []
    card = FakeCard()
    for backend in (ReferenceBackend(), backend_on(card, tmp_path)):
        engine = Engine(file, backend, n_ctx=64)
        sequence = engine.new_sequence()
        first = engine.evaluate([Chunk(sequence, ids, 30)])
        rest = [engine.evaluate([Chunk(sequence, ids[i : i + 1])]) for i in range(4)]
        results.append(np.concatenate([first, *rest]))
        engine.close()
    assert np.abs(results[1] - results[0]).max() <= 0.03 * np.abs(results[0]).max()
    assert card.replays == 5


def test_a_growing_context_is_recorded_now_and_then(tmp_path, monkeypatch):
    """What is recorded for a step serves the next ones: recording takes as long as several steps."""
    recorded = []
    complete = FakeBuilder.complete
    monkeypatch.setattr(FakeBuilder, "complete", lambda self: recorded.append(len(self.launches)) or complete(self))
    path = write_tiny_model(tmp_path / "tiny.gguf", n_ctx=4096, n_embd=16, n_ff=32, n_head=1, n_head_kv=1, n_layer=1)
    engine = Engine(GGUFFile.open(path), backend_on(FakeCard(), tmp_path), n_ctx=4096)
    sequence = engine.new_sequence()
    for _ in range(65):
        engine.evaluate([Chunk(sequence, np.arange(1, dtype=np.int32))])
        sequence.reserve(62)
        sequence.n_past += 62
    assert len(recorded) <= 20


@pytest.mark.parametrize("module", ["elementwise", "attention", "linear-f32"])
def test_kernels_that_do_not_compile_show_before_the_first_step(tmp_path, module):
    class Broken(FakeCompiler):
        def __call__(self, wanted: Module, architecture: str) -> bytes:
            if wanted.name == module:
                raise BackendError(f"NVRTC cannot compile {module} for {architecture}: error")
            return super().__call__(wanted, architecture)

    card, file = FakeCard(), GGUFFile.open(write_tiny_model(tmp_path / "tiny.gguf"))
    backend = CudaBackend(CardDevice(GOOD, ModuleStore("sm_86", Broken(), "13.0", tmp_path), card, card))
    with pytest.raises(BackendError, match=f"NVRTC cannot compile {module} for sm_86"):
        Engine(file, backend, n_ctx=64)


def test_a_card_that_is_too_small_says_what_is_missing(tmp_path):
    file = GGUFFile.open(write_tiny_model(tmp_path / "tiny.gguf"))
    for memory in (1 << 10, 1 << 19):  # not even the cache; not the weights
        with pytest.raises(BackendError, match=r"does not fit on the card: Card.* GiB more are needed, .*--device cpu"):
            Engine(file, backend_on(FakeCard(memory), tmp_path), n_ctx=64)


class Unloadable:
    """Code that the driver does not take."""

    @property
    def handle(self):
        raise RuntimeError(
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION: the provided PTX was compiled\nwith an unsupported toolchain."
        )


def test_code_that_the_driver_does_not_load_shows_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeCard.ObjectCode, "from_cubin", staticmethod(lambda code, name: Unloadable()))
    file = GGUFFile.open(write_tiny_model(tmp_path / "tiny.gguf"))
    with pytest.raises(BackendError, match=r"Card.* fails: CUDA_ERROR_UNSUPPORTED_PTX_VERSION: .* compiled with an"):
        Engine(file, backend_on(FakeCard(), tmp_path), n_ctx=64)


@pytest.mark.parametrize("call", ["cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "launch"])
def test_a_card_that_fails_in_the_middle_says_so_on_one_line(tmp_path, monkeypatch, call):
    card = FakeCard()
    engine = Engine(GGUFFile.open(write_tiny_model(tmp_path / "tiny.gguf")), backend_on(card, tmp_path), n_ctx=64)

    def fails(*arguments):
        if call == "launch":
            raise RuntimeError("CUDA_ERROR_LAUNCH_FAILED: unspecified\nlaunch failure")
        return (type("Status", (int,), {"name": "CUDA_ERROR_LAUNCH_FAILED"})(719),)

    monkeypatch.setattr(card, call, fails)
    with pytest.raises(BackendError, match=r"Card.* fails: CUDA_ERROR_LAUNCH_FAILED") as failure:
        engine.evaluate([Chunk(engine.new_sequence(), np.arange(3, dtype=np.int32))])
    assert "\n" not in str(failure.value)
    engine.close()


def test_memory_that_runs_out_in_a_step_is_explained(tmp_path):
    card = FakeCard()
    file = GGUFFile.open(write_tiny_model(tmp_path / "tiny.gguf"))
    engine = Engine(file, backend_on(card, tmp_path), n_ctx=64)
    sequence, ids = engine.new_sequence(), np.arange(3, dtype=np.int32)
    card.left = 0
    with pytest.raises(BackendError, match=r"does not fit on the card: Card.*are free; choose a smaller context"):
        engine.evaluate([Chunk(sequence, ids)])
    card.left = 1 << 40
    assert np.isfinite(engine.evaluate([Chunk(sequence, ids)])).all()
    engine.close()
