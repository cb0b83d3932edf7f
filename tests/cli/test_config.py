"""`localcoder config` and what it does to other commands; `list` and `rm`."""

from __future__ import annotations

import json
import re

import pytest

from localcoder.cli.settings import KEYS


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALCODER_HOME", str(tmp_path))
    return tmp_path


def test_without_a_file(cli, home):
    result = cli("config")
    assert result.code == 0
    assert result.out.startswith(f"# {home / 'config.toml'} (not there yet)\n")
    assert json.loads(cli("config", "--json").out) == {
        "file": str(home / "config.toml"),
        "exists": False,
        "settings": {},
    }


def test_what_is_printed_is_such_a_file(cli, home):
    settings = {"n_ctx": 64, "temperature": 0.5, "stop": ['a"\n'], "speculate": False, "system": "Ω"}
    path = home / "config.toml"
    path.write_text(
        "\n".join(f"{k} = {json.dumps(v)}" for k, v in settings.items()) + '\n[prompts]\nreview = "X {diff}"\n'
    )
    printed = cli("config").out
    settings["prompts"] = {"review": "X {diff}"}
    assert json.loads(cli("config", "--json").out)["settings"] == settings
    for key in KEYS:
        assert re.search(rf"^(# )?{key} =", printed, re.M), key
    path.write_text(printed, encoding="utf-8")
    assert json.loads(cli("config", "--json").out)["settings"] == settings
    path.write_text(re.sub(r"^# (\w+ = .)", r"\1", printed, flags=re.M), encoding="utf-8")
    assert cli("config").code == 0, "a default that is shown is not a value that may stand there"


def test_defaults_count_after_options_and_environment(cli, home, model, monkeypatch):
    (home / "config.toml").write_text(f"model = {json.dumps(str(model))}\nmax_tokens = 3\nsamplers = ['top_k']\n")

    def n_tokens(*args):
        result = cli("run", "ab", "--json", *args)
        assert result.code == 0, result.err
        return json.loads(result.out)["n_tokens"], json.loads(result.out)["model"]

    assert n_tokens() == (3, str(model))
    assert n_tokens("--max-tokens", 2) == (2, str(model))
    monkeypatch.setenv("LOCALCODER_MODEL", "missing.gguf")
    assert "missing.gguf" in cli("run", "ab").err
    monkeypatch.delenv("LOCALCODER_MODEL")
    (home / "models").mkdir()
    (home / "models" / "mine.gguf").write_bytes(model.read_bytes())
    (home / "config.toml").write_text('model = "mine"\nmax_tokens = 3\n')
    assert n_tokens() == (3, str(home / "models" / "mine.gguf"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temprature = 1", "unknown key 'temprature'; known: model, threads,"),
        ("seed = 1", "unknown key 'seed'"),
        ("temperature = 'hot'", "temperature is 'hot'; expected a number"),
        ("temperature = 1000", "temperature is 1000; expected a number from 0 to 100"),
        ("stop = 'x'", "stop is 'x'; expected a list of texts"),
        ("samplers = ['nonsense']", "samplers is ['nonsense']; expected some of"),
        ("threads = true", "threads is True; expected a whole number"),
        ("model = 1", "model is 1; expected a text"),
        ("gpu_layers = 'many'", "gpu_layers is 'many'; expected a number of layers, or 'auto'"),
        ("kv_type = 'f64'", "kv_type is 'f64'; expected one of f16"),
        ("[prompts]\nfrobnicate = 'x'", "unknown key 'prompts.frobnicate'; known: edit, explain, test, review"),
        ("[prompts]\nreview = 'no field'", "prompts.review: lacks the field {diff}"),
        ("[prompts]\nreview = '{diff} {code}'", "prompts.review: has the field {code}; known: {diff}"),
        ("prompts = 1", "prompts is 1; expected a table"),
        ("[run]\nx = 1", "unknown key 'run'"),
        ("a = ", "no valid TOML: "),
        ("x = " + "[" * 5000, "no valid TOML: "),
    ],
)
def test_a_mistake_in_the_file(cli, home, model, text, message):
    (home / "config.toml").write_text(text)
    for args in (["config"], ["run", model, "ab"]):
        result = cli(*args)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(f"localcoder: error: {home / 'config.toml'}: ")
        assert message in result.err
        assert result.err.count("\n") == 1
    assert cli("run", "--help").code == 0


def test_a_file_that_is_no_text(cli, home):
    (home / "config.toml").write_bytes(b"\xff\x00")
    assert "not UTF-8 text" in cli("config").err
    (home / "config.toml").unlink()
    (home / "config.toml").mkdir()
    assert cli("config").code == 2


def test_list_and_rm(cli, home, model):
    assert cli("list").out == ""
    assert str(home / "models") in cli("list").err
    (home / "models" / "owner" / "name").mkdir(parents=True)
    (home / "models" / "owner" / "name" / "q8_0.gguf").write_bytes(model.read_bytes())
    (home / "models" / "mine.gguf").write_bytes(b"x")
    assert [line.split()[0] for line in cli("list").out.splitlines()] == ["mine", "owner/name:q8_0"]
    listed = json.loads(cli("list", "--json").out)
    assert listed["models"][0] == {"name": "mine", "file": str(home / "models" / "mine.gguf"), "bytes": 1}
    assert cli("inspect", "owner/name").code == 0
    result = cli("rm", "mine", "missing")
    assert (result.code, "missing: no model of this name" in result.err) == (2, True)
    assert (home / "models" / "mine.gguf").exists()
    assert cli("rm", "mine", "owner/name:q8_0").code == 0
    assert list((home / "models").iterdir()) == []
    for outside in ("..", "../x", "/etc/passwd"):
        assert cli("rm", outside).code == 2


def test_every_command_that_runs_a_model_takes_a_name(cli, home, model, tmp_path):
    (home / "models").mkdir()
    (home / "models" / "mine.gguf").write_bytes(model.read_bytes())
    text = tmp_path / "text.txt"
    text.write_text("word " * 100)
    for args in (
        ["run", "-m", "mine", "ab", "--max-tokens", 1],
        ["tokenize", "-m", "mine", "ab"],
        ["inspect", "mine"],
        ["doctor", "mine"],
        ["plan", "mine"],
        ["compare", "mine", "mine"],
        ["bench", "mine", "-p", 4, "-n", 2, "-r", 1],
        ["perplexity", "mine", "--file", text, "--n-ctx", 64],
        ["imatrix", "mine", "--file", text, "--n-ctx", 64, "--chunks", 1, "-o", tmp_path / "out.imatrix"],
        ["quantize", "mine", tmp_path / "out.gguf", "q8_0"],
    ):
        result = cli(*args)
        assert result.code == 0, (args, result.err)
    assert "no such file, and no model" in cli("run", "-m", "yours", "ab").err
