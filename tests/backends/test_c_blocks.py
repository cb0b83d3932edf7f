"""csrc/blocks.h is what the table of formats generates; the C core agrees with the lowering's numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from localcoder.backends.c import lowering
from localcoder.backends.c.library import ABI_VERSION, availability, load

ROOT = Path(__file__).resolve().parents[2]


def test_blocks_header_is_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "tools" / "gen_blocks.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run: python tools/gen_blocks.py"


def test_header_states_the_interface_number():
    assert f"LC_ABI_VERSION = {ABI_VERSION} " in (ROOT / "csrc" / "localcoder.h").read_text(encoding="utf-8")


@pytest.mark.skipif(availability() is not None, reason=str(availability()))
def test_enums_match_the_header():
    lib = load().lib
    for kind in lowering.Kind:
        assert getattr(lib, f"LC_OP_{kind.name}") == kind
    assert lib.LC_STORE == lowering.Epilogue.STORE
    assert lib.LC_ADD_RESIDUAL == lowering.Epilogue.ADD_RESIDUAL
    assert lib.LC_APPLY_SILU_MUL == lowering.Epilogue.SILU_MUL
    assert lib.LC_MAX_WEIGHTS == lowering.MAX_WEIGHTS
