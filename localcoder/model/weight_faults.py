"""What can be wrong with weights: numbers that are none, and rows of Q and K in the checkpoint's order.

Found by looking at the weights, which takes a while; so loading leaves it to `localcoder doctor`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from localcoder.errors import LocalcoderError
from localcoder.faults import Fault
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.hyperparameters import Hyperparameters
from localcoder.quants.spec import Bytes, QuantTensor

_SLICE_BYTES = 1 << 22
_MAX_HEADS = 96  # looked at, spread over all layers
_MIN_HEADS = 8


def not_finite(file: GGUFFile, progress: Callable[[int, int, str], None] | None = None) -> Iterator[Fault]:
    """A fault for each tensor that holds NaN or infinity: among its values, or the scales of its blocks.

    Args:
        progress: called after each tensor with (tensors done, tensors in all, name).
    """
    for n_done, tensor in enumerate(file.tensors.values(), 1):
        found = _first_not_finite(tensor)
        if found is not None:
            harm = "the model computes nothing but NaN: convert the checkpoint again, or fetch the file again"
            yield Fault("not-finite", f"tensor {tensor.name}: {found}", harm)
        if progress:
            progress(n_done, len(file.tensors), tensor.name)


def _first_not_finite(tensor: QuantTensor) -> str | None:
    qtype = tensor.qtype
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    n_rows = max(1, _SLICE_BYTES // rows.shape[1])
    for at in range(0, len(rows), n_rows):
        if qtype.block_elems == 1:
            bad = ~np.isfinite(qtype.dequantize(rows[at : at + n_rows]))
        else:
            blocks = np.ascontiguousarray(rows[at : at + n_rows]).view(qtype.block)
            scales = [blocks[name] for name in qtype.block.names or () if qtype.block[name].kind == "f"]
            if not scales:
                return None
            bad = np.any([~np.isfinite(scale) for scale in scales], axis=0)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            what = "value" if qtype.block_elems == 1 else "scale of block"
            return f"{what} {column} of row {at + row} is not a finite number"
    return None


def unpermuted(file: GGUFFile, hp: Hyperparameters) -> Iterator[Fault]:
    """A fault if the rows of Q and K stand as in a checkpoint, where RoPE pairs row i of a head with row i + d/2.

    In a GGUF file of this architecture the pairs are rows 2i and 2i + 1. Training mixes the two rows of a pair: through
    RoPE's rotation the gradient of a query row has a part along the key row of its partner. So the cosine between a
    query row and a key row of the same head is larger for partners than for strangers, and it is clear from some dozen
    heads which rows are partners. Weights that were never trained show no difference and are left alone.
    """
    pairs = _partner_alignment(file, hp)
    if pairs is None or len(pairs) < _MIN_HEADS:
        return
    neighbours, halves, same, all_rows = pairs.T
    ratio = np.log(halves / neighbours)
    t = ratio.mean() / (ratio.std(ddof=1) / math.sqrt(len(ratio)) + 1e-12)
    is_trained = (same / all_rows).mean() > 2
    if is_trained and t > 4 and (ratio > 0).mean() > 0.7 and (halves / all_rows).mean() > 1.2:
        problem = (
            f"the rows of Q and K are in the checkpoint's order, not in GGUF's: rows i and i + {hp.head_dim // 2} of a "
            f"head belong together, not 2i and 2i + 1 (in {100 * (ratio > 0).mean():.0f}% of {len(ratio)} heads)"
        )
        yield Fault("rope-layout", problem, "positions are rotated in the wrong planes: words without sense")


def _partner_alignment(file: GGUFFile, hp: Hyperparameters) -> NDArray[np.float64] | None:
    """For each of some heads, mean squared cosines between query and key rows: [n_heads, 4].

    The columns: rows 2i and 2i + 1; rows i and i + d/2; a row and its own; all pairs of different rows.
    """
    heads = [(layer, head) for layer in range(hp.n_layer) for head in range(hp.n_head)]
    found = []
    for layer, head in heads[:: -(-len(heads) // _MAX_HEADS)]:
        q = _head_rows(file, f"blk.{layer}.attn_q.weight", head, hp.head_dim)
        k = _head_rows(file, f"blk.{layer}.attn_k.weight", head // (hp.n_head // hp.n_head_kv), hp.head_dim)
        if q is None or k is None:
            return None
        squared = (q @ k.T) ** 2
        i, d = np.arange(hp.head_dim // 2), hp.head_dim
        same = np.diagonal(squared).mean()
        others = (squared.sum() - same * d) / (d * (d - 1))
        columns = [_both_ways(squared, 2 * i, 2 * i + 1), _both_ways(squared, i, i + d // 2), same, others]
        if all(math.isfinite(c) and c > 0 for c in columns):
            found.append(columns)
    return np.array(found).reshape(-1, 4)


def _both_ways(squared: NDArray[np.float64], a: NDArray[np.intp], b: NDArray[np.intp]) -> float:
    return float((squared[a, b] + squared[b, a]).mean() / 2)


def _head_rows(file: GGUFFile, name: str, head: int, head_dim: int) -> NDArray[np.float64] | None:
    """The rows of one head with the norm before them, each brought to length 1; None if tensors are not as expected."""
    tensor, norm = file.tensors.get(name), file.tensors.get(name.rsplit(".attn", 1)[0] + ".attn_norm.weight")
    if tensor is None or norm is None or len(tensor.shape) != 2 or norm.shape != tensor.shape[1:]:
        return None
    rows = tensor.qtype.dequantize(tensor.data[head * head_dim : (head + 1) * head_dim]).astype(np.float64)
    if len(rows) != head_dim:
        return None
    rows *= norm.dequantize()
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-30)


def interleaved(tensor: QuantTensor, head_dim: int) -> Bytes:
    """The bytes of a Q or K tensor with its rows brought from the checkpoint's order into GGUF's; no value changes.

    Raises:
        LocalcoderError: its rows are not whole heads.
    """
    if len(tensor.shape) != 2 or tensor.shape[0] % head_dim:
        raise LocalcoderError(f"tensor {tensor.name} has shape {tensor.shape}: no whole heads of {head_dim} rows")
    heads = tensor.data.reshape(-1, 2, head_dim // 2, tensor.data.shape[-1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(tensor.data.shape)
