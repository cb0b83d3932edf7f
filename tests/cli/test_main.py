"""The command itself: help, version, and that every mistake is one line and exit code 2."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest

from localcoder.cli.main import COMMANDS


def test_the_help_of_the_list_is_that_of_each_command():
    for name, text in COMMANDS.items():
        command = getattr(importlib.import_module(f"localcoder.cli.{name}"), name)
        assert command.help.split("\n\n")[0].replace("\n", " ") == text, name


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(cli, flag):
    result = cli(flag)
    assert result.code == 0
    for name, text in COMMANDS.items():
        assert f"{name} {text}" in " ".join(result.out.split())
        assert f"localcoder {name}" in cli(name, flag).out


def test_version(cli):
    assert re.fullmatch(r"localcoder \d\S*\n", cli("--version").out)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['localcoder', '--help']\n"
        "try: runpy.run_module('localcoder', run_name='__main__')\n"
        "except SystemExit: print(sorted({'numpy', 'numba', 'tokenizers', 'rich', 'gguf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


def is_one_error(result) -> bool:
    return (
        result.code == 2 and result.out == "" and re.fullmatch(r"localcoder: error: [^\n]+\n", result.err) is not None
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["run", "--nonsense"], "No such option"),
        (["run", "a", "b"], "one prompt expected, 2 given"),
        (["run", "--top-k", "many", "x"], "'many' is not a valid integer"),
        (["run", "MODEL", "x", "--top-p", "1.5"], "top_p is 1.5; expected a number from 0 to 1"),
        (["run", "MODEL", "x", "--temperature", "nan"], "temperature is nan"),
        (["run", "MODEL", "x", "--max-tokens", "0"], "max_tokens is 0"),
        (["run", "MODEL", "x", "--stop", ""], "stop is"),
        (["run", "MODEL", "x", "--threads", "0"], "threads is 0; expected 1 to"),
        (["run", "MODEL", "x", "--device", "abacus"], "unknown device 'abacus'"),
        (["run", "MODEL", "x", "--n-ctx", "0"], "n_ctx is 0"),
        (["run", "MODEL", "x" * 300], "301 tokens do not fit in a context of 256"),
        (["run", "MODEL", ""], "the prompt is empty"),
        (["run", "-m", "missing.gguf", "x"], "missing.gguf"),
        (["run", "-m", "FOLDER", "x"], "folder"),
        (["run", "-m", "BINARY", "x"], "binary.bin"),
        (["run", "-m", "EMPTY", "x"], "empty.txt"),
        (["perplexity", "MODEL"], "Missing option '--file'"),
        (["perplexity", "MODEL", "--file", "missing.txt"], "missing.txt"),
        (["perplexity", "MODEL", "--file", "FOLDER"], "directory"),
        (["perplexity", "MODEL", "--file", "BINARY", "--n-ctx", "64"], "not UTF-8 text (byte 0xff at 0)"),
        (["perplexity", "MODEL", "--file", "EMPTY", "--n-ctx", "64"], "one chunk takes 64"),
        (["perplexity", "MODEL", "--file", "TEXT", "--n-ctx", "2"], "n_ctx is 2; expected at least 4"),
        (["perplexity", "BINARY", "--file", "TEXT"], "binary.bin"),
        (["bench", "MODEL", "-p", "0", "-n", "0"], "nothing to measure"),
        (["bench", "MODEL", "-p", "-1"], "p is -1"),
        (["bench", "MODEL", "-p", "4", "-n", "0", "-r", "0"], "0 repetitions"),
        (["bench", "missing.gguf"], "missing.gguf"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(cli, model, tmp_path, args, message):
    (tmp_path / "binary.bin").write_bytes(b"\xff\x00\x01" * 50)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "text.txt").write_text("word " * 100)
    names = {
        "MODEL": model,
        "FOLDER": tmp_path,
        "BINARY": tmp_path / "binary.bin",
        "EMPTY": tmp_path / "empty.txt",
        "TEXT": tmp_path / "text.txt",
    }
    result = cli(*(names.get(arg, arg) for arg in args))
    assert is_one_error(result), result
    assert message in result.err


def test_a_message_cannot_drive_the_terminal(cli):
    result = cli("run", "-m", "a\x1b[2J\nb.gguf", "x")
    assert is_one_error(result)
    assert "\x1b" not in result.err


def test_a_file_that_may_not_be_read(cli, model, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", "secret.gguf")

    monkeypatch.setattr("localcoder.coder.Coder", refuse)
    result = cli("run", model, "x")
    assert is_one_error(result)
    assert "secret.gguf: Permission denied" in result.err


def test_too_little_memory(cli, model, monkeypatch):
    def refuse(*args, **options):
        raise MemoryError

    monkeypatch.setattr("localcoder.coder.Coder", refuse)
    assert "out of memory" in cli("run", model, "x").err
