"""`localcoder plan`."""

from __future__ import annotations

import json

import pytest

from localcoder.convert.recipes import NAMES


@pytest.fixture(autouse=True)
def _no_process(monkeypatch):
    monkeypatch.setattr("localcoder.cli.plan.measure_runtime", lambda threads=None: 60 << 20)


def test_a_file(cli, model):
    found = json.loads(cli("plan", model, "--json").out)
    assert (found["n_ctx"], found["type"], found["fits"]) == (256, "as it is", None)
    assert found["weights"] == model.stat().st_size
    parts = ("weights", "kv_cache", "work", "tokenizer", "runtime")
    assert found["total"] == sum(found[part] for part in parts)
    assert found["runtime"] == 60 << 20
    assert "in all" in cli("plan", model).out
    assert json.loads(cli("plan", model, "--type", "q8_0", "--json").out)["weights"] < found["weights"]


def test_a_draft_model_takes_memory_too(cli, model):
    args = ["plan", "1.3b", "--type", "q4_0", "--n-ctx", 1024]
    alone = json.loads(cli(*args, "--json").out)
    with_draft = json.loads(cli(*args, "--draft-model", model, "--json").out)
    assert alone["draft_model"] == 0
    assert with_draft["draft_model"] > model.stat().st_size
    assert with_draft["total"] == alone["total"] + with_draft["draft_model"]
    assert "draft model" in cli(*args, "--draft-model", model).out
    budget = ["--ram", alone["total"] + with_draft["draft_model"] // 2, "--json"]
    assert json.loads(cli(*args, *budget).out)["fits"] is True
    assert json.loads(cli(*args, *budget, "--draft-model", model).out)["fits"] is False


@pytest.mark.parametrize("name", ["1.3b", "1.3B", "deepseek-coder-1.3b-instruct"])
def test_every_type_of_a_member(cli, name):
    found = json.loads(cli("plan", name, "--json", "--ram", "3GiB").out)
    assert [p["type"] for p in found["plans"]] == list(NAMES)
    fits = {p["type"]: p["fits"] for p in found["plans"]}
    assert fits["q4_0"]
    assert not fits["f16"]
    assert "does not fit" in cli("plan", name, "--ram", "3GiB").out


def test_what_to_change(cli):
    args = ["plan", "6.7b", "--type", "q8_0", "--n-ctx", 8192]
    found = json.loads(cli(*args, "--ram", "8G", "--json").out)
    assert found["fits"] is False
    assert len(found["advice"]) == 3
    shown = cli(*args, "--ram", "8G").out
    assert "does not fit in 8.00 GiB of RAM" in shown
    assert all(line in shown for line in found["advice"])
    assert json.loads(cli(*args, "--ram", "12GiB", "--json").out)["advice"] == []
    on_gpu = json.loads(cli(*args, "--vram", "10.79GiB", "--json").out)
    assert on_gpu["fits"] is True
    assert on_gpu["on_device"] < on_gpu["total"]


def test_a_checkpoint(cli, shared):
    result = cli("plan", shared / "checkpoints/python-9m", "--type", "q8_0", "--json")
    assert json.loads(result.out)["n_ctx"] == 2048


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["7b"], "none of the family: 1.3b, 5.7b-mqa, 6.7b, 33b, 7b-v1.5"),
        (["missing.gguf"], "no such file"),
        (["1.3b", "--ram", "lots"], "is not a size"),
        (["1.3b", "--type", "q3_9"], "unknown type 'q3_9'"),
        (["1.3b", "--n-ctx", "0"], "n_ctx is 0"),
        (["FOLDER"], "config.json: no such file"),
    ],
)
def test_mistakes(cli, tmp_path, args, message):
    result = cli("plan", *[tmp_path if arg == "FOLDER" else arg for arg in args])
    assert result.code == 2
    assert message in result.err
