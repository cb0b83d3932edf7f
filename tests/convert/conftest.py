"""Fixtures of the converter's tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def short_proof(request, monkeypatch):
    """Proves small tokenizers on a short corpus; the proof has tests of its own."""
    if "shared" not in request.fixturenames:
        monkeypatch.setattr("localcoder.tokenizer.proof.MAX_LIBRARY_CHARACTERS", 5_000)
