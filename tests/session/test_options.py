"""Options are checked in one place, and the keyword arguments are the same fields."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from localcoder.errors import OptionError
from localcoder.session.options import GenerationArguments, GenerationOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "warm"),
        ("temperature", None),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_p", 1.01),
        ("min_p", -1),
        ("repeat_penalty", 0),
        ("repeat_last_n", -1),
        ("seed", -1),
        ("seed", 1 << 64),
        ("max_tokens", 0),
        ("max_tokens", 2.0),
    ],
)
def test_a_value_out_of_range_names_the_option_and_the_range(name, value):
    with pytest.raises(OptionError, match=rf"^{name} is .*; expected a (whole )?number"):
        GenerationOptions(**{name: value})


@pytest.mark.parametrize("stop", ["", ["a", ""], [3]])
def test_stop_strings_are_strings(stop):
    with pytest.raises(OptionError, match=r"^stop is"):
        GenerationOptions(stop=stop)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samplers": ["top_k", "top_z"]}, "samplers is"),
        ({"samplers": ["top_k", "top_k"]}, "each once"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias has -1"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias has 'a'"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias has 1: nan"),
        ({"logit_bias": [1]}, "expected token ids and numbers"),
        ({"speculate": 1}, "speculate is 1"),
        ({"penalize_prompt": None}, "penalize_prompt is None"),
    ],
)
def test_options_that_are_no_numbers(options, message):
    with pytest.raises(OptionError, match=message):
        GenerationOptions(**options)


def test_values_that_are_fine():
    options = GenerationOptions(top_k=np.int64(3), top_p=np.float32(0.5), stop="x", seed=(1 << 64) - 1, max_tokens=None)
    assert options.stop == ("x",)
    assert GenerationOptions(temperature=1).temperature == 1


def test_the_keyword_arguments_are_the_fields():
    assert set(GenerationArguments.__annotations__) == {spec.name for spec in fields(GenerationOptions)}
