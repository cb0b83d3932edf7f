"""Every command on input of every kind: it works, or says in one line why not. Never a traceback."""

from __future__ import annotations

import io
import re
import sys

import pytest

from localcoder.cli.main import COMMANDS
from localcoder.coder import embedded_model

QUICK = ("--max-tokens", "2", "--n-ctx", "512")
# Each command with FILE where a file of a user goes, MODEL for a model, OUT for a name to write to.
LINES: dict[str, list[str]] = {
    "run": ["run", "-m", "FILE", "x = ", *QUICK],
    "run, in a pipe": ["run", "-m", "MODEL", *QUICK],
    "complete": ["complete", "-m", "MODEL", "FILE:1", *QUICK],
    "edit": ["edit", "-m", "MODEL", "FILE", "Rename x", "--yes", *QUICK],
    "explain": ["explain", "-m", "MODEL", "FILE", *QUICK],
    "test": ["test", "-m", "MODEL", "FILE", *QUICK],
    "review": ["review", "-m", "MODEL", *QUICK],
    "pull": ["pull", "FILE"],
    "list": ["list"],
    "rm": ["rm", "FILE"],
    "config": ["config"],
    "convert": ["convert", "FILE", "OUT"],
    "quantize": ["quantize", "FILE", "OUT", "q8_0"],
    "doctor": ["doctor", "FILE"],
    "inspect": ["inspect", "FILE"],
    "tokenize": ["tokenize", "-m", "MODEL", "--file", "FILE", "--ids"],
    "imatrix": ["imatrix", "MODEL", "--file", "FILE", "-o", "OUT", "--n-ctx", "16", "--chunks", "1"],
    "perplexity": ["perplexity", "FILE", "--file", "FILE"],
    "eval": ["eval", "humaneval", "--data", "FILE", "--completions", "canonical"],
    "compare": ["compare", "MODEL", "FILE"],
    "plan": ["plan", "FILE"],
    "bench": ["bench", "FILE", "-p", "4", "-n", "1", "-r", "1"],
    "devices": ["devices"],
}
CODE = b"def f(x):\n    return x\n"
KINDS: dict[str, bytes | None] = {
    "missing": None,
    "directory": None,
    "binary": bytes(range(256)) * 40,
    "empty": b"",
    "crlf": CODE.replace(b"\n", b"\r\n") + "# ä\r\n".encode(),
    "large": CODE * 48_000,  # 1 MB
}


@pytest.fixture(scope="module")
def model():
    with embedded_model() as path:
        yield path


def test_every_command_is_here():
    assert {line[0] for line in LINES.values()} == set(COMMANDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LINES)
def test_it_works_or_says_why_not(cli, model, tmp_path, monkeypatch, name, kind):
    monkeypatch.setenv("LOCALCODER_BACKEND", "numpy")
    file, data = tmp_path / f"{kind}.py", KINDS[kind]
    if data is not None:
        file.write_bytes(data)
    elif kind == "directory":
        file.mkdir()
    out = tmp_path / "out.gguf"
    names = {"FILE": str(file), "MODEL": str(model), "OUT": str(out)}
    words = [re.sub("FILE|MODEL|OUT", lambda match: names[match[0]], word) for word in LINES[name]]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data or b"")))
    result = cli(*words)
    assert result.code in (0, 1, 2), result.err
    assert "Traceback" not in result.err
    if result.code == 2:
        assert re.fullmatch(r"(localcoder: note: [^\n]*\n)*localcoder: error: [^\n]+\n", result.err), result.err
        assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "something half-written is left"
    if data is not None:
        assert file.read_bytes() == data


def test_what_works_on_the_embedded_model(cli, tmp_path, monkeypatch):
    """The same commands, on input that they are made for."""
    file = tmp_path / "a.py"
    file.write_bytes(CODE)
    diff = b"--- a\n+++ b\n@@ -1 +1 @@\n-x\n+y\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(diff)))
    with embedded_model() as model:
        for line in (
            ["run", "x = ", *QUICK],
            ["complete", f"{file}:1", *QUICK],
            ["explain", file, *QUICK],
            ["test", file, *QUICK],
            ["review", *QUICK],
            ["tokenize", "x"],
            ["inspect", model],
            ["doctor", model],
            ["plan", model],
            ["list"],
            ["config"],
        ):
            result = cli(*line)
            assert result.code == 0, (line, result.err)
            assert "Traceback" not in result.err
