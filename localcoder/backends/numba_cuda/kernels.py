"""The ops as plain kernels. Matrices of activations are float32 [rows, width]; a block shares what is summed."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from localcoder.backends.numba_cuda import is_simulated
from localcoder.backends.numba_cuda.formats import reader_of
from localcoder.quants import QuantType
from localcoder.quants.activations import Q8_GROUP

TOKENS = 8  # that share one reading of a weight
THREADS = TOKENS if is_simulated() else 32  # a block; the simulator starts a thread of the CPU for each
MAX_DIM = 128  # of a head
_LEAST = np.float32(3.8e-37)  # below it 127 / x is not finite
_NEGATIVE = np.float32(-1e30)


@cache
def matmul_of(qtype: QuantType) -> Any:
    """out = x Wᵀ; a block is a row of W and TOKENS tokens."""
    read = reader_of(qtype)

    @cuda.jit
    def matmul(w, h, row_bytes, block_elems, block_bytes, x, out):
        row, lane, first = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockIdx.y * TOKENS
        n = min(TOKENS, x.shape[0] - first)
        sums = cuda.local.array(TOKENS, np.float32)
        for t in range(TOKENS):
            sums[t] = np.float32(0)
        for k in range(lane, x.shape[1], THREADS):
            value = read(w, h, row * row_bytes + k // block_elems * block_bytes, k % block_elems)
            for t in range(n):
                sums[t] += value * x[first + t, k]
        parts = cuda.shared.array((TOKENS, THREADS), np.float32)
        for t in range(TOKENS):
            parts[t, lane] = sums[t]
        cuda.syncthreads()
        if lane < n:
            total = np.float32(0)
            for i in range(THREADS):
                total += parts[lane, i]
            out[first + lane, row] = total

    return matmul


@cache
def embed_of(qtype: QuantType) -> Any:
    """out[t] = row tokens[t] of W; a block is a token."""
    read = reader_of(qtype)

    @cuda.jit
    def embed(w, h, row_bytes, block_elems, block_bytes, tokens, out):
        t = cuda.blockIdx.x
        for k in range(cuda.threadIdx.x, out.shape[1], THREADS):
            at = tokens[t] * row_bytes + k // block_elems * block_bytes
            out[t, k] = read(w, h, at, k % block_elems)

    return embed


@cuda.jit
def round_q8(x, out):
    """What x becomes when it is rounded to q8 and back (`quants.activations`); a thread is a group."""
    row, group = cuda.blockIdx.y, cuda.grid(1)
    if group * Q8_GROUP >= x.shape[1]:
        return
    extreme = np.float32(0)
    for i in range(Q8_GROUP):
        magnitude = abs(x[row, group * Q8_GROUP + i])
        if not magnitude <= extreme:  # NaN is larger than everything, and stays
            extreme = magnitude
            if magnitude != magnitude:
                break
    inverse = np.float32(0)
    if extreme > _LEAST:
        inverse = np.float32(127) * (np.float32(1) / extreme)
    scale = extreme / np.float32(127)
    for i in range(Q8_GROUP):
        code = np.float32(0)
        if inverse > np.float32(0):
            code = _nearest(x[row, group * Q8_GROUP + i] * inverse)
        out[row, group * Q8_GROUP + i] = scale * code


@cuda.jit(device=True)
def _nearest(x):
    """To nearest even, for |x| < 2^22: adding 1.5 · 2^23 leaves no place for a fraction."""
    magic = np.float32(12582912.0)
    return np.float32(x + magic) - magic


@cuda.jit
def rms_norm(x, weight, eps, out):
    """A block is a row."""
    row, lane, width = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
    parts = cuda.shared.array(THREADS, np.float32)
    total = np.float32(0)
    for i in range(lane, width, THREADS):
        total += x[row, i] * x[row, i]
    parts[lane] = total
    cuda.syncthreads()
    total = np.float32(0)
    for i in range(THREADS):
        total += parts[i]
    factor = np.float32(1) / np.float32(math.sqrt(total / np.float32(width) + np.float32(eps)))
    for i in range(lane, width, THREADS):
        out[row, i] = x[row, i] * factor * weight[i]


@cuda.jit
def rope(x, positions, cosines, sines, half, out):
    """Rotates the pairs (2i, 2i + 1) of every head; a block is a token."""
    t = cuda.blockIdx.x
    for i in range(cuda.threadIdx.x, x.shape[1] // 2, THREADS):
        c, s = cosines[positions[t], i % half], sines[positions[t], i % half]
        even, odd = x[t, 2 * i], x[t, 2 * i + 1]
        out[t, 2 * i] = even * c - odd * s
        out[t, 2 * i + 1] = even * s + odd * c


@cuda.jit
def write_kv(x, store, layer, positions, sequences, page_table):
    """Rows of keys or values into the cache [n_layer, n_pages, n_head_kv, page_size, head_dim]; a block is a token."""
    t, size, dim = cuda.blockIdx.x, store.shape[3], store.shape[4]
    page = page_table[sequences[t], positions[t] // size]
    for i in range(cuda.threadIdx.x, x.shape[1], THREADS):
        store[layer, page, i // dim, positions[t] % size, i % dim] = np.float16(x[t, i])


@cuda.jit
def attend(q, keys, values, layer, positions, sequences, page_table, n_head, out):
    """Causal attention; a block is a token and a head, and each of its threads takes every THREADS-th position."""
    t, head, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    size, dim = keys.shape[3], keys.shape[4]
    kv_head = head // (n_head // keys.shape[2])
    scale = np.float32(1) / np.float32(math.sqrt(np.float32(dim)))
    gathered = cuda.local.array(MAX_DIM, np.float32)
    for i in range(dim):
        gathered[i] = np.float32(0)
    most, total = _NEGATIVE, np.float32(0)
    for position in range(lane, positions[t] + 1, THREADS):
        page, slot = page_table[sequences[t], position // size], position % size
        score = np.float32(0)
        for i in range(dim):
            score += q[t, head * dim + i] * np.float32(keys[layer, page, kv_head, slot, i])
        score *= scale
        if not score <= most:
            shrink = np.float32(math.exp(most - score))
            total *= shrink
            for i in range(dim):
                gathered[i] *= shrink
            most = score
        weight = np.float32(math.exp(score - most))
        total += weight
        for i in range(dim):
            gathered[i] += weight * np.float32(values[layer, page, kv_head, slot, i])
    parts = cuda.shared.array((THREADS, MAX_DIM), np.float32)
    peaks = cuda.shared.array(THREADS, np.float32)
    totals = cuda.shared.array(THREADS, np.float32)
    for i in range(dim):
        parts[lane, i] = gathered[i]
    peaks[lane], totals[lane] = most, total
    cuda.syncthreads()
    for i in range(THREADS):
        if not peaks[i] <= most:
            most = peaks[i]
    total = np.float32(0)
    for i in range(THREADS):
        total += totals[i] * np.float32(math.exp(peaks[i] - most))
    for k in range(lane, dim, THREADS):
        value = np.float32(0)
        for i in range(THREADS):
            value += parts[i, k] * np.float32(math.exp(peaks[i] - most))
        out[t, head * dim + k] = value / total


@cuda.jit
def silu_mul(gate, up, out):
    """A block is a row, as in those below."""
    row = cuda.blockIdx.x
    for i in range(cuda.threadIdx.x, out.shape[1], THREADS):
        g = gate[row, i]
        down = min(-g, np.float32(88))  # exp of more is not finite, and the result 0 either way
        out[row, i] = g / (np.float32(1) + np.float32(math.exp(down))) * up[row, i]


@cuda.jit
def add(a, b, out):
    row = cuda.blockIdx.x
    for i in range(cuda.threadIdx.x, out.shape[1], THREADS):
        out[row, i] = a[row, i] + b[row, i]


@cuda.jit
def select_rows(x, rows, out):
    row = cuda.blockIdx.x
    for i in range(cuda.threadIdx.x, out.shape[1], THREADS):
        out[row, i] = x[rows[row], i]
