"""Recipes: which tensor gets which type. Data; the quantizer's driver reads it.

The names and what they stand for are llama-quantize's (https://github.com/ggml-org/llama.cpp/tree/master/tools/quantize):
a file of ours has the size that people expect of its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from localcoder.errors import OptionError
from localcoder.quants import QuantType, by_name

Layers = Callable[[int, int], bool]  # (layer, number of layers) -> whether a rule holds there


@dataclass(frozen=True)
class Traits:
    """What the choice of types depends on, beside a tensor's name and shape.

    Attributes:
        n_gqa: query heads that share one KV head.
        tied: the output matrix is the embedding.
        has_imatrix: an importance matrix is at hand.
    """

    n_layer: int
    n_gqa: int
    tied: bool
    has_imatrix: bool = False


def _every(i: int, n_layer: int) -> bool:
    return True


def _first(n: int) -> Layers:
    return lambda i, n_layer: i < n


def _first_part(n: int) -> Layers:
    return lambda i, n_layer: i < n_layer // n


def _more_bits(i: int, n_layer: int) -> bool:
    """The first and last eighth of the layers, and every third between: errors there are felt the most."""
    eighth = n_layer // 8
    return i < eighth or i >= 7 * n_layer // 8 or (i - eighth) % 3 == 2


@dataclass(frozen=True)
class Rule:
    """An exception to a recipe's type.

    Attributes:
        part: of a layer: `attn_v` for `blk.N.attn_v.weight`.
        type_name: what it becomes.
        layers: where.
        min_gqa: for models in which at least so many query heads share a KV head.
        imatrix: for runs with (True) or without (False) an importance matrix; None: both.
    """

    part: str
    type_name: str
    layers: Layers = _every
    min_gqa: int = 1
    imatrix: bool | None = None

    def holds(self, i: int, traits: Traits) -> bool:
        """Whether it holds for this part of layer `i`."""
        return (
            self.layers(i, traits.n_layer)
            and traits.n_gqa >= self.min_gqa
            and self.imatrix in (None, traits.has_imatrix)
        )


@dataclass(frozen=True)
class Recipe:
    """One way to choose types. Vectors (the norms) stay f32 in each.

    Attributes:
        name: as people type it (`q4_k_m`).
        file_type: number of the recipe in `general.file_type`.
        matrices: type of every matrix that has no exception.
        rules: exceptions for parts of the layers; the first that holds counts.
        output: type of the output matrix; None: `matrices`.
        aliases: other names.
    """

    name: str
    file_type: int
    matrices: str
    rules: tuple[Rule, ...] = ()
    output: str | None = None
    aliases: tuple[str, ...] = ()

    def type_of(self, name: str, shape: tuple[int, ...], traits: Traits) -> QuantType:
        """The type of tensor `name`; where the output matrix is tied, the embedding is treated as it would be."""
        if len(shape) == 1:
            return by_name("f32")
        return that_fits(by_name(self._preferred(name, traits)), shape[-1])

    def _preferred(self, name: str, traits: Traits) -> str:
        if name == ("token_embd.weight" if traits.tied else "output.weight"):
            return self.output or self.matrices
        match = _LAYER_TENSOR.fullmatch(name)
        if match:
            for rule in self.rules:
                if rule.part == match[2] and rule.holds(int(match[1]), traits):
                    return rule.type_name
        return self.matrices


_LAYER_TENSOR = re.compile(r"blk\.([0-9]{1,6})\.([a-z_]+)\.weight")
_SMALLER_BLOCKS = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "iq4_xs": "iq4_nl",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}


def that_fits(qtype: QuantType, n_in: int) -> QuantType:
    """`qtype`, or what stands in for it where rows of `n_in` values are not whole blocks."""
    while n_in % qtype.block_elems:
        qtype = by_name(_SMALLER_BLOCKS.get(qtype.name, "f16"))
    return qtype


_IQ4_RULES = (Rule("attn_v", "q5_k", min_gqa=4), Rule("ffn_down", "q5_k", _first_part(8), imatrix=False))
_Q6_K_MORE_BITS = (Rule("attn_v", "q6_k", _more_bits), Rule("ffn_down", "q6_k", _more_bits))

ALL: tuple[Recipe, ...] = (
    Recipe("f32", 0, "f32"),
    Recipe("f16", 1, "f16"),
    Recipe("bf16", 32, "bf16"),
    Recipe(
        "q2_k", 10, "q2_k", output="q6_k",
        rules=(
            Rule("attn_v", "q4_k", min_gqa=4), Rule("attn_v", "q3_k"),
            Rule("attn_output", "q3_k"), Rule("ffn_down", "q3_k"),
        ),
    ),
    Recipe("q3_k_s", 11, "q3_k", output="q6_k"),
    Recipe(
        "q3_k_m", 12, "q3_k", output="q6_k", aliases=("q3_k",),
        rules=(
            Rule("attn_v", "q5_k", _first(2)), Rule("attn_v", "q4_k"), Rule("attn_output", "q4_k"),
            Rule("ffn_down", "q5_k", _first_part(16)), Rule("ffn_down", "q4_k"),
        ),
    ),
    Recipe(
        "q3_k_l", 13, "q3_k", output="q6_k",
        rules=(Rule("attn_v", "q5_k"), Rule("attn_output", "q5_k"), Rule("ffn_down", "q5_k")),
    ),
    Recipe("iq4_xs", 30, "iq4_xs", _IQ4_RULES, output="q6_k"),
    Recipe("iq4_nl", 25, "iq4_nl", _IQ4_RULES, output="q6_k"),
    Recipe("q4_0", 2, "q4_0", (Rule("ffn_down", "q4_1", _first_part(8), imatrix=True),), output="q6_k"),
    Recipe("q4_1", 3, "q4_1", output="q6_k"),
    Recipe(
        "q4_k_s", 14, "q4_k", output="q6_k",
        rules=(Rule("attn_v", "q5_k", _first(4)), Rule("ffn_down", "q5_k", _first_part(8))),
    ),
    Recipe("q4_k_m", 15, "q4_k", _Q6_K_MORE_BITS, output="q6_k", aliases=("q4_k",)),
    Recipe("q5_0", 8, "q5_0", (Rule("ffn_down", "q5_1", _first_part(8), imatrix=True),), output="q6_k"),
    Recipe("q5_1", 9, "q5_1", output="q6_k"),
    Recipe("q5_k_s", 16, "q5_k", output="q6_k"),
    Recipe("q5_k_m", 17, "q5_k", _Q6_K_MORE_BITS, output="q6_k", aliases=("q5_k",)),
    Recipe("q6_k", 18, "q6_k"),
    Recipe("q8_0", 7, "q8_0"),
)  # fmt: skip

NAMES: tuple[str, ...] = tuple(recipe.name for recipe in ALL)
# From the closest to the original to the smallest; for each that is left out there is one as small and closer.
BEST_FIRST: tuple[str, ...] = (
    "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k"
)  # fmt: skip
_BY_NAME = {name: recipe for recipe in ALL for name in (recipe.name, *recipe.aliases)}


def recipe_by_name(name: str) -> Recipe:
    """The recipe called `name`; OptionError lists the known ones."""
    recipe = _BY_NAME.get(name.lower())
    if recipe is None:
        raise OptionError(f"unknown type {name!r}; known: {', '.join(NAMES)}")
    return recipe


@dataclass(frozen=True)
class Override:
    """`--tensor-type PATTERN=TYPE`: the type of every matrix in whose name the regular expression is found."""

    pattern: re.Pattern[str]
    qtype: QuantType

    @classmethod
    def parse(cls, text: str) -> Override:
        """Reads `attn_v=q6_k`.

        Raises:
            OptionError: not of this form, not a regular expression, or not a type that can be written.
        """
        pattern, equals, type_name = text.rpartition("=")
        if not (equals and pattern):
            raise OptionError(f"{text!r} is not PATTERN=TYPE, such as attn_v=q6_k")
        try:
            compiled = re.compile(pattern)
        except re.error as e:
            raise OptionError(f"{pattern!r} is not a regular expression: {e}") from None
        return cls(compiled, writable_type(type_name))


def writable_type(name: str) -> QuantType:
    """The block format `name`; OptionError lists those that a recipe uses if it is unknown or only read."""
    if name.lower() not in WRITABLE:
        raise OptionError(f"unknown type {name!r} for a tensor; known: {', '.join(WRITABLE)}")
    return by_name(name.lower())


WRITABLE: tuple[str, ...] = tuple(dict.fromkeys(recipe.matrices for recipe in ALL))


def choose_types(
    recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], traits: Traits, overrides: Sequence[Override] = ()
) -> dict[str, QuantType]:
    """The type of every tensor: what the first override that matches says, else the recipe.

    Args:
        shapes: name -> shape of every tensor.

    Raises:
        OptionError: an override matches no matrix.
    """
    types = {name: recipe.type_of(name, shape, traits) for name, shape in shapes.items()}
    for override in reversed(overrides):
        found = [name for name, shape in shapes.items() if len(shape) > 1 and override.pattern.search(name)]
        if not found:
            raise OptionError(f"no matrix of this model has {override.pattern.pattern!r} in its name")
        for name in found:
            types[name] = that_fits(override.qtype, shapes[name][-1])
    return types
