"""The examples in the documentation of what a script uses do what they say; and whatever is public there has one."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest

from localcoder import AsyncCoder, Coder

MODULES = ["localcoder.coder", "localcoder.session.opened", "localcoder.session.readings", "localcoder.async_coder"]
SHOWN_ELSEWHERE = {"load_session", "close"}  # by save_session, and by every `with`


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried >= 4
    assert not failed


@pytest.mark.parametrize("cls", [Coder, AsyncCoder])
def test_every_public_method_has_an_example(cls):
    assert ">>>" in cls.__doc__
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        if not name.startswith("_") and name not in SHOWN_ELSEWHERE:
            assert ">>>" in method.__doc__, name
