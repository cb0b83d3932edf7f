"""`localcoder pull` and `convert` of a repository, against a hub on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkpoints import load_tool
from hub_server import FakeHub, serve

pytest.importorskip("huggingface_hub")
TYPES = ("q4_0", "q8_0")


@dataclass
class Place:
    """A hub and an empty home. `run` gives exit code, stdout and stderr of a command."""

    hub: FakeHub
    home: Path
    run: Callable[..., tuple[int, str, str]]

    def files(self) -> list[str]:
        root = self.home / "models"
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    from tiny_model import write_tiny_model

    folder = tmp_path_factory.mktemp("repository")
    ggufs = {}
    for type_name in TYPES:
        path = write_tiny_model(folder / f"{type_name}.gguf", type_name=type_name)
        ggufs[f"tiny-1.3b.{type_name.upper()}.gguf"] = path.read_bytes()
    tool = load_tool("make_checkpoint")
    config = tool.make_config(hidden=64, layers=2, heads=4, kv_heads=2, ff=96, vocab=400)
    tool.write_tokenizer(folder / "checkpoint", 300)
    tool.write_checkpoint(folder / "checkpoint", config, shard_bytes=100_000)
    checkpoint = {path.name: path.read_bytes() for path in (folder / "checkpoint").iterdir()}
    assert len([name for name in checkpoint if name.endswith(".safetensors")]) > 1
    return {
        "owner/tiny-GGUF": ggufs,
        "owner/one": {"m.Q8_0.gguf": ggufs["tiny-1.3b.Q8_0.gguf"], "README.md": b"hello"},
        "owner/split": {"m-q8_0-00001-of-00002.gguf": b"x"},
        "owner/nothing": {"README.md": b"hello"},
        "deepseek-ai/deepseek-coder-1.3b-base": {**checkpoint, "train.py": b"evil()", "sub/x.safetensors": b"x"},
    }


@pytest.fixture
def place(repositories, tmp_path, start) -> Iterator[Place]:
    with serve(repositories) as hub:

        def run(*args: object, **more: str) -> tuple[int, str, str]:
            env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HTTP"))}
            env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "LOCALCODER_HOME": str(tmp_path / "home")}
            env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", **more}
            process = start(*args, env=env)
            out, err = process.communicate(timeout=60)
            return process.returncode, out.decode(), err.decode()

        yield Place(hub, tmp_path / "home", run)


def is_one_error(result: tuple[int, str, str], message: str) -> bool:
    code, out, err = result
    return code == 2 and out == "" and err.startswith("localcoder: error: ") and err.count("\n") == 1 and message in err


def test_a_gguf_file_by_type(place, repositories):
    code, out, err = place.run("pull", "owner/tiny-GGUF:Q4_0")
    assert (code, out) == (0, ""), err
    assert place.files() == ["owner/tiny-GGUF/q4_0.gguf"]
    data = (place.home / "models" / "owner/tiny-GGUF/q4_0.gguf").read_bytes()
    assert data == repositories["owner/tiny-GGUF"]["tiny-1.3b.Q4_0.gguf"]
    n_requests = len(place.hub.requests)
    code, _, err = place.run("pull", "owner/tiny-GGUF:q4_0")
    assert (code, "is here already" in err, len(place.hub.requests)) == (0, True, n_requests)
    assert "owner/tiny-GGUF:q4_0" in place.run("list")[1]
    code, out, err = place.run("run", "owner/tiny-GGUF", "ab", "--max-tokens", "3")
    assert (code, err) == (0, "")
    assert out
    assert place.run("rm", "owner/tiny-GGUF")[0] == 0
    assert place.files() == []


def test_the_only_gguf_file_needs_no_type(place):
    assert place.run("pull", "owner/one")[0] == 0
    assert place.files() == ["owner/one/q8_0.gguf"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/tiny-GGUF", "owner/tiny-GGUF: has several GGUF files; name one of these"),
        ("owner/tiny-GGUF:q2_k", "of the type q2_k; name one of these, as in owner/tiny-GGUF:TYPE: q4_0, q8_0"),
        ("owner/split", "is one part of several"),
        ("owner/nothing", "holds neither a GGUF file nor a checkpoint"),
        ("owner/missing", "owner/missing: no such repository at http://127.0.0.1"),
        ("deepseek-coder:1.3b-base:q9_9", "unknown type 'q9_9'"),
        ("nonsense", "'nonsense' names no model"),
    ],
)  # fmt: skip
def test_what_cannot_be_fetched(place, name, message):
    assert is_one_error(place.run("pull", name), message)
    assert place.files() == []
    assert not any("/resolve/" in path for path in place.hub.paths())


def test_a_gated_repository(place):
    place.hub.gated.add("owner/one")
    result = place.run("pull", "owner/one")
    assert is_one_error(result, f"accept its terms at {place.hub.url}/owner/one, then log in with `hf auth login`")
    assert place.files() == []


def test_a_broken_connection_is_taken_up_again(place, repositories):
    size = len(repositories["owner/one"]["m.Q8_0.gguf"])
    place.hub.cut_after = size // 2 + 1
    assert place.run("pull", "owner/one")[0] == 0
    data = (place.home / "models" / "owner/one/q8_0.gguf").read_bytes()
    assert data == repositories["owner/one"]["m.Q8_0.gguf"]
    asked = [wanted for _, path, wanted in place.hub.requests if "/resolve/" in path]
    assert asked == [None, f"bytes={size // 2 + 1}-"]


def test_an_interrupted_download_goes_on_in_the_next_call(place, repositories):
    size = len(repositories["owner/one"]["m.Q8_0.gguf"])
    place.hub.cut_after, place.hub.refuse_ranges = size // 3, 404
    assert place.run("pull", "owner/one")[0] == 2
    (left,) = place.files()
    assert left.endswith(".part")
    assert "owner/one" not in place.run("list")[1]
    place.hub.cut_after = place.hub.refuse_ranges = None
    assert place.run("pull", "owner/one")[0] == 0
    assert place.hub.requests[-1][2] == f"bytes={size // 3}-"
    data = (place.home / "models" / "owner/one/q8_0.gguf").read_bytes()
    assert data == repositories["owner/one"]["m.Q8_0.gguf"]
    assert place.files() == ["owner/one/q8_0.gguf"]


def test_other_bytes_than_announced(place):
    place.hub.corrupt.add("m.Q8_0.gguf")
    assert is_one_error(place.run("pull", "owner/one"), "m.Q8_0.gguf: what came has the hash ")
    assert place.files() == []


def test_offline(place):
    for name in ("owner/one", "deepseek-coder:1.3b-base"):
        result = place.run("pull", name, HF_HUB_OFFLINE="1")
        assert is_one_error(result, "not on this machine, and offline mode is on (HF_HUB_OFFLINE)")
    assert place.hub.requests == []


def test_no_hub_at_that_address(place):
    result = place.run("pull", "owner/one", HF_ENDPOINT="http://127.0.0.1:9")
    assert is_one_error(result, "owner/one: the connection to http://127.0.0.1:9 fails")


def test_a_checkpoint_is_fetched_and_converted(place, repositories):
    code, _, err = place.run("pull", "deepseek-coder:1.3b-base:q4_0")
    assert code == 0, err
    folder = "deepseek-ai/deepseek-coder-1.3b-base"
    fetched = {name for name in place.files() if "/checkpoint/" in name}
    wanted = {name for name in repositories[folder] if not name.endswith((".py", "x.safetensors"))}
    assert fetched == {f"{folder}/checkpoint/{name}" for name in wanted}
    for name in fetched:
        assert (place.home / "models" / name).read_bytes() == repositories[folder][name.rpartition("/")[2]]
    assert set(place.files()) - fetched == {f"{folder}/q4_0.gguf"}
    code, out, err = place.run("inspect", "deepseek-coder:1.3b-base", "--json")
    assert (code, err) == (0, "")
    assert '"q4_0"' in out
    # Another type needs no network; its name is what the pulled file would have.
    place.hub.requests.clear()
    assert place.run("convert", "deepseek-coder:1.3b-base", HF_HUB_OFFLINE="1")[0] == 0
    assert place.hub.requests == []
    assert f"{folder}/q8_0.gguf" in place.files()


def test_convert_fetches_what_is_not_here(place, tmp_path):
    out = tmp_path / "out.gguf"
    code, _, err = place.run("convert", "deepseek-ai/deepseek-coder-1.3b-base", out, "--type", "q8_0")
    assert code == 0, err
    assert out.exists()
    assert place.run("run", out, "ab", "--max-tokens", "2")[0] == 0


def test_a_damaged_shard_of_a_checkpoint(place, repositories):
    shards = [name for name in repositories["deepseek-ai/deepseek-coder-1.3b-base"] if "-00002-of-" in name]
    place.hub.corrupt.update(shards)
    assert is_one_error(place.run("pull", "deepseek-coder:1.3b-base"), f"{shards[0]}: what came has the hash ")
    place.hub.corrupt.clear()
    place.hub.requests.clear()
    assert place.run("pull", "deepseek-coder:1.3b-base:q8_0")[0] == 0
    assert not any("-00001-of-" in path for path in place.hub.paths()), "what was right was fetched again"


def test_without_the_library(place, tmp_path, start):
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError\n")
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    result = place.run("pull", "owner/one", PYTHONPATH=path)
    assert is_one_error(result, "needs huggingface_hub; install it, or localcoder's extra `hub`")
