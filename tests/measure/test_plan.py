"""Forecasts of memory: against published sizes, files that exist, and processes that ran."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from localcoder.backends.select import survey
from localcoder.coder import embedded_model
from localcoder.convert.config import read_config
from localcoder.convert.family import FAMILY
from localcoder.convert.recipes import BEST_FIRST, recipe_by_name
from localcoder.errors import CheckpointError, OptionError
from localcoder.files.json_reader import read_json
from localcoder.measure.plan import (
    CONTEXT_STEP,
    advice,
    best_that_fits,
    config_of,
    forecast,
    measure_runtime,
    model_of_file,
    model_of_recipe,
    most_positions,
    parse_size,
)

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("16GiB", 16 * GIB),
        ("8G", 8 * GIB),
        ("8gb", 8 * 10**9),
        ("1.5 GiB", 3 * GIB // 2),
        ("512MiB", 1 << 29),
        ("512m", 1 << 29),
        ("2TB", 2 * 10**12),
        ("1000000", 10**6),
        ("100b", 100),
    ],
)
def test_sizes(text, n_bytes):
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "8 gigs", "1e9", "8GiBB", "٣GB", "9" * 40])
def test_what_is_no_size(text):
    with pytest.raises(OptionError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(("name", "gigabytes"), [("1.3b", 0.77), ("5.7b-mqa", 3.24), ("6.7b", 3.83), ("33b", 18.82)])
def test_published_sizes_of_q4_0(name, gigabytes):
    """With an output matrix in q6_k."""
    model = model_of_recipe(name, FAMILY[name], recipe_by_name("q4_0"))
    assert model.file_bytes / 1e9 == pytest.approx(gigabytes, rel=0.01)


@pytest.mark.parametrize(
    ("name", "gigabytes", "kib_a_position"),
    [("1.3b", 1.43, 192), ("5.7b-mqa", 6.06, 16), ("6.7b", 7.16, 512), ("33b", 35.43, 248), ("7b-v1.5", 7.34, 480)],
)
def test_published_sizes(name, gigabytes, kib_a_position):
    """Of q8_0 files, and of keys and values in half precision."""
    model = model_of_recipe(name, FAMILY[name], recipe_by_name("q8_0"))
    assert model.file_bytes / 1e9 == pytest.approx(gigabytes, rel=0.005)
    there = forecast(model, n_ctx=4096, kv_type="f16", runtime=0)
    assert there.kv_cache == 4096 * kib_a_position << 10
    assert there.weights == model.file_bytes
    assert there.total == there.weights + there.kv_cache + there.work + there.tokenizer


def test_the_family_is_what_its_configs_say(shared):
    for name, config in FAMILY.items():
        path = shared / f"deepseek-coder/configs/{name}.json"
        assert read_config(read_json(path, 1 << 20, CheckpointError), path) == config


def test_a_recipe_s_file_is_forecast_as_it_is_written():
    with embedded_model() as path:
        written = model_of_file(path)
    config = config_of(written.dimensions, tied="output.weight" not in written.tensors)
    planned = model_of_recipe("again", config, recipe_by_name("q8_0"))
    assert planned.tensors == written.tensors
    assert planned.file_bytes == pytest.approx(written.file_bytes, rel=0.01)
    assert planned.dimensions == written.dimensions


def test_more_context_takes_more():
    model = model_of_recipe("1.3b", FAMILY["1.3b"], recipe_by_name("q8_0"))
    short, long = (forecast(model, n_ctx=n, kv_type="f16", runtime=0) for n in (512, 16384))
    assert long.kv_cache == 32 * short.kv_cache
    assert long.work > short.work
    smaller = forecast(model, n_ctx=16384, kv_type="q8_0", runtime=0)
    assert smaller.kv_cache == long.kv_cache * 34 // 64


class TestAdvice:
    config = FAMILY["6.7b"]

    def planned(self, type_name, n_ctx):
        model = model_of_recipe("6.7b", self.config, recipe_by_name(type_name))
        return model, forecast(model, n_ctx=n_ctx, kv_type="f16", runtime=60 << 20)

    def test_each_line_is_enough(self):
        model, there = self.planned("q8_0", 8192)
        lines = list(advice(model, self.config, there, lambda f: f.total <= 8 * GIB))
        assert [line.split()[:2] for line in lines] == [["keep", "the"], ["choose", "n_ctx"], ["choose", "type"]]
        n_ctx = int(lines[1].split()[2])
        for n, fits in ((n_ctx, True), (n_ctx + CONTEXT_STEP, False)):
            assert (forecast(model, n_ctx=n, kv_type="f16", runtime=there.runtime).total <= 8 * GIB) == fits

    def test_the_best_type_is_the_largest_of_the_good_that_fits(self):
        for budget in (5 * GIB, 8 * GIB, 20 * GIB):
            best = best_that_fits(
                "6.7b", self.config, lambda f, most=budget: f.total <= most, n_ctx=512, kv_type="f16", runtime=0
            )
            sizes = {name: model_of_recipe("", self.config, recipe_by_name(name)) for name in BEST_FIRST}
            totals = {n: forecast(m, n_ctx=512, kv_type="f16", runtime=0).total for n, m in sizes.items()}
            assert totals[best[0].name] == max(t for t in totals.values() if t <= budget)

    def test_nothing_fits(self):
        model, there = self.planned("q8_0", 8192)
        (line,) = advice(model, self.config, there, lambda f: f.total <= GIB)
        assert "choose a smaller model" in line
        assert most_positions(model, lambda f: False, there) == 0

    def test_a_smaller_type_and_a_shorter_context(self):
        model, there = self.planned("f16", 16384)
        (line,) = advice(model, self.config, there, lambda f: f.total <= 5 * GIB)
        assert " and n_ctx " in line


FILL = """
import numpy as np, sys
import localcoder.cli.main, localcoder.cli.run
from localcoder.coder import Coder
from localcoder.model.engine import Chunk
with Coder(n_ctx=int(sys.argv[1])) as coder:
    tokens = (np.arange(coder.n_ctx, dtype=np.int32) * 7919) % coder.n_vocab
    sequence = coder.engine.new_sequence()
    coder.engine.evaluate([Chunk(sequence, tokens)])
    sequence.close()
    coder.complete("x", max_tokens=2)
print(next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures resident memory as Linux shows it")
@pytest.mark.parametrize("n_ctx", [300, 2048])
def test_the_peak_of_a_process(n_ctx):
    if not any(report.name == "c" and report.is_default for report in survey()):
        pytest.skip("the backend c is not in use here")
    done = subprocess.run([sys.executable, "-c", FILL, str(n_ctx)], capture_output=True, text=True, check=True)
    with embedded_model() as path:
        model = model_of_file(path)
    there = forecast(model, n_ctx=n_ctx, kv_type="f16", runtime=measure_runtime())
    assert there.total == pytest.approx(int(done.stdout), rel=0.03)
