"""The recipes, tensor by tensor, against llama.cpp's quantizer."""

from __future__ import annotations

import itertools

import gguf
import numpy as np
import pytest
from tiny_model import write_tiny_model

from localcoder.convert.recipes import ALL, Override, Recipe, Traits, choose_types, recipe_by_name
from localcoder.errors import OptionError
from localcoder.files.gguf_reader import GGUFFile

FLOATS = ("f32", "f16", "bf16")
# The family's layer counts and groups; rows that are whole super-blocks, whole blocks of 32 only, or neither.
SHAPES = {
    "1.3B": dict(n_layer=24, n_ff=288),
    "6.7B": dict(n_layer=32, n_ff=256),
    "33B": dict(n_layer=62, n_head=7, n_head_kv=1, n_ff=256),
    "7B-v1.5": dict(n_layer=30, n_ff=512),
    "groups of 2": dict(n_layer=24, n_head_kv=2, n_ff=256),
    "groups of 4": dict(n_layer=12, n_head_kv=1, n_ff=256),
    "groups of 8": dict(n_layer=17, n_head=8, n_head_kv=1, n_ff=100),
    "tied": dict(n_layer=9, n_ff=256, tied=True),
    "narrow": dict(n_layer=3, n_embd=96, n_ff=160),
    "odd": dict(n_layer=2, n_embd=72, n_head=2, head_dim=36, n_ff=100),
    "odd, tied": dict(n_layer=2, n_embd=72, n_head=2, head_dim=36, n_ff=100, tied=True),
}


def write(path, **shape):
    options = dict(n_embd=256, n_head=4, head_dim=32, n_vocab=272) | shape
    if options["n_head"] == 7:
        options["head_dim"] = 256
    options.setdefault("n_head_kv", options["n_head"])
    return write_tiny_model(path, type_name="f16", **options), options


def ours(recipe: Recipe, path, options, *, has_imatrix=False) -> dict[str, str]:
    traits = Traits(
        n_layer=options["n_layer"],
        n_gqa=options["n_head"] // options["n_head_kv"],
        tied=options.get("tied", False),
        has_imatrix=has_imatrix,
    )
    with GGUFFile.open(path) as file:
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    return {name: qtype.name for name, qtype in choose_types(recipe, shapes, traits).items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_types_are_those_of_llama_quantize(tmp_path, shape):
    oracle = pytest.importorskip("llama_quantize")
    path, options = write(tmp_path / "model.gguf", **SHAPES[shape])
    with GGUFFile.open(path) as file:
        importance = {name: np.ones(t.shape[-1], np.float32) for name, t in file.tensors.items() if len(t.shape) == 2}
    for recipe, imatrix in itertools.product(ALL, (None, importance)):
        if imatrix and recipe.name in FLOATS:
            continue
        expected = oracle.llama_quantize(path, tmp_path / "out.gguf", recipe.file_type, imatrix=imatrix, dry_run=True)
        found = ours(recipe, path, options, has_imatrix=imatrix is not None)
        assert found == expected, (recipe.name, imatrix is not None)


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_numbers_and_names(recipe):
    theirs = {number.name.removeprefix("MOSTLY_").removeprefix("ALL_").lower(): number for number in gguf.LlamaFileType}
    assert theirs[recipe.name] == recipe.file_type
    assert recipe_by_name(recipe.name.upper()) is recipe


def test_short_names():
    assert [recipe_by_name(name).name for name in ("q3_k", "q4_k", "q5_k")] == ["q3_k_m", "q4_k_m", "q5_k_m"]
    with pytest.raises(OptionError, match="unknown type 'q9_0'; known: f32, f16"):
        recipe_by_name("q9_0")


SOME = {"token_embd.weight": (320, 256), "blk.0.attn_v.weight": (64, 256), "blk.0.ffn_down.weight": (256, 96)}
TRAITS = Traits(n_layer=1, n_gqa=1, tied=True)


def test_overrides():
    overrides = tuple(map(Override.parse, ("attn_v=Q5_K", r"blk\.\d+\.=q6_k")))
    types = choose_types(recipe_by_name("q4_0"), SOME, TRAITS, overrides)
    # The first pattern that matches counts; rows of 96 values are no super-blocks.
    assert [t.name for t in types.values()] == ["q6_k", "q5_k", "q8_0"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("attn_v", "not PATTERN=TYPE"),
        ("=q4_0", "not PATTERN=TYPE"),
        ("attn_v=q9", "unknown type 'q9' for a tensor"),
        ("attn_v=iq1_s", "unknown type 'iq1_s' for a tensor"),
        ("attn_(v=q4_0", "not a regular expression"),
    ],
)
def test_bad_overrides(text, problem):
    with pytest.raises(OptionError, match=problem):
        Override.parse(text)


def test_an_override_must_match():
    with pytest.raises(OptionError, match="no matrix of this model has 'attn_w' in its name"):
        choose_types(recipe_by_name("q4_0"), SOME, TRAITS, (Override.parse("attn_w=q8_0"),))
