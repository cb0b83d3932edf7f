"""The limits that speeds are measured against, and the work that is counted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder.backends.c import CBackend, availability
from localcoder.backends.reference import ReferenceBackend
from localcoder.files.gguf_reader import GGUFFile
from localcoder.measure import limits
from localcoder.measure.limits import Limits, decode_bytes, measure_limits, prefill_kind, prefill_ops
from localcoder.model.engine import Engine

needs_c = pytest.mark.skipif(availability() is not None, reason=str(availability()))


@pytest.fixture(autouse=True)
def little_memory(monkeypatch):
    monkeypatch.setattr(limits, "READ_BYTES", 1 << 20)


def test_every_limit_is_a_speed():
    found = measure_limits(2)
    assert found.read > 0.1
    assert found.f32 > 0.1
    if found.int8 is not None:
        assert found.int8 > found.f32 / 2


def test_without_the_c_core(monkeypatch):
    monkeypatch.setattr("localcoder.backends.c.availability", lambda: "not here")
    found = measure_limits(2)
    assert found.read > 0.1
    assert found.f32 > 0.1
    assert found.int8 is None


@needs_c
def test_the_peak_counts_what_every_thread_does():
    one, three = CBackend(1), CBackend(3)
    assert 3 * one.run_peak("f32", 100) == three.run_peak("f32", 100)
    assert 7 * one.run_peak("int8", 100) == one.run_peak("int8", 700)


def test_the_better_of_two_counts():
    assert Limits(1, 2, None, 4).best_of(Limits(2, 1, None, 3)) == Limits(2, 2, None, 4)


@pytest.mark.parametrize("tied", [False, True])
def test_work_of_a_token(tied, tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", type_name="q8_0", tied=tied)
    engine = Engine(GGUFFile.open(path), ReferenceBackend(), n_ctx=64, kv_type="f32")
    hp, tensors = engine.hyperparameters, engine.file.tensors
    layers = [t for name, t in tensors.items() if name.startswith("blk.") and len(t.shape) == 2]
    assert prefill_ops(engine) == 2 * sum(np.prod(t.shape) for t in layers)
    output = tensors["token_embd.weight" if tied else "output.weight"]
    kv = 2 * hp.n_layer * hp.n_head_kv * hp.head_dim * 4
    assert decode_bytes(engine, 9) == sum(t.nbytes for t in layers) + output.nbytes + 10 * kv
    assert prefill_kind(engine) == "int8"


def test_command(tmp_path, capsys):
    from localcoder.cli.main import main

    model = write_tiny_model(tmp_path / "tiny.gguf", type_name="q8_0", head_dim=32)
    command = ["bench", str(model), "-p", "8", "-p", "12", "-n", "4", "--depth", "0", "--depth", "70", "-r", "1"]
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--limits", "--kv-type", "q8_0", "--threads", "1", "--json"])
    assert not exit_.value.code
    report = json.loads(capsys.readouterr().out)
    assert [r["test"] for r in report["results"]] == ["pp8", "pp12", "tg4", "tg4@70"]
    assert [r["bound"] for r in report["results"]] == ["int8", "int8", "read", "read"]
    for result in report["results"]:
        limit = report["limits"][result["bound"]]
        assert limit is None or result["fraction"] == pytest.approx(result["rate"] / limit)
    for arguments, wanted in (
        (command, "tg4@70"),
        ([*command, "--limits"], "of the limit"),
        (["bench", "--limits"], "GB/s"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert wanted in capsys.readouterr().out
