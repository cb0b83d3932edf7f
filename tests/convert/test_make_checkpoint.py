"""tools/make_checkpoint.py: what it makes is what it says, and can be run."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from checkpoints import load_tool
from click.testing import CliRunner

from localcoder.backends.reference import ReferenceBackend
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine
from localcoder.quants.registry import BY_NAME

tool = load_tool("make_checkpoint")
SMALL = shlex.split("--hidden 256 --layers 2 --heads 4 --kv-heads 2 --ff 512 --vocab 400 --ctx 64")


@pytest.mark.parametrize("type_name", BY_NAME)
def test_random_files_of_every_type_run(tmp_path, monkeypatch, type_name):
    monkeypatch.setattr(tool, "POOL_VALUES", 1 << 20)
    path = tmp_path / "random.gguf"
    result = CliRunner().invoke(tool.main, [str(path), "--type", type_name, *SMALL])
    assert result.exit_code == 0, result.output
    with GGUFFile.open(path) as file:
        assert file.tensors["blk.0.ffn_gate.weight"].qtype.name == type_name
        engine = Engine(file, ReferenceBackend())
        ids = np.arange(20, dtype=np.int32)
        logits = engine.evaluate([Chunk(engine.new_sequence(), ids, len(ids))])
        engine.close()
    assert np.isfinite(logits).all()
    assert 0.5 < logits.std() < 20  # as decided as a trained model


@pytest.mark.parametrize("options", [["--new-config"], ["--format", "bin"], ["--tied", "--shard-gb", "0.001"]])
def test_checkpoints_open_in_transformers(tmp_path, options):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    result = CliRunner().invoke(tool.main, [str(tmp_path), *SMALL, *options])
    assert result.exit_code == 0, result.output
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.rope_parameters["factor"] == 4.0
    assert len(list(tmp_path.glob("*-of-*"))) > 1 or "--shard-gb" not in options
    with torch.no_grad():
        logits = model(torch.arange(20)[None]).logits
    assert torch.isfinite(logits).all()


def test_family_shapes(shared):
    import json

    for name, dims in tool.SHAPES.items():
        theirs = json.loads((shared / "deepseek-coder" / "configs" / f"{name}.json").read_text())
        ours = tool.make_config(**dims)
        assert {key: theirs[key] for key in ours} == ours
