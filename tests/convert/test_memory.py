"""Memory does not grow with the model."""

from __future__ import annotations

import sys

import pytest
from checkpoints import load_tool

psutil = pytest.importorskip("psutil")

MEASURE = """
import pathlib, resource, sys
from localcoder.convert.converter import convert
from localcoder.backends.select import open_backend
from localcoder.convert.recipes import recipe_by_name
from localcoder.convert.choice import Choice
convert(sys.argv[1], sys.argv[2], Choice(recipe_by_name("q4_0")), requantize=open_backend().requantize)
# Linux carries ru_maxrss over from the process that started this one, so there the map's own high-water mark is read.
status = pathlib.Path("/proc/self/status")
if status.exists():
    print(next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_peak_memory_is_bounded(tmp_path):
    """The family's vocabulary and width; the embedding alone is four times a slice."""
    import subprocess

    tool = load_tool("make_checkpoint")
    config = tool.make_config(**tool.SHAPES["1.3b"] | {"layers": 1})
    tool.add_tokenizer(tmp_path / "source", config["vocab_size"])
    tool.write_checkpoint(tmp_path / "source", config)
    mapped = sum(path.stat().st_size for path in (tmp_path / "source").glob("*.safetensors"))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "source"), str(tmp_path / "out.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) - mapped < 0.75 * 2**30  # half of what is promised, whatever the number of layers
