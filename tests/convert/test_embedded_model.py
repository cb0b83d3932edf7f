"""The model in the package is what its tool makes of the trained checkpoint."""

from __future__ import annotations

from checkpoints import load_tool
from click.testing import CliRunner


def test_the_tool_makes_the_file_in_the_package(tmp_path, shared):
    tool = load_tool("make_embedded_model")
    source = shared / "checkpoints" / "python-9m"
    result = CliRunner().invoke(tool.main, [str(source), "--out", str(tmp_path / "python-9m.gguf")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "python-9m.gguf").read_bytes() == tool.TARGET.read_bytes()
