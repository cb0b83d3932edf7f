"""`localcoder inspect`."""

from __future__ import annotations

import json

import gguf
import numpy as np
from click.testing import CliRunner
from tiny_model import write_tiny_model

from localcoder.cli.main import main


def test_json_agrees_with_the_gguf_package(tmp_path):
    path = write_tiny_model(tmp_path / "tiny.gguf", type_name="q4_0")
    result = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    reader = gguf.GGUFReader(path)
    assert found["version"] == 3
    assert [(t["name"], t["type"], t["shape"][::-1], t["bytes"]) for t in found["tensors"]] == [
        (t.name, t.tensor_type.name.lower(), t.shape.tolist(), t.n_bytes) for t in reader.tensors
    ]
    totals = found["totals"]
    assert totals["tensors"] == len(reader.tensors)
    assert totals["parameters"] == sum(t.n_elements for t in reader.tensors)
    assert totals["bytes"] == sum(t.n_bytes for t in reader.tensors)
    assert totals["bits_per_weight"] == 8 * totals["bytes"] / totals["parameters"]
    assert sum(entry["bytes"] for entry in found["types"].values()) == totals["bytes"]
    for key, value in found["metadata"].items():
        expected = reader.fields[key].contents()
        if isinstance(value, dict):
            assert value["length"] == len(expected)
            assert value["first"] == expected[: len(value["first"])]
        else:
            assert value == expected


def test_text(tmp_path):
    path = write_tiny_model(tmp_path / "tiny.gguf", type_name="q8_0")
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert any(line.split() == ["llama.block_count", "2"] for line in lines)
    assert any(line.startswith("blk.1.attn_k.weight") and "q8_0" in line and "32 × 64" in line for line in lines)
    assert "bits per weight" in lines[-1]
    assert max(map(len, lines)) < 200


def test_file_without_tensors(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for options in ([], ["--json"]):
        result = CliRunner().invoke(main, ["inspect", str(tmp_path / "vocabulary.gguf"), *options])
        assert result.exit_code == 0, result.output
        assert "llama" in result.stdout


def test_hostile_strings_cannot_drive_the_terminal(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "hostile.gguf", "llama")
    writer.add_name("\x1b]0;title\x07\u202e\x9b2J\r" + "x" * 10_000)
    writer.add_string("general.\x1b[2J", "y")
    writer.add_array("general.tags", ["\x1b[31m", "b", "c", "d", "e"])
    writer.add_float32("general.strange", float("nan"))
    writer.add_tensor("\x1b[1m.weight", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for options in ([], ["--json"]):
        result = CliRunner().invoke(main, ["inspect", str(tmp_path / "hostile.gguf"), *options])
        assert result.exit_code == 0, result.output
        assert all(c.isprintable() or c == "\n" for c in result.stdout)
    found = json.loads(result.stdout, parse_constant=refuse)
    assert found["metadata"]["general.strange"] == "nan"


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_what_is_no_gguf_file(tmp_path):
    (tmp_path / "text.gguf").write_text("a text that is long enough to be looked at")
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "text.gguf")])
    assert result.exit_code == 2
    assert "GGUF" in result.stderr
    assert len(result.stderr.splitlines()) == 1
