"""Sessions on the disk: what another process gets back, and files that are something else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from tiny_model import write_tiny_model

from localcoder import Coder
from localcoder.errors import ContextLengthError, FileError, OptionError

PROMPT = "def area(r):\n    return " * 6


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", scale=3.0, head_dim=32)


@pytest.fixture
def saved(path, tmp_path):
    with Coder(path) as coder:
        coder.complete(PROMPT, max_tokens=3)
        coder.save_session(tmp_path / "saved.lcs")
    return tmp_path / "saved.lcs"


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_what_was_computed_is_not_computed_again(path, tmp_path, kv_type):
    with Coder(path, kv_type=kv_type) as coder:
        coder.complete(PROMPT, max_tokens=3)
        coder.save_session(tmp_path / "saved")
        expected = coder.complete(PROMPT, max_tokens=20)
    with Coder(path, kv_type=kv_type, n_ctx=200) as coder:
        coder.load_session(tmp_path / "saved")
        done = coder.generate(PROMPT, max_tokens=20)
    assert done.text == expected
    assert done.timings.n_prefill == 1
    with safe_open(tmp_path / "saved", "np") as file:  # the library reads it, too
        assert set(file.keys()) == {"model", "tokens", "pages", "digest"}
        assert file.get_tensor("tokens").tolist()[: len(PROMPT)] == coder.tokenize(PROMPT)[: len(PROMPT)]


def test_a_session_of_another_model_or_cache_is_refused(path, saved, tmp_path):
    other = write_tiny_model(tmp_path / "other.gguf", scale=3.0, head_dim=32, seed=1)
    with Coder(other) as coder, pytest.raises(FileError, match=r"saved\.lcs: a session of another model"):
        coder.load_session(saved)
    with Coder(path, kv_type="q8_0") as coder, pytest.raises(FileError, match="another type of KV cache"):
        coder.load_session(saved)


def test_one_that_does_not_fit(path, saved):
    with Coder(path, n_ctx=64) as coder:
        n_free = coder.engine._kv.n_free_pages
        with pytest.raises(ContextLengthError, match="do not fit in a context of 64"):
            coder.load_session(saved)
        assert coder.engine._kv.n_free_pages == n_free


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9, 0.9999])
def test_a_damaged_file_is_found_out(path, saved, at):
    data = bytearray(saved.read_bytes())
    data[int(len(data) * at)] ^= 1
    saved.write_bytes(data)
    with Coder(path) as coder, pytest.raises(FileError, match="damaged"):
        coder.load_session(saved)


@pytest.mark.parametrize("n", [0, 7, 100, -1])
def test_a_file_that_ends_too_early(path, saved, n):
    saved.write_bytes(saved.read_bytes()[:n])
    with Coder(path) as coder, pytest.raises(FileError, match="no saved session"):
        coder.load_session(saved)


def test_parts_that_do_not_belong_together(path, saved):
    from safetensors.numpy import load_file, save_file

    parts = load_file(saved)
    for change in (
        {"tokens": np.zeros((3, 3), np.int32)},
        {"tokens": np.zeros(9, np.int64)},
        {"pages": parts["pages"][:1]},
        {"digest": np.zeros(31, np.uint8)},
        {"more": np.zeros(1, np.uint8)},
    ):
        save_file({**parts, **change}, saved)
        with Coder(path) as coder, pytest.raises(FileError):
            coder.load_session(saved)


def test_nothing_to_save_and_nothing_to_load(path, tmp_path):
    with Coder(path) as coder:
        with pytest.raises(OptionError, match="nothing was computed yet"):
            coder.save_session(tmp_path / "saved")
        with pytest.raises(FileError, match="no such file"):
            coder.load_session(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_from_the_command_line(path, tmp_path, capsys):
    from localcoder.cli.main import main

    answers = []
    for _ in range(2):
        with pytest.raises(SystemExit) as exit_:
            main(["run", str(path), PROMPT, "--max-tokens", "4", "--json", "--session", str(tmp_path / "s")])
        assert not exit_.value.code
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["text"] == answers[1]["text"]
    assert answers[0]["timings"]["n_prefill"] > 100
    assert answers[1]["timings"]["n_prefill"] == 1
