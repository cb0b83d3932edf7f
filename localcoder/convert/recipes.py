"""Recipes: which tensor gets which type. Data; the converter reads it."""

from __future__ import annotations

from dataclasses import dataclass, field

from localcoder.errors import OptionError
from localcoder.quants import QuantType, by_name

FALLBACK = "f16"  # for rows that are not a whole number of blocks


@dataclass(frozen=True)
class Recipe:
    """One way to choose types. Vectors (the norms) stay f32 in each.

    Attributes:
        name: as people type it (`q4_0`).
        file_type: number of the recipe in `general.file_type`.
        matrices: type of every matrix that `exceptions` does not name.
        exceptions: GGUF tensor name -> type.
    """

    name: str
    file_type: int
    matrices: str
    exceptions: dict[str, str] = field(default_factory=dict)

    def type_of(self, name: str, shape: tuple[int, ...], *, tied: bool) -> QuantType:
        """The type of tensor `name`; where the output matrix is tied, the embedding is treated as it would be."""
        if len(shape) == 1:
            return by_name("f32")
        role = "output.weight" if tied and name == "token_embd.weight" else name
        qtype = by_name(self.exceptions.get(role, self.matrices))
        return qtype if shape[-1] % qtype.block_elems == 0 else by_name(FALLBACK)


# The output matrix matters most for its size, so where matrices have few bits it gets more.
ALL: tuple[Recipe, ...] = (
    Recipe("f32", 0, "f32"),
    Recipe("f16", 1, "f16"),
    Recipe("bf16", 32, "bf16"),
    Recipe("q8_0", 7, "q8_0"),
    Recipe("q4_0", 2, "q4_0", {"output.weight": "q8_0"}),
)

NAMES: tuple[str, ...] = tuple(recipe.name for recipe in ALL)


def recipe_by_name(name: str) -> Recipe:
    """The recipe called `name`; OptionError lists the known ones."""
    for recipe in ALL:
        if recipe.name == name.lower():
            return recipe
    raise OptionError(f"unknown type {name!r}; known: {', '.join(NAMES)}")
