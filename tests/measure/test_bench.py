"""What the speed measurement runs and reports; how fast it is, is no test."""

from __future__ import annotations

import json

import pytest
from fakes import CountingEngine
from tiny_model import write_tiny_model

from localcoder.measure.bench import bench
from localcoder.measure.machine import this_machine


def test_what_is_run():
    engine = CountingEngine(n_ctx=64, n_ubatch=64)
    results = list(bench(engine, prefills=[32], n_decode=5, repetitions=2))
    assert [r.test for r in results] == ["pp32", "tg5"]
    assert all(len(r.samples) == 2 and min(r.samples) > 0 for r in results)
    assert all(min(r.samples) <= r.tokens_per_second <= max(r.samples) for r in results)
    assert [len(step) for step in engine.evaluated] == [32] * 3 + [1] * 15  # one more of each, to warm up
    assert engine.n_free_pages == 8


@pytest.mark.parametrize(("p", "n", "tests"), [(8, 0, ["pp8"]), (0, 4, ["tg4"])])
def test_a_length_of_0_leaves_a_test_out(p, n, tests):
    assert [r.test for r in bench(CountingEngine(), prefills=[p], n_decode=n, repetitions=1)] == tests


def test_the_machine_has_a_name():
    machine = this_machine()
    assert machine.cpu
    assert machine.cores >= 1


def test_json_and_text(tmp_path, capsys):
    from localcoder.cli.main import main

    model = write_tiny_model(tmp_path / "tiny.gguf", type_name="q8_0")
    command = ["bench", str(model), "-p", "8", "-n", "4", "-r", "2", "--threads", "1"]
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--json"])
    assert not exit_.value.code
    report = json.loads(capsys.readouterr().out)
    assert [r["test"] for r in report["results"]] == ["pp8", "tg4"]
    assert all(len(r["samples"]) == 2 for r in report["results"])
    assert all(r["tokens_per_second"] > 0 for r in report["results"])
    assert report["type"] == "q8_0"
    assert report["threads"] == 1
    assert report["machine"]["cpu"]
    assert report["backend"] in ("c", "numba", "numpy")
    with pytest.raises(SystemExit):
        main(command)
    out = capsys.readouterr().out
    assert "pp8" in out
    assert "tg4" in out
    assert "tokens/s" in out
