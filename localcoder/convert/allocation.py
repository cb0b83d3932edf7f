"""Sharing out a budget of bytes over the matrices of a model, where they help most.

Every matrix is rounded to every type, on a sample of its rows, which gives the noise that the type adds to the matrix's
output. The KL divergence that this causes is proportional to it, by a factor that depends on the matrix: measured on
the very model where there is a text (measure/sensitivity.py), else a usual one by kind and place. The sum of factor x
noise is then made as small as the budget allows: from the smallest types on, always the step that gains the most for
its bytes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from localcoder.convert.choice import Choice
from localcoder.convert.recipes import ALL as RECIPES
from localcoder.convert.recipes import WRITABLE
from localcoder.convert.stream import PlannedTensor, Requantize
from localcoder.errors import OptionError
from localcoder.files.gguf_writer import GGUFOutput, TensorInfo
from localcoder.quants import QuantType, by_name
from localcoder.quants.spec import Float32

# KL divergence per unit of relative noise in the output of a matrix, over what such noise does in all ffn_up together,
# as tools/measure_sensitivity.py found it on a model of six layers trained on code. A layer's part is one of n_layer.
_OF_LAYER = {  # in the first layer, in those between, in the last
    "attn_q": (1.1, 1.1, 1.7),
    "attn_k": (0.9, 3.9, 2.3),
    "attn_v": (6.8, 3.4, 3.0),
    "attn_output": (8.1, 2.4, 2.0),
    "ffn_gate": (1.5, 1.1, 2.0),
    "ffn_up": (1.3, 0.8, 1.7),
    "ffn_down": (2.8, 0.9, 6.9),
}
_OF_MODEL = {"token_embd": 2.0, "output": 24.0}
SAMPLE_VALUES = 1 << 18  # of a matrix
_SAMPLE_PIECES = 8  # runs of rows that the sample is taken from
_LAYER_TENSOR = re.compile(r"blk\.([0-9]{1,6})\.([a-z_]+)\.weight")


@dataclass(frozen=True)
class Option:
    """A type that a matrix could have, and what that costs: bytes, and expected harm."""

    qtype: QuantType
    n_bytes: int
    loss: float


def within_budget(
    out: GGUFOutput, tensors: Sequence[PlannedTensor], choice: Choice, requantize: Requantize, n_layer: int
) -> list[PlannedTensor]:
    """The same tensors, of the types that serve best within `choice.budget`; `out` has all its metadata.

    Raises:
        OptionError: the budget is too small.
        FileError: as `PlannedTensor.rounded`.
    """
    assert choice.budget is not None
    infos = [tensor.info for tensor in tensors]
    header_bytes = out.size_of(infos) - out.padded_bytes(infos)
    n_weights = sum(math.prod(info.shape) for info in infos)
    fixed_bytes = out.padded_bytes([info for info in infos if choice.is_fixed(info)])
    free = [tensor for tensor in tensors if not choice.is_fixed(tensor.info)]
    smallest = fixed_bytes + sum(out.padded_bytes([_smallest(tensor.info)]) for tensor in free)
    n_bytes = choice.budget.tensor_bytes(n_weights, header_bytes)
    if smallest > n_bytes:
        bits = math.ceil(100 * 8 * smallest / n_weights) / 100
        least = f"{smallest + header_bytes:,} bytes, {bits:.2f} bits per weight"
        raise OptionError(f"{choice.name} is too little: the smallest possible file takes {least}")
    for tensor in free:
        tensor.check()
    tied = all(info.name != "output.weight" for info in infos)
    sensitivity = choice.budget.sensitivity or {
        info.name: usual_sensitivity(info.name, n_layer, tied) for info in infos
    }
    options = {
        tensor.info.name: _options_of(out, tensor, requantize, sensitivity.get(tensor.info.name, 1.0))
        for tensor in free
    }
    types = share_out(options, n_bytes - fixed_bytes)
    found = [replace(t, info=replace(t.info, qtype=types.get(t.info.name, t.info.qtype))) for t in tensors]
    out.add_metadata("general.file_type", _file_type([tensor.info for tensor in found]))
    return found


def _types_for(info: TensorInfo) -> list[QuantType]:
    """The types whose blocks fit the rows of a matrix."""
    return [qtype for qtype in map(by_name, WRITABLE) if info.shape[-1] % qtype.block_elems == 0]


def _smallest(info: TensorInfo) -> TensorInfo:
    return min((replace(info, qtype=qtype) for qtype in _types_for(info)), key=lambda info: info.nbytes)


def _file_type(infos: Sequence[TensorInfo]) -> int:
    """Number of the recipe whose type most weights have."""
    n_weights: Counter[str] = Counter()
    for info in infos:
        n_weights[info.qtype.name] += math.prod(info.shape)
    most = n_weights.most_common(1)[0][0]
    return next(recipe.file_type for recipe in RECIPES if recipe.matrices == most)


def _options_of(out: GGUFOutput, tensor: PlannedTensor, requantize: Requantize, sensitivity: float) -> list[Option]:
    """What a matrix could become; its present type does not matter."""
    infos = (replace(tensor.info, qtype=qtype) for qtype in _types_for(tensor.info))
    noises = noises_of(tensor, requantize)
    return [Option(info.qtype, out.padded_bytes([info]), sensitivity * noises[info.qtype]) for info in infos]


def noises_of(tensor: PlannedTensor, requantize: Requantize) -> dict[QuantType, float]:
    """Squared error in a matrix's output over the output's own square, for every type that fits its rows.

    Where the columns' importance is known the inputs are taken as uncorrelated and as large as it says, else as of one
    size. Seen on a sample of the rows.
    """
    x = sample_rows(tensor)
    weights = np.ones(x.shape[1], np.float32) if tensor.importance is None else tensor.importance
    energy = max(float(np.einsum("ij,ij,j->", x, x, weights, dtype=np.float64)), np.finfo(np.float32).tiny)
    f32, stored = by_name("f32"), x.view(np.uint8)
    noises = {}
    for qtype in _types_for(tensor.info):
        error = qtype.dequantize(requantize(qtype, f32, stored, tensor.importance)) - x
        noises[qtype] = float(np.einsum("ij,ij,j->", error, error, weights, dtype=np.float64)) / energy
    return noises


def usual_sensitivity(name: str, n_layer: int, tied: bool) -> float:
    """What a unit of relative noise in the output of matrix `name` does, on some scale."""
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None:
        if tied and name == "token_embd.weight":
            return sum(_OF_MODEL.values())
        return _OF_MODEL.get(name.removesuffix(".weight"), 1.0)
    layer = int(match[1])
    place = 0 if layer == 0 else 2 if layer == n_layer - 1 else 1
    return _OF_LAYER.get(match[2], (1.0, 1.0, 1.0))[place] / n_layer


def sample_rows(tensor: PlannedTensor) -> Float32:
    """Rows from all over a matrix, float32 [n, n_in], at most about SAMPLE_VALUES values."""
    source, n_rows = tensor.source, tensor.n_rows
    n_units = n_rows // source.unit
    n_pieces = min(_SAMPLE_PIECES, n_units)
    wanted = max(1, SAMPLE_VALUES // tensor.info.shape[-1] // n_pieces)  # rows of a piece
    piece_units = min(-(-wanted // source.unit), n_units // n_pieces)
    step = max(1, piece_units * source.unit // wanted)
    pieces = []
    for i in range(n_pieces):
        start = i * n_units // n_pieces * source.unit
        rows = source.stored_rows(start, start + piece_units * source.unit)
        pieces.append(source.qtype.dequantize(np.ascontiguousarray(rows[::step])))
    return np.concatenate(pieces)


def share_out(options: Mapping[str, Sequence[Option]], n_bytes: int) -> dict[str, QuantType]:
    """The type of every matrix: least total loss within `n_bytes`, as far as steps along the convex hulls find it.

    The smallest types must fit.
    """
    hulls = {name: lower_hull(choices) for name, choices in options.items()}
    chosen = dict.fromkeys(hulls, 0)
    left = n_bytes - sum(hull[0].n_bytes for hull in hulls.values())
    steps = [
        ((here.loss - there.loss) / (there.n_bytes - here.n_bytes), name, i)
        for name, hull in hulls.items()
        for i, (here, there) in enumerate(itertools.pairwise(hull))
    ]
    # On a convex hull the gain per byte falls, so a matrix's steps come in their order.
    for _, name, i in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        cost = hulls[name][i + 1].n_bytes - hulls[name][i].n_bytes
        if chosen[name] == i and cost <= left:
            chosen[name] = i + 1
            left -= cost
    return {name: hulls[name][i].qtype for name, i in chosen.items()}


def lower_hull(options: Sequence[Option]) -> list[Option]:
    """The options that are best for some price of a byte, from the smallest on: bytes rise, losses fall."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (option.n_bytes, option.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-1], option) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def _gain(here: Option, there: Option) -> float:
    """Loss avoided per byte."""
    n_bytes = there.n_bytes - here.n_bytes
    return (here.loss - there.loss) / n_bytes if n_bytes else math.inf
