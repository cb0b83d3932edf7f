"""Kernels that numba compiles for cards: in its simulator, which a process is in from its start or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from localcoder.backends import numba_cuda, select
from localcoder.backends.cuda import cards
from localcoder.errors import BackendError
from localcoder.quants import ALL


def test_the_simulated_kernels_agree_with_the_reference():
    """And `auto` takes them where NVRTC cannot be had."""
    script = Path(__file__).with_name("numba_cuda_simulated.py")
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    environment.pop("LOCALCODER_BACKEND", None)
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    names = [name for qtype in ALL for name in (qtype.name, qtype.name)]
    assert result.stdout.split() == [*names, "attention", "model", "numba-cuda"]


def test_why_it_cannot_be_used(monkeypatch):
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.setattr(numba_cuda.importlib.util, "find_spec", lambda name: None)
    assert numba_cuda.availability() == "the package numba-cuda is not installed (extra `numba-cuda`)"
    monkeypatch.setattr(numba_cuda.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(cards, "survey_cards", lambda: cards.Survey((), None, "no NVIDIA driver was found"))
    assert numba_cuda.availability() == "no NVIDIA driver was found"


class Whole(select._Entry):
    def unavailable_because(self) -> str | None:
        return None


@pytest.mark.parametrize(("device", "gpu_layers"), [("cuda:1", None), ("cuda", 3)])
def test_parts_of_models_and_other_cards_are_refused(monkeypatch, device, gpu_layers):
    monkeypatch.delenv("LOCALCODER_BACKEND", raising=False)
    monkeypatch.setattr(select, "_BACKENDS", (Whole("numba-cuda", "cuda", "", "", ""),))
    with pytest.raises(BackendError, match="computes whole models on the first card"):
        select.open_backend(device, gpu_layers=gpu_layers)
