"""Names of models and the folder that they are kept in."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcoder.coder import Coder, embedded_model
from localcoder.errors import FileError, OptionError
from localcoder.store.folder import find_model, find_stored, home, path_of, remove, stored_models
from localcoder.store.names import SHORT_NAMES, ModelName, parse_name, require_name


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LOCALCODER_HOME", str(tmp_path))
    return tmp_path / "models"


def put(path: Path, n_bytes: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * n_bytes)
    return path


@pytest.mark.parametrize("short", SHORT_NAMES)
def test_short_names_are_published_repositories(short):
    name = require_name(f"{short}:Q4_K_M")
    assert name == ModelName(SHORT_NAMES[short], "q4_k_m")
    assert str(name) == f"{short}:q4_k_m"
    assert require_name(short) == ModelName(SHORT_NAMES[short])


def test_short_names_cover_the_family():
    from localcoder.convert.family import FAMILY

    sizes = {name.split(":")[1].split("-")[0].removesuffix("mqa") for name in SHORT_NAMES}
    assert sizes == {member.split("-")[0] for member in FAMILY}


@pytest.mark.parametrize(
    "text",
    ["", "a", "a/b/c", "../b", "a/..", "/a", "a/b:", "a/b:c:d", "a/b:c/d", "a b/c", "deepseek-coder:99b", "a/b\n"],
)
def test_what_is_no_name(text):
    assert parse_name(text) is None
    with pytest.raises(OptionError, match="names no model"):
        require_name(text)


def test_models_are_found_by_name(folder, tmp_path):
    own = put(folder / "mine.gguf")
    one = put(folder / "owner" / "one" / "q8_0.gguf")
    put(folder / "owner" / "one" / "checkpoint" / "config.json", 7)
    several = put(folder / "deepseek-ai" / "deepseek-coder-1.3b-base" / "q4_0.gguf")
    put(folder / "deepseek-ai" / "deepseek-coder-1.3b-base" / "q6_k.gguf")
    put(folder / "owner" / "one" / ".q4_0.gguf.0123.part")
    assert {model.name: model.n_bytes for model in stored_models()} == {
        "mine": 3,
        "owner/one:q8_0": 3,
        "owner/one:checkpoint": 7,
        "deepseek-coder:1.3b-base:q4_0": 3,
        "deepseek-coder:1.3b-base:q6_k": 3,
    }
    for model in stored_models():
        assert find_stored(model.name) == model
    assert find_model("mine") == own
    assert find_model("owner/one") == one
    assert find_model("deepseek-coder:1.3b-base:q4_0") == several
    with pytest.raises(OptionError, match="more than one type; name one: q4_0, q6_k"):
        find_model("deepseek-coder:1.3b-base")
    with pytest.raises(FileError, match="`localcoder pull owner/two` fetches it"):
        find_model("owner/two")
    with pytest.raises(FileError, match="`localcoder list`"):
        find_model("../mine")
    with pytest.raises(FileError):
        find_model("owner/one:checkpoint")  # no file that runs


def test_a_path_comes_before_a_name(folder, tmp_path, monkeypatch):
    put(folder / "owner" / "one" / "q8_0.gguf")
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "owner" / "one")
    assert find_model("owner/one") == Path("owner/one")
    assert find_model("missing.gguf") == Path("missing.gguf")


def test_a_coder_takes_a_name(folder):
    with embedded_model() as path:
        put(folder / "owner" / "one" / "q4_0.gguf").write_bytes(path.read_bytes())
    with Coder("owner/one") as coder:
        assert coder.path == folder / "owner" / "one" / "q4_0.gguf"
    with pytest.raises(FileError, match="`localcoder pull owner/two` fetches it"):
        Coder("owner/two")


def test_removing(folder):
    put(folder / "owner" / "one" / "q8_0.gguf")
    put(folder / "owner" / "one" / "checkpoint" / "config.json")
    remove(find_stored("owner/one"))
    assert [model.name for model in stored_models()] == ["owner/one:checkpoint"]
    remove(find_stored("owner/one"))
    assert list(folder.iterdir()) == []


def test_the_home_is_the_platforms_or_the_users(monkeypatch, tmp_path):
    import platformdirs

    monkeypatch.delenv("LOCALCODER_HOME")
    assert home() == platformdirs.user_data_path("localcoder", appauthor=False)
    monkeypatch.setenv("LOCALCODER_HOME", str(put(tmp_path / "file")))
    with pytest.raises(FileError, match="no folder"):
        home()
    monkeypatch.setenv("LOCALCODER_HOME", str(tmp_path / "new"))
    assert path_of(ModelName("a/b", "q8_0")) == tmp_path / "new" / "models" / "a" / "b" / "q8_0.gguf"
    assert stored_models() == []
